"""Runs that were trained for one search direction."""

from dataclasses import replace

import pytest
from quick_training import QUICK
from typer.testing import CliRunner

from cmrhash.config import CompareConfig, EvalConfig
from cmrhash.errors import UsageError
from cmrhash.evaluation.compare import compare, table
from cmrhash.evaluation.evaluate import evaluate
from cmrhash.evaluation.trec import write_trec
from cmrhash.training import runs, train
from cmrhash_cli.main import app

CONFIG = replace(QUICK, method="tie-ap", epochs=2)


@pytest.fixture(scope="module")
def trained(make_cache, tmp_path_factory):
    """A data set, the folder of its runs, and the runs of both directions and of i2t alone."""
    out = tmp_path_factory.mktemp("one-way")
    data = make_cache(out / "cache")
    return (
        data,
        out / "runs",
        *(train.train(replace(CONFIG, direction=way), data, out / "runs")[0] for way in (None, "i2t")),
    )


def test_name_record_and_choice_of_the_epoch_are_of_the_direction(trained):
    data, out, both, one = trained
    assert (both.name, one.name) == ("tie-ap-16", "tie-ap-16-i2t")
    assert (both.direction, one.direction, one.record["train"]["direction"]) == (None, "i2t", "i2t")
    assert {tuple(by) for by in one.outcome.val_map.values()} == {("i2t",)}
    assert one.outcome.val_map_mean == pytest.approx(
        sum(by["i2t"] for by in one.outcome.val_map.values()) / len(one.langs)
    )
    assert train.train(replace(CONFIG, direction="i2t"), data, out) == (one, False)


def test_only_rows_of_the_direction_are_scored(trained, tmp_path):
    data, out, both, one = trained
    rows = evaluate(EvalConfig(directions=("i2t", "t2i", "t2t")), data, out).rows
    assert {row["direction"] for row in rows if row["run"] == str(both.folder)} == {"i2t", "t2i", "t2t"}
    own = [row for row in rows if row["run"] == str(one.folder)]
    assert {(row["direction"], row["trained_direction"]) for row in own} == {("i2t", "i2t")}
    written = write_trec(EvalConfig(), data, out, tmp_path)
    assert {path.name.rsplit(".", 2)[1] for path in written if path.name.startswith(f"{one.name}.")} == {"i2t"}


def test_eval_prints_a_table_for_each_set_of_directions(trained, monkeypatch):
    monkeypatch.chdir(trained[1].parent)
    printed = CliRunner().invoke(app, ["eval"], env={"COLUMNS": "200"}).output
    assert "tie-ap (i2t only)" in printed
    assert printed.count("chance") >= 2
    assert "direction i2t" in " ".join(printed.split())


def test_another_direction_alone_is_nothing_to_score(trained):
    data, out, _, one = trained
    with pytest.raises(UsageError, match="the runs were trained for i2t only"):
        evaluate(EvalConfig(directions=("t2i",)), data, _alone(one, out.parent / "alone"))


def _alone(run, out):
    """Runs folder that has this run only."""
    target = out / run.dataset / run.name
    target.parent.mkdir(parents=True)
    target.symlink_to(run.folder)
    return out


def test_compare_trains_and_shows_the_direction_alone(trained):
    data, out, *_ = trained
    grid = CompareConfig(methods=("tie-ap", "triplet"), bits=(16,), seeds=1, against="triplet")
    rows = compare(grid, replace(CONFIG, direction="i2t"), data, out).rows
    assert {(row["direction"], row["trained_direction"]) for row in rows} == {("i2t", "i2t")}
    assert all("--direction i2t" in row["command"] for row in rows)
    assert all("p" in row for row in rows if row["method"] == "tie-ap")
    assert len(table(rows)[1]) == 2 * len(data.languages())


def test_search_prefers_runs_of_both_directions_and_warns_of_the_other_one(trained, monkeypatch):
    data, out, both, one = trained
    better = replace(one, outcome=replace(one.outcome, val_map_mean=1.0))
    assert runs.best_run([better, both]) is both
    assert runs.best_run([better]) is better
    monkeypatch.chdir(out.parent)
    asked = ["search", "--id", data.dataset.items[0].id, "--lang", "de", "--run", str(one.folder)]
    warning = f"warning: {one.name} was trained for i2t only"
    assert warning in CliRunner().invoke(app, [*asked, "--by", "text", "--to", "image"]).output
    assert warning not in CliRunner().invoke(app, [*asked, "--to", "text"]).output


def test_a_method_without_such_a_form_refuses_it(trained, monkeypatch):
    monkeypatch.chdir(trained[1].parent)
    done = CliRunner().invoke(app, ["train", "--method", "krr-ap", "--direction", "t2i"])
    assert "direction: method 'krr-ap' has no such setting" in str(done.exception)
    done = CliRunner().invoke(app, ["train", "--method", "tie-ap", "--direction", "i2i"])
    assert "unknown direction 'i2i'" in str(done.exception)
