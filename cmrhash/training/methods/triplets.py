"""Triplet losses: within and between images and texts."""

from __future__ import annotations

from collections.abc import Callable

import torch

from cmrhash.training import losses
from cmrhash.training.methods.method import Batch, Method, Terms, ToTerms, Views
from cmrhash.training.methods.terms import IMAGE


def triplets(sampler: Callable[..., losses.Triplets]) -> ToTerms:
    """F = L(I->I) + mean over languages of L(I->T) + L(T->I) + L(T->T), by a sampler of triplets."""

    def terms(views: Views, batch: Batch) -> Terms:
        langs = [name for name in views if name != IMAGE]
        if IMAGE in views:
            found = [sampler(views[IMAGE], [views[lang] for lang in langs], batch.relevant, batch.margin)]
            names = ["i2i", *(f"{term}.{lang}" for lang in langs for term in ("i2t", "t2i", "t2t"))]
        else:
            found = [sampler(views[lang], [], batch.relevant, batch.margin) for lang in langs]
            names = [f"t2t.{lang}" for lang in langs]
        values, valid, active = (torch.cat(of) for of in zip(*found, strict=True))
        trained = [at for at, name in enumerate(names) if batch.direction in (None, name[:3])]
        loss = {names[at]: values[at] if names[at] == "i2i" else values[at] * (1 / len(langs)) for at in trained}
        return Terms(loss, {"valid_triplets": valid[trained].sum(), "active_triplets": active[trained].sum()})

    return terms


def relative_triplets(views: Views, batch: Batch) -> Terms:
    """The four triplet terms as a share of what they are when all embeddings lie in one point: of any code length."""
    found = triplets(losses.four_triplets)(views, batch)
    return Terms({name: loss / (4 * batch.margin) for name, loss in found.loss.items()}, found.counts)


METHODS = {
    "triplet": Method(
        triplets(losses.four_triplets),
        "four triplet terms, batch-all; FaceNet (CVPR 2015) eq. 1",
        partial=True,
        reads=("margin", "noise", "direction"),
    ),
    "triplet-hard": Method(
        triplets(losses.hardest_triplets),
        "four triplet terms, batch-hard, Hermans et al. (2017) eq. 5",
        reproduction=True,
        partial=True,
        reads=("margin", "noise", "direction"),
    ),
    "triplet-seed": Method(
        triplets(losses.seed_triplets),
        "sampler of xiami2019/Cross-modal-retrieval, utils.py",
        reproduction=True,
        partial=True,
        reads=("margin", "noise", "direction"),
    ),
}
