"""A disk that is full, at each place where a command writes: one line, nothing lost, and the same command completes
once there is room, with the bytes that it would have written at once.

Beside it what becomes of the same content where a script saves it.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import pkgutil
import re
import shutil
from types import SimpleNamespace

import naive
import pytest
from running import EXTRACT, QUICK, files, largest_file, run, write_own

from cmrhash.encoders import image as image_encoders
from cmrhash.encoders import text as text_encoders
from cmrhash.encoders.pixels import Crop
from cmrhash.features import images as extract_images
from cmrhash.training import train

pytestmark = pytest.mark.slow

TRAIN = ["train", "--dataset", "toy", *QUICK]
EVAL = ["eval", "--dataset", "toy"]
SMALL = [*EXTRACT, "--image-model", "shufflenet_v2_x0_5"]
TUNE = [*SMALL, "--finetune", "--method", "triplet", "--epochs", "1", "--batch", "4"]
BAG = [*SMALL, "--text-model", "bow"]
RETRAIN = [*TRAIN, "--lr", "0.01", "--overwrite"]
AGAIN = [*SMALL, "--follow-links", "--overwrite"]
BEFORE = {"eval": TRAIN, "train": TRAIN, "extract": SMALL}  # what these replace
# where it is full: the command, what meets it, at which of its calls, and how many bytes a file may have
PLACES = {
    "items": (SMALL, "cmrhash.data.manifest.store", 1, 40),
    "account of the items": (SMALL, "cmrhash.data.manifest.write_json", 1, 40),
    "space for features": (SMALL, "cmrhash.storage.hdf5.reserve", 1, 40),
    "space for more of them": (SMALL, "cmrhash.storage.hdf5.reserve", 2, 40_000),
    "a block": (SMALL, "cmrhash.features.file.FeatureWriter._write", 6, 40),
    "a part of a block": (SMALL, "cmrhash.features.file.FeatureWriter._write", 5, 40_000),
    "a commit record": (SMALL, "cmrhash.features.file.FeatureWriter._write", 8, 40),
    "the seal": (SMALL, "cmrhash.storage.hdf5.seal", 1, 40),
    "a part of the seal": (SMALL, "cmrhash.storage.hdf5.seal", 1, 5000),
    "the second file's seal": (SMALL, "cmrhash.storage.hdf5.seal", 2, 40),
    "words": (BAG, "cmrhash.features.captions.write_sealed", 1, 5000),
    "quarantine": (SMALL, "cmrhash.features.extract._write_quarantine", 1, 40),
    "tuned encoders": (TUNE, "cmrhash.encoders.copies.write_bytes", 1, 40),
    "a tuned text encoder": (TUNE, "cmrhash.encoders.copies.write_bytes", 2, 5000),
    "account of tuned encoders": (TUNE, "cmrhash.training.runs.write_json", 1, 40),
    "a checkpoint": (TRAIN, "cmrhash.training.checkpoint.TrainingState.save", 2, 40),
    "account of a checkpoint": (TRAIN, "cmrhash.training.checkpoint.write_json", 2, 40),
    "heads": (TRAIN, "cmrhash.training.train.write_bytes", 1, 40),
    "history": (TRAIN, "cmrhash.training.runs.write_lines", 1, 40),
    "account of a run": (TRAIN, "cmrhash.training.runs.write_json", 1, 40),
    "an index": (EVAL, "cmrhash.retrieval.index.BinaryIndex.save", 2, 40),
    "codes": (EVAL, "cmrhash.evaluation.run_codes.write_sealed", 1, 5000),
    "metrics": (EVAL, "cmrhash.evaluation.saved_scores.write_json", 1, 40),
    "heads in the place of others": (RETRAIN, "cmrhash.training.train.write_bytes", 1, 40),
    "history in the place of another": (RETRAIN, "cmrhash.training.runs.write_lines", 1, 40),
    "a run in the place of another": (RETRAIN, "cmrhash.training.runs.write_json", 1, 40),
    "items in the place of others": (AGAIN, "cmrhash.data.manifest.write_bytes", 1, 40),
    "account of other items": (AGAIN, "cmrhash.data.manifest.write_json", 1, 40),
    "features in the place of others": (AGAIN, "cmrhash.storage.hdf5.seal", 2, 40),
    "account of what is replaced": (AGAIN, "cmrhash.data.switch.write_json", 2, 40),
}


@pytest.fixture(autouse=True, scope="module")
def small_blocks_and_models():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(extract_images, "IMAGE_BLOCK", 4)
        tiny = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
        patch.setattr(text_encoders, "TINY", tiny)
        patch.setattr(image_encoders, "_crop", lambda _: Crop(32, 32, "BILINEAR", (0.5,) * 3, (0.25,) * 3))
        yield


@pytest.fixture(scope="module")
def undisturbed(make_cache, tmp_path_factory):
    """What there is before a command, and what there should be after it: a function of the command."""
    base, made = tmp_path_factory.mktemp("undisturbed"), {}

    def after(command):
        key = " ".join(command)
        if key not in made:
            folder = base / key.replace("/", "-")
            if command[0] == "eval" or "--overwrite" in command:
                shutil.copytree(after(BEFORE[command[0]]), folder)
                for path in (folder / "runs/toy/triplet-8").iterdir() if command == EVAL else ():
                    if path.suffix in (".faiss", ".h5") or path.name == "metrics.json":
                        path.unlink()
            else:
                make_cache(folder / "cache", count=40)
                write_own(folder / "mine", change=lambda entries: [*entries[:-1], {**entries[-1], "image": None}])
            shutil.copytree(folder, folder.with_name(f"{folder.name}-before"))
            made[key] = folder
            here = os.getcwd()
            os.chdir(folder)
            assert run(*command, "-q") == 0
            os.chdir(here)
        return made[key]

    return after


def contents(folder):
    """Path -> bytes, but for the account of the data set: it names the folder of the photos."""
    return {
        str(path.relative_to(folder)): content for path, content in files(folder).items() if path.name != "dataset.json"
    }


@pytest.mark.faults("disk full")
@pytest.mark.parametrize("place", PLACES)
def test_a_full_disk_costs_nothing_but_a_second_call(undisturbed, tmp_path, monkeypatch, capsys, place):
    command, target, nth, size = PLACES[place]
    expected = undisturbed(command)
    old = expected.with_name(f"{expected.name}-before")
    here = shutil.copytree(old, tmp_path / "here")
    monkeypatch.chdir(here)
    before, calls = contents(here), itertools.count(1)
    owner, name = pkgutil.resolve_name(target.rpartition(".")[0]), target.rpartition(".")[2]
    honest = getattr(owner, name)

    def full(*args, **options):
        with largest_file(size) if next(calls) == nth else contextlib.nullcontext():
            return honest(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, full)
        patch.setattr(train, "time", SimpleNamespace(monotonic=itertools.count(0, 100).__next__))  # saves every epoch
        assert run(*command, "-q") == 1
    error = capsys.readouterr().err
    assert re.fullmatch("error: .*space.*\n", error), error
    assert "unexpected" not in error
    assert not [path for path in files(old) if not (here / path.relative_to(old)).exists()]
    now, whole = contents(here), contents(expected)
    assert {path: now.get(path) for path in before} == before
    for path in now.keys() & whole.keys():  # what is unfinished has a name of its own
        assert now[path] in (whole[path], before.get(path)), path
    assert run(*command, "-q") == 0
    assert contents(here) == whole


@pytest.mark.faults("disk full")
def test_a_full_disk_from_the_start_and_what_it_costs_the_naive_way(undisturbed, tmp_path, monkeypatch, capsys, faults):
    """The naive way: appending to an .h5; writing weights, an index and a manifest over those of before."""
    jobs = [("append", tmp_path / "features.h5", limit) for limit in (3000, 10_000, 20_000, 40_000, 60_000, 80_000)]
    kinds = ("save torch", "save faiss", "save json")
    jobs += [(kind, tmp_path / "file", limit) for kind in kinds for limit in (40, 5000)]
    faults.naive_tried = len(jobs)
    faults.naive_survived = naive.outcomes(jobs, tmp_path).count("same")
    for command, size in itertools.product((SMALL, BAG, TRAIN, EVAL), (40, 10_000)):
        expected = undisturbed(command)
        here = shutil.copytree(expected.with_name(f"{expected.name}-before"), tmp_path / str(faults.tried))
        monkeypatch.chdir(here)
        before = contents(here)
        with largest_file(size):
            code = run(*command, "-q")
        error = capsys.readouterr().err
        kept = {path: content for path, content in contents(here).items() if path in before}
        again = run(*command, "-q")
        faults.tried += 1
        good = (code, again, error.count("\n")) == (1, 0, 1) and "space" in error and kept == before
        faults.survived += good and contents(here) == contents(expected)
