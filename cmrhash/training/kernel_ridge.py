"""Kernel ridge regression with leave-one-out predictions in closed form, exact or on landmarks (Nystroem)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor

from cmrhash.training.heads import rbf

WIDTHS = (0.15, 0.3, 0.6, 0.9, 1.4, 2.0)  # of the kernel, on standardised features
RIDGES = (0.25, 0.5, 1.0, 2.0)
SAMPLE = 2_000  # rows at most that choose width and ridge
BLOCK = 8_192  # rows whose similarities to the landmarks are held at a time
JITTER = 1e-2  # on the landmarks' similarity to themselves, for single precision: some are nearly equal


class Kernel(NamedTuple):
    """Chosen kernel. error: mean squared leave-one-out error of a target."""

    width: float
    ridge: float
    error: float


class Regression(NamedTuple):
    """Kernel ridge regression. weights: (m, T) of the expansion; left_out: (n, T) leave-one-out predictions."""

    weights: Tensor
    left_out: Tensor


def choose(x: Tensor, targets: Tensor) -> Kernel:
    """Choose width and ridge by the leave-one-out error on at most SAMPLE rows, drawn at random.

    x: (n, D) standardised features; targets: (n, T), centred.
    """
    some = torch.randperm(len(x))[:SAMPLE].to(x.device)
    x, targets = x[some], targets[some]
    found = []
    for width, ridge in product(WIDTHS, RIDGES):
        left_out = Exact(x, width).regress(targets, ridge).left_out
        found.append(Kernel(width, ridge, float((left_out - targets).pow(2).mean())))
    return min(found, key=lambda kernel: kernel.error)


class Exact:
    """Regression on the similarities of all rows to each other: 8 n^2 bytes, O(n^3) time."""

    def __init__(self, x: Tensor, width: float) -> None:
        self.support, self.width = x, width

    def expansions(self, targets: Tensor, ridges: Sequence[float]) -> list[Tensor]:
        """Weights (n, T) for each ridge: (K + ridge I)^-1 targets. targets: (n, T), centred."""
        return [torch.cholesky_solve(targets, self._factor(ridge)) for ridge in ridges]

    def regress(self, targets: Tensor, ridge: float) -> Regression:
        """Weights and leave-one-out predictions.

        With G = (K + ridge I)^-1 and c = G y, the prediction of row i from all other rows is y_i - c_i / G_ii (Rifkin &
        Lippert, Notes on Regularized Least Squares, MIT-CSAIL-TR-2007-025).
        """
        inverse = torch.cholesky_inverse(self._factor(ridge))
        weights = inverse @ targets
        return Regression(weights, targets - weights / inverse.diagonal()[:, None])

    def _factor(self, ridge: float) -> Tensor:
        """Cholesky factor of K + ridge I."""
        kernel = rbf(self.support, self.support, self.width)
        kernel.diagonal().add_(ridge)
        factor: Tensor = torch.linalg.cholesky(kernel)
        return factor


class Landmarks:
    """Regression on similarities to m landmarks: ridge regression on rows F = K_nm L^-T, with L L^T = K_mm + JITTER I.

    Williams & Seeger (NIPS 2000). Sums are in double precision. 24 m^2 + 12 m BLOCK bytes, O(n m^2) time.
    """

    def __init__(self, x: Tensor, support: Tensor, width: float) -> None:
        self.x, self.support, self.width = x, support, width
        own = rbf(support, support, width)
        own.diagonal().add_(JITTER)
        self._root = torch.linalg.cholesky(own)

    def expansions(self, targets: Tensor, ridges: Sequence[float]) -> list[Tensor]:
        """Weights (m, T) for each ridge. targets: (n, T), centred."""
        gram, moments = self._sums(targets)
        return [self._expanded(torch.cholesky_solve(moments, _ridged(gram, ridge))) for ridge in ridges]

    def regress(self, targets: Tensor, ridge: float) -> Regression:
        """Weights and leave-one-out predictions.

        With predictions p and leverages h_i = F_i (F^T F + ridge I)^-1 F_i^T, the prediction of row i from all other
        rows is y_i - (y_i - p_i) / (1 - h_i).
        """
        gram, moments = self._sums(targets)
        factor = _ridged(gram, ridge)
        solved = torch.cholesky_solve(moments, factor).to(targets.dtype)
        factor = factor.to(targets.dtype)
        left_out = []
        for rows, y in zip(self._blocks(), torch.split(targets, BLOCK), strict=True):
            leverage = torch.linalg.solve_triangular(factor, rows.T, upper=False).pow(2).sum(0)  # (b,)
            left_out.append(y - (y - rows @ solved) / (1 - leverage)[:, None])
        return Regression(self._expanded(solved), torch.cat(left_out))

    def _sums(self, targets: Tensor) -> tuple[Tensor, Tensor]:
        """F^T F (m, m) and F^T targets (m, T) in double precision."""
        m, double = len(self.support), torch.float64
        gram = torch.zeros(m, m, dtype=double, device=targets.device)
        moments = torch.zeros(m, targets.shape[1], dtype=double, device=targets.device)
        for rows, y in zip(self._blocks(), torch.split(targets, BLOCK), strict=True):
            gram += rows.T @ rows
            moments += rows.T @ y
        return gram, moments

    def _blocks(self) -> Iterator[Tensor]:
        """Rows of F, some at a time: (b, m)."""
        for part in torch.split(self.x, BLOCK):
            similar = rbf(part, self.support, self.width)
            yield torch.linalg.solve_triangular(self._root, similar.T, upper=False).T

    def _expanded(self, solved: Tensor) -> Tensor:
        """Weights of the similarities from those of F."""
        weights: Tensor = torch.linalg.solve_triangular(self._root.T, solved.to(self._root.dtype), upper=True)
        return weights


def _ridged(gram: Tensor, ridge: float) -> Tensor:
    """Cholesky factor of F^T F + ridge I."""
    ridged = gram.clone()
    ridged.diagonal().add_(ridge)
    factor: Tensor = torch.linalg.cholesky(ridged)
    return factor
