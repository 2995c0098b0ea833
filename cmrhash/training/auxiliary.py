"""What a method trains beside the heads and throws away afterwards: classifiers and decoders, by name.

They live in ``Batch.parts``, share the heads' optimizer and checkpoint, and never reach heads.safetensors.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import nn


class Shapes(NamedTuple):
    """bits: K; classes: labels of the data set, 0 for relevance by pairs; features: D by view ("image", languages)."""

    bits: int
    classes: int
    features: dict[str, int]


MODALITY_HIDDEN = 64  # units of the modality classifier
Parts = dict[str, nn.Module]


def label_classifier(shapes: Shapes) -> Parts:
    """ "labels": embeddings (B, K) of any view -> (B, classes) logits."""
    return {"labels": nn.Linear(shapes.bits, shapes.classes)}


def label_directions(shapes: Shapes) -> Parts:
    """ "labels" without a bias: one direction (K,) a class, whose length the loss takes away."""
    return {"labels": nn.Linear(shapes.bits, shapes.classes, bias=False)}


def label_and_modality_classifiers(shapes: Shapes) -> Parts:
    """ "labels", and "modality": embeddings (B, K) -> (B, 2) logits of image and text, with one hidden layer."""
    parts = label_classifier(shapes)  # first, so that it starts as it does without an adversary
    parts["modality"] = nn.Sequential(nn.Linear(shapes.bits, MODALITY_HIDDEN), nn.ReLU(), nn.Linear(MODALITY_HIDDEN, 2))
    return parts


def decoders(shapes: Shapes) -> Parts:
    """ "to-VIEW": embeddings (B, K) -> (B, D) standardised features of that view, linear."""
    return {f"to-{view}": nn.Linear(shapes.bits, dim) for view, dim in shapes.features.items()}
