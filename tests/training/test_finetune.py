"""Fine-tuning on a handful of small photos: it learns, it is the same every time, and goes on to the same bytes."""

import json
import os
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
import torchvision
from safetensors.torch import load_file
from tuning import COUNT, QUICK, SMALL, STEPS, config, draw, entry, stop_at, write
from typer.testing import CliRunner

from cmrhash.config import TRAINED_SHARE
from cmrhash.encoders import image as image_encoders
from cmrhash.encoders import text as text_encoders
from cmrhash.encoders.pixels import Crop
from cmrhash.errors import CmrhashError, DamagedError, DataError, LockedError, StaleError, UsageError
from cmrhash.features.extract import extract
from cmrhash.features.file import read_features
from cmrhash.storage.files import locked
from cmrhash.training import runs
from cmrhash.training.finetune import loop as finetune
from cmrhash.training.finetune import task as finetune_task
from cmrhash.training.finetune.extract import extract_tuned
from cmrhash.training.methods import METHODS, Method
from cmrhash_cli.main import app

IMAGE, EN, DE = f"image-{SMALL}-random", "text-en-bert-random", "text-de-bert-random"
FOLDER = f"{SMALL}-random"  # of the tuned encoders


@pytest.fixture(autouse=True, scope="module")
def small_models_and_crops():
    with pytest.MonkeyPatch.context() as patch:
        tiny = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
        patch.setattr(text_encoders, "TINY", tiny)
        patch.setattr(image_encoders, "_crop", lambda _: Crop(32, 32, "BILINEAR", (0.5,) * 3, (0.25,) * 3))
        yield


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """The data set that is not to be touched."""
    root = tmp_path_factory.mktemp("source")
    for n in range(COUNT):
        draw(root, n, n)
    write(root, [entry(n) for n in range(COUNT)])
    return root


@pytest.fixture
def mine(source, tmp_path):
    """A copy of the data set, to be changed."""
    return shutil.copytree(source, tmp_path / "mine")


@pytest.fixture(scope="module")
def frozen(small_models_and_crops, source, tmp_path_factory):
    """The report of an extraction without fine-tuning."""
    return extract(config(source, tmp_path_factory.mktemp("frozen")))


@pytest.fixture(scope="module")
def finished(small_models_and_crops, source, tmp_path_factory):
    """The report of the quick fine-tuning; its cache is not to be touched."""
    return extract_tuned(config(source, tmp_path_factory.mktemp("finished")), QUICK)


@pytest.fixture
def made(finished, tmp_path):
    """A copy of its cache, to be changed."""
    return shutil.copytree(finished.folder.parent, tmp_path / "cache")


def contents(folder):
    """Path -> bytes of all that counts in a folder of the cache."""
    files = [p for p in folder.rglob("*") if p.is_file() and not p.name.startswith(".")]
    return {str(p.relative_to(folder)): p.read_bytes() for p in files}


def history(report):
    return [json.loads(line) for line in (report.tuned.folder / runs.HISTORY).read_text().splitlines()]


def image_weights(report):
    return load_file(report.tuned.folder / "image.safetensors")


def use(monkeypatch, terms):
    """Let the default method compute these terms."""
    monkeypatch.setitem(METHODS, "triplet", Method(terms, METHODS["triplet"].source))


# ---------------------------------------------------------------------------------------------- it learns


def test_encoders_are_tuned_and_their_features_lie_beside_those_of_the_frozen_ones(finished, frozen):
    names = [file.path.stem for file in finished.files]
    assert names == [f"{IMAGE}-tuned", f"{DE}-tuned", f"{EN}-tuned"]
    assert finished.tuned.fresh
    assert not finished.untrained
    for tuned, before in zip(finished.files, frozen.files, strict=True):
        new, old = read_features(tuned.path), read_features(before.path)
        assert new.recipe["tuned"] == finished.tuned.digest
        assert new.recipe["weights"] == "tuned"
        assert new.recipe["weights_sha256"] != old.recipe["weights_sha256"]
        assert new.x.shape == old.x.shape
        assert np.abs(new.x - old.x).max() > 0.01


