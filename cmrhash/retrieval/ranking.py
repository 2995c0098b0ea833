"""Order of search results: scores of real-valued queries against packed codes and embeddings. NumPy only.

A score is a similarity in [-1, 1], higher is nearer, rounded to 6 decimals so that equal results tie on every machine:

hamming      1 - 2 distance / bits of two packed codes
asymmetric   cosine of the real-valued query and the code as a vector of -1 and +1; nothing beside the code is stored
rerank       cosine of both embeddings, for the nearest N by Hamming distance
features     cosine of the encoder's features, without codes

Asymmetric scores come from a table of every byte's contribution (Jegou, Douze & Schmid, "Product Quantization for
Nearest Neighbor Search", TPAMI 2011), 256 numbers per byte of a code, so that a score is a sum of bits / 8 look-ups.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cmrhash.errors import UsageError, did_you_mean
from cmrhash.retrieval.codes import check_packed, describe
from cmrhash.retrieval.relevance import EXCLUDED

Floats = NDArray[np.float64]

HAMMING, ASYMMETRIC, RERANK, FEATURES = KINDS = ("hamming", "asymmetric", "rerank", "features")
COSINES = {  # what scores compare
    ASYMMETRIC: "the query's embedding and each code",
    RERANK: "the embeddings",
    FEATURES: "the image features",
}
SHORTLIST = 1000  # fewest candidates that are scored
OVERSAMPLING = 10  # candidates per result
DECIMALS = 6  # of a score
BLOCK_ROWS = 1 << 14  # rows whose cosine is computed at once
SIGNS = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little") * 2.0 - 1.0  # (256, 8)


@dataclass(frozen=True)
class Rank:
    """Order of results. kind: one of KINDS; shortlist: candidates of "rerank", None for the default."""

    kind: str
    shortlist: int | None = None

    @classmethod
    def parse(cls, value: str | Rank) -> Rank:
        """Parse "hamming", "asymmetric", "rerank", "rerank:N" or "features"; raises UsageError for another value.

        >>> Rank.parse("rerank:200")
        Rank(kind='rerank', shortlist=200)
        """
        if isinstance(value, Rank):
            return value
        kind, colon, count = value.partition(":") if isinstance(value, str) else (repr(value), "", "")
        if kind not in KINDS or (colon and kind != RERANK):
            fix = f"{did_you_mean(kind, KINDS)} choose hamming, asymmetric, rerank, rerank:N or features"
            raise UsageError(f"unknown ranking '{value}'", None, fix, option="rank")
        if colon and not re.fullmatch(r"0*[1-9][0-9]{0,8}", count):
            fix = "give the number of candidates, such as rerank:1000"
            raise UsageError(f"'{count}' in '{value}' is no whole number from 1", None, fix, option="rank")
        return cls(kind, int(count) if colon else None)

    def __str__(self) -> str:
        return self.kind if self.shortlist is None else f"{self.kind}:{self.shortlist}"

    @property
    def in_words(self) -> str:
        """What results are ordered by, for people who see a score and a Hamming distance.

        >>> Rank("rerank").in_words
        'ordered by score, the cosine of the embeddings, not by distance in bits'
        """
        if self.kind == HAMMING:
            return "ordered by Hamming distance; score: 1 - 2 distance / bits"
        return f"ordered by score, the cosine of {COSINES[self.kind]}, not by distance in bits"

    def candidates(self, k: int) -> int:
        """Number of nearest codes that are scored to find k results; at least k.

        >>> Rank("rerank").candidates(10), Rank("rerank").candidates(200), Rank("rerank", 50).candidates(200)
        (1000, 2000, 200)
        """
        return max(k, self.shortlist or max(SHORTLIST, OVERSAMPLING * k))


def hamming_scores(distances: NDArray[np.integer[Any]], bits: int) -> Floats:
    """Turn Hamming distances of any shape into scores, 1 - 2 distance / bits.

    >>> hamming_scores(np.array([0, 8, 16]), 16)
    array([ 1.,  0., -1.])
    """
    return rounded(1.0 - 2.0 * np.asarray(distances) / bits)


def asymmetric_scores(queries: NDArray[np.floating[Any]], packed: NDArray[np.uint8]) -> Floats:
    """Score packed codes (N, ceil(bits / 8)) uint8 by real-valued queries (Q, bits): (Q, N) float64.

    Equal codes get equal scores; a query of zeros scores 0 everywhere. Raises UsageError for shapes that do not fit,
    and as ``codes.check_packed`` does.

    >>> asymmetric_scores(np.array([[3.0, -4.0]]), np.array([[0b01], [0b11]], np.uint8))  # +1 -1 and +1 +1
    array([[ 0.989949, -0.141421]])
    """
    _check_real(queries)
    count, bits = queries.shape
    check_packed(packed, bits)
    width = packed.shape[1]
    filled = np.zeros((count, 8 * width))
    filled[:, :bits] = _unit(queries) / np.sqrt(bits)
    table = filled.reshape(count, width, 8) @ SIGNS.T  # (Q, bytes, 256)
    scores = np.zeros((count, len(packed)))
    for byte in range(width):
        scores += table[:, byte].take(packed[:, byte], axis=1)
    return rounded(scores)


def cosine_scores(queries: NDArray[np.floating[Any]], vectors: NDArray[np.floating[Any]]) -> Floats:
    """Cosine of queries (Q, D) and vectors (N, D): (Q, N) float64; a vector of zeros scores 0.

    >>> cosine_scores(np.array([[1.0, 0.0]]), np.array([[2.0, 0.0], [3.0, 3.0]]))
    array([[1.      , 0.707107]])
    """
    _check_real(queries)
    _check_real(vectors)
    if queries.shape[1] != vectors.shape[1]:
        raise UsageError(f"queries have {queries.shape[1]} dimensions, vectors {vectors.shape[1]}")
    unit, scores = _unit(queries), np.empty((len(queries), len(vectors)))
    for start in range(0, len(vectors), BLOCK_ROWS):
        scores[:, start : start + BLOCK_ROWS] = unit @ _unit(vectors[start : start + BLOCK_ROWS]).T
    return rounded(scores)


def reranked(scores: Floats, distances: NDArray[np.integer[Any]], shortlist: int) -> Floats:
    """Order all items (Q, N): the nearest ``shortlist`` by score, then the others by distance.

    Returns (Q, N) values that fall from the first to the last, equal ones tied. Everything at the distance of the last
    candidate is a candidate, too, because equal distances have no order.

    >>> reranked(np.array([[0.1, 0.9, 0.5]]), np.array([[0, 1, 2]]), shortlist=2)
    array([[ 0.1,  0.9, -4. ]])
    """
    count = min(shortlist, distances.shape[1])
    last = np.partition(distances, count - 1, axis=1)[:, count - 1 : count] if count else distances[:, :0]
    return np.where(distances <= last, scores, -2.0 - distances)


def score_histogram(
    scores: Floats, gains: NDArray[np.uint8], levels: int, part: NDArray[np.uint8] | None = None
) -> NDArray[np.int32]:
    """Count items (Q, N) by gain and place of their score: (Q, levels + 1, D) int32, as ``index.rank_histogram``.

    D: different scores, the highest first, and at least 1; items with equal scores share a place. gains: as
    ``Relevance.gains``; part: (N,) part of each item, from 0, for a result of (Q, P, levels + 1, D).

    >>> score_histogram(np.array([[0.5, 0.9, 0.5]]), np.array([[1, 0, 0]], np.uint8), levels=1)
    array([[[1, 1],
            [0, 1]]], dtype=int32)
    """
    order = np.argsort(-scores, axis=1, kind="stable")
    ranked = np.take_along_axis(scores, order, axis=1)
    place = np.zeros(scores.shape, np.int64)
    place[:, 1:] = np.cumsum(ranked[:, 1:] != ranked[:, :-1], axis=1)
    depth = int(place.max(initial=0)) + 1
    gain = np.take_along_axis(gains, order, axis=1)
    query = np.broadcast_to(np.arange(len(scores))[:, None], scores.shape)
    kept = gain != EXCLUDED
    shape: tuple[int, ...] = (len(scores), levels + 1, depth)
    group = query[kept]
    if part is not None:
        parts = int(part.max(initial=0)) + 1
        shape, group = (len(scores), parts, levels + 1, depth), group * parts + part[order][kept]
    cell = (group * (levels + 1) + gain[kept]) * depth + place[kept]
    return np.bincount(cell, minlength=math.prod(shape)).reshape(shape).astype(np.int32)


def rounded(scores: Floats) -> Floats:
    """Round to the decimals of a score, without a negative zero."""
    found: Floats = np.round(scores, DECIMALS) + 0.0
    return found


def _unit(vectors: NDArray[np.floating[Any]]) -> Floats:
    """Rows of length 1 in float64; zeros stay zeros."""
    exact: Floats = vectors.astype(np.float64)
    exact /= np.maximum(np.linalg.norm(exact, axis=1, keepdims=True), 1e-12)
    return exact


def _check_real(vectors: object) -> None:
    if not isinstance(vectors, np.ndarray) or vectors.dtype.kind != "f" or vectors.ndim != 2 or not vectors.shape[1]:
        raise UsageError(f"vectors must be a real (N, D) array, got {describe(vectors)}")
