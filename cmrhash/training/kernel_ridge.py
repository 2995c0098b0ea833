"""Kernel ridge regression with leave-one-out predictions in closed form, exact or on landmarks (Nystroem)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor

from cmrhash.training.gaussian import rbf
from cmrhash.training.terms import dots

WIDTHS = (0.3, 0.6, 0.9, 1.4, 2.0)  # of the kernel, on directions of standardised features
RIDGES = (0.06, 0.25, 0.5, 1.0, 2.0)
WEIGHTS = (0.0, 0.25, 0.5, 1.0, 2.0)  # of the words and of the n-grams of a text, beside its features
SAMPLE = 2_000  # rows at most that choose width and ridge
BLOCK = 8_192  # rows whose similarities to the landmarks are held at a time
JITTER = 1e-2  # on the landmarks' similarity to themselves, for single precision: some are nearly equal


@dataclass(frozen=True)
class Inputs:
    """Rows that kernels compare: directions of features x (n, D), and sparse vectors of terms (n, V) for texts."""

    x: Tensor
    terms: Tensor | None = None

    def __len__(self) -> int:
        return len(self.x)

    def rows(self, some: Tensor) -> Inputs:
        """Some of the rows."""
        return Inputs(self.x[some], None if self.terms is None else self.terms.index_select(0, some))

    def similar(self, others: Inputs, width: float) -> Tensor:
        """Similarities (n, m) to other rows: Gaussian kernel of the features, plus the dot product of the terms."""
        similar = rbf(self.x, others.x, width)
        if self.terms is not None and others.terms is not None:
            similar += dots(self.terms, others.terms)
        return similar


class Kernel(NamedTuple):
    """Chosen kernel. words, grams: weights of the terms; error: mean squared leave-one-out error of a target."""

    width: float
    ridge: float
    error: float
    words: float = 0.0
    grams: float = 0.0


class Regression(NamedTuple):
    """Kernel ridge regression. weights: (m, T) of the expansion; left_out: (s, T) leave-one-out predictions."""

    weights: Tensor
    left_out: Tensor


def choose(x: Tensor, targets: Tensor, terms: Mapping[str, Tensor] | None = None) -> Kernel:
    """Choose width, ridge and weights by the leave-one-out error on at most SAMPLE rows, drawn at random.

    Width and ridge are the best pair without terms. Then each number in turn gets its best value, until none changes.
    x: (n, D) directions of features; targets: (n, T), centred; terms: "words" and "grams" as sparse vectors (n, V).
    """
    some = torch.randperm(len(x))[:SAMPLE].to(x.device)
    x, targets = x[some], targets[some]
    chosen = {kind: vectors.index_select(0, some) for kind, vectors in (terms or {}).items()}
    known = {kind: dots(vectors, vectors) for kind, vectors in chosen.items()}
    gaussian = cache(lambda width: rbf(x, x, width))

    @cache
    def tried(width: float, ridge: float, weights: tuple[float, ...]) -> Kernel:
        kernel = gaussian(width).clone()
        for weight, similar in zip(weights, known.values(), strict=True):
            kernel.add_(similar, alpha=weight)
        left_out = _regress(_ridged(kernel, ridge), targets).left_out
        error = float((left_out - targets).pow(2).mean())
        return Kernel(width, ridge, error, **dict(zip(known, weights, strict=True)))

    none = (0.0,) * len(known)
    best = min((tried(width, ridge, none) for width, ridge in product(WIDTHS, RIDGES)), key=_error)
    before = None
    while known and best != before:
        before = best
        for name, values in {**dict.fromkeys(known, WEIGHTS), "width": WIDTHS, "ridge": RIDGES}.items():
            others = [best._replace(**{name: value}) for value in values]
            best = min((tried(k.width, k.ridge, tuple(getattr(k, kind) for kind in known)) for k in others), key=_error)
    return best


def _error(kernel: Kernel) -> float:
    return kernel.error


class Exact:
    """Regression on the similarities of all rows to each other: 8 n^2 bytes, O(n^3) time."""

    def __init__(self, inputs: Inputs, width: float) -> None:
        self.support, self.width = inputs, width

    def expansions(self, targets: Tensor, ridges: Sequence[float]) -> list[Tensor]:
        """Weights (n, T) for each ridge: (K + ridge I)^-1 targets. targets: (n, T), centred."""
        return [torch.cholesky_solve(targets, self._factor(ridge)) for ridge in ridges]

    def regress(self, targets: Tensor, ridge: float, some: Tensor) -> Regression:
        """Weights, and leave-one-out predictions of some of the rows."""
        found = _regress(self._factor(ridge), targets)
        return found._replace(left_out=found.left_out[some])

    def _factor(self, ridge: float) -> Tensor:
        return _ridged(self.support.similar(self.support, self.width), ridge)


def _regress(factor: Tensor, targets: Tensor) -> Regression:
    """Weights and leave-one-out predictions by the Cholesky factor of K + ridge I.

    With G = (K + ridge I)^-1 and c = G y, the prediction of row i from all other rows is y_i - c_i / G_ii (Rifkin &
    Lippert, Notes on Regularized Least Squares, MIT-CSAIL-TR-2007-025).
    """
    inverse = torch.cholesky_inverse(factor)
    weights = inverse @ targets
    return Regression(weights, targets - weights / inverse.diagonal()[:, None])


class Landmarks:
    """Regression on similarities to m landmarks: ridge regression on rows F = K_nm L^-T, with L L^T = K_mm + JITTER I.

    Williams & Seeger (NIPS 2000). Sums are in double precision. 24 m^2 + 12 m BLOCK bytes, O(n m^2) time.
    """

    def __init__(self, inputs: Inputs, support: Inputs, width: float) -> None:
        self.inputs, self.support, self.width = inputs, support, width
        self._root = _ridged(support.similar(support, width), JITTER)

    def expansions(self, targets: Tensor, ridges: Sequence[float]) -> list[Tensor]:
        """Weights (m, T) for each ridge. targets: (n, T), centred."""
        sums = targets.new_zeros(len(self.support), targets.shape[1], dtype=torch.float64)
        for similar, y in zip(self._blocks(), torch.split(targets, BLOCK), strict=True):
            sums += similar.T @ y
        moments = torch.linalg.solve_triangular(self._root.double(), sums, upper=False)  # F^T targets
        return [self._expanded(torch.cholesky_solve(moments, _ridged(self._gram.clone(), ridge))) for ridge in ridges]

    def regress(self, targets: Tensor, ridge: float, some: Tensor) -> Regression:
        """Weights, and leave-one-out predictions of some of the rows.

        With predictions p and leverages h_i = F_i (F^T F + ridge I)^-1 F_i^T, the prediction of row i from all other
        rows is y_i - (y_i - p_i) / (1 - h_i).
        """
        (weights,) = self.expansions(targets, [ridge])
        root = (self._root.double() @ _ridged(self._gram.clone(), ridge)).to(targets.dtype)  # F_i to K_i in one step
        left_out = []
        for rows in torch.split(some, BLOCK):
            similar, y = self.inputs.rows(rows).similar(self.support, self.width), targets[rows]
            leverage = torch.linalg.solve_triangular(root, similar.T, upper=False).pow(2).sum(0)  # (b,)
            left_out.append(y - (y - similar @ weights) / (1 - leverage)[:, None])
        return Regression(weights, torch.cat(left_out))

    @cached_property
    def _gram(self) -> Tensor:
        """F^T F (m, m) in double precision."""
        gram = torch.zeros(len(self.support), len(self.support), dtype=torch.float64, device=self._root.device)
        for similar in self._blocks():
            rows = torch.linalg.solve_triangular(self._root, similar.T, upper=False)  # (m, b)
            gram += rows @ rows.T
        return gram

    def _blocks(self) -> Iterator[Tensor]:
        """Similarities to the landmarks, some rows at a time: (b, m)."""
        for part in torch.split(torch.arange(len(self.inputs), device=self.inputs.x.device), BLOCK):
            yield self.inputs.rows(part).similar(self.support, self.width)

    def _expanded(self, solved: Tensor) -> Tensor:
        """Weights of the similarities from those of F."""
        weights: Tensor = torch.linalg.solve_triangular(self._root.T, solved.to(self._root.dtype), upper=True)
        return weights


def _ridged(matrix: Tensor, ridge: float) -> Tensor:
    """Cholesky factor of a matrix + ridge I; the matrix is changed."""
    matrix.diagonal().add_(ridge)
    factor: Tensor = torch.linalg.cholesky(matrix)
    return factor
