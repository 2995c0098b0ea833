"""Benchmarks of evaluation and search."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path as File
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cmrhash.bench import Case, Path
from cmrhash.bench.peers import PEERS, Peer, gathering
from cmrhash.retrieval.codes import pack, pad
from cmrhash.retrieval.index import BinaryIndex, rank_histogram
from cmrhash.retrieval.metrics import average_precision, items_relevant
from cmrhash.retrieval.relevance import Relevance

CLASSES, TOP = 255, 10
# The counting alone, compiled: distances by popcount, counted in a histogram by relevance.
# Eight tables, so that no increment waits for the previous one.
FUSED = """
#include <stdint.h>
#include <string.h>
enum { BLOCK = 1024 };
void count(const uint64_t *q, const uint64_t *d, const uint8_t *relevant, int64_t queries, int64_t rows, int32_t *out) {
    static int32_t table[8][2 * LEVELS];
    uint32_t cell[BLOCK];
    for (int64_t i = 0; i < queries; i++, q += WORDS, relevant += (rows + 7) / 8, out += 2 * LEVELS) {
        memset(table, 0, sizeof table);
        for (int64_t j = 0; j < rows; j += BLOCK) {
            int n = rows - j < BLOCK ? rows - j : BLOCK;
            for (int k = 0; k < n; k++) {
                uint32_t distance = 0;
                for (int w = 0; w < WORDS; w++) distance += __builtin_popcountll(q[w] ^ d[(j + k) * WORDS + w]);
                cell[k] = 2 * distance + ((relevant[(j + k) >> 3] >> (k & 7)) & 1);
            }
            for (int k = n; k % 8; k++) cell[k] = 2 * LEVELS;
            for (int k = 0; k < n; k += 8)
                for (int t = 0; t < 8; t++)
                    if (cell[k + t] < 2 * LEVELS) table[t][cell[k + t]]++;
        }
        for (int k = 0; k < 2 * LEVELS; k++) {
            out[k] = 0;
            for (int t = 0; t < 8; t++) out[k] += table[t][k];
        }
    }
}
"""


@contextmanager
def _evaluation(queries: int, items: int, bits: int, share: float, peer: Peer = gathering) -> Iterator[Case]:
    """mAP of random codes with 255 labels, about 4 per item. peer: published function that takes the naive way."""
    rng = np.random.default_rng(0)
    often = 1 / np.arange(1, CLASSES + 1)
    labels = [np.unique(rng.choice(CLASSES, n, p=often / often.sum())).tolist() for n in rng.integers(1, 8, 20000)]
    labels = [labels[n] for n in rng.integers(0, len(labels), queries + items)]
    packed = pack(rng.standard_normal((queries + items, bits), np.float32))
    asked = max(1, round(share * queries))

    onehot = np.zeros((queries + items, CLASSES), np.float32)
    for row, own in enumerate(labels):
        onehot[row, own] = 1
    signs = 2 * np.unpackbits(packed, axis=1, count=bits, bitorder="little").astype(np.float32) - 1

    def naive() -> NDArray[Any]:
        return peer(signs[:asked], signs[queries:], onehot[:asked], onehot[queries:])

    def ours() -> NDArray[np.float64]:
        relevance = Relevance.by_labels(labels[:queries], labels[queries:], CLASSES)
        hist = rank_histogram(packed[:queries], packed[queries:], bits, relevance, threads=1)
        return average_precision(*items_relevant(hist))

    # on a sample of the queries any order of ties is close to their mean
    with _fused(packed[:queries], packed[queries:], bits) as limit:
        yield Case(naive, ours, limit, asked / queries, tolerance=0.02)


@contextmanager
def _fused(query: NDArray[np.uint8], database: NDArray[np.uint8], bits: int) -> Iterator[Callable[[], float] | None]:
    """Compile and run the counting alone with the machine's C compiler; None without a compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    with tempfile.TemporaryDirectory() as folder:
        source, library = File(folder) / "fused.c", File(folder) / "fused.so"
        source.write_text(FUSED)
        q, d = (np.ascontiguousarray(pad(part)).view(np.uint64) for part in (query, database))
        sizes = [f"-DWORDS={q.shape[1]}", f"-DLEVELS={bits + 1}"]
        flags = ["-O3", "-march=native", "-shared", "-fPIC", *sizes, "-o", str(library)]
        if not compiler or subprocess.run([compiler, *flags, str(source)], capture_output=True).returncode:
            yield None
            return
        count = ctypes.CDLL(str(library)).count
        relevant = np.random.default_rng(1).integers(0, 256, (len(q), -(-len(d) // 8)), np.uint8)
        out = np.empty((len(q), bits + 1, 2), np.int32)

        def run() -> float:
            pointers = [ctypes.c_void_p(array.ctypes.data) for array in (q, d, relevant, out)]
            count(*pointers[:3], ctypes.c_int64(len(q)), ctypes.c_int64(len(d)), pointers[3])
            assert out.sum() == len(q) * len(d)
            return float(out.sum())

        yield run


@contextmanager
def _search(queries: int, items: int, bits: int, share: float, other: str = "NumPy") -> Iterator[Case]:
    """The ten nearest codes. other: way that ours is compared with, out of OTHERS."""
    rng = np.random.default_rng(0)
    packed = rng.integers(0, 256, (queries + items, bits // 8), np.uint8)
    query, database = np.ascontiguousarray(packed[:queries]), np.ascontiguousarray(packed[queries:])
    index = BinaryIndex.build(database, bits)
    words = database.view(np.uint64)
    search, asked = OTHERS[other](database), query[: round(share * queries)]

    def naive() -> NDArray[Any]:
        return np.sort(search(asked), axis=1).ravel()

    def ours() -> NDArray[np.int32]:
        return index.search(query, TOP)[0].ravel()

    def limit() -> float:
        return sum(float(np.bitwise_or.reduce(words, axis=None)) for _ in range(queries))

    yield Case(naive, ours, limit, share)


Search = Callable[[NDArray[np.uint8]], NDArray[Any]]  # packed queries (Q, bytes) -> distances (Q, TOP)


def _by_numpy(database: NDArray[np.uint8]) -> Search:
    words = database.view(np.uint64)

    def search(queries: NDArray[np.uint8]) -> NDArray[Any]:
        distances = (np.bitwise_count(words ^ code).sum(1) for code in queries.view(np.uint64))
        return np.stack([each[np.argsort(each)[:TOP]] for each in distances])

    return search


def _by_faiss(database: NDArray[np.uint8]) -> Search:
    import faiss

    index: Any = faiss.IndexBinaryFlat(8 * database.shape[1])
    index.add(database)
    return lambda queries: index.search(queries, TOP)[0]


def _by_usearch(database: NDArray[np.uint8]) -> Search:
    from usearch.index import MetricKind, search

    def found(queries: NDArray[np.uint8]) -> NDArray[Any]:
        matches = search(database, queries, TOP, MetricKind.Hamming, exact=True, threads=1)
        return np.asarray(matches.distances)

    return found


OTHERS: dict[str, Callable[[NDArray[np.uint8]], Search]] = {
    "NumPy": _by_numpy,
    "Faiss": _by_faiss,
    **({"usearch": _by_usearch} if find_spec("usearch") else {}),
}
FUSED_LIMIT = "counting alone in C, relevance given"
PATHS = {
    **{
        f"evaluation-{bits}": Path(
            f"mAP, 2,000 x 18,000 codes of {bits} bits, 255 labels; against a sort a query",
            FUSED_LIMIT,
            100,
            lambda bits=bits: _evaluation(2000, 18000, bits, 0.05),  # type: ignore[misc]
        )
        for bits in (16, 32, 48, 64, 128)
    },
    **{
        f"evaluation-{name}": Path(
            f"mAP, 2,000 x 18,000 codes of 64 bits, 255 labels; against {what}",
            FUSED_LIMIT,
            10,
            lambda peer=peer: _evaluation(2000, 18000, 64, 0.05, peer),  # type: ignore[misc]
        )
        for name, (what, peer) in PEERS.items()
    },
    "evaluation-1m": Path(
        "mAP, 100 queries in 1,000,000 codes of 64 bits, 255 labels; against a sort a query",
        FUSED_LIMIT,
        100,
        lambda: _evaluation(100, 1_000_000, 64, 0.03),
    ),
    "search": Path(
        "top 10 of 100 queries in 1,000,000 codes of 64 bits; against NumPy's popcount and argsort",
        "the codes read once a query",
        20,
        lambda: _search(100, 1_000_000, 64, 0.05),
    ),
    **{
        f"search-{other.lower()}": Path(
            f"top 10 of 100 queries in 1,000,000 codes of 64 bits; against the exact search of {other}",
            "the codes read once a query",
            1,
            lambda other=other: _search(100, 1_000_000, 64, 0.2, other),  # type: ignore[misc]
        )
        for other in OTHERS
        if other != "NumPy"
    },
}
