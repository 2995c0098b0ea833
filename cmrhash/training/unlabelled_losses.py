"""Losses without labels: embeddings follow similarities of input features. Imports nothing of cmrhash.

Notation as in ``losses``: u (B, K) image and v (B, K) text embeddings of B items, row i of both from item i. Features
(B, D) are standardised: their cosines lie around 0 in [-1, 1]. The cited methods take features without negative
numbers, whose cosines c lie in [0, 1], and use 2 c - 1 instead.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional


def cosines(x: Tensor, y: Tensor | None = None) -> Tensor:
    """Cosine similarities of rows: (B, D), (C, D) -> (B, C); by default of the rows of x with each other.

    >>> cosines(torch.tensor([[2.0, 0.0], [0.0, 1.0]]))
    tensor([[1., 0.],
            [0., 1.]])
    """
    unit = functional.normalize(x, dim=1)
    return unit @ (unit if y is None else functional.normalize(y, dim=1)).T


def mean_cosines(views: Sequence[Tensor]) -> Tensor:
    """Mean of the cosine similarities (B, B) of several views of the same items, here of the languages."""
    return torch.stack([cosines(x) for x in views]).mean(0)


def second_order(image: Tensor, text: Tensor, beta: float, eta: float, mu: float) -> Tensor:
    """DJSRH: joint similarities S' of two views, joined by those of their similarities; the target S (B, B).

        S' = beta s_I + (1 - beta) s_T,    S = mu ((1 - eta) S' + eta S' S'^T / B)

    image, text: similarities (B, B) in [-1, 1] of the images and of the texts.
    Source: Su, Zhong & Zhang, Deep Joint-Semantics Reconstructing Hashing, ICCV 2019, eq. 2-5.

    >>> second_order(torch.eye(2), torch.eye(2), 0.9, 0.4, 1.5)  # 1.5 (.6 + .4 / 2) on the diagonal
    tensor([[1.2000, 0.0000],
            [0.0000, 1.2000]])
    """
    joint = beta * image + (1 - beta) * text
    return mu * ((1 - eta) * joint + eta * joint @ joint.T / len(joint))


def across_order(image: Tensor, text: Tensor, weights: tuple[float, float, float]) -> Tensor:
    """JDSH: similarities of two views, and how alike an item's row of one is to each row of the other (B, B).

        S' = alpha s_I + beta s_T + lambda (H + H^T) / 2,    H_ij = cosine of row i of s_I and row j of s_T

    Source: Liu et al., Joint-modal Distribution-based Similarity Hashing, SIGIR 2020, eq. 1-4.

    >>> across_order(torch.eye(2), torch.eye(2), (0.5, 0.1, 0.4))
    tensor([[1., 0.],
            [0., 1.]])
    """
    alpha, beta, both = weights
    high = cosines(image, text)
    return alpha * image + beta * text + both * (high + high.T) / 2


def stretched(s: Tensor, left: float, right: float) -> Tensor:
    """JDSH: similarities (B, B) with both tails of their distribution farther from the middle.

    Below m - 2 d the factor is 1 + left exp(min - s), above m + 4 e it is 1 + right exp(s - max), where m is the
    median, d the deviation of the half below (normal), e that of the half above (exponential). The paper fits these
    numbers once to each data set; here they are those of the batch, without the diagonal.
    Source: Liu et al., Joint-modal Distribution-based Similarity Hashing, SIGIR 2020, eq. 6-9.

    >>> stretched(torch.zeros(2, 2), 0.1, 0.2)
    tensor([[0., 0.],
            [0., 0.]])
    """
    others = s[~torch.eye(len(s), dtype=torch.bool, device=s.device)]
    middle = others.median()
    below = (others - middle).clamp_max(0).pow(2).sum().div((others < middle).sum().clamp_min(1)).sqrt()
    above = (others - middle).clamp_min(0).sum() / (others > middle).sum().clamp_min(1)
    factor = torch.where(s < middle - 2 * below, left * torch.exp(others.min() - s), 0.0)
    return s * (1 + factor + torch.where(s > middle + 4 * above, right * torch.exp(s - others.max()), 0.0))


def follow(u: Tensor, v: Tensor, target: Tensor, within: float) -> Tensor:
    """Squared error of cosines against a target (B, B): across the views plus ``within`` times each view alone.

        L = within mse(u u^T, S) + mse(u v^T, S) + within mse(v v^T, S)

    Source: Su, Zhong & Zhang, Deep Joint-Semantics Reconstructing Hashing, ICCV 2019, eq. 7.

    >>> follow(torch.eye(2), torch.eye(2), torch.eye(2), within=0.1)
    tensor(0.)
    """
    alone = functional.mse_loss(cosines(u), target) + functional.mse_loss(cosines(v), target)
    return functional.mse_loss(cosines(u, v), target) + within * alone


def own_cosine(u: Tensor, v: Tensor) -> Tensor:
    """Mean cosine of the two embeddings of an item.

    >>> own_cosine(torch.eye(2), -torch.eye(2))
    tensor(-1.)
    """
    return functional.cosine_similarity(u, v, dim=1).mean()


def neighbours(similar: Tensor, itself: Tensor, share: float) -> Tensor:
    """Rows of a nearest-neighbour graph over M anchors, each with the sum 1: (B, M) -> (B, M).

    Keeps the ``share`` of the anchors that are most similar, without the item itself, by their similarity.
    similar: (B, M), not negative; itself: (B, M) bool.

    >>> neighbours(torch.tensor([[1.0, 0.3, 0.1, 0.0]]), torch.tensor([[True, False, False, False]]), 0.5)
    tensor([[0., 1., 0., 0.]])
    """
    count = max(2, round(share * similar.shape[1]))
    values, at = similar.topk(count, dim=1)
    kept = torch.zeros_like(similar).scatter_(1, at, values).masked_fill_(itself, 0)
    return kept / kept.sum(1, keepdim=True).clamp_min(1e-12)


def coherent(u: Tensor, v: Tensor, target: Tensor, pair: float) -> Tensor:
    """DGCPN: own pairs, target similarities of all others, and the coherence of the four similarity matrices.

        L = mean (<u_i, v_i> - pair)^2 + sum over uu, uv, vv of mse off the diagonal to S
            + mse(uv, uu) + mse(uv, vv) + mse(uu, vv) + mse(uv, vu)

    with unit rows, each mse a mean over B^2 pairs.
    Source: Yu et al., Deep Graph-neighbor Coherence Preserving Network, AAAI 2021, eq. 8-12.

    >>> coherent(torch.eye(2), torch.eye(2), torch.zeros(2, 2), pair=1.5)
    tensor(0.2500)
    """
    uu, uv, vv = cosines(u), cosines(u, v), cosines(v)
    off = 1 - torch.eye(len(u), dtype=u.dtype, device=u.device)
    own = (uv.diagonal() - pair).pow(2).mean()
    others = torch.stack([((s - target) * off).pow(2).mean() for s in (uu, uv, vv)]).sum()
    mse = functional.mse_loss
    return own + others + mse(uv, uu) + mse(uv, vv) + mse(uu, vv) + mse(uv, uv.T)


def noise_contrast(u: Tensor, codes: Tensor, temperature: float) -> Tensor:
    """UCCH: cross-entropy of an item's own code among the codes of other items.

        L = mean over i of -log softmax_j(<u_i, c_j> / (temperature sqrt K)) at j = i

    u: (B, K), normalised here; codes: (N, K) of -1 and 1, first those of the B items. Every item has the same N - 1
    other codes; the published code draws them for each item.
    Source: Hu et al., Unsupervised Contrastive Cross-modal Hashing, TPAMI 2023, eq. 6.

    >>> noise_contrast(torch.ones(1, 4), torch.ones(4, 4), 0.9)  # log 4
    tensor(1.3863)
    """
    logits = functional.normalize(u, dim=1) @ codes.T / (temperature * math.sqrt(u.shape[1]))
    return -logits.log_softmax(1).diagonal().mean()


def cross_modal_ranking(u: Tensor, v: Tensor, margin: float, shift: float) -> Tensor:
    """UCCH's ranking loss in both directions: an own pair against all pairs; far ones count less by the shift.

        L = mean over i of margin - s_ii + log sum_j exp(c_ij)

    c_ij = s_ij if s_ij >= s_ii - margin, else s_ij - shift; s are cosines of u (B, K) and v (B, K). Then likewise with
    columns in the place of rows.
    Source: Hu et al., Unsupervised Contrastive Cross-modal Hashing, TPAMI 2023, eq. 12.

    >>> cross_modal_ranking(torch.ones(2, 4), torch.ones(2, 4), 0.2, 0.1)  # twice .2 + log 2
    tensor(1.7863)
    """
    s = cosines(u, v)
    own = s.diagonal()

    def ranked(scores: Tensor) -> Tensor:
        near = scores.detach() >= own.detach()[:, None] - margin
        return (margin - own + torch.where(near, scores, scores - shift).logsumexp(1)).mean()

    return ranked(s) + ranked(s.T)
