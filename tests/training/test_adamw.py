"""AdamW without torch's optimizers is bit-equal to torch's."""

from copy import deepcopy

import pytest
import torch

from cmrhash.training.adamw import AdamW

SHAPES = [(40, 30), (30,), (7, 3, 3, 3), ()]


def parameters(seed=0):
    torch.manual_seed(seed)
    return [torch.nn.Parameter(torch.randn(shape)) for shape in SHAPES]


def set_gradients(ours, theirs, step, lacking=()):
    for at, (mine, other) in enumerate(zip(ours, theirs, strict=True)):
        generator = torch.Generator().manual_seed(100 * step + at)
        gradient = torch.randn(mine.shape, generator=generator) * 10.0 ** (step % 5 - 3)
        mine.grad, other.grad = (None if at in lacking else gradient.clone() for _ in range(2))


def assert_equal_bits(ours, theirs):
    for mine, other in zip(ours, theirs, strict=True):
        assert torch.equal(mine.detach(), other.detach())


@pytest.mark.parametrize("weight_decay", [0.0, 0.01, 0.3])
def test_fifty_steps_are_those_of_torch(weight_decay):
    ours, theirs = parameters(), parameters()
    mine = AdamW(ours, lr=2e-3, weight_decay=weight_decay)
    other = torch.optim.AdamW(theirs, lr=2e-3, weight_decay=weight_decay, fused=True)
    for step in range(50):
        set_gradients(ours, theirs, step, lacking={step % 7})  # a parameter without a gradient stays as it is
        for group in (*mine.param_groups, *other.param_groups):
            group["lr"] = 2e-3 / (1 + step)
        mine.step()
        other.step()
        assert_equal_bits(ours, theirs)
    own, expected = mine.state_dict()["state"], other.state_dict()["state"]
    assert own.keys() == expected.keys()
    for at, slots in expected.items():
        assert own[at].keys() == slots.keys()
        for name, tensor in slots.items():
            assert own[at][name].dtype == tensor.dtype
            assert torch.equal(own[at][name], tensor)


def test_groups_have_their_own_rates():
    ours, theirs = parameters(), parameters()
    mine = AdamW([{"params": ours[:2], "lr": 0.1}, {"params": ours[2:]}], lr=1e-3, weight_decay=0.01)
    groups = [{"params": theirs[:2], "lr": 0.1}, {"params": theirs[2:]}]
    other = torch.optim.AdamW(groups, lr=1e-3, weight_decay=0.01, fused=True)
    for step in range(5):
        set_gradients(ours, theirs, step)
        mine.step()
        other.step()
    assert_equal_bits(ours, theirs)


@pytest.mark.parametrize("writer", ["ours", "torch"])
def test_a_saved_state_goes_on_to_the_same_bits(writer):
    ours, theirs = parameters(), parameters()
    mine = AdamW(ours, lr=2e-3, weight_decay=0.01)
    other = torch.optim.AdamW(theirs, lr=2e-3, weight_decay=0.01, fused=True)
    for step in range(6):
        if step == 3:  # a checkpoint of an older version is one of torch's optimizer
            saved = deepcopy((mine if writer == "ours" else other).state_dict())
            mine = AdamW(ours, lr=2e-3, weight_decay=0.01)
            mine.load_state_dict(saved)
        set_gradients(ours, theirs, step)
        mine.step()
        other.step()
    assert_equal_bits(ours, theirs)


def test_gradients_are_forgotten():
    ours = parameters()
    optimizer = AdamW(ours, lr=1e-3, weight_decay=0.0)
    set_gradients(ours, parameters(), 0)
    optimizer.zero_grad()
    assert all(parameter.grad is None for parameter in ours)
    optimizer.step()
    assert optimizer.state_dict()["state"] == {}
    assert_equal_bits(ours, parameters())
