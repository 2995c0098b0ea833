"""The figures of trained runs, against plain loops."""

from dataclasses import replace

import numpy as np
import pytest
from slow_scores import QUICK, between_the_orders, expected_ap, hamming, in_order, mean, minus_cosine, rankings, run_of

from cmrhash.config import EvalConfig
from cmrhash.errors import DataError
from cmrhash.evaluation.evaluate import evaluate
from cmrhash.evaluation.run_codes import RunCodes
from cmrhash.retrieval.index import BinaryIndex
from cmrhash.training import runs
from cmrhash.training.train import train

# ---------------------------------------------------------------------------------------------- the slow twin


def ap_at(hits, k, rule):
    """AP@k of one order, by the rules' own words."""
    total, precisions, found = sum(hits), [], 0
    for rank, hit in enumerate(hits, 1):
        found += hit
        if hit and (rank <= k or rule == "first"):
            precisions.append(found / rank)
    if rule == "first":
        precisions = precisions[: min(total, k)]
    divisor = {"min": min(total, k), "R": total, "hits": len(precisions), "first": min(total, k)}[rule]
    return sum(precisions) / divisor if divisor else 0.0


# ---------------------------------------------------------------------------------------------- numbers


def test_map_and_its_companions_equal_the_slow_twin(scored):
    base, data, result = scored
    assert len(result.rows) == 8
    for row in result.rows:
        run = run_of(base / "runs", row["bits"])
        slow = rankings(run, data, row["lang"], row["direction"], hamming)
        assert row["map"] == row["map_expected"] == pytest.approx(mean(map(expected_ap, slow)), abs=1e-9)
        for order, sign in (("optimistic", -1), ("pessimistic", 1)):
            ordered = [in_order(r, sign) for r in slow]
            assert row[f"map_{order}"] == pytest.approx(mean(ap_at(h, len(h), "min") for h in ordered), abs=1e-9)
        assert row["chance"] == pytest.approx(mean(sum(hit for _, hit in r) / len(r) for r in slow))
        real = rankings(run, data, row["lang"], row["direction"], minus_cosine)
        assert between_the_orders(row["map_real"], real, lambda hits: ap_at(hits, len(hits), "min"))
        assert (row["queries"], row["queries_without_relevant"], row["database"]) == (20, 0, 100)


def test_training_shows_in_the_scores(scored):
    for row in scored[2].rows:
        assert row["map"] > row["chance"] + 0.05
        assert row["map_pessimistic"] < row["map_expected"] < row["map_optimistic"]


def test_the_lists_by_radius_end_at_the_whole_database(scored):
    for row in scored[2].rows:
        curve = row["pr_by_radius"]
        assert len(curve["precision"]) == len(curve["recall"]) == row["bits"] + 1
        assert curve["recall"][-1] == 1
        assert curve["precision"][-1] == pytest.approx(row["chance"], abs=1e-5)
        assert set(row["precision_at"]) == {"1", "5", "10", "50"}


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["min", "R", "hits", "first"])
def test_map_at_k_is_the_mean_over_random_tie_orders(scored, rule):
    base, data, _ = scored
    config = EvalConfig(bits=(8,), langs=("en",), map_at=7, map_at_rule=rule)
    row = evaluate(config, data, base / "runs").rows[0]
    rng = np.random.default_rng(0)
    slow = rankings(run_of(base / "runs"), data, "en", "i2t", hamming)
    values = []
    for ranking in slow:
        for _ in range(150):
            order = sorted(ranking, key=lambda dh: (dh[0], rng.random()))
            values.append(ap_at([hit for _, hit in order], 7, rule))
    assert row["map"] == pytest.approx(mean(values), abs=0.01)


@pytest.mark.parametrize("ties", ["expected", "optimistic", "pessimistic"])
def test_the_asked_tie_order_is_the_printed_one(scored, ties):
    base, data, _ = scored
    result = evaluate(EvalConfig(ties=ties), data, base / "runs")
    assert ties in result.protocol["ties"]
    for row in result.rows:
        assert row["map"] == row[f"map_{ties}"]
        assert row["map_optimistic"] >= row["map_expected"] >= row["map_pessimistic"]


