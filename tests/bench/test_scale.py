"""Training on synthetic collections of any size."""

import numpy as np
import pytest

from cmrhash.bench import scale
from cmrhash.data.view import View
from cmrhash.training import kernel_codes


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(scale, "QUERIES", 40)
    monkeypatch.setattr(scale, "PART", 150)


def test_it_measures_a_training(monkeypatch):
    monkeypatch.setattr(kernel_codes, "STEPS", 30)
    found = scale.measure(400, "krr-ap", 16)
    assert (found.items, found.method) == (400, "krr-ap")
    assert found.cpu_s > 0
    for figures in found.scores.values():
        assert min(figures["map_seen"], figures["map"], figures["map_unseen"]) > 0.15  # chance .08


def test_features_are_those_of_the_labels_with_noise(tmp_path, monkeypatch):
    monkeypatch.setattr(scale, "NOISE", {View.IMAGE: 0.0, View.text("en"): 1.0})
    data = scale.collection(tmp_path, 310)
    x = data.features("image").features.x
    assert x.shape == (310, scale.DIM)
    own = [item.labels for item in data.dataset.items]
    pairs = [(a, b) for a in range(310) for b in range(a) if own[a] == own[b]]
    assert pairs
    assert all(np.array_equal(x[a], x[b]) for a, b in pairs)
    for item in data.dataset.items:
        said = {int(word[4:]) for word in item.texts["en"][0].split() if word.startswith("word")}
        assert said <= set(item.labels)
