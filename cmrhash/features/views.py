"""Features of a view laid over the items of the data set: which row stands for which item."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cmrhash.data.items import ImageTextDataset
from cmrhash.data.view import View
from cmrhash.errors import StaleError, UsageError
from cmrhash.features.file import FeatureHeader, Features, source_digest
from cmrhash.retrieval.relevance import Relevance


@dataclass(frozen=True)
class ViewFeatures:
    """A feature file over the items of its data set.

    first: (items,) int64, the first valid row of each item, -1 without any; start: (items,) int64, where an item's rows
    begin in ``rows``; count: (items,) int64, how many valid rows it has (captions); rows: (M,) int64, all valid rows,
    those of an item side by side.
    """

    features: Features
    rows: NDArray[np.int64]
    first: NDArray[np.int64]
    start: NDArray[np.int64]
    count: NDArray[np.int64]

    def __repr__(self) -> str:
        return f"ViewFeatures({self.header.path.name!r}, {int(self.has.sum())} items, {len(self.rows)} rows)"

    @property
    def header(self) -> FeatureHeader:
        """Header of the feature file."""
        return self.features.header

    @property
    def view(self) -> View:
        """Which view these are features of."""
        return self.header.view

    @property
    def has(self) -> NDArray[np.bool_]:
        """(items,) bool: the item can be used in this view."""
        return self.count > 0

    @property
    def items(self) -> NDArray[np.int64]:
        """(M,) int64, the item of each valid row, ascending."""
        return self.features.item[self.rows].astype(np.int64)


def over_items(features: Features, dataset: ImageTextDataset) -> ViewFeatures:
    """Lay features over the items; raises StaleError if they were made of other items or captions."""
    header = features.header
    ids = tuple(item.id for item in dataset.items)
    if features.ids != ids:
        what = "feature file of other items than items.jsonl"
        raise StaleError(what, header.path, "run cmrhash extract --overwrite")
    lang = header.view.lang
    if lang is not None and not header.is_ready_made:  # ready-made features are of no caption
        texts = [text for item in dataset.items for text in item.texts.get(lang, ())]
        if features.source.tobytes() != b"".join(source_digest(text.encode()).tobytes() for text in texts):
            what = "captions changed since they were encoded"
            raise StaleError(what, header.path, "run cmrhash extract --overwrite")
    rows = np.flatnonzero(features.valid)
    rows = rows[np.argsort(features.item[rows], kind="stable")]
    start = np.searchsorted(features.item[rows], np.arange(len(ids)), side="left")
    count = np.searchsorted(features.item[rows], np.arange(len(ids)), side="right") - start
    first = np.full(len(ids), -1, np.int64)
    first[count > 0] = rows[start[count > 0]]
    return ViewFeatures(features, rows, first, start, count)


def chosen_encoders(options: Sequence[str]) -> dict[View, str]:
    """Read "VIEW=ENCODER" options, VIEW being "image" or a language; raises UsageError for another form."""
    chosen = {}
    for option in options:
        view, _, encoder = option.partition("=")
        if not encoder or not view:
            raise UsageError(f"--encoder {option}", None, "write image=NAME or LANG=NAME")
        chosen[View.named(view)] = encoder
    return chosen


def relevance_between(
    dataset: ImageTextDataset,
    queries: NDArray[np.int64],
    database: NDArray[np.int64],
    exclude: NDArray[np.int64] | None = None,
) -> Relevance:
    """Who is relevant to whom, between the items of two lists of rows, by the data set's rule.

    exclude: (Q,) the database row that is the query itself, -1 for none.
    """
    if dataset.relevance == "pairs":
        return Relevance.by_pairs(queries, database, exclude)
    labels = [[dataset.items[row].labels for row in rows] for rows in (queries, database)]
    return Relevance.by_labels(labels[0], labels[1], len(dataset.classes), exclude)


def scored_rows(
    dataset: ImageTextDataset, item: NDArray[np.integer[Any]], items: NDArray[np.int64]
) -> NDArray[np.int64]:
    """The rows of a view that stand for the items when they are scored: by labels the first caption, by pairs all.

    item: (M,) the item of each row, ascending; items that have no row are left out.
    """
    rows = np.flatnonzero(np.isin(item, items))
    if dataset.relevance == "pairs" or not len(rows):
        return rows
    return rows[np.diff(item[rows], prepend=-1) > 0]


def ordinals(item: NDArray[np.integer[Any]]) -> NDArray[np.int64]:
    """(M,) int64: the how-manieth row of its item each row is, from 0. item: (M,) the item of each row, ascending."""
    return np.arange(len(item)) - np.searchsorted(item, item)
