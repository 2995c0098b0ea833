"""Calls that nobody should make, or hardly anybody does: what has to come of each, and what NumPy and Faiss alone do.

Run as a script it prints what became of them, one line of JSON a call: ``python -O misuse.py ours``, or ``naive``.
"""

from __future__ import annotations

import atexit
import json
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import faiss
import numpy as np
from slow_metrics import average_precision_ranked

from cmrhash.data.items import ImageTextDataset, Item, check, with_relevance
from cmrhash.errors import CmrhashError
from cmrhash.features.file import read_features
from cmrhash.retrieval import metrics, real_valued
from cmrhash.retrieval.codes import Codes, collapse, pack, pad, unpack
from cmrhash.retrieval.index import BinaryIndex, rank_histogram
from cmrhash.retrieval.relevance import Relevance
from cmrhash.storage.hdf5 import read_sealed

RIGHT = "right"


@dataclass(frozen=True)
class Misuse:
    """what: in words. expected: the class of the error, or RIGHT for a call that returns True because its answer is
    right. naive: the same without cmrhash, where that is one call.
    """

    what: str
    expected: str
    ours: Callable[[], object]
    naive: Callable[[], object] | None = None


def outcome(call: Callable[[], object]) -> str:
    """RIGHT, the class of a typed one-line error, or what else came of it."""
    try:
        found = call()
    except CmrhashError as error:
        words = str(error)
        return type(error).__name__ if words and "\n" not in words else f"badly said: {words}"
    except Exception as error:
        return f"untyped {type(error).__name__}: {error}"
    return RIGHT if found is True else f"silently {found!r}"


def main() -> None:
    for misuse in CALLS:
        call = misuse.ours if sys.argv[1] == "ours" else misuse.naive
        if call:
            print(json.dumps([misuse.what, outcome(call)]), flush=True)


# ---------------------------------------------------------------------------------------------- codes

X = np.random.default_rng(0).standard_normal((6, 32)).astype(np.float32)
CODES = np.packbits(X >= 0, axis=1, bitorder="little")  # (6, 4)
ONE_BIT_MORE = CODES | np.array([0, 0, 0, 128], np.uint8)  # set beyond bit 30


def same(found, expected):
    return bool(np.array_equal(found, expected))


def having(value):
    x = X.copy()
    x[3, 2] = value
    return x


def by_numpy(x):
    return np.packbits(x >= 0, axis=1, bitorder="little")


PACKING = [
    ("NaN", having(np.nan), "DataError"),
    ("infinity", having(np.inf), "DataError"),
    ("float64 that float32 cannot hold", having(np.nan).astype(np.float64) * 1e300, "DataError"),
    ("one row as a vector", X[0], "UsageError"),
    ("three axes", X[None], "UsageError"),
    ("no bits", X[:, :0], "UsageError"),
    ("bits instead of embeddings", X >= 0, "UsageError"),
    ("complex numbers", X + 1j, "UsageError"),
    ("objects", X.astype(object), "UsageError"),
    ("words", np.array([["a", "b"]]), "UsageError"),
    ("a list", X.tolist(), "UsageError"),
]
WRONG_BITS = [
    ("0", 0),
    ("-8", -8),
    ("a float", 32.0),
    ("true", True),
    ("a word", "32"),
    ("none", None),
    ("64 of 4 bytes", 64),
]

CODE_CALLS = [
    *(Misuse(f"pack {what}", cls, lambda x=x: pack(x), lambda x=x: by_numpy(x)) for what, x, cls in PACKING),
    Misuse("pack rows the wrong way round in memory", RIGHT, lambda: same(pack(np.asfortranarray(X)), CODES)),
    Misuse("pack whole numbers", RIGHT, lambda: same(unpack(pack((X * 9).astype(int)), 32), (X * 9).astype(int) >= 0)),
    Misuse("pack 30 bits", RIGHT, lambda: same(unpack(pack(X[:, :30]), 30), X[:, :30] >= 0)),
    Misuse("pack no rows", RIGHT, lambda: pack(X[:0]).shape == (0, 4)),
    Misuse("codes with bits beyond the last", "DataError", lambda: unpack(ONE_BIT_MORE, 30)),
    Misuse("codes of whole numbers", "UsageError", lambda: Codes(CODES.astype(np.int64), 32, np.arange(6))),
    Misuse("fewer items than codes", "UsageError", lambda: Codes(CODES, 32, np.arange(5))),
    Misuse("items that are no whole numbers", "UsageError", lambda: Codes(CODES, 32, np.arange(6.0))),
    Misuse("collapse of one code", "DataError", lambda: collapse(CODES[:1], 32)),
    Misuse("collapse of one code many times", RIGHT, lambda: collapse(CODES[[0] * 99], 32).collapsed),
]

