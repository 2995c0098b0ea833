"""METHODS: a name for each way of training the heads. One entry a method: its terms, and where they come from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor

from cmrhash import cca, losses
from cmrhash.errors import UsageError

IMAGE = "image"


@dataclass(frozen=True)
class Batch:
    """What a loss is told of a batch of B items. relevant: (B, B) bool, True on the diagonal; bits: K; margin: on
    squared L2 distances of embeddings in [-1, 1]^K."""

    relevant: Tensor
    bits: int
    margin: float


class Terms(NamedTuple):
    """loss: named scalars whose sum is minimised. counts: named numbers that the history adds up over an epoch."""

    loss: dict[str, Tensor]
    counts: dict[str, Tensor]


Views = dict[str, Tensor]  # "image" first, then each language -> embeddings (B, K)


@dataclass(frozen=True)
class Method:
    """terms: (views, batch) -> Terms, None for a closed form. source: paper or code, for the run's record.
    fit: (standardised features (n, D) by view, bits, ridge) -> linear heads (D, K) by view, of a closed form.
    """

    terms: Callable[[Views, Batch], Terms] | None
    source: str
    fit: Callable[[dict[str, cca.Matrix], int, float], dict[str, cca.Matrix]] | None = None


def get_method(name: str) -> Method:
    """The method of that name; UsageError with the nearest name and the list for any other."""
    if name not in METHODS:
        near = get_close_matches(name, METHODS, 1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise UsageError(f"unknown method '{name}'", None, f"{hint}choose one of {', '.join(METHODS)}")
    return METHODS[name]


def _triplets(sampler: Callable[..., losses.Triplets]) -> Callable[[Views, Batch], Terms]:
    """F = L(I->I) + mean over languages of L(I->T) + L(T->I) + L(T->T), by a sampler of triplets."""

    def terms(views: Views, batch: Batch) -> Terms:
        langs = [name for name in views if name != IMAGE]
        result = sampler(views[IMAGE], [views[lang] for lang in langs], batch.relevant, batch.margin)
        names = ["i2i", *(f"{term}.{lang}" for lang in langs for term in ("i2t", "t2i", "t2t"))]
        share = [1.0] + [1 / len(langs)] * (3 * len(langs))
        loss = {name: value * part for name, value, part in zip(names, result.loss, share, strict=True)}
        return Terms(loss, {"valid_triplets": result.valid.sum(), "active_triplets": result.active.sum()})

    return terms


def _pairs(loss: Callable[[Tensor, Tensor, Batch], Tensor], own: bool) -> Callable[[Views, Batch], Terms]:
    """The mean of a pairwise loss over all ordered pairs of views. own: a view with itself counts too, so that
    image, en and de give nine pairs instead of six.
    """

    def terms(views: Views, batch: Batch) -> Terms:
        pairs = [(a, b) for a, b in product(views, views) if own or a != b]
        return Terms({f"{a}-{b}": loss(views[a], views[b], batch) / len(pairs) for a, b in pairs}, {})

    return terms


def _contrastive(u: Tensor, v: Tensor, batch: Batch) -> Tensor:
    return losses.contrastive(u, v, batch.relevant, batch.margin)


def _cmpm(u: Tensor, v: Tensor, batch: Batch) -> Tensor:
    return losses.projection_matching(u, v, batch.relevant)


def _logistic(u: Tensor, v: Tensor, batch: Batch) -> Tensor:
    return losses.pairwise_logistic(u, v, batch.relevant)


def _supcon(u: Tensor, v: Tensor, batch: Batch) -> Tensor:
    return losses.multi_positive_contrastive(u, v, batch.relevant)


def _tie_ap(u: Tensor, v: Tensor, batch: Batch) -> Tensor:
    """Within a view the anchor itself is not ranked: it would always be first."""
    among = None if u is not v else ~torch.eye(len(u), dtype=torch.bool, device=u.device)
    return losses.tie_aware_ap(u, v, batch.relevant, among)


METHODS = {
    "triplet": Method(_triplets(losses.four_triplets), "four triplet terms, batch-all; FaceNet (CVPR 2015) eq. 1"),
    "triplet-seed": Method(_triplets(losses.seed_triplets), "sampler of xiami2019/Cross-modal-retrieval, utils.py"),
    "contrastive": Method(_pairs(_contrastive, own=False), "Hadsell et al. (CVPR 2006) eq. 4"),
    "cmpm": Method(_pairs(_cmpm, own=False), "CMPM, Zhang & Lu (ECCV 2018) eq. 1-4"),
    "logistic": Method(_pairs(_logistic, own=True), "DCMH (CVPR 2017) eq. 1, balanced as HashNet (ICCV 2017) eq. 2"),
    "supcon": Method(_pairs(_supcon, own=True), "SupCon (NeurIPS 2020) eq. 2"),
    "cca": Method(
        None, "CCA, Hotelling (Biometrika 1936); three views and more: Kettenring (Biometrika 1971)", cca.fit
    ),
    "tie-ap": Method(_pairs(_tie_ap, own=True), "tie-aware AP, He et al. (CVPR 2018) eq. 8"),
}


def total(terms: Terms) -> Tensor:
    """The sum that is minimised."""
    return torch.stack(list(terms.loss.values())).sum()
