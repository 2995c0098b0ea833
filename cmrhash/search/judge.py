"""Relevance of search results to the query's item, by the data set's rule."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cmrhash.data.items import ImageTextDataset, Item
from cmrhash.search.results import Hit


@dataclass(frozen=True)
class Judged:
    """A search result with its relevance.

    relevant: None if the query is no item, if it has no labels, and by pairs for all but its own image and captions,
    since others may fit as well. shared: labels of both the query and the result.
    itself: the result is the item of the query.
    """

    hit: Hit
    relevant: bool | None = None
    shared: tuple[str, ...] = ()
    itself: bool = False

    def as_json(self) -> dict[str, Any]:
        """Fields that ``cmrhash search --json`` and the API print."""
        return {**self.hit.as_json(), "relevant": self.relevant, "itself": self.itself}


def judge(dataset: ImageTextDataset, item: Item | None, hits: Sequence[Hit]) -> list[Judged]:
    """Judge the results of a query. item: of the query, None for a free sentence or photo."""
    if item is None:
        return [Judged(hit) for hit in hits]
    by_labels, own = dataset.relevance == "labels", set(label_names(dataset, item))
    judged = []
    for hit in hits:
        itself = hit.id == item.id
        shared = tuple(label for label in hit.labels if label in own)
        relevant = (bool(shared) if own else None) if by_labels else (itself or None)
        judged.append(Judged(hit, relevant, shared, itself))
    return judged


def label_names(dataset: ImageTextDataset, item: Item) -> tuple[str, ...]:
    """Names of an item's labels."""
    return tuple(dataset.classes[label] for label in item.labels)
