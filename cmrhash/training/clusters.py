"""Pseudo-labels for items without labels: the nearest of many clusters of their photos and texts together.

Each view is reduced to its foremost principal components, of unit length in each row, and weighted; k-means clusters
the views side by side (Lloyd, IEEE Trans. Inf. Theory 1982). An item gets a share of the clusters, those with the
nearest centres, so that two items have the more labels in common the nearer they are. Clusters as labels: Caron et al.,
Deep Clustering, ECCV 2018.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

IMAGE = "image"
# By val mAP of Flickr8k, whose labels were used for nothing else here (32 bits)
MOST, LABELS = 240, 0.05  # clusters at most; share of them that an item gets
COMPONENTS = 64  # of each view
WEIGHTS = (0.25, 0.75)  # of images and of all texts together
ITEMS_PER_CLUSTER = 8  # at least
SAMPLE = 20_000  # items at most that place the centres
ITERATIONS = 30
BLOCK = 65_536  # rows that are compared with the centres at a time


def count(items: int) -> int:
    """Number of clusters of so many items."""
    return max(2, min(MOST, items // ITEMS_PER_CLUSTER))


def pseudo_labels(features: Mapping[str, Tensor]) -> Tensor:
    """Pseudo-labels (n, clusters) float32 of 0 and 1.

    features: standardised features (n, D) by view, "image" and languages. Draws the first centres at random.
    """
    x = torch.cat([_weighted(view, rows, len(features) - 1) for view, rows in features.items()], dim=1)
    centres = _centres(x[torch.randperm(len(x))[:SAMPLE].to(x.device)], count(len(x)))
    nearest = max(1, round(LABELS * len(centres)))
    labels = x.new_zeros(len(x), len(centres), dtype=torch.float32)
    for rows, marks in zip(torch.split(x, BLOCK), torch.split(labels, BLOCK), strict=True):
        marks.scatter_(1, torch.cdist(rows, centres).topk(nearest, largest=False).indices, 1.0)
    return labels


def _weighted(view: str, x: Tensor, langs: int) -> Tensor:
    """Principal components of a view, rows of a length whose square is its weight."""
    _, vectors = torch.linalg.eigh((x.T @ x).double())
    components = torch.nn.functional.normalize(x @ vectors[:, -COMPONENTS:].to(x.dtype), dim=1)
    weight = WEIGHTS[0] if view == IMAGE else WEIGHTS[1] / langs
    weighted: Tensor = components * weight**0.5
    return weighted


def _centres(x: Tensor, clusters: int) -> Tensor:
    """Centres (clusters, D) of rows x (n, D) by k-means from random rows on; one that loses all its rows stays."""
    centres = x[:clusters].clone()  # rows are in random order
    for _ in range(ITERATIONS):
        nearest = torch.cdist(x, centres).argmin(1)
        sums = torch.zeros_like(centres).index_add_(0, nearest, x)
        sizes = torch.bincount(nearest, minlength=clusters)[:, None]
        centres = torch.where(sizes > 0, sums / sizes.clamp_min(1), centres)
    return centres
