"""States of the files and folders that cmrhash wrote, and what the commands do about each of them."""

from __future__ import annotations

from enum import StrEnum

from cmrhash.errors import DamagedError, StaleError

EXIT_CODES = {"damaged": DamagedError.exit_code, "stale": StaleError.exit_code}  # of verify, by status; else 0


class State(StrEnum):
    """State of a file or folder; its value is the text in tables and JSON.

    status: the group that verify counts and that decides its exit code: "whole", "busy", "unfinished", "gone",
    "stale", "damaged", "leftover" or "foreign". prune: when ``cache prune`` deletes it: "always", only with the option
    "unfinished" or "gone", or "" for never. fix: advice to the user, "" where none is needed or the error has its own.
    """

    WHOLE = "whole", "whole"
    SEALED = "sealed", "whole"
    TRAINED = "trained", "whole"
    TUNED = "tuned", "whole"
    BUSY = "being written", "busy"
    UNFINISHED = "unfinished", "unfinished", "unfinished", "rerun the command that made it; it resumes"
    SHARD = (
        "shard",
        "unfinished",
        "unfinished",
        "waits for the other shards; `extract` without `shard` needs none",
    )
    LEFT_BEHIND = "left behind", "leftover", "always", "left by an interrupted process: `prune` deletes it"
    ITEMS_CHANGED = (
        *("items changed", "stale", "always"),
        "made for other items than the data set has now: `extract` with `overwrite=True`, then `train`, or `prune`",
    )
    FEATURES_CHANGED = (
        *("features changed", "stale", "always"),
        "the heads do not fit these features: run `train` with `overwrite=True`, or `prune`",
    )
    OTHER_ITEMS = "codes of other items", "stale", "always", "`evaluate` creates them again"
    OTHER_HEADS = "codes of other heads", "stale", "always", "`evaluate` creates them again"
    UNUSED_GRAPH = "graph of no features", "stale", "always", "run `prune`; `extract` creates the graphs that it needs"
    OTHER_FEATURES = "words of other features", "stale", "always", "run `prune`, then `extract` creates them again"
    FEATURES_GONE = "features gone", "gone", "gone", "`extract` creates the same features again"
    OTHER_FORMAT = "another format", "stale"
    DAMAGED = "damaged", "damaged"
    FOREIGN = "not of cmrhash", "foreign"

    status: str
    prune: str
    fix: str

    def __new__(cls, text: str, status: str, prune: str = "", fix: str = "") -> State:
        """Make a member from its row of the table."""
        member = str.__new__(cls, text)
        member._value_, member.status, member.prune, member.fix = text, status, prune, fix
        return member


PLAIN = tuple(state for state in State if state.status == "whole")  # their text adds nothing to that status
VARIED = (State.DAMAGED, State.OTHER_FORMAT)  # the reason differs from file to file, so advice names the file
