"""Figures by seen and unseen database items, against plain loops over the two sub-databases."""

import json
from dataclasses import replace

import numpy as np
import pytest
from slow_scores import QUICK, embed, expected_ap, first_captions, hamming, mean, related, run_of

from cmrhash.config import EvalConfig
from cmrhash.evaluation.evaluate import evaluate
from cmrhash.evaluation.run_codes import codes_of
from cmrhash.evaluation.seen import trained_items
from cmrhash.retrieval.ranking import asymmetric_scores
from cmrhash.training import runs
from cmrhash.training.train import train


def unlabelled(item):
    """Some train, val and query items lose their labels."""
    return replace(item, labels=()) if item.id in ("i2", "i3", "i7", "i12") else item


@pytest.fixture(scope="module")
def made(make_cache, tmp_path_factory):
    """Items without labels, without captions, and without a photo, and a run that also trains on incomplete items."""

    def change(item):
        lacks = {"i4": {"texts": {}}, "i8": {"texts": {}}, "i9": {"image": None}, "i10": {"image": None}}
        return replace(unlabelled(item), **lacks.get(item.id, {}))

    base = tmp_path_factory.mktemp("seen")
    data = make_cache(base / "cache", change=change)
    run, _ = train(QUICK, data, base / "runs")
    return data, base / "runs", run


def names_of(row):
    text = f"text-{row['lang']}"
    found = f"text-{row.get('database_lang')}"
    return {"i2t": ("image", text), "t2i": (text, "image"), "t2t": (text, found), "i2i": ("image", "image")}[
        row["direction"]
    ]


def slow(run, data, row, wanted, distance=hamming):
    """Mean AP and share of relevant items, with no other database items than the wanted ones."""
    names = names_of(row)
    asks, sought = (first_captions(embed(run, data.folder, name)) for name in names)
    items = data.dataset.items
    aps, shares = [], []
    for a, q in asks:
        if "query" not in items[a].splits:
            continue
        ranking = [
            (distance(q, d), related(data.dataset, a, b))
            for b, d in sought
            if b in wanted and "database" in items[b].splits and not (a == b and names[0] == names[1])
        ]
        aps.append(expected_ap(ranking))
        shares.append(None if aps[-1] is None else sum(hit for _, hit in ranking) / len(ranking))
    return mean(aps), mean(shares)


def asymmetric(q, d):
    packed = np.packbits((d >= 0).astype(np.uint8), bitorder="little")[None]
    return -asymmetric_scores(q[None], packed)[0, 0]


def sides_of(data):
    """The seen and the unseen items, by their roles alone."""
    labelled = [n for n, item in enumerate(data.dataset.items) if item.labels]
    seen = {n for n in labelled if "train" in data.dataset.items[n].splits}
    return {"seen": seen, "unseen": set(labelled) - seen}


@pytest.mark.parametrize("rank", ["hamming", "asymmetric"])
def test_the_figures_equal_those_over_the_sub_databases(made, rank):
    data, out, run = made
    assert run.record["partial"]
    config = EvalConfig(rank=rank, directions=("i2t", "t2i", "t2t", "i2i"))
    rows = evaluate(config, data, out).rows
    assert len(rows) == 9
    for row in rows:
        for side, items in sides_of(data).items():
            ap, chance = slow(run, data, row, items, hamming if rank == "hamming" else asymmetric)
            assert row[f"map_{side}"] == pytest.approx(ap, abs=1e-9)
            assert row[f"chance_{side}"] == pytest.approx(chance, abs=1e-9)
            sought = {item for item, _ in embed(run, data.folder, names_of(row)[1])}
            searched = {n for n in sought & items if "database" in data.dataset.items[n].splits}
            assert row[f"items_{side}"] == len(searched)
        assert row["items_seen"] + row["items_unseen"] < row["database"]
        assert row["map_seen"] != row["map_unseen"]


def test_queries_in_the_database_leave_themselves_out_and_are_unseen(make_cache, tmp_path):
    data = make_cache(tmp_path, change=lambda i: replace(i, splits=i.splits | {"database"}))
    run, _ = train(QUICK, data, tmp_path / "runs")
    for row in evaluate(EvalConfig(directions=("t2t", "i2i")), data, tmp_path / "runs").rows:
        assert (row["items_seen"], row["items_unseen"]) == (80, 40)
        for side, items in sides_of(data).items():
            assert row[f"map_{side}"] == pytest.approx(slow(run, data, row, items)[0], abs=1e-9)


