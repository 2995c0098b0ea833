"""A question -> what was found, each hit with whether it is relevant, for the page, its API and the sheet alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

from cmrhash.data.items import Item
from cmrhash.encoders.pixels import BadImage, decode
from cmrhash.errors import DataError, UsageError
from cmrhash.search.hasher import Hasher, Hit
from cmrhash.show.photos import thumbnail
from cmrhash.show.server.thumbs import SIDE

BOTH = "both"
NO_PHOTO = "not a readable photo"


class UnknownItem(UsageError):
    """A question that names an item which the data set does not have."""


@dataclass(frozen=True)
class Question:
    """One of text, photo (a file's bytes) and ident (an item, asked by its "image" or first "text") is given.

    lang, to, k: as ``Hasher.search`` takes them.
    """

    text: str | None = None
    photo: bytes | None = None
    ident: str | None = None
    by: str = "image"
    lang: str | None = None
    to: str | None = None
    k: int = 10


@dataclass(frozen=True)
class Judged:
    """A hit. relevant: to the item that was asked by, None where nothing tells. shared: labels of both.

    itself: it is the very item that was asked by.
    """

    hit: Hit
    relevant: bool | None = None
    shared: tuple[str, ...] = ()
    itself: bool = False

    def as_json(self) -> dict[str, Any]:
        """What ``cmrhash search --json`` and the API say of it."""
        return {**self.hit.as_json(), "relevant": self.relevant, "itself": self.itself}


@dataclass(frozen=True)
class Answer:
    """What was found. parts: "image", "text" or "both" -> hits. item: that was asked by; thumb: JPEG of the photo."""

    question: Question
    lang: str
    parts: Mapping[str, Sequence[Judged]]
    item: Item | None = None
    thumb: bytes | None = None
    seconds: float = 0.0
    labels: tuple[str, ...] = field(default=())  # of the item


def ask(hasher: Hasher, question: Question, apart: bool = False) -> Answer:
    """Encode and search. apart: images and texts in two lists where both are sought, each of k hits, and both are
    sought for a photo unless it is said otherwise.

    Raises UsageError for what cannot be asked (``UnknownItem`` for an id), DataError for what is no photo.
    """
    start = perf_counter()
    lang, thumb, item = question.lang or hasher.langs[0], None, None
    if question.ident is not None:
        item = find_item(hasher, question.ident)
        to = question.to or ("image" if question.by == "text" else BOTH if apart else "text")
        by = {"by": question.by, "lang": question.lang, "k": question.k}
        parts = {each: hasher.search_item(question.ident, to=each, **by) for each in _targets(to, apart)}  # type: ignore[arg-type]
    else:
        if question.photo is not None:
            try:
                image = decode(question.photo)
            except BadImage as bad:
                raise DataError(f"{NO_PHOTO} ({bad})", None, "give another file") from None
            code, thumb = hasher.encode_image([image])[0], thumbnail(image, SIDE)
            to, lang = question.to or (BOTH if apart else "text"), hasher.language(lang)
        else:
            text = question.text or ""
            lang = hasher.language(question.lang, text)
            code, to = hasher.encode_text([text], lang)[0], question.to or "image"
        parts = {each: hasher.nearest(code, each, lang, question.k) for each in _targets(to, apart)}
    judged = {to: judge(hasher, hits, item) for to, hits in parts.items()}
    return Answer(question, lang, judged, item, thumb, perf_counter() - start, names(hasher, item))


def found(hasher: Hasher, question: Question, hits: Sequence[Hit], photo: Path | None = None) -> Answer:
    """The answer of a search that was done elsewhere. photo: the file that was asked by."""
    item = find_item(hasher, question.ident) if question.ident is not None else None
    thumb = thumbnail(decode(photo.read_bytes()), SIDE) if photo else None
    lang = next((hit.lang for hit in hits if hit.lang), None) or question.lang or hasher.langs[0]
    by_kind = {kind: [hit for hit in hits if hit.modality == kind] for kind in ("image", "text")}
    parts = {kind: judge(hasher, own, item) for kind, own in by_kind.items() if own}
    return Answer(question, lang, parts, item, thumb, labels=names(hasher, item))


def judge(hasher: Hasher, hits: Sequence[Hit], item: Item | None) -> list[Judged]:
    """By the relevance of the run: an item that shares a label, or the item's own counterpart."""
    if item is None or (hasher.dataset.relevance == "labels" and not item.labels):
        return [Judged(hit, itself=item is not None and hit.id == item.id) for hit in hits]
    mine = set(names(hasher, item))
    judged = []
    for hit in hits:
        shared = tuple(label for label in hit.labels if label in mine)
        relevant = bool(shared) if hasher.dataset.relevance == "labels" else hit.id == item.id
        judged.append(Judged(hit, relevant, shared, hit.id == item.id))
    return judged


def find_item(hasher: Hasher, ident: str) -> Item:
    """The item; raises UnknownItem."""
    item = hasher.item(ident)
    if item is None:
        raise UnknownItem(f"no item '{ident}'", None, "give the id of an item of the data set")
    return item


def names(hasher: Hasher, item: Item | None) -> tuple[str, ...]:
    """Names of the item's labels."""
    return tuple(hasher.dataset.classes[label] for label in item.labels) if item else ()


def starts(hasher: Hasher, count: int) -> list[Item]:
    """Query items to start from, evenly out of all that have a photo, or out of all if none has."""
    queries = [item for item in hasher.dataset.items if "query" in item.splits]
    queries = [item for item in queries if item.image] or queries
    return [queries[n * len(queries) // count] for n in range(count)] if len(queries) > count else queries


def _targets(to: str, apart: bool) -> tuple[str, ...]:
    return ("image", "text") if to == BOTH and apart else (to,)
