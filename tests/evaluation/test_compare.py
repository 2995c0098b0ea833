"""The grid: what is missing is trained, what is there is taken, and every cell says how it was made."""

import csv
import json
import shlex
import shutil
from dataclasses import replace
from math import comb
from statistics import mean, stdev

import pytest
from typer.testing import CliRunner

from cmrhash.config import CompareConfig, EvalConfig, TrainConfig
from cmrhash.errors import StaleError, UsageError
from cmrhash.evaluation.compare import compare, table
from cmrhash.evaluation.evaluate import evaluate
from cmrhash.training import runs
from cmrhash_cli.main import app

QUICK = TrainConfig(epochs=2, batch=16, lr=0.02, hidden=16, device="cpu")
GRID = CompareConfig(methods=("triplet", "logistic"), bits=(8, 16), langs=("de",), seeds=2)


@pytest.fixture(scope="module")
def compared(make_cache, tmp_path_factory):
    """(result, dataset, its folder, runs)"""
    base = tmp_path_factory.mktemp("compare")
    data = make_cache(base / "cache")
    return compare(GRID, QUICK, data, base / "runs"), data, base / "runs"


@pytest.mark.slow
def test_a_cell_is_the_mean_over_its_seeds(compared):
    result, data, out = compared
    assert len(result.rows) == 2 * 2 * 1 * 2  # methods, bits, languages, directions
    single = evaluate(EvalConfig(), data, out).rows
    for row in result.rows:
        same = [r["map"] for r in single if all(r[k] == row[k] for k in ("method", "bits", "lang", "direction"))]
        assert (row["n"], len(same)) == (2, 2)
        assert row["mean"] == pytest.approx(mean(same))
        assert row["sd"] == pytest.approx(stdev(same))
        assert row["seeds"] == [0, 1]


def test_a_method_that_draws_nothing_is_trained_once(make_cache, tmp_path):
    data, grid = make_cache(tmp_path / "cache"), CompareConfig(methods=("cca", "triplet"), bits=(8,), seeds=2)
    result = compare(grid, replace(QUICK, epochs=1), data, tmp_path / "runs")
    assert len(list((tmp_path / "runs").rglob(runs.HEADS))) == 3
    spread = {row["method"]: (row["n"], row["sd"] is None, row["seeds"], row["draws"]) for row in result.rows}
    assert spread == {"cca": (1, True, [0], False), "triplet": (2, False, [0, 1], True)}
    assert "one seed: cca draws nothing: trained once, because every seed gives the same codes" in result.in_words()
    cells = {line[0]: line for line in table(result.rows)[1]}
    assert cells["cca"][-1] == "1"
    assert not any("+-" in cell for cell in cells["cca"])
    command = next(row["command"] for row in result.rows if row["method"] == "cca")
    assert command.count("cmrhash train") == 1
    grid = replace(grid, methods=("cca",), seeds=1)
    assert "one seed" not in compare(grid, replace(QUICK, epochs=1), data, tmp_path / "runs").protocol


def test_what_is_trained_is_not_trained_again(compared, monkeypatch):
    result, data, out = compared
    before = {path: path.stat().st_mtime_ns for path in out.rglob(runs.HEADS)}
    assert len(before) == 8
    again = compare(GRID, QUICK, data, out)
    assert {path: path.stat().st_mtime_ns for path in out.rglob(runs.HEADS)} == before
    assert again.rows == result.rows


SIDES = ("seen (16)", "unseen (16)")


def test_the_table_has_a_column_for_each_length_and_a_dash_for_what_is_missing(compared):
    result = compared[0]
    columns, cells = table(result.rows)
    assert columns == ["method", "lang", "direction", "8 bits", "16 bits", *SIDES, "real (16)", "chance", "seeds"]
    assert [line[:3] for line in cells[:2]] == [["triplet", "de", "i2t"], ["triplet", "de", "t2i"]]
    assert all(" +- " in cell for line in cells for cell in line[3:8])
    plain = [{key: value for key, value in row.items() if "seen" not in key} for row in result.rows]  # version 0.1
    assert table(plain)[0] == [column for column in columns if column not in SIDES]
    fewer = [row for row in result.rows if not (row["method"] == "logistic" and row["bits"] == 8)]
    assert table(fewer)[1][-1][3] == "-"


def test_markdown_csv_and_json_lie_beside_the_runs(compared):
    result, dataset, out = compared
    assert json.loads((out / dataset.name / "compare.json").read_text()) == result.as_json()
    with (out / dataset.name / "compare.csv").open() as file:
        assert [float(row["mean"]) for row in csv.DictReader(file)] == [row["mean"] for row in result.rows]
    markdown = (out / dataset.name / "compare.md").read_text()
    assert "| triplet | de | i2t |" in markdown
    assert "never on query" in markdown


