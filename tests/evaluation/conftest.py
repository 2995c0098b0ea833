"""Trained runs that the tests of the evaluation share."""

import shutil
from dataclasses import replace

import pytest
from slow_scores import QUICK

from cmrhash.config import EvalConfig
from cmrhash.data import manifest
from cmrhash.evaluation.evaluate import evaluate
from cmrhash.features.dataset import ExtractedDataset
from cmrhash.training.train import train


@pytest.fixture(scope="session")
def scored(make_cache, tmp_path_factory):
    """An extracted data set, its runs of 8 and 13 bits, and what eval says of them."""
    base = tmp_path_factory.mktemp("scored")
    data = make_cache(base / "cache")
    for bits in (13, 8):
        train(replace(QUICK, bits=bits), data, base / "runs")
    return base, data, evaluate(EvalConfig(), data, base / "runs")


@pytest.fixture
def mine(scored, tmp_path):
    """A copy that a test may change: (extracted data set, runs)."""
    shutil.copytree(scored[0], tmp_path, dirs_exist_ok=True)
    folder = tmp_path / "cache" / "toy"
    return ExtractedDataset(manifest.load(folder), folder), tmp_path / "runs"


@pytest.fixture(scope="session")
def paired(make_cache, tmp_path_factory):
    """The same photos by pairs, an item with a single English caption among them: (runs, data set, folder, run)."""

    def change(item):
        return replace(item, texts={**item.texts, "en": item.texts["en"][:1]}) if item.id == "i12" else item

    base = tmp_path_factory.mktemp("paired")
    made = make_cache(base / "cache", change=change)
    run, _ = train(replace(QUICK, relevance="pairs", method="supcon"), made, base / "runs")
    return base / "runs", made, run
