"""Training on made-up features: it learns, it is the same every time, and it goes on to the same bytes."""

import json
import os
from dataclasses import replace

import numpy as np
import pytest
import safetensors.torch
import torch

from cmrhash.compute.device import threads_for
from cmrhash.config import TrainConfig
from cmrhash.data import manifest
from cmrhash.errors import CmrhashError, DamagedError, DataError, LockedError, StaleError, UsageError
from cmrhash.evaluation.run_codes import load_heads
from cmrhash.features.file import read_features
from cmrhash.retrieval import metrics
from cmrhash.storage.files import locked
from cmrhash.training import runs, train
from cmrhash.training.methods import METHODS, Method, Terms

QUICK = TrainConfig(bits=16, epochs=4, batch=16, lr=0.02, hidden=16, dropout=0.1, input_dropout=0.1, device="cpu")
CHECKPOINT = "checkpoint.json"


@pytest.fixture(scope="module")
def extracted(make_cache, tmp_path_factory):
    return make_cache(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def finished(extracted, tmp_path_factory):
    """The quick training, whole; tests that change it use a folder of their own."""
    run, fresh = train.train(QUICK, *extracted, tmp_path_factory.mktemp("runs"))
    assert fresh
    return run


def heads(run):
    return (run.folder / runs.HEADS).read_bytes()


def history(run):
    return [json.loads(line) for line in (run.folder / runs.HISTORY).read_text().splitlines()]


def use(monkeypatch, terms):
    """Let the default method compute these terms."""
    monkeypatch.setitem(METHODS, "triplet", Method(terms, METHODS["triplet"].source))


# ---------------------------------------------------------------------------------------------- it learns


def test_training_lifts_val_map_over_untrained_heads(extracted, finished, tmp_path):
    untrained, _ = train.train(replace(QUICK, epochs=1, lr=1e-9), *extracted, tmp_path)
    before = untrained.config["val_map_mean"]
    assert before < 0.45
    assert finished.config["val_map_mean"] > before + 0.2
    assert finished.config["val_map_mean"] == max(entry["val_map_mean"] for entry in history(finished))
    assert not finished.config["collapsed"]


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
    run, _ = train.train(replace(QUICK, bits=bits, hidden=0, epochs=2), *extracted, tmp_path)
    assert run.bits == bits
    assert 0 < run.config["val_map_mean"] <= 1


def test_a_single_language_leaves_the_other_out(extracted, tmp_path):
    run, _ = train.train(replace(QUICK, langs=("de",), epochs=1), *extracted, tmp_path)
    assert run.langs == ("de",)
    assert set(run.config["features"]) == {"image", "text-de"}


def test_relevance_by_pairs_trains_without_labels(make_cache, tmp_path):
    made = make_cache(tmp_path / "cache", change=lambda item: replace(item, labels=()), relevance="pairs")
    run, _ = train.train(replace(QUICK, epochs=2), *made, tmp_path / "runs")
    assert run.config["train_items"] == 80
    assert run.folder.name == "triplet-16"
    with pytest.raises(UsageError, match="has no labels"):
        train.train(replace(QUICK, relevance="labels"), *made, tmp_path / "runs")


def test_runs_of_other_settings_live_side_by_side(extracted, finished, tmp_path):
    quick = replace(QUICK, epochs=1)
    names = {
        "triplet-16": [quick, replace(quick, langs=("en", "de")), replace(quick, relevance="labels")],
        "triplet-16-en": [replace(quick, langs=("en",))],
        "triplet-16-en-pairs-seed2": [replace(quick, langs=("en",), relevance="pairs", seed=2)],
        "triplet-16-pairs": [replace(quick, relevance="pairs")],
    }
    for name, configs in names.items():
        made = [train.train(config, *extracted, tmp_path) for config in configs]
        assert [run.folder.name for run, _ in made] == [name] * len(configs)
        assert [fresh for _, fresh in made] == [True] + [False] * (len(configs) - 1)
    assert runs.folder_of(tmp_path, "toy", "cca", 8, 0, ("de", "en")).name == "cca-8-de+en"


def test_by_pairs_all_train_items_are_used_and_val_items_are_sought_by_all_captions(make_cache, tmp_path):
    """A slow twin of the val score: every val caption by plain loops over the val items."""
    made = make_cache(tmp_path, change=lambda i: replace(i, labels=()) if int(i.id[1:]) % 3 == 0 else i)
    run, _ = train.train(replace(QUICK, epochs=2, relevance="pairs"), *made, tmp_path / "runs")
    dataset, folder = made
    assert run.config["train_items"] == 80
    assert run.config["relevance"] == "pairs"
    heads = load_heads(run)
    val = {row for row, item in enumerate(dataset.items) if "val" in item.splits}
    code = {}
    for view in ("image", "text-de"):
        features = read_features(folder / f"{view}-toy.h5")
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
        assert run.config["val_map"]["de"][direction] == pytest.approx(np.mean(aps))


def test_a_method_that_learns_from_labels_is_refused_before_anything_is_written(make_cache, tmp_path):
    made = make_cache(tmp_path / "cache", change=lambda item: replace(item, labels=()), relevance="pairs")
    with pytest.raises(UsageError, match="method 'acmr' learns from labels, relevance is by pairs: choose ") as caught:
        train.train(replace(QUICK, method="acmr"), *made, tmp_path / "runs")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "runs").exists()


