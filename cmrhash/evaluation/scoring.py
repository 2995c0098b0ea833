"""Figures of one search: mAP and its companions, from counts of items by their place in the ranking.

Places are Hamming distances, or with another rank the different scores, the highest first; items at one place are tied.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cmrhash.config import CUTS, EvalConfig
from cmrhash.data.items import ImageTextDataset
from cmrhash.errors import DataError
from cmrhash.evaluation.searches import Search, Sides
from cmrhash.evaluation.seen import SIDES, figures
from cmrhash.retrieval import metrics, real_valued
from cmrhash.retrieval.index import distances_to, rank_histogram
from cmrhash.retrieval.ranking import (
    ASYMMETRIC,
    HAMMING,
    Rank,
    asymmetric_scores,
    cosine_scores,
    reranked,
    score_histogram,
)
from cmrhash.retrieval.relevance import Relevance

Floats = NDArray[np.float64]
REAL_BLOCK = 1 << 22  # similarities that a thread computes at a time: products of few queries are slow
COUNT_BLOCK = 1 << 21  # counts of ranked items that are held at a time


def score(
    config: EvalConfig,
    dataset: ImageTextDataset,
    both: Sides,
    search: Search,
    relevance: Relevance,
    kind: NDArray[np.uint8],
    take: Callable[[NDArray[Any], NDArray[Any]], None] = lambda *_: None,
) -> dict[str, Any]:
    """Score a search; raises DataError if no query has a relevant item.

    kind: (items,) whether the heads were trained on an item, as ``seen.kinds``. take: takes the items and the relevant
    ones by distance, (Q, D) each, where results are ordered by Hamming distance.
    """
    cuts = config.at or CUTS[dataset.relevance]
    rank = Rank.parse(config.rank)
    own = kind[both.database]
    part = None if (own == own[:1]).all() else own
    hists: Iterator[NDArray[np.int32]] = _by_score(rank, both, relevance, part)
    radii: dict[str, Any] = {}
    if rank.kind == HAMMING:
        packed = np.ascontiguousarray(both.source.asked_packed[both.rows])
        hist = rank_histogram(packed, both.sought.index.packed, both.source.codes.bits, relevance, part=part)
        counts = metrics.items_relevant(_whole(hist))
        take(*counts)
        hists, radii = iter([hist]), _by_radius(*counts)
    blocks = [_of_queries(config, cuts, hist) for hist in hists]
    of = {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]} if blocks else {}
    counted = int(np.count_nonzero(~np.isnan(of["map_expected"]))) if of else 0
    if not counted:
        fix = "check labels and splits: a query needs a relevant item in the database"
        raise DataError("no query has a relevant item in the database", f"{search.source} {search.direction}", fix)
    mean = {name: metrics.mean_over_valid(values)[0] for name, values in of.items()}
    mean["map"] = mean[f"map_{config.ties}"]
    at = {name: {str(k): mean[f"{name} {k}"] for k in cuts} for name in ("precision_at", "recall_at", "ndcg_at")}
    return {
        **{name: mean[name] for name in ("map", "map_expected", "map_optimistic", "map_pessimistic", "chance")},
        "queries": counted,
        "queries_without_relevant": len(both.rows) - counted,
        "database": len(both.database),
        **figures(mean, kind, both.database, dataset.relevance),
        **at,
        "hit_at": {str(k): mean[f"hit_at {k}"] for k in cuts},
        "median_rank": _median(of["rank"]),
        "hit_at_chance": {str(k): mean[f"hit_at_chance {k}"] for k in cuts},
        "median_rank_chance": _median(of["rank_chance"]),
        **_real(cuts, both, relevance),
        **radii,
    }


def _by_score(
    rank: Rank, both: Sides, relevance: Relevance, part: NDArray[np.uint8] | None
) -> Iterator[NDArray[np.int32]]:
    """Histograms of some queries each, by gain and place of the score; part: as ``rank_histogram`` takes it."""
    queries, rows = relevance.shape
    step = max(1, COUNT_BLOCK // (max(rows, 1) * (relevance.levels + 1)))
    for first in range(0, queries, step):
        last = min(first + step, queries)
        gains = relevance.gains(first, last, 0, rows)
        yield score_histogram(scores_of(rank, both, first, last), gains, relevance.levels, part)


def _whole(hist: NDArray[np.int32]) -> NDArray[np.int32]:
    """Histogram of the whole database, (q, G + 1, D), also of one by parts, (q, P, G + 1, D)."""
    whole: NDArray[np.int32] = hist if hist.ndim == 3 else hist.sum(axis=1, dtype=np.int32)
    return whole


def scores_of(rank: Rank, both: Sides, first: int, last: int) -> Floats:
    """Numbers (last - first, N) that order the database for some queries: the highest is the nearest."""
    rows, bits = both.rows[first:last], both.source.codes.bits
    if rank.kind == ASYMMETRIC:
        return asymmetric_scores(both.source.asked[rows], both.sought.index.packed)
    distances = distances_to(both.sought.index.packed, np.ascontiguousarray(both.source.asked_packed[rows]), bits)
    if rank.kind == HAMMING:
        return -distances.astype(np.float64)
    scores = cosine_scores(both.source.asked[rows], both.sought.embedding[both.sought.database])
    return reranked(scores, distances, rank.candidates(1))


def _of_queries(config: EvalConfig, cuts: Sequence[int], hist: NDArray[np.int32]) -> dict[str, Floats]:
    """Figures of each query, (q,) each; nDCG (gain = shared labels) is always over random tie order.

    hist: as ``rank_histogram``. The parts of a database are ranked as the whole, without the others.
    """
    parts = dict(zip(SIDES, hist.swapaxes(0, 1), strict=False)) if hist.ndim == 4 else {}
    hist = _whole(hist)
    items, relevant = metrics.items_relevant(hist)
    by_ties = {"expected": (items, relevant)}
    by_ties["optimistic"] = metrics.split_ties(items, relevant, "optimistic")
    by_ties["pessimistic"] = metrics.split_ties(items, relevant, "pessimistic")
    of = {
        f"map_{order}": metrics.average_precision(*counts, config.map_at, config.map_at_rule)
        for order, counts in by_ties.items()
    }
    for side, own in parts.items():
        counts = metrics.items_relevant(own)
        of[f"chance_{side}"] = metrics.relevant_share(*counts)
        counts = counts if config.ties == "expected" else metrics.split_ties(*counts, config.ties)  # type: ignore[arg-type]
        of[f"map_{side}"] = metrics.average_precision(*counts, config.map_at, config.map_at_rule)
    ranked, chance = by_ties[config.ties], metrics.one_group(items, relevant)
    for k in cuts:
        of[f"precision_at {k}"] = metrics.precision_at(*ranked, k)
        of[f"recall_at {k}"] = metrics.recall_at(*ranked, k)
        of[f"ndcg_at {k}"] = metrics.ndcg_at(hist, k)
        of[f"hit_at {k}"] = metrics.hit_at(*ranked, k)
        of[f"hit_at_chance {k}"] = metrics.hit_at(*chance, k)
    of["chance"] = metrics.relevant_share(items, relevant)
    return of | {"rank": metrics.expected_rank(*ranked), "rank_chance": metrics.expected_rank(*chance)}


def _median(ranks: Floats) -> float:
    return float(np.median(ranks[~np.isnan(ranks)]))


def _by_radius(items: NDArray[Any], relevant: NDArray[Any]) -> dict[str, Any]:
    """Precision within Hamming radius 2 (an empty ball counts 0), and the precision-recall curve by radius."""
    within, empty = metrics.precision_within(items, relevant, 2)
    precision, recall = metrics.pr_curve(items, relevant)
    return {
        "precision_radius2": metrics.mean_over_valid(within)[0],
        "empty_balls_radius2": empty,
        "pr_by_radius": {"precision": _listed(precision), "recall": _listed(recall)},
    }


def _listed(values: Floats) -> list[float | None]:
    """JSON knows no NaN: a radius at which no query found anything is null."""
    return [None if np.isnan(v) else round(float(v), 6) for v in values]


def _real(cuts: Sequence[int], both: Sides, relevance: Relevance) -> dict[str, Any]:
    """The real-valued embeddings by cosine, over the whole database: what binarisation is measured against."""
    ends = (both.source.asked[both.rows], both.sought.embedding[both.sought.database])
    q, d = (x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12) for x in ends)
    block = max(1, REAL_BLOCK // max(len(d), 1))

    def some(first: int) -> tuple[NDArray[Any], ...]:
        last = min(first + block, len(q))
        return real_valued.figures(q[first:last] @ d.T, relevance.gains(first, last, 0, len(d)))

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        parts = list(pool.map(some, range(0, len(q), block)))
    ap, items, relevant = (np.concatenate(part) for part in zip(*parts, strict=True))
    hits = {str(k): metrics.mean_over_valid(metrics.hit_at(items, relevant, k))[0] for k in cuts}
    found = {"hit_at_real": hits, "median_rank_real": metrics.median_rank(items, relevant)}
    return {"map_real": metrics.mean_over_valid(ap)[0], **found}
