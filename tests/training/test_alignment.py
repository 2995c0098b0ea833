"""Modality-gap terms against plain loops, and where there is hardly anything to compute them from."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from cmrhash.training.alignment import KERNEL_WIDTHS, LEAST_VARIANCE, adversarial, coral, correlation, mmd


def rows(x):
    return x.detach().tolist()


def mean(values):
    values = list(values)
    return sum(values) / len(values)


def slow_adversarial(u, v, classify):
    losses = []
    for view, x in enumerate((u, v)):
        for row in x:
            logits = rows(classify(row.unsqueeze(0)))[0]
            losses.append(math.log(sum(math.exp(value) for value in logits)) - logits[view])
    return mean(losses)


def slow_mmd(u, v):
    u, v = rows(u), rows(v)

    def far(x, y):
        return sum((a - b) ** 2 for a, b in zip(x, y, strict=True))

    both = u + v
    scale = mean(far(both[i], both[j]) for i in range(len(both)) for j in range(len(both)) if i != j)

    def k(x, y):
        return mean(math.exp(-far(x, y) / (w * scale)) for w in KERNEL_WIDTHS)

    def within(a, b):
        return mean(k(x, y) for x in a for y in b)

    return within(u, u) + within(v, v) - 2 * within(u, v)


def slow_covariance(x):
    centre = [mean(column) for column in zip(*x, strict=True)]
    return [
        [sum((row[i] - centre[i]) * (row[j] - centre[j]) for row in x) / max(len(x) - 1, 1) for j in range(len(centre))]
        for i in range(len(centre))
    ]


def slow_coral(u, v):
    a, b = slow_covariance(rows(u)), slow_covariance(rows(v))
    bits = len(a)
    return sum((a[i][j] - b[i][j]) ** 2 for i in range(bits) for j in range(bits)) / (4 * bits**2)


def slow_correlation(u, v):
    total = 0.0
    for a, b in zip(zip(*rows(u), strict=True), zip(*rows(v), strict=True), strict=True):
        a, b = [x - mean(a) for x in a], [x - mean(b) for x in b]
        spread = (mean(x * x for x in a) + LEAST_VARIANCE) * (mean(x * x for x in b) + LEAST_VARIANCE)
        total += mean(x * y for x, y in zip(a, b, strict=True)) / math.sqrt(spread)
    return -total


def classifier(bits, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(bits, 5), nn.ReLU(), nn.Linear(5, 2)).double()


TERMS = {"mmd": (mmd, slow_mmd), "coral": (coral, slow_coral), "correlation": (correlation, slow_correlation)}


def draw(seed, size, bits):
    g = torch.Generator().manual_seed(seed)
    u, v = (torch.rand(size, bits, generator=g, dtype=torch.float64) * 2 - 1 for _ in range(2))
    return u.requires_grad_(), v


@pytest.mark.parametrize("name", TERMS)
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), size=st.integers(1, 6), bits=st.integers(1, 5))
def test_terms_equal_their_plain_loops(name, seed, size, bits):
    fast, slow = TERMS[name]
    u, v = draw(seed, size, bits)
    loss = fast(u, v)
    assert loss.item() == pytest.approx(slow(u, v), abs=1e-12)
    assert torch.isfinite(torch.autograd.grad(loss, u)[0]).all()


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10**6), size=st.integers(1, 5), bits=st.integers(1, 5))
def test_the_adversarial_loss_is_the_classifiers_cross_entropy(seed, size, bits):
    u, v = draw(seed, size, bits)
    classify = classifier(bits)
    assert adversarial(u, v, classify).item() == pytest.approx(slow_adversarial(u, v, classify), abs=1e-12)


def test_the_adversary_goes_down_its_loss_and_the_embeddings_up():
    u, v = draw(1, 8, 4)
    classify = classifier(4)
    at = (u, *classify.parameters())
    reversed_ = torch.autograd.grad(adversarial(u, v, classify), at)
    plain_loss = nn.functional.cross_entropy(classify(torch.cat([u, v])), torch.tensor([0] * 8 + [1] * 8))
    plain = torch.autograd.grad(plain_loss, at)
    torch.testing.assert_close(reversed_[0], -plain[0])
    for found, expected in zip(reversed_[1:], plain[1:], strict=True):
        torch.testing.assert_close(found, expected)
    assert plain[0].abs().max() > 0


ALL = {
    **{name: fast for name, (fast, _) in TERMS.items()},
    "adversarial": lambda u, v: adversarial(u, v, nn.Linear(4, 2)),
}


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("size", [1, 2, 6])
@pytest.mark.parametrize("kind", ["one point", "two points", "the same rows", "constant columns"])
def test_degenerate_embeddings_give_a_finite_loss_and_a_bounded_gradient(name, size, kind):
    g = torch.Generator().manual_seed(0)
    u, v = torch.rand(size, 4, generator=g), torch.rand(size, 4, generator=g)
    if kind == "one point":
        u, v = torch.ones(size, 4), torch.ones(size, 4)
    elif kind == "two points":
        u, v = torch.ones(size, 4), -torch.ones(size, 4)
    elif kind == "the same rows":
        v = u.clone()
    else:
        u[:, :2] = 1
    u, v = u.requires_grad_(), v.requires_grad_()
    loss = ALL[name](u, v)
    assert torch.isfinite(loss)
    for gradient in torch.autograd.grad(loss, (u, v)):
        assert gradient.abs().max() < 1e4


def test_the_gap_is_zero_between_equal_views_and_grows_with_a_shift():
    u, v = draw(3, 40, 6)
    assert mmd(u, u).item() == pytest.approx(0, abs=1e-12)
    assert coral(u, u).item() == 0
    assert correlation(u, u).item() == pytest.approx(-6, abs=1e-4)
    shifts = [mmd(u, v + by).item() for by in (0, 0.3, 1.0)]
    assert shifts == sorted(shifts)
    assert coral(u, 2 * u).item() > coral(u, 1.1 * u).item() > 0
    assert coral(u, u + 5).item() == pytest.approx(0, abs=1e-12)  # covariances know no shift
    assert correlation(u, -u).item() == pytest.approx(6, abs=1e-4)
    assert correlation(u, 3 * u + 1).item() == pytest.approx(-6, abs=1e-4)


@pytest.mark.parametrize("name", TERMS)
def test_a_step_down_the_gradient_narrows_the_gap(name):
    fast, _ = TERMS[name]
    u, v = draw(4, 12, 5)
    v = v / 2 + 0.3
    loss = fast(u, v)
    lower = fast(u.detach() - 1e-3 * torch.autograd.grad(loss, u)[0], v)
    assert lower.item() < loss.item()
