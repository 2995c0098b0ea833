"""Gaussian kernel of feature rows."""

from __future__ import annotations

import torch
from torch import Tensor


def rbf(x: Tensor, y: Tensor, width: float | Tensor) -> Tensor:
    """Gaussian kernel exp(-width |x - y|^2 / D) of rows x (B, D) and y (C, D), (B, C).

    >>> rbf(torch.zeros(1, 2), torch.tensor([[0.0, 0.0], [1.0, 1.0]]), 1.0)
    tensor([[1.0000, 0.3679]])
    """
    squares = torch.addmm(y.pow(2).sum(1), x, y.T, alpha=-2).add_(x.pow(2).sum(1, keepdim=True))
    return squares.clamp_min_(0).mul_(-width / x.shape[1]).exp_()


def directions(x: Tensor) -> Tensor:
    """Rows x (B, D) with a mean square of 1: on these the kernel compares directions alone. Rows of zeros stay.

    >>> directions(torch.tensor([[3.0, 3.0], [0.0, 0.0]]))
    tensor([[1., 1.],
            [0., 0.]])
    """
    return x / x.pow(2).mean(1, keepdim=True).sqrt().clamp_min(1e-12)
