"""Who asks, what is searched, and who is relevant to whom: the two sides of everything that is scored."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cmrhash.data.items import ImageTextDataset
from cmrhash.data.view import View, languages_of
from cmrhash.evaluation.run_codes import ViewCodes
from cmrhash.features.views import relevance_between, scored_rows
from cmrhash.retrieval.relevance import Relevance

DIRECTIONS = ("i2t", "t2i", "t2t", "i2i")  # an image or a text asks; texts or images are searched


@dataclass(frozen=True)
class Search:
    """A direction, and the views that ask and are searched."""

    direction: str
    source: View
    sought: View

    @property
    def lang(self) -> str | None:
        """The language of the texts, of those that ask where both sides are texts; None without any."""
        return self.source.lang or self.sought.lang

    @property
    def database_lang(self) -> str | None:
        """The language of the texts that are searched by texts; None where an image asks or is searched."""
        return self.sought.lang if self.direction == "t2t" else None


@dataclass(frozen=True)
class Sides:
    """rows: (Q,) rows of ``source``, one a query; queries: (Q,) the item of each; database: (N,) the item of each row
    in the index of ``sought``; exclude: (Q,) the place there of the query itself, -1 for none.
    """

    source: ViewCodes
    rows: NDArray[np.int64]
    queries: NDArray[np.int64]
    sought: ViewCodes
    database: NDArray[np.int64]
    exclude: NDArray[np.int64]

    @property
    def key(self) -> bytes:
        """Equal for sides that have the same items in the same places, and so the same relevance."""
        parts = (self.queries, self.database, self.exclude)
        return hashlib.sha256(b"|".join(part.tobytes() for part in parts)).digest()

    def relevance(self, dataset: ImageTextDataset) -> Relevance:
        """Who is relevant to whom, by the data set's rule."""
        exclude = self.exclude if (self.exclude >= 0).any() else None
        return relevance_between(dataset, self.queries, self.database, exclude)


def searches(
    dataset: ImageTextDataset, views: Mapping[View, ViewCodes], directions: Sequence[str], langs: Sequence[str] = ()
) -> list[Search]:
    """What is scored of a run: by language i2t and t2i, then t2t of every ordered pair of languages, then i2i.

    langs: of the texts; empty: all that the run has. By pairs a text finds other texts of its language only where an
    item has several of them.
    """
    image = View.IMAGE
    texts = [View.text(lang) for lang in languages_of(views) if not langs or lang in langs]
    ends = [(d, *pair) for text in texts for d, pair in (("i2t", (image, text)), ("t2i", (text, image)))]
    ends += [("t2t", a, b) for a in texts for b in texts if a != b or _has_counterparts(dataset, views[a])]
    ends += [("i2i", image, image)]
    return [Search(*end) for end in ends if end[0] in directions]


def _has_counterparts(dataset: ImageTextDataset, view: ViewCodes) -> bool:
    return dataset.relevance != "pairs" or bool((np.diff(view.codes.item[view.database]) == 0).any())


def sides(dataset: ImageTextDataset, views: Mapping[View, ViewCodes], search: Search) -> Sides:
    """The query and database sides of a search. A query that lies in the database is not searched for."""
    source, sought = views[search.source], views[search.sought]
    is_query = np.flatnonzero(["query" in item.splits for item in dataset.items])
    rows = scored_rows(dataset, source.codes.item, is_query)
    exclude = np.full(len(rows), -1, np.int64)
    if search.source == search.sought:
        place = np.full(len(source.codes), -1, np.int64)
        place[sought.database] = np.arange(len(sought.database))
        exclude = place[rows]
    return Sides(source, rows, source.codes.item[rows], sought, sought.codes.item[sought.database], exclude)