def test_corrnet_needs_pairs_only(make_cache, tmp_path):
    made = make_cache(tmp_path / "cache", change=lambda item: replace(item, labels=()), relevance="pairs")
    run, _ = train.train(replace(QUICK, method="corrnet"), *made, tmp_path / "runs")
    untrained, _ = train.train(replace(QUICK, method="corrnet", epochs=1, lr=1e-9), *made, tmp_path / "before")
    assert run.config["val_map_mean"] > untrained.config["val_map_mean"] + 0.1


def test_without_val_items_the_last_epoch_is_taken_and_told(make_cache, tmp_path):
    made = make_cache(tmp_path, change=lambda item: replace(item, splits=item.splits - {"val"}))
    run, _ = train.train(replace(QUICK, epochs=2), *made, tmp_path / "runs")
    assert run.config["best_epoch"] == 1
    assert run.config["chosen_on"] != "val"


# ---------------------------------------------------------------------------------------------- the same every time


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(extracted, finished, tmp_path):
    torch.rand(3)  # whatever the caller drew before
    again, _ = train.train(QUICK, *extracted, tmp_path)
    assert heads(again) == heads(finished)
    other, _ = train.train(replace(QUICK, seed=1), *extracted, tmp_path)
    assert other.folder.name == "triplet-16-seed1"
    assert heads(other) != heads(finished)


def test_the_callers_random_numbers_stay_as_they_were(extracted, tmp_path):
    torch.manual_seed(5)
    expected = torch.rand(4)
    torch.manual_seed(5)
    train.train(replace(QUICK, epochs=1), *extracted, tmp_path)
    assert torch.equal(torch.rand(4), expected)


def stop_after(epoch, error):
    def progress(what, done, total, note):
        if done == epoch:
            raise error

    return progress


@pytest.mark.parametrize(
    ("error", "seconds"),
    [(KeyboardInterrupt, 1e9), (RuntimeError, 0)],  # Ctrl-C saves; a kill leaves the checkpoint before it
    ids=["interrupted", "killed"],
)
def test_a_stopped_run_goes_on_to_the_same_bytes(extracted, finished, tmp_path, error, seconds):
    config = replace(QUICK, checkpoint_seconds=seconds)
    with pytest.raises(error):
        train.train(config, *extracted, tmp_path, progress=stop_after(2, error))
    folder = runs.folder_of(tmp_path, "toy", "triplet", 16, 0)
    assert (folder / CHECKPOINT).exists()
    assert not (folder / runs.CONFIG).exists()
    seen = []
    run, fresh = train.train(config, *extracted, tmp_path, progress=lambda what, done, *_: seen.append(done))
    assert fresh
    assert seen[0] == (2 if error is KeyboardInterrupt else 1)
    for name in (runs.HEADS, runs.HISTORY, runs.CONFIG):
        assert (run.folder / name).read_bytes() == (finished.folder / name).read_bytes()
    assert not list(run.folder.glob("checkpoint*"))


