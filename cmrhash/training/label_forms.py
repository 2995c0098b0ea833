"""Closed forms that learn from labels: SCM and CVH, linear heads for any number of views. NumPy only.

views: name -> (n, D) standardised features, row i of each from item i; labels: (n, C) of 0 and 1, any number per item;
ridge: added to the diagonal of every view's covariance. Both return name -> (D, bits). Two items are as similar as the
cosine of their labels. For two views these are the published problems; more views stand side by side, and each pair of
views counts once, as in ``cca``. Only products with the labels are needed, never an n x n matrix.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from cmrhash.errors import UsageError
from cmrhash.training.cca import Matrix, inverse_root


def scm(views: dict[str, Matrix], bits: int, ridge: float, labels: NDArray[np.floating]) -> dict[str, Matrix]:
    """Fit SCM bit by bit: each takes the direction that explains most of what earlier bits left of the similarity.

    Of every pair of views a, b, the sum over bits of h_a h_b^T approximates bits * S with S = 2 cos(labels) - 1: a bit
    is the leading eigenvector of the blocks X_a^T R_ab X_b with respect to X_a^T X_a, R the residual.
    Source: Zhang & Li, Large-Scale Supervised Multimodal Hashing with Semantic Correlation Maximization, AAAI 2014,
    sequential learning (algorithm 1), the eigenproblem written for both views at once.
    """
    white, z = _whitened(views, ridge)
    known = np.concatenate([_unit(labels), np.ones((len(labels), 1))], axis=1)
    sides = {name: x.T @ known for name, x in z.items()}  # (D, C + 1 + bits so far)
    weights = [2.0 * bits] * labels.shape[1] + [-1.0 * bits]
    found: dict[str, list[Matrix]] = {name: [] for name in views}
    for _ in range(bits):
        for name, direction in _leading(sides, np.array(weights)).items():
            code = np.where(z[name] @ direction >= 0, 1.0, -1.0)
            sides[name] = np.concatenate([sides[name], (z[name].T @ code)[:, None]], axis=1)
            found[name].append(white[name] @ direction)
        weights.append(-1.0)
    return {name: np.stack(own, axis=1) for name, own in found.items()}


def cvh(views: dict[str, Matrix], bits: int, ridge: float, labels: NDArray[np.floating]) -> dict[str, Matrix]:
    """Fit CVH: similar items near each other within and between views, the embeddings of all views uncorrelated.

    The last eigenvectors of the blocks X_a^T (2 (D - W) + (views - 1) D) X_a and -X_a^T W X_b with respect to
    X_a^T X_a; W = cos(labels), D its row sums. Raises UsageError for more bits than the views have features.
    Source: Kumar & Udupa, Learning Hash Functions for Cross-View Similarity Search, IJCAI 2011.
    """
    white, z = _whitened(views, ridge)
    most = sum(x.shape[1] for x in z.values())
    if bits > most:
        raise UsageError(f"cvh allows at most {most} bits, as many as features", None, "use fewer bits", option="bits")
    unit = _unit(labels)
    degree = (unit @ unit.sum(0))[:, None]
    across = np.concatenate([x.T @ unit for x in z.values()])  # (sum of D, C)
    blocks = -across @ across.T
    ends = np.cumsum([0, *(x.shape[1] for x in z.values())])
    for (first, last), x in zip(pairwise(ends), z.values(), strict=True):
        own = slice(first, last)
        blocks[own, own] = 2 * blocks[own, own] + (len(z) + 1) * x.T @ (degree * x)
    _, vectors = np.linalg.eigh(blocks)
    parts = np.split(_signed(vectors[:, :bits]), ends[1:-1])
    return {name: white[name] @ part for name, part in zip(z, parts, strict=True)}


def _whitened(views: dict[str, Matrix], ridge: float) -> tuple[dict[str, Matrix], dict[str, Matrix]]:
    """C^(-1/2) of each view's covariance C with the ridge (D, D), and its features times that (n, D)."""
    white = {name: inverse_root(x.T @ x / len(x) + ridge * np.eye(x.shape[1])) for name, x in views.items()}
    return white, {name: x @ white[name] for name, x in views.items()}


def _unit(labels: NDArray[np.floating]) -> Matrix:
    found: Matrix = labels / np.maximum(np.linalg.norm(labels, axis=1, keepdims=True), 1e-12)
    return found


def _leading(sides: dict[str, Matrix], weights: NDArray[np.float64]) -> dict[str, Matrix]:
    """Leading eigenvector of the blocks F_a diag(weights) F_b, a and b different views, as its part (D,) per view.

    sides: F, (D, r). It lies in the span of the F, in whose bases the problem is small.
    """
    bases = {name: np.linalg.qr(side) for name, side in sides.items()}
    small = np.concatenate([r for _, r in bases.values()])
    blocks = (small * weights) @ small.T
    ends = np.cumsum([0, *(len(r) for _, r in bases.values())])
    for first, last in pairwise(ends):
        blocks[first:last, first:last] = 0
    _, vectors = np.linalg.eigh(blocks)
    parts = np.split(_signed(vectors[:, -1:])[:, 0], ends[1:-1])
    return {name: q @ part for (name, (q, _)), part in zip(bases.items(), parts, strict=True)}


def _signed(vectors: Matrix) -> Matrix:
    """Eigenvectors with their arbitrary signs fixed."""
    fixed: Matrix = vectors * np.where(vectors.sum(0) < 0, -1, 1)
    return fixed
