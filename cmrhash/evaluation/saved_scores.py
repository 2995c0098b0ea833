"""Saved scores of a run: nothing is scored twice. Standard library only.

``metrics.json`` in the run's folder holds ``of`` (digests of the scored codes and items) and ``scores``, one entry per
set of options, the latest last: ``asked`` (ties, cuts, mAP@k rule, rank unless by Hamming distance, and relevance
unless that of the training), ``protocol`` in words, ``rows`` (without the path of the run, which may move).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from cmrhash.errors import DamagedError
from cmrhash.storage.files import read_json, write_json
from cmrhash.storage.sealed import read_manifest
from cmrhash.training import runs

if TYPE_CHECKING:
    from cmrhash.data.items import ImageTextDataset
    from cmrhash.evaluation.run_codes import RunCodes

VERSION = 2  # increase it when the same codes would score differently
USUAL = {"map_at": None, "ties": "expected"}  # options that ``shown`` prefers
RANK, RELEVANCE = "rank", "relevance"  # options that scores by Hamming distance and by the run's own relevance lack
Row = dict[str, Any]
Key = tuple[str, str | None, str | None]  # direction, lang, database_lang


def scored(views: RunCodes, dataset: ImageTextDataset) -> dict[str, str]:
    """Digests of the codes and items that scores are of."""
    return {"codes": views.sha256, "items": dataset.sha256}


def kept(run: runs.Run, of: Mapping[str, Any], asked: Mapping[str, Any]) -> dict[Key, Row]:
    """Rows scored earlier with these options. of: digests of the present codes and items.

    Rows of earlier versions, without figures by seen and unseen items, are left out: their codes are scored again.
    """
    entries = [entry for entry in _read(run, of) if entry["asked"] == asked]
    rows = [row for entry in entries for row in entry["rows"] if "map_seen" in row]
    return {(row["direction"], row["lang"], row.get("database_lang")): {**row, "run": str(run.folder)} for row in rows}


def keep(
    run: runs.Run, of: Mapping[str, Any], asked: Mapping[str, Any], protocol: Mapping[str, Any], rows: Sequence[Row]
) -> None:
    """Save rows beside those of other options; drop the scores of other codes."""
    others = [entry for entry in _read(run, of) if entry["asked"] != asked]
    ordered = [{key: value for key, value in row.items() if key != "run"} for row in sorted(rows, key=_place)]
    mine = {"asked": dict(asked), "protocol": dict(protocol), "rows": ordered}
    write_json(run.folder / runs.METRICS, {"version": VERSION, "of": dict(of), "scores": [*others, mine]})


def shown(run: runs.Run, *, former: bool = False) -> dict[str, Any] | None:
    """Saved ``protocol`` and ``rows`` of the codes that the run has, for display; None if there are none.

    Scores by Hamming distance over the whole ranking with expected ties, by the relevance of the training, come first,
    the most rows of these; otherwise the latest scores. former: also scores of the codes before a change of the
    collection.
    """
    codes = run.folder / runs.CODES
    present = {"codes": read_manifest(codes)["payload_sha256"]} if codes.exists() and not former else {}
    entries = _read(run, present)[::-1]  # latest first: ``max`` returns the first of equal entries
    usual = [
        entry
        for entry in entries
        if entry["asked"].items() >= USUAL.items() and not {RANK, RELEVANCE} & set(entry["asked"])
    ]
    return max(usual or entries[:1], key=lambda entry: len(entry["rows"]), default=None)


def _place(row: Row) -> tuple[bool, bool, str, str, str]:
    """Sort key: i2t and t2i of each language, then t2t, then i2i."""
    direction, lang = row["direction"], row["lang"] or ""
    return direction not in ("i2t", "t2i"), direction == "i2i", lang, direction, row.get("database_lang") or ""


def _read(run: runs.Run, of: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Saved entries of these codes; none if missing, damaged or of another version."""
    path = run.folder / runs.METRICS
    try:
        found = read_json(path, "run `evaluate` again")
    except (FileNotFoundError, DamagedError):
        return []
    current = found.get("version") == VERSION and of.items() <= found["of"].items()
    entries: list[dict[str, Any]] = found["scores"] if current else []
    return entries
