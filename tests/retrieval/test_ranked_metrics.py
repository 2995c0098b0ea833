"""Metrics of one order and of real-valued scores, against trec_eval and plain definitions."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from slow_metrics import CUTS, ap, average_precision_ranked, by_pattern, mean, orders

from cmrhash.errors import DataError, UsageError
from cmrhash.retrieval import metrics, real_valued
from cmrhash.retrieval.relevance import EXCLUDED


def test_trec_eval_agrees_where_there_are_no_ties():
    import ir_measures
    from ir_measures import AP, P, R, nDCG

    rng = np.random.default_rng(3)
    queries, rows = 12, 200
    gains = rng.choice([0, 0, 0, 1, 2, 3], (queries, rows))
    gains[0, 5:] = 0
    hist = np.stack([gains == level for level in range(4)], axis=1).astype(np.int32)  # one item a distance
    items, relevant = metrics.items_relevant(hist)
    qrels = [ir_measures.Qrel(str(q), str(n), int(gains[q, n])) for q, n in np.ndindex(gains.shape)]
    run = [ir_measures.ScoredDoc(str(q), str(n), float(rows - n)) for q, n in np.ndindex(gains.shape)]
    asked = [AP, AP @ 30, P @ 10, P @ 50, R @ 20, nDCG, nDCG @ 10, nDCG @ 100]
    ours = [
        metrics.average_precision(items, relevant),
        metrics.average_precision(items, relevant, 30, "R"),
        metrics.precision_at(items, relevant, 10),
        metrics.precision_at(items, relevant, 50),
        metrics.recall_at(items, relevant, 20),
        metrics.ndcg_at(hist),
        metrics.ndcg_at(hist, 10),
        metrics.ndcg_at(hist, 100),
    ]
    theirs = {(m.measure, m.query_id): m.value for m in ir_measures.iter_calc(asked, qrels, run)}
    for measure, values in zip(asked, ours, strict=True):
        assert values == pytest.approx([theirs[measure, str(q)] for q in range(queries)]), measure


# -- real-valued scores --
@settings(max_examples=80, deadline=None)
@given(
    dtype=st.sampled_from([np.float32, np.float64]),
    rows=st.integers(1, 9),
    values=st.sampled_from([2, 4, 10_000]),
    own=st.booleans(),
    seed=st.integers(0, 9999),
)
def test_real_scores_with_ties_are_the_mean_over_all_orders(dtype, rows, values, own, seed):
    rng = np.random.default_rng(seed)
    similarity = ((rng.integers(0, values, (3, rows)) - values // 2) / values).astype(dtype)
    zero = similarity == 0
    similarity[zero] *= rng.choice([-1, 1], zero.sum())  # -0.0 is 0.0
    gains = rng.integers(0, 3, (3, rows)).astype(np.uint8)
    if own:
        gains[np.arange(3), rng.integers(0, rows, 3)] = EXCLUDED
    result = real_valued.figures(similarity, gains)[0]
    for q in range(3):
        present = gains[q] != EXCLUDED
        groups = [
            (gains[q][present & (similarity[q] == score)] > 0).tolist()
            for score in sorted(set(similarity[q]), reverse=True)
        ]
        if any(map(any, groups)):
            assert result[q] == pytest.approx(float(mean(ap(order) for order in by_pattern(groups))))
        else:
            assert np.isnan(result[q])


def test_real_scores_without_ties_are_a_sort():
    rng = np.random.default_rng(0)
    similarity = (rng.standard_normal((20, 3000)) * 10.0 ** rng.integers(-30, 30, (20, 3000))).astype(np.float32)
    gains = rng.integers(0, 2, similarity.shape)
    order = np.argsort(-similarity, axis=1)
    expected = average_precision_ranked(np.take_along_axis(gains, order, axis=1) > 0)
    assert real_valued.figures(similarity, gains)[0] == pytest.approx(expected)
    assert real_valued.figures(similarity.astype(np.float64), gains)[0] == pytest.approx(expected)


@pytest.mark.parametrize("steps", [9, 1 << 30])
def test_cosines_that_are_sorted_with_their_relevance_give_what_a_plain_sort_gives(steps):
    rng = np.random.default_rng(1)
    similarity = (np.round(rng.uniform(-1, 1, (9, 2000)) * steps) / steps).astype(np.float32)
    similarity[:, :2], similarity[0, :3] = (-1, 1), (0.0, -0.0, np.float32(1e-45))
    gains = rng.choice(np.array([0, 0, 1, EXCLUDED], np.uint8), similarity.shape)
    gains[3] = 0
    packed, plain = real_valued.figures(similarity, gains), real_valued.figures(similarity.astype(np.float64), gains)
    for found, expected in zip(packed, plain, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-14)


def test_real_scores_that_are_no_numbers_are_refused():
    gains = np.ones((3, 4), np.uint8)
    similarity = np.ones((3, 4), np.float32)
    similarity[1, 2] = np.nan
    with pytest.raises(DataError, match="first in query 1"):
        real_valued.figures(similarity, gains)
    for wrong in (gains, similarity[0], similarity[:2], similarity.astype(np.float16)):
        with pytest.raises(UsageError, match="scores must be"):
            real_valued.figures(wrong, gains)


def test_average_precision_of_one_ranking():
    ranked = np.array([[1, 0, 1, 0], [0, 0, 0, 1], [0, 0, 0, 0]], bool)
    assert average_precision_ranked(ranked) == pytest.approx([(1 + 2 / 3) / 2, 1 / 4, np.nan], nan_ok=True)


@settings(max_examples=60, deadline=None)
@given(
    scores=st.lists(st.lists(st.integers(-2, 2), min_size=6, max_size=6), min_size=1, max_size=4),
    seed=st.integers(0, 99),
    k=CUTS,
)
def test_the_nearest_relevant_of_real_scores_is_that_of_all_tie_orders(scores, seed, k):
    similarity = np.array(scores, np.float32)
    gains = np.random.default_rng(seed).choice(np.array([0, 0, 1, 3, EXCLUDED], np.uint8), similarity.shape)
    found = real_valued.figures(similarity, gains)[1:]
    for query, (row, judged) in enumerate(zip(scores, gains.tolist(), strict=True)):
        there = sorted((-score, gain) for score, gain in zip(row, judged, strict=True) if gain != EXCLUDED)
        groups = [[g > 0 for _, g in group] for _, group in itertools.groupby(there, key=lambda pair: pair[0])]
        hits = list(orders(groups))
        hit, rank = metrics.hit_at(*found, k)[query], metrics.expected_rank(*found)[query]
        if not any(hits[0]):
            assert np.isnan(hit)
            assert np.isnan(rank)
            continue
        assert hit == pytest.approx(mean(any(order[:k]) for order in hits))
        assert rank == pytest.approx(mean(order.index(True) + 1 for order in hits))
