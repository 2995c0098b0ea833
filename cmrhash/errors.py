"""Every error that cmrhash raises on purpose, and the exit code that each one means.

    CmrhashError            1   anything else of ours
    |-- UsageError          2   an option or argument that the user can mend on the command line
    |   `-- EncoderError    2   an encoder or its weights cannot be had, or are not what they should be
    |-- PeerError           1   another process of the same run ended, or does something else
    |-- LockedError         3   another process is writing the same file
    |-- StaleError          4   made by another recipe, or by another version, than asked for
    |-- DataError           5   the data set, or what is in its files
    `-- DamagedError        6   an artifact of ours that is no longer what was written

A message is one line in three parts: what was found, where, and what to do next.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from os import PathLike


class CmrhashError(Exception):
    """Base of all errors raised on purpose; ``str(error)`` is "what: where: fix" on one line, also kept by parts."""

    exit_code = 1

    def __init__(self, what: str, where: str | PathLike[str] | None = None, fix: str | None = None) -> None:
        self.what, self.where, self.fix = what, where, fix
        parts = [what, None if where is None else str(where), fix]
        message = ": ".join(part for part in parts if part)
        super().__init__(" ".join(message.split()))


class UsageError(CmrhashError):
    """An option or argument that cannot be used as given."""

    exit_code = 2


class EncoderError(UsageError):
    """An encoder is unknown, cannot be found without network, or its weights do not fit."""


class PeerError(CmrhashError):
    """Of several processes that work on one thing, another one ended or cannot be reached; see ``ranks``."""


class LockedError(CmrhashError):
    """Another process holds the file."""

    exit_code = 3


class StaleError(CmrhashError):
    """A file was made by another recipe or version; names the first differing field with both values."""

    exit_code = 4


class DataError(CmrhashError):
    """The data set cannot be used as it is."""

    exit_code = 5


class DamagedError(CmrhashError):
    """A file of ours does not match its digest, or is cut short."""

    exit_code = 6


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """ "did you mean X?" for the known name nearest to a misspelt one, "" if none is near."""
    near = get_close_matches(name, list(known), 1)
    return f"did you mean {near[0]}?" if near else ""
