"""Metrics by their plain definition, averaged over all orders of ties."""

from __future__ import annotations

import itertools
from fractions import Fraction

import numpy as np
from hypothesis import strategies as st

CUTS = st.integers(1, 12)


def orders(groups):
    """All orders of the groups' items, equally likely, as lists of gains in rank order."""
    kinds = [list(itertools.permutations(group)) for group in groups]
    for parts in itertools.product(*kinds):
        yield list(itertools.chain(*parts))


def mean(values):
    values = list(values)
    return sum(values) / len(values)


# -- the slow twins: one query, one order; exact --
def ap(gains, k=None, rule="min"):
    k = k or max(1, len(gains))
    total = sum(g > 0 for g in gains)
    at_hits, found = [], 0
    for rank, gain in enumerate(gains, 1):
        if gain:
            found += 1
            at_hits.append((rank, Fraction(found, rank)))
    in_top = [precision for rank, precision in at_hits if rank <= k]
    if rule == "first":
        return mean([precision for _, precision in at_hits][: min(k, total)])
    divisor = {"min": min(k, total), "R": total, "hits": max(1, len(in_top))}[rule]
    return sum(in_top, Fraction(0)) / divisor


def hits(gains, k):
    return sum(g > 0 for g in gains[:k])


def by_pattern(groups):
    """The distinct orders with gains cut to 0 and 1, each as often as the others: fewer to go through."""
    patterns = []
    for group in groups:
        n, r = len(group), sum(g > 0 for g in group)
        patterns.append([[int(i in at) for i in range(n)] for at in itertools.combinations(range(n), r)])
    return [list(itertools.chain(*parts)) for parts in itertools.product(*patterns)]


def average_precision_ranked(relevant):
    """AP of rankings without ties, nearest first: (Q, N) bool -> (Q,), NaN where nothing is relevant."""
    counts, total = relevant.cumsum(axis=1), relevant.sum(axis=1)
    sums = (counts / np.arange(1, relevant.shape[1] + 1) * relevant).sum(axis=1)
    return np.where(total > 0, sums / np.maximum(total, 1), np.nan)
