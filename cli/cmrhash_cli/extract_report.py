"""What cmrhash extract prints of an extraction: a table or JSON on stdout, notes on stderr."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from cmrhash_cli.output import (
    note,
    print_json,
    print_table,
)
from cmrhash_cli.typed import as_typed

if TYPE_CHECKING:
    from cmrhash.features.extract import Extraction
    from cmrhash.features.leaks import Leaks
    from cmrhash.training.finetune.tuned import Tuned


ROLES = ("query", "database", "train", "val")
MANY_UNKNOWN = 0.05  # share of unknown words or word pieces from which text model and language hardly match


def show(report: Extraction, as_json: bool, quiet: bool) -> None:
    """Print the files of an extraction, and the notes on its data set and encoders."""
    if as_json:
        print_json(_as_json(report))
    else:
        rows = [
            [
                file.path.name,
                str(file.rows),
                str(file.items),
                str(file.ok),
                *(["", ""] if file.missing else [str(file.absent), str(file.broken)]),
                f"{file.seconds:.1f} s" if file.fresh else "reused",
            ]
            for file in report.files
        ]
        columns = ["file", "rows", "items", "ok", "absent", "broken", "time"]
        print_table(f"{report.dataset.name} in {report.folder}", columns, rows)
    for line in _notes(report):
        note(line, quiet)


def _as_json(report: Extraction) -> dict[str, Any]:
    data = report.dataset
    return {
        "dataset": data.name,
        "items": len(data.items),
        "classes": len(data.classes),
        "found": dict(data.found),
        "changes": {**asdict(report.changes)} if report.changes else None,
        "splits": {role: data.count(role) for role in ROLES},
        "leaks": asdict(found) if (found := _leaks(report)) else None,
        "untrained_encoders": report.untrained,
        "unknown_words": report.unknown_words,
        "finetuned": _tuned_as_json(report),
        "files": [
            {
                "file": str(file.path),
                "items": file.items,
                "rows": file.rows,
                "ok": file.ok,
                "quarantined": file.items - file.ok,
                "absent": file.absent,
                "broken": file.broken,
                "seconds": round(file.seconds, 3),
                "fresh": file.fresh,
                "missing_shards": list(file.missing),
            }
            for file in report.files
        ],
    }


def _leaks(report: Extraction) -> Leaks | None:
    """What train and query items share; None for a part of the files, and without such items."""
    from cmrhash.features.dataset import ExtractedDataset
    from cmrhash.features.leaks import leaks

    whole = report.shard.of == 1 and report.files and not any(file.missing for file in report.files)
    return leaks(ExtractedDataset(report.dataset, report.folder)) if whole else None


def _tuned(report: Extraction) -> Tuned | None:
    """Fine-tuning of the encoders, None without ``--finetune``."""
    tuned: Tuned | None = getattr(report, "tuned", None)
    return tuned


def _tuned_as_json(report: Extraction) -> dict[str, Any] | None:
    """Result of the fine-tuning; None without ``--finetune``."""
    tuned = _tuned(report)
    if tuned is None:
        return None
    outcome = asdict(tuned.outcome)
    keys = ["epochs", "best_epoch", "chosen_on", "skipped_steps"]
    keys += ["val_map", "val_map_mean", "collapsed"] if tuned.outcome.val_map else []
    return {
        "folder": str(tuned.folder),
        "fresh": tuned.fresh,
        "views": sorted(tuned.weights),
        "finetune": tuned.recipe["finetune"],
        "rates": tuned.recipe["rates"],
        **{key: outcome[key] for key in keys},
    }


def _notes(report: Extraction) -> Iterator[str]:
    """Notes on the data set, its splits and the encoders."""
    data = report.dataset
    yield "found: " + as_typed(", ".join(f"{count} {what}" for what, count in data.found.items()))
    yield from map(as_typed, data.notes)
    if data.relevance == "pairs" and data.languages:
        yield "relevance: pairs, an item's own counterpart alone (no labels)"
    if report.changes:
        yield f"since the last extraction: {report.changes}"
        yield "runs stay usable: their codes are made again at the next use"
    yield "splits: " + ", ".join(f"{data.count(role)} {role}" for role in ROLES) + f" ({data.split})"
    if words := str(_leaks(report) or ""):
        yield f"leaks: {words}"
    if tuned := _tuned(report):
        outcome = tuned.outcome
        best = f"epoch {outcome.best_epoch + 1} of {outcome.epochs}, by {outcome.chosen_on}"
        score = "" if outcome.val_map_mean is None else f" (mAP {outcome.val_map_mean:.3f})"
        yield f"tuned {'now' if tuned.fresh else 'before'}: {', '.join(sorted(tuned.weights))}; {best}{score}"
        if outcome.skipped_steps:
            yield f"warning: {outcome.skipped_steps} steps with a non-finite gradient were left out"
    if report.untrained:
        yield "note: the encoders are untrained; their results test the pipeline, not the method"
    if report.half:
        yield f"dtype: {report.half}, chosen for this machine (--dtype float32 for full precision)"
    if report.onnx:
        yield f"runtime: ONNX Runtime for {', '.join(report.onnx)} (--runtime torch for PyTorch)"
    for lang, share in report.unknown_words.items():
        if share > MANY_UNKNOWN:
            yield f"warning: the text model does not know {share:.0%} of the {lang} words"
    if any(file.quarantine for file in report.files):
        kinds = ("absent", "broken")
        what = " and ".join(kind for kind in kinds if any(getattr(file, kind) for file in report.files))
        yield f"{what} items, with reasons: {report.folder / 'quarantine.jsonl'}"
