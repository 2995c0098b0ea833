"""Losses over pairs of items, labels and features, against plain loops."""

import inspect
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loss_batches import batch

from cmrhash.training import losses
from cmrhash.training.losses import (
    contrastive,
    label_classification,
    multi_positive_contrastive,
    pairwise_logistic,
    projection_classification,
    projection_matching,
    reconstruction,
    relevance_likelihood,
    tie_aware_ap,
)

# ------------------------------------------------------------------------------------------ losses over pairs of items


def mean(values):
    values = list(values)
    return sum(values) / len(values) if values else 0.0


def dot(a, b):
    return sum(float(x) * float(y) for x, y in zip(a, b, strict=True))


def unit(a):
    length = math.sqrt(dot(a, a))
    return [float(x) / length for x in a]


def cells(relevant, wanted):
    return [(i, j) for i in range(len(relevant)) for j in range(len(relevant[0])) if bool(relevant[i][j]) == wanted]


def slow_logistic(u, v, relevant):
    near = mean(math.log1p(math.exp(-dot(u[i], v[j]) / 2)) for i, j in cells(relevant, True))
    return (near + mean(math.log1p(math.exp(dot(u[i], v[j]) / 2)) for i, j in cells(relevant, False))) / 2


def slow_likelihood(u, v, relevant):
    """DCMH's first term, a pair at a time."""

    def pair(i, j):
        theta = dot(u[i], v[j]) / 2
        return math.log(1 + math.exp(theta)) - float(relevant[i, j]) * theta

    return mean(pair(i, j) for i in range(len(u)) for j in range(len(v)))


def slow_contrastive(u, v, relevant, margin):
    def far(i, j):
        return sum((float(x) - float(y)) ** 2 for x, y in zip(u[i], v[j], strict=True))

    near = mean(far(i, j) for i, j in cells(relevant, True))
    return (near + mean(max(0.0, margin - far(i, j)) for i, j in cells(relevant, False))) / 2


def slow_multi_positive(u, v, relevant, temperature):
    losses = []
    for i, row in enumerate(relevant):
        scores = [dot(unit(u[i]), unit(b)) / temperature for b in v]
        whole = math.log(sum(math.exp(s) for s in scores))
        losses.append(mean(whole - s for s, r in zip(scores, row, strict=True) if r))
    return mean(losses)


def slow_matching(u, v, relevant):
    losses = []
    for i, row in enumerate(relevant):
        scores = [dot(u[i], unit(b)) for b in v]
        whole = sum(math.exp(s) for s in scores)
        p = [math.exp(s) / whole for s in scores]
        q = [float(r) / float(row.sum()) for r in row]
        losses.append(sum(a * (math.log(a) - math.log(b + 1e-8)) for a, b in zip(p, q, strict=True)))
    return mean(losses)


def slow_tie_ap(u, v, relevant, among=None):
    bits, losses = len(u[0]), []
    for i, row in enumerate(relevant):
        items, hits = [0.0] * (bits + 1), [0.0] * (bits + 1)
        for j, b in enumerate(v):
            if among is not None and not among[i][j]:
                continue
            distance = (bits - dot(u[i], b)) / 2
            for d in range(bits + 1):  # a triangle of width 2 around every whole distance
                weight = max(0.0, 1 - abs(distance - d))
                items[d] += weight
                hits[d] += weight * bool(row[j])
        found = sum(bool(r) for j, r in enumerate(row) if among is None or among[i][j])
        if found:
            ap, before, hit_before = 0.0, 0.0, 0.0
            for n, r in zip(items, hits, strict=True):
                ap += r * (2 * hit_before + r + 1) / (2 * before + n + 1)
                before, hit_before = before + n, hit_before + r
            losses.append(1 - ap / found)
    return mean(losses) if losses else 1.0


PAIRWISE = {
    "logistic": (pairwise_logistic, slow_logistic, ()),
    "likelihood": (relevance_likelihood, slow_likelihood, ()),
    "contrastive": (contrastive, slow_contrastive, (3.0,)),
    "multi-positive": (multi_positive_contrastive, slow_multi_positive, (0.2,)),
    "matching": (projection_matching, slow_matching, ()),
    "tie-ap": (tie_aware_ap, slow_tie_ap, ()),
}


