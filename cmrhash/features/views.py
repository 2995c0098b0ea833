"""Features of a view aligned with the items of the data set."""

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
    """A feature file aligned with the items of its data set.

    rows: (M,) int64, all valid rows, grouped by item; first: (items,) int64, first valid row of each item, -1 without
    any; start: (items,) int64, position in ``rows`` of each item's first row; count: (items,) int64, number of valid
    rows (captions) of each item.
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
        """View of the features."""
        return self.header.view

    @property
    def has(self) -> NDArray[np.bool_]:
        """Whether each item has features in this view, (items,) bool."""
        return self.count > 0

    @property
    def items(self) -> NDArray[np.int64]:
        """Item of each valid row, (M,) int64, ascending."""
        return self.features.item[self.rows].astype(np.int64)

    @property
    def x(self) -> NDArray[np.float32]:
        """Features of the valid rows, (M, D) float32, to be read only; not copied if all rows are valid."""
        whole = self.features.x
        return whole if np.array_equal(self.rows, np.arange(len(whole))) else whole[self.rows]

    def rows_of(self, items: NDArray[np.int64]) -> NDArray[np.int64]:
        """Positions in ``rows`` of these items' rows, item by item."""
        ends = np.cumsum(self.count[items])
        at = np.repeat(self.start[items] - ends + self.count[items], self.count[items])
        return at + np.arange(len(at))

    def captions(self, dataset: ImageTextDataset) -> list[str] | None:
        """Captions of the valid rows; None for photos, and for ready-made features of other captions or of none."""
        of = [(at, text) for at, item in enumerate(dataset.items) for text in item.texts.get(str(self.view.lang), ())]
        if self.view.is_image or not np.array_equal(self.features.item, [at for at, _ in of]):
            return None
        return [of[row][1] for row in self.rows.tolist()]


def over_items(features: Features, dataset: ImageTextDataset) -> ViewFeatures:
    """Align features with the items; raises StaleError if they come from other items or captions."""
    header = features.header
    ids = tuple(item.id for item in dataset.items)
    if features.ids != ids:
        what = "the feature file has other items than items.jsonl"
        raise StaleError(what, header.path, "run `extract` with `overwrite=True`")
    lang = header.view.lang
    if lang is not None and not header.is_ready_made:  # ready-made features have no captions
        texts = [text for item in dataset.items for text in item.texts.get(lang, ())]
        if features.source.tobytes() != b"".join(source_digest(text.encode()).tobytes() for text in texts):
            what = "captions changed since the extraction"
            raise StaleError(what, header.path, "run `extract` with `overwrite=True`")
    rows = np.flatnonzero(features.valid)
    rows = rows[np.argsort(features.item[rows], kind="stable")]
    start = np.searchsorted(features.item[rows], np.arange(len(ids)), side="left")
    count = np.searchsorted(features.item[rows], np.arange(len(ids)), side="right") - start
    first = np.full(len(ids), -1, np.int64)
    first[count > 0] = rows[start[count > 0]]
    return ViewFeatures(features, rows, first, start, count)


def chosen_encoders(options: Sequence[str]) -> dict[View, str]:
    """Parse "VIEW=ENCODER" options, VIEW being "image" or a language; raises UsageError."""
    chosen = {}
    for option in options:
        view, _, encoder = option.partition("=")
        if not encoder or not view:
            raise UsageError(f"cannot parse '{option}'", None, "write image=NAME or LANG=NAME", option="encoders")
        chosen[View.named(view)] = encoder
    return chosen


def relevance_between(
    dataset: ImageTextDataset,
    queries: NDArray[np.int64],
    database: NDArray[np.int64],
    exclude: NDArray[np.int64] | None = None,
) -> Relevance:
    """Relevance between query items (Q,) and database items (N,), by the data set's rule.

    exclude: (Q,) the database row that is the query itself, -1 for none.
    """
    if dataset.relevance == "pairs":
        return Relevance.by_pairs(queries, database, exclude)
    labels = [[dataset.items[row].labels for row in rows] for rows in (queries, database)]
    return Relevance.by_labels(labels[0], labels[1], len(dataset.classes), exclude)


def scored_rows(
    dataset: ImageTextDataset, item: NDArray[np.integer[Any]], items: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Rows of a view that represent the items: by labels the first caption, by pairs all.

    item: (M,) the item of each row, ascending; items without a row are left out.
    """
    rows = np.flatnonzero(np.isin(item, items))
    if dataset.relevance == "pairs" or not len(rows):
        return rows
    return rows[np.diff(item[rows], prepend=-1) > 0]


def ordinals(item: NDArray[np.integer[Any]]) -> NDArray[np.int64]:
    """Position of each row among the rows of its item, from 0, (M,) int64.

    item: (M,) the item of each row, ascending.
    """
    return np.arange(len(item)) - np.searchsorted(item, item)
