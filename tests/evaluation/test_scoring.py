"""Every figure of a search against its plain definition: loops over all orders of a handful of tied items."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
from slow_metrics import ap, hits, mean, orders

from cmrhash.config import CUTS, EvalConfig
from cmrhash.errors import DataError
from cmrhash.evaluation import scoring
from cmrhash.evaluation.seen import NEITHER
from cmrhash.retrieval import real_valued
from cmrhash.retrieval.codes import pack
from cmrhash.retrieval.index import BinaryIndex
from cmrhash.retrieval.relevance import Relevance

BITS, CLASSES = 5, 4
CUT = (1, 2, 3, 9)
SEARCH = SimpleNamespace(source="text-en", direction="t2i")
LABELLED = SimpleNamespace(relevance="labels")


def toy(seed=0, rows=7, none=1):
    """A search of four queries, two of which have the code of a database item: (sides, relevance, labels).

    none: number of queries without a relevant item.
    """
    rng = np.random.default_rng(seed)
    found = rng.standard_normal((rows + 3, BITS)).astype(np.float32)
    found[5] = found[2] * 2  # a tie by every rank
    database = np.arange(rows)[::-1].copy()  # rows of ``found`` that are searched, also their items
    asked = rng.standard_normal((6, BITS)).astype(np.float32)
    asked[1], asked[4] = found[2], -found[1]
    asking = np.array([4, 1, 5, 0])
    labels = [list(np.flatnonzero(rng.random(CLASSES - 1) < 0.5)) for _ in range(rows + 3)]
    wanted = [[CLASSES - 1] if n < none else sorted({0, n % (CLASSES - 1)}) for n in range(4)]
    both = SimpleNamespace(
        source=SimpleNamespace(asked=asked, asked_packed=pack(asked), codes=SimpleNamespace(bits=BITS)),
        rows=asking,
        sought=SimpleNamespace(
            embedding=found, database=database, index=BinaryIndex.build(pack(found[database]), BITS)
        ),
        database=database,
    )
    of = [labels[item] for item in database]
    gains = np.array([[len({*a} & {*b}) for b in of] for a in wanted])
    return both, Relevance.by_labels(wanted, of, CLASSES), gains


def distances(both):
    signs = both.source.asked[both.rows] >= 0, both.sought.embedding[both.database] >= 0
    return (signs[0][:, None] != signs[1][None]).sum(axis=2).astype(float)


def cosines(a, b):
    return np.array([[float(x @ y / np.linalg.norm(x) / np.linalg.norm(y)) for y in b] for x in a.astype(float)])


def places(both, rank):
    """The lower, the nearer; equal numbers are ties."""
    asked, found = both.source.asked[both.rows], both.sought.embedding[both.database]
    if rank == "asymmetric":
        return -cosines(asked, np.where(found >= 0, 1.0, -1.0)).round(6)
    by_code, by_cosine = distances(both), -cosines(asked, found).round(6)
    if rank == "hamming":
        return by_code
    last = np.sort(by_code, axis=1)[:, int(rank[7:]) - 1 :][:, :1]
    return np.where(by_code <= last, by_cosine, 2 + by_code)


def lists(place, gains, ties):
    """All equally likely rankings of a query, each as the gains in order."""
    groups = [gains[place == at].tolist() for at in np.unique(place)]
    if ties == "expected":
        return list(orders(groups))
    sign = -1 if ties == "optimistic" else 1
    return [[gain for group in groups for gain in sorted(group, key=lambda g: sign * (g > 0))]]


def dcg(gains):
    return sum(gain / math.log2(at + 1) for at, gain in enumerate(gains, 1))


def slow(place, gains, ties):
    """Figures of one query by name."""
    every, likely, count, total = lists(place, gains, ties), lists(place, gains, "expected"), len(gains), sum(gains > 0)
    of = {f"map_{one}": mean(map(ap, lists(place, gains, one))) for one in ("expected", "optimistic", "pessimistic")}
    of |= {"map": of[f"map_{ties}"], "chance": total / count}
    for k in CUT:
        m = min(k, count)
        of[f"precision_at {k}"] = mean(hits(one, k) / k for one in every)
        of[f"recall_at {k}"] = mean(hits(one, k) / total for one in every)
        of[f"ndcg_at {k}"] = mean(dcg(one[:k]) for one in likely) / dcg(sorted(gains, reverse=True)[:k])
        of[f"hit_at {k}"] = mean(hits(one, k) > 0 for one in every)
        of[f"hit_at_chance {k}"] = 1 - math.comb(count - total, m) / math.comb(count, m)
    of["median_rank"] = mean(1 + [gain > 0 for gain in one].index(True) for one in every)
    return of | {"median_rank_chance": (count + 1) / (total + 1)}


def check(row, both, gains, rank, ties, kind):
    place = places(both, rank)
    valid = [q for q in range(len(gains)) if gains[q].any()]
    each = [slow(place[q], gains[q], ties) for q in valid]
    for name in each[0]:
        figure, _, k = name.partition(" ")
        wanted = np.median([one[name] for one in each]) if "median" in name else float(mean(one[name] for one in each))
        assert (row[figure][k] if k else row[figure]) == pytest.approx(wanted, abs=1e-9), name
    by_cosine = -cosines(both.source.asked[both.rows], both.sought.embedding[both.database]).round(6)
    real = [slow(by_cosine[q], gains[q], "expected") for q in valid]
    assert row["map_real"] == pytest.approx(float(mean(one["map"] for one in real)), abs=1e-6)
    for k in CUT:
        assert row["hit_at_real"][str(k)] == pytest.approx(float(mean(one[f"hit_at {k}"] for one in real)), abs=1e-6)
    assert row["median_rank_real"] == pytest.approx(np.median([one["median_rank"] for one in real]))
    for at, side in enumerate(("unseen", "seen")):
        own = kind[both.database] == at
        some = [q for q in valid if gains[q][own].any()]
        value = mean(mean(map(ap, lists(place[q][own], gains[q][own], ties))) for q in some)
        assert row[f"map_{side}"] == pytest.approx(float(value), abs=1e-9)
        assert row[f"chance_{side}"] == pytest.approx(mean((gains[q][own] > 0).sum() / own.sum() for q in some))
        assert row[f"items_{side}"] == own.sum()
    counts = row["queries"], row["queries_without_relevant"], row["database"]
    assert counts == (len(valid), len(gains) - len(valid), gains.shape[1])


@pytest.mark.parametrize("ties", ["expected", "optimistic", "pessimistic"])
@pytest.mark.parametrize("rank", ["hamming", "asymmetric", "rerank:1", "rerank:3"])
@pytest.mark.parametrize("seed", [0, 3])
def test_every_figure_is_its_definition(rank, ties, seed):
    both, relevance, gains = toy(seed)
    kind = np.array([0, 1, 1, NEITHER, 0, 1, 0, 0, 0, 1], np.uint8)
    row = scoring.score(EvalConfig(rank=rank, ties=ties, at=CUT), LABELLED, both, SEARCH, relevance, kind)
    check(row, both, gains, rank, ties, kind)
    assert ("pr_by_radius" in row) == ("precision_radius2" in row) == (rank == "hamming")


def test_all_items_of_one_kind_are_one_side():
    both, relevance, _ = toy(0)
    row = scoring.score(EvalConfig(at=CUT), LABELLED, both, SEARCH, relevance, np.ones(10, np.uint8))
    assert (row["map_seen"], row["chance_seen"], row["items_seen"]) == (row["map"], row["chance"], 7)
    assert (row["map_unseen"], row["items_unseen"]) == (None, 0)


@pytest.mark.parametrize("relevance_of", CUTS)
def test_the_cutoffs_are_those_of_the_relevance_if_none_are_asked_for(relevance_of):
    both, relevance, _ = toy(0)
    row = scoring.score(
        EvalConfig(), SimpleNamespace(relevance=relevance_of), both, SEARCH, relevance, np.zeros(10, int)
    )
    names = ("precision_at", "recall_at", "ndcg_at", "hit_at", "hit_at_chance", "hit_at_real")
    assert {tuple(row[name]) for name in names} == {tuple(map(str, CUTS[relevance_of]))}


@pytest.mark.parametrize("rule", ["min", "R", "hits", "first"])
def test_map_at_a_cutoff_is_of_the_whole_database_and_of_each_side(rule):
    both, relevance, gains = toy(3)
    kind = np.array([0, 1, 1, 0, 0, 1, 0, 0, 0, 1], np.uint8)
    config = EvalConfig(at=(1,), map_at=2, map_at_rule=rule)
    row = scoring.score(config, LABELLED, both, SEARCH, relevance, kind)
    place = distances(both)
    for name, own in (("map", kind[both.database] >= 0), ("map_seen", kind[both.database] == 1)):
        some = [q for q in range(4) if gains[q][own].any()]
        every = [lists(place[q][own], gains[q][own], "expected") for q in some]
        assert row[name] == pytest.approx(float(mean(mean(ap(one, 2, rule) for one in each) for each in every)))


def test_figures_by_radius_and_the_counts_that_are_passed_on():
    both, relevance, gains = toy(0)
    taken = []
    kind = np.array([0, 1] * 5, np.uint8)
    row = scoring.score(EvalConfig(at=(1,)), LABELLED, both, SEARCH, relevance, kind, lambda *x: taken.append(x))
    place, valid = distances(both), gains.any(axis=1)
    at = place[:, :, None] == np.arange(BITS + 1)  # (Q, N, D)
    items, relevant = at.sum(axis=1), (at & (gains[:, :, None] > 0)).sum(axis=1)
    assert [np.array_equal(*pair) for pair in zip(taken[0], (items, relevant), strict=True)] == [True, True]
    ball, found = items.cumsum(axis=1)[valid], relevant.cumsum(axis=1)[valid]
    assert row["empty_balls_radius2"] == pytest.approx((ball[:, 2] == 0).mean())
    assert row["precision_radius2"] == pytest.approx((found[:, 2] / np.maximum(ball[:, 2], 1)).mean())
    curve = row["pr_by_radius"]
    assert curve["recall"] == pytest.approx((found / found[:, -1:]).mean(axis=0).tolist(), abs=1e-6)
    for d, value in enumerate(curve["precision"]):
        inside = ball[:, d] > 0
        wanted = (found[inside, d] / ball[inside, d]).mean().round(6) if inside.any() else None
        assert value == (None if wanted is None else pytest.approx(wanted, abs=1e-12))
    assert curve["precision"][-1] == round(curve["precision"][-1], 6)


def test_a_radius_at_which_nothing_is_found_is_null():
    assert scoring._listed(np.array([np.nan, 1 / 3, 1.0])) == [None, 0.333333, 1.0]


def test_a_search_without_a_relevant_item_is_refused():
    both, relevance, _ = toy(0, none=4)
    for rank in ("hamming", "asymmetric"):
        with pytest.raises(DataError, match="no query has a relevant item in the database") as caught:
            scoring.score(EvalConfig(rank=rank), LABELLED, both, SEARCH, relevance, np.zeros(10, np.uint8))
        assert caught.value.where == "text-en t2i"
        assert caught.value.fix == "check labels and splits: a query needs a relevant item in the database"


@pytest.mark.parametrize("empty", ["queries", "database"])
def test_so_is_a_search_without_queries_or_without_a_database(empty):
    both, _, _ = toy(0)
    if empty == "queries":
        both.rows, none = both.rows[:0], Relevance.by_labels([], [[0]] * 7, CLASSES)
    else:
        both.database = both.sought.database = both.database[:0]
        both.sought.index = BinaryIndex.build(pack(both.sought.embedding[:0]), BITS)
        none = Relevance.by_labels([[0]] * 4, [], CLASSES)
    for rank in ("hamming", "asymmetric"):
        with pytest.raises(DataError, match="no query has a relevant item"):
            scoring.score(EvalConfig(rank=rank), LABELLED, both, SEARCH, none, np.zeros(10, np.uint8))


@pytest.mark.parametrize(("size", "blocks"), [(0, [1, 1, 1, 1]), (3, [3, 1]), (9, [4])])
def test_queries_are_scored_in_blocks_that_bound_the_memory(size, blocks, monkeypatch):
    both, relevance, gains = toy(3)
    seen = []
    real = real_valued.figures
    monkeypatch.setattr(scoring, "COUNT_BLOCK", size * gains.shape[1] * (relevance.levels + 1))
    monkeypatch.setattr(scoring, "REAL_BLOCK", size * gains.shape[1])
    monkeypatch.setattr(real_valued, "figures", lambda *x: (seen.append(len(x[0])), real(*x))[1])
    hists = list(scoring._by_score(scoring.Rank.parse("asymmetric"), both, relevance, None))
    assert [len(hist) for hist in hists] == blocks
    kind = np.array([0, 1, 1, NEITHER, 0, 1, 0, 0, 0, 1], np.uint8)
    row = scoring.score(EvalConfig(rank="asymmetric", at=CUT), LABELLED, both, SEARCH, relevance, kind)
    check(row, both, gains, "asymmetric", "expected", kind)
    assert sorted(seen, reverse=True) == blocks


@pytest.mark.parametrize("rank", ["hamming", "asymmetric", "rerank:2"])
def test_the_numbers_that_order_the_database(rank):
    both, _, _ = toy(0)
    for first, last in ((0, 4), (1, 3)):
        found = scoring.scores_of(scoring.Rank.parse(rank), both, first, last)
        assert np.array_equal(order(-found), order(places(both, rank)[first:last]))
    if rank == "hamming":
        assert np.array_equal(found, -distances(both)[1:3])
        assert found.dtype == np.float64


def order(values):
    """Dense ranks of each line: 0 for the lowest, equal for equal numbers."""
    return np.array([np.unique(line.round(6), return_inverse=True)[1] for line in values])


def test_an_embedding_of_zeros_has_no_direction_and_no_nan():
    both, relevance, _ = toy(0)
    both.source.asked[both.rows[1]] = 0
    row = scoring.score(EvalConfig(at=(1,)), LABELLED, both, SEARCH, relevance, np.zeros(10, np.uint8))
    assert 0 < row["map_real"] < 1
