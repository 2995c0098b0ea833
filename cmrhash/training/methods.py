"""METHODS: a name for each way of training the heads. One entry a method: its terms, and where they come from."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import combinations, product
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cmrhash.errors import UsageError, did_you_mean
from cmrhash.training import alignment, cca, losses, rotations
from cmrhash.training.auxiliary import (
    Parts,
    Shapes,
    decoders,
    label_and_modality_classifiers,
    label_and_posterior_coders,
    label_classifier,
    label_directions,
)
from cmrhash.training.heads import Head, KernelHead
from cmrhash.training.names import ALIGNMENTS

IMAGE = "image"
Views = dict[str, Tensor]  # "image" first, then each language -> embeddings (B, K)

# Weights of the parts, where the first of a method weighs 1: by val mAP on Pascal Sentence (64 bits, mean of 3 seeds)
# out of three to five steps of about 3 (CORAL: 10), the smaller one of equals. More costs more than less.
TRIPLET = 1.0  # acmr
ADVERSARIAL, MMD, CORAL, CORRELATION = 0.03, 1.0, 100.0, 1.0  # acmr's modality gap
CORRNET = 0.1  # lambda, on the mean correlation of a bit
# Of an item's own pair beside its labels: out of .03 to .4, by precision among the first 12 results for val items of
# Flickr8k (32 bits). With more, own pairs are found more often and items of the same label less often.
OWN_PAIR = 0.1


@dataclass(frozen=True)
class Batch:
    """What a loss is told of a batch of B items. relevant: (B, B) bool, True on the diagonal; bits: K; margin: on
    squared L2 distances of embeddings in [-1, 1]^K; labels: (B, classes) float32 of 0 and 1, None for relevance by
    pairs; features: standardised input features (B, D) by view; parts: what the method trains beside the heads."""

    relevant: Tensor
    bits: int
    margin: float
    labels: Tensor | None = None
    features: Views = field(default_factory=dict)
    parts: nn.ModuleDict = field(default_factory=nn.ModuleDict)


class Terms(NamedTuple):
    """loss: named scalars whose sum is minimised. counts: named numbers that the history adds up over an epoch."""

    loss: dict[str, Tensor]
    counts: dict[str, Tensor]


ToTerms = Callable[[Views, Batch], Terms]
Pairwise = Callable[[Tensor, Tensor, Batch], Tensor]


@dataclass(frozen=True)
class Method:
    """A way of training the heads.

    terms: (views, batch) -> Terms, None for a closed form. source: paper or code, for the run's record.
    fit: (standardised features (n, D) by view, bits, ridge) -> linear heads (D, K) by view, of a closed form.
    rotate: (centred features (n, D) of images alone, bits, seed) -> one linear head (D, K), of a closed form for images
    and texts of one space.
    kernel: a closed form with kernel heads, see ``kernel_codes``; queries and database items are hashed differently.
    parts: shapes -> modules that are trained beside the heads. labels: learns from labels, not from relevance alone.
    reproduction: only for comparison with published results (an ablation, another sampler), not for new work.
    partial: its terms are defined for any views, so that items that lack a view train the others.
    name: of a method of the user's own, which ``train`` registers; heads: (D features, K bits) -> a module that maps
    standardised features (B, D) to embeddings (B, K), in place of the usual head.
    """

    terms: ToTerms | None
    source: str
    fit: Callable[[dict[str, cca.Matrix], int, float], dict[str, cca.Matrix]] | None = None
    rotate: Callable[[NDArray[np.floating], int, int], cca.Matrix] | None = None
    kernel: bool = False
    parts: Callable[[Shapes], Parts] | None = None
    labels: bool = False
    reproduction: bool = False
    partial: bool = False
    name: str = ""
    heads: Callable[[int, int], nn.Module] | None = None

    def __repr__(self) -> str:
        kind = "closed form" if self.terms is None else "losses"
        return f"Method({self.name or self.source!r}, {kind})"


def register(method: Method) -> str:
    """Add a method of the user's own to METHODS and return its name.

    Raises UsageError without a name, for a name with characters that no folder has, or one that METHODS has already.
    """
    if not re.fullmatch(r"\w[\w.-]*", method.name):
        raise UsageError(
            f"a method named {method.name!r}", None, "give `Method` a `name` of letters, digits, '.' and '-'"
        )
    if METHODS.get(method.name, method) is not method and method.name in BUILT_IN:
        raise UsageError(f"'{method.name}' is a method of cmrhash", None, "give your method another name")
    METHODS[method.name] = method
    return method.name


def build_head(dim: int, bits: int, shape: Mapping[str, Any]) -> Head:
    """The head that a run records. shape: keywords of ``Head``; "network" names the method whose ``heads`` it has;
    "rows" makes it a ``KernelHead`` with that many support rows.

    Raises UsageError if that method is not registered here.
    """
    if "rows" in shape:
        return KernelHead(dim, bits, shape["rows"])
    own = {key: value for key, value in shape.items() if key != "network"}
    if "network" not in shape:
        return Head(dim, bits, **own)
    method = METHODS.get(shape["network"])
    if method is None or method.heads is None:
        what = f"the heads of method '{shape['network']}' are not defined here"
        raise UsageError(what, None, "register the method first: `cmrhash.register(method)`")
    return Head(dim, bits, **own, network=method.heads(dim, bits))


def method_names(usable: Callable[[Method], bool] = lambda _: True) -> str:
    """List the names of usable methods, those for reproduction last: "a, b; for reproduction only: c"."""
    names: dict[bool, list[str]] = {False: [], True: []}
    for name, method in METHODS.items():
        if usable(method):
            names[method.reproduction].append(name)
    return "; for reproduction only: ".join(", ".join(group) for group in names.values() if group)


def get_method(name: str, relevance: str = "labels") -> Method:
    """The method of that name; UsageError with the nearest name and the list for any other, and for one that learns
    from labels where ``relevance``, the data set's, is by pairs."""
    if name not in METHODS:
        fix = f"{did_you_mean(name, METHODS)} choose one of {method_names()}"
        raise UsageError(f"unknown method '{name}'", None, fix, option="method")
    if METHODS[name].labels and relevance != "labels":
        without = method_names(lambda method: not method.labels)
        raise UsageError(f"method '{name}' needs labels, but relevance is pairs", None, f"choose one of {without}")
    return METHODS[name]


