"""Trained runs that the tests of the evaluation share."""

import shutil
from dataclasses import replace

import pytest
from slow_scores import QUICK

from cmrhash.config import EvalConfig
from cmrhash.data import manifest
from cmrhash.evaluation.evaluate import evaluate
from cmrhash.training.train import train


@pytest.fixture(scope="session")
def scored(make_cache, tmp_path_factory):
    """An extracted data set, its runs of 8 and 13 bits, and what eval says of them."""
    base = tmp_path_factory.mktemp("scored")
    dataset, folder = make_cache(base / "cache")
    for bits in (13, 8):
        train(replace(QUICK, bits=bits), dataset, folder, base / "runs")
    return base, dataset, folder, evaluate(EvalConfig(), dataset, folder, base / "runs")


@pytest.fixture
def mine(scored, tmp_path):
    """A copy that a test may change: (data set, its folder, runs)."""
    shutil.copytree(scored[0], tmp_path, dirs_exist_ok=True)
    folder = tmp_path / "cache" / "toy"
    return manifest.load(folder), folder, tmp_path / "runs"


@pytest.fixture(scope="session")
def paired(make_cache, tmp_path_factory):
    """The same photos by pairs, an item with a single English caption among them: (runs, data set, folder, run)."""

    def change(item):
        return replace(item, texts={**item.texts, "en": item.texts["en"][:1]}) if item.id == "i12" else item

    base = tmp_path_factory.mktemp("paired")
    made = make_cache(base / "cache", change=change)
    run, _ = train(replace(QUICK, relevance="pairs", method="supcon"), *made, base / "runs")
    return base / "runs", *made, run