def test_it_learns_what_the_data_set_shows(tmp_path, monkeypatch):
    monkeypatch.setattr(image_encoders, "_crop", lambda _: Crop(64, 64, "BILINEAR", (0.5,) * 3, (0.25,) * 3))
    for n in range(3 * COUNT):
        draw(tmp_path, n, n)
    write(tmp_path, [entry(n) for n in range(3 * COUNT)])
    report = extract_tuned(config(tmp_path, tmp_path / "cache"), replace(QUICK, epochs=6, batch=16, bits=8))
    first, last = history(report)[0], history(report)[-1]
    assert first["val_map_mean"] < 0.75 < 0.9 < last["val_map_mean"]
    assert last["loss"] < 0.5 * first["loss"]


def test_the_history_has_a_line_an_epoch(finished):
    lines = history(finished)
    assert [line["epoch"] for line in lines] == [0, 1]
    for line in lines:
        assert set(line["terms"]) == {"i2i", "i2t.de", "t2i.de", "t2t.de", "i2t.en", "t2i.en", "t2t.en"}
        assert set(line["val_map"]) == {"de", "en"}
        assert line["skipped"] == 0


@pytest.mark.parametrize(("side", "kept"), [("image_lr", IMAGE), ("text_lr", EN)])
def test_a_side_without_a_rate_stays_as_it_was(source, frozen, tmp_path, side, kept):
    report = extract_tuned(config(source, tmp_path, langs=("en",)), replace(QUICK, epochs=1, **{side: 0}))
    both = {IMAGE, EN}
    (tuned,) = both - {kept}
    assert {file.path.stem for file in report.files} == {kept, f"{tuned}-tuned"}
    assert list(report.tuned.config["weights"]) == ["text-en" if side == "image_lr" else "image"]
    assert (report.folder / f"{kept}.h5").read_bytes() == (frozen.folder / f"{kept}.h5").read_bytes()
    assert report.untrained


def test_the_weights_are_those_of_the_best_epoch_on_val(source, tmp_path, monkeypatch):
    scores, seen = [0.2, 0.9, 0.5], []
    task = []
    honest = finetune.Tuner._judge

    def judge(self):
        task.append(self.task)
        seen.append({name: t.clone() for name, t in self.task.image.module.state_dict().items()})
        return honest(self) | {"val_map_mean": scores[len(seen) - 1]}

    monkeypatch.setattr(finetune.Tuner, "_judge", judge)
    report = extract_tuned(config(source, tmp_path), replace(QUICK, epochs=3))
    assert (report.tuned.config["best_epoch"], report.tuned.config["chosen_on"]) == (1, "val")
    found = image_weights(report)
    assert all(torch.equal(found[name], t) for name, t in seen[1].items())
    assert not all(torch.equal(found[name], t) for name, t in seen[2].items())
    query, rows = {0, 1, 2, 3}, task[0].rows
    assert set(task[0].probes) == {"de", "en"}
    for probe in (probe for by in task[0].probes.values() for probe in by.values()):
        assert query.isdisjoint(rows[probe.source][probe.queries])
        assert query.isdisjoint(rows[probe.sought][probe.database])


def test_queries_have_no_part_in_it(mine, finished, tmp_path):
    for n in range(4):
        draw(mine, n, 100 + n)
    report = extract_tuned(config(mine, tmp_path / "cache"), QUICK)
    assert contents(report.tuned.folder) == contents(finished.tuned.folder)
    draw(mine, 9, 100)  # a train photo
    with pytest.raises(StaleError, match="fine-tuning was made with photos_sha256 = "):
        extract_tuned(config(mine, tmp_path / "cache"), QUICK)


def test_without_val_photos_the_last_epoch_is_taken(mine, tmp_path):
    write(mine, [entry(n) | ({"image": None} if 4 <= n < 8 else {}) for n in range(COUNT)])
    report = extract_tuned(config(mine, tmp_path / "cache"), QUICK)
    assert report.tuned.config["best_epoch"] == QUICK.epochs - 1
    assert report.tuned.config["chosen_on"] == "last epoch (no val items)"


def test_relevance_by_pairs_needs_no_labels(mine, tmp_path):
    write(mine, [entry(n) | {"labels": []} for n in range(COUNT)])
    report = extract_tuned(config(mine, tmp_path / "cache"), replace(QUICK, epochs=1))
    assert 0 < report.tuned.config["val_map_mean"] <= 1


def test_a_photo_that_is_broken_is_left_out(mine, tmp_path):
    (mine / "9.png").write_bytes(b"no photo")
    (mine / "5.png").unlink()
    report = extract_tuned(config(mine, tmp_path / "cache"), replace(QUICK, epochs=1))
    assert report.files[0].bad == 2
    for n in range(8, COUNT):
        (mine / f"{n}.png").unlink()
    with pytest.raises(DataError, match="0 items to train on"):
        extract_tuned(config(mine, tmp_path / "none"), QUICK)


