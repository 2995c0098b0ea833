"""Modality-gap terms: distances between the distributions of two views' embeddings. Pure functions of tensors.

Notation: u (B, K) image embeddings, v (B, K) text embeddings, float; every term is a scalar to be minimised. No term
uses relevance, and only ``correlation`` uses that row i of u and row i of v are a pair.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from cmrhash.training.losses import squared_distances

KERNEL_WIDTHS = (0.25, 0.5, 1.0, 2.0, 4.0)  # of mmd, times the mean squared distance
LEAST_VARIANCE = 1e-6  # added to a dimension's variance: a constant dimension has correlation 0 and a bounded gradient


def adversarial(u: Tensor, v: Tensor, classify: Callable[[Tensor], Tensor]) -> Tensor:
    """Cross-entropy of a classifier that tells the views apart, behind a reversed gradient.

    Rows of u belong to view 0, rows of v to view 1. In the same step the classifier descends this loss and the
    embeddings ascend it. classify: (N, K) -> (N, 2) logits. A loss of log 2 means that it cannot tell the views apart.
    Source: Ganin & Lempitsky, Unsupervised Domain Adaptation by Backpropagation, ICML 2015, eq. 4-6 (the reversal);
    Wang et al., Adversarial Cross-Modal Retrieval, ACM MM 2017, L_adv (views as domains).

    >>> adversarial(torch.ones(2, 4), torch.ones(2, 4), lambda x: x[:, :2])
    tensor(0.6931)
    """
    view = torch.arange(2, device=u.device).repeat_interleave(len(u))
    return functional.cross_entropy(classify(_reversed(torch.cat([u, v]))), view)


def _reversed(x: Tensor) -> Tensor:
    """Return x with its gradient reversed."""
    return x.detach() - (x - x.detach())


def mmd(u: Tensor, v: Tensor) -> Tensor:
    """Squared maximum mean discrepancy (MMD) under a mean of Gaussian kernels.

    The biased (V-statistic) estimate, which is never negative and is defined for a single row:

        MMD^2 = mean k(u, u') + mean k(v, v') - 2 mean k(u, v),    k(x, y) = mean over w of exp(-|x - y|^2 / (w s))

    with s the mean squared distance between two rows of u and v together, taken as a constant.
    Source: Gretton et al., A Kernel Two-Sample Test, JMLR 2012, eq. 5; the kernels as in Long et al., Learning
    Transferable Features with Deep Adaptation Networks, ICML 2015, section 3.1, with equal weights.

    >>> u = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    >>> mmd(u, u), mmd(u, u + 1) > 0.1
    (tensor(0.), tensor(True))
    """
    both = torch.cat([u, v])
    distance = squared_distances(both, both)  # (2 B, 2 B)
    rows = len(both)
    scale = (distance.detach().sum() / (rows * (rows - 1))).clamp_min(1e-12)  # 0 if all rows are one point
    kernel = torch.stack([torch.exp(-distance / (width * scale)) for width in KERNEL_WIDTHS]).mean(0)
    sign = torch.ones(rows, dtype=u.dtype, device=u.device)
    sign[len(u) :] = -1
    return sign @ kernel @ sign / len(u) ** 2


def coral(u: Tensor, v: Tensor) -> Tensor:
    """Squared difference of the covariances, |C_u - C_v|_F^2 / (4 K^2).

    C = X^T X / (B - 1) of centred rows; a single row has covariance 0.
    Source: Sun & Saenko, Deep CORAL, ECCV 2016 workshops, eq. 1-3.

    >>> u = torch.tensor([[1.0], [-1.0]])
    >>> coral(u, 2 * u)  # variances 2 and 8: (8 - 2)^2 / 4
    tensor(9.)
    """
    return (_covariance(u) - _covariance(v)).pow(2).sum() / (4 * u.shape[1] ** 2)


def _covariance(x: Tensor) -> Tensor:
    centred = x - x.mean(0)
    return centred.T @ centred / max(len(x) - 1, 1)


def correlation(u: Tensor, v: Tensor) -> Tensor:
    """Minus the sum over dimensions of Pearson's correlation between the views.

    -K where each dimension of v is a rising linear function of the same dimension of u; a dimension that is constant in
    u or v counts 0.
    Source: Chandar, Khapra, Larochelle & Ravindran, Correlational Neural Networks, Neural Computation 28(2), 2016,
    corr(h(X), h(Y)), the term that lambda weighs.

    >>> u = torch.tensor([[1.0, 5.0], [-1.0, 5.0]])
    >>> correlation(u, 3 * u).round(decimals=3)
    tensor(-1.)
    """
    a, b = u - u.mean(0), v - v.mean(0)
    spread = ((a.pow(2).mean(0) + LEAST_VARIANCE) * (b.pow(2).mean(0) + LEAST_VARIANCE)).sqrt()
    return -((a * b).mean(0) / spread).sum()
