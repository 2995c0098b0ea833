"""Heads and their parts."""

import pytest
import torch

from cmrhash.training.heads import Dropout


@pytest.mark.parametrize("share", [0.1, 0.2, 0.5, 0.999])
def test_dropout_drops_its_share_everywhere_and_keeps_the_mean(share):
    torch.manual_seed(0)
    dropped = min(round(256 * share), 255) / 256
    out = Dropout(share)(torch.ones(400, 1001))  # 1,001: the last draw of a row is not used up
    assert (out == 0).float().mean().item() == pytest.approx(dropped, abs=0.005)
    for byte in range(8):  # every byte of a draw decides for a unit of its own
        assert (out.flatten()[byte::8] == 0).float().mean().item() == pytest.approx(dropped, abs=0.01)
    torch.testing.assert_close(out.unique(), torch.tensor([0.0, 1 / (1 - dropped)]))


def test_dropout_gives_the_gradient_of_what_it_kept():
    torch.manual_seed(0)
    x = torch.randn(64, 32, requires_grad=True)
    out = Dropout(0.5)(x)
    out.sum().backward()
    torch.testing.assert_close(x.grad, torch.where(out == 0, 0.0, 2.0))


def test_no_dropout_outside_training_or_for_a_share_of_zero():
    x = torch.randn(5, 7)
    assert Dropout(0.5).eval()(x) is x
    assert Dropout(0.0)(x) is x
    assert Dropout(0.001)(x) is x  # less than half of a 256th
