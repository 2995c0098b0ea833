"""Significance: the interval covers the truth, Holm's correction, and the daggers of compare."""

import json

import numpy as np
import pytest

from cmrhash.config import CompareConfig, TrainConfig
from cmrhash.errors import UsageError
from cmrhash.evaluation.compare import compare, table
from cmrhash.evaluation.significance import differences, holm

QUICK = TrainConfig(epochs=2, batch=16, lr=0.02, hidden=16, device="cpu")


def naive(a, b, seed, draws):
    """One resample at a time: mean differences (draws,)."""
    rng = np.random.default_rng(seed)
    return np.array([(a - b)[rng.integers(len(a), size=len(a))].mean() for _ in range(draws)])


def test_the_interval_and_p_are_those_of_a_loop_over_resamples():
    draw = np.random.default_rng(0)
    base = draw.random(40)
    other = base + draw.normal(0.03, 0.1, 40)
    found = differences({"base": base, "other": other}, "base", seed=5, draws=400)["other"]
    means = naive(other, base, 5, 400)
    assert found.mean == pytest.approx((other - base).mean())
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(means, (0.025, 0.975))))
    assert found.p == pytest.approx(2 * (1 + min((means <= 0).sum(), (means >= 0).sum())) / 401)


@pytest.mark.parametrize("true", [0.0, 0.02])
def test_the_interval_covers_the_true_difference_as_often_as_it_says(true):
    """400 data sets of 120 queries with skewed differences: 95 % within three standard errors."""
    draw = np.random.default_rng(1)
    covered = 0
    for trial in range(400):
        base = draw.random(120)
        apart = draw.exponential(0.1, 120) - 0.1 + true
        found = differences({"a": base, "b": base + apart}, "a", seed=trial, draws=500)["b"]
        covered += found.low <= true <= found.high
    assert 0.95 - 3 * np.sqrt(0.95 * 0.05 / 400) <= covered / 400 <= 0.985


def test_without_a_difference_few_of_many_methods_are_called_different():
    draw = np.random.default_rng(2)
    wrong = 0
    for trial in range(60):
        values = {name: draw.random(80) for name in "abcdef"}
        wrong += any(each.is_significant for each in differences(values, "a", seed=trial, draws=400).values())
    assert wrong <= 9  # .05 of 60 is 3, standard error 1.7


def test_queries_that_do_not_count_are_left_out():
    a, b = np.array([0.1, 0.5, np.nan, 0.2]), np.array([0.3, 0.6, np.nan, 0.7])
    whole, part = ({"a": x, "b": y} for x, y in ((a, b), (a[[0, 1, 3]], b[[0, 1, 3]])))
    assert differences(whole, "a", draws=50) == differences(part, "a", draws=50)


def test_holm_multiplies_by_the_hypotheses_that_are_left():
    assert holm(np.array([0.04, 0.01, 0.03, 0.005])) == pytest.approx([0.06, 0.03, 0.06, 0.02])
    assert holm(np.array([0.9, 0.8])).max() == 1.0


def test_compare_marks_what_differs_and_keeps_the_interval(make_cache, tmp_path):
    data = make_cache(tmp_path / "cache")
    grid = CompareConfig(methods=("tie-ap", "sign-like"), bits=(8,), seeds=1)
    with pytest.raises(UsageError, match="unknown method"):
        compare(grid, QUICK, data, tmp_path / "runs")
    grid = CompareConfig(methods=("tie-ap", "corrnet"), bits=(8,), langs=("en",), seeds=2, against="corrnet")
    result = compare(grid, QUICK, data, tmp_path / "runs")
    tested = {(row["method"], row["direction"]): row for row in result.rows}
    for direction in ("i2t", "t2i"):
        row, base = tested["tie-ap", direction], tested["corrnet", direction]
        assert row["difference"] == pytest.approx(row["mean"] - base["mean"])
        assert row["difference_low"] <= row["difference"] <= row["difference_high"]
        assert row["significant"] == (row["p_holm"] < 0.05)
        assert base["difference"] is None
        assert base["significant"] is None
    assert "differs from corrnet (p < .05)" in result.protocol["significance"]
    cells = {(line[0], line[2]): line[3] for line in table(result.rows)[1]}
    for (method, direction), row in tested.items():
        assert ("\u2020" in cells[method, direction]) == bool(row["significant"])
    written = json.loads((tmp_path / "runs/toy/compare.json").read_text(encoding="utf-8"))
    assert written["rows"] == result.rows
    header = (tmp_path / "runs/toy/compare.csv").read_text(encoding="utf-8").splitlines()[0]
    assert "difference_low" in header


def test_the_baseline_is_one_of_the_methods(make_cache, tmp_path):
    data = make_cache(tmp_path / "cache")
    for methods, against in ((("tie-ap",), "triplet"), (("tie-ap",), "tie-ap")):
        with pytest.raises(UsageError, match=f"nothing to test against '{against}'"):
            compare(CompareConfig(methods=methods, bits=(8,), against=against), QUICK, data, tmp_path / "runs")
    assert not (tmp_path / "runs").exists()
