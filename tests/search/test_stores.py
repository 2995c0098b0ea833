"""Stores: every kind finds what brute force finds, changes in one move, and refuses in one line."""

from __future__ import annotations

import json
import os
import re
import resource
import sys
import threading
import weakref
from contextlib import closing
from dataclasses import replace

import faiss
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cmrhash.errors import CmrhashError, DamagedError, DataError, LockedError, UsageError
from cmrhash.search import publish, stores
from cmrhash.search.stores import check_name, folder, open_store, shown
from cmrhash.storage.files import locked

MILVUS = "CMRHASH_TEST_MILVUS"  # URL of a Milvus to test with, such as milvus+http://localhost:19530


@pytest.fixture(scope="session", params=["faiss", "postgresql", "milvus"])
def url(request, tmp_path_factory):
    """A place for collections of each kind."""
    if request.param == "faiss":
        return f"faiss:{tmp_path_factory.mktemp('faiss')}"
    if request.param == "postgresql":
        return request.getfixturevalue("postgres").url
    if MILVUS not in os.environ:
        pytest.skip(f"no Milvus: its embedded form has lost binary vectors; set {MILVUS} to the URL of a server")
    return os.environ[MILVUS]


@pytest.fixture
def store(url):
    with closing(open_store(url)) as opened:
        yield opened


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


# ---------------------------------------------------------------------------------------------- what is found


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
        store.drop("life")
        assert "life" not in store.names()
        for call in (store.about, store.drop, lambda name: store.search(name, other, 1)):
            with pytest.raises(UsageError, match="no collection 'life'"):
                call("life")


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
        for n in range(1, 25):
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


def leftovers(store):
    """What lies in the store, to the last file or table."""
    if store.url.startswith("faiss"):
        return sorted(path.name for path in store.folder.iterdir())
    if store.url.startswith("milvus"):
        return sorted(store._client.list_collections())
    return sorted(row[0] for row in store._db.execute("SELECT relname FROM pg_class WHERE relname LIKE 'cmrhash%%'"))


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


# ---------------------------------------------------------------------------------------------- what is refused


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


@pytest.mark.parametrize("k", [0, -1, 1.5, None, True])
def test_k_must_be_a_positive_whole_number(store, k):
    for rows in (0, 2):
        store.replace("k", 32, [(numbered(rows), np.zeros((rows, 4), np.uint8))])
        with pytest.raises(UsageError, match="k must be"):
            store.search("k", np.zeros((1, 4), np.uint8), k)


@pytest.mark.parametrize("name", ["", "../up", ".hidden", "a/b", "a b", "a\n", 'a"b', "x" * 151, "ä" * 76])
def test_names_that_not_every_store_can_have(store, name):
    for call in (store.about, store.drop, lambda name: store.replace(name, 8, [])):
        with pytest.raises(UsageError, match="collection name"):
            call(name)
    assert check_name("größe-tie-ap-32-en+de-text-pt_BR.2")


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("postgre://me:secret@host/db", "unknown kind of store: postgre://me:...@host/db: did you mean postgres:"),
        ("fais:codes", "did you mean faiss:"),
        ("codes", "give faiss:DIR, postgresql"),
        ("", "unknown kind of store"),
        ("faiss:", "not a folder"),
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


def test_probes_are_a_number():
    with pytest.raises(UsageError, match="--probes -1"):
        open_store("faiss:x", -1)


# ---------------------------------------------------------------------------------------------- a folder


@pytest.fixture
def filled(tmp_path):
    """A folder with a collection of 3,000 clustered codes: (store, keys, packed)."""
    rng = np.random.default_rng(0)
    packed = random_codes(rng, 30, 48)[rng.integers(0, 30, 3000)] ^ random_codes(rng, 3000, 48, 0.05)
    store = open_store(f"faiss:{tmp_path / 'codes'}")
    store.replace("some", 48, [(numbered(3000), packed)], None, True)
    return store, numbered(3000), packed


def part(store, name, file):
    return store.folder / json.loads((store.folder / f"{name}.json").read_bytes())["folder"] / file


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
    with pytest.raises(DamagedError, match="put it there again with cmrhash index"):
        open_store(store.url).search("some", packed[:1], 1)


@pytest.mark.faults("disk full")
def test_a_full_disk_leaves_the_old_codes(filled):
    store, keys, packed = filled
    before = leftovers(store)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(CmrhashError, match="'some' not written, file too large") as caught:
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


# ---------------------------------------------------------------------------------------------- PostgreSQL


def test_equal_codes_come_in_the_order_of_the_rows(postgres):
    with closing(open_store(postgres.url)) as store:
        keys = [f"{n % 7}-{n}" for n in range(40)]
        store.replace("ties", 8, [(keys, np.zeros((40, 1), np.uint8))])
        assert store.search("ties", np.zeros((1, 1), np.uint8), 40)[1] == [keys]


