"""Search for settings: what is tried, that val items choose, and that the named command trains the best."""

import json
import shlex
from dataclasses import replace

import pytest
from slow_scores import QUICK
from typer.testing import CliRunner

from cmrhash.config import SweepConfig
from cmrhash.errors import DivergedError, UsageError
from cmrhash.evaluation.sweep import sweep, table
from cmrhash.training import runs
from cmrhash.training.values import settings_of
from cmrhash_cli.main import app

GRID = SweepConfig(values=("lr=0.001,0.02", "epochs=2"), seeds=2)


@pytest.fixture(scope="module")
def swept(make_cache, tmp_path_factory):
    """(result, data, runs)"""
    base = tmp_path_factory.mktemp("sweep")
    data = make_cache(base / "cache")
    return sweep(GRID, QUICK, data, base / "runs"), data, base / "runs"


def test_a_method_that_draws_nothing_is_trained_once_a_setting(make_cache, tmp_path):
    data, config = make_cache(tmp_path / "cache"), replace(QUICK, method="scm", bits=8)
    result = sweep(SweepConfig(values=("drop_near_duplicates=false,true",), seeds=3), config, data, tmp_path / "runs")
    assert [(row["seeds"], row["val_map_sd"]) for row in result.rows] == [(1, None)] * 2
    assert "scm draws nothing: trained once" in result.protocol["one seed"]
    assert "--seed 1" not in result.best["command"]
    noisy = sweep(SweepConfig(values=("noise=0,0.2",), seeds=2), config, data, tmp_path / "runs")
    assert {row["noise"]: (row["seeds"], len(row["runs"])) for row in noisy.rows} == {0.0: (1, 1), 0.2: (2, 2)}
    assert "one seed" not in noisy.protocol


def test_every_combination_is_tried_with_values_of_the_settings_type():
    found = settings_of(["lr=1e-3,0.002", "hidden=16", "drop-near-duplicates=true,false", "schedule=constant"], None)
    assert [(one["lr"], one["drop_near_duplicates"]) for one in found] == [
        (0.001, True),
        (0.001, False),
        (0.002, True),
        (0.002, False),
    ]
    assert {(one["hidden"], one["schedule"]) for one in found} == {(16, "constant")}
    assert len(settings_of(["lr=1,2", "ema=0,.5"], 9)) == 4


def test_drawn_settings_are_different_within_their_ranges_and_more_of_them_keep_the_first():
    values = ["lr=1e-4..1e-2", "epochs=5..9", "dropout=0.1..0.5", "hidden=0,64"]
    found = settings_of(values, 40)
    assert found[:10] == settings_of(values, 10)
    assert len({str(one) for one in found}) == 40
    assert all(1e-4 <= one["lr"] <= 1e-2 and 0.1 <= one["dropout"] <= 0.5 for one in found)
    assert {one["epochs"] for one in found} == {5, 6, 7, 8, 9}
    below = sum(one["lr"] < 1e-3 for one in found)
    assert 10 <= below <= 30  # half of them on a logarithmic scale, a tenth on a linear one
    assert all(len(str(one["lr"]).lstrip("0.").replace(".", "")) <= 3 for one in found)


@pytest.mark.parametrize(
    ("values", "samples", "message"),
    [
        (["lrr=1,2"], None, "values: 'lrr' is no setting of a training: did you mean lr?"),
        (["bits=16,32"], None, "values: 'bits' is no setting"),
        (["lr"], None, "values: 'lr' gives no values"),
        (["lr=a,b"], None, "values: lr='a': give a number"),
        (["epochs=1.5,2"], None, "values: epochs='1.5': give a whole number"),
        (["drop_near_duplicates=maybe"], None, "values: drop_near_duplicates='maybe': give true or false"),
        (["lr=2..1"], 3, "values: lr=2..1 is no range"),
        (["schedule=a..b"], 3, "values: schedule=a..b is no range"),
        (["lr=1..2"], None, "values: lr is a range, from which values are drawn: add `samples=20`"),
        (["lr=1,2", "lr=3"], None, "values: `lr` is given twice"),
        (["lr=1,2"], 0, "samples: 0 is out of range"),
        (["lr=1"], None, "values: there is nothing to choose from"),
        ([], None, "values: there is nothing to choose from"),
    ],
)
def test_what_cannot_be_tried_is_refused(values, samples, message):
    with pytest.raises(UsageError) as error:
        settings_of(values, samples)
    assert str(error.value).startswith(message)