@pytest.mark.parametrize("method", ["acmr", "corrnet"])
def test_so_does_a_run_with_parts_of_its_own(extracted, tmp_path, method):
    config = replace(QUICK, method=method)
    whole, _ = train.train(config, *extracted, tmp_path / "whole")
    folder = runs.folder_of(tmp_path / "stopped", "toy", method, 16, 0)
    parts = []
    for epoch in (1, 2):
        with pytest.raises(KeyboardInterrupt):
            train.train(config, *extracted, tmp_path / "stopped", progress=stop_after(epoch, KeyboardInterrupt))
        (path,) = folder.glob("checkpoint-*.safetensors")
        tensors = safetensors.torch.load_file(path)
        parts.append({name: t for name, t in tensors.items() if name.startswith("parts.")})
    assert set(parts[0]) == set(parts[1])
    assert parts[0]
    assert not any(torch.equal(parts[0][name], parts[1][name]) for name in parts[0])  # they are trained
    run, _ = train.train(config, *extracted, tmp_path / "stopped")
    for name in (runs.HEADS, runs.HISTORY, runs.CONFIG):
        assert (run.folder / name).read_bytes() == (whole.folder / name).read_bytes()
    kept = safetensors.torch.load_file(run.folder / runs.HEADS)
    assert {name.split(".")[0] for name in kept} == {"image", "text-de", "text-en"}  # the parts are thrown away


def test_a_run_stopped_inside_an_epoch_goes_on_to_the_same_bytes(extracted, finished, tmp_path, monkeypatch):
    real, calls = METHODS["triplet"].terms, []

    def terms(*args):
        calls.append(1)
        if len(calls) == 12:  # third step of the third epoch
            raise KeyboardInterrupt
        return real(*args)

    use(monkeypatch, terms)
    with pytest.raises(KeyboardInterrupt):
        train.train(QUICK, *extracted, tmp_path)
    run, _ = train.train(QUICK, *extracted, tmp_path)
    assert len(calls) == 12 + 2 * 5  # epochs 3 and 4 only
    assert heads(run) == heads(finished)
    assert history(run) == history(finished)


def test_a_finished_run_is_found_not_trained_again(extracted, tmp_path):
    config = replace(QUICK, epochs=1)
    run, _ = train.train(config, *extracted, tmp_path)
    before = {p: p.stat().st_mtime_ns for p in run.folder.iterdir() if not p.name.startswith(".")}
    seen = []
    again, fresh = train.train(config, *extracted, tmp_path, progress=lambda *a: seen.append(a))
    assert not fresh
    assert not seen
    assert again.config == run.config
    assert before == {p: p.stat().st_mtime_ns for p in run.folder.iterdir() if not p.name.startswith(".")}


def test_device_and_checkpoint_period_are_no_part_of_the_recipe(extracted, finished):
    again, fresh = train.train(replace(QUICK, checkpoint_seconds=1), *extracted, finished.folder.parent.parent)
    assert not fresh
    assert again.config == finished.config


# ---------------------------------------------------------------------------------------------- refusals


@pytest.mark.faults("stale: one field of the recipe")
@pytest.mark.parametrize(
    ("changed", "made", "field"),
    [
        ({"lr": 0.01}, {}, "train.lr"),
        ({"epochs": 3}, {}, "train.epochs"),
        ({}, {"shift": "train"}, "features.image.sha256"),
        ({}, {"weights": "trained"}, "features.image"),
        ({}, {"change": lambda i: replace(i, labels=i.labels[:1])}, "items_sha256"),
    ],
    ids=["lr", "epochs", "features", "weights", "items"],
)
def test_an_unfinished_run_of_another_recipe_is_refused_by_field(make_cache, extracted, tmp_path, changed, made, field):
    config = replace(QUICK, epochs=2)
    with pytest.raises(KeyboardInterrupt):
        train.train(config, *extracted, tmp_path, progress=stop_after(1, KeyboardInterrupt))
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file() and not p.name.startswith(".")}
    other = make_cache(tmp_path / "other", **made) if made else extracted
    with pytest.raises(StaleError, match=field.replace(".", r"\.")):
        train.train(replace(config, **changed), *other, tmp_path)
    for path, content in before.items():
        assert path.read_bytes() == content


