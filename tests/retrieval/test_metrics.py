"""Every metric against its plain definition, averaged over all orders of tied items in exact arithmetic."""

from __future__ import annotations

import itertools
import math
import time
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from slow_metrics import CUTS, ap, by_pattern, hits, mean, orders

from cmrhash.errors import UsageError
from cmrhash.retrieval import metrics, real_valued
from cmrhash.retrieval.metrics import RULES

# Tie groups by distance: the gains of their items, 0 = not relevant.
GROUPS = st.lists(st.lists(st.integers(0, 2), max_size=4), min_size=1, max_size=4).filter(
    lambda groups: sum(map(len, groups)) <= 10
)


def histogram(groups):
    """(1, 3, D) of one query."""
    return np.array([[[group.count(gain) for group in groups] for gain in range(3)]])


def counts(groups):
    return metrics.items_relevant(histogram(groups))


def first_rank(gains):
    return next(rank for rank, gain in enumerate(gains, 1) if gain)


def ndcg(gains, k):
    def dcg(ranking):
        return sum(gain / math.log2(1 + rank) for rank, gain in enumerate(ranking[:k], 1))

    return dcg(gains) / dcg(sorted(gains, reverse=True))


@settings(max_examples=150, deadline=None)
@given(groups=GROUPS, k=CUTS | st.none(), rule=st.sampled_from(sorted(RULES)))
def test_average_precision_is_the_mean_over_all_orders(groups, k, rule):
    value = metrics.average_precision(*counts(groups), k=k, rule=rule)
    if not any(map(any, groups)):
        assert np.isnan(value).all()
        return
    assert value == pytest.approx([float(mean(ap(order, k, rule) for order in by_pattern(groups)))], abs=1e-12)


@settings(max_examples=100, deadline=None)
@given(groups=GROUPS.filter(lambda groups: any(map(any, groups))), k=CUTS | st.none())
def test_bounds_are_the_best_and_the_worst_order(groups, k):
    ranked = by_pattern(groups)
    for rule in ("min", "R", "first"):
        values = [ap(order, k, rule) for order in ranked]
        for order, bound in (("optimistic", max(values)), ("pessimistic", min(values))):
            split = metrics.split_ties(*counts(groups), order)
            assert metrics.average_precision(*split, k=k, rule=rule) == pytest.approx([float(bound)])
    k = k or 3
    for order, choose in (("optimistic", max), ("pessimistic", min)):
        split = metrics.split_ties(*counts(groups), order)
        assert metrics.precision_at(*split, k) == pytest.approx([choose(hits(o, k) for o in ranked) / k])
        assert metrics.hit_at(*split, k) == [choose(hits(o, k) > 0 for o in ranked)]
        # the best order has the smallest rank
        assert metrics.expected_rank(*split) == [{max: min, min: max}[choose](first_rank(o) for o in ranked)]


def test_the_order_relevant_first_need_not_be_best_for_the_rule_hits():
    # 1 of 2 tied items relevant, one place left: leaving it out keeps the mean over the hits at 1
    groups, values = [[1], [0], [1, 0]], []
    values = [ap(order, 3, "hits") for order in by_pattern(groups)]
    split = metrics.split_ties(*counts(groups), "optimistic")
    assert metrics.average_precision(*split, k=3, rule="hits")[0] < max(values)


@settings(max_examples=100, deadline=None)
@given(groups=GROUPS.filter(lambda groups: any(map(any, groups))), k=CUTS)
def test_metrics_at_k_are_the_means_over_all_orders(groups, k):
    items, relevant = counts(groups)
    ranked = by_pattern(groups)
    total = sum(ranked[0])
    expected = {
        metrics.precision_at: mean(Fraction(hits(order, k), k) for order in ranked),
        metrics.recall_at: mean(Fraction(hits(order, k), total) for order in ranked),
        metrics.hit_at: mean(Fraction(hits(order, k) > 0) for order in ranked),
    }
    for metric, value in expected.items():
        assert metric(items, relevant, k) == pytest.approx([float(value)], abs=1e-12)
    rank = mean(Fraction(first_rank(order)) for order in ranked)
    assert metrics.expected_rank(items, relevant) == pytest.approx([float(rank)])


