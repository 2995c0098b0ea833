"""Relevance of database rows to queries, computed once. Pure NumPy.

Gains depend on labels or items only, so one `Relevance` serves every bit length, method, language and direction with
the same rows. They are the most expensive part of an evaluation; reusing them halves its time.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cmrhash.errors import DataError, UsageError

MAX_GAIN = 15  # more shared labels count as this many
EXCLUDED = MAX_GAIN + 1  # the gain of a pair that is left out
CACHE_BYTES = 1 << 28  # keep all gains (1 byte per pair) up to 256 MB, else compute them block by block
SLAB_ROWS = 1 << 15  # database rows of one pass, which bounds the label rows held at a time

# (q0, q1, n0, n1, out): write the gains of a block of pairs to out (q1 - q0, n1 - n0) uint8
Block = Callable[[int, int, int, int, NDArray[np.uint8]], None]


class Relevance:
    """Gains of database rows for queries: 0 = not relevant, else the number of shared labels.

    Made by `by_labels` or `by_pairs`. Independent of codes and bits: one object serves all bit lengths, languages and
    directions with the same rows. Safe to share between threads.
    """

    def __init__(
        self, shape: tuple[int, int], levels: int, block: Block, exclude: NDArray[np.integer[Any]] | None
    ) -> None:
        fits = exclude is None or (np.shape(exclude) == shape[:1] and np.asarray(exclude).dtype.kind in "iu")
        if not fits:
            raise UsageError(f"exclude must be one database row for each of {shape[0]} queries, -1 for none")
        if exclude is not None and len(exclude) and (exclude.min() < -1 or exclude.max() >= shape[1]):
            raise UsageError(f"exclude has rows outside -1 ... {shape[1] - 1}")
        self.shape, self.levels, self._exclude = shape, levels, exclude
        self._block = block
        self._lock = threading.Lock()
        self._all: NDArray[np.uint8] | None = None
        self._asked = 0  # pairs, summed over all calls

    @classmethod
    def by_labels(
        cls,
        query_labels: Sequence[Sequence[int]],
        database_labels: Sequence[Sequence[int]],
        classes: int,
        exclude: NDArray[np.integer[Any]] | None = None,
    ) -> Relevance:
        """Relevance by labels: gain = number of shared labels, at most 15.

        Labels: class ids in 0 ... classes - 1 of each row; a repeated id counts once; a row without labels is relevant
        to nothing. exclude: (Q,) database row that is the query itself and is left out, -1 for none (image to image).
        Raises DataError for an id outside the range.
        """
        query = _Labels(query_labels, classes, "query")
        database = _Labels(database_labels, classes, "database")
        levels = max(1, min(MAX_GAIN, query.most, database.most))
        return cls((query.rows, database.rows), levels, _SharedLabels(query, database), exclude)

    @classmethod
    def by_pairs(
        cls,
        query_item: NDArray[np.integer[Any]],
        database_item: NDArray[np.integer[Any]],
        exclude: NDArray[np.integer[Any]] | None = None,
    ) -> Relevance:
        """Relevance by pairs: gain 1 for the same item, as an image and its captions. (Q,) and (N,) item ids."""
        for item in (query_item, database_item):
            if np.ndim(item) != 1 or np.asarray(item).dtype.kind not in "iu":
                raise UsageError("items must be 1-D arrays of whole numbers")

        def block(q0: int, q1: int, n0: int, n1: int, out: NDArray[np.uint8]) -> None:
            np.equal(query_item[q0:q1, None], database_item[None, n0:n1], out=out.view(np.bool_))

        return cls((len(query_item), len(database_item)), 1, block, exclude)

    def gains(self, q0: int, q1: int, n0: int, n1: int) -> NDArray[np.uint8]:
        """Gains of queries q0 ... q1 - 1 on database rows n0 ... n1 - 1, (q1 - q0, n1 - n0) uint8, read-only.

        0 = not relevant, 1 ... `levels`, or EXCLUDED. From the second pass over all pairs on they are kept if they fit
        into 256 MB; a single pass is faster without allocating so much memory.
        """
        queries, rows = self.shape
        with self._lock:
            self._asked += (q1 - q0) * (n1 - n0)
        if self._asked <= queries * rows or queries * rows > CACHE_BYTES:
            out = np.empty((q1 - q0, n1 - n0), np.uint8)
            self._fill(q0, q1, n0, n1, out)
            out.flags.writeable = False
            return out
        with self._lock:
            if self._all is None:
                table = np.empty(self.shape, np.uint8)
                for start in range(0, rows, SLAB_ROWS):
                    stop = min(start + SLAB_ROWS, rows)
                    self._fill(0, queries, start, stop, table[:, start:stop])
                table.flags.writeable = False
                self._all = table
        return self._all[q0:q1, n0:n1]

    def _fill(self, q0: int, q1: int, n0: int, n1: int, out: NDArray[np.uint8]) -> None:
        self._block(q0, q1, n0, n1, out)
        if self._exclude is not None:
            own = self._exclude[q0:q1]
            here = np.flatnonzero((own >= n0) & (own < n1))
            out[here, own[here] - n0] = EXCLUDED


class _Labels:
    """Label lists as one flat array, row by row, without repeats."""

    def __init__(self, labels: Sequence[Sequence[int]], classes: int, name: str) -> None:
        try:
            self.rows, self.classes = len(labels), classes
            row = np.repeat(np.arange(self.rows), [len(row) for row in labels])
            flat = np.array(list(chain.from_iterable(labels)) or np.empty(0, np.int64))
        except (TypeError, ValueError):
            raise DataError(f"{name} labels must be a list of class ids for every row") from None
        if flat.dtype.kind not in "iu":
            raise DataError(f"{name} labels must be class ids, whole numbers; found {flat.dtype}")
        wrong = np.flatnonzero((flat < 0) | (flat >= classes))
        if len(wrong):
            first = ", ".join(f"{flat[i]} in row {row[i]}" for i in wrong[:5])
            raise DataError(f"{len(wrong)} {name} labels outside 0 ... {classes - 1}: {first}")
        key = row * classes + flat.astype(np.int64)
        if not (np.diff(key) > 0).all():  # most label lists come sorted and without repeats
            key = np.unique(key)
        self.row, self.label = key // max(1, classes), key % max(1, classes)
        # the labels of row i are label[start[i] : start[i + 1]]
        self.start = np.searchsorted(self.row, np.arange(self.rows + 1))
        self.most = int(np.diff(self.start).max(initial=0))


class _SharedLabels:
    """Gains by labels: one row of bytes per label over the database; a query sums the rows of its labels.

    Needs no Q x N x classes array and no matrix product: a query has few labels, and a row is added at memory speed.
    """

    def __init__(self, query: _Labels, database: _Labels) -> None:
        self.query, self.database = query, database
        self.exact = min(query.most, database.most) <= MAX_GAIN
        self._lock = threading.Lock()
        self._planes: tuple[int, int, NDArray[np.uint8]] = (0, 0, np.empty((query.classes, 0), np.uint8))

    def __call__(self, q0: int, q1: int, n0: int, n1: int, out: NDArray[np.uint8]) -> None:
        planes = self._planes_of(n0, n1)
        start = self.query.start[q0 : q1 + 1]
        label = self.query.label[start[0] : start[-1]].tolist()
        ends = (start - start[0]).tolist()
        for row, i0, i1 in zip(out, ends[:-1], ends[1:], strict=True):
            row[:] = planes[label[i0]] if i1 > i0 else 0
            for one in label[i0 + 1 : i1]:
                np.add(row, planes[one], out=row)
                if not self.exact:
                    np.minimum(row, MAX_GAIN, out=row)

    def _planes_of(self, n0: int, n1: int) -> NDArray[np.uint8]:
        """Label rows of a slab, (classes, n1 - n0) uint8, 1 = has the label; kept until the slab changes."""
        with self._lock:
            if self._planes[:2] != (n0, n1):
                first, last = self.database.start[n0], self.database.start[n1]
                planes = np.zeros((self.database.classes, n1 - n0), np.uint8)
                planes[self.database.label[first:last], self.database.row[first:last] - n0] = 1
                self._planes = (n0, n1, planes)
            return self._planes[2]
