"""Figures by other ranks than Hamming distance, against plain loops."""

import json
import shutil
import sys

import numpy as np
import pytest
from slow_scores import expected_ap, hamming, in_order, mean, rankings, run_of

import cmrhash
from cmrhash.config import EvalConfig
from cmrhash.errors import UsageError
from cmrhash.evaluation import evaluate as module
from cmrhash.evaluation import saved_scores, scoring
from cmrhash.evaluation.evaluate import evaluate
from cmrhash.evaluation.run_codes import stored_codes
from cmrhash.evaluation.searches import Search, sides
from cmrhash.evaluation.trec import write_trec
from cmrhash.features.dataset import ExtractedDataset


@pytest.fixture(scope="module")
def ranked(scored, tmp_path_factory):
    """A copy of the runs that keeps the scores of every rank: (folder, extracted data set)."""
    base = tmp_path_factory.mktemp("ranked")
    shutil.copytree(scored[0], base, dirs_exist_ok=True)
    return base, ExtractedDataset.open(base / "cache", "toy")


def minus_asymmetric(a, b):
    signs = np.where(b >= 0, 1.0, -1.0)
    return -round(float(a @ signs / np.linalg.norm(a) / np.linalg.norm(signs)), 6)


def both_distances(a, b):
    return hamming(a, b), -round(float(a @ b / np.linalg.norm(a) / np.linalg.norm(b)), 6)


def shortlisted(ranking, count):
    """The nearest ``count`` and those at the last one's distance by cosine, then the others by distance."""
    last = sorted(by_code for (by_code, _), _ in ranking)[min(count, len(ranking)) - 1]
    return [((0, cosine) if code <= last else (1, code), relevant) for (code, cosine), relevant in ranking]


def slow_rankings(base, data, row, rank):
    run, where = run_of(base / "runs", row["bits"]), (row["lang"], row["direction"])
    if rank == "asymmetric":
        return rankings(run, data, *where, minus_asymmetric)
    return [shortlisted(one, int(rank[7:])) for one in rankings(run, data, *where, both_distances)]


@pytest.mark.parametrize("rank", ["asymmetric", "rerank:1", "rerank:15", "rerank:5000"])
@pytest.mark.parametrize("block", [1 << 21, 500])
def test_map_and_precision_equal_the_slow_twin(ranked, rank, block, monkeypatch):
    base, data = ranked
    monkeypatch.setattr(scoring, "COUNT_BLOCK", block)
    monkeypatch.setattr(saved_scores, "kept", lambda *_: {})
    result = evaluate(EvalConfig(rank=rank), data, base / "runs")
    assert len(result.rows) == 8
    for row in result.rows:
        slow = slow_rankings(base, data, row, rank)
        assert row["map"] == row["map_expected"] == pytest.approx(mean(map(expected_ap, slow)), abs=1e-9)
        for order, sign in (("optimistic", -1), ("pessimistic", 1)):
            orders = [[(n, hit) for n, hit in enumerate(in_order(one, sign))] for one in slow]
            assert row[f"map_{order}"] == pytest.approx(mean(map(expected_ap, orders)), abs=1e-9)
        low, high = (mean(sum(in_order(one, sign)[:5]) / 5 for one in slow) for sign in (1, -1))
        assert low - 1e-9 <= row["precision_at"]["5"] <= high + 1e-9
        assert (row["queries"], row["queries_without_relevant"], row["database"]) == (20, 0, 100)
        assert "pr_by_radius" not in row


def test_a_shortlist_of_everything_is_the_real_valued_ranking(ranked):
    base, data = ranked
    for row in evaluate(EvalConfig(rank="rerank:100"), data, base / "runs").rows:
        assert row["map"] == pytest.approx(row["map_real"], abs=1e-4)


def test_the_query_itself_is_left_out_by_every_rank(ranked):
    base, data = ranked
    for rank in ("hamming", "asymmetric", "rerank:10"):
        config = EvalConfig(rank=rank, directions=("i2i", "t2t"), bits=(8,), langs=("en",))
        for row in evaluate(config, data, base / "runs").rows:
            run, lang = run_of(base / "runs", 8), row["lang"] or "en"
            slow = rankings(run, data, lang, row["direction"], both_distances, row.get("database_lang"))
            one = {"hamming": lambda r: [(c, hit) for (c, _), hit in r], "rerank:10": lambda r: shortlisted(r, 10)}
            if rank in one:
                assert row["map"] == pytest.approx(mean(expected_ap(one[rank](r)) for r in slow), abs=1e-9)


