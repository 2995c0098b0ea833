"""Values of each query: those of the means, readable by NumPy alone, and never of other codes."""

import json
from dataclasses import replace

import numpy as np
import pytest
from slow_scores import QUICK, run_of

from cmrhash.config import CompareConfig, EvalConfig
from cmrhash.evaluation import significance
from cmrhash.evaluation.compare import compare
from cmrhash.evaluation.evaluate import evaluate
from cmrhash.evaluation.significance import query_values
from cmrhash.training.train import train

FILE = "queries-labels.npz"


def test_a_reader_with_numpy_alone_finds_the_mean_by_ids(mine):
    data, out = mine
    run = run_of(out)
    rows = evaluate(EvalConfig(directions=("i2t", "t2i", "i2i")), data, out).rows
    with np.load(run.folder / FILE) as found:
        assert set(found["ids"]) == {item.id for item in data.dataset.items if "query" in item.splits}
        for row in (row for row in rows if row["bits"] == run.bits):
            name = ".".join(filter(None, (row["direction"], row["lang"])))
            ap = found[f"{name}.ap"]
            assert np.nanmean(ap) == pytest.approx(row["map"], abs=1e-12)
            assert (len(ap), int(np.isnan(ap).sum())) == (20, row["queries_without_relevant"])
            for cut in ("1", "5", "10"):
                assert np.nanmean(found[f"{name}.hit@{cut}"]) == pytest.approx(row["hit_at"][cut], abs=1e-12)
            assert found["ids"][found[f"{name}.item"]].tolist() == [f"i{n}" for n in range(0, 120, 6)]
        assert set(json.loads(str(found["about"]))) == {"version", "codes", "items"}


def test_what_eval_kept_is_not_computed_again_by_the_test(mine, monkeypatch):
    data, out = mine
    run = run_of(out)
    (run.folder / FILE).unlink()
    fresh = query_values([run], data, (), "map")  # of a run that an earlier version scored
    assert (run.folder / FILE).exists()
    monkeypatch.setattr(significance, "_values", None)
    for metric in ("map", "r@5"):
        kept = query_values([run], data, (), metric)
        assert kept.keys() == fresh.keys()
    for column, methods in query_values([run], data, (), "map").items():
        assert (methods["triplet"] == fresh[column]["triplet"]).all()


def test_values_of_other_codes_or_a_damaged_file_are_not_used(mine, monkeypatch):
    data, out = mine
    run = run_of(out)
    right = query_values([run], data, (), "map")
    train(replace(QUICK, seed=0, epochs=1), data, out, overwrite=True)
    other = query_values([run_of(out)], data, (), "map")
    assert any((other[column]["triplet"] != right[column]["triplet"]).any() for column in right)
    for content in (b"", b"PK no file", (run.folder / FILE).read_bytes()[:200]):
        (run.folder / FILE).write_bytes(content)
        again = query_values([run_of(out)], data, (), "map")
        assert all((again[column]["triplet"] == other[column]["triplet"]).all() for column in other)


def test_runs_trained_by_pairs_are_tested_on_what_is_scored(mine):
    data, out = mine
    grid = CompareConfig(methods=("supcon", "jdsh"), bits=(8,), seeds=1, trained_by="pairs", against="jdsh")
    for row in compare(grid, replace(QUICK, epochs=1), data, out).rows:
        if row["method"] == "supcon":
            base = next(
                each
                for each in compare(grid, replace(QUICK, epochs=1), data, out).rows
                if each["method"] == "jdsh" and (each["lang"], each["direction"]) == (row["lang"], row["direction"])
            )
            assert row["difference"] == pytest.approx(row["mean"] - base["mean"])
