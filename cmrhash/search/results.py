"""Queries as vectors, and the results of a search."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from cmrhash.errors import UsageError
from cmrhash.retrieval.codes import check_k, describe, pack
from cmrhash.retrieval.ranking import Rank
from cmrhash.search.embedder import is_photo

K = 10  # results by default


@dataclass(frozen=True)
class Hit:
    """A search result.

    rank: position from 1. distance: Hamming, in bits. score: similarity in [-1, 1] that orders the results, see
    ``retrieval.ranking``. modality: "image" or "text"; lang: of the caption, which for an image is one of its own.
    labels: names of the item's classes. image: path below the data set's root.
    """

    rank: int
    distance: int
    score: float
    id: str
    modality: str
    lang: str | None
    caption: str | None
    labels: tuple[str, ...]
    image: str | None

    def as_json(self) -> dict[str, Any]:
        """Fields that ``cmrhash search --json`` prints."""
        return asdict(self)


@dataclass(frozen=True)
class Wanted:
    """Results that a search wants.

    k: their number, None for the default: K, or all within ``radius`` bits. rank: None for that of the hasher. where:
    conditions on the items, see ``search.filters``.
    """

    k: int | None = None
    rank: Rank | None = None
    radius: int | None = None
    where: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        k: int | None = None,
        rank: str | Rank | None = None,
        radius: int | None = None,
        where: str | Sequence[str] = (),
    ) -> Wanted:
        """Check and parse the values; raises UsageError."""
        conditions = (where,) if isinstance(where, str) else tuple(where)
        chosen = k if k is None else check_k(k)
        return cls(chosen, None if rank is None else Rank.parse(rank), radius, conditions)

    @property
    def most(self) -> int | None:
        """Most results; None for all."""
        return K if self.k is None and self.radius is None else self.k


class Limits(TypedDict, total=False):
    """Keywords of ``Hasher.search`` that say which results are wanted."""

    k: int | None
    rank: str | Rank | None
    radius: int | None
    where: str | Sequence[str]


class How(Limits, total=False):
    """All keywords of ``Hasher.search``."""

    lang: str | None
    to: str | None


@dataclass(frozen=True)
class Vectors:
    """Q queries as numbers.

    packed: (Q, ceil(bits / 8)) uint8. embedding: (Q, bits) float32, None if only the codes are known. features: (Q, D)
    float32 of the image encoder, None unless the queries are photos.
    """

    packed: NDArray[np.uint8]
    embedding: NDArray[np.float32] | None = None
    features: NDArray[np.float32] | None = None

    @classmethod
    def of(cls, embedding: NDArray[np.float32], features: NDArray[np.float32] | None = None) -> Vectors:
        """Hash embeddings (Q, bits), real numbers."""
        return cls(pack(embedding), embedding, features)

    def __len__(self) -> int:
        return len(self.packed)


def kind_of(query: object) -> str:
    """Kind of a query: "photo", "text", or type and shape of a packed code or embedding; UsageError for others."""
    if isinstance(query, np.ndarray) and query.ndim == 1:
        return describe(query)
    if is_photo(query):
        return "photo"
    if isinstance(query, str):
        return "text"
    fix = "give a sentence, a photo, packed codes, embeddings, or a list of these"
    raise UsageError(f"a query is a {type(query).__name__}", None, fix)


def blended(wanted: Sequence[Vectors], unwanted: Sequence[Vectors]) -> NDArray[np.float32]:
    """Mean of the wanted unit embeddings minus the mean of the unwanted ones, (bits,) float32, at unit length.

    Raises UsageError without anything wanted, for packed codes, and if nothing is left.
    """
    if not wanted:
        raise UsageError("nothing to search for", None, "give a sentence, a photo, or items that the results are like")
    mean = _mean(wanted) - (_mean(unwanted) if unwanted else 0.0)
    length = float(np.linalg.norm(mean))
    if length < 1e-6:
        raise UsageError("the wanted and the unwanted cancel each other", None, "give other queries")
    found: NDArray[np.float32] = (mean / length).astype(np.float32)
    return found


def _mean(vectors: Sequence[Vectors]) -> NDArray[np.float64]:
    embeddings = [of.embedding[0].astype(np.float64) for of in vectors if of.embedding is not None]
    if len(embeddings) < len(vectors):
        raise UsageError("packed codes hold no real numbers", None, "give embeddings, sentences or photos")
    mean: NDArray[np.float64] = np.mean([x / max(float(np.linalg.norm(x)), 1e-12) for x in embeddings], axis=0)
    return mean
