"""Fine-tuning on a handful of small photos: it learns, from random weights and from trained ones."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torchvision
from tuned_files import DE, EN, IMAGE, contents, history, image_weights
from tuning import COUNT, QUICK, SMALL, config, draw, entry, write

from cmrhash.config import TRAINED_SHARE
from cmrhash.encoders import image as image_encoders
from cmrhash.encoders import text as text_encoders
from cmrhash.encoders.pixels import Crop
from cmrhash.errors import DataError, StaleError
from cmrhash.features.extract import extract
from cmrhash.features.file import read_features
from cmrhash.training.finetune import loop as finetune
from cmrhash.training.finetune.extract import extract_tuned

pytestmark = pytest.mark.slow

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
    assert first["val_map_mean"] < 0.75 < 0.8 < last["val_map_mean"]
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
    assert list(report.tuned.weights) == ["text-en" if side == "image_lr" else "image"]
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
    assert (report.tuned.outcome.best_epoch, report.tuned.outcome.chosen_on) == (1, "val")
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
    assert report.tuned.outcome.best_epoch == QUICK.epochs - 1
    assert report.tuned.outcome.chosen_on == "last epoch (no val items)"


def test_relevance_by_pairs_needs_no_labels(mine, tmp_path):
    write(mine, [entry(n) | {"labels": []} for n in range(COUNT)])
    report = extract_tuned(config(mine, tmp_path / "cache"), replace(QUICK, epochs=1))
    assert 0 < report.tuned.outcome.val_map_mean <= 1


def test_a_photo_that_is_broken_is_left_out(mine, tmp_path):
    (mine / "9.png").write_bytes(b"no photo")
    (mine / "5.png").unlink()
    report = extract_tuned(config(mine, tmp_path / "cache"), replace(QUICK, epochs=1))
    assert report.files[0].broken == 2
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
    assert tuned_trained.tuned.recipe["rates"] == {"image": lr, "text-de": lr, "text-en": lr}
    before, after = torch.load(trained["image_weights"], weights_only=True), image_weights(tuned_trained)
    for name, tensor in after.items():
        moved = not torch.equal(tensor, before[name])
        assert moved == ("running" not in name and "num_batches" not in name), name
        assert (tensor - before[name]).abs().max() < 8 * lr


def test_untrained_ones_learn_their_batch_statistics(finished):
    running = [t for name, t in image_weights(finished).items() if name.endswith("running_var")]
    assert all((t != 1).any() for t in running)


def test_languages_that_share_an_encoder_tune_it_together(tuned_trained):
    weights = tuned_trained.tuned.weights
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
