"""Hasher: a trained run that takes sentences and photos, and finds what lies near them in its database.

    hasher = Hasher.load("runs/sample/triplet-32")
    for hit in hasher.search("ein schwarzer Hund im Schnee", lang="de", k=5):
        print(hit.distance, hit.id, hit.caption)

The codes of the database come out of the run, or lie in a store (``Hasher.load(..., store=URL)``); torch is imported
when the first query has to be encoded.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, overload

import numpy as np
from numpy.typing import NDArray

from cmrhash.config import CACHE, QUERY_LANGUAGE
from cmrhash.data.cleaning import known_language
from cmrhash.data.items import Item
from cmrhash.data.view import View, languages_of
from cmrhash.encoders.bag_and_vectors import lower_words
from cmrhash.errors import UsageError
from cmrhash.evaluation.run_codes import AMONG, RunCodes, ViewCodes, among_all, codes_of, load_heads
from cmrhash.features.dataset import ExtractedDataset
from cmrhash.search.embedder import Embedder, is_photo, whole_codes
from cmrhash.search.exported.hasher import PretrainedHasher, applied_by
from cmrhash.search.publish import collection_of, keys_of, refuse_other_codes
from cmrhash.search.stores import CodeStore, open_store
from cmrhash.storage.files import read_json
from cmrhash.training.runs import ANEW, WORDS, Run, open_run

log = logging.getLogger(__name__)

if TYPE_CHECKING:
    from torch.nn import ModuleDict

    from cmrhash.encoders.own import Encoder
    from cmrhash.features.captions import CaptionEncoder
    from cmrhash.search.embedder import Photo

    Query = str | Photo
    Queries = list[Any] | tuple[Any, ...]  # of queries
    from cmrhash.features.images import PhotoEncoder

TARGETS = ("image", "text", "both")


@dataclass(frozen=True)
class Hit:
    """What a search found. distance: Hamming, in bits. modality: "image" or "text"; lang: of the caption, which for an
    image is one of its own. labels: names of the item's classes. image: path below the data set's root.
    """

    rank: int
    distance: int
    id: str
    modality: str
    lang: str | None
    caption: str | None
    labels: tuple[str, ...]
    image: str | None

    def as_json(self) -> dict[str, Any]:
        """What ``cmrhash search --json`` prints of it."""
        return asdict(self)


class Hasher(Embedder):
    """A finished run with its data set and codes; ``Hasher.open`` and ``Hasher.load`` make one.

    codes: of the run and of these items; image_weights, text_models: where the encoders are now, if they moved.
    store: URL of the store to search in, None for the run's own indexes; probes: see ``stores.open_store``.
    among: what is searched, the "database" or "all" items that have codes. image_encoder,
    text_encoder: encoder objects of the user's own that made the features; a mapping gives one per language.
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
        among: str = "database",
        image_encoder: Encoder[Any] | None = None,
        text_encoder: Encoder[Any] | Mapping[str, Encoder[Any]] | None = None,
    ) -> None:
        if among not in AMONG:
            raise UsageError(f"unknown value '{among}'", None, f"choose {' or '.join(AMONG)}", option="among")
        self.run, self.data = run, data.with_relevance(run.relevance)
        self.dataset, self.folder = self.data.dataset, data.folder
        self._device, self._offline = device, offline
        self._image_weights = image_weights
        self._own_image, self._own_text = image_encoder, text_encoder
        self._text_encoders: dict[str, CaptionEncoder] = {}
        self.among = among
        self.views: Mapping[View, ViewCodes] = among_all(self.dataset, codes) if among == "all" else dict(codes)
        self._text_models = {known_language(lang, self.langs): model for lang, model in (text_models or {}).items()}
        self._place = {item.id: row for row, item in enumerate(self.dataset.items)}
        self._store: CodeStore | None = open_store(store, probes) if store is not None else None
        self._keys: dict[View, dict[str, int]] = {}  # of a view in the store -> place in the database

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

    def __repr__(self) -> str:
        return f"Hasher({str(self.run.folder)!r}, {self.bits} bits, {', '.join(self.langs) or 'images'}, {self.scope})"

    def close(self) -> None:
        """Let go of the store's files or connection, if there is one."""
        if self._store:
            self._store.close()

    @cached_property
    def _lender(self) -> PretrainedHasher | None:
        """The exported run that this run applies, None for a trained run."""
        if not self.run.is_applied:
            return None
        moved = {"image_weights": self._image_weights, "text_models": self._text_models}
        return applied_by(self.run, moved, device=self._device, offline=self._offline)

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

    @property
    def scope(self) -> str:
        """What is searched, in words."""
        return f"all {self.searched} items" if self.among == "all" else f"{self.searched} database items"

    @property
    def place(self) -> Path:
        """The run's folder."""
        return self.run.folder

    def likely(self, text: str) -> list[str]:
        """The languages whose captions have most words of a text."""
        words = set(lower_words(text))
        known = {lang: len(words & self.words[lang]) for lang in self.langs}
        return [lang for lang in self.langs if known[lang] == max(known.values())]

    # ------------------------------------------------------------------------------------------ to hand on

    def save_pretrained(self, folder: str | Path, *, with_encoders: bool = False, overwrite: bool = False) -> None:
        """Write what others need to encode as this run does, without its data set; see ``share.export``."""
        from cmrhash.search.exported import write

        langs = {lang: self._text_models.get(lang, self._text_models.get("")) for lang in self.langs}
        moved = {View.IMAGE: self._image_weights, **{View.text(lang): model for lang, model in langs.items()}}
        source = write.Exporting(self.run, self.folder, self, moved)
        write.save(source, Path(folder), with_encoders=with_encoders, overwrite=overwrite)

    def push_to_hub(self, repo: str, *, private: bool = False, with_encoders: bool = False) -> str:
        """Export it to the model hub as "owner/name", and return the address of the commit; see ``share.export``."""
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
        return self.dataset.items[self._place[ident]] if ident in self._place else None

    # ------------------------------------------------------------------------------------------ searching

    @overload
    def search(self, query: Query, *, lang: str | None = None, to: str | None = None, k: int = 10) -> list[Hit]: ...

    @overload
    def search(
        self, query: Queries, *, lang: str | None = None, to: str | None = None, k: int = 10
    ) -> list[list[Hit]]: ...

    def search(
        self, query: Query | Queries, *, lang: str | None = None, to: str | None = None, k: int = 10
    ) -> list[Hit] | list[list[Hit]]:
        """Find the k nearest items, nearest first, equal distances in the order of the data set.

        query: a sentence; a photo (a Path, a str that names a file, a PIL image, an (H, W, 3) uint8 array, the bytes of
        a file); a packed code (ceil(bits / 8),) uint8; or a list of these, or (Q, ceil(bits / 8)) codes, which give a
        list of hits per query. to: "image", "text" or "both"; None: the other modality (of a code: images). lang: of a
        sentence, and of the texts that are found. Raises UsageError for another type.
        """
        if isinstance(query, np.ndarray) and query.ndim == 2:
            return self._nearest(whole_codes(query, self.bits), to or self.kind("image"), self.understood(lang), k)
        if isinstance(query, (list, tuple)):
            return [self.search(each, lang=lang, to=to, k=k) for each in query]
        if is_photo(query):
            return self.nearest(self.encode_image(query), to or self.kind("text"), self.understood(lang), k)
        if isinstance(query, str):
            lang = self.understood(lang, query)
            return self.nearest(self.encode_text(query, lang), to or self.kind("image"), lang, k)
        if isinstance(query, np.ndarray) and query.ndim == 1:
            return self._nearest(
                whole_codes(query[None], self.bits), to or self.kind("image"), self.understood(lang), k
            )[0]
        fix = "give a sentence, a photo, packed codes, or a list of these"
        raise UsageError(f"a query is a {type(query).__name__}", None, fix)

    def search_item(
        self, ident: str, *, by: str = "image", lang: str | None = None, to: str | None = None, k: int = 10
    ) -> list[Hit]:
        """The same for an item of the data set, whose code is there already, by its image or its first caption."""
        if ident not in self._place:
            raise UsageError(f"no item '{ident}'", self.folder, "see items.jsonl for the ids")
        if by not in ("image", "text"):
            raise UsageError(f"unknown value '{by}'", None, "choose image or text", option="by")
        lang = self.understood(lang)
        view = View.IMAGE if by == "image" else View.text(lang)
        codes = self.views[view].codes if view in self.views else None
        rows = np.flatnonzero(codes.item == self._place[ident]) if codes else np.zeros(0)
        if codes is None or not len(rows):
            raise UsageError(f"item '{ident}' has no {by}", self.folder, "search by the other one")
        return self.nearest(codes.packed[rows[0]], to or self.kind("text" if by == "image" else "image"), lang, k)

    def kind(self, wanted: str) -> str:
        """The kind of result that is wanted, or the other one where no item has it."""
        kinds = {view.kind for view in self.views}
        return wanted if wanted in kinds else min(kinds)

    def nearest(self, code: NDArray[np.uint8], to: str, lang: str, k: int) -> list[Hit]:
        """The k nearest of a packed code (ceil(bits / 8),) uint8. to: "image", "text" or "both"."""
        return self._nearest(code[None], to, lang, k)[0]

    def _nearest(self, codes: NDArray[np.uint8], to: str, lang: str, k: int) -> list[list[Hit]]:
        """The k nearest of each packed code (Q, ceil(bits / 8)) uint8."""
        if to not in TARGETS:
            raise UsageError(f"'{to}' is no modality", None, f"choose one of {', '.join(TARGETS)}", option="to")
        found: list[list[tuple[int, View, int | str]]] = [[] for _ in codes]
        both = (View.IMAGE, View.text(lang))
        sought = [view for view in both if to in ("both", view.kind) and view in self.views]
        if not sought:
            what = f"no item of the collection has {'a photo' if to == 'image' else f'captions ({lang})'}"
            raise UsageError(what, self.folder, "search for the other kind", option="to")
        for view in sought:
            search = self._search_store if self._store else self._search_index
            for own, pairs in zip(found, search(view, codes, k), strict=True):
                own += [(distance, view, place) for distance, place in pairs]
        for own in found:
            own.sort(key=lambda hit: hit[0])  # stable: images before texts, then the order of the index
        return [[self._hit(rank, *hit, lang) for rank, hit in enumerate(own[:k], 1)] for own in found]

    def _search_index(self, view: View, codes: NDArray[np.uint8], k: int) -> list[list[tuple[int, int | str]]]:
        """For each code, (distance, place in the database) of the k nearest, by the run's own index."""
        distances, places = self.views[view].index.search(codes, k)
        return [list(zip(d.tolist(), p.tolist(), strict=True)) for d, p in zip(distances, places, strict=True)]

    def _search_store(self, view: View, codes: NDArray[np.uint8], k: int) -> list[list[tuple[int, int | str]]]:
        """The same by the store. A key that the data set does not know, since others put it there, stays a key."""
        assert self._store is not None
        if view not in self._keys:
            keys = keys_of(self.run, self.dataset, self.views[view])
            self._keys[view] = {key: place for place, key in enumerate(keys)}
        refuse_other_codes(self.run, view, self._store, self.among)
        distances, found = self._store.search(collection_of(self.run, view), codes, k)
        known = self._keys[view]
        return [
            [(d, known.get(key, key)) for d, key in zip(row.tolist(), keys, strict=True)]
            for row, keys in zip(distances, found, strict=True)
        ]

    def _hit(self, rank: int, distance: int, view: View, place: int | str, lang: str) -> Hit:
        if isinstance(place, str):
            return Hit(rank, distance, place, view.kind, lang, None, (), None)
        codes, row = self.views[view], int(self.views[view].database[place])
        item = self.dataset.items[int(codes.codes.item[row])]
        labels = tuple(self.dataset.classes[label] for label in item.labels)
        caption = codes.caption(self.dataset, row, lang)
        return Hit(rank, distance, item.id, view.kind, lang, caption, labels, item.image)

    def understood(self, lang: str | None, sentence: str | None = None) -> str:
        """The language of a search: the asked one, else that of the sentence's words, else the first.

        Raises UsageError for one that is not there, or if the words do not tell.
        """
        if sentence is not None:
            return self.language(lang, sentence)
        return self.language(lang) if lang and self.langs else next(iter(self.langs), QUERY_LANGUAGE)

    # ------------------------------------------------------------------------------------------ what it needs

    @cached_property
    def heads(self) -> ModuleDict:
        """view -> its trained head."""
        return self._lender.heads if self._lender else load_heads(self.run)

    def head_of(self, view: View) -> View:
        """Another view for a borrowed language, which went through the encoder of the language it borrows from."""
        if self._lender:
            return self._lender.head_of(view)
        return self.views[view].head if view in self.views else view

    @cached_property
    def image_encoder(self) -> PhotoEncoder:
        """The encoder of the database's photos."""
        from cmrhash.compute.device import choose_device
        from cmrhash.features import reopen

        if self._lender:
            return self._lender.image_encoder
        path = self.folder / self.run.features[View.IMAGE].file
        device = choose_device(self._device)
        return reopen.image_encoder(path, device, self._image_weights, self._offline, self._own_image)

    def text_encoder(self, view: View) -> CaptionEncoder:
        """The encoder of the database's captions in a language."""
        from cmrhash.compute.device import choose_device
        from cmrhash.features import reopen

        if self._lender:
            return self._lender.text_encoder(view)
        made = self.run.features[self.head_of(view)]
        path = self.folder / made.file
        if str(path) not in self._text_encoders:
            model = self._text_models.get(str(view.lang), self._text_models.get(""))
            given = self._own_text
            own = given.get(str(view.lang)) if isinstance(given, Mapping) else given
            device = choose_device(self._device)
            if made.sha256:
                encoder = reopen.text_encoder(path, self.dataset, device, model, self._offline, own)
            else:  # photos without captions
                images = self.folder / self.run.features[View.IMAGE].file
                encoder = reopen.text_of_space(images, device, model or self._image_weights, self._offline, own)
            self._text_encoders[str(path)] = encoder
        return self._text_encoders[str(path)]

    def captions(self, count: int) -> dict[str, list[str]]:
        """language -> its first ``count`` captions."""
        return {lang: list(islice(self._texts(lang), count)) for lang in self.langs}

    @cached_property
    def words(self) -> dict[str, set[str]]:
        """language -> every word of its captions, in lower case; of an applied run also of the training's captions."""
        known = read_json(self.run.file(WORDS), ANEW) if WORDS in self.run.files else {}
        own = {lang: {word for text in self._texts(lang) for word in lower_words(text)} for lang in self.langs}
        return {lang: words.union(known.get(lang, ())) for lang, words in own.items()}

    def _texts(self, lang: str) -> Iterator[str]:
        return (text for item in self.dataset.items for text in item.texts.get(lang, ()))


def _different(items: Iterable[NDArray[np.int64]]) -> int:
    """How many items are in any of some lists."""
    return len(np.unique(np.concatenate(list(items))))