# ---------------------------------------------------------------------------------------------- Faiss

INDEX = BinaryIndex.build(CODES, 32)
EMPTY = BinaryIndex.build(CODES[:0], 32)
FAR = np.bitwise_count(CODES[:, None] ^ CODES[None]).sum(2)  # (6, 6)
QUERIES = [
    ("narrower", CODES[:, :3]),
    ("wider", np.repeat(CODES, 2, axis=1)),
    ("a vector", CODES[0]),
    ("three axes", CODES[None]),
    ("whole numbers", CODES.astype(np.int64)),
    ("floats", CODES.astype(np.float32)),
    ("bits", X >= 0),
    ("a list", CODES.tolist()),
    ("nothing", None),
]


GOOD_KS = [
    ("of NumPy", np.int64(3), 3),
    ("beyond the index", 7, 6),
    ("beyond memory", 10**12, 6),
    ("beyond int64", 10**30, 6),
]


def flat(codes=CODES, bits=32):
    index = faiss.IndexBinaryFlat(bits)
    index.add(codes)
    return index


def nearest(answer, rows=6, k=3):
    """Whether distances are the k smallest of each query, and rows those at these distances."""
    distances, found = answer
    rightly = found.shape == (rows, k) and (found >= 0).all()
    return bool(
        rightly
        and same(distances, np.sort(FAR[:rows], axis=1)[:, :k])
        and same(distances, np.take_along_axis(FAR[:rows], found, 1))
    )


def histogram(query=CODES, database=CODES, relevance=None, **more):
    return rank_histogram(query, database, 32, relevance or Relevance.by_pairs(np.arange(6), np.arange(6)), **more)


FAISS_CALLS = [
    *(
        Misuse(f"{what} bits", "UsageError", lambda b=b: BinaryIndex.build(CODES, b), lambda b=b: flat(bits=b))
        for what, b in WRONG_BITS
    ),
    Misuse(
        "30 bits",
        RIGHT,
        lambda: len(BinaryIndex.build(pack(X[:, :30]), 30)) == 6,
        lambda: flat(by_numpy(X[:, :30]), 30).ntotal == 6,
    ),
    Misuse(
        "index with bits beyond the last",
        "DataError",
        lambda: BinaryIndex.build(ONE_BIT_MORE, 30),
        lambda: flat(ONE_BIT_MORE),
    ),
    *(
        Misuse(f"queries: {what}", "UsageError", lambda q=q: INDEX.search(q, 1), lambda q=q: flat().search(q, 1))
        for what, q in QUERIES
    ),
    *(
        Misuse(f"k = {k!r}", "UsageError", lambda k=k: INDEX.search(CODES, k), lambda k=k: flat().search(CODES, k))
        for k in (0, -1, 1.5, "3", None, True)
    ),
    *(
        Misuse(
            f"k {what}",
            RIGHT,
            lambda k=k, found=found: nearest(INDEX.search(CODES, k), k=found),
            lambda k=k, found=found: nearest(flat().search(CODES, k), k=found),
        )
        for what, k, found in GOOD_KS
    ),
    Misuse(
        "search an empty index",
        RIGHT,
        lambda: EMPTY.search(CODES, 3)[1].shape == (6, 0),
        lambda: flat(CODES[:0]).search(CODES, 3)[1].shape == (6, 0),
    ),
    Misuse(
        "search without queries",
        RIGHT,
        lambda: nearest(INDEX.search(CODES[:0], 3), 0),
        lambda: nearest(flat().search(CODES[:0], 3), 0),
    ),
    Misuse(
        "queries that lie apart in memory",
        RIGHT,
        lambda: nearest(INDEX.search(np.asfortranarray(CODES), 3)),
        lambda: nearest(flat().search(np.asfortranarray(CODES), 3)),
    ),
    Misuse(
        "the same code twice",
        RIGHT,
        lambda: same(BinaryIndex.build(CODES[[0, 0, 0]], 32).search(CODES[:1], 3)[1], [[0, 1, 2]]),
    ),
    Misuse(
        "histogram of codes of two widths",
        "UsageError",
        lambda: histogram(CODES[:, :1]),
        lambda: np.bitwise_count(CODES[:, None, :1] ^ CODES[None]).sum(2),
    ),
    Misuse("histogram for other relevance", "UsageError", lambda: histogram(CODES[:5])),
    Misuse("histogram by no thread", "UsageError", lambda: histogram(threads=0)),
    Misuse(
        "histogram without queries",
        RIGHT,
        lambda: histogram(CODES[:0], relevance=Relevance.by_pairs(np.arange(0), np.arange(6))).shape == (0, 2, 33),
    ),
]

