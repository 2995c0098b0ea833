"""Queries, database and relevance of every search that is scored."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cmrhash.data.cleaning import known_language
from cmrhash.data.items import ImageTextDataset
from cmrhash.data.view import View, languages_of
from cmrhash.evaluation.run_codes import ViewCodes
from cmrhash.features.views import relevance_between, scored_rows
from cmrhash.retrieval.relevance import Relevance

DIRECTIONS = ("i2t", "t2i", "t2t", "i2i")  # image or text query to image or text database


@dataclass(frozen=True)
class Search:
    """A search direction with its query view ``source`` and database view ``sought``."""

    direction: str
    source: View
    sought: View

    @property
    def lang(self) -> str | None:
        """Language of the texts, of the query texts for t2t; None for i2i."""
        return self.source.lang or self.sought.lang

    @property
    def database_lang(self) -> str | None:
        """Language of the database texts for t2t, else None."""
        return self.sought.lang if self.direction == "t2t" else None


@dataclass(frozen=True)
class Sides:
    """Query side and database side of a search.

    rows: (Q,) query rows of ``source``; queries: (Q,) their items; database: (N,) items of the rows in the index of
    ``sought``; exclude: (Q,) position of the query itself in that index, -1 for none.
    """

    source: ViewCodes
    rows: NDArray[np.int64]
    queries: NDArray[np.int64]
    sought: ViewCodes
    database: NDArray[np.int64]
    exclude: NDArray[np.int64]

    @property
    def key(self) -> bytes:
        """Digest of the items on both sides; equal keys mean equal relevance."""
        parts = (self.queries, self.database, self.exclude)
        return hashlib.sha256(b"|".join(part.tobytes() for part in parts)).digest()

    def relevance(self, dataset: ImageTextDataset) -> Relevance:
        """Relevance between queries and database, by the data set's rule."""
        exclude = self.exclude if (self.exclude >= 0).any() else None
        return relevance_between(dataset, self.queries, self.database, exclude)


def searches(
    dataset: ImageTextDataset, views: Mapping[View, ViewCodes], directions: Sequence[str], langs: Sequence[str] = ()
) -> list[Search]:
    """List the scored searches: i2t and t2i per language, then t2t, then i2i.

    t2t covers every ordered pair of languages; by pairs, a language is paired with itself only if some items have
    several captions in it. langs: of the texts; empty: all of the run.
    """
    image = View.IMAGE
    spoken = languages_of(views)
    asked = {known_language(lang, spoken) for lang in langs or spoken}
    texts = [View.text(lang) for lang in spoken if lang in asked]
    ends = [(d, *pair) for text in texts for d, pair in (("i2t", (image, text)), ("t2i", (text, image)))]
    if "t2t" in directions:
        ends += [("t2t", a, b) for a in texts for b in texts if a != b or _has_counterparts(dataset, views, a)]
    ends += [("i2i", image, image)]
    return [Search(*end) for end in ends if end[0] in directions]


def _has_counterparts(dataset: ImageTextDataset, views: Mapping[View, ViewCodes], text: View) -> bool:
    """Whether a text can find another text of its item, in the same language."""
    if dataset.relevance != "pairs":
        return True
    view = views[text]
    return bool((np.diff(view.codes.item[view.database]) == 0).any())


def sides(dataset: ImageTextDataset, views: Mapping[View, ViewCodes], search: Search) -> Sides:
    """Build both sides of a search; a query in the database is excluded from its own results."""
    source, sought = views[search.source], views[search.sought]
    is_query = np.flatnonzero(["query" in item.splits for item in dataset.items])
    rows = scored_rows(dataset, source.codes.item, is_query)
    exclude = np.full(len(rows), -1, np.int64)
    if search.source == search.sought:
        place = np.full(len(source.codes), -1, np.int64)
        place[sought.database] = np.arange(len(sought.database))
        exclude = place[rows]
    return Sides(source, rows, source.codes.item[rows], sought, sought.codes.item[sought.database], exclude)
