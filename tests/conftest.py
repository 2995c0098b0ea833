"""Shared by all tests: no network, small data sets made on the spot, and quick settings."""

from __future__ import annotations

import functools
import os
import socket
import sys

import numpy as np
import pytest
from hypothesis import settings
from servers import PostgresServer
from trees import write_manifest
from xdist.scheduler import LoadFileScheduling

import cmrhash_cli.main  # noqa: F401  adds the commands that messages name
from cmrhash.data import manifest
from cmrhash.data.items import ImageTextDataset, Item, ids_digest
from cmrhash.features.dataset import ExtractedDataset
from cmrhash.features.file import FeatureWriter, source_digest

pytest_plugins = ["fault_table"]
STORES = "tests/search/stores/"
# How many times the usual number of examples a property is tried on, then other ones every time.
FUZZ = int(os.environ.get("CMRHASH_FUZZ", "1"))
settings.register_profile("tests", derandomize=FUZZ == 1, database=None, deadline=None)
settings.load_profile("tests")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")  # two test processes share two cores


def pytest_collection_modifyitems(items):
    # first the stores, whose servers are waited for, then long files: no process is left alone at the end
    items.sort(key=lambda item: (not item.nodeid.startswith(STORES), not item.get_closest_marker("slow")))
    for test in {item.obj for item in items if hasattr(item.obj, "hypothesis")}:
        usual = (
            test._hypothesis_internal_use_settings
        )  # where Hypothesis keeps them; what it offers changes no test's own
        test._hypothesis_internal_use_settings = settings(usual, max_examples=FUZZ * usual.max_examples)


class Scheduling(LoadFileScheduling):
    """Each test file in one process, and all files of the stores in the same one, so that one Milvus serves them."""

    def _split_scope(self, nodeid):
        file = super()._split_scope(nodeid)
        return STORES if file.startswith(STORES) else file


def pytest_xdist_make_scheduler(config, log):
    return Scheduling(config, log) if config.getvalue("dist") == "loadfile" else None


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Any attempt to reach another machine is a failure of the test."""
    connect = socket.socket.connect

    def guarded(self, address):
        if self.family in (socket.AF_INET, socket.AF_INET6):
            raise OSError(f"a test tried to connect to {address}")
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)


@pytest.fixture(scope="module", autouse=True)
def no_wait_for_disks(request):
    """What is written need not survive a power cut; it must where the tests are about that, or name fsync."""
    with pytest.MonkeyPatch.context() as patch:
        if not {"faults", "storage"} & set(request.path.parts) and b"fsync" not in request.path.read_bytes():
            patch.setattr(os, "fsync", lambda file: None)
        yield


@pytest.fixture(autouse=True)
def one_table_of_operators():
    """PyTorch makes its table of ONNX operators once in a process, not at each export, of which it is a quarter."""
    registration = sys.modules.get("torch.onnx._internal.exporter._registration")
    registry = getattr(registration, "ONNXRegistry", None)
    if isinstance(vars(registry or object).get("from_torchlib"), classmethod):
        registry.from_torchlib = staticmethod(functools.cache(registry.from_torchlib))


@pytest.fixture
def started(monkeypatch):
    """A function that sets the environment as torchrun does."""

    def start(rank, world, **changes):
        names = {"RANK": rank, "WORLD_SIZE": world, "LOCAL_RANK": rank, "MASTER_ADDR": "localhost", "MASTER_PORT": 1}
        for name, value in (names | changes).items():
            monkeypatch.delenv(name, raising=False)
            if value is not None:
                monkeypatch.setenv(name, str(value))

    return start


@pytest.fixture
def manifest_root(tmp_path):
    """A user's own data set: 40 photos of 4 classes, one English and one German caption each, splits drawn later."""
    return write_manifest(tmp_path / "mine", 40)


@pytest.fixture(scope="session")
def make_manifest():
    """The function that writes such a data set."""
    return write_manifest


@pytest.fixture(scope="session")
def postgres():
    with PostgresServer() as server:
        yield server


@pytest.fixture(scope="session")
def make_cache():
    """A function that writes an extracted data set with made-up features: class centre + noise, no encoder runs."""

    def make(cache, name="toy", count=120, change=None, relevance="labels", weights="random", shift=None):
        """change: item -> item. shift: a role whose items get other features. Returns the ExtractedDataset."""
        items = []
        for n in range(count):
            roles = {"query"} if n % 6 == 0 else {"database", "val" if n % 6 == 1 else "train"}
            labels = tuple(sorted({n % 5, (n + (n % 7 == 0)) % 5}))
            texts = {lang: (f"{lang} {n} a", f"{lang} {n} b") for lang in ("de", "en")}
            item = Item(f"i{n}", f"{n}.jpg", texts, labels, frozenset(roles))
            items.append(change(item) if change else item)
        classes = tuple("abcdef") if relevance == "labels" else ()
        data = ImageTextDataset(name, cache, tuple(items), classes, relevance)
        manifest.store(data, cache / name)
        rng = np.random.default_rng(0)
        for view, dim in (("image", 16), ("text-de", 12), ("text-en", 12)):
            kind, _, lang = view.partition("-")
            rows = [(n, c) for n, i in enumerate(items) for c in range(len(i.texts.get(lang, ())) if lang else 1)]
            centres, noise = rng.standard_normal((5, dim)), rng.standard_normal((count, 2, dim))
            own = rng.standard_normal((count, dim))  # of the item, whatever its class
            x = np.stack([centres[n % 5] + 0.3 * own[n] + 0.7 * noise[n, c] for n, c in rows]).astype(np.float32)
            x[[shift in items[n].splits for n, _ in rows]] += 3
            valid = np.array([bool(lang or items[n].image) for n, _ in rows])
            x[~valid] = 0
            recipe = {"kind": kind, "encoder": "toy", "weights": weights, **({"lang": lang} if lang else {})}
            recipe["items"] = ids_digest(data)
            item = np.array([n for n, _ in rows], np.int32)
            ids = tuple(i.id for i in items)
            with FeatureWriter(cache / name / f"{view}-toy.h5", item, ids, dim, recipe, len(rows)) as writer:
                texts = [items[n].texts[lang][c] if lang else "" for n, c in rows]
                writer.commit(0, x, valid, np.stack([source_digest(text.encode()) for text in texts]))
                writer.seal({})
        return ExtractedDataset.open(cache, name)

    return make
