"""Methods x bits x seeds -> a table with mean, spread and command of each cell."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cmrhash.config import CompareConfig, EvalConfig, Progress, TrainConfig
from cmrhash.errors import UsageError, did_you_mean
from cmrhash.evaluation.commands import command_of
from cmrhash.evaluation.evaluate import Evaluation, score
from cmrhash.evaluation.jobs import Job, Shared, check_jobs, train_each
from cmrhash.evaluation.latex import latex_table
from cmrhash.evaluation.metric_names import METRICS, check_metric
from cmrhash.evaluation.seen import SIDES
from cmrhash.evaluation.significance import DRAWS, Difference, columns_of, query_values
from cmrhash.evaluation.table_files import write_table
from cmrhash.features.dataset import ExtractedDataset
from cmrhash.storage.files import write_bytes
from cmrhash.training import runs
from cmrhash.training.best import chosen
from cmrhash.training.methods import get_method

KEYS = ("dataset", "method", "bits", "lang", "direction")
FORMATS = ("text", "latex")
METRIC_OF = {"labels": "map", "pairs": "r@1"}
WORDS = {"map": "mAP over the whole database", **{name: f"R@{k} (hit@{k})" for name, k in METRICS.items() if k}}


SIGNIFICANCE = (
    "† differs from {} (p < .05): paired bootstrap over queries, "
    f"{DRAWS:,} resamples, seeds averaged first, Holm's correction per column"
)


class Cell(NamedTuple):
    """One training of the grid."""

    method: str
    bits: int
    seed: int

    def __str__(self) -> str:
        return f"{self.method}, {self.bits} bits, seed {self.seed}"


def compare(
    grid: CompareConfig,
    config: TrainConfig,
    data: ExtractedDataset,
    out: Path,
    encoders: tuple[str, ...] = (),
    progress: Progress = lambda *_: None,
) -> Evaluation:
    """Train the missing runs of a grid, score all runs and tabulate the results.

    Returns one row per cell with "mean", "sd" (of the sample) and "n", the number of seeds: one of a method that draws
    nothing. config: settings that all cells share; method,
    bits and seed come from the cell. Finished runs are reused; an interrupted call resumes. Writes ``compare.json``,
    ``compare.csv`` and ``compare.md`` to ``grid.out``, by default ``out/<dataset>/``, and ``compare.tex`` if
    ``grid.format`` is "latex". Raises UsageError for an empty grid, StaleError that names the cell whose folder holds a
    run of another recipe.
    """
    names = tuple(dict.fromkeys(chosen(method, data, config.relevance).method for method in grid.methods))
    grid = replace(grid, methods=names)
    scored_by = data.with_relevance(config.relevance)
    by = scored_by.dataset.relevance
    metric = _check(grid, by)
    if grid.trained_by is not None:
        config = replace(config, relevance=grid.trained_by)
    data.languages(grid.langs)  # refuse a missing language before any training
    seeds = {method: get_method(method).seeds(config, grid.seeds) for method in grid.methods}
    cells = list(dict.fromkeys(Cell(m, b, s) for m in grid.methods for b in grid.bits for s in seeds[m]))
    jobs = [Job(str(cell), replace(config, **cell._asdict()), out) for cell in cells]
    results = train_each(jobs, Shared(data, encoders, grid.langs, by), grid.jobs, progress)
    found = [run for run in results if isinstance(run, runs.Run)]
    scored = score(EvalConfig(langs=grid.langs), found, scored_by)
    again = {run.folder: command_of(run, data, seeds[run.method], grid.langs, by) for run in found}
    protocol, rows = {**scored.protocol, "metric": WORDS[metric]}, _rows(scored.rows, metric, again)
    single = [method for method in grid.methods if len(get_method(method).seeds(config, 2)) == 1]
    rows = [{**row, "draws": row["method"] not in single} for row in rows]
    protocol |= {"one seed": one_seed(single)} if single and grid.seeds > 1 else {}
    if grid.against:
        apart = columns_of(query_values(found, scored_by, grid.langs, metric), grid.against)
        rows = [{**row, **_tested(apart.get(tuple(row[key] for key in KEYS[1:])))} for row in rows]
        protocol["significance"] = SIGNIFICANCE.format(grid.against)
    result = Evaluation(protocol, rows)
    columns, lines = table(rows, ("**", "**"))
    target = grid.out or out / data.name
    write_table(target, "compare", result.as_json(), columns, lines, result.in_words())
    if grid.format == "latex":
        write_bytes(target / "compare.tex", latex_table(rows, protocol, result.in_words()).encode())
    return result


def one_seed(methods: Sequence[str]) -> str:
    """Why these methods have no spread over seeds."""
    verb = "draws" if len(methods) == 1 else "draw"
    return f"{', '.join(methods)} {verb} nothing: trained once, because every seed gives the same codes"


def _check(grid: CompareConfig, relevance: str) -> str:
    """Name of the metric; raises UsageError for a grid that cannot be compared."""
    if grid.seeds < 1:
        raise UsageError(f"{grid.seeds} is out of range", None, "give a whole number from 1", option="seeds")
    if grid.format not in FORMATS:
        fix = f"{did_you_mean(grid.format, FORMATS)} choose of {', '.join(FORMATS)}"
        raise UsageError(f"unknown format '{grid.format}'", None, fix, option="format")
    check_jobs(grid.jobs)
    for method in grid.methods:
        get_method(method, grid.trained_by or relevance)
    if grid.against and (grid.against not in grid.methods or len(set(grid.methods)) < 2):
        what = f"nothing to test against '{grid.against}'"
        raise UsageError(what, None, "give it and another method as `methods`", option="against")
    metric = METRIC_OF[relevance] if grid.metric is None else grid.metric
    check_metric(metric)
    return metric


def _rows(rows: Sequence[dict[str, Any]], metric: str, again: dict[Path, str]) -> list[dict[str, Any]]:
    """One row per cell: mean and standard deviation over the seeds, binary and real-valued."""
    cells: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        cells.setdefault(tuple(row[key] for key in KEYS), []).append(row)
    result = []
    for key, own in cells.items():
        mean, sd = _spread([_figure(row, metric, "") for row in own])
        sides = {side: _by_side(own, metric, side) for side in SIDES[::-1]}
        real, real_sd = _spread([_figure(row, metric, "_real") for row in own])
        result.append(
            {
                **dict(zip(KEYS, key, strict=True)),
                "head_lang": own[0]["head_lang"],
                "trained_langs": own[0]["trained_langs"],
                "relevance": own[0]["relevance"],
                **{key: value for key, value in own[0].items() if key in ("trained_by", "trained_direction")},
                "metric": metric,
                "mean": mean,
                "sd": sd,
                "n": len(own),
                "real": real,
                "real_sd": real_sd,
                **{
                    name + part: value
                    for name, pair in sides.items()
                    for part, value in zip(("", "_sd"), pair, strict=True)
                },
                **{f"items_{side}": own[0][f"items_{side}"] for side in sides},
                "chance": _figure(own[0], metric, "_chance"),
                "collapsed": sum(row["collapsed"] for row in own),
                "seeds": [row["seed"] for row in own],
                "command": again[Path(own[0]["run"])],
            }
        )
    return result


def _tested(difference: Difference | None) -> dict[str, Any]:
    """Fields of a row that say how it differs from the baseline; null for the baseline itself."""
    if difference is None:
        return dict.fromkeys(("difference", "difference_low", "difference_high", "p", "p_holm", "significant"))
    mean, low, high, p, corrected = difference
    figures = {"difference": mean, "difference_low": low, "difference_high": high, "p": p, "p_holm": corrected}
    return {**figures, "significant": difference.is_significant}


def _figure(row: dict[str, Any], metric: str, which: str) -> float:
    """Metric of a scored row: of the codes (""), "_real" (of embeddings) or "_chance" (random order)."""
    cut = METRICS[metric]
    if cut is None:
        return float(row["chance" if which == "_chance" else "map" + which])
    return float(row["hit_at" + which][cut])


def _by_side(rows: Sequence[dict[str, Any]], metric: str, side: str) -> tuple[float | None, float | None]:
    """Mean and standard deviation of mAP by seen or unseen items; None for R@k and where no such item is relevant."""
    values = [row[f"map_{side}"] for row in rows]
    return (None, None) if METRICS[metric] or None in values else _spread(values)


def _spread(values: Sequence[float]) -> tuple[float, float | None]:
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None


def table(rows: Sequence[dict[str, Any]], bold: tuple[str, str] = ("", "")) -> tuple[list[str], list[list[str]]]:
    """Results as in papers: a line per method, language and direction, a column per code length.

    Real-valued figures and mAP by seen and unseen items, the latter where there are both, are of the longest codes.
    Returns column names and cells. bold: text around the best mean per column, language and direction.
    """
    bits = sorted({row["bits"] for row in rows})
    lines: dict[tuple[str, str, str], dict[int, dict[str, Any]]] = {}
    best: dict[tuple[str, str, int], list[float]] = {}
    for row in rows:
        lang = row["lang"] if row["lang"] == row["head_lang"] else f"{row['lang']} (by {row['head_lang']})"
        lines.setdefault((row["method"], lang, row["direction"]), {})[row["bits"]] = row
        best.setdefault((lang, row["direction"], row["bits"]), []).append(row["mean"])
    split = all(row.get(side) is not None for row in rows for side in SIDES)
    cells = []
    for (method, lang, direction), by_bits in lines.items():
        last = by_bits[max(by_bits)]
        figures = []
        for length in bits:
            rivals = best.get((lang, direction, length), [])
            marked = length in by_bits and len(rivals) > 1 and by_bits[length]["mean"] == max(rivals)
            figures.append(_cell(by_bits.get(length), bold if marked else ("", "")))
        real = _with_spread(last["real"], last["real_sd"])
        sides = [_with_spread(last[side], last[f"{side}_sd"]) for side in SIDES[::-1] if split]
        cells.append([method, lang, direction, *figures, *sides, real, f"{last['chance']:.3f}", str(last["n"])])
    columns = ["method", "lang", "direction", *(f"{length} bits" for length in bits)]
    columns += [f"{side} ({bits[-1]})" for side in SIDES[::-1] if split]
    return [*columns, f"real ({bits[-1]})", "chance", "seeds"], cells


def _cell(row: dict[str, Any] | None, around: tuple[str, str]) -> str:
    if row is None:
        return "-"
    marks = ("†" if row.get("significant") else "") + ("*" if row["collapsed"] else "")
    return _with_spread(row["mean"], row["sd"], around) + marks


def _with_spread(mean: float, sd: float | None, around: tuple[str, str] = ("", "")) -> str:
    return f"{around[0]}{mean:.3f}{around[1]}" + ("" if sd is None else f" +- {sd:.3f}")
