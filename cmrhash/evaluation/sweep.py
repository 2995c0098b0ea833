"""Search for settings of a method: many trainings, of which val items choose the best, never query items."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from cmrhash.checks import check_train
from cmrhash.config import Progress, SweepConfig, TrainConfig
from cmrhash.errors import DataError, DivergedError, UsageError
from cmrhash.evaluation.commands import command_of
from cmrhash.evaluation.compare import one_seed
from cmrhash.evaluation.jobs import Job, Result, Shared, check_jobs, train_each
from cmrhash.evaluation.table_files import write_table
from cmrhash.features.dataset import ExtractedDataset
from cmrhash.storage.files import below
from cmrhash.training import runs
from cmrhash.training.best import chosen
from cmrhash.training.methods import get_method
from cmrhash.training.settings import refuse_unread
from cmrhash.training.values import Setting, settings_of

TOLERATED = (DivergedError, DataError)  # of one setting, such as a rate that is too high or a batch that is too small


@dataclass(frozen=True)
class Sweep:
    """Result of a search. rows: one per setting, the best first; protocol: how they were trained and chosen."""

    protocol: dict[str, Any]
    rows: list[dict[str, Any]]

    @property
    def best(self) -> dict[str, Any]:
        """Row of the chosen setting."""
        return self.rows[0]

    def as_json(self) -> dict[str, Any]:
        """What ``--json`` prints."""
        return {"protocol": self.protocol, "rows": self.rows}

    def in_words(self) -> list[str]:
        """The protocol for people, a line a point."""
        return [f"{key}: {value}" for key, value in self.protocol.items()]

    def __str__(self) -> str:
        columns, cells = table(self)
        return "\n".join("  ".join(line) for line in [columns, *cells, *([line] for line in self.in_words())])


def sweep(
    grid: SweepConfig,
    config: TrainConfig,
    data: ExtractedDataset,
    out: Path,
    encoders: tuple[str, ...] = (),
    progress: Progress = lambda *_: None,
) -> Sweep:
    """Train every setting that is missing, and return all of them, the best on val first.

    config: method, bits and settings that are the same for all. Finished runs are reused; an interrupted call resumes.
    Runs are written to ``runs/SETTING/`` in ``grid.out``, by default ``out/<dataset>/sweep``, and the table to
    ``sweep.json``, ``.csv`` and ``.md`` there. Settings whose training diverges come last. Raises UsageError for a
    setting that is no setting of the method, and for a data set without val items; the first error if all fail.
    """
    method = chosen(config.method, data, config.relevance).method
    settings, target = settings_of(grid.values, grid.samples), grid.out or below(out, data.name) / "sweep"
    configs = [replace(config, method=method, **setting) for setting in settings]
    _check(grid, configs, settings[0], data)
    seeds = [get_method(method).seeds(of, grid.seeds) for of in configs]
    jobs = [
        Job(f"{name_of(setting)}, seed {seed}", replace(of, seed=seed), target / "runs" / name_of(setting))
        for setting, of, own in zip(settings, configs, seeds, strict=True)
        for seed in own
    ]
    results = train_each(jobs, Shared(data, encoders), grid.jobs, progress, TOLERATED)
    remaining = iter(results)
    of_setting = [list(islice(remaining, len(own))) for own in seeds]
    if all(any(isinstance(one, Exception) for one in own) for own in of_setting):
        raise next(one for one in results if isinstance(one, Exception))
    rows = [_row(setting, own, data) for setting, own in zip(settings, of_setting, strict=True)]
    rows.sort(key=lambda row: -1.0 if row["val_map"] is None else row["val_map"], reverse=True)
    result = Sweep(_protocol(grid, configs[0], data, rows), rows)
    if max(map(len, seeds)) < grid.seeds:
        result.protocol["one seed"] = one_seed([method])
    columns, cells = table(result)
    write_table(target, "sweep", result.as_json(), columns, cells, result.in_words())
    return result


def name_of(setting: Setting) -> str:
    """Name of a setting, and of the folder of its runs."""
    return ",".join(f"{name}={value}" for name, value in setting.items())


def _check(grid: SweepConfig, configs: Sequence[TrainConfig], setting: Setting, data: ExtractedDataset) -> None:
    """Raise UsageError for what cannot be trained or chosen, before any training."""
    check_jobs(grid.jobs)
    if grid.seeds < 1:
        raise UsageError(f"{grid.seeds} is out of range", None, "give a whole number from 1", option="seeds")
    if not data.dataset.count("val"):
        what = "there are no val items, by which a setting is chosen (never by query items)"
        raise UsageError(what, data.folder, "give some train items the role val")
    for config in configs:
        check_train(config)
    relevance = data.with_relevance(configs[0].relevance).dataset.relevance
    refuse_unread([configs[0].method], setting, configs[0], relevance)


def _row(setting: Setting, own: Sequence[Result], data: ExtractedDataset) -> dict[str, Any]:
    """Figures of a setting; without val mAP if one of its seeds failed."""
    failed = [str(one) for one in own if isinstance(one, Exception)]
    found = [] if failed else [one for one in own if isinstance(one, runs.Run)]
    values = [run.outcome.val_map_mean for run in found if run.outcome.val_map_mean is not None]
    return {
        **setting,
        "val_map": float(np.mean(values)) if values else None,
        "val_map_sd": float(np.std(values, ddof=1)) if len(values) > 1 else None,
        "seeds": len(own),
        "best_epoch": [run.outcome.best_epoch + 1 for run in found],
        "collapsed": sum(run.outcome.collapsed for run in found),
        "failed": failed[0] if failed else "",
        "runs": [str(run.folder) for run in found],
        "command": command_of(found[0], data, range(len(found))).partition(" && cmrhash eval")[0] if found else "",
    }


def _protocol(
    grid: SweepConfig, config: TrainConfig, data: ExtractedDataset, rows: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    how = "all combinations" if grid.samples is None else "drawn at random (generator of seed 0)"
    return {
        "dataset": data.name,
        "method": f"{config.method}, {config.bits} bits",
        "settings": f"{len(rows)}, {how}; {', '.join(grid.values)}",
        "chosen": f"by the mean mAP of {data.dataset.count('val')} val items, never by query items; the highest of "
        f"{len(rows)} values is higher than it would be for new items: report figures of `cmrhash eval`",
        "best": name_of({name: rows[0][name] for name in _names(grid)}),
        "its command": rows[0]["command"],
    }


def _names(grid: SweepConfig) -> list[str]:
    return [text.partition("=")[0].strip().replace("-", "_") for text in grid.values]


def table(result: Sweep) -> tuple[list[str], list[list[str]]]:
    """Column names and cells: a line per setting, the best first."""
    names = list(result.rows[0])[: list(result.rows[0]).index("val_map")]
    cells = []
    for row in result.rows:
        spread = "" if row["val_map_sd"] is None else f" +- {row['val_map_sd']:.4f}"
        value = "failed" if row["val_map"] is None else f"{row['val_map']:.4f}{spread}{'*' if row['collapsed'] else ''}"
        epochs = " ".join(map(str, row["best_epoch"]))
        cells.append([*(str(row[name]) for name in names), value, epochs or "-", str(row["seeds"])])
    return [*names, "val mAP", "epoch", "seeds"], cells
