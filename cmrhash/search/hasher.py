"""Hasher: a trained run that takes sentences and photos, and finds what lies near them in its database.

    hasher = Hasher.load("runs/sample/triplet-32")
    for hit in hasher.search("zwei rote Häuser auf einer Wiese", lang="de", k=5):
        print(hit.score, hit.id, hit.caption)

The codes of the database come out of the run, or lie in a store (``Hasher.load(..., store=URL)``); torch is imported
when the first query has to be encoded.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Unpack, overload

import numpy as np
from numpy.typing import NDArray

from cmrhash.config import CACHE, QUERY_LANGUAGE
from cmrhash.data.items import Item
from cmrhash.data.view import View, languages_of
from cmrhash.errors import UsageError
from cmrhash.evaluation.run_codes import AMONG, RunCodes, ViewCodes, among_all, codes_of
from cmrhash.features.dataset import ExtractedDataset
from cmrhash.retrieval.ranking import RERANK, Rank
from cmrhash.search import languages
from cmrhash.search.embedder import whole_codes
from cmrhash.search.exported.hasher import PretrainedHasher
from cmrhash.search.finder import Finder, not_by_features
from cmrhash.search.of_run import RunEmbedder
from cmrhash.search.publish import scope_of
from cmrhash.search.results import Hit as Hit
from cmrhash.search.results import How, Limits, Vectors, Wanted, blended, kind_of
from cmrhash.search.stores import CodeStore, open_store
from cmrhash.training.runs import Run, open_run

log = logging.getLogger(__name__)

if TYPE_CHECKING:
    from cmrhash.encoders.own import Encoder
    from cmrhash.search.embedder import Photo

    Query = str | Photo | NDArray[Any]
    Queries = list[Any] | tuple[Any, ...]  # of queries


BATCH = 256  # queries that are embedded together


class Hasher(RunEmbedder):
    """A finished run with its data set and codes; ``Hasher.open`` and ``Hasher.load`` make one.

    codes: of the run and of these items; image_weights, text_models: where the encoders are now, if they moved.
    store: URL of the store to search in, None for the run's own indexes; probes: see ``stores.open_store``.
    among: what is searched, "all" items that have codes or the "database" of ``evaluate``; None: what the store holds,
    all without a store. image_encoder, text_encoder: encoder objects of the user's own that made the features; a
    mapping gives one per language. rank: order of results, see ``retrieval.ranking.Rank``; None: by embeddings
    ("rerank"), for packed codes by Hamming distance.
    """

    def __init__(
        self,
        run: Run,
        data: ExtractedDataset,
        codes: RunCodes,
        device: str = "auto",
        image_weights: str | None = None,
        text_models: Mapping[str, str] | None = None,
        offline: bool = False,
        store: str | None = None,
        probes: int | None = None,
        among: str | None = None,
        image_encoder: Encoder[Any] | None = None,
        text_encoder: Encoder[Any] | Mapping[str, Encoder[Any]] | None = None,
        rank: str | Rank | None = None,
    ) -> None:
        if among is not None and among not in AMONG:
            raise UsageError(f"unknown value '{among}'", None, f"choose {' or '.join(AMONG)}", option="among")
        self.run, self.data = run, data.with_relevance(run.relevance)
        self.dataset, self.folder = self.data.dataset, data.folder
        self._store: CodeStore | None = open_store(store, probes) if store is not None else None
        self.among = among or (scope_of(run, codes, self._store) if self._store else "all")
        self.views: Mapping[View, ViewCodes] = among_all(self.dataset, codes) if self.among == "all" else dict(codes)
        self._take(device, image_weights, text_models or {}, offline, image_encoder, text_encoder)
        self._rank = Rank.parse(rank) if rank else None
        self._finder = Finder(run, self.data, self.views, self.among, self._store, self._rank)

    @classmethod
    def open(cls, run: Run, data: ExtractedDataset, **options: Any) -> Hasher:
        """Open a run of a data set; its codes are made first if they are missing. options: as the class takes them.

        Raises StaleError if data or features changed since the training, DamagedError for a file that is not what was
        written.
        """
        run.refuse_stale(data)
        codes = codes_of(run, data)
        log.info("%s: opened, %s", run.folder, ", ".join(codes))
        data.release()
        return cls(run, data, codes, **options)

    @classmethod
    def load(cls, run: str | Path, cache: str | Path = CACHE, **options: Any) -> Hasher:
        """Open the run in a folder. cache: where its data set lies; options: as the class takes them.

        Raises UsageError for a folder without a run, StaleError if data or features changed since the training,
        DamagedError for a file that is not what was written.
        """
        opened = open_run(run)
        return cls.open(opened, ExtractedDataset.open(cache, opened.dataset), **options)

    def with_run(self, run: Run, data: ExtractedDataset | None = None) -> Hasher:
        """Open another run of the same data set with the same settings; both share the encoders that they load.

        data: the data set as it is now, None as it was opened; encoders are shared if they made its features.
        """
        other = Hasher.open(
            run,
            data or self.data,
            device=self._device,
            offline=self._offline,
            image_weights=self._image_weights,
            text_models=self._text_models,
            among=self.among,
            image_encoder=self._own_image,
            text_encoder=self._own_text,
            rank=self._rank,
        )
        if data is None or _encoders(run) == _encoders(self.run):
            other._image_encoders, other._text_encoders = self._image_encoders, self._text_encoders
            other._light_encoders = self._light_encoders
        return other

    def reopened(self) -> Hasher:
        """Open the run again, as its files and its data set are now; raises as ``Hasher.open`` does."""
        data = ExtractedDataset.open(self.folder.parent, self.data.name)
        return self.with_run(open_run(self.run.folder), data)

    def __repr__(self) -> str:
        return f"Hasher({str(self.run.folder)!r}, {self.bits} bits, {', '.join(self.langs) or 'images'}, {self.scope})"

    @property
    def order(self) -> str:
        """What results are ordered by, in words."""
        return (self._rank or Rank(RERANK)).in_words

    def close(self) -> None:
        """Let go of the store's files or connection, if there is one."""
        if self._store:
            self._store.close()

    @cached_property
    def langs(self) -> tuple[str, ...]:
        """Languages that can ask; those with captions can be found. None for photos of an encoder without texts."""
        if self._lender:
            return self._lender.langs
        return tuple(sorted({*languages_of(self.views), *self.run.langs}))

    @property
    def bits(self) -> int:
        """Code length."""
        return self.run.bits

    @cached_property
    def encoded(self) -> int:
        """How many items have a code."""
        return _different(view.codes.item for view in self.views.values())

    @cached_property
    def searched(self) -> int:
        """How many of these can be found."""
        return _different(view.codes.item[view.database] for view in self.views.values())

    @cached_property
    def usual_lang(self) -> str:
        """Language without a choice: the one with captions of most items, of equal ones English, then by name."""

        def merit(lang: str) -> tuple[int, bool]:
            view = self.views.get(View.text(lang))
            return 0 if view is None else _different([view.codes.item[view.database]]), lang == QUERY_LANGUAGE

        return max(self.langs, key=merit, default=QUERY_LANGUAGE)

    @property
    def scope(self) -> str:
        """What is searched, in words."""
        return f"all {self.searched} items" if self.among == "all" else f"{self.searched} database items"

    @property
    def place(self) -> Path:
        """The run's folder."""
        return self.run.folder

    def doubt(self, sentence: str, lang: str) -> str | None:
        """Reason to doubt the results of a sentence that was searched, see ``languages.doubt`` and ``cut``."""
        recipe = self.light_encoder(View.text(lang)).recipe
        return languages.cut(recipe, sentence) or languages.doubt(self.words, sentence, lang)

    def likely(self, text: str) -> list[str]:
        """The languages whose captions have most words of a text."""
        return languages.likely(self.words, text)

    # ------------------------------------------------------------------------------------------ to hand on

    def save_pretrained(
        self,
        folder: str | Path,
        *,
        with_encoders: bool = False,
        overwrite: bool = False,
        more: Callable[[Path], object] | None = None,
    ) -> None:
        """Write what others need to encode as this run does, without its data set; see ``exported.write.save``."""
        from cmrhash.search.exported import write

        langs = {lang: self._text_models.get(lang, self._text_models.get("")) for lang in self.langs}
        moved = {View.IMAGE: self._image_weights, **{View.text(lang): model for lang, model in langs.items()}}
        source = write.Exporting(self.run, self.folder, self, moved)
        write.save(source, Path(folder), with_encoders=with_encoders, overwrite=overwrite, more=more)

    def push_to_hub(self, repo: str, *, private: bool = False, with_encoders: bool = False) -> str:
        """Export it to the model hub as "owner/name", and return the commit's address; see ``exported.write.push``."""
        from cmrhash.search.exported import write

        with TemporaryDirectory() as folder:
            self.save_pretrained(folder, with_encoders=with_encoders)
            return write.push(Path(folder), repo, private=private)

    @staticmethod
    def from_pretrained(source: str | Path, *, revision: str | None = None, **options: Any) -> PretrainedHasher:
        """Open what ``save_pretrained`` wrote, in a folder or under an id of the hub; see ``PretrainedHasher.load``."""
        return PretrainedHasher.load(source, revision=revision, **options)

    def item(self, ident: str) -> Item | None:
        """The item of the data set that has this id."""
        places = self._finder.places
        return self.dataset.items[places[ident]] if ident in places else None

    def codes(self, kind: str = "image", lang: str | None = None) -> tuple[list[str], NDArray[np.uint8]]:
        """Codes that are searched: ids of the items and packed codes (n, ceil(bits / 8)) uint8, in the same order.

        kind: "image", or "text" in a language. Captions of one item repeat its id where all captions are searched.
        """
        if kind not in ("image", "text"):
            raise UsageError(f"'{kind}' is no modality", None, "choose image or text")
        view = View.IMAGE if kind == "image" else View.text(self.understood(lang))
        if view not in self.views:
            raise UsageError(f"the run has no codes of {view}", self.folder, f"there are: {', '.join(self.views)}")
        of = self.views[view]
        ids = [self.dataset.items[item].id for item in of.codes.item[of.database].tolist()]
        return ids, np.ascontiguousarray(of.codes.packed[of.database])

    # ------------------------------------------------------------------------------------------ searching

    @overload
    def search(self, query: Query, **how: Unpack[How]) -> list[Hit]: ...

    @overload
    def search(self, query: Queries, **how: Unpack[How]) -> list[list[Hit]]: ...

    def search(
        self,
        query: Query | Queries,
        *,
        lang: str | None = None,
        to: str | None = None,
        k: int | None = None,
        rank: str | Rank | None = None,
        radius: int | None = None,
        where: str | Sequence[str] = (),
    ) -> list[Hit] | list[list[Hit]]:
        """Find the k nearest items, the highest score first, equal scores by id.

        query: a sentence; a photo (a Path, a str that names a file, a PIL image, an (H, W, 3) uint8 array, the bytes of
        a file); a packed code (ceil(bits / 8),) uint8; an embedding (bits,) of real numbers; or several queries: a list
        of these, or one row each of a 2-D array. to: "image", "text" or "both"; None: the other modality (of a code:
        images; ranked by features: images). lang: of a sentence, and of the texts that are found; None: that of the
        sentence's words, for other queries ``usual_lang``. k: 10 by default.
        rank: see ``retrieval.ranking.Rank``; None: that of the hasher. radius: only results within so many bits, all of
        them unless k is given. where: conditions on the items, all of which must hold, see ``filters.matching``. Raises
        UsageError for another type or value.
        """
        wanted = Wanted.of(k, rank, radius, where)
        if isinstance(query, np.ndarray) and query.ndim == 2:
            vectors = self._vectors("array", query, "")
            return self._finder.nearest(vectors, to or self.kind("image"), self.understood(lang), wanted)
        if isinstance(query, (list, tuple)):
            return self._several(query, lang, to, wanted)
        return self._several([query], lang, to, wanted)[0]

    def _several(self, queries: Sequence[Any], lang: str | None, to: str | None, wanted: Wanted) -> list[list[Hit]]:
        """Search by several queries, those of one kind and language together."""
        alike: dict[tuple[str, str], list[int]] = {}
        for at, query in enumerate(queries):
            kind = kind_of(query)
            alike.setdefault((kind, self.understood(lang, query if kind == "text" else None)), []).append(at)
        found: dict[int, list[Hit]] = {}
        for (kind, spoken), places in alike.items():
            by_photo = kind == "photo" and not self._finder.is_by_features(wanted.rank)
            target = to or self.kind("text" if by_photo else "image")
            self._finder.check(target, spoken, wanted)
            if kind == "text" and self._finder.is_by_features(wanted.rank):
                raise not_by_features()
            for start in range(0, len(places), BATCH):
                some = places[start : start + BATCH]
                vectors = self._vectors(kind, [queries[at] for at in some], spoken)
                found |= zip(some, self._finder.nearest(vectors, target, spoken, wanted), strict=True)
        return [found[at] for at in range(len(queries))]

    def search_item(
        self, ident: str, *, by: str = "image", lang: str | None = None, to: str | None = None, **limits: Unpack[Limits]
    ) -> list[Hit]:
        """The same for an item of the data set, by the stored embedding of its image or its first caption."""
        lang, wanted = self.understood(lang), Wanted.of(**limits)
        by_features = by == "image" and self._finder.is_by_features(wanted.rank)
        vectors = self._finder.of_item(ident, by, lang, by_features)
        kind = to or self.kind("text" if by == "image" and not by_features else "image")
        return self._finder.nearest(vectors, kind, lang, wanted)[0]

    def blend(
        self,
        *queries: Any,
        like: Sequence[str] = (),
        unlike: Sequence[str] = (),
        by: str = "image",
        lang: str | None = None,
    ) -> NDArray[np.float32]:
        """Embed several queries as one, (bits,): the mean of what is wanted minus the mean of what is not.

        queries: sentences, photos and embeddings; like, unlike: ids of items, by their image or first caption (``by``).
        All embeddings count at unit length. Raises UsageError without anything wanted, and as ``search`` does.
        """
        spoken = self.understood(lang)
        asked = [(kind_of(query), query) for query in queries]
        near, far = ([self._finder.of_item(ident, by, spoken) for ident in ids] for ids in (like, unlike))
        near += [
            self._vectors(kind, [query], self.understood(lang, query) if kind == "text" else spoken)
            for kind, query in asked
        ]
        return blended(near, far)

    def kind(self, wanted: str) -> str:
        """The kind of result that is wanted, or the other one where no item has it."""
        kinds = {view.kind for view in self.views}
        return wanted if wanted in kinds else min(kinds)

    def nearest(self, query: NDArray[Any], to: str, lang: str, k: int, rank: str | Rank | None = None) -> list[Hit]:
        """Find the k nearest of a packed code (ceil(bits / 8),) uint8 or an embedding (bits,), as ``search`` does."""
        return self._finder.nearest(self._vectors("array", [query], lang), to, lang, Wanted.of(k, rank))[0]

    def _vectors(self, kind: str, queries: Any, lang: str) -> Vectors:
        """Embed queries of one kind, see ``results.kind_of``; an array may be 2-D, one row per query."""
        if kind == "photo":
            features = self.image_features(queries)
            return Vectors.of(self._embed(View.IMAGE, features), features)
        if kind == "text":
            return Vectors.of(self.embed_text(queries, lang))
        rows = queries if isinstance(queries, np.ndarray) else np.stack(queries)
        if rows.dtype.kind == "f" and rows.shape[1] == self.bits:
            return Vectors.of(rows.astype(np.float32))
        return Vectors(whole_codes(rows, self.bits))

    def understood(self, lang: str | None, sentence: str | None = None) -> str:
        """The language of a search: the asked one, else that of the sentence's words, else that of most captions.

        Raises UsageError for one that is not there, or if the words do not tell.
        """
        if sentence is not None:
            return self.language(lang, sentence)
        return self.language(lang) if lang and self.langs else self.usual_lang

    # ------------------------------------------------------------------------------------------ what it needs

    def captions(self, count: int) -> dict[str, list[str]]:
        """language -> its first ``count`` captions."""
        return {lang: list(islice(languages.texts_of(self.dataset, lang), count)) for lang in self.langs}

    @cached_property
    def words(self) -> languages.Words:
        """language -> every word of its captions, in lower case; of an applied run also of the training's captions."""
        return languages.words_of(self.run, self.dataset, self.langs)


def _encoders(run: Run) -> Any:
    """Record of the encoders that made the features of a run; of version 0.1, of the features themselves."""
    return run.record.get("made_as") or run.features


def _different(items: Iterable[NDArray[np.int64]]) -> int:
    """How many items are in any of some lists."""
    return len(np.unique(np.concatenate(list(items))))
