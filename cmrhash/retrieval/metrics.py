"""Retrieval metrics under tied distances, exactly. Pure NumPy.

Hamming distances are small integers, so thousands of items share a distance, and their order is arbitrary. Each metric
here is its expected value over random orders of the tied items (McSherry & Najork, "Computing Information Retrieval
Performance Measures Efficiently in the Presence of Tied Scores", ECIR 2008; He, Cakir, Bargal & Sclaroff, CVPR 2018),
in closed form from counts by distance, without sorting:

    items, relevant: (Q, D) integer counts at distance d = 0, 1, ..., all items and relevant ones (`items_relevant`)

Notation for a group of tied items: n items, r of them relevant, after ``before`` items, ``found`` of them relevant; R
relevant items in all. Results are (Q,) float64, NaN for a query without a relevant item; `mean_over_valid` leaves such
queries out and counts the others. `split_ties` gives the optimistic and pessimistic bounds. Arguments of a wrong type,
shape or value raise UsageError.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from cmrhash.errors import UsageError, did_you_mean
from cmrhash.retrieval.codes import describe

Floats = NDArray[np.float64]
Counts = NDArray[np.integer[Any]]

RULES = {
    "min": "precisions at the relevant items in the top k, summed, divided by min(R, k)",
    "R": "the same sum divided by R",
    "hits": "the same sum divided by the relevant items in the top k, 0 when there is none",
    "first": "mean precision at the first min(R, k) relevant items, wherever they are",
}


def items_relevant(hist: Counts) -> tuple[Counts, Counts]:
    """Split a histogram (Q, G + 1, D) by gain and distance into items and relevant items, (Q, D) int64 each.
    >>> items_relevant(np.array([[[1, 2], [0, 1], [1, 0]]]))
    (array([[2, 3]]), array([[1, 1]]))
    """
    relevant = hist[:, 1:].sum(axis=1, dtype=np.int64)
    return relevant + hist[:, 0], relevant


def mean_over_valid(values: Floats) -> tuple[float, int]:
    """Average over the queries with a relevant item, and count them: (NaN, 0) when there are none.
    >>> mean_over_valid(np.array([0.5, np.nan, 1.0]))
    (0.75, 2)
    """
    valid = values[~np.isnan(values)]
    return (float(valid.mean()) if len(valid) else float("nan")), len(valid)


def split_ties(items: Counts, relevant: Counts, order: Literal["optimistic", "pessimistic"]) -> tuple[Counts, Counts]:
    """Put the relevant items of each tie group first (optimistic) or last (pessimistic): counts (Q, 2 D).

    Any metric of the result is its exact bound over all orders; only AP with rule "hits" can exceed it a little.
    >>> split_ties(np.array([[3]]), np.array([[1]]), "optimistic")
    (array([[1, 2]]), array([[1, 0]]))
    """
    items, relevant, _, _ = _groups(items, relevant)
    rest, none = items - relevant, np.zeros_like(relevant)
    if order not in ("optimistic", "pessimistic"):
        raise UsageError(f"unknown tie order {order!r}", None, "choose optimistic or pessimistic", option="ties")
    step = 1 if order == "optimistic" else -1
    shape = len(items), 2 * items.shape[1]
    split = [np.stack(pair[::step], axis=2).reshape(shape) for pair in ((relevant, rest), (relevant, none))]
    return split[0], split[1]


def one_group(items: Counts, relevant: Counts) -> tuple[Counts, Counts]:
    """Tie all items: counts (Q, 1), whose metrics are the expectation of a random order.
    >>> one_group(np.array([[1, 3]]), np.array([[1, 1]]))
    (array([[4]]), array([[2]]))
    """
    n, r, _, _ = _groups(items, relevant)
    return n.sum(axis=1, keepdims=True), r.sum(axis=1, keepdims=True)


def relevant_share(items: Counts, relevant: Counts) -> Floats:
    """Share of relevant items, R / N (Q,): approximately the AP of a random order.
    >>> relevant_share(np.array([[1, 3]]), np.array([[1, 1]]))
    array([0.5])
    """
    n, r = one_group(items, relevant)
    return np.where(r > 0, r / np.maximum(n, 1), np.nan)[:, 0]


def average_precision(items: Counts, relevant: Counts, k: int | None = None, rule: str = "min") -> Floats:
    """Expected AP, or AP@k under one of the `RULES`; k = None ranks the whole database.

    Place i of a group holds a relevant item with probability r / n, preceded in the group by (i - 1) rho relevant ones
    on average, rho = (r - 1) / (n - 1), so a group adds (McSherry & Najork 2008, section 2; H: harmonic numbers,
    m: places up to k)

        (r / n) * [rho m + (found + 1 - rho (before + 1)) * (H(before + m) - H(before))]

    "min" and "R" divide the sum; "hits" averages the quotient over the hypergeometric number of hits in the group that
    k cuts; "first" (calc_map_k of DCMH and later code) cuts the list of relevant items instead of the ranking. On the
    whole ranking all four agree. UsageError for an unknown rule or k < 1.
    >>> average_precision(np.array([[1, 1, 2]]), np.array([[1, 0, 1]]))  # (1 + (2/3 + 1/2) / 2) / 2
    array([0.79166667])
    """
    if rule not in RULES:
        fix = f"{did_you_mean(str(rule), RULES)} choose one of {', '.join(RULES)}"
        raise UsageError(f"unknown rule {rule!r}", None, fix, option="map_at_rule")
    n, r, before, found = _groups(items, relevant)
    total = r.sum(axis=1)  # (Q,) R
    cut = _cut(k, n)
    harmonic = prefix_sums(1.0 / np.arange(1, _longest(n) + 1))
    if rule == "first":
        return _mean_of_first(n, r, before, found, np.minimum(total, cut), harmonic)
    places = np.clip(cut - before, 0, n)
    sums = expected_precision(n, r, places, before, found, harmonic)  # (Q, D)
    if rule == "hits":
        return _mean_of_hits(n, r, before, places, sums, harmonic)
    return ratio(sums.sum(axis=1), np.minimum(total, cut) if rule == "min" else total)


def expected_precision(n: Any, r: Any, places: Any, before: Any, found: Any, harmonic: Floats) -> Any:
    """Expected sum of precisions at the relevant items in the first ``places`` places of a group.
    >>> harmonic = prefix_sums(np.array([1.0, 1 / 2, 1 / 3]))
    >>> float(expected_precision(n=3, r=1, places=1, before=0, found=0, harmonic=harmonic).round(3))
    0.333
    """
    rho = np.where(n > 1, (r - 1) / np.maximum(n - 1, 1), 0.0)
    tail = harmonic[before + places] - harmonic[before]
    return r / np.maximum(n, 1) * (rho * places + (found + 1 - rho * (before + 1)) * tail)


def _mean_of_hits(n: Counts, r: Counts, before: Counts, places: Counts, sums: Floats, harmonic: Floats) -> Floats:
    """AP@k per relevant item found: E[(S + s(X)) / (P + X)], S and P the sum and the hits before the group that k cuts.

    Given its number of hits X = x, the m places of that group up to k are a group of their own with x relevant items.
    """
    whole = places == n
    top, hits = np.where(whole, sums, 0.0).sum(axis=1), np.where(whole, r, 0).sum(axis=1)
    value = top / np.maximum(hits, 1)
    for q, d in np.argwhere(~whole & (places > 0)):  # at most one group a query
        m, in_group = places[q, d], r[q, d]
        x = np.arange(max(0, m - (n[q, d] - in_group)), min(in_group, m) + 1)
        rest = n[q, d] - in_group - m + x[1:]  # > 0: irrelevant items left out when x are in
        steps = (in_group - x[:-1]) * (m - x[:-1]) / (x[1:] * rest)
        inner = expected_precision(m, x, m, before[q, d], hits[q], harmonic)
        value[q] = _by_ratios(steps) @ ((top[q] + inner) / np.maximum(hits[q] + x, 1))
    return np.where(r.sum(axis=1) > 0, value, np.nan)


def _mean_of_first(n: Counts, r: Counts, before: Counts, found: Counts, last: Counts, harmonic: Floats) -> Floats:
    """Mean precision at the first T = ``last`` (Q,) relevant items.

    In the group of the T-th, its own t-th, place i counts when fewer than t relevant items precede it in the group: Y,
    hypergeometric, so it adds (r / n) E[(found + 1 + Y); Y < t] / (before + i). Pr[Y < t] is the probability that the
    t-th of the other r - 1 comes later, and E[Y; Y < t] = E[Y] Pr[Y' < t - 1], Y' being Y with r - 2 of n - 2 items.
    """
    whole = found + r <= last[:, None]
    value = np.where(whole, expected_precision(n, r, n, before, found, harmonic), 0.0).sum(axis=1)
    for q, d in np.argwhere(~whole & (found < last[:, None])):  # at most one group a query; there 1 <= t < r
        size, of, t = int(n[q, d]), int(r[q, d]), int(last[q] - found[q, d])
        fewer = 1.0 - prefix_sums(_place_of(size - 1, of - 1, t))  # (n,) Pr[Y < t] at places 1 ... n
        weight = (found[q, d] + 1) * fewer
        if t > 1:
            mean = (of - 1) * np.arange(1, size) / (size - 1)  # E[Y] at places 2 ... n
            weight[1:] += mean * (1.0 - prefix_sums(_place_of(size - 2, of - 2, t - 1)))
        value[q] += of / size * (weight / (before[q, d] + np.arange(1, size + 1))).sum()
    return ratio(value, last)


def precision_at(items: Counts, relevant: Counts, k: int) -> Floats:
    """Expected P@k, hits in the top k / k; as in trec_eval, k divides even if fewer items exist.
    >>> precision_at(np.array([[1, 2]]), np.array([[1, 1]]), k=2)
    array([0.75])
    """
    return ratio(_hits_at(items, relevant, k), np.where(relevant.sum(axis=1) > 0, k, 0))


def recall_at(items: Counts, relevant: Counts, k: int) -> Floats:
    """Expected R@k, hits in the top k / R; the R@1, 5, 10 of image-caption papers is `hit_at`.
    >>> recall_at(np.array([[1, 2]]), np.array([[1, 1]]), k=2)
    array([0.75])
    """
    return ratio(_hits_at(items, relevant, k), relevant.sum(axis=1))


def _hits_at(items: Counts, relevant: Counts, k: int) -> Floats:
    """Expected relevant items in the top k: m r / n of each group, m of its n places lie within k."""
    n, r, before, _ = _groups(items, relevant)
    hits: Floats = (r * np.clip(_cut(k, n) - before, 0, n) / np.maximum(n, 1)).sum(axis=1)
    return hits


def hit_at(items: Counts, relevant: Counts, k: int) -> Floats:
    """Probability that the top k contain a relevant item.

    1 - C(n - r, m) / C(n, m) when k leaves m places to the nearest group with a relevant item.
    >>> hit_at(np.array([[1, 2]]), np.array([[0, 1]]), k=2)
    array([0.5])
    """
    n, r, before = _first_group(items, relevant)
    places = np.clip(_cut(k, items) - before, 0, n)
    # C(n - r, m) / C(n, m) is symmetric in r and m: take the shorter product
    few, many = np.minimum(r, places), np.maximum(r, places)
    miss = np.ones(len(n))
    for j in range(int(few.max(initial=0))):
        miss *= np.where(j < few, (n - many - j) / np.maximum(n - j, 1), 1.0)
    return np.where(r > 0, 1.0 - miss, np.nan)


def expected_rank(items: Counts, relevant: Counts) -> Floats:
    """Expected rank, from 1, of the first relevant item: before + (n + 1) / (r + 1).
    >>> expected_rank(np.array([[1, 2]]), np.array([[0, 1]]))
    array([2.5])
    """
    n, r, before = _first_group(items, relevant)
    return np.where(r > 0, before + (n + 1) / (r + 1), np.nan)


def median_rank(items: Counts, relevant: Counts) -> float:
    """MedR: median of `expected_rank` over queries with a relevant item; NaN without any.
    >>> median_rank(np.array([[1, 2], [2, 1]]), np.array([[0, 1], [2, 0]]))
    1.75
    """
    ranks = expected_rank(items, relevant)
    valid = ranks[~np.isnan(ranks)]
    return float(np.median(valid)) if len(valid) else float("nan")


def ndcg_at(hist: Counts, k: int | None = None) -> Floats:
    """Expected nDCG@k from a histogram (Q, G + 1, D) by gain and distance.

    Gain g = number of shared labels, linear as in trec_eval (many hashing papers use 2^g - 1); discount 1 / log2(1 +
    rank) (Jarvelin & Kekalainen, ACM TOIS 2002). The ideal ranking is over the whole database, not over the retrieved
    top k. Every place of a group expects the group's mean gain.
    >>> ndcg_at(np.array([[[1, 0], [0, 1]]]))  # the relevant item is second: 1 / log2(3)
    array([0.63092975])
    """
    gain = np.arange(hist.shape[1])
    n = hist.sum(axis=1, dtype=np.int64)  # (Q, D)
    cut = _cut(k, n)
    discount = prefix_sums(1.0 / np.log2(1.0 + np.arange(1, _longest(n) + 1)))
    before = n.cumsum(axis=1) - n
    mean_gain = np.einsum("g,qgd->qd", gain, hist) / np.maximum(n, 1)
    dcg = mean_gain * (discount[np.minimum(before + n, cut)] - discount[np.minimum(before, cut)])
    best = hist.sum(axis=2, dtype=np.int64)[:, ::-1]  # (Q, G + 1) rows of gain G, ..., 1, 0
    end = best.cumsum(axis=1)
    ideal = gain[::-1] * (discount[np.minimum(end, cut)] - discount[np.minimum(end - best, cut)])
    return ratio(dcg.sum(axis=1), ideal.sum(axis=1))


def precision_within(items: Counts, relevant: Counts, radius: int) -> tuple[Floats, float]:
    """Precision among items within a Hamming radius, and the share of empty balls.

    Returns ((Q,) float64, share of queries). An empty ball counts as precision 0, as in DHN and HashNet. Both leave out
    queries without relevant items.
    >>> precision_within(np.array([[2, 1], [0, 3]]), np.array([[1, 0], [0, 1]]), radius=0)
    (array([0.5, 0. ]), 0.5)
    """
    _groups(items, relevant)
    if isinstance(radius, bool) or not isinstance(radius, (int, np.integer)) or radius < 0:
        raise UsageError(f"radius must be a whole number of at least 0, got {radius!r}")
    ball, hits = (counts[:, : radius + 1].sum(axis=1, dtype=np.int64) for counts in (items, relevant))
    valid = relevant.sum(axis=1) > 0
    empty = float(np.mean(ball[valid] == 0)) if valid.any() else float("nan")
    return np.where(valid, hits / np.maximum(ball, 1), np.nan), empty


def pr_curve(items: Counts, relevant: Counts) -> tuple[Floats, Floats]:
    """Precision and recall (D,) within each radius 0 ... D - 1, averaged over queries (macro).

    Leaves out queries without relevant items, and from a precision also those with an empty ball; NaN if all are empty.
    >>> pr_curve(np.array([[1, 3]]), np.array([[1, 1]]))
    (array([1. , 0.5]), array([0.5, 1. ]))
    """
    n, r, before, found = _groups(items, relevant)
    valid = r.sum(axis=1) > 0
    ball, hits = (before + n)[valid], (found + r)[valid]
    inside = (ball > 0).sum(axis=0)
    precision = ratio((hits / np.maximum(ball, 1)).sum(axis=0), inside)
    recall = (hits / np.maximum(hits[:, -1:], 1)).sum(axis=0)
    return precision, ratio(recall, np.full(n.shape[1], valid.sum()))


def _groups(items: Counts, relevant: Counts) -> tuple[Counts, Counts, Counts, Counts]:
    """Check counts and return (n, r, before, found), (Q, D) int64 each."""
    whole = all(isinstance(counts, np.ndarray) and counts.dtype.kind in "iu" for counts in (items, relevant))
    if not whole or items.ndim != 2 or items.shape != relevant.shape:
        raise UsageError(f"counts must be two (Q, D) integer arrays, got {describe(items)} and {describe(relevant)}")
    n, r = items.astype(np.int64), relevant.astype(np.int64)
    if ((r < 0) | (r > n)).any():
        raise UsageError("counts must hold 0 <= relevant <= items at every distance")
    return n, r, n.cumsum(axis=1) - n, r.cumsum(axis=1) - r


def _first_group(items: Counts, relevant: Counts) -> tuple[Counts, Counts, Counts]:
    """(n, r, before), (Q,) each, of the nearest group with a relevant item; r = 0 when there is none."""
    n, r, before, _ = _groups(items, relevant)
    at = np.arange(len(n)), np.argmax(r > 0, axis=1)
    return n[at], r[at], before[at]


def _cut(k: int | None, items: Counts) -> int:
    """Return k as an int; the size of the largest database for None."""
    if k is None:
        return max(1, _longest(items))
    if isinstance(k, bool) or not isinstance(k, (int, np.integer)) or not 1 <= k < 2**63:
        raise UsageError(f"k must be a whole number of at least 1, in 64 bits, got {k!r}")
    return int(k)


def _longest(items: Counts) -> int:
    return int(items.sum(axis=1, dtype=np.int64).max(initial=0))


def prefix_sums(values: Floats) -> Floats:
    """Sums of the first 0, 1, 2, ... values.
    >>> prefix_sums(np.array([1.0, 2.0]))
    array([0., 1., 3.])
    """
    return np.concatenate(([0.0], np.cumsum(values)))


def ratio(value: Any, divisor: Any) -> Floats:
    """Quotient, NaN where the divisor is 0.
    >>> ratio(np.array([1.0, 0.0]), np.array([2, 0]))
    array([0.5, nan])
    """
    return np.where(divisor > 0, value / np.where(divisor > 0, divisor, 1), np.nan)


def _by_ratios(steps: Floats) -> Floats:
    """Probabilities, each ``steps`` times the one before; by logarithms, as they span hundreds of decades."""
    log = prefix_sums(np.log(steps))
    weight = np.exp(log - log.max())
    share: Floats = weight / weight.sum()
    return share


def _place_of(n: int, r: int, t: int) -> Floats:
    """Probability (n,) that the t-th of r relevant items among n shuffled ones lies at place 1 ... n."""
    j = np.arange(t, n - r + t)  # all possible places but the last
    place = np.zeros(n)
    place[t - 1 : n - r + t] = _by_ratios(j / (j - t + 1) * (n - j - r + t) / (n - j))
    return place
