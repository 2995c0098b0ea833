"""Losses without labels, against NumPy loops written from the formulas."""

import inspect

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cmrhash.training import unlabelled_losses as fast


def cos(a, b):
    return float(np.dot(a, b) / np.sqrt(np.dot(a, a) * np.dot(b, b)))


def matrix(rows, columns, entry):
    return np.array([[entry(i, j) for j in range(columns)] for i in range(rows)])


def cosines(x, y):
    return matrix(len(x), len(y), lambda i, j: cos(x[i], y[j]))


def mse(a, b):
    return sum((a[i, j] - b[i, j]) ** 2 for i in range(len(a)) for j in range(a.shape[1])) / a.size


def slow_second_order(s_i, s_t, beta, eta, mu):
    n = len(s_i)
    joint = matrix(n, n, lambda i, j: beta * s_i[i, j] + (1 - beta) * s_t[i, j])
    second = matrix(n, n, lambda i, j: sum(joint[i, k] * joint[j, k] for k in range(n)) / n)
    return mu * ((1 - eta) * joint + eta * second)


def slow_across_order(s_i, s_t, weights):
    alpha, beta, both = weights
    n = len(s_i)
    high = matrix(n, n, lambda i, j: cos(s_i[i], s_t[j]))
    return matrix(n, n, lambda i, j: alpha * s_i[i, j] + beta * s_t[i, j] + both * (high[i, j] + high[j, i]) / 2)


def slow_stretched(s, left, right):
    n = len(s)
    others = sorted(s[i, j] for i in range(n) for j in range(n) if i != j)
    middle = others[(len(others) - 1) // 2]
    below = [x for x in others if x < middle]
    above = [x for x in others if x > middle]
    deviation = np.sqrt(sum((x - middle) ** 2 for x in below) / max(1, len(below)))
    mean = sum(x - middle for x in above) / max(1, len(above))

    def entry(i, j):
        x = s[i, j]
        if x < middle - 2 * deviation:
            return x * (1 + left * np.exp(-(x - others[0])))
        return x * (1 + right * np.exp(x - others[-1])) if x > middle + 4 * mean else x

    return matrix(n, n, entry)


def slow_follow(u, v, target, within):
    return within * mse(cosines(u, u), target) + mse(cosines(u, v), target) + within * mse(cosines(v, v), target)


def slow_neighbours(similar, itself, share):
    rows = []
    for s, own in zip(similar, itself, strict=True):
        nearest = sorted(range(len(s)), key=lambda j: -s[j])[: max(2, round(share * len(s)))]
        kept = [s[j] if j in nearest and not own[j] else 0.0 for j in range(len(s))]
        rows.append([x / sum(kept) for x in kept])
    return np.array(rows)


def slow_coherent(u, v, target, pair):
    uu, uv, vv = cosines(u, u), cosines(u, v), cosines(v, v)
    n = len(u)
    own = sum((uv[i, i] - pair) ** 2 for i in range(n)) / n
    off = sum((s[i, j] - target[i, j]) ** 2 / n**2 for s in (uu, uv, vv) for i in range(n) for j in range(n) if i != j)
    return own + off + mse(uv, uu) + mse(uv, vv) + mse(uu, vv) + mse(uv, uv.T)


def slow_noise_contrast(u, codes, temperature):
    total = 0.0
    for i, x in enumerate(u):
        unit = x / np.sqrt(np.dot(x, x))
        logits = [float(np.dot(unit, c)) / (temperature * np.sqrt(len(x))) for c in codes]
        total -= logits[i] - np.log(sum(np.exp(logits)))
    return total / len(u)


def slow_ranking(u, v, margin, shift):
    s, n = cosines(u, v), len(u)

    def cost(own, other):
        return np.exp(other if other >= own - margin else other - shift)

    rows = [margin - s[i, i] + np.log(sum(cost(s[i, i], s[i, j]) for j in range(n))) for i in range(n)]
    columns = [margin - s[j, j] + np.log(sum(cost(s[j, j], s[i, j]) for i in range(n))) for j in range(n)]
    return (sum(rows) + sum(columns)) / n


def draw(seed, size, width):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(size, width, generator=g, dtype=torch.float64)


def square(seed, size):
    """Symmetric similarities in [-1, 1] with ones on the diagonal."""
    return fast.cosines(draw(seed, size, 3))


def near(found, expected):
    np.testing.assert_allclose(np.asarray(found), expected, rtol=1e-9, atol=1e-12)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(4, 9))
