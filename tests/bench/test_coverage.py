"""Coverage of intervals by simulation, and what it reads."""

import json

import numpy as np
import pytest

from cmrhash.bench import coverage as module
from cmrhash.bench.coverage import apart_of, coverage


def test_few_queries_cover_less_and_many_as_often_as_the_interval_says():
    apart = np.random.default_rng(0).exponential(0.1, 500)
    few, many = (coverage(apart, queries, trials=200, draws=200) for queries in (4, 100))
    assert few.covered < 0.9 < many.covered <= 1
    assert many.alarms < 0.12 < few.alarms


def test_the_program_reads_two_runs_and_prints_a_line_per_size(tmp_path, monkeypatch, capsys):
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        ap = np.where(np.arange(60) % 10 == 0, np.nan, rng.random(60))
        np.savez(tmp_path / name / "queries-labels.npz", about=json.dumps({}), **{"i2t.en.ap": ap})
    folders = [str(tmp_path / name) for name in ("a", "b")]
    assert len(apart_of(folders, "i2t.en")) == 54
    monkeypatch.setattr("sys.argv", ["coverage", *folders, "i2t.en"])
    monkeypatch.setattr(module, "TRIALS", 5)
    monkeypatch.setattr(module, "DRAWS", 20)
    monkeypatch.setattr(coverage, "__defaults__", (5, 20))
    module.main()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("54 queries, mean difference")
    assert [line.split()[0] for line in lines[1:]] == [str(size) for size in module.SIZES]
    with pytest.raises(KeyError):
        apart_of(folders, "i2t.fr")