# ---------------------------------------------------------------------------------------------- trained encoders


@pytest.fixture(scope="module")
def trained(small_models_and_crops, tmp_path_factory):
    """Weights on disk, which count as trained ones: options that name them."""
    folder = tmp_path_factory.mktemp("trained")
    torch.manual_seed(3)
    torch.save(torchvision.models.get_model(SMALL, weights=None).state_dict(), folder / "small.pth")
    bert = text_encoders.load("random", corpus=["red green rot grün 0 1 2"] * 2)
    bert.tokenizer.save_pretrained(folder / "bert")
    bert.module.save_pretrained(folder / "bert")
    return {"image_weights": str(folder / "small.pth"), "text_models": (str(folder / "bert"),)}


@pytest.fixture(scope="module")
def tuned_trained(trained, source, tmp_path_factory):
    return extract_tuned(config(source, tmp_path_factory.mktemp("cache"), **trained), QUICK)


def test_trained_encoders_move_slowly_and_keep_their_batch_statistics(tuned_trained, trained):
    lr = QUICK.lr * TRAINED_SHARE
    assert tuned_trained.tuned.config["recipe"]["rates"] == {"image": lr, "text-de": lr, "text-en": lr}
    before, after = torch.load(trained["image_weights"], weights_only=True), image_weights(tuned_trained)
    for name, tensor in after.items():
        moved = not torch.equal(tensor, before[name])
        assert moved == ("running" not in name and "num_batches" not in name), name
        assert (tensor - before[name]).abs().max() < 8 * lr


def test_untrained_ones_learn_their_batch_statistics(finished):
    running = [t for name, t in image_weights(finished).items() if name.endswith("running_var")]
    assert all((t != 1).any() for t in running)


def test_languages_that_share_an_encoder_tune_it_together(tuned_trained):
    weights = tuned_trained.tuned.config["weights"]
    assert weights["text-de"] == weights["text-en"] == "text-de+en/model.safetensors"
    german, english = (read_features(file.path).recipe for file in tuned_trained.files[1:])
    assert german["weights_sha256"] == english["weights_sha256"]


def test_tuned_weights_can_be_given_as_any_others(tuned_trained, source, tmp_path):
    folder = tuned_trained.tuned.folder
    options = {"image_weights": str(folder / "image.safetensors"), "text_models": (str(folder / "text-de+en"),)}
    report = extract(config(source, tmp_path, **options))
    for given, tuned in zip(report.files, tuned_trained.files, strict=True):
        np.testing.assert_array_equal(read_features(given.path).x, read_features(tuned.path).x)


def test_models_with_more_than_one_output_can_be_tuned():
    encoder = image_encoders.load("googlenet", "random")
    encoder.module.train()
    features = encoder.forward(torch.zeros(2, 96, 96, 3, dtype=torch.uint8))
    assert features.shape == (2, encoder.dim)
    assert features.requires_grad


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


def test_crops_that_do_not_fit_into_memory_are_decoded_every_time(source, finished, tmp_path, monkeypatch):
    monkeypatch.setattr(finetune_task, "MEMORY", 0)
    report = extract_tuned(config(source, tmp_path), QUICK)
    assert contents(report.folder) == contents(finished.folder)


def test_a_photo_that_goes_away_meanwhile_is_named(mine, tmp_path, monkeypatch):
    monkeypatch.setattr(finetune_task, "MEMORY", 0)

    def remove(what, done, total, note=""):
        if what == "fine-tuning":
            (mine / "9.png").unlink(missing_ok=True)

    with pytest.raises(DataError, match="an image was removed or changed meanwhile"):
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
    assert calls == []
    assert contents(made / "manifest") == before


# ---------------------------------------------------------------------------------------------- refusals