def test_every_loss_over_pairs_of_items_has_its_plain_loops():
    functions = [one for name, one in inspect.getmembers(losses, inspect.isfunction) if not name.startswith("_")]
    pairwise = {one for one in functions if list(inspect.signature(one).parameters)[:3] == ["u", "v", "relevant"]}
    assert pairwise == {fast for fast, _, _ in PAIRWISE.values()}


@pytest.mark.parametrize("name", PAIRWISE)
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), size=st.integers(2, 7), bits=st.integers(1, 6))
def test_pairwise_losses_equal_their_plain_loops(name, seed, size, bits):
    fast, slow, more = PAIRWISE[name]
    u, v, relevant = batch(seed, size, bits, 0.3)
    u = u.requires_grad_()
    loss = fast(u, v, relevant, *more)
    assert loss.item() == pytest.approx(slow(u.detach(), v, relevant, *more), abs=1e-9)
    assert torch.isfinite(torch.autograd.grad(loss, u)[0]).all()


@pytest.mark.parametrize("name", PAIRWISE)
def test_a_step_down_the_gradient_lowers_a_pairwise_loss(name):
    fast, _, more = PAIRWISE[name]
    u, v, relevant = batch(5, 12, 8, 0.2)
    u = u.requires_grad_()
    loss = fast(u, v, relevant, *more)
    lower = fast(u.detach() - 1e-3 * torch.autograd.grad(loss, u)[0], v, relevant, *more)
    assert lower.item() < loss.item()


@pytest.mark.parametrize("name", PAIRWISE)
def test_pairwise_losses_without_an_irrelevant_pair_are_finite(name):
    fast, _, more = PAIRWISE[name]
    u, v, _ = batch(5, 4, 8, 0.2)
    u = u.requires_grad_()
    loss = fast(u, v, torch.ones(4, 4, dtype=torch.bool), *more)
    assert torch.isfinite(loss)
    assert torch.isfinite(torch.autograd.grad(loss, u)[0]).all()


def test_the_anchor_itself_can_be_left_out_of_the_ranking():
    u, _, relevant = batch(2, 8, 6, 0.3)
    among = ~torch.eye(8, dtype=torch.bool)
    assert tie_aware_ap(u, u, relevant, among).item() == pytest.approx(slow_tie_ap(u, u, relevant, among))
    assert tie_aware_ap(u, u, relevant).item() < tie_aware_ap(u, u, relevant, among).item()


def plain_tie_ap(u, v, relevant, among):
    """Tie-aware AP whose four sums are differentiated one by one."""
    bits = u.shape[1]
    distance = ((bits - u @ v.T) / 2).clamp(0, bits)
    low = distance.detach().floor().clamp_max(bits - 1)
    bins, share = torch.stack([low, low + 1]).long(), distance - low
    parts = torch.stack([1 - share, share]) * among.to(u.dtype)
    empty = u.new_zeros(2, len(u), bits + 1)
    items, hits = (empty.scatter_add(2, bins, part).sum(0) for part in (parts, parts * relevant))
    before, found = items.cumsum(1) - items, hits.cumsum(1) - hits
    count = (relevant & among).sum(1)
    ap = (hits * (2 * found + hits + 1) / (2 * before + items + 1)).sum(1) / count.clamp_min(1)
    return 1 - (ap * (count > 0)).sum() / (count > 0).sum().clamp_min(1)


@pytest.mark.parametrize("spread", [0.3, 1.0, 30.0])  # 30: codes at the corners, whose distances are clamped
@pytest.mark.parametrize("own", [False, True])
def test_the_gradient_of_tie_aware_ap_is_that_of_its_plain_sums(spread, own):
    draw = torch.Generator().manual_seed(0)
    u, v = (torch.tanh(spread * torch.randn(90, 16, generator=draw)).requires_grad_() for _ in range(2))
    relevant, among = torch.rand(90, 90, generator=draw) < 0.2, ~(torch.eye(90, dtype=torch.bool) & own)
    expected, found = plain_tie_ap(u, v, relevant, among), tie_aware_ap(u, v, relevant, among if own else None)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)
    for mine, other in zip(*(torch.autograd.grad(loss, (u, v)) for loss in (found, expected)), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-8)


