"""Data of plots and reports: runs of a data set, their scores and codes, titles and footers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cmrhash.config import EvalConfig, Progress
from cmrhash.data.cleaning import known_language
from cmrhash.data.items import RELEVANCE, ImageTextDataset
from cmrhash.data.view import View
from cmrhash.errors import UsageError
from cmrhash.evaluation.evaluate import Evaluation, score
from cmrhash.evaluation.protocol import CAPTIONS
from cmrhash.evaluation.run_codes import RunCodes, codes_of, refuse_language
from cmrhash.evaluation.searches import Search, searches, sides
from cmrhash.features.dataset import ExtractedDataset
from cmrhash.retrieval import metrics
from cmrhash.retrieval.index import rank_histogram
from cmrhash.show.plots import COLOURS, USUAL, Look
from cmrhash.training import runs

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST = len(COLOURS)  # methods of a figure that has all runs
WORDS = {"i2t": "image to text", "t2i": "text to image"}
Counts = NDArray[np.int64]
FIRST = 1000  # results of the curve of the first N, as in most papers
RANK_METRICS = (metrics.precision_at, metrics.recall_at)
Row = Mapping[str, Any]
Cells = dict[tuple[str, int, str, str], list[Row]]


@dataclass(frozen=True)
class Drawing:
    """A plot. name: of the file, without suffix; caption: a sentence; footer: how it was measured, as in the figure."""

    kind: str
    name: str
    figure: Figure
    caption: str
    footer: str = ""


class Lacking(UsageError):
    """Error: the runs lack the data that a kind of plot needs."""


class ShownRuns:
    """Runs of a data set with scores and codes, each read once.

    items: limit of a t-SNE map; look: of every figure; most: methods in a figure of all runs, the best on val;
    progress: called while plots are drawn.
    """

    def __init__(
        self,
        data: ExtractedDataset,
        found: Sequence[runs.Run],
        langs: Sequence[str],
        items: int,
        look: Look = USUAL,
        most: int = MOST,
        progress: Progress = lambda *_: None,
    ) -> None:
        self.data, self.dataset, self.asked, self.items, self.progress = data, data.dataset, langs, items, progress
        self.look, self.most = look, most
        self.found = runs.current(found, data)
        self.best = runs.best_run(self.found)
        self._counts: dict[Search, tuple[Counts, Counts]] = {}
        self._by_rank: dict[tuple[str, str, str], NDArray[np.float64]] = {}

    @cached_property
    def evaluation(self) -> Evaluation:
        """Scores of all runs."""
        return score(EvalConfig(langs=tuple(self.asked)), self.found, self.data)

    @cached_property
    def cells(self) -> Cells:
        """Rows of all seeds by (method, bits, language, direction); names of methods tell trainings apart."""
        rows = self.evaluation.rows
        several = len({tuple(row["trained_langs"]) for row in rows}) > 1
        cells: Cells = {}
        for row in rows:
            name = row["method"] + (f" ({'+'.join(row['trained_langs'])})" if several else "")
            name += f" ({row['trained_direction']} only)" if "trained_direction" in row else ""
            cells.setdefault((name, row["bits"], row["lang"], row["direction"]), []).append(row)
        shown = self._best(cells)
        return {key: rows for key, rows in cells.items() if key[0] in shown}

    def _best(self, cells: Cells) -> list[str]:
        """Names of the methods with the highest validation mAP, at most ``most``."""
        val = {str(run.folder): run.outcome.val_map_mean or 0.0 for run in self.found}
        of: dict[str, list[float]] = {}
        for key, rows in cells.items():
            of.setdefault(key[0], []).extend(val[row["run"]] for row in rows)
        self.methods = len(of)
        return sorted(of, key=lambda name: -float(np.mean(of[name])))[: self.most]

    def with_choice(self, how: str) -> str:
        """Add to a footer that only the best methods are shown."""
        shown = len(names_of(self.cells))
        chosen = f"{shown} of {self.methods} methods, the best on val" if shown < self.methods else ""
        return "; ".join(part for part in (how, chosen) if part)

    @cached_property
    def views(self) -> RunCodes:
        """Codes and embeddings of the best run."""
        return codes_of(self.best, self.data)

    @cached_property
    def langs(self) -> list[str]:
        """Languages of the best run to show."""
        there = self.views.langs
        asked = [known_language(lang, there) for lang in self.asked]
        for lang in asked:
            if lang not in there:
                refuse_language(self.best, self.data, lang)
        return [lang for lang in there if not asked or lang in asked]

    def counts(self, search: Search) -> tuple[Counts, Counts]:
        """Count database items and relevant ones by distance, per query of the best run: (Q, bits + 1) each."""
        if search not in self._counts:
            self._counts[search] = self._count(self.views, search)
        return self._counts[search]

    def by_rank(self, row: Row) -> NDArray[np.float64]:
        """Ranks, and mean precision and recall of the queries of a row of scores there: (3, ranks)."""
        key = row["run"], row["lang"], row["direction"]
        if key not in self._by_rank:
            run = next(run for run in self.found if str(run.folder) == row["run"])
            views = codes_of(run, self.data)
            for search in searches(self.dataset, views, tuple(WORDS), [row["lang"]]):
                counts, ranks = self._count(views, search), ranks_of(row["database"])
                of = [[metric(*counts, rank) for rank in ranks.tolist()] for metric in RANK_METRICS]
                means = [[metrics.mean_over_valid(values)[0] for values in own] for own in of]
                self._by_rank[row["run"], row["lang"], search.direction] = np.array([ranks, *means])
        return self._by_rank[key]

    def _count(self, views: RunCodes, search: Search) -> tuple[Counts, Counts]:
        both = sides(self.dataset, views, search)
        packed = np.ascontiguousarray(both.source.asked_packed[both.rows])
        hist = rank_histogram(packed, both.sought.index.packed, both.source.codes.bits, both.relevance(self.dataset))
        items, relevant = metrics.items_relevant(hist)
        return items.astype(np.int64, copy=False), relevant.astype(np.int64, copy=False)


def ranks_of(database: int) -> NDArray[np.int64]:
    """Ranks of a curve: close to each other at first, even steps to FIRST and to the end of the database."""
    first = np.linspace(0, min(FIRST, database), 21)[1:]
    every = np.concatenate([np.geomspace(1, database, 30), np.linspace(1, database, 30), first])
    return np.unique(np.maximum(every.round(), 1).astype(np.int64))


# ---------------------------------------------------------------------------------------------- words


def footer_of(dataset: ImageTextDataset, cells: Cells, found: Sequence[runs.Run], how: str) -> str:
    """Protocol in one line."""
    rows = [row for own in cells.values() for row in own]
    parts = [
        f"{_range(row['queries'] for row in rows)} queries, {_range(row['database'] for row in rows)} database",
        f"relevant: {RELEVANCE[dataset.relevance]}",
        f"captions: {CAPTIONS[dataset.relevance].partition(':')[0]}",
        "tie-aware",
        _seeds(found),
        how,
    ]
    collapsed = sorted({run.name for run in found if run.outcome.collapsed})
    parts += [f"collapsed: {', '.join(collapsed)}"] if collapsed else []
    mixed = [view for view, names in _encoders(found).items() if len(names) > 1]
    parts += [f"RUNS BY DIFFERENT ENCODERS: {', '.join(mixed)}"] if mixed else []
    return "; ".join(part for part in parts if part) + untrained(found)


def _seeds(found: Sequence[runs.Run]) -> str:
    """The seeds, and those of methods that have fewer."""
    of = {run.method: sorted({other.seed for other in found if other.method == run.method}) for run in found}
    seeds = sorted({run.seed for run in found})
    fewer = [f"{method}: {', '.join(map(str, own))}" for method, own in of.items() if own != seeds]
    return _named(seeds) + (f" ({'; '.join(fewer)})" if fewer else "")


def _named(seeds: Sequence[int]) -> str:
    return f"seed{'s' if seeds[1:] else ''} {', '.join(map(str, seeds))}"


def of_runs(found: Sequence[runs.Run]) -> str:
    """Methods, code lengths and seeds of runs in one line; methods of the same lengths and seeds are together."""
    together: dict[str, list[str]] = {}
    for method in dict.fromkeys(run.method for run in found):
        own = {(run.bits, run.seed) for run in found if run.method == method}
        lengths: dict[str, list[str]] = {}
        for bits in sorted({bits for bits, _ in own}):
            lengths.setdefault(_named(sorted(seed for of, seed in own if of == bits)), []).append(str(bits))
        words = " and ".join(f"{', '.join(bits)} bits, {seeds}" for seeds, bits in lengths.items())
        together.setdefault(words, []).append(method)
    names = {words: ", ".join(own) if len(own) <= MOST else f"{len(own)} methods" for words, own in together.items()}
    return "; ".join(f"{own}: {words}" for words, own in names.items())


def _encoders(found: Sequence[runs.Run]) -> dict[View, set[str]]:
    """Feature files of each view that the runs were trained on."""
    made = [(view, of.file) for run in found for view, of in run.features.items()]
    return {view: {file for name, file in made if name == view} for view, _ in made}


def untrained(found: Sequence[runs.Run]) -> str:
    """Warning about untrained encoders; "" without any."""
    names = sorted({view for run in found for view in run.untrained_views})
    return f"; UNTRAINED ENCODERS: {', '.join(names)}" if names else ""


def of_run(run: runs.Run, dataset: ImageTextDataset, what: str) -> str:
    """Title of a plot of one run."""
    trained = "" if set(run.langs) >= set(dataset.languages) else f", trained on {' and '.join(run.langs)}"
    return f"{what}, {dataset.name}, {run.method}, {run.bits} bits{trained}"


def of_cells(cells: Cells, dataset: ImageTextDataset, what: str, *more: str) -> str:
    """Title of a plot of several runs: what the legend does not say."""
    names, lengths = names_of(cells), lengths_of(cells)
    same = [*(names if len(names) == 1 else []), *(f"{bits} bits" for bits in lengths if len(lengths) == 1)]
    return ", ".join([what, dataset.name, *same, *more])


def _range(values: Iterable[int]) -> str:
    found = sorted(set(values))
    return f"{found[0]:,}" if len(found) == 1 else f"{found[0]:,} to {found[-1]:,}"


def names_of(cells: Cells) -> list[str]:
    """Method names in the order of the cells."""
    return list(dict.fromkeys(name for name, _, _, _ in cells))


def best_first(cells: Cells) -> list[str]:
    """Method names by the mean figure of their longest codes, the highest first: the order of every legend."""
    longest = {name: max(bits for other, bits, _, _ in cells if other == name) for name in names_of(cells)}
    of: dict[str, list[float]] = {}
    for (name, bits, _, _), rows in cells.items():
        if bits == longest[name]:
            of.setdefault(name, []).extend(figure_of(row, "") for row in rows)
    return sorted(of, key=lambda name: -float(np.mean(of[name])))


def figure_of(row: Row, which: str) -> float:
    """mAP (by pairs R@1) of a score row. which: "" for codes, "_real" for embeddings, "_chance" for a random order."""
    if row["relevance"] == "pairs":
        return float(row["hit_at" + which]["1"])
    return float(row["chance" if which == "_chance" else "map" + which])


def lengths_of(cells: Cells) -> list[int]:
    """Code lengths, ascending."""
    return sorted({bits for _, bits, _, _ in cells})


def directions_of(cells: Cells) -> list[str]:
    """Search directions with scores; runs of one direction have one."""
    return [way for way in WORDS if any(key[3] == way for key in cells)]


def stem_of(kind: str, cells: Cells, *more: str) -> str:
    """Name of a plot's file: kind, and method and code length if there is one of each."""
    names, lengths = names_of(cells), lengths_of(cells)
    parts = [kind, *(names if len(names) == 1 else []), *(map(str, lengths) if len(lengths) == 1 else []), *more]
    return "-".join(part.replace("/", "_").replace(" ", "") for part in parts)
