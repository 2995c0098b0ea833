"""A small data set with a trained run, and a ``Hasher`` of it."""

from dataclasses import replace

import pytest
from small_searches import MODELS, QUICK

from cmrhash.config import ExtractConfig, TrainConfig
from cmrhash.features.dataset import ExtractedDataset
from cmrhash.features.extract import extract
from cmrhash.search.hasher import Hasher
from cmrhash.training.train import train


@pytest.fixture(scope="session")
def made(make_manifest, tmp_path_factory):
    """A folder with photos, cache and one trained run; images by a CNN, English by a BERT, German by its words."""
    base = tmp_path_factory.mktemp("search")
    root = make_manifest(base / "mine", 40)
    extract(ExtractConfig(dataset="manifest", root=root, cache=base / "cache", device="cpu", **MODELS))
    data = ExtractedDataset.open(base / "cache", None)
    train(TrainConfig(**QUICK, device="cpu"), data, base / "runs")
    return base


@pytest.fixture(scope="session")
def hasher(made):
    return Hasher.load(made / "runs/manifest/triplet-16", made / "cache", device="cpu")


@pytest.fixture(scope="module")
def by_pairs(make_cache, tmp_path_factory):
    """A folder with a run by pairs whose database is its 20 queries, out of 120 items of two captions each."""
    base = tmp_path_factory.mktemp("pairs")
    data = make_cache(base / "cache", relevance="pairs", change=lambda item: replace(item, labels=()))
    train(TrainConfig(**QUICK, device="cpu"), data, base / "runs")
    return base