def test_the_best_on_val_comes_first_and_its_command_trains_it(swept, tmp_path):
    result, data, out = swept
    for row in result.rows:
        own = [runs.open_run(folder) for folder in row["runs"]]
        assert [run.seed for run in own] == [0, 1]
        assert all(run.settings["lr"] == row["lr"] for run in own)
        assert row["val_map"] == pytest.approx(sum(run.outcome.val_map_mean for run in own) / 2)
    assert result.best["val_map"] == max(row["val_map"] for row in result.rows)
    where = ["--cache", str(data.folder.parent), "--runs", str(tmp_path), "--device", "cpu", "--quiet"]
    for command, folder in zip(result.best["command"].split(" && "), result.best["runs"], strict=True):
        assert CliRunner().invoke(app, [*shlex.split(command)[1:], *where]).exit_code == 0
        run = runs.open_run(folder)
        assert (tmp_path / "toy" / run.name / runs.HEADS).read_bytes() == run.file(runs.HEADS).read_bytes()
    written = out / "toy/sweep"
    assert json.loads((written / "sweep.json").read_text()) == result.as_json()
    assert f"- its command: {result.best['command']}" in (written / "sweep.md").read_text()
    assert table(result)[0] == ["lr", "epochs", "val mAP", "epoch", "seeds"]


def test_a_finished_sweep_trains_nothing_and_a_wider_one_trains_what_is_new(swept, tmp_path):
    result, data, out = swept
    before = {path: path.stat().st_mtime_ns for path in out.rglob(runs.HEADS)}
    assert sweep(GRID, QUICK, data, out).rows == result.rows
    wider = sweep(replace(GRID, values=("lr=0.001,0.02,0.05", "epochs=2")), QUICK, data, out)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert len(list(out.rglob(runs.HEADS))) == len(before) + 2
    assert len(wider.rows) == 3


def test_a_setting_that_diverges_comes_last_and_if_all_do_its_error_is_raised(swept, tmp_path):
    _, data, _ = swept
    grid = SweepConfig(values=("lr=1e12,0.01", "epochs=3"))
    result = sweep(grid, QUICK, data, tmp_path)
    assert [row["lr"] for row in result.rows] == [0.01, 1e12]
    assert "lower `lr`" in result.rows[1]["failed"]
    assert table(result)[1][1][2:] == ["failed", "-", "1"]
    with pytest.raises(DivergedError, match="not finite"):
        sweep(replace(grid, values=("lr=1e12,1e11", "epochs=3")), QUICK, data, tmp_path)


def test_what_cannot_be_chosen_is_refused_before_any_training(swept, make_cache, tmp_path):
    _, data, _ = swept
    cases = [
        (GRID, replace(QUICK, method="cca"), "lr: method 'cca' has no such setting"),
        (replace(GRID, values=("lr=-1,1",)), QUICK, "lr: -1.0 is out of range"),
        (replace(GRID, seeds=0), QUICK, "seeds: 0 is out of range"),
        (replace(GRID, jobs=0), QUICK, "jobs: 0 is out of range"),
    ]
    for grid, config, message in cases:
        with pytest.raises(UsageError, match=f"^{message}"):
            sweep(grid, config, data, tmp_path / "runs")
    no_val = make_cache(tmp_path / "cache", change=lambda item: replace(item, splits=item.splits - {"val"}))
    with pytest.raises(UsageError, match="^there are no val items, by which a setting is chosen"):
        sweep(GRID, QUICK, no_val, tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_the_command_shows_the_best_first(swept, tmp_path):
    _, data, _ = swept
    words = ["sweep", "--set", "lr=0.001,0.02", "--set", "epochs=1", "--set", "hidden=16", "--device", "cpu"]
    words += ["--cache", str(data.folder.parent), "--runs", str(tmp_path)]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    assert "its command: cmrhash train --dataset toy --method triplet --bits 32" in done.stdout
    assert done.stderr.splitlines()[-1] == f"written: {tmp_path}/toy/sweep/sweep.md, .csv, .json"