@pytest.mark.faults("stale: one field of the recipe")
def test_another_split_is_refused_by_its_seed(make_cache, extracted, tmp_path):
    config = replace(QUICK, epochs=1)
    train.train(config, *extracted, tmp_path)
    dataset, folder = extracted
    with pytest.raises(StaleError, match="split_seed = None, asked for 3"):
        train.train(config, replace(dataset, split_seed=3), folder, tmp_path)


def test_overwrite_trains_anew(extracted, tmp_path):
    config = replace(QUICK, epochs=1)
    first, _ = train.train(config, *extracted, tmp_path)
    before = heads(first)
    run, fresh = train.train(replace(config, lr=0.01), *extracted, tmp_path, overwrite=True)
    assert fresh
    assert run.config["train"]["lr"] == 0.01
    assert heads(run) != before


def test_overwrite_does_not_go_on_from_a_checkpoint(extracted, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        train.train(QUICK, *extracted, tmp_path, progress=stop_after(2, KeyboardInterrupt))
    seen = []
    other = replace(QUICK, epochs=1)
    train.train(other, *extracted, tmp_path, overwrite=True, progress=lambda what, done, *_: seen.append(done))
    assert seen == [0, 1]


@pytest.mark.faults("second writer, reader meanwhile")
def test_a_second_process_is_kept_out(extracted, tmp_path):
    folder = runs.folder_of(tmp_path, "toy", "triplet", 16, 0)
    folder.mkdir(parents=True)
    with locked(folder / runs.CONFIG), pytest.raises(LockedError, match=f"process {os.getpid()}"):
        train.train(QUICK, *extracted, tmp_path)


def test_features_by_an_encoder_that_is_not_there(extracted, tmp_path):
    with pytest.raises(UsageError, match=r"no image features by 'vgg' \(there: toy\)"):
        train.train(QUICK, *extracted, tmp_path, encoders=("image=vgg",))
    with pytest.raises(UsageError, match="not trained"):
        train.train(QUICK, *extracted, tmp_path, encoders=("fr=toy",))


# ---------------------------------------------------------------------------------------------- bad losses, bad data


def with_nan(real, bad):
    """Terms that are NaN at the given steps, counted from 1."""
    calls = []

    def terms(*args):
        calls.append(1)
        found = real(*args)
        nan = {name: value * float("nan") for name, value in found.loss.items()}
        return found._replace(loss=nan) if len(calls) in bad else found

    return terms


@pytest.mark.faults("training: NaN, no negative, collapse")
def test_steps_with_a_nan_loss_are_skipped_and_counted(extracted, tmp_path, monkeypatch):
    use(monkeypatch, with_nan(METHODS["triplet"].terms, {1, 2, 4, 8}))
    run, _ = train.train(replace(QUICK, epochs=2), *extracted, tmp_path)
    assert run.config["skipped_steps"] == 4
    assert [line["skipped"] for line in history(run)] == [3, 1]
    assert all(np.isfinite(line["loss"]) for line in history(run))


@pytest.mark.faults("training: NaN, no negative, collapse")
def test_three_nan_losses_in_a_row_stop_training_in_one_line(extracted, tmp_path, monkeypatch):
    use(monkeypatch, with_nan(METHODS["triplet"].terms, {2, 3, 4}))
    with pytest.raises(CmrhashError, match=r"not finite in 3 steps in a row \(batch: i\d+, ") as caught:
        train.train(QUICK, *extracted, tmp_path)
    assert "\n" not in str(caught.value)
    assert "--lr" in str(caught.value)
    assert not list(tmp_path.rglob(runs.CONFIG))


def without_a_gradient(found):
    """A finite loss, 0, whose gradient is NaN, as that of a distance between equal points is."""
    return found._replace(loss={name: (value - value).pow(2).sqrt() for name, value in found.loss.items()})


def plain_loop(spoil):
    """Whether the weights of a loop without any check survive one spoilt step of three."""
    layer = torch.nn.Linear(4, 4)
    optimizer = torch.optim.Adam(layer.parameters())
    for step in range(3):
        loss = layer(torch.ones(2, 4)).pow(2).mean()
        optimizer.zero_grad()
        (spoil(loss) if step == 1 else loss).backward()
        optimizer.step()
    return all(bool(torch.isfinite(weight).all()) for weight in layer.parameters())


@pytest.mark.faults("training: NaN, no negative, collapse")
@pytest.mark.parametrize("step", [2, 5], ids=["in the first epoch", "last of all"])
@pytest.mark.parametrize("val", [True, False], ids=["val", "no val"])
def test_a_gradient_that_is_nan_under_a_finite_loss_is_noticed(make_cache, tmp_path, monkeypatch, step, val, faults):
    real, calls = METHODS["triplet"].terms, []

    def terms(*args):
        calls.append(1)
        return without_a_gradient(real(*args)) if len(calls) == step else real(*args)

    use(monkeypatch, terms)
    made = make_cache(tmp_path, change=lambda i: i if val else replace(i, splits=i.splits - {"val"}))
    with pytest.raises(CmrhashError, match="not finite") as caught:
        train.train(replace(QUICK, epochs=1, hidden=0), *made, tmp_path / "runs")
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "runs").rglob(runs.CONFIG))
    faults.tried = faults.survived = faults.naive_tried = 1
    faults.naive_survived = plain_loop(lambda loss: (loss - loss).pow(2).sqrt())


