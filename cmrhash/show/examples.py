"""Queries that a run answers best, middling and worst, each with what it found; and photos as small data: URIs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cmrhash.data.items import ImageTextDataset, Item
from cmrhash.evaluation.searches import Search, searches, sides
from cmrhash.retrieval import metrics
from cmrhash.search.hasher import Hasher, Hit
from cmrhash.show.photos import data_uri, thumbnail_of
from cmrhash.show.sources import WORDS, Source


@dataclass(frozen=True)
class Answer:
    """A hit. relevant: to the query, by the run's rule."""

    hit: Hit
    relevant: bool


@dataclass(frozen=True)
class Example:
    """A query with what it found. rank: "best", "median" or "worst"; ap: its AP, tie-aware, over the whole database.

    caption: of a text query; None of a photo.
    """

    rank: str
    ap: float
    item: Item
    caption: str | None
    answers: tuple[Answer, ...]


def examples(source: Source, hasher: Hasher, lang: str, count: int, top: int) -> dict[str, list[Example]]:
    """direction -> ``count`` queries of each rank by AP, with their ``top`` answers, as ``hasher`` finds them."""
    shown = searches(source.dataset, source.views, tuple(WORDS), [lang])
    return {search.direction: _of_search(source, hasher, search, count, top) for search in shown}


def ranked(ap: NDArray[np.float64], count: int) -> list[tuple[str, int]]:
    """("best" | "median" | "worst", query) of (Q,) APs, NaN for queries that have none; best first, worst last.

    ``count`` of each rank, fewer where there are not enough queries; of equal APs the first query counts as the better.
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


def _of_search(source: Source, hasher: Hasher, search: Search, count: int, top: int) -> list[Example]:
    both = sides(source.dataset, source.views, search)
    ap = metrics.average_precision(*source.counts(search))
    found = []
    for rank, query in ranked(ap, count):
        row = int(both.rows[query])
        item = source.dataset.items[int(both.queries[query])]
        hits = hasher.nearest(both.source.codes.packed[row], search.sought.kind, search.lang or "", top)
        answers = tuple(Answer(hit, _is_relevant(source.dataset, item, hit)) for hit in hits)
        caption = None
        if search.source.lang:
            caption = both.source.caption(source.dataset, row, search.source.lang) or "(no caption)"
        found.append(Example(rank, float(ap[query]), item, caption, answers))
    return found


def _is_relevant(dataset: ImageTextDataset, item: Item, hit: Hit) -> bool:
    if dataset.relevance == "pairs":
        return hit.id == item.id
    return bool({dataset.classes[label] for label in item.labels} & set(hit.labels))


class Thumbnails:
    """Photos of a data set as data: URIs, each made once. side: the longer one, in pixels."""

    def __init__(self, root: Path, side: int) -> None:
        self.root, self.side = root, side
        self.made: dict[str, str | None] = {}

    def of(self, image: str | None) -> str | None:
        """A JPEG of the photo; None if the item has none, or if it is no longer there or cannot be read."""
        if image is None:
            return None
        if image not in self.made:
            self.made[image] = data_uri(thumbnail_of(self.root, image, self.side)) or None
        return self.made[image]

    @property
    def counts(self) -> tuple[int, int]:
        """Photos shown, and photos that are no longer there."""
        there = sum(uri is not None for uri in self.made.values())
        return there, len(self.made) - there


def labels_of(dataset: ImageTextDataset, item: Item) -> Sequence[str]:
    """Names of an item's classes."""
    return [dataset.classes[label] for label in item.labels]
