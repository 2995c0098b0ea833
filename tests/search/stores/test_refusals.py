"""What a store refuses: keys, codes, names and addresses."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from random_codes import LEFTOVERS, check_found, numbered

from cmrhash.errors import DataError, UsageError
from cmrhash.search import stores
from cmrhash.search.stores import check_name, open_store, shown


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        (["a", ""], "not a key: ''"),
        (["a", "b\n"], "not a key"),
        (["a", "\0"], "not a key"),
        (["a", "\ud800"], "not a key"),
        (["a", "ä" * 513], "not a key"),
        (["a", 7], "not a key: 7"),
        (["a", "a"], "codes 0 and 1 have the same key|codes 2 and 3 have the same key"),
        (["a", "k1"], "k1|codes 1 and 3"),
        (["a"], "2 codes but 1 keys"),
    ],
)
def test_keys_that_cannot_be_added(store, keys, words):
    packed = np.zeros((2, 4), np.uint8)
    if "keys" not in store.names():
        store.replace("keys", 32, [(numbered(2), packed)])
    with pytest.raises((DataError, UsageError), match=words) as caught:
        store.add("keys", [(keys, packed)])
    assert "\n" not in str(caught.value)
    check_found(store.search("keys", packed, 9), packed, dict(zip(numbered(2), packed, strict=True)), 9)


def test_the_same_key_in_two_batches(store):
    packed = np.zeros((2, 4), np.uint8)
    with pytest.raises(DataError, match="codes 1 and 2 have the same key"):
        store.replace("twice", 32, [(["a", "b"], packed), (["b", "c"], packed)])
    assert "twice" not in store.names()


def test_a_key_that_is_not_there_cannot_be_removed(store):
    packed = np.zeros((3, 4), np.uint8)
    store.replace("less", 32, [(numbered(3), packed)])
    with pytest.raises(DataError, match="no key 'k7' in less.*nothing was removed"):
        store.remove("less", ["k1", "k7", "k2"])
    assert store.about("less").rows == 3
    assert store.remove("less", []).rows == 3
    assert store.remove("less", ["k1", "k1"]).rows == 2


@pytest.mark.parametrize(
    "codes", [np.zeros((1, 4), np.uint8), np.zeros((1, 5), np.int64), np.full((1, 5), 255, np.uint8)]
)
def test_codes_of_another_length_are_refused(store, codes):
    store.replace("length", 39, [(["a"], np.zeros((1, 5), np.uint8))])
    for call in (
        lambda: store.search("length", codes, 1),
        lambda: store.add("length", [(["b"], codes)]),
        lambda: store.replace("length", 39, [(["b"], codes)]),
    ):
        with pytest.raises((UsageError, DataError), match="codes"):
            call()
    assert store.about("length").rows == 1


@pytest.mark.parametrize("rows", [0, 2])
def test_k_must_be_a_positive_whole_number(store, rows):
    store.replace("k", 32, [(numbered(rows), np.zeros((rows, 4), np.uint8))])
    for k in (0, -1, 1.5, None, True):
        with pytest.raises(UsageError, match="k must be"):
            store.search("k", np.zeros((1, 4), np.uint8), k)


@pytest.mark.parametrize("name", ["", "../up", ".hidden", "a/b", "a b", "a\n", 'a"b', "x" * 151, "ä" * 76])
def test_names_that_not_every_store_can_have(store, name):
    for call in (store.about, lambda name: store.replace(name, 8, [])):
        with pytest.raises(UsageError, match="cannot be the name of a collection"):
            call(name)
    assert check_name("größe-tie-ap-32-en+de-text-pt_BR.2")


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("postgre://me:secret@host/db", "unknown kind of store: postgre://me:...@host/db: did you mean postgres\\?"),
        ("fais:codes", "did you mean faiss\\?"),
        ("codes", "give faiss:DIR, "),
        ("", "unknown kind of store"),
        ("faiss:", "no folder is named"),
    ],
)
def test_urls_of_no_store(url, words):
    with pytest.raises(UsageError, match=words.replace("...@", r"\*\*\*@")) as caught:
        open_store(url)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://me:SECRET@host/db",
        "postgresql://me:SEC@RET@host/db",
        "postgresql://me:SEC/RET@host/db",
        "postgresql://me:SEC?RET@host/db",
        "postgresql://me:SEC:RET@host/db?sslmode=require",
        "postgresql://host/db?user=me&password=SECRET",
        "milvus+http://:SECRET@host:19530",
    ],
)
def test_no_password_is_shown(url):
    assert not any(part in shown(url) for part in ("SEC", "RET"))
    assert "host" in shown(url) or "?" in url


@pytest.mark.parametrize(("kind", "package"), [("postgresql", "psycopg"), ("milvus", "pymilvus")])
def test_a_package_that_is_missing_is_named(monkeypatch, kind, package):
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, f"cmrhash.search.stores.{kind}", raising=False)
    monkeypatch.delattr(stores, kind, raising=False)
    with pytest.raises(UsageError, match=r'pip install "cmrhash\[(pgvector|milvus)\]"'):
        open_store(f"{kind}:x")


def test_every_kind_of_store_is_tested():
    assert {stores.KINDS[kind] for kind in LEFTOVERS} == set(stores.KINDS.values())


def test_probes_are_a_number():
    with pytest.raises(UsageError, match="^probes: -1 is out of range"):
        open_store("faiss:x", -1)
