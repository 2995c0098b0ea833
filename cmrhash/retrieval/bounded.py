"""Exact search bounded by a sample: the k-th distance in it is an upper bound of the k-th distance of all codes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

Found = tuple[NDArray[np.int32], NDArray[np.int64]]  # distances and rows, each (Q, k)

LARGE = 300_000  # codes from which it pays
SAMPLE = 1 << 14  # codes of the sample
MOST_SHARE = 256  # it pays up to k = SAMPLE / 256: for a larger k too many codes are within the bound
GROUP = 16  # queries per range search
ROW_BITS = 40  # of a sort key: the row below the distance


def pays(codes: int, k: int) -> bool:
    """Whether a bounded search is faster than a plain one."""
    return codes >= LARGE and k <= SAMPLE // MOST_SHARE


def sample_rows(codes: int) -> NDArray[np.int64]:
    """Rows of a sample, about SAMPLE of them, ascending."""
    return np.unique(np.random.default_rng(0).integers(0, codes, SAMPLE))


def nearest(
    index: Any, sample: Any, queries: NDArray[np.uint8], k: int, threads: int, limit: Callable[[int], None]
) -> Found:
    """The k nearest codes of padded queries (Q, bytes), by (distance, row).

    index, sample: Faiss' flat binary indexes of all codes and of the sample; limit: sets Faiss' threads in a thread.
    """
    distances, rows = np.empty((len(queries), k), np.int32), np.empty((len(queries), k), np.int64)

    def work(task: tuple[int, NDArray[np.int64]]) -> None:
        bound, of = task
        distances[of], rows[of] = _within(index, queries[of], bound, k)

    tasks = list(_tasks(sample, queries, k))
    if min(len(tasks), threads) < 2:
        for task in tasks:
            work(task)
        return distances, rows
    with ThreadPoolExecutor(min(len(tasks), threads), initializer=limit, initargs=(1,)) as pool:
        for _ in pool.map(work, tasks):
            pass
    return distances, rows


def _tasks(sample: Any, queries: NDArray[np.uint8], k: int) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """Queries in groups of one bound: (bound, numbers of the queries); the bound is -1 where ties are too many."""
    found, _ = sample.search(queries, 4 * k)
    bounds = np.where(found[:, -1] == found[:, k - 1], -1, found[:, k - 1])
    for bound in np.unique(bounds):
        of = np.flatnonzero(bounds == bound)
        for at in range(0, len(of), GROUP):
            yield int(bound), of[at : at + GROUP]


def _within(index: Any, queries: NDArray[np.uint8], bound: int, k: int) -> Found:
    """The k nearest of queries that have k codes up to a distance; -1: any distance."""
    if bound < 0:
        found: Found = index.search(queries, k)
        return found
    starts, distances, rows = index.range_search(queries, bound + 1)
    keys = distances.astype(np.int64) << ROW_BITS | rows
    best = np.empty((len(queries), k), np.int64)
    for at, (start, stop) in enumerate(pairwise(starts.tolist())):
        best[at] = np.sort(np.partition(keys[start:stop], k - 1)[:k])
    return (best >> ROW_BITS).astype(np.int32), best & ((1 << ROW_BITS) - 1)
