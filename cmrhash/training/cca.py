"""Canonical correlation analysis: linear heads in closed form, for any number of views. NumPy only."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cmrhash.errors import UsageError
from cmrhash.training import rotations

Matrix = NDArray[np.float64]


def fit(views: dict[str, Matrix], bits: int, ridge: float) -> dict[str, Matrix]:
    """Fit projections onto the directions in which the views correlate most.

    views: name -> (n, D) standardised features, row i of each from item i. ridge: added to the diagonal of every view's
    covariance. Returns name -> (D, bits); the projected training rows have unit variance over the views together, most
    correlated direction first. Two views give Hotelling's CCA (1936); more give Kettenring's SUMCOR in its eigenvalue
    form (Biometrika 1971; Nielsen, IEEE TIP 2002): the leading eigenvectors of B^(-1/2) A B^(-1/2), A the covariance of
    all views side by side, B its block diagonal plus the ridge. Raises UsageError if a view has fewer than ``bits``
    features.
    """
    return _directions(views, bits, ridge)[0]


def fit_itq(views: dict[str, Matrix], bits: int, ridge: float) -> dict[str, Matrix]:
    """Fit projections as `fit` does, weighted by their correlations and turned until they lie near their signs.

    The correlation of a direction is (e - 1) / (V - 1), e its eigenvalue and V the number of views. One rotation serves
    all views; it is fitted to the projected rows of all of them, from a fixed random start. Source: Gong & Lazebnik,
    Iterative Quantization, TPAMI 2013, section 4 (CCA-ITQ), with texts in the place of labels.
    """
    directions, values = _directions(views, bits, ridge)
    correlations = np.clip((values - 1) / (len(views) - 1), 0, None)
    weights = {name: weight * correlations for name, weight in directions.items()}
    turn = rotations.turn(np.concatenate([x @ weights[name] for name, x in views.items()]), np.random.default_rng(0))
    return {name: weight @ turn for name, weight in weights.items()}


def _directions(views: dict[str, Matrix], bits: int, ridge: float) -> tuple[dict[str, Matrix], NDArray[np.float64]]:
    """Projections (D, bits) by view and their eigenvalues (bits,), largest first."""
    for name, x in views.items():
        if x.shape[1] < bits:
            raise UsageError(
                f"cca allows at most {x.shape[1]} bits, as many as {name} features",
                None,
                "use fewer bits",
                option="bits",
            )
    rows = len(next(iter(views.values())))
    whiten = {name: inverse_root(x.T @ x / rows + ridge * np.eye(x.shape[1])) for name, x in views.items()}
    white = np.concatenate([x @ whiten[name] for name, x in views.items()], axis=1)  # (n, sum of D)
    values, vectors = np.linalg.eigh(white.T @ white / rows)
    leading = vectors[:, ::-1][:, :bits]  # (sum of D, bits)
    leading = leading * np.where(leading.sum(0) < 0, -1, 1)  # fix the arbitrary sign of an eigenvector
    ends = np.cumsum([x.shape[1] for x in views.values()])[:-1]
    parts = np.split(leading, ends)
    weights = {name: whiten[name] @ part * np.sqrt(len(views)) for name, part in zip(views, parts, strict=True)}
    return weights, values[::-1][:bits]


def inverse_root(covariance: Matrix) -> Matrix:
    """C^(-1/2) of a covariance C; directions without variance are dropped."""
    values, vectors = np.linalg.eigh(covariance)
    keep = values > 1e-10 * values[-1]
    root: Matrix = (vectors[:, keep] / np.sqrt(values[keep])) @ vectors[:, keep].T
    return root
