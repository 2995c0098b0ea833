"""Answers to search queries, each result judged, for the page, its API and the sheet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

from cmrhash.data.items import Item
from cmrhash.encoders.pixels import BadImage, decode
from cmrhash.errors import DataError, UsageError
from cmrhash.search.hasher import Hasher
from cmrhash.search.judge import Judged, judge, label_names
from cmrhash.search.results import Hit
from cmrhash.show.html.thumbnails import thumbnail

BOTH = "both"
NO_PHOTO = "not a readable photo"


class UnknownItem(UsageError):
    """A query by an item that the data set does not have."""


@dataclass(frozen=True)
class Question:
    """A query: one of text, photo (bytes of a file) and ident (id of an item, by its "image" or first "text").

    lang, to, k: as in ``Hasher.search``.
    """

    text: str | None = None
    photo: bytes | None = None
    ident: str | None = None
    by: str = "image"
    lang: str | None = None
    to: str | None = None
    k: int = 10


@dataclass(frozen=True)
class Answer:
    """Results of a query.

    parts: "image", "text" or "both" -> results. item: of the query, with its labels; thumb: JPEG of the query photo.
    """

    question: Question
    lang: str
    parts: Mapping[str, Sequence[Judged]]
    item: Item | None = None
    thumb: bytes | None = None
    seconds: float = 0.0
    labels: tuple[str, ...] = ()


def ask(hasher: Hasher, question: Question, apart: bool = False) -> Answer:
    """Embed the query and search.

    apart: search images and texts separately, k results each, where both are wanted; a photo then searches both by
    default. Raises UsageError for an invalid query (``UnknownItem`` for an id), DataError for an unreadable photo.
    """
    start = perf_counter()
    lang, thumb, item = question.lang or hasher.understood(None), None, None
    if question.ident is not None:
        item = find_item(hasher, question.ident)
        to = question.to or (hasher.kind("image") if question.by == "text" else BOTH if apart else hasher.kind("text"))
        by = {"by": question.by, "lang": question.lang, "k": question.k}
        parts = {each: hasher.search_item(question.ident, to=each, **by) for each in _targets(hasher, to, apart)}  # type: ignore[arg-type]
    else:
        if question.photo is not None:
            try:
                image = decode(question.photo)
            except BadImage as bad:
                raise DataError(f"{NO_PHOTO} ({bad})", None, "give another file") from None
            vector, thumb = hasher.embed_image(image), thumbnail(image)
            to, lang = question.to or (BOTH if apart else hasher.kind("text")), hasher.understood(lang)
        else:
            text = question.text or ""
            lang = hasher.language(question.lang, text)
            vector, to = hasher.embed_text(text, lang), question.to or hasher.kind("image")
        parts = {each: hasher.nearest(vector, each, lang, question.k) for each in _targets(hasher, to, apart)}
    judged = {to: judge(hasher.dataset, item, hits) for to, hits in parts.items()}
    return Answer(question, lang, judged, item, thumb, perf_counter() - start, _labels(hasher, item))


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
    """Choose query items evenly, from those with a photo if any has one."""
    queries = [item for item in hasher.dataset.items if "query" in item.splits]
    queries = [item for item in queries if item.image] or queries
    return [queries[n * len(queries) // count] for n in range(count)] if len(queries) > count else queries


def _labels(hasher: Hasher, item: Item | None) -> tuple[str, ...]:
    return label_names(hasher.dataset, item) if item else ()


def _targets(hasher: Hasher, to: str, apart: bool) -> list[str]:
    """What to search: apart, both kinds of results that there are."""
    return [kind for kind in ("image", "text") if hasher.kind(kind) == kind] if to == BOTH and apart else [to]
