"""Plots of trained runs: the data of each kind, and its files; ``plots`` draws them.

``pr``, ``pr-rank``, ``topn``, ``bits`` and ``seen`` show all selected runs, averaged over seeds; ``distances``,
``tsne`` and ``training`` show the run with the best validation mAP.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cmrhash.config import PLOTS, PlotConfig, Progress
from cmrhash.data.items import RELEVANCE, ImageTextDataset
from cmrhash.errors import DataError, UsageError, did_you_mean
from cmrhash.evaluation.evaluate import refuse_languages
from cmrhash.evaluation.searches import searches
from cmrhash.evaluation.seen import SIDES, by_side
from cmrhash.features.dataset import ExtractedDataset
from cmrhash.retrieval.codes import MAX_CONSTANT_BITS, MIN_DISTINCT
from cmrhash.show import curves, plots
from cmrhash.show.plots import Distances, Look, Panel, Series
from cmrhash.show.sources import (
    MOST,
    WORDS,
    Cells,
    Drawing,
    Lacking,
    Row,
    ShownRuns,
    best_first,
    directions_of,
    figure_of,
    footer_of,
    lengths_of,
    names_of,
    of_cells,
    of_run,
    of_runs,
    stem_of,
    untrained,
)
from cmrhash.show.tsne import FEWEST, embedding_map
from cmrhash.storage.files import below, write_bytes
from cmrhash.training import runs

FORMATS = ("png", "svg", "pdf")
WIDTHS = {"column": 8.4, "page": 17.4}  # cm, of the usual two-column styles
NARROWEST, WIDEST = 5, 60  # cm
REFERENCES = 3  # methods whose real-valued embeddings are drawn as well


@dataclass(frozen=True)
class Drawn:
    """Files written. skipped: kind -> reason; run: shown by distances, map and training curves; runs: all, in words."""

    files: list[Path]
    skipped: dict[str, str]
    run: Path
    of: int  # number of runs from which it is the best
    runs: str

    def as_json(self) -> dict[str, Any]:
        """What ``--json`` prints."""
        return {"files": list(map(str, self.files)), "skipped": self.skipped, "run": str(self.run), "of": self.of}


def draw(config: PlotConfig, data: ExtractedDataset, out: Path, progress: Progress = lambda *_: None) -> Drawn:
    """Draw and write the chosen kinds of plots, or all that are possible.

    out: folder of all runs. Raises UsageError for an unknown kind or format, for missing runs, and for a chosen kind
    that these runs do not allow.
    """
    _check(config)
    target = config.out or below(out, data.name) / "plots"
    data = data.with_relevance(config.relevance)
    found = runs.find_runs(out, data.name, data.dataset.relevance, config.bits, config.methods, config.seeds)
    refuse_languages(found, data, config.langs)
    most = len(config.methods) or MOST  # methods that were asked for are all shown
    look = Look(_inches(config.size), config.title)
    source = ShownRuns(data, found, config.langs, config.items, look, most, progress)
    made, skipped = drawings(source, config.kinds)
    files = []
    for drawing in made:
        for form in dict.fromkeys(config.formats):
            files.append(target / f"{drawing.name}.{form}")
            write_bytes(files[-1], plots.render(drawing.figure, form))
    return Drawn(files, skipped, source.best.folder, len(found), of_runs(found))


def drawings(source: ShownRuns, kinds: Sequence[str] = ()) -> tuple[list[Drawing], dict[str, str]]:
    """Draw the plots of the kinds, or of all possible kinds; returns them, and why kinds were skipped."""
    made: list[Drawing] = []
    skipped: dict[str, str] = {}
    chosen = tuple(dict.fromkeys(kinds or PLOTS))
    for done, kind in enumerate(chosen):
        source.progress("plots", done, len(chosen), PLOTS[kind])
        try:
            made += KINDS[kind](source)
        except Lacking as error:
            if kinds:
                raise
            skipped[kind] = error.what
    source.progress("plots", len(chosen), len(chosen))
    return made, skipped


# ---------------------------------------------------------------------------------------------- kinds


def by_bits(source: ShownRuns) -> list[Drawing]:
    """Draw a row per language and a column per direction; error bars are standard deviations over seeds."""
    lengths = lengths_of(source.cells)
    if len(lengths) < 2:
        raise Lacking(f"plot bits needs two code lengths, found only {lengths[0]}", None, "train with another `bits`")
    names, langs = best_first(source.cells), list(dict.fromkeys(lang for _, _, lang, _ in source.cells))
    pairs = source.dataset.relevance == "pairs"
    metric = "R@1 (hit@1)" if pairs else "mAP"
    grid = []
    for lang in langs:
        row = []
        for direction in directions_of(source.cells):
            series = [s for name in names for s in _by_bits(source.cells, name, lengths, lang, direction)]
            chance = next(figure_of(r[0], "_chance") for key, r in source.cells.items() if key[2:] == (lang, direction))
            title = f"{WORDS[direction]}, {lang}"
            row.append(Panel(title, "code length (bits)", metric, series, [("chance", chance)], ticks=_apart(lengths)))
        grid.append(row)
    title = of_cells(source.cells, source.dataset, f"{metric} by code length")
    how = "mean and standard deviation over seeds" if len({run.seed for run in source.found}) > 1 else ""
    footer = footer_of(source.dataset, source.cells, source.found, source.with_choice(how))
    figure = plots.curves(grid, title, footer, look=source.look)
    caption = f"{metric} against code length, with chance level and real-valued embeddings for comparison."
    return [Drawing("bits", stem_of("bits", source.cells), figure, caption, footer)]


def _apart(lengths: Sequence[int]) -> list[int]:
    """The lengths whose labels have room side by side in a narrow panel: a tenth of its width from the one before."""
    kept = [lengths[0]]
    for bits in lengths[1:]:
        if 10 * (bits - kept[-1]) >= lengths[-1] - lengths[0]:
            kept.append(bits)
    return kept


def _by_bits(cells: Cells, name: str, lengths: Sequence[int], lang: str, direction: str) -> list[Series]:
    """Lines of a method and of its real-valued embeddings."""
    there = {bits: rows for bits in lengths if (rows := cells.get((name, bits, lang, direction)))}
    values = [[figure_of(row, "") for row in rows] for rows in there.values()]
    real = [float(np.mean([figure_of(row, "_real") for row in rows])) for rows in there.values()]
    means = [float(np.mean(own)) for own in values]
    spread = [float(np.std(own, ddof=1)) if len(own) > 1 else float("nan") for own in values]
    style = names_of(cells).index(name)
    line = Series(name, list(there), means, style, None if np.isnan(spread).all() else spread)
    if len(names_of(cells)) > REFERENCES:
        return [line]
    return [line, Series("real-valued, cosine", list(there), real, style, reference=True)]


def by_seen(source: ShownRuns) -> list[Drawing]:
    """Draw mAP among unseen items against mAP among seen ones: a row per language and a column per direction."""
    cells = {key: rows for key, rows in source.cells.items() if not any(None in by_side(row) for row in rows)}
    if not cells:
        raise Lacking("plot seen needs seen and unseen database items that are relevant to queries", source.best.folder)
    names = names_of(cells)  # whose places are their colours
    points = [float(row[f"map_{side}"]) for rows in cells.values() for row in rows for side in SIDES]
    ends = [min(points), max(points)]
    grid = []
    for lang in dict.fromkeys(lang for _, _, lang, _ in cells):
        row = []
        for direction in directions_of(cells):
            series = [Series("seen = unseen", ends, ends, -1, reference=True)]
            for name in best_first(cells):
                of = [cells[key] for key in sorted(cells) if (key[0], *key[2:]) == (name, lang, direction)]
                seen, unseen = ([_mean_of(rows, f"map_{side}") for rows in of] for side in SIDES[::-1])
                series.append(Series(name, seen, unseen, names.index(name)))
            title = f"{WORDS[direction]}, {lang}"
            row.append(Panel(title, "mAP, seen items", "mAP, unseen items", series))
        grid.append(row)
    title = of_cells(cells, source.dataset, "mAP among seen and unseen database items")
    how = "seen: the heads were trained on them; one point per code length"
    footer = footer_of(source.dataset, cells, source.found, source.with_choice(how))
    figure = plots.curves(grid, title, footer, look=source.look)
    caption = "mAP among database items that the heads were not trained on, against mAP among those that they were."
    return [Drawing("seen", stem_of("seen", cells), figure, caption, footer)]


def _mean_of(rows: Sequence[Row], key: str) -> float:
    return float(np.mean([row[key] for row in rows]))


def distance_histograms(source: ShownRuns) -> list[Drawing]:
    """Draw a row per language and a column per direction."""
    grid, counts = [], {}
    for lang in source.langs:
        row = []
        for search in searches(source.dataset, source.views, source.best.scored(tuple(WORDS)), [lang]):
            items, relevant = source.counts(search)
            valid = relevant.sum(axis=1) > 0  # as everywhere: queries that have something to find
            if not valid.any():
                raise DataError("no query has a relevant item in the database", source.best.folder, "check the labels")
            items, relevant = items[valid], relevant[valid]
            near, far = relevant.sum(axis=0), (items - relevant).sum(axis=0)
            note = f"{near.sum():,} relevant, {far.sum():,} irrelevant pairs\n"
            note += f"P(relevant is nearer) = {nearer(near, far):.3f}"
            row.append(Distances(f"{WORDS[search.direction]}, {lang}", near, far, note))
            counts[lang, search.direction] = {"queries": len(items), "database": int(items[0].sum())}
        grid.append(row)
    title = of_run(source.best, source.dataset, "Hamming distances")
    cells: Cells = {("", 0, *key): [row] for key, row in counts.items()}
    how = "each histogram sums to 1; P: probability that a relevant pair is nearer than an irrelevant one, ties half"
    footer = footer_of(source.dataset, cells, [source.best], how)
    figure = plots.distances(grid, title, footer, source.look)
    caption = f"Hamming distances of relevant and irrelevant query-database pairs of {source.best.folder.name}."
    return [Drawing("distances", f"distances-{source.best.folder.name}", figure, caption, footer)]


def nearer(relevant: NDArray[np.int64], irrelevant: NDArray[np.int64]) -> float:
    """Probability that a relevant pair is nearer than an irrelevant one; ties count half.

    relevant, irrelevant: (bits + 1,) pairs at each distance. NaN without pairs of either kind.
    """
    near, far = relevant.astype(float), irrelevant.astype(float)
    beyond = far.sum() - far.cumsum()
    pairs = near.sum() * far.sum()
    return float((near * (beyond + far / 2)).sum() / pairs) if pairs else float("nan")


def training_curves(source: ShownRuns) -> list[Drawing]:
    """Draw loss terms, validation mAP and code collapse over the epochs."""
    run = source.best
    lines = run.file(runs.HISTORY).read_text(encoding="utf-8").splitlines()
    history = [json.loads(line) for line in lines]
    if "terms" not in history[0]:
        what = f"plot training needs epochs, {run.method} is solved in closed form"
        raise Lacking(what, run.folder, "choose another `method`")
    epochs = [entry["epoch"] + 1 for entry in history]
    marks = [("chosen epoch", run.outcome.best_epoch + 1)]

    def panel(title: str, unit: str, lines: Mapping[str, Sequence[float]], **more: Any) -> list[Panel]:
        series = [Series(name, epochs, y, style) for style, (name, y) in enumerate(lines.items())]
        return [Panel(title, "epoch", unit, series, marks=marks, whole_x=True, **more)]

    grid = [panel("loss by term", "loss, mean over steps", _terms(history, run.langs))]
    if "val_map" in history[0]:
        grid.append(panel("validation mAP, tie-aware", "mAP", _val(history)))
        levels = [("constant: collapsed above", MAX_CONSTANT_BITS), ("distinct: collapsed below", MIN_DISTINCT)]
        grid.append(panel("code collapse", "share", _watch(history), levels=levels, unit_y=True))
    title = of_run(run, source.dataset, "Training")
    footer = _trained(source.dataset, run)
    figure = plots.curves(grid, title, footer, wide=True, look=source.look)
    caption = f"Training of {run.folder.name}: loss by term, validation mAP and code collapse."
    return [Drawing("training", f"training-{run.folder.name}", figure, caption, footer)]


def _terms(history: Sequence[Row], langs: Sequence[str]) -> dict[str, list[float]]:
    """Loss terms by epoch; where a panel has no room for all, the terms of different languages are averaged."""
    names = {name: name for name in history[0]["terms"]}
    if len(names) >= plots.INSIDE:
        kinds = {name: name.partition(".")[0].split("-") for name in names}  # of "i2t.de" and "image-de"
        names = {name: "-".join("text" if part in langs else part for part in kind) for name, kind in kinds.items()}
    shown = dict.fromkeys(names.values())
    own = {short: [name for name in names if names[name] == short] for short in shown}
    return {short: [float(np.mean([e["terms"][name] for name in own[short]])) for e in history] for short in shown}


def _val(history: Sequence[Row]) -> dict[str, list[float]]:
    """Validation mAP by epoch: "mean", then "<lang> <direction>"."""
    lines = {"mean": [entry["val_map_mean"] for entry in history]}
    for lang, by_direction in history[0]["val_map"].items():
        for direction in by_direction:
            lines[f"{lang} {direction}"] = [entry["val_map"][lang][direction] for entry in history]
    return lines


def _watch(history: Sequence[Row]) -> dict[str, list[float]]:
    """Shares of constant bits and distinct database codes of the worst view, and of active triplets, by epoch."""
    lines = {}
    for key, words, worst in (("constant_bits", "constant bits", max), ("distinct", "distinct codes", min)):
        views = [[of[key] for of in entry["collapse"].values()] for entry in history]
        lines[f"{words}, worst view"] = [worst(of) for of in views]
    if "active_share" in history[0]:
        lines["active triplets"] = [entry["active_share"] for entry in history]
    return lines


def _trained(dataset: ImageTextDataset, run: runs.Run) -> str:
    """Training settings in one line."""
    items = f"{run.train_items:,} train items, {dataset.count('val'):,} validation items"
    how = f"batch {run.batch}, epoch chosen on {run.outcome.chosen_on}"
    return f"{items}; {how}; relevant: {RELEVANCE[run.relevance]}; seed {run.seed}{untrained([run])}"


KINDS: dict[str, Callable[[ShownRuns], list[Drawing]]] = {
    "pr": curves.by_radius,
    "pr-rank": curves.by_rank,
    "topn": curves.first_results,
    "bits": by_bits,
    "seen": by_seen,
    "distances": distance_histograms,
    "tsne": embedding_map,
    "training": training_curves,
}


def _check(config: PlotConfig) -> None:
    for option, asked, known in (("kinds", config.kinds, tuple(PLOTS)), ("formats", config.formats, FORMATS)):
        for name in asked:
            if name not in known:
                fix = f"{did_you_mean(name, known)} choose of {', '.join(known)}"
                raise UsageError(f"unknown {option.removesuffix('s')} '{name}'", None, fix, option=option)
    _inches(config.size)
    if config.items < FEWEST:
        raise UsageError(f"{config.items} is out of range", None, f"give a whole number from {FEWEST}", option="items")


def _inches(size: str | None) -> float | None:
    """Width of a figure in inches; None: as wide as its panels."""
    if size is None:
        return None
    try:
        width = WIDTHS[size] if size in WIDTHS else float(size)
    except ValueError:
        width = float("nan")
    if not NARROWEST <= width <= WIDEST:
        fix = f"give {', '.join(WIDTHS)} or a width of {NARROWEST} to {WIDEST} cm"
        raise UsageError(f"'{size}' is no size of a figure", None, fix, option="size")
    return width / 2.54