# ---------------------------------------------------------------------------------------------- files

FOLDER = Path(tempfile.mkdtemp())
atexit.register(shutil.rmtree, FOLDER)


def file_of(content):
    path = FOLDER / "some.file"
    path.write_bytes(content)
    return path


def saved(index=INDEX):
    index.save(FOLDER / "some.faiss")
    return (FOLDER / "some.faiss").read_bytes()


def of_floats():
    index = faiss.IndexFlatL2(32)
    index.add(X)
    faiss.write_index(index, str(FOLDER / "floats.faiss"))
    return FOLDER / "floats.faiss"


INDEX_FILES = [
    ("that is missing", "UsageError", lambda: FOLDER / "none.faiss"),
    ("that is a folder", "UsageError", lambda: FOLDER),
    ("that is empty", "DamagedError", lambda: file_of(b"")),
    ("of words", "DamagedError", lambda: file_of(b"no index at all" * 9)),
    ("of floats", "DamagedError", of_floats),
    ("cut short", "DamagedError", lambda: file_of(saved()[:-3])),
    ("cut in its head", "DamagedError", lambda: file_of(saved()[:9])),
    ("with something behind it", "DamagedError", lambda: file_of(saved() + b"123")),
    ("of another width", "StaleError", lambda: file_of(saved(BinaryIndex.build(np.repeat(CODES, 4, axis=1), 128)))),
    (
        "with bits beyond the last",
        "DamagedError",
        lambda: file_of(saved(BinaryIndex.build(np.repeat(CODES, 2, axis=1), 64))),
    ),
]


def search_in(path):
    """What a script would do with an index that it finds there."""
    return faiss.read_index_binary(str(path)).search(pad(CODES), 1)


FILE_CALLS = [
    *(
        Misuse(f"index file {what}", cls, lambda put=put: BinaryIndex.load(put(), 32), lambda put=put: search_in(put()))
        for what, cls, put in INDEX_FILES
    ),
    Misuse(
        "index into no folder",
        "CmrhashError",
        lambda: INDEX.save(FOLDER / "none" / "x.faiss"),
        lambda: faiss.write_index_binary(flat(), str(FOLDER / "none" / "x.faiss")),
    ),
    Misuse("features out of an index", "DamagedError", lambda: read_features(file_of(saved()))),
    Misuse("sealed file that is missing", "DataError", lambda: read_sealed(FOLDER / "none.h5")),
    Misuse("sealed file that is empty", "DamagedError", lambda: read_sealed(file_of(b""))),
]

# ---------------------------------------------------------------------------------------------- labels, scores

ITEMS, RELEVANT = np.array([[2, 3], [2, 3]]), np.array([[1, 0], [0, 0]])  # the second query has no relevant item
WRONG_LABELS = [
    ("beyond the classes", [[3]]),
    ("below 0", [[-1]]),
    ("halves", [[0.5]]),
    ("NaN", [[float("nan")]]),
    ("words", [["girl"]]),
    ("nothing", [[None]]),
    ("truths", [[True]]),
    ("beyond int64", [[10**30]]),
    ("lists in lists", [[[1, 2], 0]]),
    ("not in lists", [1, 2]),
    ("no list at all", None),
]


def precision(k=5, rule="min", items=ITEMS, relevant=RELEVANT):
    return metrics.average_precision(items, relevant, k, rule)


def naive_map(ranked):
    """mAP as it is written in most repositories: (Q, N) bool in order of rank -> float."""
    hits = ranked.cumsum(1)
    with np.errstate(invalid="ignore"):
        return ((hits / np.arange(1, ranked.shape[1] + 1) * ranked).sum(1) / ranked.sum(1)).mean()


RANKED = np.array([[1, 0, 1, 0], [0, 0, 0, 0]], bool)


def items(*changes):
    """A data set of three items; changes: fields of each."""
    plain = Item("a", None, {"en": ("a dog",)}, (0,), frozenset({"database"}))
    made = tuple(replace(plain, **{"id": str(n), **change}) for n, change in enumerate(changes))
    return ImageTextDataset("toy", FOLDER, made, ("dog", "cat"))


