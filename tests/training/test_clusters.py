"""Pseudo-labels by clusters, and the method that learns them in the place of labels."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from quick_training import QUICK, heads, history

from cmrhash.config import EvalConfig, FinetuneConfig
from cmrhash.errors import UsageError
from cmrhash.evaluation.evaluate import evaluate
from cmrhash.training import clusters, train
from cmrhash.training.finetune.loop import tuning_method
from cmrhash.training.methods import METHODS, get_method

CONFIG = replace(QUICK, method="krr-cluster", relevance="pairs")


def blobs(groups=4, each=40, dims=(("image", 7), ("de", 5), ("en", 6))):
    """Well separated groups of items, in every view, and the group of each item."""
    g = torch.Generator().manual_seed(0)
    group = torch.arange(groups).repeat_interleave(each)
    centres = {view: 5 * torch.randn(groups, dim, generator=g)[group] for view, dim in dims}
    return {view: x + torch.randn(x.shape, generator=g) for view, x in centres.items()}, group


def test_items_of_a_group_share_a_cluster_and_items_of_two_groups_do_not(monkeypatch):
    monkeypatch.setattr(clusters, "MOST", 4)
    features, group = blobs()
    torch.manual_seed(1)
    labels = clusters.pseudo_labels(features)
    assert labels.shape == (160, 4)
    assert torch.equal(labels.sum(1), torch.ones(160))
    together = labels @ labels.T > 0.5
    same = group[:, None] == group
    assert float(together[same].float().mean()) > 0.9
    assert float(together[~same].float().mean()) < 0.4  # random centres may leave a group without one


def test_an_item_gets_its_share_of_the_nearest_centres(monkeypatch):
    monkeypatch.setattr(clusters, "LABELS", 0.2)
    features, _ = blobs()
    torch.manual_seed(1)
    labels = clusters.pseudo_labels(features)
    assert labels.shape == (160, 20)  # one for eight items
    assert torch.equal(labels.sum(1), torch.full((160,), 4.0))


def test_centres_are_those_of_plain_k_means():
    x = torch.randn(60, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = clusters._centres(x, 5).numpy()
    rows, centres = x.numpy(), x.numpy()[:5].copy()
    for _ in range(clusters.ITERATIONS):
        nearest = [min(range(5), key=lambda c: ((row - centres[c]) ** 2).sum()) for row in rows]
        for c in range(5):
            own = [row for row, at in zip(rows, nearest, strict=True) if at == c]
            centres[c] = np.mean(own, axis=0) if own else centres[c]
    np.testing.assert_allclose(found, centres, rtol=1e-9)


def test_the_weights_are_squared_lengths_and_languages_share_theirs():
    features, _ = blobs()
    image = clusters._weighted("image", features["image"], 2)
    text = clusters._weighted("de", features["de"], 2)
    assert torch.allclose(image.pow(2).sum(1), torch.full((160,), clusters.WEIGHTS[0]))
    assert torch.allclose(text.pow(2).sum(1), torch.full((160,), clusters.WEIGHTS[1] / 2))


@pytest.mark.parametrize(("items", "expected"), [(5, 2), (80, 10), (10_000, 240)])
def test_the_number_of_clusters_follows_the_items(items, expected):
    assert clusters.count(items) == expected


def test_a_training_needs_no_labels_and_finds_the_hidden_classes(extracted, tmp_path):
    run, _ = train.train(CONFIG, extracted, tmp_path)
    assert run.has_two_roles
    assert history(run)[0]["kernels"].keys() == {"image", "de", "en"}
    rows = evaluate(EvalConfig(trained_by="pairs"), extracted, tmp_path).rows
    assert all(row["map"] > row["chance"] + 0.15 for row in rows)


def test_labels_change_nothing(extracted, tmp_path):
    with_labels, _ = train.train(replace(CONFIG, relevance="labels"), extracted, tmp_path)
    without, _ = train.train(CONFIG, extracted, tmp_path)
    assert heads(with_labels) == heads(without)


def test_it_serves_pairs_and_tunes_no_encoders():
    assert get_method("krr-cluster", "pairs") is METHODS["krr-cluster"]
    assert not METHODS["krr-cluster"].labels
    with pytest.raises(UsageError, match="'krr-cluster' has no loss that tunes encoders"):
        tuning_method(FinetuneConfig(method="krr-cluster"))
