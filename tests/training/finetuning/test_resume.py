"""A fine-tuning that was stopped goes on to the same bytes, or is refused by the field that changed."""

import os
import shutil
from dataclasses import replace

import pytest
import torch
from tuned_files import EN, IMAGE, contents
from tuning import QUICK, SMALL, STEPS, config, stop_at

from cmrhash.errors import DamagedError, DataError, LockedError, StaleError, UsageError
from cmrhash.features.extract import extract
from cmrhash.storage.files import locked
from cmrhash.training import runs
from cmrhash.training.finetune import task as finetune_task
from cmrhash.training.finetune.extract import extract_tuned

pytestmark = pytest.mark.slow

FOLDER = f"{SMALL}-random"  # of the tuned encoders


# ---------------------------------------------------------------------------------------------- the same every time


@pytest.mark.parametrize(
    ("error", "seconds", "epochs_kept"),
    [(KeyboardInterrupt, 1e9, 1), (RuntimeError, 0, 1), (RuntimeError, 1e9, 0)],
    ids=["interrupted", "killed", "killed before anything was saved"],
)
def test_a_stopped_fine_tuning_goes_on_to_the_same_bytes(source, finished, tmp_path, error, seconds, epochs_kept):
    tune = replace(QUICK, checkpoint_seconds=seconds)
    with pytest.raises(error):
        extract_tuned(config(source, tmp_path), tune, stop_at(STEPS + 2, error))
    folder = tmp_path / "manifest" / "tuned" / FOLDER
    assert (folder / "checkpoint.json").exists() == bool(epochs_kept)
    assert not (folder / runs.CONFIG).exists()
    seen = []
    report = extract_tuned(config(source, tmp_path), tune, lambda *call: seen.append(call))
    assert next(call[1] for call in seen if call[0] == "fine-tuning") == epochs_kept * STEPS + 1
    assert contents(report.folder) == contents(finished.folder)


def test_tuned_encoders_of_another_case_are_not_replaced(source, tmp_path, monkeypatch):
    (tmp_path / "manifest/tuned" / FOLDER).mkdir(parents=True)
    real = os.listdir
    monkeypatch.setattr(os, "listdir", lambda path: [name.replace("shuffle", "Shuffle") for name in real(path)])
    with pytest.raises(UsageError, match=f"^'{FOLDER}' is '{FOLDER.capitalize()}' here"):
        extract_tuned(config(source, tmp_path), QUICK)
    assert real(tmp_path / "manifest/tuned" / FOLDER) == []


def test_crops_that_do_not_fit_into_memory_are_decoded_every_time(source, finished, tmp_path, monkeypatch):
    monkeypatch.setattr(finetune_task, "MEMORY", 0)
    report = extract_tuned(config(source, tmp_path), QUICK)
    assert contents(report.folder) == contents(finished.folder)


def test_a_photo_that_goes_away_meanwhile_is_named(mine, tmp_path, monkeypatch):
    monkeypatch.setattr(finetune_task, "MEMORY", 0)

    def remove(what, done, total, note=""):
        if what == "fine-tuning":
            (mine / "9.png").unlink(missing_ok=True)

    with pytest.raises(DataError, match="an image was removed or changed during the run"):
        extract_tuned(config(mine, tmp_path / "cache"), QUICK, remove)


def test_the_callers_random_numbers_stay_as_they_were(source, tmp_path):
    torch.manual_seed(5)
    expected = torch.rand(4)
    torch.manual_seed(5)
    extract_tuned(config(source, tmp_path), replace(QUICK, epochs=1))
    assert torch.equal(torch.rand(4), expected)


def test_a_second_call_finds_it_there(made, source):
    before, calls = contents(made / "manifest"), []
    report = extract_tuned(config(source, made), replace(QUICK, checkpoint_seconds=1), lambda *call: calls.append(call))
    assert not report.tuned.fresh
    assert not any(file.fresh for file in report.files)
    assert all(what.startswith("loading") for what, *_ in calls)
    assert contents(made / "manifest") == before


# ---------------------------------------------------------------------------------------------- refusals


