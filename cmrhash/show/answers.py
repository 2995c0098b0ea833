"""Answers to search queries, each result judged, for the page, its API and the sheet."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter

import numpy as np
from numpy.typing import NDArray
from PIL.Image import Image

from cmrhash.data.items import Item
from cmrhash.encoders.pixels import BadImage, decode
from cmrhash.errors import DataError, UsageError
from cmrhash.search.hasher import Hasher
from cmrhash.search.judge import Judged, judge, label_names
from cmrhash.search.results import Hit
from cmrhash.show.html.thumbnails import thumbnail

BOTH = "both"
NO_PHOTO = "not a readable photo"
FILTERED = 2000  # nearest results among which a filter by labels looks


Embed = Callable[[Hasher, str, str], NDArray[np.float32]]  # of a sentence in a language, (bits,)


class UnknownItem(UsageError):
    """A query by an item that the data set does not have."""


@dataclass(frozen=True)
class Question:
    """A query: text, photo (bytes of a file), ident (id of an item, by its "image" or first "text"), or several.

    digest: under which the server keeps the photo. unlike: ids of items whose photos the results should not resemble.
    labels: names of labels that every result has. skip: results before the first one shown. lang, to, k: as in
    ``Hasher.search``.
    """

    text: str | None = None
    photo: bytes | None = None
    ident: str | None = None
    by: str = "image"
    lang: str | None = None
    to: str | None = None
    k: int = 10
    digest: str | None = None
    unlike: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    skip: int = 0

    @property
    def parts(self) -> int:
        """Number of things to search for."""
        photo = self.photo if self.digest is None else self.digest
        return sum(part is not None for part in (self.text, photo, self.ident))


@dataclass(frozen=True)
class Answer:
    """Results of a query.

    parts: "image", "text" or "both" -> results. item: of the query, with its labels; thumb: JPEG of the query photo.
    more: the parts that have further results. doubt: reason to doubt them.
    """

    question: Question
    lang: str
    parts: Mapping[str, Sequence[Judged]]
    item: Item | None = None
    thumb: bytes | None = None
    seconds: float = 0.0
    labels: tuple[str, ...] = ()
    more: frozenset[str] = frozenset()
    doubt: str | None = None


def ask(hasher: Hasher, question: Question, apart: bool = False, embed: Embed = Hasher.embed_text) -> Answer:
    """Embed the query and search.

    apart: search images and texts separately, k results each, where both are wanted; a photo then searches both by
    default. embed: gives the embedding of a sentence. Raises UsageError for an invalid query (``UnknownItem`` for an
    id), DataError for an unreadable photo.
    """
    start = perf_counter()
    item = find_item(hasher, question.ident) if question.ident is not None else None
    image = _opened(question.photo) if question.photo is not None else None
    lang = hasher.language(question.lang, question.text) if question.text else hasher.understood(question.lang)
    to = question.to or _usual(hasher, question, apart)
    parts, more = {}, set()
    depth = FILTERED if question.labels else question.skip + question.k + 1
    stored = item is not None and question.parts == 1 and not question.unlike
    vector = None if stored else _embedding(hasher, question, image, lang, embed)
    for each in _targets(hasher, to, apart):
        if vector is None:
            hits = hasher.search_item(str(question.ident), by=question.by, lang=question.lang, to=each, k=depth)
        else:
            hits = hasher.nearest(vector, each, lang, depth)
        if question.labels:
            hits = _labelled(hits, set(question.labels))
        parts[each] = judge(hasher.dataset, item, hits[question.skip : question.skip + question.k])
        if len(hits) > question.skip + question.k:
            more.add(each)
    thumb = thumbnail(image) if image is not None else None
    took = perf_counter() - start
    doubt = hasher.doubt(question.text, lang) if question.text else None
    return Answer(question, lang, parts, item, thumb, took, _labels(hasher, item), frozenset(more), doubt)


def _usual(hasher: Hasher, question: Question, apart: bool) -> str:
    """Kind of results where none is chosen: the other modality; for a photo on the page both kinds."""
    if question.text or (question.ident is not None and question.by == "text"):
        return hasher.kind("image")
    return BOTH if apart else hasher.kind("text")


def _opened(photo: bytes) -> Image:
    try:
        return decode(photo)
    except BadImage as bad:
        raise DataError(f"{NO_PHOTO} ({bad})", None, "give another file") from None


def _embedding(hasher: Hasher, question: Question, image: Image | None, lang: str, embed: Embed) -> NDArray[np.float32]:
    """Embedding of a query (bits,) float32; of several parts a blend, see ``Hasher.blend``."""
    queries = []
    if question.text is not None:
        queries.append(embed(hasher, question.text, lang))
    if image is not None:
        queries.append(hasher.embed_image(image))
    if question.ident is None and len(queries) == 1 and not question.unlike:
        return np.asarray(queries[0])
    like = () if question.ident is None else (question.ident,)
    unlike = [find_item(hasher, ident).id for ident in question.unlike]
    return hasher.blend(*queries, like=like, unlike=unlike, by=question.by, lang=lang)


def _labelled(hits: Sequence[Hit], labels: set[str]) -> list[Hit]:
    """Results that have every label, ranked among themselves."""
    fitting = [hit for hit in hits if labels.issubset(hit.labels)]
    return [replace(hit, rank=rank) for rank, hit in enumerate(fitting, 1)]


def found(hasher: Hasher, question: Question, hits: Sequence[Hit], photo: Path | None = None) -> Answer:
    """Make the answer of a finished search. photo: file of the query photo."""
    item = find_item(hasher, question.ident) if question.ident is not None else None
    thumb = thumbnail(decode(photo.read_bytes())) if photo else None
    lang = next((hit.lang for hit in hits if hit.lang), None) or question.lang or hasher.understood(None)
    by_kind = {kind: [hit for hit in hits if hit.modality == kind] for kind in ("image", "text")}
    judged = {kind: judge(hasher.dataset, item, own) for kind, own in by_kind.items() if own}
    return Answer(question, lang, judged, item, thumb, labels=_labels(hasher, item))


def find_item(hasher: Hasher, ident: str) -> Item:
    """Find the item of an id; raises UnknownItem."""
    item = hasher.item(ident)
    if item is None:
        raise UnknownItem(f"no item '{ident}'", None, "give the id of an item of the data set")
    return item


def example_items(hasher: Hasher, count: int) -> list[Item]:
    """Choose query items evenly, all items where none is a query, from those with a photo if any has one."""
    items = hasher.dataset.items
    queries = [item for item in items if "query" in item.splits] or list(items)
    queries = [item for item in queries if item.image] or queries
    return [queries[n * len(queries) // count] for n in range(count)] if len(queries) > count else queries


def _labels(hasher: Hasher, item: Item | None) -> tuple[str, ...]:
    return label_names(hasher.dataset, item) if item else ()


def _targets(hasher: Hasher, to: str, apart: bool) -> list[str]:
    """What to search: apart, both kinds of results that there are."""
    return [kind for kind in ("image", "text") if hasher.kind(kind) == kind] if to == BOTH and apart else [to]