def test_target_similarities_equal_the_loops(seed, size):
    a, b = square(seed, size), square(seed + 1, size)
    near(fast.second_order(a, b, 0.9, 0.4, 1.5), slow_second_order(a.numpy(), b.numpy(), 0.9, 0.4, 1.5))
    near(fast.across_order(a, b, (0.5, 0.1, 0.4)), slow_across_order(a.numpy(), b.numpy(), (0.5, 0.1, 0.4)))
    near(fast.stretched(a, 0.1, 0.2), slow_stretched(a.numpy(), 0.1, 0.2))
    itself = torch.eye(size, dtype=torch.bool)
    near(fast.neighbours((1 + a) / 2, itself, 0.5), slow_neighbours((1 + a.numpy()) / 2, itself.numpy(), 0.5))


LOSSES = {
    "follow": (lambda u, v, s: fast.follow(u, v, s, 0.1), lambda u, v, s: slow_follow(u, v, s, 0.1)),
    "coherent": (lambda u, v, s: fast.coherent(u, v, s, 1.5), lambda u, v, s: slow_coherent(u, v, s, 1.5)),
    "own_cosine": (
        lambda u, v, _: fast.own_cosine(u, v),
        lambda u, v, _: sum(cos(a, b) for a, b in zip(u, v, strict=True)) / len(u),
    ),
    "noise_contrast": (
        lambda u, v, _: fast.noise_contrast(u, torch.cat([v, -u.detach()]).sign(), 0.9),
        lambda u, v, _: slow_noise_contrast(u, np.sign(np.concatenate([v, -u])), 0.9),
    ),
    "ranking": (
        lambda u, v, _: fast.cross_modal_ranking(u, v, 0.2, 0.1),
        lambda u, v, _: slow_ranking(u, v, 0.2, 0.1),
    ),
}


@pytest.mark.parametrize("name", LOSSES)
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), size=st.integers(2, 7), bits=st.integers(2, 8))
def test_losses_equal_the_loops(name, seed, size, bits):
    u, v, target = draw(seed, size, bits), draw(seed + 1, size, bits), square(seed + 2, size)
    quick, slow = LOSSES[name]
    near(quick(u, v, target), slow(u.numpy(), v.numpy(), target.numpy()))


@pytest.mark.parametrize("name", ["follow", "coherent", "own_cosine", "ranking"])
def test_gradients_are_those_of_finite_differences(name):
    u, v = draw(3, 4, 5).requires_grad_(), draw(4, 4, 5).requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: LOSSES[name][0](a, b, square(5, 4)), (u, v))


def test_the_contrast_has_the_gradient_of_finite_differences():
    codes = draw(6, 9, 5).sign()
    assert torch.autograd.gradcheck(lambda u: fast.noise_contrast(u, codes, 0.9), draw(3, 4, 5).requires_grad_())


def test_tails_of_a_skewed_distribution_are_stretched_and_the_middle_stays():
    s = fast.cosines(torch.randn(200, 8, generator=torch.Generator().manual_seed(0))).pow(3)
    new = fast.stretched(s, 0.1, 0.2)
    assert bool((new[s.abs() < 0.05] == s[s.abs() < 0.05]).all())
    assert float(new.fill_diagonal_(0).max()) == pytest.approx(1.2 * float(s.fill_diagonal_(0).max()), rel=1e-5)


def test_a_neighbour_is_never_the_item_itself_and_rows_have_the_sum_one():
    similar = (1 + square(1, 10)) / 2
    found = fast.neighbours(similar, torch.eye(10, dtype=torch.bool), 0.4)
    assert torch.equal(found.diagonal(), torch.zeros(10, dtype=torch.float64))
    near(found.sum(1), np.ones(10))
    assert (found > 0).sum(1).tolist() == [3] * 10  # of the four most similar, one is the item


def test_each_loss_names_its_source():
    for name in ("second_order", "across_order", "stretched", "follow", "coherent", "noise_contrast"):
        assert "Source: " in inspect.getdoc(getattr(fast, name))
