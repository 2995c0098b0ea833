"""The rows of an evaluation, what its protocol says, and which runs it chooses."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from slow_scores import QUICK, run_of

from cmrhash.config import EvalConfig
from cmrhash.data.items import ImageTextDataset
from cmrhash.errors import StaleError, UsageError
from cmrhash.evaluation import evaluate as module
from cmrhash.evaluation import saved_scores
from cmrhash.evaluation.evaluate import check_eval, evaluate
from cmrhash.training import runs
from cmrhash.training.train import train


def test_rows_say_what_they_are_of(scored):
    result = scored[2]
    who = [(r["method"], r["seed"], r["bits"], r["lang"], r["direction"]) for r in result.rows]
    assert who == [
        ("triplet", 0, bits, lang, direction)
        for bits in (8, 13)
        for lang in ("de", "en")
        for direction in ("i2t", "t2i")
    ]
    assert {r["dataset"] for r in result.rows} == {"toy"}
    assert all({"run", "collapsed", "ndcg_at", "hit_at", "precision_radius2"} <= set(r) for r in result.rows)


def test_the_protocol_says_how_it_was_made(scored):
    protocol = scored[2].protocol
    assert set(protocol) >= {"dataset", "queries", "database", "relevance", "metric", "ties", "epoch", "split", "seeds"}
    assert protocol["queries"].startswith("20 query items")
    assert protocol["database"].startswith("100 database items, 80 train")
    assert protocol["untrained_encoders"] == ["image", "text-de", "text-en"]
    assert protocol["encoders"]["image"] == "toy (toy), random weights"


def test_the_protocol_names_cut_and_rule(scored):
    base, data, _ = scored
    config = EvalConfig(bits=(8,), map_at=50, map_at_rule="hits")
    metric = evaluate(config, data, base / "runs").protocol["metric"]
    assert "mAP@50" in metric
    assert "hits" in metric


def test_what_is_printed_is_plain_json_and_stored_by_run(mine):
    data, out = mine
    for metrics in (out / "toy").glob(f"*/{runs.METRICS}"):
        metrics.unlink()  # other tests scored the same runs with other settings
    result = evaluate(EvalConfig(), data, out)
    printed = json.loads(json.dumps(result.as_json(), allow_nan=False))
    for bits in (8, 13):
        stored = json.loads((out / "toy" / f"triplet-{bits}" / runs.METRICS).read_text())["scores"][0]
        assert [{**row, "run": str(out / f"toy/triplet-{bits}")} for row in stored["rows"]] == [
            row for row in printed["rows"] if row["bits"] == bits
        ]
        assert stored["protocol"]["metric"] == printed["protocol"]["metric"]


def test_nothing_is_scored_twice_and_what_was_scored_stays(mine, monkeypatch):
    data, out = mine
    whole = evaluate(EvalConfig(), data, out).rows
    metrics = run_of(out).folder / runs.METRICS
    metrics.unlink()
    german = evaluate(EvalConfig(bits=(8,), langs=("de",)), data, out).rows
    assert [row["lang"] for row in saved_scores.shown(run_of(out))["rows"]] == ["de", "de"]
    top = evaluate(EvalConfig(bits=(8,), langs=("en",), map_at=5), data, out).rows
    both = evaluate(EvalConfig(bits=(8,)), data, out).rows
    assert both == [row for row in whole if row["bits"] == 8]
    assert both[:2] == german
    assert [row["map"] for row in saved_scores.shown(run_of(out))["rows"]] == [row["map"] for row in both]

    def again(*_):
        raise AssertionError("scored again")

    monkeypatch.setattr(module, "_score", again)
    assert evaluate(EvalConfig(), data, out).rows == whole
    assert evaluate(EvalConfig(bits=(8,), langs=("en",), map_at=5), data, out).rows == top
    for changed in (
        EvalConfig(ties="optimistic"),
        EvalConfig(map_at=6),
        EvalConfig(at=(2,)),
        EvalConfig(map_at=5, map_at_rule="R"),
    ):
        with pytest.raises(AssertionError, match="again"):
            evaluate(replace(changed, bits=(8,)), data, out)
    metrics.write_bytes(metrics.read_bytes().replace(b'"map": 0', b'"map": 1', 1))
    with pytest.raises(AssertionError, match="again"):  # nobody's figures but our own
        evaluate(EvalConfig(bits=(8,)), data, out)


def test_the_protocol_says_what_differs_between_the_runs(mine):
    data, out = mine
    shutil.copy(data.folder / "text-de-toy.h5", data.folder / "text-de-twin.h5")
    other = replace(QUICK, bits=16, epochs=3, batch=8)
    train(other, data, out, ("de=twin", "en=toy"))
    result = evaluate(EvalConfig(), data, out)
    de, en = (result.protocol["encoders"][f"text-{lang}"] for lang in ("de", "en"))
    assert re.fullmatch(r"toy .* \(triplet-8, triplet-13\); twin .* \(triplet-16\)", de)
    assert "triplet" not in en
    assert {row["encoders"]["text-de"] for row in result.rows if row["bits"] == 16} == {"twin"}
    settings = result.protocol["settings other than the default"]
    assert "triplet-16: epochs 3, batch 8, lr 0.01" in settings
    assert "triplet-8: epochs 4, batch 16, lr 0.01" in settings


def test_an_epoch_that_no_val_items_chose_is_not_said_to_be_chosen(make_cache, tmp_path):
    made = make_cache(
        tmp_path / "cache", change=lambda i: replace(i, splits=i.splits - {"val"} or frozenset({"train"}))
    )
    train(replace(QUICK, epochs=1), made, tmp_path / "runs")
    protocol = evaluate(EvalConfig(), made, tmp_path / "runs").protocol
    assert protocol["epoch"] == "last epoch (no val items)"


def test_runs_of_the_past_are_left_out_and_named(mine, make_cache):
    data, out = mine
    data = make_cache(data.folder.parent, weights="other")
    train(QUICK, data, out, overwrite=True)
    result = evaluate(EvalConfig(), data, out)
    assert {row["bits"] for row in result.rows} == {8}
    assert result.protocol["left out"].startswith("triplet-13: their heads do not fit")
    with pytest.raises(StaleError, match="image-toy.h5 was extracted again in another way.*prune"):
        evaluate(EvalConfig(bits=(13,)), data, out)


def test_the_best_run_is_one_of_most_languages(mine):
    data, out = mine
    run, _ = train(replace(QUICK, langs=("en",)), data, out)
    sure = runs.Run.read(run.folder, {**run.record, "val_map_mean": 1.0})
    found = runs.find_runs(out, "toy", "labels")
    assert runs.best_run([sure, *found]).langs == ("de", "en")
    assert runs.best_run([sure, run]) == sure


def test_scores_of_other_codes_are_forgotten(mine):
    data, out = mine
    evaluate(EvalConfig(bits=(8,), map_at=3), data, out)
    run, _ = train(replace(QUICK, epochs=1), data, out, overwrite=True)
    assert saved_scores.shown(run) is None
    rows = evaluate(EvalConfig(bits=(8,)), data, out).rows
    stored = json.loads((run.folder / runs.METRICS).read_text())["scores"]
    assert [[row["map"] for row in entry["rows"]] for entry in stored] == [[row["map"] for row in rows]]


def test_a_run_that_moved_is_named_where_it_is(mine):
    data, out = mine
    evaluate(EvalConfig(), data, out)
    moved = out.rename(out.with_name("elsewhere"))
    rows = evaluate(EvalConfig(bits=(8,)), data, moved).rows
    assert {row["run"] for row in rows} == {str(moved / "toy" / "triplet-8")}


def test_filters_choose_bits_languages_and_methods(mine):
    data, out = mine
    train(replace(QUICK, method="triplet-seed", epochs=1, langs=("en",)), data, out)

    def found(**filters):
        rows = evaluate(EvalConfig(**filters), data, out).rows
        return {(r["method"], r["bits"], r["lang"]) for r in rows}

    assert found(bits=(13,)) == {("triplet", 13, "de"), ("triplet", 13, "en")}
    assert found(langs=("de",)) == {("triplet", 8, "de"), ("triplet", 13, "de"), ("triplet-seed", 8, "de")}
    assert found(methods=("triplet-seed",)) == {("triplet-seed", 8, "de"), ("triplet-seed", 8, "en")}
    assert len(found()) == 6
    for filters in ({"bits": (64,)}, {"langs": ("fr",)}, {"methods": ("cca",)}):
        with pytest.raises(UsageError):
            found(**filters)


@pytest.mark.parametrize(
    "config",
    [
        EvalConfig(ties="lucky"),
        EvalConfig(map_at_rule="r"),
        EvalConfig(map_at=0),
        EvalConfig(at=(0,)),
        EvalConfig(directions=("t2v",)),
        EvalConfig(relevance="pair"),
        EvalConfig(relevance="pairs", directions=("i2i",)),
    ],
)
def test_what_is_no_option_is_refused(scored, config):
    base, data, _ = scored
    with pytest.raises(UsageError):
        evaluate(config, data, base / "runs")


def test_photos_by_photos_without_labels_are_refused_with_the_reason():
    photos = ImageTextDataset("toy", Path("/photos"), (), (), "pairs")
    with pytest.raises(UsageError, match="leave it out: the data set has no labels"):
        check_eval(EvalConfig(directions=("i2i",)), photos)
    with pytest.raises(UsageError, match='use `relevance="labels"`'):
        check_eval(EvalConfig(directions=("i2i",)), replace(photos, classes=("dog",)))