@pytest.mark.parametrize("options", [{"map_at": 5, "map_at_rule": "hits"}, {"ties": "optimistic"}, {"rank": "rerank"}])
def test_database_of_one_kind_has_the_figure_of_the_whole(make_cache, tmp_path, options):
    def change(item):
        return replace(item, splits=item.splits - {"database"} if "val" in item.splits else item.splits)

    data = make_cache(tmp_path, change=change)
    train(QUICK, data, tmp_path / "runs")
    result = evaluate(EvalConfig(**options), data, tmp_path / "runs")
    for row in result.rows:
        assert (row["map_seen"], row["chance_seen"]) == (row["map"], row["chance"])
        assert (row["map_unseen"], row["items_unseen"], row["chance_unseen"]) == (None, 0, None)
        assert row["map_unseen_missing"] == "no database item is unseen"
        assert "map_seen_missing" not in row
    assert result.protocol["seen"].startswith("80 train items; unseen: 0 items")
    json.dumps(result.as_json(), allow_nan=False)


def test_unseen_database(make_cache, tmp_path):
    def change(item):
        return replace(
            item, splits=frozenset({"query", "database"} if "query" in item.splits else item.splits - {"database"})
        )

    data = make_cache(tmp_path, change=change)
    train(QUICK, data, tmp_path / "runs")
    result = evaluate(EvalConfig(), data, tmp_path / "runs")
    for row in result.rows:
        assert (row["map_seen"], row["map_unseen"]) == (None, row["map"])
        assert row["map_seen_missing"] == "no database item is seen"
    assert result.protocol["seen"].startswith("no database item was trained on; unseen: 20 items")


def test_by_pairs_no_seen_item_is_relevant(paired):
    out, data, _ = paired
    result = evaluate(EvalConfig(relevance="pairs"), data, out)
    for row in result.rows:
        assert row["map_seen"] is None
        assert row["map_unseen"] == row["map"]
    assert "by pairs" in result.protocol["seen"]


def test_added_items_are_unseen_and_removed_ones_leave_the_counts(scored, mine):
    data, out = mine
    items = [replace(item, id=f"new {item.id}") if item.id in ("i2", "i3") else item for item in data.dataset.items]
    grown = replace(data.dataset, items=tuple(items))
    views = codes_of(run_of(out), data)
    before, after = trained_items(data.dataset, views), trained_items(grown, views)
    assert before.sum() == 80
    assert np.flatnonzero(before & ~after).tolist() == [2, 3]
    assert not (after & ~before).any()


def test_applied_runs_saw_nothing(mine):
    data, out = mine
    views = codes_of(run_of(out), data)
    views.run = replace(views.run, record={**views.run.record, runs.EXPORT: "elsewhere"})
    assert not trained_items(data.dataset, views).any()


def test_runs_without_a_record_of_their_items_are_taken_at_splits_labels_and_codes(made, tmp_path):
    data, _, run = made
    views = codes_of(run, data)
    recorded = trained_items(data.dataset, views)
    assert set(np.flatnonzero(recorded)) == sides_of(data)["seen"]
    for lacks in (("trained",), ("trained", "files")):
        record = {key: value for key, value in run.record.items() if key not in lacks}
        files = {name: of for name, of in run.files.items() if "files" not in lacks or name != runs.DIGESTS}
        views.run = replace(run, record=record, files=files)
        assert trained_items(data.dataset, views).tolist() == recorded.tolist()
    views.run = replace(
        run, record={key: value for key, value in run.record.items() if key not in ("trained", "partial")}
    )
    without = recorded & ~trained_items(data.dataset, views)
    assert [data.dataset.items[n].id for n in np.flatnonzero(without)] == ["i4", "i8", "i9", "i10"]


def test_scores_of_an_earlier_version_are_scored_again(mine, scored):
    data, out = mine
    path = run_of(out).folder / runs.METRICS
    saved = json.loads(path.read_text())
    for entry in saved["scores"]:
        entry["rows"] = [{key: value for key, value in row.items() if "seen" not in key} for row in entry["rows"]]
    path.write_text(json.dumps(saved))
    rows = evaluate(EvalConfig(bits=(8,)), data, out).rows
    expected = [row for row in scored[2].rows if row["bits"] == 8]
    assert [row["map_unseen"] for row in rows] == [row["map_unseen"] for row in expected]
    assert "map_unseen" in path.read_text()


def test_trained_items_are_found_by_their_ids(scored):
    base, data, _ = scored
    views = codes_of(run_of(base / "runs"), data)
    order = np.random.default_rng(0).permutation(len(data.dataset.items))
    shuffled = replace(data.dataset, items=tuple(data.dataset.items[at] for at in order))
    assert trained_items(shuffled, views).tolist() == trained_items(data.dataset, views)[order].tolist()


def test_the_text_shows_both_kinds(scored):
    text = str(scored[2])
    assert "unseen" in text.splitlines()[0]
    row = scored[2].rows[0]
    assert f"{row['map_unseen']:.3f}" in text.splitlines()[1]
