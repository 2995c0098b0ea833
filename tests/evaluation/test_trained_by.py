"""Scores by another relevance than that of the training: labels that no training saw, and own pairs."""

import json
from dataclasses import replace

import pytest
from slow_scores import QUICK, expected_ap, hamming, mean, minus_cosine, rankings
from typer.testing import CliRunner

import cmrhash
from cmrhash.config import CompareConfig, EvalConfig
from cmrhash.errors import UsageError
from cmrhash.evaluation import saved_scores
from cmrhash.evaluation.compare import compare
from cmrhash.evaluation.evaluate import evaluate
from cmrhash.evaluation.trec import write_trec
from cmrhash.training import runs
from cmrhash_cli.main import app

HIDDEN = EvalConfig(trained_by="pairs")


def test_a_run_by_pairs_is_scored_by_labels_as_in_the_slow_twin(paired):
    out, data, run = paired
    result = evaluate(HIDDEN, data, out)
    assert [(row["lang"], row["direction"]) for row in result.rows] == [
        ("de", "i2t"), ("de", "t2i"), ("en", "i2t"), ("en", "t2i")
    ]  # fmt: skip
    for row in result.rows:
        as_labels = replace(run, relevance="labels")  # the slow twin asks the run by what to score it
        slow = rankings(as_labels, data, row["lang"], row["direction"], hamming)
        scored = [r for r in slow if any(hit for _, hit in r)]
        assert row["map"] == pytest.approx(mean(map(expected_ap, scored)), abs=1e-9)
        real = rankings(as_labels, data, row["lang"], row["direction"], minus_cosine)
        assert row["map_real"] == pytest.approx(mean(expected_ap(r) for r in real if any(h for _, h in r)), abs=1e-4)
        assert (row["relevance"], row["trained_by"], row["database"]) == ("labels", "pairs", 100)
        assert row["map_seen"] > 0
        assert row["map_unseen"] > 0  # val items


def test_the_protocol_says_that_labels_were_hidden(paired):
    out, data, _ = paired
    protocol = evaluate(HIDDEN, data, out).protocol
    assert protocol["trained_by"] == "pairs; labels were hidden, also from the choice of the epoch"
    assert protocol["relevance"].startswith("shares at least one label")
    assert "trained_by" not in evaluate(EvalConfig(relevance="pairs"), data, out).protocol


def test_scores_by_both_are_kept_apart_and_the_runs_own_are_shown(paired):
    out, data, run = paired
    by_pairs = evaluate(EvalConfig(relevance="pairs"), data, out).rows
    by_labels = evaluate(HIDDEN, data, out).rows
    assert by_pairs != by_labels
    before = (run.folder / runs.METRICS).read_bytes()
    assert evaluate(EvalConfig(relevance="pairs"), data, out).rows == by_pairs
    assert evaluate(HIDDEN, data, out).rows == by_labels
    assert (run.folder / runs.METRICS).read_bytes() == before
    assert {row["relevance"] for row in saved_scores.shown(run)["rows"]} == {"pairs"}


def test_a_run_by_labels_is_scored_by_pairs(scored):
    base, data, _ = scored
    rows = evaluate(EvalConfig(bits=(8,), relevance="pairs", trained_by="labels"), data, base / "runs").rows
    assert {(row["relevance"], row["trained_by"], row["database"]) for row in rows} == {
        ("pairs", "labels", 20), ("pairs", "labels", 40)
    }  # fmt: skip
    assert all(0 < row["hit_at"]["1"] <= 1 for row in rows)


def test_without_the_option_runs_of_the_other_relevance_stay_out(paired, scored):
    out, data, _ = paired
    with pytest.raises(UsageError, match="no such trained run with relevance labels"):
        evaluate(EvalConfig(), data, out)
    base, data, _ = scored
    with pytest.raises(UsageError, match="no such trained run with relevance pairs"):
        evaluate(HIDDEN, data, base / "runs")
    with pytest.raises(UsageError, match="unknown relevance 'pair'"):
        evaluate(EvalConfig(trained_by="pair"), data, base / "runs")


def test_python_scores_a_given_run_by_either(paired):
    out, data, run = paired
    assert cmrhash.evaluate(run, data, relevance="labels").rows == evaluate(HIDDEN, data, out).rows
    assert {row["relevance"] for row in cmrhash.evaluate(run, data).rows} == {"pairs"}


def test_trec_files_hold_the_labels_too(paired, tmp_path):
    out, data, run = paired
    written = write_trec(HIDDEN, data, out, tmp_path)
    judged = (tmp_path / f"{run.name}.de.i2t.qrels").read_text().splitlines()
    assert len(written) == 8
    assert len(judged) > 20 * 10  # about a fifth of 100 items are relevant, not one


def test_a_grid_hides_the_labels_in_training_and_repeats_its_cells_by_command(paired, tmp_path):
    _, data, _ = paired
    grid = CompareConfig(methods=("corrnet",), bits=(8,), langs=("de",), seeds=1, trained_by="pairs")
    result = compare(grid, replace(QUICK, epochs=1), data, tmp_path)
    assert (tmp_path / "toy" / "corrnet-8-pairs").is_dir()
    assert {(row["metric"], row["relevance"], row["trained_by"]) for row in result.rows} == {("map", "labels", "pairs")}
    trained, evaluated = result.rows[0]["command"].split(" && ")
    assert "--relevance pairs" in trained
    assert evaluated.endswith("--bits 8 --trained-by pairs --lang de")
    with pytest.raises(UsageError, match="method 'acmr' needs labels"):
        compare(replace(grid, methods=("acmr",)), QUICK, data, tmp_path)


def test_the_command_line_scores_it_too(paired):
    out, data, _ = paired
    asked = ["eval", "--cache", str(data.folder.parent), "--runs", str(out), "--trained-by", "pairs", "--json"]
    found = CliRunner().invoke(app, asked)
    assert found.exit_code == 0, found.output
    assert json.loads(found.stdout)["rows"] == evaluate(HIDDEN, data, out).rows