@settings(max_examples=60, deadline=None)
@given(
    groups=GROUPS.filter(lambda groups: any(map(any, groups)) and sum(map(len, groups)) <= 8),
    k=CUTS | st.none(),
)
def test_ndcg_is_the_mean_over_all_orders(groups, k):
    value = metrics.ndcg_at(histogram(groups), k)
    assert value == pytest.approx([mean(ndcg(order, k or 99) for order in orders(groups))])


@settings(max_examples=60, deadline=None)
@given(queries=st.lists(st.lists(st.lists(st.integers(0, 1), max_size=3), min_size=3, max_size=3), max_size=5))
def test_radius_metrics_are_their_loops(queries):
    parts = [counts(groups) for groups in queries] or [(np.zeros((0, 3), int),) * 2]
    items, relevant = (np.concatenate(part) for part in zip(*parts, strict=True))
    valid = [groups for groups in queries if any(map(any, groups))]
    precision, recall = metrics.pr_curve(items, relevant)
    for radius in range(3):
        balls = [list(itertools.chain(*groups[: radius + 1])) for groups in valid]
        full = [mean(ball) for ball in balls if ball]
        assert precision[radius] == pytest.approx(mean(full) if full else np.nan, nan_ok=True)
        recalls = [sum(b) / sum(map(sum, g)) for b, g in zip(balls, valid, strict=True)]
        assert recall[radius] == pytest.approx(mean(recalls) if recalls else np.nan, nan_ok=True)
        values, empty = metrics.precision_within(items, relevant, radius)
        assert values[~np.isnan(values)] == pytest.approx([mean(ball) if ball else 0 for ball in balls])
        assert np.isnan(values).sum() == len(queries) - len(valid)
        share = mean(not ball for ball in balls) if balls else np.nan
        assert empty == pytest.approx(share, nan_ok=True)


def test_on_the_whole_ranking_the_rules_agree_and_k_beyond_it_changes_nothing():
    items, relevant = random_counts(50, 30, 400)
    whole = metrics.average_precision(items, relevant)
    for rule in RULES:
        for k in (None, int(items.sum(axis=1).max()), 10**9):
            assert metrics.average_precision(items, relevant, k, rule) == pytest.approx(whole)


def random_counts(queries, distances, scale, seed=0):
    rng = np.random.default_rng(seed)
    items = rng.integers(0, scale, (queries, distances))
    return items, rng.binomial(items, rng.random((queries, 1)))


@pytest.mark.parametrize("rule", sorted(RULES))
def test_large_groups_agree_with_a_random_shuffle(rule):
    items, relevant = np.array([[3, 40, 900, 2000]]), np.array([[1, 9, 300, 500]])
    rng = np.random.default_rng(0)
    for k in (20, 300):
        values = []
        for _ in range(400):
            groups = [rng.permutation(np.arange(n) < r) for n, r in zip(items[0], relevant[0], strict=True)]
            values.append(float(ap_fast(np.concatenate(groups), k, rule)))
        error = np.std(values) / 20
        assert metrics.average_precision(items, relevant, k, rule)[0] == pytest.approx(mean(values), abs=4 * error)


def ap_fast(hit, k, rule):
    precision = (np.cumsum(hit) / np.arange(1, len(hit) + 1))[hit]
    if rule == "first":
        return precision[:k].mean()
    top = precision[: hit[:k].sum()]
    return top.sum() / {"min": min(k, hit.sum()), "R": hit.sum(), "hits": max(1, len(top))}[rule]


def test_two_thousand_queries_take_seconds_at_most_under_any_rule():
    rng = np.random.default_rng(0)
    items = rng.multinomial(18_000, rng.dirichlet(np.ones(33) / 3, 2000))
    relevant = rng.binomial(items, 0.3)
    for rule in RULES:
        start = time.process_time()
        assert not np.isnan(metrics.average_precision(items, relevant, 500, rule)).any()
        assert time.process_time() - start < 4, rule


