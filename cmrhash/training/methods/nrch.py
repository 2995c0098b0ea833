"""NRCH: contrastive learning on those items of a batch whose labels seem clean."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from cmrhash.training import robust_losses as losses
from cmrhash.training.auxiliary import Parts, Shapes
from cmrhash.training.methods.method import Batch, Method, Terms, Views
from cmrhash.training.methods.terms import IMAGE, labels_of, shares

WEIGHT = 0.6  # of the contrastive loss beside 1 - WEIGHT for the signs, as published
WARM_UP, LEAST = 0.2, 0.3  # share of the epochs that keep all items; least chance of an item that is kept afterwards


def _prototypes(shapes: Shapes) -> Parts:
    """ "labels": one prototype (K,) per class, orthogonal at first, without bias."""
    layer = nn.Linear(shapes.bits, shapes.classes, bias=False)
    nn.init.orthogonal_(layer.weight)
    return {"labels": layer}


def _terms(views: Views, batch: Batch) -> Terms:
    """Per language the loss of images and texts, the mean over languages; and the prototypes' own loss.

    An item's misfit is that of its worst label. The prototypes learn from embeddings that do not learn from them.
    """
    prototypes, y, share = torch.tanh(batch.parts.get_parameter("labels.weight")), labels_of(batch), shares(views)
    unit = {name: functional.normalize(x, dim=1) for name, x in views.items()}
    parts = [2 * share[name] * losses.label_misfit(x.detach(), prototypes, y) for name, x in unit.items()]
    misfit = torch.stack(parts).sum(0)  # (B, C)
    keep = torch.ones(len(y), dtype=torch.bool, device=y.device)
    if batch.progress >= WARM_UP:
        chosen = losses.clean_chances((misfit * y).amax(1).detach()) >= LEAST
        keep = chosen if int(chosen.sum()) > 1 else keep
    u, near = unit[IMAGE][keep], batch.relevant[keep][:, keep]
    loss = {"prototypes": misfit[keep].mean()}
    langs = [name for name in unit if name != IMAGE]
    for lang in langs:
        v = unit[lang][keep]
        contrast = losses.robust_contrastive(u, v, near) + losses.robust_contrastive(v, u, near)
        off = losses.off_signs(u) + losses.off_signs(v)
        loss[lang] = (WEIGHT * contrast + (1 - WEIGHT) * off) / len(langs)
    return Terms(loss, {"kept_items": keep.sum()})


METHODS = {
    "nrch": Method(
        _terms,
        f"NRCH, Wang et al. (ACM MM 2024), mixture fit per batch; weight {WEIGHT:g}, margin {losses.MARGIN:g}, shift "
        f"{losses.SHIFT:g}, least chance {LEAST:g} after {WARM_UP:.0%} of the epochs",
        parts=_prototypes,
        labels=True,
    ),
}