SCORES = [
    ("NaN among them", having(np.nan), np.zeros((6, 32)), "DataError"),
    ("infinity among them", having(np.inf), np.zeros((6, 32)), "DataError"),
    ("half precision", X.astype(np.float16), np.zeros((6, 32)), "UsageError"),
    ("gains of another shape", X, np.zeros((6, 31)), "UsageError"),
    ("a list", X.tolist(), np.zeros((6, 32)), "UsageError"),
]

LABEL_CALLS = [
    *(Misuse(f"labels: {what}", "DataError", lambda x=x: Relevance.by_labels(x, [[0]], 3)) for what, x in WRONG_LABELS),
    Misuse(
        "an item without a label",
        RIGHT,
        lambda: same(Relevance.by_labels([[]], [[], [0]], 3).gains(0, 1, 0, 2), [[0, 0]]),
    ),
    Misuse("no classes at all", RIGHT, lambda: same(Relevance.by_labels([[]], [[]], 0).gains(0, 1, 0, 1), [[0]])),
    Misuse("itself beyond the database", "UsageError", lambda: Relevance.by_labels([[0]], [[0]], 3, np.array([1]))),
    Misuse("itself as a list", "UsageError", lambda: Relevance.by_labels([[0]], [[0]], 3, [0.0])),
    Misuse("pairs of two axes", "UsageError", lambda: Relevance.by_pairs(np.zeros((2, 2), int), np.arange(3))),
    Misuse("pairs of floats", "UsageError", lambda: Relevance.by_pairs(np.arange(3.0), np.arange(3))),
    Misuse("pairs of ids", "UsageError", lambda: Relevance.by_pairs(["a"], ["a"])),
    Misuse(
        "a query without a relevant item",
        RIGHT,
        lambda: metrics.mean_over_valid(average_precision_ranked(RANKED)) == ((1 + 2 / 3) / 2, 1),
        lambda: bool(naive_map(RANKED) == (1 + 2 / 3) / 2),
    ),
    Misuse("no query with one", RIGHT, lambda: str(metrics.mean_over_valid(precision()[1:])) == "(nan, 0)"),
    Misuse("no query", RIGHT, lambda: precision(items=ITEMS[:0], relevant=RELEVANT[:0]).shape == (0,)),
    *(Misuse(f"cut at {k!r}", "UsageError", lambda k=k: precision(k)) for k in (0, -1, 2.5, "5", True, 10**30)),
    Misuse("an unknown rule", "UsageError", lambda: precision(rule="mim")),
    Misuse("a radius below 0", "UsageError", lambda: metrics.precision_within(ITEMS, RELEVANT, -1)),
    Misuse("an unknown order of ties", "UsageError", lambda: metrics.split_ties(ITEMS, RELEVANT, "best")),
    Misuse("more relevant items than items", "UsageError", lambda: precision(relevant=ITEMS + 1)),
    Misuse("counts below 0", "UsageError", lambda: precision(relevant=-ITEMS)),
    Misuse("counts that are shares", "UsageError", lambda: precision(items=ITEMS / 2)),
    Misuse("counts of two shapes", "UsageError", lambda: precision(relevant=RELEVANT[:1])),
    Misuse("counts in lists", "UsageError", lambda: precision(items=ITEMS.tolist())),
    *(Misuse(f"similarities: {what}", cls, lambda s=s, g=g: real_valued.figures(s, g)) for what, s, g, cls in SCORES),
    Misuse("the same id twice", "DataError", lambda: check(items({}, {"id": "0"}))),
    Misuse("an id of nothing", "DataError", lambda: check(items({"id": " "}))),
    Misuse("a label that is no class", "DataError", lambda: check(items({"labels": (2,)}))),
    Misuse("a label below 0", "DataError", lambda: check(items({"labels": (-1,)}))),
    Misuse("a query to train on", "DataError", lambda: check(items({"splits": frozenset({"query", "train"})}))),
    Misuse("a split that is none", "DataError", lambda: check(items({"splits": frozenset({"test"})}))),
    Misuse("no items", "DataError", lambda: check(items())),
    Misuse(
        "no labels", "UsageError", lambda: with_relevance(replace(items({}), relevance="pairs", classes=()), "labels")
    ),
]

CALLS = [*CODE_CALLS, *FAISS_CALLS, *FILE_CALLS, *LABEL_CALLS]

if __name__ == "__main__":
    main()