def test_a_lost_connection_is_made_again(postgres):
    with closing(open_store(postgres.url)) as store, closing(open_store(postgres.url)) as other:
        store.replace("lost", 8, [(["a"], np.zeros((1, 1), np.uint8))])
        for call in (
            lambda: store.search("lost", np.zeros((1, 1), np.uint8), 1)[1] == [["a"]],
            lambda: "lost" in store.names(),
        ):
            kill = (
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND datname = %s"
            )
            other._db.execute(kill, ["postgres"])
            assert call()


@pytest.mark.parametrize("url", ["postgresql://me:s3cret@/db?host=/nowhere", "postgresql://me:s3cret@/db?hots=x"])
def test_a_server_that_cannot_be_reached(postgres, url):
    with pytest.raises(CmrhashError) as caught:
        open_store(url)
    assert "\n" not in str(caught.value)
    assert "me:***@/db" in str(caught.value)
    assert "s3cret" not in str(caught.value)


def test_what_a_role_may_not_do(postgres):
    with closing(open_store(postgres.url)) as store:
        store.replace("granted", 8, [(["a"], np.zeros((1, 1), np.uint8))])
        for command in (
            "CREATE ROLE reader LOGIN",
            "GRANT SELECT ON ALL TABLES IN SCHEMA public TO reader",
            "CREATE DATABASE plain",
        ):
            store._db.execute(command)
    with closing(open_store(postgres.url_of("reader", password="s3cret"))) as store:
        assert store.search("granted", np.zeros((1, 1), np.uint8), 1)[1] == [["a"]]
        for call in (
            lambda: store.replace("granted", 8, []),
            lambda: store.add("granted", []),
            lambda: store.drop("granted"),
        ):
            with pytest.raises(CmrhashError, match=r"permission denied.*reader:\*\*\*@.*ask the owner") as caught:
                call()
            assert "\n" not in str(caught.value)
    with closing(open_store(postgres.url_of("reader", "plain"))) as store:
        assert store.names() == []
        with pytest.raises(CmrhashError, match="no extension vector.*administrator run CREATE EXTENSION"):
            store.replace("granted", 8, [])


# ---------------------------------------------------------------------------------------------- a run in a store


@pytest.fixture(scope="module")
def trained(make_cache, tmp_path_factory):
    """A folder with ``cache/toy`` and runs by labels (16 bits) and by pairs (12 bits)."""
    from cmrhash.config import TrainConfig
    from cmrhash.training.train import train

    base = tmp_path_factory.mktemp("trained")
    dataset, folder = make_cache(base / "cache")
    quick = TrainConfig(epochs=2, batch=16, hidden=16, bits=16, device="cpu")
    for config in (quick, replace(quick, relevance="pairs", bits=12), replace(quick, seed=1)):
        train(config, dataset, folder, base / "runs")
    return base


@pytest.fixture
def command(trained, monkeypatch, capsys):
    """A function that runs cmrhash there: (exit code, stdout, stderr)."""
    from cmrhash_cli.main import main

    monkeypatch.chdir(trained)

    def call(*args):
        monkeypatch.setattr(sys, "argv", ["cmrhash", *map(str, args)])
        code = 0
        try:
            main()
        except SystemExit as end:
            code = end.code or 0
        out = capsys.readouterr()
        return code, out.out, out.err

    return call


@pytest.mark.parametrize("run", ["triplet-16", "triplet-12-pairs"])
def test_a_store_gives_the_hits_of_the_runs_own_index(command, url, run):
    run = f"runs/toy/{run}"
    code, out, err = command("index", "--store", url, "--run", run, "--json")
    assert code == 0, err
    made = json.loads(out)
    assert [one["name"].removeprefix("toy-triplet-") for one in made["collections"]] == [
        f"{run[17:]}-{view}" for view in ("image", "text-de", "text-en")
    ]
    assert "triplet" in err  # progress
    for args in (
        ["--id", "i7"],
        ["--id", "i8", "--to", "both", "--lang", "de", "--k", 200],
        ["--id", "i0", "--to", "text"],
    ):
        own, stored = (
            json.loads(command("search", *args, "--run", run, "--json", *to)[1]) for to in ([], ["--store", url])
        )
        distances = [[hit["distance"] for hit in found["results"]] for found in (own, stored)]
        assert distances[0] == distances[1]
        last = distances[0][-1]
        kinds = (
            {(h["distance"], h["id"], h["modality"], h["caption"], *h["labels"]) for h in found["results"]}
            for found in (own, stored)
        )
        assert {hit for hit in next(kinds) if hit[0] < last} == {hit for hit in next(kinds) if hit[0] < last}


