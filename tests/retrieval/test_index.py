"""The Faiss room: search and histogram against brute force, whole files or none, misuse refused."""

from __future__ import annotations

import re
import resource

import faiss
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cmrhash.errors import CmrhashError, DamagedError, DataError, StaleError, UsageError
from cmrhash.retrieval import relevance as relevance_module
from cmrhash.retrieval.index import BinaryIndex, distances_to, rank_histogram
from cmrhash.retrieval.relevance import Relevance


def random_codes(rng, rows, bits, share=0.5):
    return np.packbits(rng.random((rows, bits)) < share, axis=1, bitorder="little")


def distances_by_numpy(query, database):
    return np.bitwise_count(query[:, None] ^ database[None]).sum(axis=2, dtype=np.int64)


def random_labels(rng, rows, classes, most):
    return [rng.choice(classes, rng.integers(0, most + 1)).tolist() for _ in range(rows)]  # with repeats


def histogram_by_loop(query, database, bits, gains, levels):
    hist = np.zeros((len(query), levels + 1, bits + 1), np.int64)
    distance = distances_by_numpy(query, database)
    for q, n in np.ndindex(distance.shape):
        if gains[q][n] is not None:
            hist[q, gains[q][n], distance[q, n]] += 1
    return hist


# -- search --


@settings(max_examples=40, deadline=None)
@given(
    bits=st.sampled_from([1, 5, 8, 32, 33, 64, 100, 130]),
    rows=st.integers(0, 300),
    k=st.sampled_from([1, 2, 10, 299, 10_000]),
    share=st.sampled_from([0.5, 0.05]),
    seed=st.integers(0, 99),
)
def test_search_is_brute_force_in_order_of_distance_and_row(bits, rows, k, share, seed):
    rng = np.random.default_rng(seed)
    database, query = random_codes(rng, rows, bits, share), random_codes(rng, 70, bits, share)
    index = BinaryIndex.build(database, bits)
    distances, found = index.search(query, k)
    full = distances_by_numpy(query, database)
    order = np.argsort(full, axis=1, kind="stable")[:, :k]
    assert distances.dtype == np.int32
    assert found.dtype == np.int64
    assert np.array_equal(found, order)
    assert np.array_equal(distances, np.take_along_axis(full, order, axis=1))
    assert len(index) == rows
    assert np.array_equal(index.packed, database)
    assert not np.shares_memory(index.packed, index.stored)  # the codes outlive the index


def test_search_takes_rows_that_are_not_contiguous():
    rng = np.random.default_rng(0)
    database = random_codes(rng, 50, 64)
    index = BinaryIndex.build(database[::-1], 64)
    assert np.array_equal(index.search(database[::-2], 1)[0], np.zeros((25, 1)))


# -- files --


@pytest.mark.parametrize("bits", [5, 32, 64, 100])
@pytest.mark.parametrize("rows", [0, 1, 77])
def test_a_saved_index_comes_back_and_faiss_reads_it(tmp_path, bits, rows):
    codes = random_codes(np.random.default_rng(bits), rows, bits)
    path = tmp_path / "image.faiss"
    BinaryIndex.build(codes, bits).save(path)
    loaded = BinaryIndex.load(path, bits)
    assert np.array_equal(loaded.packed, codes)
    assert loaded.bits == bits
    assert faiss.read_index_binary(str(path)).ntotal == rows
    assert [file.name for file in tmp_path.iterdir()] == ["image.faiss"]
    query = codes[:3]
    if rows:
        assert np.array_equal(loaded.search(query, 5)[1], BinaryIndex.build(codes, bits).search(query, 5)[1])


def test_damaged_files_are_refused(tmp_path):
    path = tmp_path / "image.faiss"
    BinaryIndex.build(random_codes(np.random.default_rng(0), 20, 60), 60).save(path)
    whole = path.read_bytes()
    header = len(whole) - 20 * 8
    damaged = [whole[:n] for n in (0, 3, 11, header - 1, header, header + 8, len(whole) - 1)]
    damaged += [whole + b"\0", whole + bytes(8), b"\0" * 400, b"not an index at all" * 9]
    for at in range(header * 8):  # each bit of the header
        flipped = bytearray(whole)
        flipped[at // 8] ^= 1 << (at % 8)
        damaged.append(bytes(flipped))
    for data in damaged:
        path.write_bytes(data)
        with pytest.raises((DamagedError, StaleError)) as caught:
            BinaryIndex.load(path, 60)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("bits", "at"), [(60, -1), (32, -1), (32, -4), (30, -5)])
def test_stored_bits_beyond_the_code_are_damage(tmp_path, bits, at):
    path = tmp_path / "image.faiss"
    BinaryIndex.build(random_codes(np.random.default_rng(0), 20, bits), bits).save(path)
    data = bytearray(path.read_bytes())
    data[at] |= 0x80
    path.write_bytes(data)
    with pytest.raises(DamagedError):
        BinaryIndex.load(path, bits)


def test_an_index_of_another_width_and_no_index_are_told_apart(tmp_path):
    path = tmp_path / "image.faiss"
    BinaryIndex.build(np.zeros((3, 16), np.uint8), 128).save(path)
    with pytest.raises(StaleError, match="128-bit rows, but 32 bits need 64"):
        BinaryIndex.load(path, 32)
    with pytest.raises(UsageError, match="no such file"):
        BinaryIndex.load(tmp_path / "missing.faiss", 32)
    with pytest.raises(UsageError, match="directory"):
        BinaryIndex.load(tmp_path, 32)
    with pytest.raises(CmrhashError, match="no such file"):
        BinaryIndex.build(np.zeros((3, 4), np.uint8), 32).save(tmp_path / "missing" / "image.faiss")


