"""CCA against its definition and against the textbook's two-view solution."""

import numpy as np
import pytest

from cmrhash.errors import UsageError
from cmrhash.training import cca, rotations


def views(seed=0, rows=400):
    """Two views that share three hidden causes, strongest first."""
    rng = np.random.default_rng(seed)
    shared = rng.standard_normal((rows, 3)) * [3, 2, 1]
    made = {}
    for name, dim in (("image", 6), ("de", 5)):
        x = shared @ rng.standard_normal((3, dim)) + rng.standard_normal((rows, dim))
        made[name] = (x - x.mean(0)) / x.std(0)
    return made


def textbook(x, y, bits):
    """Canonical correlations: singular values of Cxx^(-1/2) Cxy Cyy^(-1/2), by Cholesky factors."""
    n = len(x)
    lx, ly = (np.linalg.cholesky(a.T @ a / n) for a in (x, y))
    return np.linalg.svd(np.linalg.solve(lx, x.T @ y / n) @ np.linalg.inv(ly).T)[1][:bits]


def test_two_views_give_the_canonical_correlations():
    made = views()
    (weights,) = cca.fit(made, 3, [0.0])
    u, v = (made[name] @ weights[name] for name in made)
    correlations = [np.corrcoef(u[:, k], v[:, k])[0, 1] for k in range(3)]
    np.testing.assert_allclose(correlations, textbook(*made.values(), 3), atol=1e-8)
    for z in (u, v):  # whitened: unit variance, no correlation within a view
        np.testing.assert_allclose(z.T @ z / len(z), np.eye(3), atol=1e-8)


def test_a_third_view_that_repeats_the_second_changes_no_direction():
    made = views()
    (two,), (three,) = cca.fit(made, 2, [1e-3]), cca.fit({**made, "en": made["de"]}, 2, [1e-3])
    np.testing.assert_allclose(three["de"], three["en"], atol=1e-8)
    u, w = made["de"] @ two["de"], made["de"] @ three["de"]
    assert all(abs(np.corrcoef(u[:, k], w[:, k])[0, 1]) > 0.95 for k in range(2))


@pytest.mark.parametrize("rows", [4, 400])
def test_it_is_the_eigenproblem_of_all_features_with_fewer_items_and_with_more(rows):
    made, ridge = views(rows=rows), 0.1
    (found,) = cca.fit(made, 3, [ridge])
    a = np.concatenate([*made.values()], axis=1).T @ np.concatenate([*made.values()], axis=1) / rows
    b = np.zeros_like(a)
    for own in (slice(0, 6), slice(6, 11)):
        values, vectors = np.linalg.eigh(a[own, own] + ridge * np.eye(own.stop - own.start))
        b[own, own] = vectors / np.sqrt(values) @ vectors.T
    expected = b @ np.linalg.eigh(b @ a @ b)[1][:, ::-1][:, :3] * np.sqrt(2)
    weights = np.concatenate([*found.values()])
    np.testing.assert_allclose(weights * np.sign((weights * expected).sum(0)), expected, atol=1e-8)


def test_constant_features_are_survived():
    made = views()
    made["image"][:, 2] = 0
    assert all(np.isfinite(w).all() for w in next(cca.fit(made, 2, [0.0])).values())


def test_more_bits_than_features_are_refused():
    with pytest.raises(UsageError, match="at most 5 bits, as many as de features"):
        next(cca.fit(views(), 6, [0.1]))


def slow_rotation(components, start, steps):
    """ITQ by its two steps: the nearest signs, then the nearest rotation (orthogonal Procrustes)."""
    turn = start
    for _ in range(steps):
        signs = [[1.0 if x >= 0 else -1.0 for x in row] for row in components @ turn]
        u, _, vt = np.linalg.svd(components.T @ np.array(signs))
        turn = u @ vt
    return turn


def test_cca_itq_turns_directions_weighted_by_their_correlations():
    made = views()
    (weights,), (found,) = cca.fit(made, 3, [0.0]), cca.fit_itq(made, 3, [0.0])
    correlations = textbook(*made.values(), 3)
    projected = np.concatenate([made[name] @ weights[name] * correlations for name in made])
    start = rotations._orthonormal(np.random.default_rng(0), 3)
    turn = slow_rotation(projected, start, rotations.ITERATIONS)
    np.testing.assert_allclose(turn @ turn.T, np.eye(3), atol=1e-8)
    for name in made:
        np.testing.assert_allclose(found[name], weights[name] * correlations @ turn, atol=1e-6)


def test_cca_itq_lies_nearer_to_its_signs_than_the_random_start():
    made = views(rows=800)
    found = np.concatenate([made[name] @ w for name, w in next(cca.fit_itq(made, 3, [0.1])).items()])
    other = found @ rotations._orthonormal(np.random.default_rng(7), 3)
    assert np.linalg.norm(other) == pytest.approx(np.linalg.norm(found))
    assert np.linalg.norm(np.sign(found) - found) < np.linalg.norm(np.sign(other) - other)