def _triplets(sampler: Callable[..., losses.Triplets]) -> ToTerms:
    """F = L(I->I) + mean over languages of L(I->T) + L(T->I) + L(T->T), by a sampler of triplets."""

    def terms(views: Views, batch: Batch) -> Terms:
        langs = [name for name in views if name != IMAGE]
        if IMAGE in views:
            found = [sampler(views[IMAGE], [views[lang] for lang in langs], batch.relevant, batch.margin)]
            names = ["i2i", *(f"{term}.{lang}" for lang in langs for term in ("i2t", "t2i", "t2t"))]
        else:
            found = [sampler(views[lang], [], batch.relevant, batch.margin) for lang in langs]
            names = [f"t2t.{lang}" for lang in langs]
        values = torch.cat([result.loss for result in found])
        loss = {
            name: value if name == "i2i" else value * (1 / len(langs))
            for name, value in zip(names, values, strict=True)
        }
        valid, active = (torch.stack([r[at].sum() for r in found]).sum() for at in (1, 2))
        return Terms(loss, {"valid_triplets": valid, "active_triplets": active})

    return terms


def _pairs(loss: Pairwise, own: bool) -> ToTerms:
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


def _own_pair(u: Tensor, v: Tensor, batch: Batch) -> Tensor:
    return losses.multi_positive_contrastive(u, v, torch.eye(len(u), dtype=torch.bool, device=u.device))


def _cmpc(u: Tensor, v: Tensor, batch: Batch) -> Tensor:
    weight = batch.parts.get_parameter("labels.weight")
    return losses.projection_classification(u, v, weight, _labels(batch))