def test_scores_of_each_rank_are_kept_beside_each_other(mine, monkeypatch):
    data, out = mine
    (out / "toy/triplet-8/metrics.json").unlink()
    usual = evaluate(EvalConfig(bits=(8,)), data, out)
    before = json.loads((out / "toy/triplet-8/metrics.json").read_text())
    assert all("rank" not in entry["asked"] for entry in before["scores"])
    other = evaluate(EvalConfig(bits=(8,), rank="asymmetric"), data, out)
    assert [row["map"] for row in other.rows] != [row["map"] for row in usual.rows]
    kept = json.loads((out / "toy/triplet-8/metrics.json").read_text())["scores"]
    assert [entry["asked"].get("rank") for entry in kept] == [None, "asymmetric"]
    monkeypatch.setattr(module, "score_search", lambda *_: pytest.fail("scored again"))
    assert evaluate(EvalConfig(bits=(8,)), data, out).rows == usual.rows
    assert evaluate(EvalConfig(bits=(8,), rank="asymmetric"), data, out).rows == other.rows
    shown = saved_scores.shown(run_of(out))
    assert [row["map"] for row in shown["rows"]] == [row["map"] for row in usual.rows]


def test_the_protocol_says_how_results_were_ordered(scored, ranked):
    (base, data), usual = ranked, scored[2]
    assert "ranking" not in usual.protocol
    assert usual.protocol["ties"].endswith("within equal Hamming distance")
    lines = {
        rank: evaluate(EvalConfig(rank=rank, bits=(8,)), data, base / "runs").in_words()
        for rank in ("asymmetric", "rerank", "rerank:7")
    }
    assert "ranking: asymmetric: cosine of the real-valued query and the codes, whole database" in lines["asymmetric"]
    assert "ties: expected value over random order within equal score" in lines["asymmetric"]
    for rank, count in (("rerank", 1000), ("rerank:7", 7)):
        line = next(line for line in lines[rank] if line.startswith("ranking: "))
        assert f"the nearest {count} codes and all at the distance of the last one" in line


def test_trec_files_have_the_order_of_the_rank(mine, tmp_path):
    data, out = mine
    config = EvalConfig(bits=(8,), langs=("en",), directions=("t2i",), rank="rerank:20")
    write_trec(config, data, out, tmp_path / "trec")
    lines = (tmp_path / "trec/triplet-8.en.t2i.run").read_text().splitlines()
    views = stored_codes(run_of(out))
    both = sides(data.dataset, views, Search("t2i", "text-en", "image"))
    scores = scoring.scores_of(cmrhash.retrieval.ranking.Rank("rerank", 20), both, 0, 1)[0]
    wanted = [f"i{both.database[n]}" for n in np.argsort(-scores, kind="stable")]
    assert [line.split()[2] for line in lines[: len(wanted)]] == wanted


@pytest.mark.parametrize(
    ("rank", "words"),
    [
        ("features", "rank: `features` orders photos by a photo without codes"),
        ("asymmetrical", "rank: unknown ranking 'asymmetrical': did you mean asymmetric?"),
        ("rerank:none", "rank: 'none' in 'rerank:none' is no whole number"),
    ],
)
def test_another_rank_is_refused(ranked, rank, words):
    base, data = ranked
    with pytest.raises(UsageError, match=words.replace("?", ".")):
        cmrhash.evaluate(run_of(base / "runs"), data, rank=rank)


def test_the_command_takes_a_rank(mine, monkeypatch, capsys):
    from cmrhash_cli.main import main

    data, out = mine
    monkeypatch.setattr(
        sys,
        "argv",
        [
            "cmrhash",
            "eval",
            "--bits",
            "8",
            "--rank",
            "rerank:20",
            "--cache",
            str(data.folder.parent),
            "--runs",
            str(out),
        ],
    )
    with pytest.raises(SystemExit) as end:
        main()
    shown = capsys.readouterr().out
    assert end.value.code == 0
    assert "ranking: rerank: the nearest 20 codes" in " ".join(shown.split())
