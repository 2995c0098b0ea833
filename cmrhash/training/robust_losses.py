"""NRCH: a contrastive loss for noisy labels, and which items of a batch have clean ones.

Source of all: Wang et al., Robust Contrastive Cross-modal Hashing with Noisy Labels, ACM MM 2024, with the constants of
its code. Notation as in ``losses``: u, v (B, K) embeddings, here of unit length.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

MARGIN, SHIFT = 0.2, 1.0  # of ``robust_contrastive``
SMALLEST, ROUNDS = 5e-4, 10  # of ``clean_chances``: added to every variance; rounds of EM


def robust_contrastive(u: Tensor, v: Tensor, relevant: Tensor) -> Tensor:
    """Own pairs against irrelevant items; far ones count less, others that labels call relevant not at all.

        mean over i of margin - s_ii + log sum_j exp(c_ij),    c_ij = s_ij, less 1 if s_ij < s_ii - margin,

    c_ij = 0 for relevant j other than i, and c_ii at least 0. u (B, K) anchors, v (B, K); relevant (B, B) -> scalar;
    call it in both directions and add. (The published code takes the first direction's sum for both, by mistake.)

    >>> robust_contrastive(torch.eye(2), torch.eye(2), torch.eye(2, dtype=torch.bool))  # .2 - 1 + log(e + 1 / e)
    tensor(0.3269)
    """
    similarity = u @ v.T
    own = similarity.diagonal()
    near = (similarity >= own.unsqueeze(1) - MARGIN).detach()
    each = torch.where(near, similarity, similarity - SHIFT)
    itself = torch.eye(len(u), dtype=torch.bool, device=u.device)
    each = torch.where(itself, own.clamp_min(0), torch.where(relevant, 0.0, each))
    return (MARGIN - own + each.logsumexp(1)).mean()


def off_signs(u: Tensor) -> Tensor:
    """Mean squared difference of the entries of u (B, K), of unit length, from +-1 / sqrt(K).

    >>> off_signs(torch.tensor([[1.0, 0.0, 0.0, 0.0]]))  # each is 1/2 off
    tensor(0.2500)
    """
    return (u.abs() - 1 / math.sqrt(u.shape[1])).pow(2).mean()


def label_misfit(u: Tensor, prototypes: Tensor, labels: Tensor) -> Tensor:
    """Squared differences of the products with class prototypes from labels as -1 and 1.

    u (B, K), prototypes (C, K), labels (B, C) -> (B, C).

    >>> label_misfit(torch.eye(2), torch.eye(2), torch.eye(2))
    tensor([[0., 1.],
            [1., 0.]])
    """
    return (2 * labels - 1 - u @ prototypes.T).pow(2)


@torch.no_grad()
def clean_chances(misfit: Tensor) -> Tensor:
    """Chances (B,) that items belong to the better-fitting half of a mixture of two Gaussians, fit by EM.

    misfit: (B,) one number per item, scaled to [0, 1] first. Both Gaussians start from the halves beside the middle.
    """
    spread = (misfit.max() - misfit.min()).clamp_min(1e-8)
    x = ((misfit - misfit.min()) / spread).double()
    chance = (x < x.mean()).double()
    for _ in range(ROUNDS):
        weights = torch.stack([chance, 1 - chance])  # (2, B)
        count = weights.sum(1).clamp_min(1e-6)
        mean = (weights * x).sum(1) / count
        variance = (weights * (x - mean.unsqueeze(1)).pow(2)).sum(1) / count + SMALLEST
        log_density = -(x - mean.unsqueeze(1)).pow(2) / variance.unsqueeze(1) / 2
        log_density += (count.log() - variance.log() / 2).unsqueeze(1)
        chance = log_density.softmax(0)[int(mean.argmin())]
    return chance