def test_index_says_what_it_wrote_and_what_comes_next(command, tmp_path, monkeypatch):
    monkeypatch.setenv("CMRHASH_STORE", f"faiss:{tmp_path / 'codes'}")
    code, out, err = command("index", "--bits", 16)
    assert code == 0
    assert re.search(r"toy-triplet-16\S*-text-en +16 +100", out)
    assert "next: cmrhash search QUERY --store faiss:" in err
    assert json.loads(command("search", "--id", "i7", "--bits", 16, "--json")[1])["results"]


def test_codes_of_another_training_are_refused(command, trained, tmp_path):
    url = f"faiss:{tmp_path}"
    ask = ("search", "--id", "i7", "--run", "runs/toy/triplet-16", "--store", url)
    code, _, err = command(*ask)
    assert code == 2
    assert "no collection 'toy-triplet-16-text-de' (there: none)" in err
    assert command("index", "--store", url, "--run", "runs/toy/triplet-16-seed1", "-q")[0] == 0
    for view in ("image", "text-de", "text-en"):
        (tmp_path / f"toy-triplet-16-seed1-{view}.json").rename(tmp_path / f"toy-triplet-16-{view}.json")
    code, _, err = command(*ask)
    assert code == 4
    assert "was made with heads_sha256 = " in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(("run", "codes", "database"), [("triplet-16", 120, 100), ("triplet-12-pairs", 240, 40)])
def test_the_codes_of_all_items_can_be_put_there_and_are_not_taken_for_the_database(command, url, run, codes, database):
    run = f"runs/toy/{run}"
    put = ("index", "--store", url, "--run", run)
    ask = ("search", "--id", "i7", "--to", "text", "--run", run, "--k", 500, "--json")
    code, out, err = command(*put, "--among", "all")
    assert code == 0
    assert re.search(rf"text-en +\d+ +{codes}\b", out)
    assert err.splitlines()[-1].endswith(f"--run {run} --among all")
    own, stored = (json.loads(command(*ask, "--among", "all", *to)[1])["results"] for to in ([], ["--store", url]))
    assert len(own) == codes
    assert {(hit["distance"], hit["caption"]) for hit in own} == {(hit["distance"], hit["caption"]) for hit in stored}
    assert sum(hit["itself"] for hit in stored) == codes // 120
    code, _, err = command(*ask, "--store", url)
    assert code == 4
    assert "made with --among all, asked for database" in err
    assert "ask with --among all, or put this run there with cmrhash index --among database" in err
    assert command(*put)[0] == 0
    assert len(json.loads(command(*ask, "--store", url)[1])["results"]) == database
    code, _, err = command(*ask, "--store", url, "--among", "all")
    assert code == 4
    assert "made with --among database, asked for all" in err


def test_a_collection_that_does_not_say_whose_codes_it_has_is_of_the_database(command, tmp_path, monkeypatch):
    url, run = f"faiss:{tmp_path}", ("--run", "runs/toy/triplet-16")
    with monkeypatch.context() as before:
        made = publish.meta_of
        before.setattr(publish, "meta_of", lambda *of: {k: v for k, v in made(*of).items() if k != "among"})
        assert command("index", "--store", url, *run, "-q")[0] == 0
    ask = ("search", "--id", "i7", *run, "--store", url)
    assert command(*ask)[0] == 0
    assert command(*ask, "--among", "all")[0] == 4


def test_what_others_put_there_is_found_by_its_key(command, trained, tmp_path):
    from cmrhash.search.hasher import Hasher

    url = f"faiss:{tmp_path}"
    assert command("index", "--store", url, "--run", "runs/toy/triplet-16", "-q")[0] == 0
    with closing(Hasher.load(trained / "runs/toy/triplet-16", trained / "cache", store=url)) as hasher:
        code = hasher.views["image"].codes.packed[:1] ^ 255
        with closing(open_store(url)) as store:
            store.add("toy-triplet-16-image", [(["new photo"], code)])
        hits = hasher.nearest(code[0], "image", "de", 200)
        assert (hits[0].id, hits[0].distance, hits[0].caption) == ("new photo", 0, None)
        assert sum(hit.caption is None for hit in hits) == 1


@pytest.mark.parametrize(
    ("words", "args"),
    [
        ("no --store", ["index"]),
        ("unknown kind of store", ["index", "--store", "file:x"]),
        ("unknown kind of store", ["search", "--id", "i7", "--store", "file:x", "--bits", 16]),
        ("no such trained run with 99 bits", ["index", "--store", "faiss:x", "--bits", 99]),
        ("--among train: choose database or all", ["index", "--store", "faiss:x", "--bits", 16, "--among", "train"]),
    ],
)
def test_the_commands_refuse_in_one_line(command, words, args):
    code, out, err = command(*args)
    assert (code, out) == (2, "")
    assert words in err
    assert err.count("\n") == 1
