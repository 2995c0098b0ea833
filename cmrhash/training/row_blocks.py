"""Training rows of several views in double precision, some at a time. NumPy only."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]

BLOCK = 8192  # rows that are held in double precision at a time


class Rows(Protocol):
    """Features of a view: an array (n, D), or anything that gives some of its rows."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(n, D)."""

    def __getitem__(self, rows: slice, /) -> NDArray[np.floating[Any]]:
        """These rows, (b, D)."""


Views = Mapping[str, Rows]  # name -> (n, D), row i of each from item i


def blocks(views: Views) -> Iterator[tuple[slice, dict[str, Matrix]]]:
    """Rows in blocks, with the features of each view in them, (b, D) float64."""
    for first in range(0, count(views), BLOCK):
        rows = slice(first, first + BLOCK)
        yield rows, {name: x[rows].astype(np.float64, copy=False) for name, x in views.items()}


def count(views: Views) -> int:
    """Number of rows n."""
    return next(iter(views.values())).shape[0]


def widths(views: Views) -> dict[str, slice]:
    """Columns of each view where all stand side by side."""
    ends = np.cumsum([0, *(x.shape[1] for x in views.values())]).tolist()
    return dict(zip(views, (slice(*pair) for pair in pairwise(ends)), strict=True))


def covariance(views: Views, weights: Callable[[slice], Matrix] | None = None) -> Matrix:
    """Second moments X^T X / n of all views side by side, (sum of D, sum of D).

    weights: rows -> a weight for each, (b,), that the row's products are multiplied by.
    """
    width = sum(x.shape[1] for x in views.values())
    total = np.zeros((width, width))
    for rows, parts in blocks(views):
        side = np.concatenate([*parts.values()], axis=1)
        total += side.T @ (side if weights is None else weights(rows)[:, None] * side)
    return total / count(views)


class Axes(NamedTuple):
    """Principal directions of each view, in which its covariance is diagonal.

    basis: all views below and beside each other, in blocks, (sum of D, sum of R); variances: along the directions,
    (sum of R,); own: columns of each view in the basis.
    """

    basis: Matrix
    variances: NDArray[np.float64]
    own: dict[str, slice]

    def scale(self, ridge: float) -> NDArray[np.float64]:
        """Factors (sum of R,) that make the covariance plus the ridge the identity; 0 where there is no variance."""
        total = self.variances + ridge
        factors: NDArray[np.float64] = np.where(total > 1e-10 * total.max(), total, np.inf) ** -0.5
        return factors

    def signed(self, vectors: Matrix) -> Matrix:
        """Eigenvectors (sum of R, m) with their arbitrary signs fixed, by the features that they are directions of."""
        fixed: Matrix = vectors * np.where((self.basis @ vectors).sum(0) < 0, -1, 1)
        return fixed


def principal(moments: Matrix, own: dict[str, slice], bits: int) -> Axes:
    """Principal directions of each view, without those that have no variance unless ``bits`` need them.

    moments: covariance of all views side by side; own: columns of each view. With fewer train items than features
    there are as many directions as items, and every eigenproblem in them is as much smaller.
    """
    directions, variances = [], []
    for columns in own.values():
        values, vectors = np.linalg.eigh(moments[columns, columns])
        rank = min(len(values), max(bits, int((values > 1e-10 * values[-1]).sum())))
        directions.append(np.zeros((len(moments), rank)))
        directions[-1][columns] = vectors[:, -rank:]
        variances.append(values[-rank:].clip(0))
    ends = np.cumsum([0, *map(len, variances)]).tolist()
    places = dict(zip(own, (slice(*pair) for pair in pairwise(ends)), strict=True))
    return Axes(np.concatenate(directions, axis=1), np.concatenate(variances), places)
