"""Example queries of a run with best, median and worst average precision, and their results."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cmrhash.data.items import Item
from cmrhash.evaluation.searches import Search, searches, sides
from cmrhash.retrieval import metrics
from cmrhash.search.hasher import Hasher
from cmrhash.search.judge import Judged, judge
from cmrhash.show.sources import WORDS, ShownRuns


@dataclass(frozen=True)
class Example:
    """A query with its nearest results.

    rank: "best", "median" or "worst"; ap: tie-aware average precision over the whole database.
    caption: None for a photo.
    """

    rank: str
    ap: float
    item: Item
    caption: str | None
    results: list[Judged]


def examples(source: ShownRuns, hasher: Hasher, lang: str, count: int, top: int) -> dict[str, list[Example]]:
    """Choose ``count`` queries of each rank with their ``top`` results, by direction."""
    shown = searches(source.dataset, source.views, source.best.scored(tuple(WORDS)), [lang])
    return {search.direction: _of_search(source, hasher, search, count, top) for search in shown}


def ranked(ap: NDArray[np.float64], count: int) -> list[tuple[str, int]]:
    """Choose ``count`` queries of each rank, fewer if there are too few: ("best" | "median" | "worst", query).

    ap: (Q,) average precision, NaN for queries without relevant items; of equal values the first counts as better.
    """
    order = np.lexsort((np.arange(len(ap)), -ap))[: int((~np.isnan(ap)).sum())].tolist()
    if len(order) < 3 * count:
        count = max(1, len(order) // 3)
    middle = (len(order) - count) // 2
    places = {"best": order[:count], "median": order[middle : middle + count], "worst": order[-count:]}
    taken: set[int] = set()
    chosen = []
    for rank, queries in places.items():
        chosen += [(rank, query) for query in queries if query not in taken]
        taken.update(queries)
    return chosen


def _of_search(source: ShownRuns, hasher: Hasher, search: Search, count: int, top: int) -> list[Example]:
    both = sides(source.dataset, source.views, search)
    ap = metrics.average_precision(*source.counts(search))
    found = []
    for rank, query in ranked(ap, count):
        row = int(both.rows[query])
        item = source.dataset.items[int(both.queries[query])]
        hits = hasher.nearest(both.source.asked_packed[row], search.sought.kind, search.lang or "", top)
        caption = None
        if search.source.lang:
            caption = both.source.caption(source.dataset, row, search.source.lang) or "(no caption)"
        found.append(Example(rank, float(ap[query]), item, caption, judge(source.dataset, item, hits)))
    return found
