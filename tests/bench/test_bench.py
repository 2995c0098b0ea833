"""The bench: arithmetic of its rows, and every path on a few items, where the naive way and ours must agree."""

import functools
import json
import sys
from contextlib import contextmanager

import numpy as np
import pytest
import transformers

from cmrhash import bench as runner
from cmrhash.bench import Case, Path, encoding, peers, retrieval, start, storage, training
from cmrhash.encoders import graphs
from cmrhash.errors import UsageError
from cmrhash_cli.main import main

ONNX = pytest.mark.skipif(bool(graphs.lacking()), reason="pip install cmrhash[onnx]")


def path_of(case):
    @contextmanager
    def make():
        yield case

    return Path("something", "the least", 7, make)


@pytest.fixture
def clock(monkeypatch):
    """CPU time that only ``spend`` moves."""
    now = [0.0]
    monkeypatch.setattr(runner, "_cpu", lambda: now[0])

    def spend(seconds, result=1.0):
        def way():
            now[0] += seconds
            return result

        return way

    return spend


def test_a_row_is_the_ratio_of_two_ways_and_the_share_of_the_limit(clock, monkeypatch):
    case = Case(clock(2.0), clock(0.5), clock(0.25), share=0.1)
    monkeypatch.setattr(start, "PATHS", {"fake": path_of(case)})
    row = runner.bench(("fake",))["rows"][0]
    assert row["naive_s"] == pytest.approx(20)  # it did a tenth of the work
    assert row["ours_s"] == pytest.approx(0.5)
    assert row["ratio"] == pytest.approx(40)
    assert row["limit_share"] == pytest.approx(0.5)
    assert (row["path"], row["what"], row["limit"], row["target"]) == ("fake", "something", "the least", 7)


def test_ways_that_disagree_are_no_comparison(clock, monkeypatch):
    monkeypatch.setattr(start, "PATHS", {"fake": path_of(Case(clock(1), clock(1, np.array([1.1, 1.0]))))})
    with pytest.raises(AssertionError, match=r"fake: naive way 1\.0, ours 1\.1"):
        runner.bench(("fake",))


def test_without_a_limit_no_share_of_it_is_given(clock, monkeypatch):
    monkeypatch.setattr(start, "PATHS", {"fake": path_of(Case(clock(1), clock(1)))})
    assert runner.bench(("fake",))["rows"][0]["limit_share"] is None


def test_memory_is_what_our_way_takes_beyond_what_was_there(monkeypatch):
    def ours():
        return float(np.ones(8 << 20)[0])  # 64 MB

    monkeypatch.setattr(start, "PATHS", {"fake": path_of(Case(lambda: 1.0, ours))})
    peak = runner.bench(("fake",))["rows"][0]["peak_mb"]
    if peak is None:
        pytest.skip("this system does not tell how much memory a process takes")
    assert 60 < peak < 90


def test_an_unknown_path_is_answered_with_the_nearest():
    with pytest.raises(UsageError, match="did you mean evaluation-32"):
        runner.bench(("evaluation-33",))


@pytest.mark.parametrize("peer", [peers.gathering, *(peer for _, peer in peers.PEERS.values())])
def test_functions_of_peers_give_average_precision(peer):
    draw = np.random.default_rng(0)
    queries, database = (draw.standard_normal((n, 16)).astype(np.float32) for n in (5, 200))  # no two distances tie
    own, other = ((draw.random((n, 6)) < 0.3).astype(np.float32) for n in (5, 200))
    own[:, 0], other[0, 0] = 1, 1
    relevant = np.take_along_axis(other @ own.T > 0, np.argsort(-(database @ queries.T), axis=0), axis=0).T
    expected = [np.mean([row[: at + 1].mean() for at in np.flatnonzero(row)]) for row in relevant]
    assert peer(queries, database, own, other) == pytest.approx(expected, rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "make",
    [
        lambda: retrieval._evaluation(40, 600, 136, 1.0),
        lambda: retrieval._search(6, 5000, 64, 0.5),
        lambda: training._step(8, 1),
        lambda: training._step(8, 2, 0.5),
        storage._write,
        storage._read,
        encoding._images,
        lambda: encoding._texts(2, 64, 0.5),
        lambda: encoding._texts(4, None, 1.0),
        pytest.param(lambda: encoding._images("onnx"), marks=ONNX),
        pytest.param(lambda: encoding._texts(4, None, 1.0, "onnx"), marks=ONNX),
    ],
)
def test_both_ways_of_every_path_run_and_agree(monkeypatch, make):
    monkeypatch.setattr(runner, "REPEATS", 1)
    monkeypatch.setattr(storage, "ROWS", 600)
    monkeypatch.setattr(encoding, "PHOTOS", 4)
    monkeypatch.setattr(encoding, "CAPTIONS", 8)
    small = functools.partial(transformers.BertConfig, hidden_size=32, num_hidden_layers=1, num_attention_heads=2)
    monkeypatch.setattr(encoding.transformers, "BertConfig", small)
    monkeypatch.setattr(start, "PATHS", {"one": Path("", "", 1, make)})
    row = runner.bench(("one",))["rows"][0]
    assert row["ours_s"] > 0


def test_triplets_in_parts_are_those_of_the_whole_tensor(monkeypatch):
    import torch

    generator = torch.Generator().manual_seed(0)
    u, v = (torch.rand(12, 4, generator=generator) for _ in range(2))
    relevant = torch.rand(12, 12, generator=generator) < 0.4
    parts = torch.stack([training._hinge(u[[n]], v, relevant[[n]]) for n in range(12)])
    counts = (relevant.sum(1) * (~relevant).sum(1)).float()
    whole = training._hinge(u, v, relevant)
    torch.testing.assert_close((parts * counts).sum() / counts.sum(), whole)


def test_the_command_prints_a_table_or_json(clock, monkeypatch, capsys):
    monkeypatch.setattr(start, "PATHS", {"fake": path_of(Case(clock(2.0), clock(0.5), clock(0.25)))})
    for flag in ([], ["--json"]):
        monkeypatch.setattr(sys, "argv", ["cmrhash", "bench", "--path", "fake", "-q", *flag])
        with pytest.raises(SystemExit) as end:
            main()
        assert not end.value.code
        out = capsys.readouterr().out
        if flag:
            assert json.loads(out)["rows"][0]["ratio"] == 4
        else:
            assert "fake: something; limit: the least" in out
            assert "50 %" in out
