"""Faiss binary indexes: build, save, load, search; and the histogram that every metric is computed from.

The only file that imports Faiss. Faiss does not check its arguments (a wrong width passes under ``python -O``, a k
beyond the index comes back padded, a full disk goes unnoticed), so everything is checked here first.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import faiss as _faiss
import numpy as np
from numpy.typing import NDArray

from cmrhash.errors import CmrhashError, DamagedError, DataError, StaleError, UsageError
from cmrhash.retrieval import bounded
from cmrhash.retrieval.codes import check_bits, check_k, check_packed, check_radius, describe, pad
from cmrhash.retrieval.relevance import EXCLUDED, SLAB_ROWS, Relevance
from cmrhash.storage.files import move

faiss: Any = _faiss  # its own type stubs lack half of the calls below

# Query rows x database rows of one histogram step, as int32 distances: a step stays in the L2 cache.
BLOCK_BYTES = 1 << 19
TRAIN_ROWS = 64  # training codes per list of an approximate index
SLAB = 1 << 20  # rows added to an approximate index at once
AGAIN = "run `evaluate` again to rebuild it"


class BinaryIndex:
    """Exhaustive Hamming search over packed codes: ``IndexBinaryFlat`` with the counting search.

    Made by `build` or `load`. Results are ordered by (distance, row), so equal codes come in the order of the database
    and every search gives the same result. Large indexes are searched as ``bounded`` says, for the same
    rows in two thirds of the time.
    """

    def __init__(self, index: Any, bits: int) -> None:
        self._index = index
        self.bits = bits

    @classmethod
    def build(cls, codes_packed: NDArray[np.uint8], bits: int) -> BinaryIndex:
        """Index codes (N, ceil(bits / 8)) uint8, see ``codes.pack``; raises as ``codes.check_packed``."""
        check_packed(codes_packed, bits)
        return cls(_flat(pad(codes_packed)), int(bits))

    def __repr__(self) -> str:
        return f"BinaryIndex({len(self)} codes of {self.bits} bits)"

    def __len__(self) -> int:
        return int(self._index.ntotal)

    @property
    def packed(self) -> NDArray[np.uint8]:
        """Codes in the Faiss index, (N, ceil(bits / 8)) uint8; a copy."""
        return self.rows(0, len(self))

    def rows(self, start: int, stop: int) -> NDArray[np.uint8]:
        """Codes of the rows start ... stop - 1, (n, ceil(bits / 8)) uint8; a copy.

        Only these rows of a mapped file are read.
        """
        return self.stored[start:stop, : -(-self.bits // 8)].copy()

    @property
    def stored(self) -> NDArray[np.uint8]:
        """Padded codes in the index or the mapped file, (N, 8 * ceil(bits / 64)) uint8; not a copy."""
        width = _width(self.bits)
        if not len(self):
            return np.empty((0, width), np.uint8)
        rows: NDArray[np.uint8] = faiss.rev_swig_ptr(self._index.xb.data(), self._index.xb.size()).reshape(-1, width)
        return rows

    def search(self, packed_queries: NDArray[np.uint8], k: int) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """Find the k nearest codes of each query.

        packed_queries: (Q, ceil(bits / 8)) uint8. Returns distances (Q, k') int32 and rows (Q, k') int64 with
        k' = min(k, N), nearest first, equal distances by ascending row.
        Raises UsageError for k < 1, and as ``codes.check_packed`` does for the queries.
        """
        check_packed(packed_queries, self.bits, "query codes")
        found = min(check_k(k), len(self))
        if found == 0 or len(packed_queries) == 0:
            shape = (len(packed_queries), found)
            return np.empty(shape, np.int32), np.empty(shape, np.int64)
        if bounded.pays(len(self), found):
            queries, threads = pad(packed_queries), faiss.omp_get_max_threads()
            return bounded.nearest(self._index, self._sample, queries, found, threads, faiss.omp_set_num_threads)
        distances, rows = self._index.search(pad(packed_queries), found)
        return distances, rows

    def within(
        self, packed_queries: NDArray[np.uint8], radius: int
    ) -> list[tuple[NDArray[np.int32], NDArray[np.int64]]]:
        """Find all codes within a Hamming radius of each query (Q, ceil(bits / 8)) uint8.

        Returns distances (n,) int32 and rows (n,) int64 of each query, as `search` orders them. Raises UsageError for
        a radius that is no whole number from 0, and as ``codes.check_packed`` does for the queries.
        """
        check_packed(packed_queries, self.bits, "query codes")
        check_radius(radius)
        if not len(self) or not len(packed_queries):
            return [(np.empty(0, np.int32), np.empty(0, np.int64)) for _ in packed_queries]
        ends, distances, rows = self._index.range_search(pad(packed_queries), min(int(radius), self.bits) + 1)
        found = []
        for start, end in zip(ends[:-1].tolist(), ends[1:].tolist(), strict=True):
            order = np.lexsort((rows[start:end], distances[start:end]))
            found.append((distances[start:end][order].astype(np.int32), rows[start:end][order]))
        return found

    @cached_property
    def _sample(self) -> Any:
        return _flat(self.stored[bounded.sample_rows(len(self))])

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a file that ``faiss.read_index_binary`` also reads, whole or not at all.

        Raises CmrhashError when it cannot be written (no space, no such folder); nothing is left behind.
        """
        _save(self._index, Path(path))

    @classmethod
    def load(cls, path: str | os.PathLike[str], bits: int, mapped: bool = False) -> BinaryIndex:
        """Read what `save` or a `FlatWriter` wrote.

        mapped: leave the codes on disk, whose pages are read as searches touch them, for files larger than memory.
        The header must equal, byte for byte, the header of an index of these codes, so a damaged one never reaches
        Faiss' parser, which can allocate or hang on it. Flipped code bytes look like codes: the caller checks the
        sha256. Raises UsageError when there is no such file, StaleError when it holds codes of another width,
        DamagedError when it is not an index.
        """
        width = _width(bits)
        damaged = DamagedError("damaged or incomplete index file", path, AGAIN)
        try:
            data = np.memmap(path, np.uint8, "r") if mapped and os.path.getsize(path) else np.fromfile(path, np.uint8)
        except OSError as error:
            raise UsageError(f"cannot read the index ({(error.strerror or '').lower()})", path, AGAIN) from error
        header = len(_header(width, 0))
        if len(data) < header or data[:4].tobytes() != b"IBxF":
            raise damaged
        stored, stored_width = data[4:12].view("<i4").tolist()  # bits and bytes of a stored row
        if stored == 8 * stored_width != 8 * width and stored_width % 8 == 0:
            raise StaleError(f"the index has {stored}-bit rows, but {bits} bits need {8 * width}", path, AGAIN)
        rows, rest = divmod(len(data) - header, width)
        if rest or data[:header].tobytes() != _header(width, rows):
            raise damaged
        if mapped:
            index = faiss.read_index_binary(str(path), faiss.IO_FLAG_MMAP_IFC)
            index.use_heap = False
            return cls(index, int(bits))
        codes = data[header:].reshape(-1, width)
        used = -(-bits // 8)
        try:
            check_packed(codes[:, :used], bits, "stored codes")
        except DataError as error:
            raise damaged from error
        if codes[:, used:].any():
            raise damaged
        return cls(_flat(codes), int(bits))


class FlatWriter:
    """Writer of a `BinaryIndex` file, batch by batch in constant memory; a context manager."""

    def __init__(self, path: Path, bits: int) -> None:
        self.path, self.bits, self.rows = path, check_bits(bits), 0

    def __enter__(self) -> FlatWriter:
        self._file = self.path.open("wb")
        self._file.write(_header(_width(self.bits), 0))
        return self

    def add(self, packed: NDArray[np.uint8]) -> None:
        """Append codes (n, ceil(bits / 8)) uint8; raises as ``codes.check_packed``."""
        check_packed(packed, self.bits)
        self._file.write(pad(packed).data)
        self.rows += len(packed)

    def __exit__(self, *_: object) -> None:
        with self._file:
            self._file.seek(0)
            self._file.write(_header(_width(self.bits), self.rows))  # the number of rows is known only now
            self._file.flush()
            os.fsync(self._file.fileno())


class ApproximateIndex:
    """Approximate search by ``IndexBinaryIVF``: about 4 sqrt(N) lists, of which a search reads a few."""

    def __init__(self, index: Any, bits: int) -> None:
        self._index = index
        self.bits = bits

    @classmethod
    def build(cls, flat: BinaryIndex) -> ApproximateIndex:
        """Assign the rows of an exhaustive index, at least one, to lists."""
        count, width = len(flat), _width(flat.bits)
        lists = max(1, min(round(4 * count**0.5), count // TRAIN_ROWS))
        quantizer = faiss.IndexBinaryFlat(8 * width)
        index = faiss.IndexBinaryIVF(quantizer, 8 * width, lists)
        index.cp.max_points_per_centroid = TRAIN_ROWS
        index.cp.min_points_per_centroid = 1  # no warning for a small index
        index.train(flat.stored[np.linspace(0, count - 1, min(count, TRAIN_ROWS * lists)).astype(np.int64)])
        for start in range(0, count, SLAB):
            index.add(flat.stored[start : start + SLAB])
        return cls(index, flat.bits)

    def search(
        self, packed_queries: NDArray[np.uint8], k: int, probes: int
    ) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """Search ``probes`` lists per query; otherwise as `BinaryIndex.search`.

        Rows are -1 where these lists hold fewer than k codes.
        """
        check_packed(packed_queries, self.bits, "query codes")
        self._index.nprobe = min(probes, self._index.nlist)
        distances, rows = self._index.search(pad(packed_queries), min(check_k(k), int(self._index.ntotal)))
        return distances, rows

    def save(self, path: Path) -> None:
        """Write a file that ``faiss.read_index_binary`` also reads, as `BinaryIndex.save`."""
        _save(self._index, path)

    @classmethod
    def load(cls, path: Path, bits: int) -> ApproximateIndex:
        """Read a file of `save`; the caller has checked its sha256 before."""
        mapped = hasattr(faiss, "OnDiskInvertedLists")  # what maps them; Windows has none and reads the file
        index = faiss.read_index_binary(str(path), faiss.IO_FLAG_MMAP if mapped else 0)
        # no threads that prefetch the lists of each search: starting them takes 30 times as long as the search
        faiss.downcast_InvertedLists(index.invlists).prefetch_nthread = 0
        return cls(index, bits)


def distances_to(packed: NDArray[np.uint8], query_packed: NDArray[np.uint8], bits: int) -> NDArray[np.int32]:
    """Hamming distances (Q, N) of queries (Q, ceil(bits / 8)) and codes (N, ceil(bits / 8)) uint8.

    Raises as ``codes.check_packed``.
    """
    check_packed(packed, bits)
    check_packed(query_packed, bits, "query codes")
    query, database = pad(query_packed), pad(packed)
    distances = np.empty((len(query), len(database)), np.int32)
    if distances.size:
        ends = [faiss.swig_ptr(end) for end in (query, database)]
        faiss.hammings(*ends, len(query), len(database), query.shape[1], faiss.swig_ptr(distances))
    return distances


def rank_histogram(
    query_packed: NDArray[np.uint8],
    database_packed: NDArray[np.uint8],
    bits: int,
    relevance: Relevance,
    *,
    part: NDArray[np.uint8] | None = None,
    threads: int | None = None,
    block_bytes: int = BLOCK_BYTES,
    slab_rows: int = SLAB_ROWS,
) -> NDArray[np.int32]:
    """Count, for every query, the database rows at each gain and Hamming distance.

    query_packed (Q, ceil(bits / 8)), database_packed (N, ceil(bits / 8)) uint8; relevance of shape (Q, N).
    Returns hist (Q, G + 1, bits + 1) int32: hist[q, g, d] rows with gain g (0 = not relevant, else the number
    of shared labels) are at distance d from query q. Neither the Q x N distances nor an order is kept: beyond the
    result, memory does not grow with N. part: (N,) the part of the database, from 0, that each row is in; then the
    result is (Q, P, G + 1, bits + 1), a histogram per part. threads: default all cores. Raises UsageError for shapes
    that do not fit, and as ``codes.check_packed`` does.
    """
    check_packed(query_packed, bits, "query codes")
    check_packed(database_packed, bits, "database codes")
    queries, rows = len(query_packed), len(database_packed)
    if relevance.shape != (queries, rows):
        raise UsageError(f"relevance is for {relevance.shape} rows, codes are ({queries}, {rows})")
    threads = (os.cpu_count() or 1) if threads is None else threads
    if min(threads, block_bytes, slab_rows) < 1:
        raise UsageError(f"threads must be at least 1, got {threads}")
    if part is not None and (part.shape != (rows,) or part.dtype != np.uint8):
        raise UsageError(f"part must be a uint8 for each of {rows} database rows, got {describe(part)}")
    parts = 1 if part is None else int(part.max(initial=0)) + 1
    hist = np.zeros((queries, parts, relevance.levels + 1, bits + 1), np.int32)
    start = None if part is None else part * np.int32((bits + 1) * (EXCLUDED + 1))  # (N,) first cell of a row's part
    query_packed, database_packed = pad(query_packed), pad(database_packed)

    def work(task: tuple[int, int, int, int]) -> None:
        q0, q1, n0, n1 = task
        cells = None if start is None else start[n0:n1]
        _count(hist[q0:q1], query_packed[q0:q1], database_packed[n0:n1], cells, relevance, (q0, n0), block_bytes)

    # one Faiss thread in each worker, set inside it: OpenMP keeps the number per thread, the caller's stays
    with ThreadPoolExecutor(threads, initializer=faiss.omp_set_num_threads, initargs=(1,)) as pool:
        for n0 in range(0, rows, slab_rows):  # one by one: no two tasks ever write to the same rows of hist
            for _ in pool.map(work, _tasks(queries, threads, n0, min(n0 + slab_rows, rows))):
                pass
    return hist[:, 0] if part is None else hist


def _tasks(queries: int, threads: int, n0: int, n1: int) -> Iterator[tuple[int, int, int, int]]:
    """Split the queries into a few parts per thread: enough to balance, few enough to reuse buffers."""
    step = max(1, -(-queries // (4 * threads)))
    return ((q0, min(q0 + step, queries), n0, n1) for q0 in range(0, queries, step))


def _count(
    hist: NDArray[np.int32],
    query: NDArray[np.uint8],
    database: NDArray[np.uint8],
    start: NDArray[np.int32] | None,
    relevance: Relevance,
    origin: tuple[int, int],
    block_bytes: int,
) -> None:
    """Add the pairs of one task to ``hist`` (q, P, G + 1, bits + 1).

    start: (n,) first cell of the part of each database row, None for one part; origin: first query and database row.
    """
    (queries, width), rows = query.shape, len(database)
    parts, levels, distances = hist.shape[1:]
    step = min(queries, max(1, block_bytes // (4 * rows)))
    key = np.empty((step, rows), np.int32)
    counts = np.empty((step, parts, distances, EXCLUDED + 1), np.int32)
    pointers = [(faiss.swig_ptr(one), faiss.swig_ptr(cells)) for one, cells in zip(key, counts, strict=True)]
    for q0 in range(0, queries, step):
        count = min(step, queries - q0)
        gains = relevance.gains(origin[0] + q0, origin[0] + q0 + count, origin[1], origin[1] + rows)
        faiss.hammings(*map(faiss.swig_ptr, (query[q0:], database)), count, rows, width, pointers[0][0])
        # the cell of a pair in counts[query, part, distance, gain]
        np.multiply(key[:count], EXCLUDED + 1, out=key[:count])
        np.add(key[:count], gains, out=key[:count])
        if start is not None:
            np.add(key[:count], start, out=key[:count])
        for one, cells in pointers[:count]:
            faiss.ivec_hist(rows, one, parts * distances * (EXCLUDED + 1), cells)
        hist[q0 : q0 + count] += counts[:count, ..., :levels].swapaxes(2, 3)


def _width(bits: int) -> int:
    """Bytes of a stored row: whole 8-byte words."""
    return 8 * -(-check_bits(bits) // 64)


def _header(width: int, rows: int) -> bytes:
    """Header of the file of an exhaustive index: that of an empty index with these numbers filled in.

    Four bytes "IBxF", bits and width int32, rows int64, is_trained, metric int32, then how many bytes follow.
    """
    header = bytearray(faiss.serialize_index_binary(_flat(np.empty((0, width), np.uint8))))
    header[12:20] = rows.to_bytes(8, "little")
    header[-8:] = (rows * width).to_bytes(8, "little")
    return bytes(header)


def _save(index: Any, path: Path) -> None:
    data = memoryview(faiss.serialize_index_binary(index))
    # not write_index_binary: on a full disk it returns normally and leaves a truncated file
    part = path.with_name(f"{path.name}.part")
    try:
        with open(part, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            size = os.fstat(file.fileno()).st_size
        if size != data.nbytes:
            raise OSError(f"{size} of {data.nbytes} bytes written")
        move(part, path)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise CmrhashError(f"cannot save the index ({reason})", path, "check the folder and the free space") from error
    finally:
        with suppress(OSError):
            part.unlink()


def _flat(padded: NDArray[np.uint8]) -> Any:
    """Return an index over rows of whole 8-byte words, searched by counting: faster than the heap, stable."""
    index = faiss.IndexBinaryFlat(8 * padded.shape[1])
    index.use_heap = False
    if len(padded):
        index.add(np.ascontiguousarray(padded))
    return index
