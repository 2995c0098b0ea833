"""A trained run over photos, and a client of its page."""

import pytest
from serving import BASE, QUICK

from cmrhash.config import ExtractConfig, ServeConfig, TrainConfig
from cmrhash.features.dataset import ExtractedDataset
from cmrhash.features.extract import extract
from cmrhash.search.hasher import Hasher
from cmrhash.training.train import train

MODELS = {"image_model": "mobilenet_v3_small", "image_weights": "random", "text_models": ("bow",)}


@pytest.fixture(scope="session")
def made(make_manifest, tmp_path_factory):
    """A folder with photos, cache and one trained run."""
    base = tmp_path_factory.mktemp("serve")
    root = make_manifest(base / "mine", 40)
    extract(ExtractConfig(dataset="manifest", root=root, cache=base / "cache", device="cpu", **MODELS))
    train(TrainConfig(**QUICK), ExtractedDataset.open(base / "cache"), base / "runs")
    return base


@pytest.fixture(scope="session")
def hasher(made):
    return Hasher.load(made / "runs/manifest/triplet-16", made / "cache", device="cpu")


@pytest.fixture
def serve():
    """A function that makes a client of a hasher's page, with other settings if need be."""
    pytest.importorskip("fastapi", reason='needs pip install "cmrhash[serve]"')
    from fastapi.testclient import TestClient

    from cmrhash.show.server.app import new_state
    from cmrhash.show.server.server import guarded

    states = []

    def client(hasher, token=None, base=BASE, **settings):
        states.append(new_state(hasher, ServeConfig(**settings)))
        made = TestClient(guarded(states[-1], token), base_url=base, follow_redirects=False)
        made.state = states[-1]
        return made

    yield client
    for state in states:
        state.close()


@pytest.fixture
def client(hasher, serve):
    with serve(hasher) as client:
        yield client
