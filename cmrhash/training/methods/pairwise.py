"""Losses of two views each, averaged over the pairs of views."""

from __future__ import annotations

import torch
from torch import Tensor

from cmrhash.training import losses
from cmrhash.training.auxiliary import label_directions
from cmrhash.training.methods.method import Batch, Method
from cmrhash.training.methods.terms import joined, labels_of, pairs

# Of an item's own pair beside its labels: out of .03 to .4, by precision among the first 12 results for val items of
# Flickr8k (32 bits). With more, own pairs are found more often and items of the same label less often.
OWN_PAIR = 0.1
READ = ("memory", "noise")  # settings of losses of relevance alone
RANKED = (*READ, "direction")  # of those that compare an anchor with what it is to find


def _contrastive(u: Tensor, v: Tensor, batch: Batch, own: bool) -> Tensor:
    return losses.contrastive(u, v, batch.relevant, batch.margin)


def _cmpm(u: Tensor, v: Tensor, batch: Batch, own: bool) -> Tensor:
    return losses.projection_matching(u, v, batch.relevant)


def _logistic(u: Tensor, v: Tensor, batch: Batch, own: bool) -> Tensor:
    return losses.pairwise_logistic(u, v, batch.relevant)


def _supcon(u: Tensor, v: Tensor, batch: Batch, own: bool) -> Tensor:
    return losses.multi_positive_contrastive(u, v, batch.relevant)


def _tie_ap(u: Tensor, v: Tensor, batch: Batch, own: bool) -> Tensor:
    """Within a view the anchor itself is not ranked: it would always be first."""
    among = ~torch.eye(*batch.relevant.shape, dtype=torch.bool, device=u.device) if own else None
    return losses.tie_aware_ap(u, v, batch.relevant, among)


def _own_pair(u: Tensor, v: Tensor, batch: Batch, own: bool) -> Tensor:
    return losses.multi_positive_contrastive(u, v, torch.eye(len(u), dtype=torch.bool, device=u.device))


def _cmpc(u: Tensor, v: Tensor, batch: Batch, own: bool) -> Tensor:
    weight = batch.parts.get_parameter("labels.weight")
    return losses.projection_classification(u, v, weight, labels_of(batch))


METHODS = {
    "contrastive": Method(
        pairs(_contrastive, own=False),
        "Hadsell et al. (CVPR 2006) eq. 4",
        partial=True,
        reads=("margin", *READ),
    ),
    "cmpm": Method(pairs(_cmpm, own=False), "CMPM, Zhang & Lu (ECCV 2018) eq. 1-4", partial=True, reads=RANKED),
    "cmpm-cmpc": Method(
        joined(cmpm=(1.0, pairs(_cmpm, own=False)), cmpc=(1.0, pairs(_cmpc, own=False))),
        "CMPM + CMPC, Zhang & Lu (ECCV 2018) eq. 1-8",
        parts=label_directions,
        labels=True,
        partial=True,
        reads=("direction",),
    ),
    "logistic": Method(
        pairs(_logistic, own=True),
        "DCMH (CVPR 2017) eq. 1, balanced as HashNet (ICCV 2017) eq. 2",
        partial=True,
        reads=READ,
    ),
    "supcon": Method(pairs(_supcon, own=True), "SupCon (NeurIPS 2020) eq. 2", partial=True, reads=RANKED),
    "tie-ap": Method(pairs(_tie_ap, own=True), "tie-aware AP, He et al. (CVPR 2018) eq. 8", partial=True, reads=RANKED),
    "tie-ap-nce": Method(
        joined(ap=(1.0, pairs(_tie_ap, own=True)), nce=(OWN_PAIR, pairs(_own_pair, own=False))),
        "tie-aware AP, He et al. (CVPR 2018) eq. 8, by labels, with InfoNCE, van den Oord et al. (2018) eq. 4, on each "
        f"item's own pair; weight {OWN_PAIR:g}",
        partial=True,
        reads=("noise", "direction"),
    ),
}
