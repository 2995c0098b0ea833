"""Every kind of store finds what brute force finds, and changes all or nothing."""

from __future__ import annotations

import threading
import weakref
from contextlib import closing

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from random_codes import check_found, is_slow, leftovers, numbered, random_codes

from cmrhash.errors import UsageError
from cmrhash.search.stores import open_store


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    bits=st.sampled_from([1, 5, 8, 33, 64, 100]),
    rows=st.integers(0, 80),
    k=st.sampled_from([1, 3, 10, 1_000]),
    share=st.sampled_from([0.5, 0.05]),
    approximate=st.sampled_from([None, False, True]),
    seed=st.integers(0, 99),
)
def test_search_finds_what_brute_force_finds(store, bits, rows, k, share, approximate, seed):
    if is_slow(store) and seed % 4:
        return
    rng = np.random.default_rng(seed)
    packed, query, keys = random_codes(rng, rows, bits, share), random_codes(rng, 7, bits, share), numbered(rows)
    cut = rows // 3
    batches = [(keys[:cut], packed[:cut]), (keys[cut:], packed[cut:])]
    if approximate and store.url.startswith("milvus:"):
        approximate = None  # the embedded one has none
    about = store.replace("random", bits, batches, {"seed": seed}, approximate)
    assert (about.bits, about.rows, about.meta) == (bits, rows, {"seed": seed})
    database = dict(zip(keys, packed, strict=True))
    check_found(store.search("random", query, k), query, database, k, exact=not approximate)
    check_found(store.search("random", query[:0], k), query[:0], database, k)


