"""Precision and recall of all selected runs: within each Hamming radius, at each rank, and among the first N results.

Papers call the first "hash lookup" and the others "Hamming ranking". Values of a rank are expected ones over random
order of items at equal distance.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from cmrhash.show import plots
from cmrhash.show.plots import Panel, Series
from cmrhash.show.sources import (
    FIRST,
    WORDS,
    Cells,
    Drawing,
    Row,
    ShownRuns,
    best_first,
    footer_of,
    lengths_of,
    names_of,
    of_cells,
    stem_of,
)

Line = tuple[Sequence[float], Sequence[float]]  # x, y
Lines = Callable[[Sequence[Row]], Line]  # of a cell, the mean over its seeds


def by_radius(source: ShownRuns) -> list[Drawing]:
    """Draw precision against recall within each Hamming radius."""

    def line(rows: Sequence[Row]) -> Line:
        """(bits + 1,) each; NaN at radii without results for a seed."""
        curves = [[row["pr_by_radius"][part] for part in ("recall", "precision")] for row in rows]
        recall, precision = np.array(curves, np.float64).mean(axis=0).tolist()
        return recall, precision

    how = "one point per Hamming radius; precision: mean over queries with a result within the radius"
    caption = "Precision against recall at every Hamming radius"
    return _drawn(source, "pr", line, ("recall", "precision"), "Precision and recall by radius", how, caption)


def by_rank(source: ShownRuns) -> list[Drawing]:
    """Draw precision against recall at each rank."""

    def line(rows: Sequence[Row]) -> Line:
        _, precision, recall = np.mean([source.by_rank(row) for row in rows], axis=0).tolist()
        return recall, precision

    how = "one point per rank, of 1 to the whole database; ties: expected value over random order"
    caption = "Precision against recall at every rank of the database"
    return _drawn(source, "pr-rank", line, ("recall", "precision"), "Precision and recall by rank", how, caption)


def first_results(source: ShownRuns) -> list[Drawing]:
    """Draw precision among the first N results, up to 1,000."""

    def line(rows: Sequence[Row]) -> Line:
        ranks, precision, _ = np.mean([source.by_rank(row) for row in rows], axis=0)
        first = ranks <= FIRST
        return ranks[first].tolist(), precision[first].tolist()

    axes, how = ("first N results", "precision"), "ties: expected value over random order"
    caption = "Precision among the first N results of the Hamming ranking"
    return _drawn(source, "topn", line, axes, "Precision of the first N results", how, caption)


# ---------------------------------------------------------------------------------------------- panels


def _drawn(
    source: ShownRuns, kind: str, line: Lines, axes: tuple[str, str], what: str, how: str, caption: str
) -> list[Drawing]:
    """Draw one figure per language; several methods get a column per code length, one method a line per length."""
    drawn = []
    for lang in dict.fromkeys(lang for _, _, lang, _ in source.cells):
        cells = {key: rows for key, rows in source.cells.items() if key[2] == lang}
        names, lengths = names_of(cells), lengths_of(cells)
        if len(names) > 1:
            grid = [[_panel(cells, line, axes, [bits], lang, d, f"{bits} bits") for bits in lengths] for d in WORDS]
        else:
            grid = [[_panel(cells, line, axes, lengths, lang, d, "") for d in WORDS]]
        title = of_cells(cells, source.dataset, what, lang)
        footer = footer_of(source.dataset, cells, source.found, source.with_choice(how))
        figure = plots.curves(grid, title, footer, look=source.look)
        drawn.append(Drawing(kind, stem_of(kind, cells, lang), figure, f"{caption}, {lang}.", footer))
    return drawn


def _panel(
    cells: Cells,
    line: Lines,
    axes: tuple[str, str],
    lengths: Sequence[int],
    lang: str,
    direction: str,
    what: str,
) -> Panel:
    series, chance, names = [], [], names_of(cells)
    for name in best_first(cells):
        for bits in lengths:
            rows = cells.get((name, bits, lang, direction), [])
            if rows:
                style = names.index(name) if what else lengths.index(bits)
                series.append(Series(name if what else f"{bits} bits", *line(rows), style))
                chance.append(rows[0]["chance"])
    title = ", ".join(part for part in (WORDS[direction], what) if part)
    levels = [("chance", float(np.mean(chance)))] if chance else []
    return Panel(title, *axes, series, levels, from_zero=True)
