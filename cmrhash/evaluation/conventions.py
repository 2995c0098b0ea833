"""Scoring conventions of published code: how each computes mAP or R@k from a ranking.

The same ranking gives different figures because conventions differ in the cut-off, in the divisor of AP, and in what a
query without a relevant item counts. Each convention here is the definition of one circulating function.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cmrhash.errors import UsageError, did_you_mean
from cmrhash.retrieval import metrics

Counts = NDArray[np.integer[Any]]
PerQuery = Callable[[Counts, Counts], NDArray[np.float64]]  # items and relevant items by distance -> (Q,)


@dataclass(frozen=True)
class Convention:
    """A way of scoring a ranking.

    figures: name of each figure -> its value per query. zeros: a query without a relevant item counts 0, otherwise it
    is left out. words: what it computes, and the function and repository that do.
    """

    name: str
    figures: Mapping[str, PerQuery]
    zeros: bool
    words: str

    def of(self, items: Counts, relevant: Counts) -> dict[str, NDArray[np.float64]]:
        """Each figure of each query (Q,), NaN for a query that is left out.

        items, relevant: (Q, D), as the metrics take them.
        """
        found = {name: figure(items, relevant) for name, figure in self.figures.items()}
        return {name: np.nan_to_num(values, nan=0.0) for name, values in found.items()} if self.zeros else found


def _ap(k: int | None, rule: str) -> dict[str, PerQuery]:
    name = "mAP" if k is None else f"mAP@{k}"
    return {name: partial(metrics.average_precision, k=k, rule=rule)}


def _cmrhash(k: int | None) -> Convention:
    words = "AP of the whole ranking; queries without a relevant item are left out"
    return Convention("cmrhash", _ap(k, "min"), False, words)


def _dcmh(k: int | None) -> Convention:
    cut = "the whole ranking" if k is None else f"the first {k} relevant items, wherever they are"
    words = f"AP of {cut}; a query without a relevant item counts 0 (calc_map_k of DCMH and later code)"
    return Convention("dcmh", _ap(k, "first"), True, words)


def _djsrh(k: int | None) -> Convention:
    words = (
        f"AP of the first {k} items, divided by the relevant ones among them; none counts 0 (calculate_top_map, DJSRH)"
    )
    return Convention("djsrh", _ap(k, "hits"), True, words)


def _twdh(k: int | None) -> Convention:
    words = f"AP of the first {k} relevant items, wherever they are; none counts 0 (calc_map_k with k={k}, TwDH)"
    return Convention("twdh", _ap(k, "first"), True, words)


def _ucch(_: int | None) -> Convention:
    words = "AP of the whole ranking; queries without a relevant item are left out (fx_calc_map_multilabel_k, UCCH)"
    return Convention("ucch", _ap(None, "hits"), False, words)


def _karpathy(_: int | None) -> Convention:
    figures = {f"R@{k}": partial(metrics.hit_at, k=k) for k in (1, 5, 10)}
    words = "share of queries with their own text or image among the first k (VSE++ and later code)"
    return Convention("karpathy", figures, False, words)


OURS, PAIRS = "cmrhash", "karpathy"
# name -> its cut-off, None for the whole ranking, and whether another one can be given
_MADE: dict[str, tuple[Callable[[int | None], Convention], int | None, bool]] = {
    OURS: (_cmrhash, None, False),
    "dcmh": (_dcmh, None, True),
    "djsrh": (_djsrh, 50, True),
    "twdh": (_twdh, 5000, True),
    "ucch": (_ucch, None, False),
    PAIRS: (_karpathy, None, False),
}
NAMES = tuple(name for name in _MADE if name != OURS)


def convention(like: str) -> Convention:
    """The convention of a name, "dcmh" or with another cut-off "djsrh@100".

    Raises UsageError for an unknown name, and for a cut-off that is no number from 1 or that the convention lacks.
    """
    name, at, cut = like.partition("@")
    if name.lower() not in _MADE:
        fix = f"{did_you_mean(name.lower(), NAMES)} choose one of {', '.join(NAMES)}"
        raise UsageError(f"unknown convention '{name}'", None, fix, option="like")
    make, k, adjustable = _MADE[name.lower()]
    if at and not (adjustable and cut.isdecimal() and int(cut)):
        with_cut = ", ".join(f"{name}@K" for name, (_, _, can) in _MADE.items() if can)
        raise UsageError(f"no cut-off '{cut}' for '{name}'", None, f"write {with_cut}, with a number K", option="like")
    return make(int(cut) if at else k)
