"""What was scored of a run, kept in its folder under all that decides the figures: nothing is scored twice.

``metrics.json``: ``of`` (what was scored: digests of codes and items), and ``scores``, an entry for each way of asking,
the last one at the end: ``asked`` (ties, cuts, rule of mAP@k), ``protocol`` in words, ``rows`` (without the path of the
run, which may move). Standard library only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cmrhash.errors import DamagedError
from cmrhash.storage.files import read_json, write_json
from cmrhash.training import runs

VERSION = 2  # of the figures: one more whenever the same codes would be scored otherwise
USUAL = {"map_at": None, "ties": "expected"}  # what is shown of several
Row = dict[str, Any]
Key = tuple[str, str | None, str | None]  # direction, language of the texts that ask, of those that texts ask for


def kept(run: runs.Run, of: Mapping[str, Any], asked: Mapping[str, Any]) -> dict[Key, Row]:
    """The rows that were scored in this way. of: digests of what is scored now."""
    rows = [row for entry in _read(run, of) if entry["asked"] == asked for row in entry["rows"]]
    return {(row["direction"], row["lang"], row.get("database_lang")): {**row, "run": str(run.folder)} for row in rows}


def keep(
    run: runs.Run, of: Mapping[str, Any], asked: Mapping[str, Any], protocol: Mapping[str, Any], rows: Sequence[Row]
) -> None:
    """Write rows beside those of other ways of asking, in the place of what was scored of other codes."""
    others = [entry for entry in _read(run, of) if entry["asked"] != asked]
    ordered = [{key: value for key, value in row.items() if key != "run"} for row in sorted(rows, key=_place)]
    mine = {"asked": dict(asked), "protocol": dict(protocol), "rows": ordered}
    write_json(run.folder / runs.METRICS, {"version": VERSION, "of": dict(of), "scores": [*others, mine]})


def shown(run: runs.Run) -> dict[str, Any] | None:
    """``protocol`` and ``rows`` of the whole ranking in expected order, else of what was asked last; or None."""
    entries = _read(run)[::-1]  # of equal ones the last
    usual = [entry for entry in entries if entry["asked"].items() >= USUAL.items()]
    return max(usual or entries[:1], key=lambda entry: len(entry["rows"]), default=None)


def _place(row: Row) -> tuple[bool, bool, str, str, str]:
    """As they are scored: i2t and t2i of each language, then texts by texts, then images by images."""
    direction, lang = row["direction"], row["lang"] or ""
    return direction not in ("i2t", "t2i"), direction == "i2i", lang, direction, row.get("database_lang") or ""


def _read(run: runs.Run, of: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
    """Entries of these codes. Whatever is not there, damaged or of another version can be scored again."""
    path = run.folder / runs.METRICS
    try:
        found = read_json(path, "run cmrhash eval again")
    except (FileNotFoundError, DamagedError):
        return []
    current = found.get("version") == VERSION and of in (None, found["of"])
    entries: list[dict[str, Any]] = found["scores"] if current else []
    return entries