def watched(monkeypatch):
    """The relevance matrix of every batch to come."""
    real, seen = METHODS["triplet"].terms, []

    def terms(views, batch):
        seen.append(batch.relevant)
        return real(views, batch)

    use(monkeypatch, terms)
    return seen


@pytest.mark.faults("training: NaN, no negative, collapse")
def test_batches_without_a_negative_are_counted_for_what_they_are(make_cache, tmp_path, monkeypatch):
    """Half of the items are relevant to each other; in batches of two many know no negative, and weigh nothing."""
    batches = watched(monkeypatch)
    made = make_cache(tmp_path, change=lambda i: replace(i, labels=(int(int(i.id[1:]) % 7 == 1),)))
    run, _ = train.train(replace(QUICK, epochs=1, batch=2), *made, tmp_path / "runs")
    triplets = [int(sum(p * (2 - p) for p in relevant.sum(1).tolist())) for relevant in batches]  # anchor by anchor
    assert 0 in triplets
    (line,) = history(run)
    assert line["valid_triplets"] == 7 * sum(triplets)  # each of the seven terms sees them
    assert np.isfinite(line["loss"])


@pytest.mark.faults("training: NaN, no negative, collapse")
def test_an_item_that_is_left_alone_makes_no_batch(make_cache, tmp_path, monkeypatch):
    batches = watched(monkeypatch)
    made = make_cache(tmp_path, change=lambda i: i if int(i.id[1:]) < 51 else replace(i, splits=frozenset()))
    run, _ = train.train(replace(QUICK, epochs=2, batch=8), *made, tmp_path / "runs")
    assert run.config["train_items"] == 33
    assert [len(relevant) for relevant in batches] == 2 * 4 * [8]


@pytest.mark.faults("training: NaN, no negative, collapse")
def test_no_valid_triplet_is_a_data_error(make_cache, tmp_path):
    made = make_cache(tmp_path, change=lambda item: replace(item, labels=(0,)))
    with pytest.raises(DataError, match="without a single valid triplet"):
        train.train(QUICK, *made, tmp_path / "runs")


