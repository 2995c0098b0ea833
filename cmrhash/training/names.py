"""Names of methods and settings, checked before torch is imported; ``methods`` has the methods' table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields

from cmrhash.config import TrainConfig
from cmrhash.errors import UsageError, did_you_mean, some_of

METHODS = (
    *("triplet", "contrastive", "cmpm", "cmpm-cmpc", "logistic", "supcon", "tie-ap", "tie-ap-nce", "acmr", "corrnet"),
    *("cca", "scm", "cvh", "itq", "sign", "krr-ap", "krr-ap-symmetric"),
    *("dcmh", "dsph", "dnph", "orthohash", "dchn", "nrch"),
    *("djsrh", "jdsh", "dgcpn", "krr-cluster", "cca-itq", "ucch"),
)
NAMING = ("method", "bits", "seed", "langs", "relevance")  # every run has them, in its name or in its record
MACHINE = ("device", "checkpoint_seconds")  # they change no result
CHOSEN = frozenset(field.name for field in fields(TrainConfig)) - {*NAMING, *MACHINE}  # settings
BEST = "best"  # stands for one of them, see the module ``best``
REPRODUCTION = (
    "triplet-hard",
    "triplet-seed",
    "acmr-mmd",
    "acmr-coral",
    "acmr-correlation",
    "acmr-label-triplet",
    "acmr-label",
)
# Alignment loss that closes the modality gap in method acmr -> name of the method with it.
ALIGNMENTS = {
    "adversarial": "acmr",
    "mmd": "acmr-mmd",
    "coral": "acmr-coral",
    "correlation": "acmr-correlation",
    "none": "acmr-label-triplet",
}


def check_methods(*names: str, best: bool = False) -> None:
    """Raise UsageError for a method that cmrhash does not have. best: whether "best" is allowed."""
    known = (*METHODS, *REPRODUCTION, *([BEST] if best else []))
    for name in names:
        if name not in known:
            fix = f"{did_you_mean(name, known)} choose one of {some_of((*METHODS, *REPRODUCTION))}"
            raise UsageError(f"unknown method '{name}'", None, fix, option="method")


def aligned(methods: Sequence[str], alignment: str | None) -> list[str]:
    """Names of methods, once each, "acmr" with an alignment out of ALIGNMENTS; None leaves it unchanged.

    Raises UsageError for an unknown alignment, and for an alignment without "acmr".
    """
    chosen, own = list(dict.fromkeys(methods)), ALIGNMENTS["adversarial"]
    if alignment is None:
        return chosen
    if alignment not in ALIGNMENTS:
        fix = f"{did_you_mean(alignment, ALIGNMENTS)} choose one of {', '.join(ALIGNMENTS)}"
        raise UsageError(f"unknown alignment '{alignment}'", None, fix)
    if own not in chosen:
        raise UsageError(f"method '{chosen[0]}' has no alignment", None, 'use `method="acmr"`', option="alignment")
    return [ALIGNMENTS[alignment] if name == own else name for name in chosen]