def test_a_second_table_goes_where_it_is_asked_to_or_says_what_it_replaces(compared, tmp_path):
    _, data, out = compared
    beside = out / "toy/compare.json"
    before = beside.read_bytes()
    asked = [
        "compare",
        "--method",
        "triplet",
        "--bits",
        "8",
        "--seeds",
        "1",
        "--lang",
        "de",
        "--cache",
        data.folder.parent,
    ]
    asked = [str(word) for word in (*asked, "--runs", tmp_path / "runs", "--epochs", 1, "--device", "cpu")]
    for words, where in ((["--out", str(tmp_path / "mine")], "mine"), ([], "runs/toy"), ([], "runs/toy")):
        is_there = (tmp_path / where / "compare.md").exists()
        done = CliRunner().invoke(app, [*asked, *words])
        assert done.exit_code == 0, done.output
        assert done.stderr.splitlines()[-1].startswith(f"{'replaced' if is_there else 'written'}: {tmp_path / where}/")
    assert beside.read_bytes() == before
    assert {path.name for path in (tmp_path / "mine").iterdir()} == {f"compare.{end}" for end in ("md", "csv", "json")}


def test_the_printed_command_makes_the_cell_again(compared, tmp_path):
    result, data, _ = compared
    *trainings, scoring = result.rows[0]["command"].split(" && ")
    where = ["--cache", str(data.folder.parent), "--runs", str(tmp_path / "runs")]
    assert len(trainings) == 2
    for command in trainings:
        assert "--epochs 2 --batch 16 --lr 0.02" in command
        assert CliRunner().invoke(app, [*shlex.split(command)[1:], *where, "--device", "cpu"]).exit_code == 0
    scored = CliRunner().invoke(app, [*shlex.split(scoring)[1:], *where, "--json"])
    rows = json.loads(scored.stdout)["rows"]
    cell = result.rows[0]
    assert mean(row["map"] for row in rows if row["direction"] == cell["direction"]) == cell["mean"]
    assert {row["lang"] for row in rows} == {"de"}


def test_the_command_names_every_setting_that_is_not_the_default(compared, tmp_path):
    _, data, _ = compared
    config = replace(QUICK, langs=("en",), relevance="pairs", margin=0.125)
    grid = CompareConfig(bits=(8,), seeds=1, langs=("de",))
    row = compare(grid, config, data, tmp_path, ("en=toy",)).rows[0]
    assert row["command"] == (
        "cmrhash train --dataset toy --method triplet --bits 8 --relevance pairs --epochs 2 --batch 16 --lr 0.02 "
        "--hidden 16 --margin 0.125 --lang en --seed 0"
        " && cmrhash eval --dataset toy --method triplet --bits 8 --relevance pairs --lang de"
    )
    assert (row["lang"], row["head_lang"], row["trained_langs"]) == ("de", "en", ["en"])
    assert row["metric"] == "r@1"


def test_by_pairs_a_cell_is_r_at_k_and_its_upper_bound_that_of_the_real_values(compared, tmp_path):
    _, data, _ = compared
    config = replace(QUICK, relevance="pairs")
    grid = CompareConfig(bits=(8, 16), seeds=2, langs=("de",), metric="r@5")
    result = compare(grid, config, data, tmp_path)
    scored = evaluate(EvalConfig(relevance="pairs", langs=("de",)), data, tmp_path).rows
    for row in result.rows:
        same = [r for r in scored if all(r[k] == row[k] for k in ("bits", "direction"))]
        assert len(same) == 2
        for name, key in (("mean", "hit_at"), ("real", "hit_at_real"), ("chance", "hit_at_chance")):
            assert row[name] == pytest.approx(mean(r[key]["5"] for r in same))
        assert row["real_sd"] == pytest.approx(stdev(r["hit_at_real"]["5"] for r in same))
        wanted = {"i2t": 1 - comb(38, 5) / comb(40, 5), "t2i": 5 / 20}[row["direction"]]
        assert row["chance"] == pytest.approx(wanted)


def test_a_run_of_another_recipe_in_the_way_is_met_before_any_training_and_named(compared, tmp_path):
    _, data, _ = compared
    compare(replace(GRID, methods=("logistic",), bits=(16,), seeds=1), QUICK, data, tmp_path)
    before = sorted(tmp_path.rglob(runs.CONFIG))
    with pytest.raises(
        StaleError, match=r"^logistic, 16 bits, seed 0: run was made with train.epochs = 2, but this call has 1"
    ):
        compare(GRID, replace(QUICK, epochs=1), data, tmp_path)
    assert sorted(tmp_path.rglob(runs.CONFIG)) == before


