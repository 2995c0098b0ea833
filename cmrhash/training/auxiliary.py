"""Auxiliary modules of a method, by name: classifiers and decoders, discarded after training.

They are in ``Batch.parts``, share the heads' optimizer and checkpoint, and never reach heads.safetensors.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import nn

from cmrhash.training.heads import Dropout


class Shapes(NamedTuple):
    """Sizes: bits K; classes, 0 for relevance by pairs; features D by view ("image", languages)."""

    bits: int
    classes: int
    features: dict[str, int]


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


def label_and_posterior_coders(shapes: Shapes) -> Parts:
    """ "labels": label sets (B, classes) -> (B, K); "query-VIEW": standardised posteriors of a view, likewise."""
    bits, classes = shapes.bits, shapes.classes
    labels = nn.Sequential(nn.Linear(classes, LABEL_HIDDEN), nn.ReLU(), nn.Linear(LABEL_HIDDEN, bits))
    queries = {
        f"query-{view}": nn.Sequential(Dropout(POSTERIOR_DROPOUT), nn.Linear(classes, bits)) for view in shapes.features
    }
    return {"labels": labels, **queries}
