"""Terms of several views out of a loss of two, and sums of terms."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import product

import torch
from torch import Tensor

from cmrhash.training.methods.method import Batch, Pairwise, Terms, ToTerms, Views

IMAGE = "image"
Ranked = Callable[[Tensor, Tensor, Batch, bool], Tensor]  # anchors, ranked items, batch, whether both are one view


def pairs(loss: Ranked, own: bool) -> ToTerms:
    """The mean of a pairwise loss over all ordered pairs of views. own: a view with itself counts too, so that
    image, en and de give nine pairs instead of six. The second view has the remembered items behind those of the batch.
    With a direction of the batch, only the pairs of that direction count.
    """

    def terms(views: Views, batch: Batch) -> Terms:
        chosen = [(a, b) for a, b in product(views, views) if own or a != b]
        chosen = [ends for ends in chosen if batch.direction in (None, direction_of(*ends))]
        ranked = views
        if batch.remembered is not None:
            ranked = {name: torch.cat([v, batch.memory[name]]) for name, v in views.items()}
            batch = replace(batch, relevant=torch.cat([batch.relevant, batch.remembered], 1))
        return Terms({f"{a}-{b}": loss(views[a], ranked[b], batch, a == b) / len(chosen) for a, b in chosen}, {})

    return terms


def direction_of(a: str, b: str) -> str:
    """Search direction of a query view and a database view: "i2t", "t2i", "i2i" or "t2t"."""
    return "2".join("i" if name == IMAGE else "t" for name in (a, b))


def gap(loss: Pairwise) -> ToTerms:
    """A modality-gap term between the images and each language, the mean over languages."""

    def terms(views: Views, batch: Batch) -> Terms:
        langs = [name for name in views if name != IMAGE]
        return Terms({lang: loss(views[IMAGE], views[lang], batch) / len(langs) for lang in langs}, {})

    return terms


def shares(views: Views) -> dict[str, float]:
    """Weights of terms of one view each: the image half, the languages equal parts of the other half."""
    langs = [name for name in views if name != IMAGE]
    return {name: 0.5 if name == IMAGE else 0.5 / len(langs) for name in views}


def joined(**parts: tuple[float, ToTerms]) -> ToTerms:
    """The weighted sum of several parts, their terms by "part.term"."""

    def terms(views: Views, batch: Batch) -> Terms:
        loss: dict[str, Tensor] = {}
        counts: dict[str, Tensor] = {}
        for part, (weight, to_terms) in parts.items():
            found = to_terms(views, batch)
            loss |= {f"{part}.{name}": weight * value for name, value in found.loss.items()}
            counts |= found.counts
        return Terms(loss, counts)

    return terms


def labels_of(batch: Batch) -> Tensor:
    """Labels (B, classes) of a method that learns from labels."""
    assert batch.labels is not None  # get_method refuses such a data set
    return batch.labels