@pytest.mark.faults("disk full")
@pytest.mark.parametrize("limit", [40, 50_000])
def test_a_full_disk_is_one_line_and_leaves_the_old_file(tmp_path, limit):
    path = tmp_path / "image.faiss"
    BinaryIndex.build(np.zeros((3, 8), np.uint8), 64).save(path)
    old = path.read_bytes()
    large = BinaryIndex.build(np.ones((10_000, 8), np.uint8), 64)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        with pytest.raises(CmrhashError, match=r"^cannot save the index \(file too large\)") as caught:
            large.save(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == old
    assert [file.name for file in tmp_path.iterdir()] == ["image.faiss"]


# -- histogram --


@settings(max_examples=60, deadline=None)
@given(
    bits=st.sampled_from([1, 5, 32, 33, 64, 100]),
    queries=st.integers(0, 9),
    rows=st.integers(0, 40),
    most=st.sampled_from([0, 3, 40]),
    threads=st.sampled_from([1, 2]),
    block=st.sampled_from([1, 100, 1 << 19]),
    slab=st.sampled_from([1, 7, 1 << 15]),
    kept=st.booleans(),
    own=st.booleans(),
    seed=st.integers(0, 999),
)
def test_histogram_is_the_loop_over_pairs(bits, queries, rows, most, threads, block, slab, kept, own, seed):
    rng = np.random.default_rng(seed)
    query, database = random_codes(rng, queries, bits, 0.3), random_codes(rng, rows, bits, 0.3)
    query_labels, labels = random_labels(rng, queries, 50, most), random_labels(rng, rows, 50, most)
    exclude = rng.integers(-1, rows, queries) if own else None
    relevance = Relevance.by_labels(query_labels, labels, 50, exclude=exclude)
    gains = [[min(15, len(set(a) & set(b))) for b in labels] for a in query_labels]
    for q in range(queries if own else 0):
        if exclude[q] >= 0:
            gains[q][exclude[q]] = None
    with pytest.MonkeyPatch.context() as patch:
        if not kept:
            patch.setattr(relevance_module, "CACHE_BYTES", 0)
        hist = rank_histogram(query, database, bits, relevance, threads=threads, block_bytes=block, slab_rows=slab)
    assert hist.dtype == np.int32
    assert np.array_equal(hist, histogram_by_loop(query, database, bits, gains, relevance.levels))


def test_histogram_of_pairs_over_several_passes_and_threads():
    rng = np.random.default_rng(1)
    query, database = random_codes(rng, 301, 48), random_codes(rng, 1500, 48)
    item = np.repeat(np.arange(300), 5)
    query_item = np.arange(301)  # the last one has no counterpart
    relevance = Relevance.by_pairs(query_item, item)
    hist = rank_histogram(query, database, 48, relevance, threads=4, slab_rows=400)
    distance = distances_by_numpy(query, database)
    for q in range(301):
        for plane, mask in enumerate((item != q, item == q)):
            assert np.array_equal(hist[q, plane], np.bincount(distance[q, mask], minlength=49))
    assert hist[:, 1].sum(axis=1).tolist() == [5] * 300 + [0]


def test_the_caller_keeps_its_own_number_of_faiss_threads():
    before = faiss.omp_get_max_threads()
    codes = np.zeros((5, 4), np.uint8)
    rank_histogram(codes, codes, 32, Relevance.by_pairs(np.arange(5), np.arange(5)))
    assert faiss.omp_get_max_threads() == before


def test_histogram_refuses_what_does_not_fit():
    codes = np.zeros((5, 4), np.uint8)
    relevance = Relevance.by_pairs(np.arange(5), np.arange(5))
    with pytest.raises(UsageError, match=re.escape("(4, 5)")):
        rank_histogram(codes[:4], codes, 32, relevance)
    with pytest.raises(UsageError, match="threads"):
        rank_histogram(codes, codes, 32, relevance, threads=0)
    with pytest.raises(UsageError, match="database codes"):
        rank_histogram(codes, codes.astype(np.int32), 32, relevance)
    with pytest.raises(DataError, match="query codes have bits set beyond bit 30"):
        rank_histogram(codes + np.uint8(128), codes, 30, relevance)


@pytest.mark.parametrize("bits", [1, 12, 64, 70])
def test_a_radius_finds_what_a_search_of_everything_finds_within_it(bits):
    rng = np.random.default_rng(bits)
    database, queries = (random_codes(rng, count, bits) for count in (60, 5))
    index = BinaryIndex.build(database, bits)
    distances, rows = index.search(queries, 60)
    np.testing.assert_array_equal(distances_to(database, queries, bits), distances_by_numpy(queries, database))
    for radius in (0, 1, bits // 2, bits, 10**9):
        for query, (near, places) in enumerate(index.within(queries, radius)):
            inside = distances[query] <= radius
            np.testing.assert_array_equal(near, distances[query][inside])
            np.testing.assert_array_equal(places, rows[query][inside])
            assert (near.dtype, places.dtype) == (np.int32, np.int64)
    assert [len(found[0]) for found in BinaryIndex.build(database[:0], bits).within(queries, 3)] == [0] * 5