def test_what_is_scored_lies_in_the_index(scored, mine, monkeypatch):
    """Other codes in the index, and nowhere else, change the score to theirs."""
    (data, out), result = mine, scored[2]
    (run_of(out).folder / runs.METRICS).unlink()

    honest = RunCodes.__getitem__

    def shuffled(codes, view):
        mine = honest(codes, view)
        packed = np.ascontiguousarray(mine.index.packed[::-1])
        return replace(mine, index=BinaryIndex.build(packed, codes.run.bits))

    monkeypatch.setattr(RunCodes, "__getitem__", shuffled)
    config = EvalConfig(bits=(8,), langs=("en",))
    row = evaluate(config, data, out).rows[0]
    slow = rankings(run_of(out), data, "en", "i2t", hamming)
    turned = [[(d, hit) for (d, _), (_, hit) in zip(r[::-1], r, strict=True)] for r in slow]
    assert row["map"] == pytest.approx(mean(map(expected_ap, turned)), abs=1e-9)
    before = next(r for r in result.rows if (r["bits"], r["lang"], r["direction"]) == (8, "en", "i2t"))
    assert abs(row["map"] - before["map"]) > 0.02  # the test would see it


@pytest.mark.faults("bad labels, codes, features, Faiss calls")
def test_a_query_without_a_label_is_left_out_and_counted(make_cache, tmp_path):
    made = make_cache(tmp_path, change=lambda i: replace(i, labels=()) if i.id in ("i0", "i6") else i)
    run, _ = train(replace(QUICK, epochs=1), made, tmp_path / "runs")
    row = evaluate(EvalConfig(langs=("de",)), made, tmp_path / "runs").rows[0]
    assert (row["queries"], row["queries_without_relevant"]) == (18, 2)
    slow = rankings(run, made, "de", "i2t", hamming)
    assert row["map"] == pytest.approx(mean(map(expected_ap, slow)), abs=1e-9)


@pytest.mark.faults("bad labels, codes, features, Faiss calls")
def test_no_query_with_a_relevant_item_is_a_data_error(make_cache, tmp_path):
    made = make_cache(tmp_path, change=lambda i: replace(i, labels=()) if "query" in i.splits else i)
    train(replace(QUICK, epochs=1), made, tmp_path / "runs")
    with pytest.raises(DataError, match="no query has a relevant item"):
        evaluate(EvalConfig(), made, tmp_path / "runs")


def test_items_that_lack_a_part_are_on_no_side_that_needs_it(make_cache, tmp_path):
    def change(item):
        lacks = {"i0": {"texts": {"en": item.texts["en"]}}, "i2": {"texts": {}}, "i6": {"image": None}}
        return replace(item, **lacks.get(item.id, {}))

    made = make_cache(tmp_path, change=change)
    run, _ = train(replace(QUICK, epochs=1), made, tmp_path / "runs")
    rows = {(r["lang"], r["direction"]): r for r in evaluate(EvalConfig(), made, tmp_path / "runs").rows}
    assert [rows["de", d]["queries"] for d in ("i2t", "t2i")] == [19, 19]  # no image of i6, no caption of i0
    assert [rows["en", d]["queries"] for d in ("i2t", "t2i")] == [19, 20]
    assert [rows["en", d]["database"] for d in ("i2t", "t2i")] == [99, 100]
    for (lang, direction), row in rows.items():
        slow = rankings(run, made, lang, direction, hamming)
        assert row["map"] == pytest.approx(mean(map(expected_ap, slow)), abs=1e-9)


# ---------------------------------------------------------------------------------------------- texts by texts


@pytest.mark.parametrize("overlap", [False, True])
def test_texts_by_texts_and_images_by_images_leave_the_query_itself_out(make_cache, tmp_path, overlap):
    def change(item):
        return replace(item, splits=item.splits | {"database"} if overlap else item.splits)

    made = make_cache(tmp_path, change=change)
    run, _ = train(replace(QUICK, epochs=2), made, tmp_path / "runs")
    rows = evaluate(EvalConfig(directions=("t2t", "i2i")), made, tmp_path / "runs").rows
    who = [(row["lang"], row.get("database_lang"), row["direction"]) for row in rows]
    assert who == [*((a, b, "t2t") for a in ("de", "en") for b in ("de", "en")), (None, None, "i2i")]
    for row in rows:
        slow = rankings(run, made, row["lang"], row["direction"], hamming, other=row.get("database_lang"))
        itself = overlap and row.get("database_lang") == row["lang"]
        assert {len(r) for r in slow} == {119 if itself else 120 if overlap else 100}
        assert row["map"] == pytest.approx(mean(map(expected_ap, slow)), abs=1e-9)
        assert row["chance"] == pytest.approx(mean(sum(hit for _, hit in r) / len(r) for r in slow))
        real = rankings(run, made, row["lang"], row["direction"], minus_cosine, other=row.get("database_lang"))
        assert between_the_orders(row["map_real"], real, lambda hits: ap_at(hits, len(hits), "min"))