def test_collapsed_codes_score_chance_not_the_order_of_the_database():
    items, relevant = np.array([[18_000]]), np.array([[6_000]])
    values = metrics.average_precision(items, relevant)
    assert values[0] == pytest.approx(1 / 3, abs=1e-3)
    best, worst = (
        metrics.average_precision(*metrics.split_ties(items, relevant, o))[0] for o in ("optimistic", "pessimistic")
    )
    assert best == 1
    assert worst < 0.2


# -- nothing relevant, nobody asking, nonsense asked --
def test_queries_without_a_relevant_item_are_left_out_and_counted():
    items, relevant = np.array([[2, 3], [2, 3], [0, 0]]), np.array([[1, 0], [0, 0], [0, 0]])
    results = [metrics.average_precision(items, relevant, 2, rule) for rule in RULES]
    results += [f(items, relevant, 2) for f in (metrics.precision_at, metrics.recall_at, metrics.hit_at)]
    results += [metrics.expected_rank(items, relevant)]
    results += [metrics.ndcg_at(np.stack((items - relevant, relevant), axis=1), 2)]
    results += [metrics.precision_within(items, relevant, 0)[0]]
    for values in results:
        assert values.dtype == np.float64
        assert np.isnan(values).tolist() == [False, True, True]
        assert metrics.mean_over_valid(values) == (values[0], 1)
    value, count = metrics.mean_over_valid(np.array([np.nan, np.nan]))
    assert math.isnan(value)
    assert count == 0


@pytest.mark.filterwarnings("error")
def test_no_queries_give_no_values():
    none = np.zeros((0, 9), np.int32)
    for rule in RULES:
        assert metrics.average_precision(none, none, 5, rule).shape == (0,)
    for metric in (metrics.precision_at, metrics.recall_at, metrics.hit_at):
        assert metric(none, none, 5).shape == (0,)
    assert metrics.expected_rank(none, none).shape == (0,)
    assert metrics.ndcg_at(np.zeros((0, 2, 9), np.int32), 5).shape == (0,)
    assert metrics.split_ties(none, none, "optimistic")[0].shape == (0, 18)
    assert np.isnan(metrics.pr_curve(none, none)).all()
    assert real_valued.figures(np.zeros((0, 4), np.float32), np.zeros((0, 4), np.uint8))[0].shape == (0,)


def test_an_unknown_rule_is_answered_with_the_nearest():
    items, relevant = random_counts(3, 5, 10)
    with pytest.raises(UsageError, match=r"unknown rule 'mim': did you mean min\? choose one of min, R, hits, first"):
        metrics.average_precision(items, relevant, 5, "mim")


# -- a random order, and real-valued scores --
@settings(max_examples=40, deadline=None)
@given(groups=GROUPS.filter(lambda groups: sum(map(len, groups)) <= 7), k=CUTS)
def test_one_group_is_a_random_order(groups, k):
    flat = [gain for group in groups for gain in group]
    tied = metrics.one_group(*counts(groups))
    if not any(flat):
        assert np.isnan(metrics.hit_at(*tied, k))
        assert np.isnan(metrics.relevant_share(*counts(groups)))
        assert math.isnan(metrics.median_rank(*tied))
        return
    hits = [[gain > 0 for gain in order] for order in orders([flat])]
    assert metrics.hit_at(*tied, k)[0] == pytest.approx(mean(any(order[:k]) for order in hits))
    assert metrics.median_rank(*tied) == pytest.approx(mean(order.index(True) + 1 for order in hits))
    assert metrics.relevant_share(*counts(groups))[0] == pytest.approx(mean(gain > 0 for gain in flat))


def test_the_median_rank_is_over_the_queries_that_have_a_relevant_item():
    items = np.ones((4, 5), int)
    relevant = np.eye(5, dtype=int)[[0, 1, 4, 2]]
    relevant[3] = 0
    assert metrics.median_rank(items, relevant) == 2
