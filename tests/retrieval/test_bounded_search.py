"""Searches bounded by a sample give the rows of a sort by (distance, row), whatever the ties."""

from __future__ import annotations

import faiss
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cmrhash.retrieval import bounded
from cmrhash.retrieval.index import BinaryIndex


@pytest.fixture(scope="module", autouse=True)
def small():
    """Bounds from 100 codes on, by a sample of 64, for up to 4 results."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"LARGE": 100, "SAMPLE": 64, "MOST_SHARE": 16, "GROUP": 3}.items():
            patch.setattr(bounded, name, value)
        yield


def sorted_rows(database, queries, k):
    distances = np.bitwise_count(database[None] ^ queries[:, None]).sum(2, dtype=np.int32)  # (Q, N)
    order = np.argsort(distances, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(distances, order, 1), order


def codes(kind, rows, width, rng):
    """uniform; or few different codes, centres with some flipped bits, or all equal: from few ties to nothing else."""
    if kind == "uniform":
        return rng.integers(0, 256, (rows, width), np.uint8)
    centres = rng.integers(0, 256, (1 if kind == "equal" else 4, width), np.uint8)
    found = centres[rng.integers(0, len(centres), rows)]
    return found ^ np.packbits(rng.random((rows, 8 * width)) < 0.05, axis=1) if kind == "clustered" else found


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(["uniform", "few", "clustered", "equal"]),
    st.integers(90, 700),
    st.integers(1, 17),
    st.integers(0, 12),
    st.sampled_from([1, 2, 3, 4, 5, 50, 800]),
    st.integers(1, 4),
    st.booleans(),
    st.integers(0, 2**32 - 1),
)
def test_rows_are_those_of_a_stable_sort(kind, rows, width, queries, k, threads, own, seed):
    rng = np.random.default_rng(seed)
    database = codes(kind, rows, width, rng)
    asked = database[rng.integers(0, rows, queries)] if own else rng.integers(0, 256, (queries, width), np.uint8)
    if kind == "uniform" and own:
        database = np.sort(database, axis=0)  # rows in an order that has to do with their codes
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(threads)
    try:
        distances, found = BinaryIndex.build(database, 8 * width).search(np.ascontiguousarray(asked), k)
    finally:
        faiss.omp_set_num_threads(before)
    assert (distances.dtype, found.dtype) == (np.int32, np.int64)
    expected = sorted_rows(database, asked, k)
    np.testing.assert_array_equal(distances, expected[0])
    np.testing.assert_array_equal(found, expected[1])


def test_a_mapped_file_is_searched_alike(tmp_path):
    rng = np.random.default_rng(0)
    database, queries = (rng.integers(0, 256, (rows, 4), np.uint8) for rows in (300, 7))
    BinaryIndex.build(database, 32).save(tmp_path / "x.faiss")
    distances, found = BinaryIndex.load(tmp_path / "x.faiss", 32, mapped=True).search(queries, 3)
    expected = sorted_rows(database, queries, 3)
    np.testing.assert_array_equal(distances, expected[0])
    np.testing.assert_array_equal(found, expected[1])


def test_bounded_searches_are_taken_where_they_pay_and_only_there(monkeypatch):
    rng = np.random.default_rng(0)
    taken = []
    nearest = bounded.nearest
    monkeypatch.setattr(bounded, "nearest", lambda *of: taken.append(of[3]) or nearest(*of))
    for rows in (99, 100):
        index = BinaryIndex.build(rng.integers(0, 256, (rows, 8), np.uint8), 64)
        for k in (4, 5):
            index.search(rng.integers(0, 256, (2, 8), np.uint8), k)
    assert taken == [4]
