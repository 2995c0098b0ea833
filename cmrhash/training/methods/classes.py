"""Methods with a point per class: learned proxies, or fixed class codes that each view learns by itself."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from cmrhash.training import class_losses as losses
from cmrhash.training.auxiliary import Parts, Shapes, autoencoded_codes, label_directions, random_codes
from cmrhash.training.methods.method import Batch, Method, Terms, ToTerms, Views
from cmrhash.training.methods.terms import IMAGE, joined, labels_of, shares

PUSH = 0.8  # of DSPH's pair term, as published

ToPoints = Callable[[Tensor, Tensor, Tensor], Tensor]  # embeddings (B, K), points (C, K), labels (B, C) -> scalar


def _per_view(loss: ToPoints, points: str) -> ToTerms:
    """A loss of each view by itself; the image weighs half, the languages share the other half.

    points: parameter or buffer of the method's parts.
    """

    def terms(views: Views, batch: Batch) -> Terms:
        known = {**dict(batch.parts.named_parameters()), **dict(batch.parts.named_buffers())}[points]
        share = shares(views)
        return Terms({name: share[name] * loss(x, known, labels_of(batch)) for name, x in views.items()}, {})

    return terms


def _cosine(batch: Batch) -> float:
    return losses.code_cosine(batch.bits, labels_of(batch).shape[1])


def _hyp2_proxies(views: Views, batch: Batch) -> Terms:
    """As published, the sum over image and text: twice the mean."""
    pull = _per_view(lambda u, points, y: 2 * losses.proxy_pull(u, points, y, _cosine(batch)), "labels.weight")
    return pull(views, batch)


def _hyp2_pairs(views: Views, batch: Batch) -> Terms:
    """Between images, and for each language between images and texts and between texts, the mean over languages."""
    langs = [name for name in views if name != IMAGE]
    among = {f"{lang}-{lang}": (lang, lang) for lang in langs}
    if IMAGE in views:
        among |= {f"{IMAGE}-{lang}": (IMAGE, lang) for lang in langs}
    found = {
        name: losses.irrelevant_push(views[a], views[b], labels_of(batch), _cosine(batch)) / len(langs)
        for name, (a, b) in among.items()
    }
    if IMAGE in views:
        found[f"{IMAGE}-{IMAGE}"] = losses.irrelevant_push(views[IMAGE], views[IMAGE], labels_of(batch), _cosine(batch))
    return Terms(found, {})


def _method(terms: ToTerms, source: str, parts: Callable[[Shapes], Parts]) -> Method:
    return Method(terms, source, parts=parts, labels=True, partial=True)


METHODS = {
    "dsph": _method(
        joined(proxies=(1.0, _hyp2_proxies), pairs=(PUSH, _hyp2_pairs)),
        f"DSPH (TCSVT 2023): HyP2, Xu et al. (ACM MM 2022), across views; weight of pairs {PUSH:g}",
        label_directions,
    ),
    "dnph": _method(
        _per_view(losses.proxy_distances, "labels.weight"),
        "DNPH, Qin et al. (ACM TOMM 2024), its proxy term; margin 1",
        label_directions,
    ),
    "orthohash": _method(
        _per_view(losses.code_classification, "codes.points"),
        "OrthoHash, Hoe et al. (NeurIPS 2021), random class codes; scale 8, margin .2",
        random_codes,
    ),
    "dchn": _method(
        _per_view(losses.semantic_codes, "codes.points"),
        "DCHN, Hu et al. (IEEE TCYB 2021), codes of label sets by its autoencoder of the classes; alpha .02",
        autoencoded_codes,
    ),
}