def _labels(batch: Batch) -> Tensor:
    assert batch.labels is not None  # get_method refuses such a data set
    return batch.labels


def _joined(**parts: tuple[float, ToTerms]) -> ToTerms:
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


def _label(views: Views, batch: Batch) -> Terms:
    """One classifier for all views; the image weighs half, the languages share the other half."""
    share = {name: 0.5 if name == IMAGE else 0.5 / (len(views) - 1) for name in views}
    classify = batch.parts["labels"]
    terms = {name: losses.label_classification(classify(x), _labels(batch)) for name, x in views.items()}
    return Terms({name: share[name] * loss for name, loss in terms.items()}, {})


def _relative_triplets(views: Views, batch: Batch) -> Terms:
    """The four triplet terms as a share of what they are when all embeddings lie in one point: of any code length."""
    found = _triplets(losses.four_triplets)(views, batch)
    return Terms({name: loss / (4 * batch.margin) for name, loss in found.loss.items()}, found.counts)


def _gap(loss: Pairwise) -> ToTerms:
    """A modality-gap term between the images and each language, the mean over languages."""

    def terms(views: Views, batch: Batch) -> Terms:
        langs = [name for name in views if name != IMAGE]
        return Terms({lang: loss(views[IMAGE], views[lang], batch) / len(langs) for lang in langs}, {})

    return terms


def _adversarial(u: Tensor, v: Tensor, batch: Batch) -> Tensor:
    return alignment.adversarial(u, v, batch.parts["modality"])


def _mmd(u: Tensor, v: Tensor, _: Batch) -> Tensor:
    return alignment.mmd(u, v)


def _coral(u: Tensor, v: Tensor, _: Batch) -> Tensor:
    return alignment.coral(u, v)


def _correlation(u: Tensor, v: Tensor, batch: Batch) -> Tensor:
    return alignment.correlation(u, v) / batch.bits


def _reconstructions(views: Views, batch: Batch) -> Terms:
    """Each view's features out of the embedding of every view, and out of their mean in the place of a joint encoder:
    the mean over these embeddings and over the views."""
    sources = [*views.values(), torch.stack(list(views.values())).mean(0)]
    loss = {}
    for name, features in batch.features.items():
        decode = batch.parts[f"to-{name}"]
        errors = torch.stack([losses.reconstruction(decode(x), features) for x in sources])
        loss[name] = errors.mean() / len(views)
    return Terms(loss, {})


def _correlations(views: Views, batch: Batch) -> Terms:
    """The mean over unordered pairs of views."""
    pairs = list(combinations(views, 2))
    return Terms({f"{a}-{b}": _correlation(views[a], views[b], batch) / len(pairs) for a, b in pairs}, {})


def _acmr(
    source: str, triplet: bool = True, gap: tuple[float, Pairwise] | None = None, reproduction: bool = True
) -> Method:
    """A member of the ACMR family: labels, and triplets and a weighted modality-gap term if wanted."""
    terms: dict[str, tuple[float, ToTerms]] = {"label": (1.0, _label)}
    if triplet:
        terms["triplet"] = (TRIPLET, _relative_triplets)
    if gap:
        terms["gap"] = (gap[0], _gap(gap[1]))
    parts = label_and_modality_classifiers if gap and gap[1] is _adversarial else label_classifier
    weights = ", ".join(f"{part} {weight:g}" for part, (weight, _) in terms.items())
    source = f"ACMR, Wang et al. (ACM MM 2017): {source}; weights {weights}"
    return Method(_joined(**terms), source, parts=parts, labels=True, reproduction=reproduction)


