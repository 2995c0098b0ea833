"""Canonical correlation analysis: linear heads in closed form, for any number of views. NumPy only."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from cmrhash.errors import UsageError
from cmrhash.training import rotations
from cmrhash.training.row_blocks import Matrix, Views, blocks, covariance, principal, widths


def fit(views: Views, bits: int, ridges: Sequence[float]) -> Iterator[dict[str, Matrix]]:
    """Fit projections onto the directions in which the views correlate most, once for each ridge.

    views: name -> (n, D) standardised features, row i of each from item i. ridges: added to the diagonal of every
    view's covariance. Yields name -> (D, bits); the projected training rows have unit variance over the views together,
    most correlated direction first. Two views give Hotelling's CCA (1936); more give Kettenring's SUMCOR in its
    eigenvalue form (Biometrika 1971; Nielsen, IEEE TIP 2002): the leading eigenvectors of B^(-1/2) A B^(-1/2), A the
    covariance of all views side by side, B its block diagonal plus the ridge. Raises UsageError if a view has fewer
    than ``bits`` features. The features are read once, in blocks.
    """
    return (weights for weights, _ in _directions(views, bits, ridges))


def fit_itq(views: Views, bits: int, ridges: Sequence[float]) -> Iterator[dict[str, Matrix]]:
    """Fit projections as `fit` does, weighted by their correlations and turned until they lie near their signs.

    The correlation of a direction is (e - 1) / (V - 1), e its eigenvalue and V the number of views. One rotation serves
    all views; it is fitted to the projected rows of all of them, from a fixed random start. Source: Gong & Lazebnik,
    Iterative Quantization, TPAMI 2013, section 4 (CCA-ITQ), with texts in the place of labels.
    """
    for directions, values in _directions(views, bits, ridges):
        correlations = np.clip((values - 1) / (len(views) - 1), 0, None)
        weights = {name: weight * correlations for name, weight in directions.items()}
        projected = [x @ weights[name] for _, parts in blocks(views) for name, x in parts.items()]
        turn = rotations.turn(np.concatenate(projected), np.random.default_rng(0))
        yield {name: weight @ turn for name, weight in weights.items()}


def _directions(
    views: Views, bits: int, ridges: Sequence[float]
) -> Iterator[tuple[dict[str, Matrix], NDArray[np.float64]]]:
    """Projections (D, bits) by view and their eigenvalues (bits,), largest first, for each ridge."""
    for name, x in views.items():
        if x.shape[1] < bits:
            raise UsageError(
                f"cca allows at most {x.shape[1]} bits, as many as {name} features",
                None,
                "use fewer bits, or another method",
                option="bits",
            )
    moments, own = covariance(views), widths(views)
    axes = principal(moments, own, bits)
    moments = axes.basis.T @ moments @ axes.basis
    for ridge in ridges:
        scale = axes.scale(ridge)
        values, vectors = np.linalg.eigh(scale[:, None] * moments * scale)
        weights = axes.basis @ (scale[:, None] * axes.signed(vectors[:, ::-1][:, :bits])) * np.sqrt(len(views))
        yield {name: weights[columns] for name, columns in own.items()}, values[::-1][:bits]
