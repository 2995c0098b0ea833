"""Closed forms that learn from labels: SCM and CVH, linear heads for any number of views. NumPy only.

views: name -> (n, D) standardised features, row i of each from item i; labels: (n, C) of 0 and 1, any number per item;
ridges: added to the diagonal of every view's covariance, one after another. Both yield name -> (D, bits) for each
ridge. Two items are as similar as the cosine of their labels. For two views these are the published problems; more
views stand side by side, and each pair of views counts once, as in ``cca``. Only products with the labels are needed,
never an n x n matrix, and the features are read in blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cmrhash.errors import UsageError
from cmrhash.training.row_blocks import Matrix, Views, blocks, count, covariance, principal, widths

Labels = NDArray[np.floating]
Factors = Callable[[slice, dict[str, Matrix]], Mapping[str, Matrix]]


def scm(views: Views, bits: int, ridges: Sequence[float], labels: Labels) -> Iterator[dict[str, Matrix]]:
    """Fit SCM bit by bit: each takes the direction that explains most of what earlier bits left of the similarity.

    Of every pair of views a, b, the sum over bits of h_a h_b^T approximates bits * S with S = 2 cos(labels) - 1: a bit
    is the leading eigenvector of the blocks X_a^T R_ab X_b with respect to X_a^T X_a, R the residual. Each bit reads
    the features once, for all ridges together.
    Source: Zhang & Li, Large-Scale Supervised Multimodal Hashing with Semantic Correlation Maximization, AAAI 2014,
    sequential learning (algorithm 1), the eigenproblem written for both views at once.
    """
    moments, own = covariance(views), widths(views)
    axes = principal(moments, own, bits)
    scales = np.stack([axes.scale(ridge) for ridge in ridges])  # (ridges, sum of R)
    known = _products(views, lambda rows, x: dict.fromkeys(x, np.insert(_unit(labels[rows]), labels.shape[1], 1, 1)))
    known = axes.basis.T @ known  # (sum of R, C + 1)
    sides = [_parts(scale[:, None] * known, axes.own) for scale in scales]  # of each ridge; a column more per bit
    weights = [2.0 * bits] * labels.shape[1] + [-1.0 * bits]
    heads = [np.zeros((len(moments), 0)) for _ in ridges]  # (sum of D, bits so far)
    for _ in range(bits):
        leading = [np.concatenate([*_leading(of, np.array(weights)).values()]) for of in sides]
        directions = axes.basis @ (scales * leading).T  # (sum of D, ridges)
        codes = axes.basis.T @ _products(views, _signs(_parts(directions, own)))
        for at, scale in enumerate(scales):
            heads[at] = np.column_stack([heads[at], directions[:, at]])
            more = _parts(scale * codes[:, at], axes.own)
            sides[at] = {name: np.column_stack([side, more[name]]) for name, side in sides[at].items()}
        weights.append(-1.0)
    return (_parts(weight, own) for weight in heads)


def cvh(views: Views, bits: int, ridges: Sequence[float], labels: Labels) -> Iterator[dict[str, Matrix]]:
    """Fit CVH: similar items near each other within and between views, the embeddings of all views uncorrelated.

    The last eigenvectors of the blocks X_a^T (2 (D - W) + (views - 1) D) X_a and -X_a^T W X_b with respect to
    X_a^T X_a; W = cos(labels), D its row sums. Raises UsageError for more bits than the views have features.
    Source: Kumar & Udupa, Learning Hash Functions for Cross-View Similarity Search, IJCAI 2011.
    """
    own = widths(views)
    most = sum(x.shape[1] for x in views.values())
    if bits > most:
        raise UsageError(
            f"cvh allows at most {most} bits, as many as features",
            None,
            "use fewer bits, or another method",
            option="bits",
        )
    moments = covariance(views)
    across = _products(views, lambda rows, x: dict.fromkeys(x, _unit(labels[rows])))  # (sum of D, C)
    total = sum((_unit(labels[rows]).sum(0) for rows, _ in blocks(views)), np.zeros(labels.shape[1]))
    spread = covariance(views, lambda rows: _unit(labels[rows]) @ total) * count(views)
    axes = principal(moments, own, bits)
    across, spread = axes.basis.T @ across, axes.basis.T @ spread @ axes.basis
    for ridge in ridges:
        scale = axes.scale(ridge)[:, None]
        similar = scale * across
        whole = -similar @ similar.T
        for columns in axes.own.values():
            within = (len(own) + 1) * scale[columns] * spread[columns, columns] * scale[columns, 0]
            whole[columns, columns] = 2 * whole[columns, columns] + within
        _, vectors = np.linalg.eigh(whole)
        yield _parts(axes.basis @ (scale * axes.signed(vectors[:, :bits])), own)


def _products(views: Views, factors: Factors) -> Matrix:
    """Sums over the rows of X_a^T F_a, all views below each other, (sum of D, m).

    factors: (rows, features of each view in them) -> F by view, (b, m).
    """
    total: dict[str, Any] = dict.fromkeys(views, 0.0)
    for rows, parts in blocks(views):
        for name, factor in factors(rows, parts).items():
            total[name] = total[name] + parts[name].T @ factor
    return np.concatenate([*total.values()])


def _signs(directions: dict[str, Matrix]) -> Factors:
    """-1 and +1 of features projected onto directions (D, m) by view, as ``_products`` takes them."""
    return lambda _, parts: {name: np.where(x @ directions[name] >= 0, 1.0, -1.0) for name, x in parts.items()}


def _parts(whole: Matrix, own: dict[str, slice]) -> dict[str, Matrix]:
    """Rows of each view out of those of all views below each other."""
    return {name: whole[rows] for name, rows in own.items()}


def _unit(labels: NDArray[np.floating]) -> Matrix:
    labels = labels.astype(np.float64, copy=False)
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