METHODS = {
    "triplet": Method(
        _triplets(losses.four_triplets), "four triplet terms, batch-all; FaceNet (CVPR 2015) eq. 1", partial=True
    ),
    "triplet-hard": Method(
        _triplets(losses.hardest_triplets),
        "four triplet terms, batch-hard, Hermans et al. (2017) eq. 5",
        reproduction=True,
        partial=True,
    ),
    "triplet-seed": Method(
        _triplets(losses.seed_triplets),
        "sampler of xiami2019/Cross-modal-retrieval, utils.py",
        reproduction=True,
        partial=True,
    ),
    "contrastive": Method(_pairs(_contrastive, own=False), "Hadsell et al. (CVPR 2006) eq. 4", partial=True),
    "cmpm": Method(_pairs(_cmpm, own=False), "CMPM, Zhang & Lu (ECCV 2018) eq. 1-4", partial=True),
    "cmpm-cmpc": Method(
        _joined(cmpm=(1.0, _pairs(_cmpm, own=False)), cmpc=(1.0, _pairs(_cmpc, own=False))),
        "CMPM + CMPC, Zhang & Lu (ECCV 2018) eq. 1-8",
        parts=label_directions,
        labels=True,
        partial=True,
    ),
    ALIGNMENTS["adversarial"]: _acmr(
        "labels, triplets, adversary behind a reversed gradient (Ganin & Lempitsky, ICML 2015, eq. 4-6)",
        gap=(ADVERSARIAL, _adversarial),
        reproduction=False,
    ),
    ALIGNMENTS["mmd"]: _acmr(
        "labels, triplets, with MMD (Gretton et al., JMLR 2012, eq. 5; DAN, ICML 2015)", gap=(MMD, _mmd)
    ),
    ALIGNMENTS["coral"]: _acmr(
        "labels, triplets, with Deep CORAL (Sun & Saenko, ECCV-W 2016, eq. 1-3)", gap=(CORAL, _coral)
    ),
    ALIGNMENTS["correlation"]: _acmr(
        "labels, triplets, with CorrNet's correlation (Neural Computation 2016)", gap=(CORRELATION, _correlation)
    ),
    ALIGNMENTS["none"]: _acmr("labels and triplets, no adversary"),
    "acmr-label": _acmr("labels alone", triplet=False),
    "corrnet": Method(
        _joined(reconstruction=(1.0, _reconstructions), correlation=(CORRNET, _correlations)),
        f"CorrNet, Chandar et al. (Neural Computation 2016), J_Z with lambda {CORRNET:g}",
        parts=decoders,
    ),
    "logistic": Method(
        _pairs(_logistic, own=True), "DCMH (CVPR 2017) eq. 1, balanced as HashNet (ICCV 2017) eq. 2", partial=True
    ),
    "supcon": Method(_pairs(_supcon, own=True), "SupCon (NeurIPS 2020) eq. 2", partial=True),
    "cca": Method(
        None, "CCA, Hotelling (Biometrika 1936); three views and more: Kettenring (Biometrika 1971)", cca.fit
    ),
    "itq": Method(
        None, "ITQ, Gong & Lazebnik (CVPR 2011), on the images of one space with the texts", rotate=rotations.itq
    ),
    "sign": Method(
        None,
        "signs after a random rotation, Charikar (STOC 2002), Ji et al. (NIPS 2012), in one space with the texts",
        rotate=rotations.sign,
    ),
    "krr-ap": Method(
        None,
        "kernel ridge regression of the labels, leave-one-out on train items, Rifkin & Lippert "
        "(MIT-CSAIL-TR-2007-025); tie-aware AP, He et al. (CVPR 2018) eq. 8",
        kernel=True,
        parts=label_and_posterior_coders,
        labels=True,
    ),
    "tie-ap": Method(_pairs(_tie_ap, own=True), "tie-aware AP, He et al. (CVPR 2018) eq. 8", partial=True),
    "tie-ap-nce": Method(
        _joined(ap=(1.0, _pairs(_tie_ap, own=True)), nce=(OWN_PAIR, _pairs(_own_pair, own=False))),
        "tie-aware AP, He et al. (CVPR 2018) eq. 8, by labels, with InfoNCE, van den Oord et al. (2018) eq. 4, on each "
        f"item's own pair; weight {OWN_PAIR:g}",
        partial=True,
    ),
}

BUILT_IN = frozenset(METHODS)


def total(terms: Terms) -> Tensor:
    """The sum that is minimised."""
    return torch.stack(list(terms.loss.values())).sum()
