"""A training that was stopped goes on to the same bytes, or is refused by the field that changed."""

import os
from dataclasses import replace

import pytest
import safetensors.torch
import torch
from quick_training import QUICK, heads, history, use

from cmrhash.errors import DamagedError, LockedError, StaleError, UsageError
from cmrhash.features.dataset import ExtractedDataset
from cmrhash.storage.files import locked
from cmrhash.training import runs, train
from cmrhash.training.checkpoint import TrainingState
from cmrhash.training.methods import METHODS

CHECKPOINT = "checkpoint.json"


# ---------------------------------------------------------------------------------------------- the same every time


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(extracted, finished, tmp_path):
    torch.rand(3)  # whatever the caller drew before
    again, _ = train.train(QUICK, extracted, tmp_path)
    assert heads(again) == heads(finished)
    other, _ = train.train(replace(QUICK, seed=1), extracted, tmp_path)
    assert other.folder.name == "triplet-16-seed1"
    assert heads(other) != heads(finished)


def test_the_callers_random_numbers_stay_as_they_were(extracted, tmp_path):
    torch.manual_seed(5)
    expected = torch.rand(4)
    torch.manual_seed(5)
    train.train(replace(QUICK, epochs=1), extracted, tmp_path)
    assert torch.equal(torch.rand(4), expected)


def test_the_average_of_the_weights_follows_every_step():
    torch.manual_seed(0)
    heads = torch.nn.ModuleDict({"image": torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))})
    state = TrainingState(heads, torch.nn.ModuleDict(), torch.optim.SGD(heads.parameters(), lr=0.1), ema=0.8)
    expected = {name: t.clone() for name, t in heads.state_dict().items()}
    for _ in range(5):
        heads["image"](torch.randn(4, 3)).pow(2).sum().backward()
        state.step()
        for name, weight in heads.named_parameters():
            expected[name] = 0.8 * expected[name] + 0.2 * weight.detach()
    expected |= dict(heads.named_buffers())
    state.finish_epoch({"val_map_mean": 0.5})
    torch.testing.assert_close(state.best, expected)
    assert not torch.equal(state.best["image.0.weight"], heads["image"][0].weight)


def test_a_run_has_the_averaged_heads_and_their_scores(extracted, finished, tmp_path):
    """Averaged over no more than a step, they are the last ones; over more, others, and val searches them."""
    config = replace(QUICK, ema=1e-9)
    last, _ = train.train(config, extracted, tmp_path / "last")
    for name, t in safetensors.torch.load(heads(finished)).items():
        torch.testing.assert_close(safetensors.torch.load(heads(last))[name], t)
    run, _ = train.train(replace(QUICK, ema=0.9), extracted, tmp_path)
    assert heads(run) != heads(finished)
    assert run.outcome.val_map != finished.outcome.val_map


@pytest.mark.parametrize("share", [1.0, -0.1, float("nan")])
def test_other_shares_are_refused(extracted, tmp_path, share):
    with pytest.raises(UsageError, match="ema"):
        train.train(replace(QUICK, ema=share), extracted, tmp_path)


