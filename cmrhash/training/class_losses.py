"""Losses of embeddings against a point per class, learned (proxies) or fixed (class codes).

Notation: B items, K bits, C classes; u (B, K) embeddings of one view; labels (B, C) float32 of 0 and 1, any number per
item; points (C, K). Every loss is a scalar to be minimised. Imports nothing of cmrhash but other losses.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from cmrhash.training.losses import label_classification

TYPICAL_BATCH = 100  # of the sum over pairs in ``semantic_codes``, as published


def code_cosine(bits: int, classes: int) -> float:
    """Largest cosine between so many class codes of ``bits`` bits that the Griesmer bound allows.

    1 - 2 d / K for the largest d with sum over i < log2(C) of ceil(d / 2^i) <= K. The published table of distances has
    the same up to 64 classes in most places, beyond that up to 3 less.

    >>> code_cosine(32, 32), code_cosine(32, 4), code_cosine(4, 1000)
    (0.0, -0.3125, 0.5)
    """
    words = max(1, math.ceil(math.log2(max(classes, 2))))
    fits = (d for d in range(bits, 1, -1) if sum(math.ceil(d / 2**i) for i in range(words)) <= bits)
    return 1 - 2 * next(fits, 1) / bits


def proxy_pull(u: Tensor, points: Tensor, labels: Tensor, threshold: float) -> Tensor:
    """HyP2's proxy term: 1 - cosine to the proxies of an item's labels, and cosines to others beyond a threshold.

    Each is the mean over its (item, class) pairs. Source: Xu et al., HyP2 Loss, ACM MM 2022, as in its code.

    >>> proxy_pull(torch.eye(2), torch.eye(2), torch.eye(2), 0.0)
    tensor(0.)
    """
    cosine = functional.normalize(u, dim=1) @ functional.normalize(points, dim=1).T  # (B, C)
    own, others = labels.sum(), (1 - labels).sum()
    pull = ((1 - cosine) * labels).sum() / own.clamp_min(1)
    return pull + ((cosine - threshold).clamp_min(0) * (1 - labels)).sum() / others.clamp_min(1)


def irrelevant_push(u: Tensor, v: Tensor, labels: Tensor, threshold: float) -> Tensor:
    """HyP2's pair term: mean cosine beyond a threshold of items with several labels each that share none.

    u, v (B, K): embeddings of two views. Source: Xu et al., HyP2 Loss, ACM MM 2022, as in its code.

    >>> y = torch.tensor([[1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 1.0]])
    >>> irrelevant_push(torch.ones(2, 2), torch.ones(2, 2), y, 0.25)
    tensor(0.7500)
    """
    several = labels.sum(1) > 1
    apart = (labels @ labels.T < 0.5) & several & several.unsqueeze(1)  # (B, B)
    cosine = functional.normalize(u, dim=1) @ functional.normalize(v, dim=1).T
    return ((cosine - threshold).clamp_min(0) * apart).sum() / apart.sum().clamp_min(1)


def proxy_distances(u: Tensor, points: Tensor, labels: Tensor, margin: float = 1.0) -> Tensor:
    """Softmax over negative squared distances to normalised proxies; an item's own classes are set back by a margin.

    Each label is an equal share of the target. Source: Qin et al., DNPH, ACM TOMM 2024, proxy term.

    >>> proxy_distances(torch.eye(2), torch.eye(2), torch.eye(2), margin=2.0)  # distances 0 + 2 and 2
    tensor(0.6931)
    """
    cosine = functional.normalize(u, dim=1) @ functional.normalize(points, dim=1).T
    return label_classification(-(2 - 2 * cosine + margin * labels), labels)


def code_classification(u: Tensor, points: Tensor, labels: Tensor, scale: float = 8.0, margin: float = 0.2) -> Tensor:
    """OrthoHash: softmax over scaled cosines to fixed class codes, those of own classes less a margin.

    Each label is an equal share of the target. Source: Hoe et al., One Loss for All, NeurIPS 2021, with a cosine
    margin; scale and margin as in its code.

    >>> code_classification(torch.eye(2), torch.eye(2), torch.eye(2), scale=5.0, margin=1.0)
    tensor(0.6931)
    """
    cosine = functional.normalize(u, dim=1) @ functional.normalize(points, dim=1).T
    return label_classification(scale * (cosine - margin * labels), labels)


def semantic_codes(u: Tensor, points: Tensor, labels: Tensor, alpha: float = 0.02) -> Tensor:
    """DCHN: likelihood of relevance to the codes sign(y W) of label sets, and labels read off the embedding by W^T.

        alpha sum_j (log(1 + e^theta_ij) - R_ij theta_ij) + (1 - alpha) |u_i W^T - y_i|^2,    theta = <u, o> / 2,

    the mean over items i, embeddings u of unit length; the sum over j counts as for a batch of 100, as published.
    points: W. Source: Hu et al., Joint Versus Independent Multiview Hashing (DCHN), IEEE TCYB 2021, L_H and L_R.
    """
    unit = functional.normalize(u, dim=1)
    codes = torch.where(labels @ points > 0, 1.0, -1.0).to(u.dtype)  # (B, K)
    theta = unit @ codes.T / 2
    likelihood = (functional.softplus(theta) - (labels @ labels.T > 0.5) * theta).mean() * TYPICAL_BATCH
    return alpha * likelihood + (1 - alpha) * (unit @ points.T - labels).pow(2).sum(1).mean()
