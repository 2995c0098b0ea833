"""Auxiliary modules of a method, by name: classifiers and decoders, discarded after training.

They are in ``Batch.parts``, share the heads' optimizer and checkpoint, and never reach heads.safetensors.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from cmrhash.training.heads import Dropout


class Shapes(NamedTuple):
    """Sizes: bits K; classes, 0 for relevance by pairs; features D by view ("image", languages); train items."""

    bits: int
    classes: int
    features: dict[str, int]
    items: int = 0


CODE_STEPS = 50  # of DCHN's autoencoder, as in its code
MODALITY_HIDDEN = 64  # units of the modality classifier
# Of krr-ap, out of dropouts 0 to .5 and linear or deeper coders, by val mAP of Flickr8k (32 bits)
LABEL_HIDDEN, POSTERIOR_DROPOUT = 256, 0.3
Parts = dict[str, nn.Module]


def label_classifier(shapes: Shapes) -> Parts:
    """ "labels": linear classifier, embeddings (B, K) of any view -> (B, classes) logits."""
    return {"labels": nn.Linear(shapes.bits, shapes.classes)}


def label_directions(shapes: Shapes) -> Parts:
    """ "labels" without bias: one direction (K,) per class, which the loss normalises."""
    return {"labels": nn.Linear(shapes.bits, shapes.classes, bias=False)}


def label_and_modality_classifiers(shapes: Shapes) -> Parts:
    """ "labels", and "modality": embeddings (B, K) -> (B, 2) logits of image and text, with one hidden layer."""
    parts = label_classifier(shapes)  # first, to draw the same weights as without an adversary
    parts["modality"] = nn.Sequential(nn.Linear(shapes.bits, MODALITY_HIDDEN), nn.ReLU(), nn.Linear(MODALITY_HIDDEN, 2))
    return parts


def decoders(shapes: Shapes) -> Parts:
    """ "to-VIEW": linear decoder, embeddings (B, K) -> (B, D) standardised features of that view."""
    return {f"to-{view}": nn.Linear(shapes.bits, dim) for view, dim in shapes.features.items()}


def random_codes(shapes: Shapes) -> Parts:
    """ "codes": a fixed random code of -1 and 1 per class, its buffer "points" (classes, K)."""
    return {"codes": _fixed(torch.where(torch.rand(shapes.classes, shapes.bits) < 0.5, -1.0, 1.0))}


def autoencoded_codes(shapes: Shapes) -> Parts:
    """ "codes": the fixed matrix W of DCHN's semantic autoencoder of the classes, its buffer "points" (classes, K).

    From a random W with orthonormal rows or columns on, alternately, for each class a row of
    B = sign(W (W^T W + I)^-1) and W = 2 B (B^T B + I)^-1; of CODE_STEPS steps the one with the least
    |I - B W^T| + |B - W| (Hu et al., IEEE TCYB 2021, SHAM with the number of classes alone and gamma 1).
    """
    left, _, right = torch.linalg.svd(torch.randn(shapes.classes, shapes.bits).double(), full_matrices=False)
    w, eye = left @ right, torch.eye(shapes.bits).double()
    found: list[tuple[float, Tensor]] = []
    for _ in range(CODE_STEPS):
        b = torch.where(w @ torch.linalg.inv(w.T @ w + eye) > 0, 1.0, -1.0).double()
        w = 2 * b @ torch.linalg.inv(b.T @ b + eye)
        error = (torch.eye(shapes.classes) - b @ w.T).abs().sum() + (b - w).abs().sum()
        found.append((float(error), w))
    return {"codes": _fixed(min(found, key=lambda one: one[0])[1].float())}


def _fixed(points: Tensor) -> nn.Module:
    module = nn.Module()
    module.register_buffer("points", points)
    return module


def label_and_posterior_coders(shapes: Shapes) -> Parts:
    """ "labels": label sets (B, classes) -> (B, K); "query-VIEW": standardised posteriors of a view, likewise."""
    bits, classes = shapes.bits, shapes.classes
    labels = nn.Sequential(nn.Linear(classes, LABEL_HIDDEN), nn.ReLU(), nn.Linear(LABEL_HIDDEN, bits))
    queries = {
        f"query-{view}": nn.Sequential(Dropout(POSTERIOR_DROPOUT), nn.Linear(classes, bits)) for view in shapes.features
    }
    return {"labels": labels, **queries}
