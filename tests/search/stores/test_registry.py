"""What a registry names is dropped only if cmrhash has made it."""

from __future__ import annotations

import json
from collections import namedtuple

import numpy as np
import pytest
from random_codes import leftovers, numbered

from cmrhash.errors import DamagedError
from cmrhash.storage.files import read_json, write_json

Kind = namedtuple("Kind", "foreign forge drop there")  # functions of a store, and of a name


def _folder_entry(store, place):
    path = store.folder / "forged.json"
    write_json(path, {**read_json(path, ""), "folder": place})


def _milvus_entry(store, place):
    about = {"bits": 8, "rows": 1, "meta": {}, "approximate": None, "version": 10**6}
    row = {"id": "forged", "name": "forged", "codes": place, "unused": b"\0", "about": json.dumps(about)}
    store._client.insert("cmrhash_collections", [row])


def _milvus_drop(store, name):
    store._client.drop_collection(name)
    store._client.delete("cmrhash_collections", filter='name == "forged"')


def _postgres_drop(store, name):
    store._db.execute(f"DROP TABLE {name}")
    store._db.execute("DELETE FROM cmrhash_collections WHERE name = 'forged'")


KINDS = {
    "faiss": Kind(
        lambda store, name: (store.folder / name).mkdir(),
        _folder_entry,
        lambda store, name: (store.folder / name).rmdir(),
        lambda store, name: (store.folder / name).is_dir(),
    ),
    "postgresql": Kind(
        lambda store, name: store._db.execute(f"CREATE TABLE {name} (x int)"),
        lambda store, place: store._db.execute(
            "UPDATE cmrhash_collections SET codes=%s WHERE name = 'forged'", [place]
        ),
        _postgres_drop,
        lambda store, name: store._db.execute("SELECT to_regclass(%s)", [name]).fetchone()[0],
    ),
    "milvus": Kind(
        lambda store, name: store._client.create_collection(name, dimension=8),
        _milvus_entry,
        _milvus_drop,
        lambda store, name: store._client.has_collection(name),
    ),
}


@pytest.fixture
def kind(store):
    return KINDS[store.url.partition(":")[0].partition("+")[0]]


@pytest.mark.faults("store: an entry that names what others made")
@pytest.mark.parametrize("foreign", ["customers", "cmrhash_customers"])
def test_a_forged_entry_drops_nothing(store, kind, foreign):
    batch = (numbered(3), np.zeros((3, 1), np.uint8))
    store.replace("forged", 8, [batch])
    kind.foreign(store, foreign)
    try:
        kind.forge(store, foreign)
        calls = [
            lambda: store.search("forged", batch[1], 1),
            lambda: store.add("forged", [(["new"], batch[1][:1])]),
            lambda: store.remove("forged", ["k0"]),
        ]
        if not store.url.startswith("faiss"):  # a folder is replaced without a look at the old entry
            calls.append(lambda: store.replace("forged", 8, [batch]))
        before = leftovers(store)
        for call in calls:
            with pytest.raises(DamagedError, match=f"'forged' refers to '{foreign}', which cmrhash has not") as caught:
                call()
            assert "\n" not in str(caught.value)
        assert leftovers(store) == before
        if store.url.startswith("faiss"):
            store.replace("forged", 8, [batch])
        assert kind.there(store, foreign)
    finally:
        kind.drop(store, foreign)


@pytest.mark.faults("store: an entry that names what others made")
def test_an_entry_that_names_the_codes_of_another_collection_leaves_them(store, kind):
    batch = (numbered(3), np.zeros((3, 1), np.uint8))
    for name in ("forged", "mine"):
        store.replace(name, 8, [batch])
    if store.url.startswith("postgresql"):
        of_mine = "(SELECT codes FROM cmrhash_collections WHERE name = 'mine')"
        old = store._db.execute("SELECT codes FROM cmrhash_collections WHERE name = 'forged'").fetchone()[0]
        store._db.execute(f"DROP TABLE {old}")
        store._db.execute(f"UPDATE cmrhash_collections SET codes={of_mine} WHERE name = 'forged'")
    elif store.url.startswith("faiss"):
        kind.forge(store, read_json(store.folder / "mine.json", "")["folder"])
    else:
        kind.forge(store, store._find("mine")[0])
    try:
        store.replace("forged", 8, [batch])
    except DamagedError:  # a place of another name
        assert store.url.startswith("milvus")
    assert store.about("mine").rows == 3
    assert store.search("mine", batch[1], 1)[1][0][0] in batch[0]
