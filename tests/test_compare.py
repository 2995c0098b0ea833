"""The grid: what is missing is trained, what is there is taken, and every cell says how it was made."""

import csv
import json
import shlex
from dataclasses import replace
from statistics import mean, stdev

import pytest
from typer.testing import CliRunner

from cmrhash import runs
from cmrhash.compare import compare, table
from cmrhash.config import CompareConfig, EvalConfig, TrainConfig
from cmrhash.errors import UsageError
from cmrhash.evaluate import evaluate
from cmrhash_cli.main import app

QUICK = TrainConfig(epochs=2, batch=16, lr=0.02, hidden=16, device="cpu")
GRID = CompareConfig(methods=("triplet", "logistic"), bits=(8, 16), langs=("de",), seeds=2)


@pytest.fixture(scope="module")
def compared(make_cache, tmp_path_factory):
    """(result, dataset, its folder, runs)"""
    base = tmp_path_factory.mktemp("compare")
    dataset, folder = make_cache(base / "cache")
    return compare(GRID, QUICK, dataset, folder, base / "runs"), dataset, folder, base / "runs"


def test_a_cell_is_the_mean_over_its_seeds(compared):
    result, dataset, folder, out = compared
    assert len(result.rows) == 2 * 2 * 1 * 2  # methods, bits, languages, directions
    single = evaluate(EvalConfig(), dataset, folder, out).rows
    for row in result.rows:
        same = [r["map"] for r in single if all(r[k] == row[k] for k in ("method", "bits", "lang", "direction"))]
        assert (row["n"], len(same)) == (2, 2)
        assert row["mean"] == pytest.approx(mean(same))
        assert row["sd"] == pytest.approx(stdev(same))
        assert row["seeds"] == [0, 1]


def test_what_is_trained_is_not_trained_again(compared, monkeypatch):
    result, dataset, folder, out = compared
    before = {path: path.stat().st_mtime_ns for path in out.rglob(runs.HEADS)}
    assert len(before) == 8
    again = compare(GRID, QUICK, dataset, folder, out)
    assert {path: path.stat().st_mtime_ns for path in out.rglob(runs.HEADS)} == before
    assert again.rows == result.rows


def test_the_table_has_a_column_for_each_length_and_a_dash_for_what_is_missing(compared):
    result = compared[0]
    columns, cells = table(result.rows)
    assert columns == ["method", "lang", "direction", "8 bits", "16 bits", "real (16)", "chance", "seeds"]
    assert [line[:3] for line in cells[:2]] == [["triplet", "de", "i2t"], ["triplet", "de", "t2i"]]
    assert all(" +- " in cell for line in cells for cell in line[3:5])
    fewer = [row for row in result.rows if not (row["method"] == "logistic" and row["bits"] == 8)]
    assert table(fewer)[1][-1][3] == "-"


def test_markdown_csv_and_json_lie_beside_the_runs(compared):
    result, dataset, _, out = compared
    assert json.loads((out / dataset.name / "compare.json").read_text()) == result.as_json()
    with (out / dataset.name / "compare.csv").open() as file:
        assert [float(row["mean"]) for row in csv.DictReader(file)] == [row["mean"] for row in result.rows]
    markdown = (out / dataset.name / "compare.md").read_text()
    assert "| triplet | de | i2t |" in markdown
    assert "never on query" in markdown


def test_the_printed_command_makes_the_cell_again(compared, tmp_path):
    result, _, folder, _ = compared
    first, second = result.rows[0]["command"].split(" && ")
    where = ["--cache", str(folder.parent), "--runs", str(tmp_path / "runs")]
    quick = ["--epochs", "2", "--batch", "16", "--lr", "0.02", "--hidden", "16", "--device", "cpu"]
    assert CliRunner().invoke(app, [*shlex.split(first)[1:], *where, *quick]).exit_code == 0
    scored = CliRunner().invoke(app, [*shlex.split(second)[1:], *where, "--json"])
    maps = {row["direction"]: row["map"] for row in json.loads(scored.stdout)["rows"]}
    runs_of_cell = [row for row in evaluate_all(compared) if row["bits"] == 8 and row["method"] == "triplet"]
    assert maps == {row["direction"]: row["map"] for row in runs_of_cell if row["seed"] == 0 and row["lang"] == "de"}


def evaluate_all(compared):
    _, dataset, folder, out = compared
    return evaluate(EvalConfig(), dataset, folder, out).rows


def test_a_method_without_its_labels_is_refused_before_any_training(make_cache, tmp_path):
    made = make_cache(tmp_path / "cache", change=lambda item: replace(item, labels=()), relevance="pairs")
    with pytest.raises(UsageError, match="method 'acmr' learns from labels"):
        compare(CompareConfig(methods=("triplet", "acmr"), seeds=1), QUICK, *made, tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_an_empty_grid_and_an_unknown_method_are_refused_before_any_training(make_cache, tmp_path):
    made = make_cache(tmp_path / "cache")
    with pytest.raises(UsageError, match="--seeds 0"):
        compare(CompareConfig(seeds=0), QUICK, *made, tmp_path / "runs")
    with pytest.raises(UsageError, match="did you mean triplet"):
        compare(CompareConfig(methods=("logistic", "triplett")), QUICK, *made, tmp_path / "runs")
    assert not (tmp_path / "runs").exists()