def test_codes_at_the_corners_are_counted_at_whole_distances():
    u = torch.tensor([[1.0, 1.0], [-1.0, -1.0]])
    relevant = torch.eye(2, dtype=torch.bool)
    assert tie_aware_ap(u, u, relevant).item() == pytest.approx(0)
    assert tie_aware_ap(u, -u, relevant).item() == pytest.approx(0.5)


# ------------------------------------------------------------------------------------------ labels and reconstruction


def drawn_labels(seed, size, classes):
    """(size, classes) of 0 and 1, the first item without any label."""
    labels = (torch.rand(size, classes, generator=torch.Generator().manual_seed(seed)) < 0.4).double()
    labels[0] = 0
    return labels


def slow_label(logits, labels):
    losses = []
    for scores, own in zip(logits.tolist(), labels.tolist(), strict=True):
        whole = math.log(sum(math.exp(s) for s in scores))
        losses.append(sum((whole - s) / sum(own) for s, has in zip(scores, own, strict=True) if has))
    return mean(losses)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), size=st.integers(1, 6), classes=st.integers(1, 5))
def test_label_classification_equals_its_plain_loop(seed, size, classes):
    logits, _, _ = batch(seed, size, classes, 0.3)
    logits, labels = logits.requires_grad_(), drawn_labels(seed, size, classes)
    loss = label_classification(logits, labels)
    assert loss.item() == pytest.approx(slow_label(logits.detach(), labels), abs=1e-12)
    assert torch.isfinite(torch.autograd.grad(loss, logits)[0]).all()


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), size=st.integers(1, 6), bits=st.integers(1, 5))
def test_projection_classification_equals_its_plain_loop(seed, size, bits):
    u, v, _ = batch(seed, size, bits, 0.3)
    weight, _, _ = batch(seed + 1, 3, bits, 0.3)
    labels = drawn_labels(seed, size, 3)
    logits = []
    for a, b in zip(u, v, strict=True):
        x = [dot(a, unit(b)) * part for part in unit(b)]
        logits.append([dot(x, unit(w)) for w in weight])
    u, weight = u.requires_grad_(), weight.requires_grad_()
    loss = projection_classification(u, v, weight, labels)
    assert loss.item() == pytest.approx(slow_label(torch.tensor(logits, dtype=torch.float64), labels), abs=1e-9)
    for gradient in torch.autograd.grad(loss, (u, weight)):
        assert torch.isfinite(gradient).all()


def test_projection_classification_does_not_see_the_length_of_weights_or_of_the_other_view():
    u, v, _ = batch(0, 6, 4, 0.3)
    weight, labels = batch(1, 3, 4, 0.3)[0], drawn_labels(0, 6, 3)
    loss = projection_classification(u, v, weight, labels)
    torch.testing.assert_close(loss, projection_classification(u, 3 * v, 5 * weight, labels))
    assert not torch.allclose(loss, projection_classification(3 * u, v, weight, labels))


@pytest.mark.parametrize("zero", ["u", "v"])
def test_projection_classification_of_zero_embeddings_has_a_finite_gradient(zero):
    u, v, _ = batch(0, 6, 4, 0.3)
    u, v = (torch.zeros_like(x) if name == zero else x for name, x in (("u", u), ("v", v)))
    u, v = u.requires_grad_(), v.requires_grad_()
    loss = projection_classification(u, v, batch(1, 3, 4, 0.3)[0], drawn_labels(0, 6, 3))
    for gradient in torch.autograd.grad(loss, (u, v)):
        assert gradient.abs().max() < 1e4


def test_reconstruction_is_the_mean_squared_error_of_a_feature():
    decoded, features, _ = batch(0, 3, 2, 0.3)
    squares = [
        (float(a) - float(b)) ** 2 for x, y in zip(decoded, features, strict=True) for a, b in zip(x, y, strict=True)
    ]
    assert reconstruction(decoded, features).item() == pytest.approx(mean(squares))
