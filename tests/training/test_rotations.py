"""ITQ against a slow twin, written from the paper, and random rotations."""

import numpy as np
import pytest

from cmrhash.errors import UsageError
from cmrhash.training import rotations


def centred(rows=300, dim=12, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((rows, dim)) @ rng.standard_normal((dim, dim)) + rng.standard_normal(dim)
    return x - x.mean(0)


def slow_itq(x, bits, seed):
    """Gong & Lazebnik (CVPR 2011): PCA, then 50 times the signs of all items, bit by bit, and Procrustes."""
    _, _, directions = np.linalg.svd(x, full_matrices=False)
    w = directions[:bits].T
    w *= np.where(w.sum(0) < 0, -1, 1)
    v = np.array([[row @ w[:, k] for k in range(bits)] for row in x])
    q, r = np.linalg.qr(np.random.default_rng(seed).standard_normal((bits, bits)))
    rotation = q @ np.diag(np.sign(np.diag(r)))
    for _ in range(50):
        b = np.array([[1.0 if value >= 0 else -1.0 for value in row @ rotation] for row in v])
        s, _, s_hat_t = np.linalg.svd(b.T @ v)  # B^T V = S Omega S_hat^T
        rotation = s_hat_t.T @ s.T  # R = S_hat S^T
    return w @ rotation


def loss(x, weight):
    projected = x @ weight
    return ((np.where(projected >= 0, 1, -1) - projected) ** 2).sum()


@pytest.mark.parametrize(("bits", "seed"), [(1, 0), (4, 0), (8, 3), (12, 1)])
def test_itq_is_that_of_the_paper(bits, seed):
    x = centred()
    fast, slow = rotations.itq(x, bits, seed), slow_itq(x, bits, seed)
    np.testing.assert_allclose(fast, slow, atol=1e-6)


def test_itq_lies_nearer_to_its_signs_than_any_other_rotation_of_the_components():
    x = centred()
    weight = rotations.itq(x, 6, 0)
    np.testing.assert_allclose(weight.T @ weight, np.eye(6), atol=1e-10)
    components = np.linalg.svd(x, full_matrices=False)[2][:6].T
    np.testing.assert_allclose(weight @ weight.T, components @ components.T, atol=1e-8)
    others = [components, *(components @ rotations.sign(np.zeros((0, 6)), 6, seed) for seed in range(20))]
    assert loss(x, weight) < min(loss(x, other) for other in others)


def test_blocks_change_nothing(monkeypatch):
    x = centred().astype(np.float32)
    whole = rotations.itq(x, 5, 0)
    monkeypatch.setattr(rotations, "BLOCK", 7)
    np.testing.assert_allclose(rotations.itq(x, 5, 0), whole, atol=1e-8)


@pytest.mark.parametrize("rotate", [rotations.itq, rotations.sign])
def test_a_seed_gives_the_same_bits_and_another_one_others(rotate):
    x = centred()
    assert rotate(x, 6, 1).tobytes() == rotate(x, 6, 1).tobytes()
    assert abs(rotate(x, 6, 1) - rotate(x, 6, 2)).max() > 0.01


@pytest.mark.parametrize(("rows", "dim", "most"), [(300, 12, 12), (9, 12, 8), (1, 12, 0)])
def test_more_bits_than_directions_are_refused(rows, dim, most):
    what = rf"itq allows at most {most} bits here: {rows} images of {dim} features differ in {most} directions"
    with pytest.raises(UsageError, match=what):
        rotations.itq(centred(rows, dim), most + 1, 0)


def test_sign_rotates_and_more_bits_than_features_take_several_rotations():
    weight = rotations.sign(np.zeros((2, 6)), 15, 0)
    assert weight.shape == (6, 15)
    for first in (0, 6):
        block = weight[:, first : first + 6]
        np.testing.assert_allclose(block.T @ block, np.eye(6), atol=1e-10)
    np.testing.assert_allclose(np.linalg.norm(weight, axis=0), 1)
    assert abs(weight[:, :6].T @ weight[:, 6:12] - np.eye(6)).max() > 0.1
