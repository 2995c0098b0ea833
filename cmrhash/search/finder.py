"""Search of a run's codes: candidates by Hamming distance, their scores, and the results with their captions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import compress
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cmrhash.data.view import View
from cmrhash.errors import UsageError, did_you_mean
from cmrhash.evaluation.run_codes import ViewCodes
from cmrhash.features.dataset import ExtractedDataset
from cmrhash.retrieval.index import BinaryIndex
from cmrhash.retrieval.ranking import (
    ASYMMETRIC,
    FEATURES,
    HAMMING,
    RERANK,
    Rank,
    asymmetric_scores,
    cosine_scores,
    hamming_scores,
)
from cmrhash.search.filters import matching
from cmrhash.search.publish import collection_of, keys_of, refuse_other_codes
from cmrhash.search.results import Hit, K, Vectors, Wanted
from cmrhash.search.stores import CodeStore
from cmrhash.training.runs import Run

COMPARED = 50_000  # most ids that an unknown one is compared with, which takes a second
KEPT = 8  # most indexes of some items that are kept for the next search
TARGETS = ("image", "text", "both")


class Candidates(NamedTuple):
    """Codes near one query. rows: (S,) int64 of the view, -1 for a key of a store that the data set lacks.

    distances: (S,) int; keys: of the store, () without one.
    """

    rows: NDArray[np.int64]
    distances: NDArray[np.int32]
    keys: Sequence[str] = ()


class Found(NamedTuple):
    """A result before it has a rank; sorted, the nearest comes first, equal scores by id."""

    key: tuple[float, str, str, int]  # -score, id, kind of result, row
    view: View
    distance: int


class Finder:
    """The codes of a run and the place where they are searched: the run's own indexes, or a store."""

    def __init__(
        self,
        run: Run,
        data: ExtractedDataset,
        views: Mapping[View, ViewCodes],
        among: str,
        store: CodeStore | None,
        rank: Rank | None,
    ) -> None:
        self.run, self.data, self.dataset = run, data, data.dataset
        self.views, self.among, self.store, self.rank = views, among, store, rank
        self._narrow: dict[tuple[View, tuple[str, ...]], ViewCodes] = {}
        self._rows: dict[View, dict[str, int]] = {}  # of a view in the store: key -> row

    def nearest(self, query: Vectors, to: str, lang: str, wanted: Wanted) -> list[list[Hit]]:
        """Find the wanted results of each query, the highest score first, equal scores by id.

        to: "image", "text" or "both"; lang: of the texts.
        """
        views, rank = self.check(to, lang, wanted), self._rank(query, to, wanted.rank)
        found: list[list[Found]] = [[] for _ in range(len(query))]
        for view in views:
            for own, scored in zip(found, self._scored(view, query, wanted, rank), strict=True):
                own += scored
        best = [sorted(own)[: wanted.most] for own in found]
        return [[self._hit(place, one, lang) for place, one in enumerate(own, 1)] for own in best]

    def check(self, to: str, lang: str, wanted: Wanted) -> list[View]:
        """Views that a search covers; raises UsageError for a search that cannot be, before anything is encoded."""
        if to not in TARGETS:
            raise UsageError(f"'{to}' is no modality", None, f"choose one of {', '.join(TARGETS)}", option="to")
        both = (View.IMAGE, View.text(lang))
        views = [view for view in both if to in ("both", view.kind) and view in self.views]
        if not views:
            what = f"no item of the collection has {'a photo' if to == 'image' else f'captions ({lang})'}"
            raise UsageError(what, self.data.folder, "search for the other kind", option="to")
        for view in views if not self.store else ():
            self._narrowed(view, wanted.where)  # kept for the search
        return views

    def of_item(self, ident: str, by: str, lang: str, with_features: bool = False) -> Vectors:
        """Stored vectors of an item's "image" or first caption ("text"); raises UsageError if it has none."""
        if by not in ("image", "text"):
            raise UsageError(f"unknown value '{by}'", None, "choose image or text", option="by")
        if ident not in self.places:
            raise UsageError(f"no item '{ident}'", self.data.folder, self._near(ident) or "see items.jsonl for the ids")
        codes = self.views.get(View.IMAGE if by == "image" else View.text(lang))
        rows = np.flatnonzero(codes.codes.item == self.places[ident])[:1] if codes else np.zeros(0)
        if codes is None or not len(rows):
            raise UsageError(f"item '{ident}' has no {by}", self.data.folder, "search by the other one")
        features = self.image_features[rows] if with_features else None
        return Vectors(codes.asked_packed[rows], codes.asked[rows], features)

    def _near(self, ident: str) -> str:
        """Words that name the id most like an unknown one, which may be the name of a file; "" for none."""
        if len(self.places) > COMPARED:
            return ""
        return did_you_mean(ident, self.places) or did_you_mean(Path(ident).stem, self.places)

    def is_by_features(self, asked: Rank | None) -> bool:
        """Whether the search ranks by the encoder's features."""
        chosen = asked or self.rank
        return chosen is not None and chosen.kind == FEATURES

    def _rank(self, query: Vectors, to: str, asked: Rank | None) -> Rank:
        """The rank of a search: the asked one, else that of the finder, else the best for the query."""
        if self.is_by_features(asked):
            if query.features is None or to != "image" or self.store:
                raise not_by_features()
            return Rank(FEATURES)
        if query.embedding is not None:
            return asked or self.rank or Rank(RERANK)
        if asked is not None and asked.kind != HAMMING:
            what = f"packed codes cannot be ranked by {asked}: they hold no real numbers"
            raise UsageError(what, None, "give an embedding, a sentence or a photo, or use hamming", option="rank")
        return Rank(HAMMING)

    def _scored(self, view: View, query: Vectors, wanted: Wanted, rank: Rank) -> Iterator[list[Found]]:
        """Find at least the best results of each query in a view, in any order."""
        searched = self._all_by_features if rank.kind == FEATURES else self._by_codes
        for near, scores in searched(view, query, wanted, rank):
            count = len(scores) if wanted.most is None else min(wanted.most, len(scores))
            least = np.partition(scores, -count)[-count] if count else 0.0
            yield [self._found(view, near, at, scores[at]) for at in np.flatnonzero(scores >= least).tolist()]

    def _by_codes(
        self, view: View, query: Vectors, wanted: Wanted, rank: Rank
    ) -> Iterator[tuple[Candidates, NDArray[np.float64]]]:
        """The nearest codes of each query, with their scores."""
        codes = self.views[view]
        near = self._in_store if self.store else self._in_index
        for at, candidates in enumerate(near(view, query.packed, wanted, rank)):
            scores = hamming_scores(candidates.distances, self.run.bits)
            if rank.kind != HAMMING:
                assert query.embedding is not None
                known, one = candidates.rows >= 0, query.embedding[at : at + 1]
                rows = candidates.rows[known]
                if rank.kind == ASYMMETRIC:
                    scores[known] = asymmetric_scores(one, codes.codes.packed[rows])[0]
                else:
                    assert rank.kind == RERANK
                    scores[known] = cosine_scores(one, codes.embedding[rows])[0]
                self._score_others(view, one, candidates, rank, scores)
            yield candidates, scores

    def _score_others(
        self, view: View, one: NDArray[np.float32], near: Candidates, rank: Rank, scores: NDArray[np.float64]
    ) -> None:
        """Let the store score the keys that the run does not know, for the embedding (1, bits) of a query."""
        others = np.flatnonzero(near.rows < 0).tolist()
        if others:
            assert self.store is not None
            keys = [near.keys[at] for at in others]
            only = Rank(rank.kind, len(keys))
            _, found, scored = self.store.ranked(collection_of(self.run, view), one, len(keys), only, keys)
            by_store = dict(zip(found[0], scored[0].tolist(), strict=True))
            scores[others] = [by_store.get(key, scores[at]) for key, at in zip(keys, others, strict=True)]

    def _in_index(self, view: View, packed: NDArray[np.uint8], wanted: Wanted, rank: Rank) -> list[Candidates]:
        """Candidates of each code, by the run's own index: all within the radius, or as many as the rank takes."""
        codes = self._narrowed(view, wanted.where)
        if wanted.radius is not None:
            near = codes.index.within(packed, wanted.radius)
            return [Candidates(codes.database[places], d) for d, places in near]
        distances, places = codes.index.search(packed, rank.candidates(wanted.k or K))
        return [Candidates(codes.database[row], d) for d, row in zip(distances, places, strict=True)]

    def _narrowed(self, view: View, where: tuple[str, ...]) -> ViewCodes:
        """The codes of the items that meet some conditions, with an index of them alone."""
        if not where:
            return self.views[view]
        if (view, where) not in self._narrow:
            codes = self.views[view]
            rows = codes.database[self._meet(view, where)]
            index = BinaryIndex.build(np.ascontiguousarray(codes.codes.packed[rows]), self.run.bits)
            while len(self._narrow) >= KEPT:
                self._narrow.pop(next(iter(self._narrow)))
            self._narrow[view, where] = replace(codes, database=rows, index=index)
        return self._narrow[view, where]

    def _meet(self, view: View, where: tuple[str, ...]) -> NDArray[np.bool_]:
        """Whether the item of each searched row of a view meets some conditions."""
        codes = self.views[view]
        return matching(self.dataset, where)[codes.codes.item[codes.database]]

    def _in_store(self, view: View, packed: NDArray[np.uint8], wanted: Wanted, rank: Rank) -> list[Candidates]:
        """The same by the store; by distance alone it has to name no more than the results."""
        assert self.store is not None
        if view not in self._rows:
            codes = self.views[view]
            keys = keys_of(self.run, self.dataset, codes)
            self._rows[view] = dict(zip(keys, codes.database.tolist(), strict=True))
        refuse_other_codes(self.run, self.dataset, view, self.store, self.among, self.data.folder.parent)
        k, known = wanted.k or K, self._rows[view]
        some = [*compress(known, self._meet(view, wanted.where))] if wanted.where else None
        name, count = collection_of(self.run, view), k if rank.kind == HAMMING else rank.candidates(k)
        if wanted.radius is not None:
            near = self.store.within(name, packed, wanted.radius, some)
        else:
            near = [*zip(*self.store.search(name, packed, count, some), strict=True)]
        rows = [np.array([known.get(key, -1) for key in keys], np.int64) for _, keys in near]
        return [Candidates(of, *own) for of, own in zip(rows, near, strict=True)]

    def _all_by_features(
        self, view: View, query: Vectors, wanted: Wanted, rank: Rank
    ) -> Iterator[tuple[Candidates, NDArray[np.float64]]]:
        """Every photo, with the cosine of its features and those of each query."""
        assert query.features is not None
        codes = self._narrowed(view, wanted.where)
        everything = codes.database, codes.codes.packed[codes.database]
        for one, code in zip(query.features, query.packed, strict=True):
            rows, distances = everything[0], np.bitwise_count(everything[1] ^ code).sum(axis=1, dtype=np.int32)
            if wanted.radius is not None:
                rows, distances = rows[distances <= wanted.radius], distances[distances <= wanted.radius]
            yield Candidates(rows, distances), cosine_scores(one[None], self.image_features[rows])[0]

    @cached_property
    def places(self) -> dict[str, int]:
        """Position of each item by id."""
        return {item.id: place for place, item in enumerate(self.dataset.items)}

    @cached_property
    def image_features(self) -> NDArray[np.float32]:
        """Features of the photos in the cache, (M, D), a row per row of the image codes."""
        of = self.data.features(View.IMAGE, View.IMAGE.encoder_of(self.run.features[View.IMAGE].file))
        return of.x

    def _found(self, view: View, near: Candidates, at: int, score: float) -> Found:
        row = int(near.rows[at])
        ident = near.keys[at] if row < 0 else self.dataset.items[int(self.views[view].codes.item[row])].id
        return Found((-float(score), ident, view.kind, row), view, int(near.distances[at]))

    def _hit(self, rank: int, found: Found, lang: str) -> Hit:
        (negative, ident, kind, row), view, distance = found
        score = 0.0 - negative
        if row < 0:
            return Hit(rank, distance, score, ident, kind, lang, None, (), None)
        codes = self.views[view]
        item = self.dataset.items[int(codes.codes.item[row])]
        labels = tuple(self.dataset.classes[label] for label in item.labels)
        return Hit(rank, distance, score, ident, kind, lang, codes.caption(self.dataset, row, lang), labels, item.image)


def not_by_features() -> UsageError:
    """Make the error for a search that features cannot rank."""
    what = '`rank="features"` ranks photos by a photo, in the files of the run'
    return UsageError(what, None, "search photos by a photo or by an item's image", option="rank")
