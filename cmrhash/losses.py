"""Similarity losses: pure functions of embeddings and relevance. Imports nothing of cmrhash.

Notation: B items in a batch, K bits; u (B, K) image embeddings, v (B, K) text embeddings, tanh, in [-1, 1];
relevant (B, B) bool, symmetric, True on the diagonal (an item's own pair is a positive).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


class Triplets(NamedTuple):
    """A triplet loss by term. loss: (V,) mean hinge over the term's valid triplets (0 without any). valid: (V,)
    int64 triplets that the term is a mean of. active: (V,) int64 those with a positive hinge."""

    loss: Tensor
    valid: Tensor
    active: Tensor


def squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """(B, K), (C, K) -> (B, C) squared L2 distances, never negative."""
    squares = a.pow(2).sum(1, keepdim=True) + b.pow(2).sum(1)  # (B, C)
    return (squares - 2 * a @ b.T).clamp_min(0) + 0.0  # + 0.0 turns -0.0 into 0.0


def batch_all_triplets(distance: Tensor, relevant: Tensor, margin: float) -> Triplets:
    """Mean hinge over all valid triplets of each term, exactly, in O(B^2 log B) time and O(B^2) memory.

        L = mean over (a, p, n) with relevant[a, p], not relevant[a, n] of max(0, D[a, p] - D[a, n] + margin)

    distance: (V, B, C) or (B, C), rows are anchors; relevant: (B, C) bool. Value and gradient equal the triple loop,
    also where the hinge is exactly 0 (there the gradient is 0).

    How: sort each anchor's row once, positives by D + margin and negatives by D. The triplets of a positive that are
    active are its predecessors among the negatives, so the sum is a sum of distances with integer weights: each
    positive counts the negatives before it, each negative (with a minus) the positives after it. These weights are
    the gradient, and no tensor of B^3 is ever made.
    """
    distance = distance if distance.dim() == 3 else distance.unsqueeze(0)  # (V, B, C)
    positive = relevant.expand_as(distance)
    keys = torch.where(positive, distance + margin, distance).detach()
    order = _ascending(keys, ~positive)
    sorted_positive = positive.gather(-1, order)
    negatives_before = (~sorted_positive).cumsum(-1)
    positives_after = sorted_positive.sum(-1, keepdim=True) - sorted_positive.cumsum(-1)
    weights = torch.where(sorted_positive, negatives_before, -positives_after).to(distance.dtype)
    weights = torch.empty_like(keys).scatter(-1, order, weights)  # (V, B, C), back in the order of distance
    active = torch.where(sorted_positive, negatives_before, 0).sum((-1, -2))  # (V,)
    per_anchor = relevant.sum(-1)  # (B,) positives of each anchor
    valid = (per_anchor * (relevant.shape[-1] - per_anchor)).sum().expand(len(distance))  # (V,)
    total = (weights * distance).sum((-1, -2)) + margin * active.to(distance.dtype)
    return Triplets(total / valid.clamp_min(1), valid, active)


def _ascending(keys: Tensor, last: Tensor) -> Tensor:
    """Indices that sort the last axis; among equal keys those marked ``last`` come last. keys: not negative."""
    if keys.dtype == torch.float32:
        # the bits of non-negative floats sort like the floats; the mark becomes the lowest bit of a wider integer
        packed = keys.view(torch.int32).to(torch.int64) * 2 + last
        if packed.device.type == "cpu":  # NumPy's integer sort is vectorised, torch's is not
            return torch.from_numpy(np.argsort(packed.numpy(), axis=-1))
        return packed.argsort(-1)
    first = last.to(torch.int8).argsort(stable=True, dim=-1)
    return first.gather(-1, keys.gather(-1, first).argsort(stable=True, dim=-1))


def four_triplets(u: Tensor, texts: list[Tensor], relevant: Tensor, margin: float) -> Triplets:
    """The four triplet terms F = L(I->T) + L(T->I) + L(T->T) + L(I->I) over squared L2 distances.

    texts: one v (B, K) a language. Terms in the order I->I, then I->T, T->I, T->T of each language: (1 + 3 n,).
    Source: the batch-all form of the loss in xiami2019/Cross-modal-retrieval (train.py), which follows
    Schroff et al., FaceNet, CVPR 2015, eq. 1, with multi-label relevance.
    """
    return batch_all_triplets(_four_distances(u, texts), relevant, margin)


def _four_distances(u: Tensor, texts: list[Tensor]) -> Tensor:
    """(1 + 3 n, B, B): I->I, then I->T, T->I, T->T of each language."""
    terms = [squared_distances(u, u)]
    for v in texts:
        across = squared_distances(u, v)
        terms += [across, across.T, squared_distances(v, v)]
    return torch.stack(terms)


def seed_triplets(u: Tensor, texts: list[Tensor], relevant: Tensor, margin: float) -> Triplets:
    """The sampler of the first published code for this loss, kept to reproduce it; not a good default.

    For every item c of the batch: all pairs a < p among the items relevant to c (c itself included), with every
    item n that is not relevant to c, without asking whether a and p are relevant to each other or n to a. An item's
    own pair is never used. Mean over these triplets, a triplet counted once for each c.
    Source: xiami2019/Cross-modal-retrieval, utils.py, get_triplets and triplet_hashing_loss.
    Time O(B^4), memory O(B^3): meant for its own batch size of 32, usable to about 128.
    """
    distance = _four_distances(u, texts)  # (V, B, B)
    s = relevant.to(distance.dtype)
    s = s * (s.sum(1, keepdim=True) >= 2)  # a row c with fewer than two relevant items gives nothing
    not_relevant = (~relevant).to(distance.dtype)
    pairs = torch.triu(torch.ones_like(s), 1)  # a < p
    counts = torch.einsum("ca,cp,cn->apn", s, s, not_relevant) * pairs.unsqueeze(-1)  # (B, B, B) how many c
    hinge = (distance.unsqueeze(3) - distance.unsqueeze(2) + margin).clamp_min(0)  # (V, B, B, B) at [a, p, n]
    valid = counts.sum().round().long().expand(len(distance))
    active = (counts * (hinge > 0)).sum((1, 2, 3)).round().long()
    return Triplets((counts * hinge).sum((1, 2, 3)) / valid.clamp_min(1), valid, active)