@pytest.mark.faults("stale: one field of the recipe")
@pytest.mark.parametrize(
    ("changes", "tuning", "field"),
    [
        ({}, {"lr": 0.01}, "finetune.lr = 0.003, asked for 0.01"),
        ({}, {"method": "supcon"}, "finetune.method = triplet, asked for supcon"),
        ({}, {"seed": 1}, "finetune.seed = 0, asked for 1"),
        ({}, {"text_lr": 0}, "finetune.text_lr = None, asked for 0"),
        ({"langs": ("en",)}, {}, "langs = "),
        ({"pooling": "cls"}, {}, "encoders.text-de.pooling = mean, asked for cls"),
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


def test_a_replacement_that_is_cut_short_goes_on_without_tuning_again(made, source):
    def stop(what, *_):
        if what == "en texts":
            raise KeyboardInterrupt

    other = replace(QUICK, epochs=1)
    with pytest.raises(KeyboardInterrupt):
        extract_tuned(config(source, made, overwrite=True), other, stop)
    report = extract_tuned(config(source, made), other)
    assert not report.tuned.fresh
    assert [file.fresh for file in report.files] == [False, False, True]


def test_features_of_another_tuning_or_of_none_are_refused(made, source, frozen):
    path = made / "manifest" / f"{IMAGE}-tuned.h5"
    shutil.copy(frozen.folder / f"{IMAGE}.h5", path)
    with pytest.raises(StaleError, match=r"feature file was made with tuned = nothing, asked for \w{16}: "):
        extract_tuned(config(source, made), QUICK)
    shutil.copy(made / "manifest" / f"{EN}-tuned.h5", made / "manifest" / f"{EN}.h5")
    with pytest.raises(StaleError, match=r"feature file was made with weights = tuned, asked for random: "):
        extract(config(source, made, langs=("en",)))


@pytest.mark.parametrize("name", ["image.safetensors", "text-en/model.safetensors", runs.CONFIG])
def test_damaged_weights_are_refused_and_can_be_made_anew(made, source, finished, name):
    path = made / "manifest" / "tuned" / FOLDER / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(DamagedError, match=f"{name}: tune anew with cmrhash extract --finetune --overwrite"):
        extract_tuned(config(source, made), QUICK)
    report = extract_tuned(config(source, made, overwrite=True), QUICK)
    assert contents(report.folder) == contents(finished.folder)


@pytest.mark.faults("second writer, reader meanwhile")
def test_a_second_process_is_kept_out(made, source):
    held = made / "manifest" / "tuned" / FOLDER / runs.CONFIG
    with locked(held), pytest.raises(LockedError, match=f"process {os.getpid()}"):
        extract_tuned(config(source, made), QUICK)


def test_a_method_without_a_loss_is_refused_before_anything_is_written(source, tmp_path):
    with pytest.raises(UsageError, match=r"--method cca has no loss to tune encoders with: choose one of triplet, "):
        extract_tuned(config(source, tmp_path / "cache"), replace(QUICK, method="cca"))
    assert not (tmp_path / "cache").exists()


# ---------------------------------------------------------------------------------------------- bad losses


def with_nan(real, bad):
    """Terms that are NaN at the given steps, counted from 1."""
    calls = []

    def terms(*args):
        calls.append(1)
        found = real(*args)
        return found._replace(loss={n: v * float("nan") for n, v in found.loss.items()}) if len(calls) in bad else found

    return terms


@pytest.mark.faults("training: NaN, no negative, collapse")
def test_steps_with_a_nan_are_skipped_and_counted(source, tmp_path, monkeypatch):
    use(monkeypatch, with_nan(METHODS["triplet"].terms, {1, 2, 4, 8}))
    report = extract_tuned(config(source, tmp_path), QUICK)
    assert [line["skipped"] for line in history(report)] == [3, 1]
    assert report.tuned.config["skipped_steps"] == 4
    assert all(np.isfinite(line["loss"]) for line in history(report))
    assert all(torch.isfinite(t).all() for t in image_weights(report).values())


@pytest.mark.faults("training: NaN, no negative, collapse")
def test_a_skipped_step_changes_nothing(source, tmp_path, monkeypatch):
    """Neither weights nor moments, nor the statistics of a forward pass that overflowed itself."""
    changed, forward, step = [], image_encoders.ImageEncoder.forward, finetune.Tuner._step

    def overflow(self, pixels):
        second = len(changed) == 1
        hook = self.module.register_forward_pre_hook(lambda _, x: (x[0] * float("inf"),) if second else None)
        try:
            return forward(self, pixels)
        finally:
            hook.remove()

    def watched(self, *args):
        before = {name: t.clone() for name, t in self.state._tensors().items()}
        result = step(self, *args)
        after = {name: t for name, t in self.state._tensors().items() if not name.endswith("num_batches_tracked")}
        changed.append(any(name not in before or not torch.equal(before[name], t) for name, t in after.items()))
        return result

    monkeypatch.setattr(image_encoders.ImageEncoder, "forward", overflow)
    monkeypatch.setattr(finetune.Tuner, "_step", watched)
    report = extract_tuned(config(source, tmp_path), replace(QUICK, epochs=1))
    assert changed == [True, False, True, True]
    assert history(report)[0]["skipped"] == 1
    assert report.files[0].bad == 0


@pytest.mark.faults("training: NaN, no negative, collapse")
def test_three_in_a_row_stop_it_in_one_line(source, tmp_path, monkeypatch):
    use(monkeypatch, with_nan(METHODS["triplet"].terms, {2, 3, 4}))
    with pytest.raises(CmrhashError, match=r"not finite in 3 steps in a row \(from step 2 of the epoch\): lower --lr"):
        extract_tuned(config(source, tmp_path), QUICK)
    assert not list(tmp_path.rglob(runs.CONFIG))


# ---------------------------------------------------------------------------------------------- the command line


def invoke(source, cache, *args):
    where = ["--dataset", "manifest", "--root", str(source), "--cache", str(cache)]
    what = ["--image-model", SMALL, "--image-weights", "random", "--text-model", "random", "--device", "cpu"]
    return CliRunner().invoke(app, ["extract", *where, *what, "--dtype", "float32", *map(str, args)])


TYPED = ("--finetune", "--method", "triplet", "--bits", 16, "--epochs", 2, "--batch", 4, "--lr", 3e-3)  # QUICK


def test_json_says_what_was_tuned(made, source):
    done = invoke(source, made, *TYPED, "--json")
    assert done.exit_code == 0, done.output
    tuned = json.loads(done.stdout)["finetuned"]
    assert (tuned["fresh"], tuned["views"]) == (False, ["image", "text-de", "text-en"])
    assert tuned["rates"] == dict.fromkeys(tuned["views"], 3e-3)
    assert tuned["finetune"]["epochs"] == tuned["epochs"] == 2
    assert set(tuned["val_map"]) == {"de", "en"}
    assert "tuned before: image, text-de, text-en; epoch" in done.stderr
    assert "untrained" not in done.stderr


def test_without_finetune_json_says_that_nothing_was(made, source):
    done = invoke(source, made, "--json")
    assert json.loads(done.stdout)["finetuned"] is None
    assert "untrained" in done.stderr


def test_frozen_and_tuned_features_side_by_side_have_to_be_chosen_from(made, source):
    done = invoke(source, made, "-q")
    assert done.exit_code == 0
    cache = ["--cache", str(made), "--runs", str(made.parent / "runs"), "--epochs", "1"]
    with pytest.raises(UsageError, match=f"image features by {SMALL}-random-tuned, {SMALL}-random: ") as caught:
        CliRunner().invoke(app, ["train", *cache], catch_exceptions=False)
    typed = str(caught.value).partition("choose, such as with ")[2].split()
    assert [option.partition("=")[0] for option in typed[1::2]] == ["image", "de", "en"]
    done = CliRunner().invoke(app, ["train", *cache, *typed])
    assert done.exit_code == 0, done.output
    tuned = invoke(source, made, *TYPED).stderr.partition("next: cmrhash ")[2].split()
    assert tuned.count("--encoder") == 3
    assert f"image={SMALL}-random-tuned" in tuned
    assert tuned[-2:] == cache[:2]
    done = CliRunner().invoke(app, [*tuned, *cache, "--overwrite"])
    assert done.exit_code == 0, done.output


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--lr", "1"], "--lr without --finetune: add it, or leave the option out"),
        (["--image-lr", "0"], "--image-lr without --finetune"),
        (["--method", "triplet"], "--method without --finetune"),
        (["--finetune", "--epochs", "0"], "--epochs 0: give a finite number above 0"),
        (["--finetune", "--image-lr", "0", "--text-lr", "0"], "nothing would be tuned"),
        (["--finetune", "--method", "triplets"], "unknown method 'triplets': did you mean triplet?"),
        (["--finetune", "--method", "cca"], "--method cca has no loss to tune encoders with"),
    ],
)
def test_misuse_is_told_before_anything_is_written(source, tmp_path, args, words):
    done = invoke(source, tmp_path / "cache", *args)
    assert isinstance(done.exception, UsageError)
    assert words in str(done.exception)
    assert not (tmp_path / "cache").exists()