def test_progress_runs_over_the_whole_grid_and_starts_at_what_is_there(compared, tmp_path):
    _, data, _ = compared
    grid = replace(GRID, bits=(8,), methods=("triplet", "cca"))
    compare(replace(grid, methods=("triplet",), seeds=1), QUICK, data, tmp_path)
    seen = []
    compare(grid, QUICK, data, tmp_path, progress=lambda *a: seen.append(a))
    done = [done for what, done, total, _ in seen if what == "grid"]
    assert {total for what, _, total, _ in seen if what == "grid"} == {3}
    assert done == sorted(done)
    assert (done[0], done[-1]) == (1, 3)
    inner = [(done, note.split(":")[0]) for what, done, _, note in seen if what == "run"]
    trained = [(done, name) for done, name in inner if name.startswith("triplet")]
    epochs = [*range(QUICK.epochs + 1), QUICK.epochs]  # then the codes of all items
    assert trained == [(epoch, "triplet, 8 bits, seed 1") for epoch in epochs]
    assert {name for _, name in inner} - {trained[0][1]} == {"cca, 8 bits, seed 0"}


def test_the_best_mean_of_a_column_is_bold_among_the_methods_of_a_direction():
    def row(method, bits, mean, direction="i2t"):
        who = {"method": method, "bits": bits, "lang": "de", "head_lang": "de", "direction": direction}
        return {**who, "mean": mean, "sd": 0.01, "n": 2, "real": 0.7, "real_sd": 0.02, "chance": 0.1, "collapsed": 0}

    rows = [row("a", 8, 0.5), row("a", 16, 0.6), row("b", 8, 0.55), row("b", 16, 0.4), row("a", 8, 0.9, "t2i")]
    cells = table(rows, ("**", "**"))[1]
    assert [line[3:5] for line in cells] == [
        ["0.500 +- 0.010", "**0.600** +- 0.010"],
        ["**0.550** +- 0.010", "0.400 +- 0.010"],
        ["0.900 +- 0.010", "-"],
    ]
    assert cells[0][5:] == ["0.700 +- 0.020", "0.100", "2"]


def test_a_method_without_its_labels_is_refused_before_any_training(make_cache, tmp_path):
    made = make_cache(tmp_path / "cache", change=lambda item: replace(item, labels=()), relevance="pairs")
    with pytest.raises(UsageError, match="method 'acmr' needs labels"):
        compare(CompareConfig(methods=("triplet", "acmr"), seeds=1), QUICK, made, tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_a_language_that_no_run_can_score_is_met_after_the_first(make_cache, tmp_path):
    data = make_cache(tmp_path / "cache")
    shutil.copy(make_cache(tmp_path / "other", weights="trained").folder / "text-de-toy.h5", data.folder)
    grid = CompareConfig(bits=(8, 16), langs=("de",), seeds=2)
    with pytest.raises(UsageError, match="cannot score 'de'"):
        compare(grid, replace(QUICK, langs=("en",)), data, tmp_path / "runs")
    assert len(list(tmp_path.rglob(runs.HEADS))) == 1


def test_what_was_compared_is_not_scored_again(compared, monkeypatch):
    monkeypatch.setattr("cmrhash.evaluation.evaluate._score", None)
    result, *where = compared
    rows = evaluate(EvalConfig(langs=("de",)), *where).rows
    assert len(rows) == 2 * 2 * 2 * 2  # methods, bits, seeds, directions
    assert compare(GRID, QUICK, *where).rows == result.rows


def test_an_empty_grid_and_an_unknown_method_are_refused_before_any_training(make_cache, tmp_path):
    made = make_cache(tmp_path / "cache")
    with pytest.raises(UsageError, match="^seeds: 0 is out of range"):
        compare(CompareConfig(seeds=0), QUICK, made, tmp_path / "runs")
    with pytest.raises(UsageError, match="did you mean r@1"):
        compare(CompareConfig(metric="r1"), QUICK, made, tmp_path / "runs")
    with pytest.raises(UsageError, match="no features for language 'fr'"):
        compare(CompareConfig(langs=("fr",)), QUICK, made, tmp_path / "runs")
    with pytest.raises(UsageError, match="did you mean triplet"):
        compare(CompareConfig(methods=("logistic", "triplett")), QUICK, made, tmp_path / "runs")
    assert not (tmp_path / "runs").exists()
