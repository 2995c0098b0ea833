"""METHODS: a name for each way of training the heads. One entry a method: its terms, and where they come from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches

from torch import Tensor

from cmrhash.errors import UsageError
from cmrhash.losses import Triplets, four_triplets, seed_triplets


@dataclass(frozen=True)
class Method:
    """terms: (u (B, K), [v (B, K) a language], relevant (B, B) bool, margin) -> the terms to be summed, one
    image-image term first, then i2t, t2i, t2t of each language. source: paper or code, for the run's record."""

    terms: Callable[[Tensor, list[Tensor], Tensor, float], Triplets]
    source: str


METHODS = {
    "triplet": Method(four_triplets, "four triplet terms, batch-all, multi-label; FaceNet (CVPR 2015) eq. 1"),
    "triplet-seed": Method(seed_triplets, "the sampler of xiami2019/Cross-modal-retrieval, utils.py"),
}


def get_method(name: str) -> Method:
    """The method of that name; UsageError with the nearest name and the list for any other."""
    if name not in METHODS:
        near = get_close_matches(name, METHODS, 1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise UsageError(f"unknown method '{name}'", None, f"{hint}choose one of {', '.join(METHODS)}")
    return METHODS[name]


def total(terms: Triplets, languages: int) -> Tensor:
    """F: the image-image term once, each term that involves texts averaged over the languages."""
    return terms.loss[0] + terms.loss[1:].sum() / languages
