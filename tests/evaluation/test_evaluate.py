"""What an evaluation says of itself and of each row, and its refusals, word for word."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from slow_scores import QUICK, run_of

from cmrhash.config import CUTS, EvalConfig
from cmrhash.data.items import ImageTextDataset
from cmrhash.errors import UsageError
from cmrhash.evaluation import evaluate as module
from cmrhash.evaluation import per_query, saved_scores
from cmrhash.evaluation.evaluate import Evaluation, check_eval, evaluate, score
from cmrhash.evaluation.run_codes import codes_of
from cmrhash.evaluation.searches import Sides, searches
from cmrhash.features.dataset import ExtractedDataset
from cmrhash.training import runs
from cmrhash.training.train import train

CHOOSE = "choose one of"
BY_RANK = "choose hamming, asymmetric, rerank or rerank:N"
WAYS = ("i2t", "t2i", "t2t", "i2i")
SOME = {"ties": "optimistic", "map_at": 4, "map_at_rule": "R"}
LABELLED = ImageTextDataset("toy", Path(), (), ("dog",))


# ---------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"ties": "lucky"}, f"ties: unknown order 'lucky': {CHOOSE} expected, optimistic, pessimistic"),
        (
            {"map_at": 5, "map_at_rule": "mim"},
            f"map_at_rule: unknown rule 'mim': did you mean min? {CHOOSE} min, R, hits, first",
        ),
        ({"map_at_rule": "R"}, "map_at_rule: used only with `map_at`: add `map_at=K`"),
        (
            {"rank": "features"},
            "rank: `features` orders photos by a photo without codes, and codes are what is scored: " + BY_RANK,
        ),
        (
            {"directions": ("i2t", "t2x")},
            "directions: unknown direction 't2x': did you mean t2t? choose of i2t, t2i, t2t, i2i",
        ),
        ({"map_at": 0}, "a cutoff of 0 is out of range: give a whole number from 1"),
        ({"at": (1, -1)}, "a cutoff of -1 is out of range: give a whole number from 1"),
        ({"map_at": 5, "at": (5, 0)}, "a cutoff of 0 is out of range: give a whole number from 1"),
    ],
)
def test_what_cannot_be_scored_is_refused(changes, words):
    with pytest.raises(UsageError) as caught:
        check_eval(EvalConfig(**changes), LABELLED)
    assert str(caught.value) == words


def test_it_is_refused_before_any_run_is_read(mine, monkeypatch):
    data, out = mine
    monkeypatch.setattr(runs, "find_runs", lambda *_: pytest.fail("a run was read"))
    with pytest.raises(UsageError, match="^ties: unknown order 'lucky'"):
        evaluate(EvalConfig(ties="lucky"), data, out)


def test_the_ends_of_what_can_be_scored_are_not_refused():
    for rule in ("min", "R", "hits", "first"):
        check_eval(EvalConfig(map_at=1, map_at_rule=rule, at=(1,), directions=WAYS, rank="rerank:1"), LABELLED)
    check_eval(EvalConfig(directions=WAYS[:3]), replace(LABELLED, relevance="pairs"))
    for classes, fix in (((), "leave it out: the data set has no labels"), (("dog",), 'use `relevance="labels"`')):
        with pytest.raises(UsageError) as caught:
            check_eval(EvalConfig(directions=WAYS), replace(LABELLED, relevance="pairs", classes=classes))
        what = "i2i needs labels: with relevance pairs each item has one image"
        assert (caught.value.option, caught.value.what, caught.value.fix) == ("directions", what, fix)


@pytest.fixture
def pieces(mine):
    """A data set and its runs of 8 and of 13 bits."""
    data, out = mine
    return data, runs.find_runs(out, "toy", "labels")


def without_captions(data, **changes):
    items = tuple(replace(item, texts={}) for item in data.dataset.items)
    return ExtractedDataset(replace(data.dataset, items=items, **changes), data.folder)


def of_one_way(run, way):
    return replace(run, settings={**run.settings, "direction": way})


def test_nothing_to_score_says_why(pieces, monkeypatch):
    data, found = pieces
    monkeypatch.setattr(module, "_of_run", lambda *_: [])
    monkeypatch.setattr(runs, "current", lambda of, _: of)
    monkeypatch.setattr(module, "refuse_languages", lambda *_: None)
    monkeypatch.setattr(module, "codes_of", lambda *_: None)
    other = "choose other directions, or another data set"
    photos = '`evaluate` with `directions=("i2i",)` scores photos by photos'
    one_way = [of_one_way(run, way) for run, way in zip(found, ("t2i", "i2t"), strict=True)]
    for of, by, what, fix in (
        (data, found, "no item has two captions of a language", other),
        (without_captions(data), found, "no item has a caption", photos),
        (without_captions(data, relevance="pairs"), found, "no item has a caption", other),
        (data, one_way, "the runs were trained for i2t and t2i only", other),
        (data, [one_way[0], found[0]], "no item has two captions of a language", other),
    ):
        with pytest.raises(UsageError) as caught:
            score(EvalConfig(), by, of)
        assert (caught.value.what, caught.value.fix) == (f"nothing to score: {what}", fix)
        assert caught.value.where == data.folder


def test_a_language_that_no_run_has_is_refused_and_another_case_is_not(pieces):
    data, found = pieces
    with pytest.raises(UsageError, match=r"no features for language 'fr' \(there: de, en\)"):
        module.refuse_languages(found, data, ["de", "fr"])
    module.refuse_languages(found, data, ["DE", "en"])
    assert {row["lang"] for row in score(EvalConfig(langs=("DE",)), found, data).rows} == {"de"}


def test_runs_that_do_not_fit_are_named(pieces, monkeypatch):
    data, found = pieces
    monkeypatch.setattr(runs, "current", lambda of, _: of[:1])
    result = score(EvalConfig(map_at=9), found, data)
    assert result.protocol["left out"] == f"{found[1].name}: their heads do not fit the features in the cache"
    assert {row["bits"] for row in result.rows} == {found[0].bits}
    assert result.map_at == 9
    monkeypatch.setattr(runs, "current", lambda of, _: of)
    assert "left out" not in score(EvalConfig(), found, data).protocol


# ---------------------------------------------------------------------------------------------- words


def test_the_table_of_an_evaluation():
    protocol = {"dataset": "toy", "ties": "", "langs": ["de", "en"], "encoders": {"image": "net"}, "query items": 3}
    row = {"method": "cca", "bits": 8, "seed": 0, "lang": None, "direction": "i2i", "chance": 0.25}
    one = {**row, "map": 0.5, "map_seen": 0.625, "map_unseen": None}
    mean = {**row, "lang": "de", "seed": 1, "method": "tie-ap", "mean": 0.75, "seen": None, "unseen": 1.0}
    result = Evaluation(protocol, [one, mean], 5)
    assert str(result).split("\n") == [
        "method  bits  seed  lang  direction    mAP   seen  unseen  chance",
        "   cca     8     0              i2i  0.500  0.625       -   0.250",
        "tie-ap     8     1    de        i2i  0.750      -   1.000   0.250",
        "",
        "dataset: toy",
        "langs: de, en",
        "query items: 3",
        "image: net",
    ]
    assert repr(result) == "Evaluation('toy', 2 rows)"
    assert result.as_json() == {"protocol": protocol, "rows": [one, mean]}
    assert Evaluation(protocol, []).map_at is None


def test_a_row_says_whose_it_is(mine):
    data, out = mine
    config = EvalConfig(bits=(8,), directions=("t2t", "i2i", "i2t"))
    rows = {(row["direction"], row["lang"], row.get("database_lang")): row for row in evaluate(config, data, out).rows}
    run = run_of(out)
    same = {"dataset": "toy", "method": "triplet", "bits": 8, "seed": 0, "relevance": "labels", "run": str(run.folder)}
    same |= {"trained_langs": ["de", "en"], "collapsed": run.outcome.collapsed}
    same |= {"encoders": {"image": "toy", "text-de": "toy", "text-en": "toy"}}
    for (direction, lang, other), row in rows.items():
        assert same.items() <= row.items()
        texts = {"t2t": lang, "i2t": lang, "i2i": None}[direction]
        assert (row["head_lang"], row.get("database_head_lang")) == (texts, other)
        assert not {"trained_direction", "trained_by"} & row.keys()
    assert {("t2t", "de", "en"), ("i2i", None, None), ("i2t", "en", None)} <= rows.keys()


def test_a_row_names_the_relevance_and_the_direction_of_the_training(mine):
    data, out = mine
    train(replace(QUICK, method="tie-ap", relevance="pairs", direction="i2t", epochs=1), data, out)
    config = EvalConfig(trained_by="pairs", relevance="labels", at=(3,), directions=("t2i", "i2t"))
    result = evaluate(config, data, out)
    assert {
        (row["trained_direction"], row["trained_by"], row["relevance"], row["direction"]) for row in result.rows
    } == {("i2t", "pairs", "labels", "i2t")}
    assert {tuple(row["precision_at"]) for row in result.rows} == {("3",)}
    assert evaluate(config, data, out).rows == result.rows


# ---------------------------------------------------------------------------------------------- what is kept


def test_what_was_asked_is_kept_with_the_figures(mine):
    data, out = mine
    run = run_of(out)
    (run.folder / runs.METRICS).unlink(missing_ok=True)
    usual = {"ties": "expected", "map_at": None, "map_at_rule": "min", "at": list(CUTS["labels"])}
    asked = [
        (EvalConfig(bits=(8,)), usual),
        (EvalConfig(bits=(8,), at=(2, 3), **SOME), {**SOME, "at": [2, 3]}),
        (EvalConfig(bits=(8,), rank="rerank:30"), {**usual, saved_scores.RANK: "rerank:30"}),
        (
            EvalConfig(bits=(8,), trained_by="labels", relevance="pairs"),
            {**usual, "at": list(CUTS["pairs"]), saved_scores.RELEVANCE: "pairs"},
        ),
    ]
    for config, wanted in asked:
        before = {path.name for path in run.folder.iterdir()}
        evaluate(config, data, out)
        entry = saved_scores.read_json(run.folder / runs.METRICS, "")["scores"][-1]
        assert entry["asked"] == wanted
        assert len(entry["rows"]) == 4
        assert before <= {path.name for path in run.folder.iterdir()}
    codes = codes_of(run, data)
    kept = saved_scores.kept(run, saved_scores.scored(codes, data.dataset), usual)
    assert set(kept) == {(way, lang, None) for way in ("i2t", "t2i") for lang in ("de", "en")}


def test_relevance_between_the_same_items_is_computed_once(pieces, monkeypatch):
    data, found = pieces
    codes, known, count = codes_of(found[0], data), {}, []
    real = Sides.relevance
    monkeypatch.setattr(Sides, "relevance", lambda both, dataset: (count.append(both.key), real(both, dataset))[1])
    wanted = searches(data.dataset, codes, ("i2t", "t2i"))
    values: dict[str, per_query.Values] = {}
    kind = np.zeros(len(data.dataset.items), np.uint8)
    for search in wanted:
        module._score(EvalConfig(), data.dataset, codes, search, known, kind, values)
    assert len(wanted) == len(values) == 4
    assert list(known) == count
    assert len(count) == 1
    assert set(values) == {per_query.name_of(search) for search in wanted}
