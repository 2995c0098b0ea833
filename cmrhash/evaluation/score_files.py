"""Scores of codes or embeddings that others computed, by published conventions side by side."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cmrhash.errors import DataError, UsageError
from cmrhash.evaluation.conventions import NAMES, OURS, PAIRS, Convention, Counts, convention
from cmrhash.evaluation.result_files import FileSearch, read_searches
from cmrhash.retrieval import metrics
from cmrhash.retrieval.index import distances_to

Floats = NDArray[np.float64]
CODES, COSINE = "codes", "cosine"  # what is ranked: signs by Hamming distance, or vectors by their cosine
ORDERS = ("expected", "lowest", "highest", "file_order")  # of items at equal distance
BLOCK = 1 << 21  # places of rankings that are held at a time


class Scored(NamedTuple):
    """Content of result files, and a row per direction, language, kind of vectors, convention and figure.

    A row has a value for each of ORDERS: over random order of items at equal distance, its bounds, and with such items
    in the order of the file; "counted" is the number of queries in the mean.
    """

    about: dict[str, Any]
    rows: list[dict[str, Any]]


def score_files(files: Sequence[Path], maps: Sequence[str] = (), like: Sequence[str] = ()) -> Scored:
    """Score result files by cmrhash's own definition and by published conventions.

    files: .mat, .npz, .npy, HDF5 or .safetensors. maps: roles of their arrays, as for ready-made features, for example
    "image.query=Q1". like: conventions, by default all that fit; "djsrh@100" sets the cut-off. Vectors of 0 and 1 or of
    -1 and 1 are codes; others are ranked as codes, by their signs, and as they are, by cosine. Raises UsageError for
    unknown conventions and roles, DataError for arrays that do not fit together.
    """
    wanted = [convention(name) for name in like]
    searches, labels = read_searches(files, maps)
    for one in wanted:
        if (one.name == PAIRS) != (labels is None):
            has = "labels" if one.name == PAIRS else "no labels"
            raise UsageError(f"convention '{one.name}' does not fit: the file has {has}", files[0], "leave `like` out")
    if not wanted:
        names = (PAIRS,) if labels is None else [name for name in NAMES if name != PAIRS]
        wanted = [convention(name) for name in names]
    if labels is not None:
        wanted = [convention(OURS), *wanted]
    rows = [row for search in searches for row in _rows(search, wanted)]
    if not any(row["expected"] > 0 for row in rows):
        fix = "check the labels, or choose other arrays with `maps`"
        raise DataError("no query has a relevant item in the database", files[0], fix)
    queries, database = searches[0].relevance.shape
    about = {
        "files": [str(file) for file in files],
        "bits": searches[0].bits,
        "queries": queries,
        "database": database,
        "relevance": "pairs" if labels is None else f"a shared label of {labels}",
        "zeros": sum(search.zeros for search in searches),
    }
    return Scored(about, rows)


def _rows(search: FileSearch, wanted: Sequence[Convention]) -> Iterator[dict[str, Any]]:
    """Rows of the codes, and of the vectors themselves where they are no codes."""
    for kind in (CODES,) if search.binary else (CODES, COSINE):
        found = _per_query(search, kind, wanted)
        for one in wanted:
            for figure in one.figures:
                of = {order: metrics.mean_over_valid(found[order, one.name, figure]) for order in ORDERS}
                yield {
                    "direction": search.direction,
                    "lang": search.lang,
                    "vectors": kind,
                    "convention": one.name,
                    "figure": figure,
                    **{order: value for order, (value, _) in of.items()},
                    "counted": of["expected"][1],
                    "definition": one.words,
                }


def _per_query(search: FileSearch, kind: str, wanted: Sequence[Convention]) -> dict[tuple[str, str, str], Floats]:
    """Figures of each query (Q,) by order of the ties, convention and name."""
    if kind == CODES:
        codes = search.packed
    else:
        query, database = (_unit(x) for x in (search.query, search.database))
    queries, rows = search.relevance.shape
    found: dict[tuple[str, str, str], list[Floats]] = {}
    for first in range(0, queries, step := max(1, BLOCK // max(rows, 1))):
        last = min(first + step, queries)
        if kind == CODES:
            distances: NDArray[Any] = distances_to(codes[1], codes[0][first:last], search.bits)
        else:
            distances = -(query[first:last] @ database.T)
        for order, counts in _counts(distances, search.relevance.gains(first, last, 0, rows) > 0).items():
            for one in wanted:
                for figure, values in one.of(*counts).items():
                    found.setdefault((order, one.name, figure), []).append(values)
    return {name: np.concatenate(blocks) for name, blocks in found.items()}


def _counts(distances: NDArray[Any], relevant: NDArray[np.bool_]) -> dict[str, tuple[Counts, Counts]]:
    """Counts of items and relevant items (q, D) for each order of items at equal distance.

    distances: (q, N), the nearest first; relevant: (q, N).
    """
    if distances.dtype.kind == "i" and distances.max(initial=0) < 1 << 15:
        distances = distances.astype(np.int16)  # sorted by counting, in a tenth of the time
    nearest = np.argsort(distances, axis=1, kind="stable")
    sorted_relevant = np.take_along_axis(relevant, nearest, axis=1).astype(np.int64)
    ranked = np.take_along_axis(distances, nearest, axis=1)
    place = np.zeros(ranked.shape, np.int64)
    place[:, 1:] = np.cumsum(ranked[:, 1:] != ranked[:, :-1], axis=1)
    depth = int(place.max(initial=-1)) + 1
    cell = np.arange(len(place))[:, None] * depth + place
    items, hits = (
        np.bincount(cell.ravel(), weights, len(place) * depth).reshape(len(place), depth).astype(np.int64)
        for weights in (None, sorted_relevant.ravel())
    )
    return {
        "expected": (items, hits),
        "lowest": metrics.split_ties(items, hits, "pessimistic"),
        "highest": metrics.split_ties(items, hits, "optimistic"),
        "file_order": (np.ones_like(sorted_relevant), sorted_relevant),
    }


def _unit(x: NDArray[np.float32]) -> Floats:
    """Rows of length 1 in float64; zeros stay zeros."""
    exact = x.astype(np.float64)
    return np.asarray(exact / np.maximum(np.linalg.norm(exact, axis=1, keepdims=True), 1e-12))