@pytest.mark.parametrize("method", METHODS)
def test_every_method_learns(method, extracted, tmp_path):
    quick = replace(QUICK, bits=8 if METHODS[method].fit else 16, epochs=8)  # the toy's captions have 12 features
    if method == "triplet-hard":
        quick = replace(quick, batch=4)  # the fewer there are to choose from, the less hard
    untrained, _ = train.train(replace(quick, epochs=1, lr=1e-9), *extracted, tmp_path / "before")
    run, _ = train.train(replace(quick, method=method), *extracted, tmp_path)
    assert run.config["val_map_mean"] > untrained.config["val_map_mean"] + 0.1
    assert run.config["source"] == METHODS[method].source
    line = history(run)[-1]
    if METHODS[method].fit:
        assert [line["ridge"] for line in history(run)] == list(train.RIDGES)
        return
    assert line["loss"] == pytest.approx(sum(line["terms"].values()))


@pytest.fixture(scope="module")
def dense(make_cache, tmp_path_factory):
    """Data in which about half of all pairs are relevant."""

    def more(item):
        return replace(item, labels=(item.labels[0], item.labels[0] + 1))

    return make_cache(tmp_path_factory.mktemp("dense"), change=more)


@pytest.mark.faults("training: NaN, no negative, collapse")
def test_batch_hard_triplets_collapse_to_the_margin_where_batch_all_does_not(dense, tmp_path):
    config = replace(QUICK, epochs=8, margin=1.0, batch=8)
    hard, _ = train.train(replace(config, method="triplet-hard"), *dense, tmp_path)
    assert hard.config["collapsed"]
    assert hard.config["collapsed_epochs"] > 0
    last = history(hard)[-1]
    assert last["active_share"] == 1
    shares = {name: 1 if name == "i2i" else 0.5 for name in last["terms"]}  # the languages share the others
    for name, loss in last["terms"].items():
        assert loss == pytest.approx(16 * shares[name], rel=0.05), name  # about the margin, 1.0 x 16 bits
    assert last["loss"] == pytest.approx(4 * 16, rel=0.02)
    gentle, _ = train.train(replace(config, method="triplet"), *dense, tmp_path)
    assert not gentle.config["collapsed"]
    assert gentle.config["collapsed_epochs"] == 0
    assert history(gentle)[-1]["loss"] < 0.5 * last["loss"]
    assert gentle.config["val_map_mean"] > hard.config["val_map_mean"] + 0.1


@pytest.mark.faults("training: NaN, no negative, collapse")
def test_collapsed_codes_are_called_so(extracted, tmp_path, monkeypatch):
    def pull_together(views, _):
        return Terms({name: (1 - embedding).pow(2).mean() for name, embedding in views.items()}, {})

    use(monkeypatch, pull_together)
    run, _ = train.train(replace(QUICK, epochs=2, lr=0.5), *extracted, tmp_path)
    assert run.config["collapsed"] is True
    assert history(run)[-1]["collapsed"] is True
    watch = run.config["collapse"]["image"]
    assert watch["collapsed"]
    assert watch["constant_bits"] > 0.25 or watch["distinct"] < 0.05


def test_items_that_lack_a_part_are_left_out_of_training(make_cache, tmp_path):
    def change(item):
        return {
            "i2": replace(item, texts={"en": item.texts["en"]}),
            "i3": replace(item, labels=()),
            "i4": replace(item, image=None),
        }.get(item.id, item)

    run, _ = train.train(replace(QUICK, epochs=1), *make_cache(tmp_path, change=change), tmp_path / "runs")
    assert run.config["train_items"] == 80 - 3
    english = replace(QUICK, epochs=1, langs=("en",))
    run, _ = train.train(english, manifest.load(tmp_path / "toy"), tmp_path / "toy", tmp_path / "english")
    assert run.config["train_items"] == 80 - 2  # there nothing asks for a German caption


def test_nothing_to_train_on_is_a_data_error(make_cache, tmp_path):
    made = make_cache(tmp_path, change=lambda item: replace(item, splits=item.splits - {"train"}))
    with pytest.raises(DataError, match="0 items to train on: .*: give items the split 'train'"):
        train.train(QUICK, *made, tmp_path / "runs")


