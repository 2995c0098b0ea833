"""ACMR and its relatives: label loss, triplets, and a term that closes the modality gap."""

from __future__ import annotations

from torch import Tensor

from cmrhash.training import alignment, losses
from cmrhash.training.auxiliary import label_and_modality_classifiers, label_classifier
from cmrhash.training.methods.method import Batch, Method, Pairwise, Terms, ToTerms, Views
from cmrhash.training.methods.terms import gap, joined, labels_of, shares
from cmrhash.training.methods.triplets import relative_triplets
from cmrhash.training.names import ALIGNMENTS

# Weights of the parts, where the label loss weighs 1: by val mAP on Pascal Sentence (64 bits, mean of 3 seeds) out of
# three to five steps of about 3 (CORAL: 10), the smaller one of equals. More costs more than less.
TRIPLET = 1.0
ADVERSARIAL, MMD, CORAL, CORRELATION = 0.03, 1.0, 100.0, 1.0


def _label(views: Views, batch: Batch) -> Terms:
    """One classifier for all views; the image weighs half, the languages share the other half."""
    share = shares(views)
    classify = batch.parts["labels"]
    terms = {name: losses.label_classification(classify(x), labels_of(batch)) for name, x in views.items()}
    return Terms({name: share[name] * loss for name, loss in terms.items()}, {})


def _adversarial(u: Tensor, v: Tensor, batch: Batch) -> Tensor:
    return alignment.adversarial(u, v, batch.parts["modality"])


def _mmd(u: Tensor, v: Tensor, _: Batch) -> Tensor:
    return alignment.mmd(u, v)


def _coral(u: Tensor, v: Tensor, _: Batch) -> Tensor:
    return alignment.coral(u, v)


def _correlation(u: Tensor, v: Tensor, batch: Batch) -> Tensor:
    return alignment.correlation(u, v) / batch.bits


def _acmr(
    source: str, triplet: bool = True, closing: tuple[float, Pairwise] | None = None, reproduction: bool = True
) -> Method:
    """A member of the ACMR family: labels, and triplets and a weighted modality-gap term if wanted."""
    terms: dict[str, tuple[float, ToTerms]] = {"label": (1.0, _label)}
    if triplet:
        terms["triplet"] = (TRIPLET, relative_triplets)
    if closing:
        terms["gap"] = (closing[0], gap(closing[1]))
    parts = label_and_modality_classifiers if closing and closing[1] is _adversarial else label_classifier
    weights = ", ".join(f"{part} {weight:g}" for part, (weight, _) in terms.items())
    source = f"ACMR, Wang et al. (ACM MM 2017): {source}; weights {weights}"
    reads = ("margin",) if triplet else ()
    return Method(joined(**terms), source, parts=parts, labels=True, reproduction=reproduction, reads=reads)


METHODS = {
    ALIGNMENTS["adversarial"]: _acmr(
        "labels, triplets, adversary behind a reversed gradient (Ganin & Lempitsky, ICML 2015, eq. 4-6)",
        closing=(ADVERSARIAL, _adversarial),
        reproduction=False,
    ),
    ALIGNMENTS["mmd"]: _acmr(
        "labels, triplets, with MMD (Gretton et al., JMLR 2012, eq. 5; DAN, ICML 2015)", closing=(MMD, _mmd)
    ),
    ALIGNMENTS["coral"]: _acmr(
        "labels, triplets, with Deep CORAL (Sun & Saenko, ECCV-W 2016, eq. 1-3)", closing=(CORAL, _coral)
    ),
    ALIGNMENTS["correlation"]: _acmr(
        "labels, triplets, with CorrNet's correlation (Neural Computation 2016)",
        closing=(CORRELATION, _correlation),
    ),
    ALIGNMENTS["none"]: _acmr("labels and triplets, no adversary"),
    "acmr-label": _acmr("labels alone", triplet=False),
}
