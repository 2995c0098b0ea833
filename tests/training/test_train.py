"""Training on made-up features: it learns, and it says what it learned on."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from quick_training import QUICK, heads, history

from cmrhash.compute.device import threads_for
from cmrhash.errors import DataError, UsageError
from cmrhash.evaluation.run_codes import load_heads
from cmrhash.features.dataset import ExtractedDataset
from cmrhash.features.file import read_features
from cmrhash.retrieval import metrics
from cmrhash.training import kernel_codes, runs, schedule, train
from cmrhash.training.methods import METHODS
from cmrhash.training.recipe import batch_size

# ---------------------------------------------------------------------------------------------- it learns


def test_training_lifts_val_map_over_untrained_heads(extracted, finished, tmp_path):
    untrained, _ = train.train(replace(QUICK, epochs=1, lr=1e-9), extracted, tmp_path)
    before = untrained.outcome.val_map_mean
    assert before < 0.45
    assert finished.outcome.val_map_mean > before + 0.2
    assert finished.outcome.val_map_mean == max(entry["val_map_mean"] for entry in history(finished))
    assert not finished.outcome.collapsed


def test_the_history_has_a_line_an_epoch(finished):
    lines = history(finished)
    assert [line["epoch"] for line in lines] == list(range(QUICK.epochs))
    for line in lines:
        assert set(line["terms"]) == {"i2i", "i2t.de", "t2i.de", "t2t.de", "i2t.en", "t2i.en", "t2t.en"}
        assert set(line["val_map"]) == {"de", "en"}
        assert line["valid_triplets"] > 0
        assert 0 < line["active_share"] <= 1
        assert line["skipped"] == 0


@pytest.mark.parametrize("bits", [1, 5, 100])
def test_any_code_length_and_a_linear_head(extracted, tmp_path, bits):
    run, _ = train.train(replace(QUICK, bits=bits, hidden=0, epochs=2), extracted, tmp_path)
    assert run.bits == bits
    assert 0 < run.outcome.val_map_mean <= 1


def test_a_single_language_leaves_the_other_out(extracted, tmp_path):
    run, _ = train.train(replace(QUICK, langs=("de",), epochs=1), extracted, tmp_path)
    assert run.langs == ("de",)
    assert set(run.features) == {"image", "text-de"}


def test_relevance_by_pairs_trains_without_labels(make_cache, tmp_path):
    made = make_cache(tmp_path / "cache", change=lambda item: replace(item, labels=()), relevance="pairs")
    run, _ = train.train(replace(QUICK, epochs=2), made, tmp_path / "runs")
    assert run.train_items == 80
    assert run.folder.name == "triplet-16"
    with pytest.raises(UsageError, match="has no labels"):
        train.train(replace(QUICK, relevance="labels"), made, tmp_path / "runs")


def test_runs_of_other_settings_live_side_by_side(extracted, finished, tmp_path):
    quick = replace(QUICK, epochs=1)
    names = {
        "triplet-16": [quick, replace(quick, langs=("en", "de")), replace(quick, relevance="labels")],
        "triplet-16-en": [replace(quick, langs=("en",))],
        "triplet-16-en-pairs-seed2": [replace(quick, langs=("en",), relevance="pairs", seed=2)],
        "triplet-16-pairs": [replace(quick, relevance="pairs")],
    }
    for name, configs in names.items():
        made = [train.train(config, extracted, tmp_path) for config in configs]
        assert [run.folder.name for run, _ in made] == [name] * len(configs)
        assert [fresh for _, fresh in made] == [True] + [False] * (len(configs) - 1)
    assert runs.folder_of(tmp_path, "toy", "cca", 8, 0, ("de", "en")).name == "cca-8-de+en"


def test_by_pairs_all_train_items_are_used_and_val_items_are_sought_by_all_captions(make_cache, tmp_path):
    """A slow twin of the val score: every val caption by plain loops over the val items."""
    made = make_cache(tmp_path, change=lambda i: replace(i, labels=()) if int(i.id[1:]) % 3 == 0 else i)
    run, _ = train.train(replace(QUICK, epochs=2, relevance="pairs"), made, tmp_path / "runs")
    data = made
    assert run.train_items == 80
    assert run.record["relevance"] == "pairs"
    heads = load_heads(run)
    val = {row for row, item in enumerate(data.dataset.items) if "val" in item.splits}
    code = {}
    for view in ("image", "text-de"):
        features = read_features(data.folder / f"{view}-toy.h5")
        rows = [(int(item), x) for item, x in zip(features.item, features.x, strict=True) if int(item) in val]
        code[view] = [(item, heads[view].embed(torch.from_numpy(x)[None])[0].numpy() >= 0) for item, x in rows]
    assert (len(code["image"]), len(code["text-de"])) == (20, 40)
    for direction, (asks, lies) in {"i2t": ("image", "text-de"), "t2i": ("text-de", "image")}.items():
        aps = []
        for item, q in code[asks]:
            found = [(int((q != d).sum()), other == item) for other, d in code[lies]]
            items = np.array([[sum(d == at for d, _ in found) for at in range(17)]])
            hits = np.array([[sum(d == at and hit for d, hit in found) for at in range(17)]])
            aps.append(metrics.average_precision(items, hits)[0])
        assert run.outcome.val_map["de"][direction] == pytest.approx(np.mean(aps))


def test_a_method_that_learns_from_labels_is_refused_before_anything_is_written(make_cache, tmp_path):
    made = make_cache(tmp_path / "cache", change=lambda item: replace(item, labels=()), relevance="pairs")
    with pytest.raises(UsageError, match="method 'acmr' needs labels, but relevance is pairs: choose ") as caught:
        train.train(replace(QUICK, method="acmr"), made, tmp_path / "runs")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "runs").exists()


def test_corrnet_needs_pairs_only(make_cache, tmp_path):
    made = make_cache(tmp_path / "cache", change=lambda item: replace(item, labels=()), relevance="pairs")
    run, _ = train.train(replace(QUICK, method="corrnet"), made, tmp_path / "runs")
    untrained, _ = train.train(replace(QUICK, method="corrnet", epochs=1, lr=1e-9), made, tmp_path / "before")
    assert run.outcome.val_map_mean > untrained.outcome.val_map_mean + 0.1


def test_without_val_items_the_last_epoch_is_taken_and_told(make_cache, tmp_path):
    made = make_cache(tmp_path, change=lambda item: replace(item, splits=item.splits - {"val"}))
    run, _ = train.train(replace(QUICK, epochs=2), made, tmp_path / "runs")
    assert run.outcome.best_epoch == 1
    assert run.outcome.chosen_on != "val"


# ---------------------------------------------------------------------------------------------- bad losses, bad data


@pytest.mark.slow
@pytest.mark.parametrize("method", [name for name in METHODS if not METHODS[name].rotate])  # the toy has two spaces
def test_every_method_learns(method, extracted, tmp_path):
    quick = replace(QUICK, bits=8 if METHODS[method].fit else 16, epochs=8)  # the toy's captions have 12 features
    if method == "triplet-hard":
        quick = replace(quick, batch=4)  # the fewer there are to choose from, the less hard
    untrained, _ = train.train(replace(quick, epochs=1, lr=1e-9), extracted, tmp_path / "before")
    run, _ = train.train(replace(quick, method=method), extracted, tmp_path)
    assert run.outcome.val_map_mean > untrained.outcome.val_map_mean + 0.1
    assert run.source == METHODS[method].source
    line = history(run)[-1]
    if METHODS[method].fit:
        assert [line["ridge"] for line in history(run)] == list(train.RIDGES)
        return
    assert line["loss"] == pytest.approx(sum(line["terms"].values()))


def test_items_that_lack_a_part_are_left_out_of_training(make_cache, tmp_path):
    def change(item):
        return {
            "i2": replace(item, texts={"en": item.texts["en"]}),
            "i3": replace(item, labels=()),
            "i4": replace(item, image=None),
        }.get(item.id, item)

    run, _ = train.train(replace(QUICK, epochs=1), make_cache(tmp_path, change=change), tmp_path / "runs")
    assert run.train_items == 80 - 3
    english = replace(QUICK, epochs=1, langs=("en",))
    run, _ = train.train(english, ExtractedDataset.open(tmp_path, "toy"), tmp_path / "english")
    assert run.train_items == 80 - 2  # there nothing asks for a German caption


def test_nothing_to_train_on_is_a_data_error(make_cache, tmp_path):
    made = make_cache(tmp_path, change=lambda item: replace(item, splits=item.splits - {"train"}))
    with pytest.raises(DataError, match="0 items to train on: .*: give items the split 'train'"):
        train.train(QUICK, made, tmp_path / "runs")


def test_what_the_train_items_lack_is_told(make_cache, tmp_path):
    def change(item):
        text = {} if "train" in item.splits else {"en": item.texts["en"]}
        return replace(item, texts={"de": item.texts["de"]} | text, labels=item.labels if item.id > "i5" else ())

    made = make_cache(tmp_path, change=change)
    with pytest.raises(DataError, match=r"0 items .*\(of 80 train items 80 have no usable text-en, \d+ .*label\)"):
        train.train(QUICK, made, tmp_path / "runs")
    items = tuple(replace(item, splits=frozenset({"database"})) for item in made.dataset.items)
    drawn = replace(made.dataset, items=items, split_seed=0)  # as of one without a complete item
    with pytest.raises(DataError, match=r"0 items to train on \(of 120 items 80 have no usable text-en, "):
        train.train(QUICK, ExtractedDataset(drawn, made.folder), tmp_path / "runs")


def test_query_items_never_touch_training(make_cache, finished, tmp_path):
    run, _ = train.train(QUICK, make_cache(tmp_path, shift="query"), tmp_path / "runs")
    assert run.features["image"].sha256 != finished.features["image"].sha256
    assert heads(run) == heads(finished)
    assert history(run) == history(finished)
    other, _ = train.train(QUICK, make_cache(tmp_path, shift="train"), tmp_path / "others")
    assert heads(other) != heads(finished)  # the test would see it


def test_neither_do_they_where_they_are_their_own_database(make_cache, tmp_path):
    def as_on_pascal(item):
        return replace(
            item, splits=item.splits | {"database"} if "query" in item.splits else item.splits - {"database"}
        )

    one, two = (
        train.train(QUICK, make_cache(tmp_path / str(shift), change=as_on_pascal, shift=shift), tmp_path / str(shift))
        for shift in (None, "query")
    )
    assert heads(one[0]) == heads(two[0])
    assert history(one[0]) == history(two[0])
    assert history(one[0])[-1]["val_map"] is not None


# ---------------------------------------------------------------------------------------------- small parts


@pytest.mark.parametrize("steps", [4, 5, 7, 10, 60, 333])
def test_one_cycle_is_that_of_torch(steps):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1)
    torchs = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps, cycle_momentum=False)
    for step in range(steps):
        assert schedule.one_cycle(step, steps, 2e-3) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9)
        optimizer.step()
        if step + 1 < steps:
            torchs.step()


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_one_cycle_of_few_steps_is_finite(steps):
    assert all(0 < schedule.one_cycle(step, steps, 1.0) <= 1 for step in range(steps))


@pytest.mark.parametrize(
    ("wanted", "items", "size"),
    [(512, 10_000, 512), (512, 2048, 512), (512, 2047, 256), (512, 80, 16), (16, 80, 16), (512, 3, 2), (3, 100, 3)],
)
def test_the_batch_is_halved_until_a_pass_has_four_steps(wanted, items, size):
    assert batch_size(wanted, items) == size


@pytest.mark.parametrize(("batch", "threads"), [(16, 1), (kernel_codes.BATCH, 1), (512, 2)])
def test_small_batches_take_one_thread_and_leave_the_others_as_they_were(batch, threads, monkeypatch):
    before, asked = torch.get_num_threads(), []
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    with threads_for(torch.device("cpu"), batch):
        assert (asked or [2])[-1] == threads
    assert asked[-1] == 2
    monkeypatch.undo()
    assert torch.get_num_threads() == before


def test_each_side_has_its_rate_and_the_schedule_its_form():
    heads = torch.nn.ModuleDict({name: torch.nn.Linear(1, 1) for name in ("image", "text-de", "text-en")})
    config = replace(QUICK, lr=0.1, image_lr=0.05, text_lr=0)
    groups = schedule.groups_of(config, heads, torch.nn.ModuleDict())
    schedule.set_rates(config, groups, 3, 10, 0.1)
    assert [group["lr"] for group in groups] == pytest.approx(
        [r * schedule.one_cycle(3, 10, 0.1) for r in (0.5, 0, 0, 1)]
    )
    schedule.set_rates(replace(config, schedule="constant"), groups, 3, 10, 0.1)
    assert [group["lr"] for group in groups] == pytest.approx([0.05, 0, 0, 0.1])


def test_a_side_without_a_rate_keeps_its_first_weights(extracted, tmp_path):
    first, _ = train.train(replace(QUICK, text_lr=0, epochs=1), extracted, tmp_path / "a")
    later, _ = train.train(replace(QUICK, text_lr=0, epochs=2), extracted, tmp_path / "b")
    (a, b) = (load_heads(run) for run in (first, later))
    for name, same in (("image", False), ("text-de", True), ("text-en", True)):
        assert torch.equal(a[name].layers[-1].weight, b[name].layers[-1].weight) == same
