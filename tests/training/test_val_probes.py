"""Validation searches where the database of the queries holds no train item, against plain loops."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from quick_training import QUICK, history

from cmrhash.config import EvalConfig
from cmrhash.data.view import View
from cmrhash.evaluation.evaluate import evaluate
from cmrhash.evaluation.run_codes import load_heads
from cmrhash.features.file import read_features
from cmrhash.retrieval import metrics
from cmrhash.training import runs, task, train
from cmrhash.training.checkpoint import TrainingState
from cmrhash.training.task import val_probes


def of_queries_only(item):
    """Queries search the queries alone, as in Pascal Sentence."""
    own = frozenset({"query", "database"}) if "query" in item.splits else item.splits - {"database"}
    return replace(item, splits=own)


def slow_val_map(run, data, direction, lang="de"):
    """Tie-aware mAP of the val items, each against all others of them, pair by pair."""
    items, trained = data.dataset.items, load_heads(run)
    val = [n for n, item in enumerate(items) if "val" in item.splits]
    code = {}
    for view in ("image", f"text-{lang}"):
        features = read_features(data.folder / f"{view}-toy.h5")
        first = {}
        for item, x in zip(features.item.tolist(), features.x, strict=True):
            first.setdefault(item, trained[view].embed(torch.from_numpy(x)[None])[0].numpy() >= 0)
        code[view] = first
    asks, lies = ("image", f"text-{lang}") if direction == "i2t" else (f"text-{lang}", "image")
    aps = []
    for a in val:
        found = [
            (int((code[asks][a] != code[lies][b]).sum()), bool(set(items[a].labels) & set(items[b].labels)))
            for b in val
            if b != a
        ]
        counts = np.array([[[d == at, d == at and hit] for at in range(run.bits + 1)] for d, hit in found]).sum(axis=0)
        aps.append(metrics.average_precision(counts[None, :, 0], counts[None, :, 1])[0])
    return np.nanmean(aps)


def test_val_items_search_the_other_val_items(make_cache, tmp_path):
    data = make_cache(tmp_path / "cache", change=of_queries_only)
    run, _ = train.train(replace(QUICK, epochs=3), data, tmp_path / "runs")
    assert run.outcome.chosen_on == runs.WITHIN_VAL
    for direction in ("i2t", "t2i"):
        assert run.outcome.val_map["de"][direction] == pytest.approx(slow_val_map(run, data, direction), abs=1e-9)
    result = evaluate(EvalConfig(), data, tmp_path / "runs")
    assert "val items searched the other val items" in result.protocol["epoch"]


def test_val_items_that_share_no_label_search_the_train_items(make_cache, tmp_path):
    def change(item):
        item = of_queries_only(item)
        number = int(item.id[1:])
        spare = "val" in item.splits and number > 25  # the others have labels 1, 2, 3, 4, 0
        return replace(item, splits=frozenset({"train"})) if spare else replace(item, labels=(number % 5,))

    data = make_cache(tmp_path / "cache", change=change)
    run, _ = train.train(replace(QUICK, epochs=2), data, tmp_path / "runs")
    assert run.outcome.chosen_on == runs.VAL
    assert run.outcome.val_map_mean > 0


@pytest.mark.parametrize("at_most", [None, 7])
@pytest.mark.parametrize("also_query", [False, True])
def test_val_items_search_the_database_without_themselves_and_the_query_items(
    make_cache, tmp_path, at_most, also_query
):
    def change(item):
        return replace(item, splits=item.splits | {"database"}) if also_query else item

    data = make_cache(tmp_path / "cache", change=change)
    assert all("database" in item.splits for item in data.dataset.items if "val" in item.splits)
    rows = {view: read_features(data.folder / f"{view}-toy.h5").item for view in ("image", "text-en", "text-de")}
    probes = val_probes(data.dataset, ["de", "en"], {View(name): item for name, item in rows.items()}, at_most)
    roles = [item.splits for item in data.dataset.items]
    val = [n for n, own in enumerate(roles) if "val" in own]
    searched = [n for n, own in enumerate(roles) if "database" in own and not own & {"val", "query"}]
    few = at_most or len(roles)
    wanted = [
        [items[n * len(items) // few] for n in range(few)] if few < len(items) else items for items in (val, searched)
    ]
    for by_direction in probes.values():
        for probe in by_direction.values():
            found = [
                rows[str(view)][at] for view, at in ((probe.source, probe.queries), (probe.sought, probe.database))
            ]
            assert [items.tolist() for items in found] == wanted


@pytest.mark.parametrize("kind", ["train items in the database", "other items in the database", "pairs"])
def test_other_data_sets_are_judged_as_before(make_cache, tmp_path, kind):
    def change(item):
        if kind == "train items in the database":
            return item
        gallery = kind == "other items in the database" and int(item.id[1:]) % 6 == 5
        return replace(item, splits=frozenset({"database"})) if gallery else of_queries_only(item)

    data = make_cache(tmp_path / "cache", change=change)
    relevance = "pairs" if kind == "pairs" else None
    run, _ = train.train(replace(QUICK, epochs=2, relevance=relevance), data, tmp_path / "runs")
    assert run.outcome.chosen_on == runs.VAL
    assert all(entry["chosen_on"] == runs.VAL for entry in history(run))


def test_resumed_training_that_another_search_judged_forgets_those_scores():
    heads = torch.nn.ModuleDict({"image": torch.nn.Linear(2, 2)})
    state = TrainingState(heads, torch.nn.ModuleDict(), torch.optim.AdamW(heads.parameters()))
    state.finish_epoch({"val_map": {}, "val_map_mean": 0.9, "skipped": 0})  # by an earlier version
    for score in (0.3, 0.4, 0.2):
        state.finish_epoch({"val_map": {}, "val_map_mean": score, "chosen_on": runs.WITHIN_VAL, "skipped": 0})
    assert (state.result()["best_epoch"], state.result()["chosen_on"]) == (2, runs.WITHIN_VAL)
    state = TrainingState(heads, torch.nn.ModuleDict(), torch.optim.AdamW(heads.parameters()))
    state.finish_epoch({"val_map": {}, "val_map_mean": 0.9, "skipped": 0})
    state.finish_epoch({"val_map": {}, "val_map_mean": 0.3, "chosen_on": runs.VAL, "skipped": 0})
    assert (state.result()["best_epoch"], state.result()["chosen_on"]) == (0, runs.VAL)


def test_a_large_database_is_searched_whole_by_fewer_val_items(extracted, monkeypatch):
    rows = {
        View.IMAGE: extracted.features(View.IMAGE).items,
        View.text("de"): extracted.features(View.text("de")).items,
    }
    full = task.val_probes(extracted.dataset, ["de"], rows)["de"]["i2t"]
    monkeypatch.setattr(task, "MOST_PAIRS", 3 * len(full.database))
    monkeypatch.setattr(task, "FEWEST", 2)
    fewer = task.val_probes(extracted.dataset, ["de"], rows)["de"]["i2t"]
    assert (len(full.queries) > 3, len(fewer.queries)) == (True, 3)
    assert fewer.database.tolist() == full.database.tolist()
    monkeypatch.setattr(task, "FEWEST", 4)
    assert len(task.val_probes(extracted.dataset, ["de"], rows)["de"]["i2t"].queries) == 4
