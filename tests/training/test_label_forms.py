"""SCM and CVH against their papers' problems, written out with the n x n similarity."""

from dataclasses import replace

import numpy as np
import pytest
from quick_training import QUICK
from scipy.linalg import eigh

from cmrhash.errors import UsageError
from cmrhash.training import label_forms, train

RIDGE = 0.1


@pytest.fixture
def labels():
    y = (np.random.default_rng(0).random((150, 5)) < 0.3).astype(float)
    y[y.sum(1) == 0, 0] = 1
    return y


@pytest.fixture
def views(labels):
    rng = np.random.default_rng(1)
    made = {}
    for name, dim in (("image", 7), ("de", 6), ("en", 6)):
        x = labels @ rng.standard_normal((5, dim)) + rng.standard_normal((150, dim))
        made[name] = (x - x.mean(0)) / x.std(0)
    return made


def cosines(labels):
    unit = labels / np.linalg.norm(labels, axis=1, keepdims=True)
    return unit @ unit.T


def covariance(x):
    return x.T @ x / len(x) + RIDGE * np.eye(x.shape[1])


def signs(x):
    return np.where(x >= 0, 1, -1)


@pytest.mark.parametrize("form", [label_forms.scm, label_forms.cvh])
def test_with_fewer_items_than_features_every_bit_differs_between_train_items(form, labels, views):
    few = {name: np.concatenate([x, x**2, x**3], axis=1)[:12] for name, x in views.items()}
    few = {name: x - x.mean(0) for name, x in few.items()}
    (found,) = form(few, 11, [RIDGE], labels[:12])
    for name, x in few.items():
        assert (x @ found[name]).std(0).min() > 1e-3


def test_scm_of_two_views_is_the_papers_problem_bit_by_bit(views, labels):
    two = {name: views[name] for name in ("image", "en")}
    (found,) = label_forms.scm(two, 8, [RIDGE], labels)
    x, y = two.values()
    residual = 8 * (2 * cosines(labels) - 1)
    for bit in range(8):
        across = x.T @ residual @ y / len(x)
        back = np.linalg.inv(covariance(y)) @ across.T
        w = eigh(across @ back, covariance(x))[1][:, -1]
        codes = signs(x @ w), signs(y @ back @ w)
        mine = [signs(two[name] @ found[name][:, bit]) for name in two]
        turn = 1 if (codes[0] == mine[0]).all() else -1
        for expected, got in zip(codes, mine, strict=True):
            np.testing.assert_array_equal(got, turn * expected)
        residual = residual - np.outer(*codes)


def test_scm_of_three_views_puts_each_pair_of_views_beside_the_others(views, labels):
    (found,) = label_forms.scm(views, 4, [RIDGE], labels)
    residual = {(a, b): 4 * (2 * cosines(labels) - 1) for a in views for b in views if a != b}
    widths = {name: x.shape[1] for name, x in views.items()}
    for bit in range(4):
        none = {(a, b): np.zeros((widths[a], widths[b])) for a in views for b in views}
        across = none | {(a, b): views[a].T @ r @ views[b] / 150 for (a, b), r in residual.items()}
        within = none | {(a, a): covariance(x) for a, x in views.items()}
        whole = [np.block([[found[a, b] for b in views] for a in views]) for found in (across, within)]
        w = np.split(eigh(*whole)[1][:, -1], np.cumsum([*widths.values()])[:-1])
        codes = {name: signs(views[name] @ part) for name, part in zip(views, w, strict=True)}
        mine = {name: signs(views[name] @ found[name][:, bit]) for name in views}
        turn = 1 if (codes["image"] == mine["image"]).all() else -1
        assert all((mine[name] == turn * codes[name]).all() for name in views)
        residual = {(a, b): r - np.outer(codes[a], codes[b]) for (a, b), r in residual.items()}


def test_cvh_minimises_the_distances_of_similar_items_within_and_between_views(views, labels):
    (found,) = label_forms.cvh(views, 3, [RIDGE], labels)
    w, names = cosines(labels), list(views)
    pairs = [(a, b) for at, a in enumerate(names) for b in names[at:]]

    def cost(heads):
        places = {name: x @ heads[name] for name, x in views.items()}
        return sum((w * ((places[a][:, None] - places[b][None]) ** 2).sum(-1)).sum() for a, b in pairs)

    def together(heads):
        return sum(heads[name].T @ covariance(x) @ heads[name] for name, x in views.items())

    np.testing.assert_allclose(together(found), np.eye(3), atol=1e-8)
    best, rng = cost(found), np.random.default_rng(2)
    for size in (0.01, 0.1, 1.0, 1.0):
        other = {name: head + size * rng.standard_normal(head.shape) for name, head in found.items()}
        root = np.linalg.inv(np.linalg.cholesky(together(other))).T  # uncorrelated over all views, as they have to be
        assert cost({name: head @ root for name, head in other.items()}) > best


def test_more_bits_than_features_are_refused_by_cvh_alone(views, labels):
    with pytest.raises(UsageError, match="cvh allows at most 19 bits"):
        next(label_forms.cvh(views, 20, [RIDGE], labels))
    assert next(label_forms.scm(views, 20, [RIDGE], labels))["de"].shape == (6, 20)


@pytest.mark.parametrize("method", ["scm", "cvh"])
def test_a_run_of_a_form_with_labels_beats_chance(extracted, tmp_path, method):
    run, _ = train.train(replace(QUICK, method=method), extracted, tmp_path)
    assert run.outcome.val_map_mean > 0.5
    assert run.outcome.epochs == len(train.RIDGES)