@pytest.mark.faults("stale: one field of the recipe")
@pytest.mark.parametrize(
    ("changes", "tuning", "field"),
    [
        ({}, {"lr": 0.01}, "finetune.lr = 0.003, but this call has 0.01"),
        ({}, {"method": "supcon"}, "finetune.method = triplet, but this call has supcon"),
        ({}, {"seed": 1}, "finetune.seed = 0, but this call has 1"),
        ({}, {"text_lr": 0}, "finetune.text_lr = None, but this call has 0"),
        ({"langs": ("en",)}, {}, "langs = "),
        ({"pooling": "cls"}, {}, "encoders.text-de.pooling = mean, but this call has cls"),
        ({"seed": 1}, {}, "encoders.image.weights_sha256 = "),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_an_unfinished_one_of_another_recipe_is_refused_by_its_field(source, tmp_path, changes, tuning, field):
    with pytest.raises(KeyboardInterrupt):
        extract_tuned(config(source, tmp_path), QUICK, stop_at(STEPS + 1, KeyboardInterrupt))
    before = contents(tmp_path / "manifest")
    with pytest.raises(StaleError, match=f"unfinished run was made with {field}"):
        extract_tuned(config(source, tmp_path, **changes), replace(QUICK, **tuning))
    assert contents(tmp_path / "manifest") == before


def test_overwrite_tunes_and_extracts_anew(made, source, finished):
    report = extract_tuned(config(source, made, overwrite=True), replace(QUICK, epochs=1))
    assert report.tuned.fresh
    assert all(file.fresh for file in report.files)
    report = extract_tuned(config(source, made, overwrite=True), QUICK)
    assert contents(report.folder) == contents(finished.folder)


def test_a_replacement_that_is_cut_short_keeps_the_old_and_goes_on_without_tuning_again(made, source, finished):
    def stop(what, *_):
        if what == "en texts":
            raise KeyboardInterrupt

    other = replace(QUICK, epochs=1)
    with pytest.raises(KeyboardInterrupt):
        extract_tuned(config(source, made, overwrite=True), other, stop)
    assert contents(finished.folder).items() <= contents(made / "manifest").items()
    assert not extract_tuned(config(source, made), QUICK).tuned.fresh
    report = extract_tuned(config(source, made, overwrite=True), other)
    assert not report.tuned.fresh
    assert [file.fresh for file in report.files] == [False, False, True]
    assert report.tuned.folder == made / "manifest/tuned" / FOLDER
    assert extract_tuned(config(source, made), other).tuned.digest == report.tuned.digest
    assert not (made / "manifest/next").exists()


def test_features_of_another_tuning_or_of_none_are_refused(made, source, frozen):
    path = made / "manifest" / f"{IMAGE}-tuned.h5"
    shutil.copy(frozen.folder / f"{IMAGE}.h5", path)
    with pytest.raises(StaleError, match=r"feature file was made with tuned = nothing, but this call has \w{16}: "):
        extract_tuned(config(source, made), QUICK)
    shutil.copy(made / "manifest" / f"{EN}-tuned.h5", made / "manifest" / f"{EN}.h5")
    with pytest.raises(StaleError, match=r"feature file was made with weights = tuned, but this call has random: "):
        extract(config(source, made, langs=("en",)))


@pytest.mark.parametrize("name", ["image.safetensors", "text-en/model.safetensors", runs.CONFIG])
def test_damaged_weights_are_refused_and_can_be_made_anew(made, source, finished, name):
    path = made / "manifest" / "tuned" / FOLDER / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(
        DamagedError, match=f"{name}: tune again: run `extract` with `finetune=True` and `overwrite=True`"
    ):
        extract_tuned(config(source, made), QUICK)
    report = extract_tuned(config(source, made, overwrite=True), QUICK)
    assert contents(report.folder) == contents(finished.folder)


@pytest.mark.faults("second writer, reader meanwhile")
def test_a_second_process_is_kept_out(made, source):
    held = made / "manifest" / "tuned" / FOLDER / runs.CONFIG
    with locked(held), pytest.raises(LockedError, match=f"process {os.getpid()}"):
        extract_tuned(config(source, made), QUICK)


def test_a_method_without_a_loss_is_refused_before_anything_is_written(source, tmp_path):
    with pytest.raises(UsageError, match=r"'cca' has no loss that tunes encoders: choose one of triplet, "):
        extract_tuned(config(source, tmp_path / "cache"), replace(QUICK, method="cca"))
    assert not (tmp_path / "cache").exists()