def test_a_stopped_run_goes_on_to_the_same_average(extracted, tmp_path):
    config = replace(QUICK, ema=0.9)
    whole, _ = train.train(config, extracted, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train.train(config, extracted, tmp_path, progress=stop_after(2, KeyboardInterrupt()))
    run, _ = train.train(config, extracted, tmp_path)
    assert heads(run) == heads(whole)
    assert history(run) == history(whole)


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
        train.train(config, extracted, tmp_path, progress=stop_after(2, error))
    folder = runs.folder_of(tmp_path, "toy", "triplet", 16, 0)
    assert (folder / CHECKPOINT).exists()
    assert not (folder / runs.CONFIG).exists()
    seen = []
    run, fresh = train.train(config, extracted, tmp_path, progress=lambda what, done, *_: seen.append(done))
    assert fresh
    assert seen[0] == (2 if error is KeyboardInterrupt else 1)
    for name in (runs.HEADS, runs.HISTORY, runs.CONFIG):
        assert (run.folder / name).read_bytes() == (finished.folder / name).read_bytes()
    assert not list(run.folder.glob("checkpoint*"))


@pytest.mark.parametrize("method", ["acmr", "corrnet", "ucch"])
def test_so_does_a_run_with_parts_of_its_own(extracted, tmp_path, method):
    config = replace(QUICK, method=method)
    whole, _ = train.train(config, extracted, tmp_path / "whole")
    folder = runs.folder_of(tmp_path / "stopped", "toy", method, 16, 0)
    parts = []
    for epoch in (1, 2):
        with pytest.raises(KeyboardInterrupt):
            train.train(config, extracted, tmp_path / "stopped", progress=stop_after(epoch, KeyboardInterrupt))
        (path,) = folder.glob("checkpoint-*.safetensors")
        tensors = safetensors.torch.load_file(path)
        parts.append({name: t for name, t in tensors.items() if name.startswith("parts.")})
    assert set(parts[0]) == set(parts[1])
    assert parts[0]
    assert not any(torch.equal(parts[0][name], parts[1][name]) for name in parts[0])  # they are trained
    run, _ = train.train(config, extracted, tmp_path / "stopped")
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
        train.train(QUICK, extracted, tmp_path)
    run, _ = train.train(QUICK, extracted, tmp_path)
    assert len(calls) == 12 + 2 * 5  # epochs 3 and 4 only
    assert heads(run) == heads(finished)
    assert history(run) == history(finished)


def test_a_finished_run_is_found_not_trained_again(extracted, tmp_path):
    config = replace(QUICK, epochs=1)
    run, _ = train.train(config, extracted, tmp_path)
    before = {p: p.stat().st_mtime_ns for p in run.folder.iterdir() if not p.name.startswith(".")}
    seen = []
    again, fresh = train.train(config, extracted, tmp_path, progress=lambda *a: seen.append(a))
    assert not fresh
    assert not seen
    assert again.record == run.record
    assert before == {p: p.stat().st_mtime_ns for p in run.folder.iterdir() if not p.name.startswith(".")}


def test_device_and_checkpoint_period_are_no_part_of_the_recipe(extracted, finished):
    again, fresh = train.train(replace(QUICK, checkpoint_seconds=1), extracted, finished.folder.parent.parent)
    assert not fresh
    assert again.record == finished.record


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
        train.train(config, extracted, tmp_path, progress=stop_after(1, KeyboardInterrupt))
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file() and not p.name.startswith(".")}
    other = make_cache(tmp_path / "other", **made) if made else extracted
    with pytest.raises(StaleError, match=field.replace(".", r"\.")):
        train.train(replace(config, **changed), other, tmp_path)
    for path, content in before.items():
        assert path.read_bytes() == content


@pytest.mark.faults("stale: one field of the recipe")
def test_another_split_is_refused_by_its_seed(make_cache, extracted, tmp_path):
    config = replace(QUICK, epochs=1)
    train.train(config, extracted, tmp_path)
    data = extracted
    with pytest.raises(StaleError, match="split_seed = None, but this call has 3"):
        train.train(config, ExtractedDataset(replace(data.dataset, split_seed=3), data.folder), tmp_path)


def test_overwrite_trains_anew(extracted, tmp_path):
    config = replace(QUICK, epochs=1)
    first, _ = train.train(config, extracted, tmp_path)
    before = heads(first)
    run, fresh = train.train(replace(config, lr=0.01), extracted, tmp_path, overwrite=True)
    assert fresh
    assert run.settings["lr"] == 0.01
    assert heads(run) != before


def test_overwrite_does_not_go_on_from_a_checkpoint(extracted, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        train.train(QUICK, extracted, tmp_path, progress=stop_after(2, KeyboardInterrupt))
    seen = []
    other = replace(QUICK, epochs=1)
    train.train(other, extracted, tmp_path, overwrite=True, progress=lambda what, done, *_: seen.append(done))
    assert seen == [0, 1]


@pytest.mark.faults("second writer, reader meanwhile")
def test_a_second_process_is_kept_out(extracted, tmp_path):
    folder = runs.folder_of(tmp_path, "toy", "triplet", 16, 0)
    folder.mkdir(parents=True)
    with locked(folder / runs.CONFIG), pytest.raises(LockedError, match=f"process {os.getpid()}"):
        train.train(QUICK, extracted, tmp_path)


def test_features_by_an_encoder_that_is_not_there(extracted, tmp_path):
    with pytest.raises(UsageError, match=r"no image features by 'vgg' \(there: toy\)"):
        train.train(QUICK, extracted, tmp_path, encoders=("image=vgg",))
    with pytest.raises(UsageError, match="not trained"):
        train.train(QUICK, extracted, tmp_path, encoders=("fr=toy",))


# ---------------------------------------------------------------------------------------------- damage


def flip(path, at=-1):
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", ["tensors", "no tensors", "json"])
def test_a_damaged_checkpoint_is_refused_and_can_be_replaced(extracted, tmp_path, damage):
    with pytest.raises(KeyboardInterrupt):
        train.train(QUICK, extracted, tmp_path, progress=stop_after(1, KeyboardInterrupt))
    folder = runs.folder_of(tmp_path, "toy", "triplet", 16, 0)
    about, (tensors,) = folder / CHECKPOINT, folder.glob("checkpoint-*.safetensors")
    {
        "tensors": lambda: flip(tensors),
        "no tensors": tensors.unlink,
        "json": lambda: about.write_text("{}"),
    }[damage]()
    with pytest.raises(DamagedError, match="`overwrite=True`"):
        train.train(QUICK, extracted, tmp_path)
    _, fresh = train.train(replace(QUICK, epochs=1), extracted, tmp_path, overwrite=True)
    assert fresh
