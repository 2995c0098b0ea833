"""Random codes with numbered keys, and a check of what a store finds."""

from __future__ import annotations

import json

import numpy as np

MILVUS = "CMRHASH_TEST_MILVUS"  # URL of a Milvus to test with, such as milvus+http://localhost:19530


def random_codes(rng, rows, bits, share=0.5):
    return np.packbits(rng.random((rows, bits)) < share, axis=1, bitorder="little")


def numbered(rows, start=0):
    return [f"k{n}" for n in range(start, start + rows)]


def check_found(found, query, database, k, exact=True):
    """Distances are those of brute force, and every key lies at its distance; database: {key: code}."""
    distances, keys = found
    packed = np.array(list(database.values()), np.uint8).reshape(len(database), query.shape[1])
    full = np.bitwise_count(query[:, None] ^ packed[None]).sum(axis=2, dtype=np.int64)
    place = {key: at for at, key in enumerate(database)}
    assert distances.dtype == np.int32
    assert distances.shape == (len(query), min(k, len(database)))
    assert [len(line) for line in keys] == [distances.shape[1]] * len(query)
    for q, line in enumerate(keys):
        assert len(set(line)) == len(line)
        assert distances[q].tolist() == [full[q, place[key]] for key in line]
    assert (np.diff(distances, axis=1) >= 0).all()
    if exact:
        assert np.array_equal(distances, np.sort(full, axis=1)[:, :k])


LEFTOVERS = {  # kind of store -> everything that it holds, to the last file or table
    "faiss": lambda store: [path.name for path in store.folder.iterdir()],
    "postgresql": lambda store: store._db.execute(TABLES).fetchall(),
    "milvus": lambda store: store._client.list_collections(),
}
TABLES = "SELECT relname FROM pg_class WHERE relname LIKE 'cmrhash%%'"


def is_slow(store):
    """Whether making a collection takes seconds, so that fewer cases are tried."""
    return store.url.startswith("milvus")


def leftovers(store):
    return sorted(LEFTOVERS[store.url.partition(":")[0].partition("+")[0]](store))


def part(store, name, file):
    return store.folder / json.loads((store.folder / f"{name}.json").read_bytes())["folder"] / file
