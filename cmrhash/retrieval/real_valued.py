"""Metrics of real-valued scores, exact under ties: average precision and the nearest relevant item. Pure NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cmrhash.errors import DataError, UsageError
from cmrhash.retrieval.codes import describe
from cmrhash.retrieval.metrics import Counts, Floats, expected_precision, prefix_sums, ratio
from cmrhash.retrieval.relevance import EXCLUDED


def figures(similarity: NDArray[np.floating[Any]], gains: NDArray[Any]) -> tuple[Floats, Counts, Counts]:
    """Average precision over the whole ranking, and counts around the nearest relevant item as `metrics.hit_at` takes.

    similarity: (Q, N) float32 or float64, higher = nearer; gains: (Q, N), 0 = not relevant, EXCLUDED = left out.
    Returns the expected AP (Q,), NaN for a query without a relevant item, and (items, relevant), (Q, 2) int64 each:
    nearer items, then items with the score of the nearest relevant one. Raises DataError for NaN or infinity,
    UsageError for other dtypes or shapes.

    >>> figures(np.array([[0.9, 0.5, 0.5]]), np.array([[1, 1, 0]]))
    (array([0.91666667]), array([[0, 1]]), array([[0, 1]]))
    """
    _check(similarity, gains)
    harmonic = prefix_sums(1.0 / np.arange(1, similarity.shape[1] + 1))
    sums, total = np.zeros(len(similarity)), np.zeros(len(similarity), np.int64)
    nearest = np.zeros((2, len(similarity), 2), np.int64)  # items, relevant
    for q, (scores, gain) in enumerate(zip(similarity, gains, strict=True)):
        key, related = 0.0 - scores, gain > 0  # the key falls with nearness and is never -0.0
        if (excluded := gain == EXCLUDED).any():
            key, related = key[~excluded], related[~excluded]
        total[q] = np.count_nonzero(related)
        if not total[q]:
            nearest[0, q, 0] = len(key)
            continue
        n, r, before, found = _tie_groups(*_ranked(key, related))
        value = (found + 1) / (before + 1)  # precision at the item of a group of one
        tied = np.flatnonzero(n > 1)
        value[tied] = expected_precision(n[tied], r[tied], n[tied], before[tied], found[tied], harmonic)
        sums[q] = value.sum()
        nearest[:, q] = (before[0], n[0]), (0, r[0])
    return ratio(sums, total), nearest[0], nearest[1]


def _ranked(key: NDArray[Any], related: NDArray[np.bool_]) -> tuple[NDArray[Any], NDArray[Any], Counts]:
    """Sort keys (N,); also the keys of the related items (R,), and for each the keys below it, at its first occurrence.

    A float32 below 2 in size leaves one of its 32 bits free. It takes the relevance, so that one sort does it all: by
    halves, as NumPy sorts 16 bits by counting. Related items come first among equal keys.
    """
    if key.dtype != np.float32 or np.abs(key).max() >= 2:
        values = np.sort(key[related])
        key = np.sort(key)
        return key, values, np.searchsorted(key, values)
    bits = key.view(np.int32)
    bits ^= (bits >> 31) & 0x7FFFFFFF  # whole numbers in the order of the floats, from -2^30 to 2^30
    bits <<= 1
    bits |= ~related
    order = np.argsort((bits & 0xFFFF).astype(np.uint16), kind="stable")
    bits = bits[order]
    bits = bits[np.argsort((bits >> 16).astype(np.int16), kind="stable")]
    before = np.flatnonzero((bits & 1) == 0)
    bits >>= 1
    return bits, bits[before], before


def _tie_groups(key: NDArray[Any], related: NDArray[Any], before: Counts) -> tuple[Counts, Counts, Counts, Counts]:
    """Group equal keys of ``_ranked``, R > 0: their items, relevant ones, items before, and relevant ones before."""
    found = np.flatnonzero(np.concatenate(([True], related[1:] != related[:-1])))
    value, r, before = related[found], np.diff(found, append=len(related)), before[found]
    n = r.copy()
    wider = np.flatnonzero(key.take(before + r, mode="clip") == value)  # irrelevant items tie as well
    n[wider] = np.searchsorted(key, value[wider], "right") - before[wider]
    return n, r, before, found


def _check(similarity: NDArray[Any], gains: NDArray[Any]) -> None:
    floats = isinstance(similarity, np.ndarray) and similarity.dtype in (np.float32, np.float64)
    if not floats or similarity.ndim != 2 or np.shape(gains) != similarity.shape:
        got = f"{describe(similarity)} and {describe(gains)}"
        raise UsageError(f"scores must be (Q, N) float32 or float64 and gains of their shape, got {got}")
    if not np.isfinite(similarity).all():
        row = int(np.argmin(np.isfinite(similarity).all(axis=1)))
        raise DataError(f"similarities with NaN or infinite values, first in query {row}")
