"""Queries as vectors, and the results of a search."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cmrhash.retrieval.codes import pack


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
