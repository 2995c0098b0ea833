"""Scoring by pairs: a photo and its own captions belong together, and all captions count."""

import math
from dataclasses import replace

import numpy as np
import pytest
from slow_scores import (
    QUICK,
    between_the_orders,
    expected_ap,
    hamming,
    in_order,
    mean,
    minus_cosine,
    nearly_tied,
    rankings,
)

from cmrhash.config import EvalConfig
from cmrhash.errors import UsageError
from cmrhash.evaluation.evaluate import evaluate
from cmrhash.training.train import train


def hit_within(hits, k):
    return any(hits[:k])


def first_rank(hits):
    return hits.index(True) + 1 if True in hits else None


def hit_chance(ranking, k):
    """Probability that the top k of a random tie order hold a hit, group by group."""
    before = 0
    for distance in sorted({d for d, _ in ranking}):
        group = [hit for d, hit in ranking if d == distance]
        if any(group):
            places = min(max(k - before, 0), len(group))
            return 1 - math.comb(len(group) - sum(group), places) / math.comb(len(group), places)
        before += len(group)
    return None


def expected_rank(ranking):
    """Of the first hit, the mean over its group's orders."""
    nearest = min((d for d, hit in ranking if hit), default=None)
    if nearest is None:
        return None
    group = [hit for d, hit in ranking if d == nearest]
    before = sum(d < nearest for d, _ in ranking)
    n, r = len(group), sum(group)
    first = [i * math.comb(n - i, r - 1) / math.comb(n, r) for i in range(1, n - r + 2)]
    return before + sum(first)


def median(values):
    return float(np.median([v for v in values if v is not None]))


@pytest.mark.parametrize("direction", ["i2t", "t2i", "t2t"])
def test_by_pairs_all_captions_count_as_in_the_slow_twin(paired, direction):
    out, data, run = paired
    rows = evaluate(EvalConfig(relevance="pairs", directions=(direction,)), data, out).rows
    found = [(row["lang"], row.get("database_lang")) for row in rows]
    assert found == (
        [(a, b) for a in ("de", "en") for b in ("de", "en")] if direction == "t2t" else [("de", None), ("en", None)]
    )
    for row in rows:
        own = row["lang"], direction
        slow = rankings(run, data, *own, hamming, other=row.get("database_lang"))
        queries = sum(any(hit for _, hit in r) for r in slow)
        assert (row["queries"], row["queries_without_relevant"]) == (queries, len(slow) - queries)
        assert row["map"] == pytest.approx(mean(map(expected_ap, slow)), abs=1e-9)
        assert row["median_rank"] == pytest.approx(median(map(expected_rank, slow)))
        real = rankings(run, data, *own, minus_cosine, other=row.get("database_lang"))
        ranks = [median(first_rank(in_order(nearly_tied(r), sign)) for r in real) for sign in (-1, 1)]
        assert ranks[0] <= row["median_rank_real"] <= ranks[1]
        for k in (1, 5, 10):
            assert row["hit_at"][str(k)] == pytest.approx(mean(hit_chance(r, k) for r in slow))
            assert row["hit_at_chance"][str(k)] == pytest.approx(
                mean(hit_chance([(0, hit) for _, hit in r], k) for r in slow)
            )
            with_hit = [r for r in real if any(hit for _, hit in r)]
            assert between_the_orders(row["hit_at_real"][str(k)], with_hit, lambda hits, k=k: hit_within(hits, k))


def test_by_pairs_the_gallery_is_that_of_the_query_items(paired):
    out, data, _ = paired
    result = evaluate(EvalConfig(relevance="pairs"), data, out)
    counts = {(row["lang"], row["direction"]): (row["queries"], row["database"]) for row in result.rows}
    assert counts == {
        ("de", "i2t"): (20, 40),
        ("de", "t2i"): (40, 20),
        ("en", "i2t"): (20, 39),
        ("en", "t2i"): (39, 20),
    }
    assert set(result.rows[0]["hit_at"]) == {"1", "5", "10"}
    assert {row["relevance"] for row in result.rows} == {"pairs"}
    protocol = result.protocol
    assert protocol["relevance"] == "the item's own counterpart"
    assert protocol["captions"].startswith("all")
    assert protocol["database"].startswith("20 database items, 80 train")


def test_a_caption_without_another_one_has_no_counterpart_in_its_language(paired):
    out, data, _ = paired
    rows = evaluate(EvalConfig(relevance="pairs", langs=("en",), directions=("t2t",)), data, out).rows
    assert [(row["queries"], row["queries_without_relevant"]) for row in rows] == [(38, 1)]


def test_where_no_item_has_two_captions_a_language_is_not_searched_by_itself(make_cache, tmp_path):
    def change(item):
        texts = {lang: texts[:1] for lang, texts in item.texts.items()}
        return replace(item, labels=(), texts=texts)

    made = make_cache(tmp_path, change=change, relevance="pairs")
    train(replace(QUICK, epochs=1), made, tmp_path / "runs")
    config = EvalConfig(directions=("t2t",))
    rows = evaluate(config, made, tmp_path / "runs").rows
    assert [(row["lang"], row["database_lang"]) for row in rows] == [("de", "en"), ("en", "de")]
    assert all(row["chance"] == pytest.approx(1 / 20) for row in rows)
    with pytest.raises(UsageError, match="no item has two captions"):
        evaluate(replace(config, langs=("en",)), made, tmp_path / "runs")


def test_runs_are_chosen_by_the_relevance_they_were_trained_by(mine):
    data, out = mine
    with pytest.raises(
        UsageError, match=r"with relevance pairs \(there: triplet-13, triplet-8\).*`relevance=.labels.`"
    ):
        evaluate(EvalConfig(relevance="pairs"), data, out)
    run, _ = train(replace(QUICK, relevance="pairs", epochs=1), data, out)
    run.folder.rename(run.folder.with_name("renamed"))
    assert {row["bits"] for row in evaluate(EvalConfig(), data, out).rows} == {8, 13}
    rows = evaluate(EvalConfig(relevance="pairs"), data, out).rows
    assert {row["run"] for row in rows} == {str(run.folder.with_name("renamed"))}
