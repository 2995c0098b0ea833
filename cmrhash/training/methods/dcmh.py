"""DCMH: the likelihood of relevance with terms that make codes binary and balanced."""

from __future__ import annotations

import torch

from cmrhash.training import losses
from cmrhash.training.methods.method import Batch, Method, Terms, Views
from cmrhash.training.methods.terms import gap, joined, shares

GAMMA, ETA = 1.0, 1.0  # of the quantisation and of the balance, as published


def _quantisation(views: Views, batch: Batch) -> Terms:
    """|b - u|^2 with b = sign(u + v), one code per item for all views; of several languages v is the mean."""
    share = shares(views)
    common = torch.stack([share[name] * x.detach() for name, x in views.items()]).sum(0).sign()
    return Terms({n: 2 * share[n] * (common - x).pow(2).sum() / len(x) ** 2 for n, x in views.items()}, {})


def _balance(views: Views, batch: Batch) -> Terms:
    """|sum of u|^2 per view: as many ones as zeros in each bit."""
    share = shares(views)
    return Terms({name: 2 * share[name] * x.sum(0).pow(2).sum() / len(x) ** 2 for name, x in views.items()}, {})


METHODS = {
    "dcmh": Method(
        joined(
            likelihood=(1.0, gap(lambda u, v, batch: losses.relevance_likelihood(u, v, batch.relevant))),
            quantisation=(GAMMA, _quantisation),
            balance=(ETA, _balance),
        ),
        "DCMH, Jiang & Li (CVPR 2017) eq. 1, sums over a batch of B items divided by B^2 as in its code; "
        f"gamma {GAMMA:g}, eta {ETA:g}",
        reads=("noise",),
    ),
}
