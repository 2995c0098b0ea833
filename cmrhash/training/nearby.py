"""Correction of a regression near each train item, for regressions on landmarks, which forget the other items.

What the regression leaves over at the train items is fitted within groups of similar items: a global part on landmarks
and an exact local part (Snelson & Ghahramani, AISTATS 2007). The groups are leaves of a k-d tree (Bentley, CACM 1975)
over the first principal components of the features, so that a row is compared with the items of its own leaf only.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from cmrhash.training.gaussian import rbf

COMPONENTS = 64  # principal components that are compared
LEAF = 1_024  # items per leaf, at most
WIDTH = 3.0  # of the kernel on components of variance 1 on average; 1 to 10 differ by .002 mAP on Flickr8k
PAIRS = 1 << 23  # similarities at a time: 32 MiB


class Nearby(nn.Module):
    """Kernel expansion of a row over the items of its leaf.

    dim: D standardised features; bits: K; rows: n items, in the order of their leaves. All is stored as buffers,
    n (P + K) numbers in the main.
    """

    components: Tensor
    axes: Tensor
    limits: Tensor
    starts: Tensor
    points: Tensor
    weights: Tensor

    def __init__(self, dim: int, bits: int, rows: int) -> None:
        super().__init__()
        self.levels = max(0, math.ceil(math.log2(rows / LEAF)))
        leaves, size = 1 << self.levels, min(COMPONENTS, dim)
        self.register_buffer("components", torch.zeros(dim, size))
        self.register_buffer("axes", torch.zeros(leaves - 1, dtype=torch.int64))  # component that a node divides by
        self.register_buffer("limits", torch.zeros(leaves - 1))  # its largest value in the lower half
        self.register_buffer("starts", torch.zeros(leaves + 1, dtype=torch.int64))  # of the leaves in ``points``
        self.register_buffer("points", torch.zeros(rows, size))
        self.register_buffer("weights", torch.zeros(rows, bits))

    def learn_components(self, scaled: Tensor) -> None:
        """Take the principal components of standardised features (N, D), scaled to a variance of 1 on average."""
        values, vectors = torch.linalg.eigh((scaled.T @ scaled / len(scaled)).double())
        size = self.components.shape[1]
        scale = values[-size:].mean().clamp_min(1e-12).sqrt()
        self.components.copy_((vectors[:, -size:] / scale).flip(1))

    def fit(self, points: Tensor, residuals: Tensor, ridge: float) -> None:
        """Fit what a regression leaves over, (n, K), at items of these components, (n, P)."""
        leaf = self._grow(points)
        order = leaf.argsort(stable=True)
        ends = leaf.bincount(minlength=len(self.starts) - 1).cumsum(0)
        self.starts[1:].copy_(ends)
        self.points.copy_(points[order])
        for first, last in zip(*self._bounds(), strict=True):
            end = min(last, first + 2 * LEAF)  # many equal items share a leaf; the first of them suffice
            similar = rbf(self.points[first:end], self.points[first:end], WIDTH)
            similar.diagonal().add_(ridge)
            some = residuals[order[first:end]]
            self.weights[first:end] = torch.cholesky_solve(some, torch.linalg.cholesky(similar))

    def forward(self, scaled: Tensor) -> Tensor:
        """(B, D) standardised features -> (B, K) corrections."""
        points = scaled @ self.components
        leaf = self.leaf_of(points)
        found = points.new_zeros(len(points), self.weights.shape[1])
        firsts, ends = self._bounds()
        for at in torch.bincount(leaf).nonzero()[:, 0].tolist():
            first, end = firsts[at], ends[at]
            for rows in torch.split((leaf == at).nonzero()[:, 0], max(1, PAIRS // max(1, end - first))):
                found[rows] = rbf(points[rows], self.points[first:end], WIDTH) @ self.weights[first:end]
        return found

    def in_graph(self, scaled: Tensor) -> Tensor:
        """The same as one expression over all items, for graphs."""
        points = scaled @ self.components
        ordinals = torch.arange(len(self.points), device=points.device)
        leaf = self.leaf_of(points)[:, None]
        own = (ordinals >= self.starts[leaf]) & (ordinals < self.starts[leaf + 1])
        return (rbf(points, self.points, WIDTH) * own) @ self.weights

    def leaf_of(self, points: Tensor) -> Tensor:
        """Leaf of each row (B, P), (B,) int64."""
        node = torch.zeros(len(points), dtype=torch.int64, device=points.device)
        for level in range(self.levels):
            at = node + (1 << level) - 1
            higher = points.gather(1, self.axes[at][:, None])[:, 0] > self.limits[at]
            node = 2 * node + higher.long()
        return node

    def _grow(self, points: Tensor) -> Tensor:
        """Divide nodes at the median of the component that varies most; returns the leaf of each item, (n,)."""
        node = torch.zeros(len(points), dtype=torch.int64, device=points.device)
        for level in range(self.levels):
            for own in range(1 << level):
                rows = (node == own).nonzero()[:, 0]
                if len(rows) > 1:
                    axis = int(points[rows].var(0).argmax())
                    values = points[rows, axis].sort().values
                    middle = len(rows) // 2
                    here = own + (1 << level) - 1
                    self.axes[here], self.limits[here] = axis, (values[middle - 1] + values[middle]) / 2
            at = node + (1 << level) - 1
            node = 2 * node + (points.gather(1, self.axes[at][:, None])[:, 0] > self.limits[at]).long()
        return node

    def _bounds(self) -> tuple[list[int], list[int]]:
        """First row and end of each leaf."""
        return self.starts[:-1].tolist(), self.starts[1:].tolist()