def test_what_the_train_items_lack_is_told(make_cache, tmp_path):
    def change(item):
        text = {} if "train" in item.splits else {"en": item.texts["en"]}
        return replace(item, texts={"de": item.texts["de"]} | text, labels=item.labels if item.id > "i5" else ())

    made = make_cache(tmp_path, change=change)
    with pytest.raises(DataError, match=r"0 items .*\(of 80 train items 80 have no usable text-en, \d+ .*label\)"):
        train.train(QUICK, *made, tmp_path / "runs")
    items = tuple(replace(item, splits=frozenset({"database"})) for item in made[0].items)
    drawn = replace(made[0], items=items, split_seed=0)  # as of one without a complete item
    with pytest.raises(DataError, match=r"0 items to train on \(of 120 items 80 have no usable text-en, "):
        train.train(QUICK, drawn, made[1], tmp_path / "runs")


def test_query_items_never_touch_training(make_cache, finished, tmp_path):
    run, _ = train.train(QUICK, *make_cache(tmp_path, shift="query"), tmp_path / "runs")
    assert run.config["features"]["image"]["sha256"] != finished.config["features"]["image"]["sha256"]
    assert heads(run) == heads(finished)
    assert history(run) == history(finished)
    other, _ = train.train(QUICK, *make_cache(tmp_path, shift="train"), tmp_path / "others")
    assert heads(other) != heads(finished)  # the test would see it


def test_neither_do_they_where_they_are_their_own_database(make_cache, tmp_path):
    def as_on_pascal(item):
        return replace(
            item, splits=item.splits | {"database"} if "query" in item.splits else item.splits - {"database"}
        )

    one, two = (
        train.train(QUICK, *make_cache(tmp_path / str(shift), change=as_on_pascal, shift=shift), tmp_path / str(shift))
        for shift in (None, "query")
    )
    assert heads(one[0]) == heads(two[0])
    assert history(one[0]) == history(two[0])
    assert history(one[0])[-1]["val_map"] is not None


# ---------------------------------------------------------------------------------------------- damage


def flip(path, at=-1):
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", ["tensors", "no tensors", "json"])
def test_a_damaged_checkpoint_is_refused_and_can_be_replaced(extracted, tmp_path, damage):
    with pytest.raises(KeyboardInterrupt):
        train.train(QUICK, *extracted, tmp_path, progress=stop_after(1, KeyboardInterrupt))
    folder = runs.folder_of(tmp_path, "toy", "triplet", 16, 0)
    about, (tensors,) = folder / CHECKPOINT, folder.glob("checkpoint-*.safetensors")
    {
        "tensors": lambda: flip(tensors),
        "no tensors": tensors.unlink,
        "json": lambda: about.write_text("{}"),
    }[damage]()
    with pytest.raises(DamagedError, match="--overwrite"):
        train.train(QUICK, *extracted, tmp_path)
    _, fresh = train.train(replace(QUICK, epochs=1), *extracted, tmp_path, overwrite=True)
    assert fresh


# ---------------------------------------------------------------------------------------------- small parts


@pytest.mark.parametrize("steps", [4, 5, 7, 10, 60, 333])
def test_one_cycle_is_that_of_torch(steps):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1)
    torchs = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps, cycle_momentum=False)
    for step in range(steps):
        assert train.one_cycle(step, steps, 2e-3) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9)
        optimizer.step()
        if step + 1 < steps:
            torchs.step()


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_one_cycle_of_few_steps_is_finite(steps):
    assert all(0 < train.one_cycle(step, steps, 1.0) <= 1 for step in range(steps))


@pytest.mark.parametrize(
    ("wanted", "items", "size"),
    [(512, 10_000, 512), (512, 2048, 512), (512, 2047, 256), (512, 80, 16), (16, 80, 16), (512, 3, 2), (3, 100, 3)],
)
def test_the_batch_is_halved_until_a_pass_has_four_steps(wanted, items, size):
    assert train.batch_size(wanted, items) == size


@pytest.mark.parametrize(("batch", "threads"), [(16, 1), (256, 2)])
def test_small_batches_take_one_thread_and_leave_the_others_as_they_were(batch, threads, monkeypatch):
    before, asked = torch.get_num_threads(), []
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    with threads_for(torch.device("cpu"), batch):
        assert (asked or [2])[-1] == threads
    assert asked[-1] == 2
    monkeypatch.undo()
    assert torch.get_num_threads() == before
