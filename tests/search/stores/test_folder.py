"""Stores in a folder, searched by Faiss."""

from __future__ import annotations

import os
import resource

import faiss
import numpy as np
import pytest
from random_codes import check_found, leftovers, numbered, part, random_codes
from running import files

from cmrhash.errors import CmrhashError, DamagedError, LockedError, UsageError
from cmrhash.search.stores import folder, open_store
from cmrhash.storage.files import locked, read_json, write_json


@pytest.fixture
def filled(tmp_path):
    """A folder with a collection of 3,000 clustered codes: (store, keys, packed)."""
    rng = np.random.default_rng(0)
    packed = random_codes(rng, 30, 48)[rng.integers(0, 30, 3000)] ^ random_codes(rng, 3000, 48, 0.05)
    store = open_store(f"faiss:{tmp_path / 'codes'}")
    store.replace("some", 48, [(numbered(3000), packed)], None, True)
    return store, numbered(3000), packed


def test_an_approximate_search_is_backed_by_an_exact_one(filled):
    store, keys, packed = filled
    query, database = packed[:20], dict(zip(keys, packed, strict=True))
    few = open_store(store.url, 1)
    check_found(few.search("some", query, 5), query, database, 5, exact=False)
    check_found(few.search("some", query, 2999), query, database, 2999)  # more than any list has
    check_found(open_store(store.url, 0).search("some", query, 50), query, database, 50)
    assert few.add("some", [(["one more"], packed[:1])]).approximate is True
    assert part(store, "some", "codes.ivf").exists()


def test_faiss_reads_what_lies_in_the_folder(filled):
    store, _, packed = filled
    flat = faiss.read_index_binary(str(part(store, "some", "codes.faiss")))
    rows = faiss.vector_to_array(flat.xb).reshape(3000, 8)
    assert np.array_equal(rows[:, :6], packed)
    assert faiss.read_index_binary(str(part(store, "some", "codes.ivf"))).ntotal == 3000


def test_many_codes_get_an_approximate_index_unless_it_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(folder, "IVF_ROWS", 99)
    store = open_store(f"faiss:{tmp_path}")
    for rows, asked, there in ((99, None, False), (100, None, True), (100, False, False), (3, True, True)):
        store.replace("grown", 16, [(numbered(rows), np.zeros((rows, 2), np.uint8))], None, asked)
        assert part(store, "grown", "codes.ivf").exists() == there


@pytest.mark.faults("flipped bit")
@pytest.mark.parametrize("file", ["codes.faiss", "codes.ivf", "keys", "key_ends", "some.json"])
def test_a_flipped_bit_is_told(filled, file):
    store, _, packed = filled
    path = store.folder / file if file == "some.json" else part(store, "some", file)
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 4
    path.write_bytes(raw)
    with pytest.raises(DamagedError, match="create it again with `index`"):
        open_store(store.url).search("some", packed[:1], 1)


@pytest.mark.faults("file system that lacks something")
def test_a_collection_whose_name_differs_by_case_is_not_written(filled, monkeypatch):
    store, keys, packed = filled
    before = files(store.folder)
    real = os.listdir
    monkeypatch.setattr(os, "listdir", lambda path: [name.replace("some", "Some") for name in real(path)])
    for change in (
        lambda: store.replace("some", 48, [(keys, packed)]),
        lambda: store.add("some", [(["one more"], packed[:1])]),
        lambda: store.remove("some", keys[:1]),
    ):
        with pytest.raises(UsageError, match="^'some.json' is 'Some.json' here: the file system does not tell upper"):
            change()
    assert files(store.folder) == before


@pytest.mark.faults("disk full")
def test_a_full_disk_leaves_the_old_codes(filled):
    store, keys, packed = filled
    before = leftovers(store)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(CmrhashError, match="cannot write .some. \\(file too large\\)") as caught:
            store.replace("some", 48, [(keys, packed)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "\n" not in str(caught.value)
    assert leftovers(store) == before
    assert store.search("some", packed[:1], 1)[0] == [[0]]


def test_a_second_writer_waits_and_a_killed_one_leaves_nothing_for_long(filled):
    store = filled[0]
    with locked(store.folder / "some.json"), pytest.raises(LockedError, match="being written by process"):
        store.remove("some", ["k1"])
    killed = store.folder / "some.0123abcd"
    killed.mkdir()
    (killed / "keys").write_bytes(b"half")
    other = store.folder / "some.0123abcd.0123abcd"  # of a collection called some.0123abcd
    other.mkdir()
    store.remove("some", ["k1"])
    assert not killed.exists()
    assert other.exists()


@pytest.mark.parametrize("place", ["../elsewhere", "/etc", "a/b.01234567", ".", "", "some.0123abcd/..", 7, None])
def test_a_manifest_leads_to_no_other_folder(filled, place):
    store, _, packed = filled
    manifest = store.folder / "some.json"
    write_json(manifest, {**read_json(manifest, ""), "folder": place})
    with pytest.raises(DamagedError, match="which cmrhash has not made"):
        store.search("some", packed[:1], 1)