@pytest.mark.parametrize("approximate", [False, True])
@pytest.mark.parametrize("bits", [5, 33])
def test_a_radius_finds_all_within_it(store, monkeypatch, bits, approximate):
    if is_slow(store):
        monkeypatch.setattr("cmrhash.search.stores.milvus.FIRST", 4)
    rng, approximate = np.random.default_rng(bits), approximate and not store.url.startswith("milvus:")
    packed, query, keys = random_codes(rng, 80, bits), random_codes(rng, 5, bits), numbered(80)
    store.replace("near", bits, [(keys, packed)], {}, approximate)
    full = np.bitwise_count(query[:, None] ^ packed[None]).sum(axis=2, dtype=np.int64)
    for radius in (0, bits // 3, bits // 2, bits, 999):
        for among in (None, [*keys[::3], "unknown"]):
            found = store.within("near", query, radius, among)
            assert len(found) == len(query)
            for at, (distances, names) in enumerate(found):
                rows = [int(key[1:]) for key in names]
                inside = np.flatnonzero(full[at] <= radius)
                assert sorted(rows) == [row for row in inside if among is None or row % 3 == 0]
                assert distances.tolist() == sorted(full[at, rows])
                assert distances.dtype == np.int32
    assert store.within("near", query[:0], 3) == []
    for wrong in (-1, True, 2.5):
        with pytest.raises(UsageError, match="radius must be a whole number"):
            store.within("near", query, wrong)
    store.replace("near", bits, [], {})
    assert [names for _, names in store.within("near", query, bits)] == [[]] * 5


def test_milvus_says_how_many_it_finds_at_most(store, monkeypatch):
    if not is_slow(store):
        pytest.skip("a limit of Milvus")
    from cmrhash.search.stores import milvus

    monkeypatch.setattr(milvus, "FIRST", 4)
    monkeypatch.setattr(milvus, "MOST", 16)
    store.replace("near", 8, [(numbered(40), np.zeros((40, 1), np.uint8))])
    with pytest.raises(UsageError, match="radius: more than 16 codes are within 3 bits"):
        store.within("near", np.zeros((1, 1), np.uint8), 3)


def test_a_collection_through_its_life(url):
    rng = np.random.default_rng(0)
    packed, query = random_codes(rng, 90, 40, 0.2), random_codes(rng, 5, 40, 0.2)
    keys = [*numbered(88), 'with "quotes" \\ and 100 %', "日本 ä'#1"]
    database = dict(zip(keys, packed, strict=True))
    with closing(open_store(url)) as store:
        store.replace("life", 40, [(keys[:50], packed[:50])], {"of": "one"})
        assert store.add("life", [(keys[50:70], packed[50:70]), (keys[70:], packed[70:])]).rows == 90
        check_found(store.search("life", query, 12), query, database, 12)
        gone = [*keys[:30:3], *keys[-2:-1]]
        assert store.remove("life", gone).rows == 79
    for key in gone:
        del database[key]
    with closing(open_store(url)) as store:
        assert "life" in store.names()
        about = store.about("life")
        assert (about.name, about.bits, about.rows, about.meta) == ("life", 40, 79, {"of": "one"})
        check_found(store.search("life", query, 1_000), query, database, 1_000)
        store.add("life", [([gone[0]], packed[:1])])  # it may come back
        other = random_codes(rng, 4, 64)
        store.replace("life", 64, [(numbered(4), other)])
        assert (store.about("life").bits, store.about("life").meta) == (64, {})
        check_found(store.search("life", other, 2), other, dict(zip(numbered(4), other, strict=True)), 2)
        for call in (store.about, lambda name: store.search(name, other, 1)):
            with pytest.raises(UsageError, match="no collection 'lives'"):
                call("lives")


def test_collections_do_not_mix(store):
    codes = {name: random_codes(np.random.default_rng(n), 20, 16) for n, name in enumerate(("a-b", "a_b", "a.b"))}
    for name, packed in codes.items():
        store.replace(name, 16, [(numbered(20), packed)])
    for name, packed in codes.items():
        check_found(store.search(name, packed[:3], 5), packed[:3], dict(zip(numbered(20), packed, strict=True)), 5)


def test_a_change_is_seen_by_who_has_the_store_open(url):
    with closing(open_store(url)) as writer, closing(open_store(url)) as reader:
        for n in (3, 5, 2):
            writer.replace("shared", 8, [(numbered(n), np.zeros((n, 1), np.uint8))])
            assert reader.search("shared", np.zeros((1, 1), np.uint8), 9)[0].shape == (1, n)


def test_whoever_searches_meanwhile_sees_the_old_or_the_new(url):
    """Two versions of a collection differ in every code and every key."""
    versions = [([f"{v}-{n}" for n in range(50)], np.full((50, 2), v, np.uint8)) for v in (0, 255)]
    seen, errors, done = set(), [], threading.Event()

    def look():
        try:
            with closing(open_store(url)) as reader:
                while not done.is_set():
                    distances, keys = reader.search("swapped", np.zeros((2, 2), np.uint8), 60)
                    seen.add((distances.shape, tuple(np.unique(distances)), tuple({k[0] for k in keys[0] + keys[1]})))
        except BaseException as error:
            errors.append(error)

    with closing(open_store(url)) as writer:
        writer.replace("swapped", 16, [versions[0]])
        thread = threading.Thread(target=look)
        thread.start()
        for n in range(1, 5 if is_slow(writer) else 25):
            writer.replace("swapped", 16, [versions[n % 2]])
        done.set()
        thread.join(30)
    assert not errors
    assert seen <= {((2, 50), (0,), ("0",)), ((2, 50), (16,), ("2",))}


def test_a_change_that_fails_changes_nothing(store):
    packed = random_codes(np.random.default_rng(0), 30, 32)
    store.replace("kept", 32, [(numbered(30), packed)], {"first": True})
    before = leftovers(store)

    def broken():
        yield numbered(10, 30), packed[:10]
        raise RuntimeError("the source dried up")

    for change in (lambda: store.replace("kept", 32, broken()), lambda: store.add("kept", broken())):
        with pytest.raises(RuntimeError, match="dried up"):
            change()
        assert store.about("kept").rows == 30
        check_found(store.search("kept", packed, 40), packed, dict(zip(numbered(30), packed, strict=True)), 40)
        assert leftovers(store) == before


def test_batches_come_one_after_the_other(store):
    """A million codes are never in memory at once."""
    made, most = [], 0

    class Codes(np.ndarray):
        pass

    def batches():
        nonlocal most
        for n in range(8):
            packed = np.zeros((100, 8), np.uint8).view(Codes)
            made.append(weakref.ref(packed))
            most = max(most, sum(ref() is not None for ref in made))
            yield numbered(100, 100 * n), packed
            del packed

    assert store.replace("streamed", 64, batches()).rows == 800
    assert most <= 2
