"""Real kills (SIGKILL) of the real commands until they are through: every file has the same bytes as without them."""

import itertools
import json
import os
import random
import signal
import subprocess
import sys

import crash_naive
import kill_child
import numpy as np
import pytest
from trees import write_manifest

pytestmark = pytest.mark.slow

KILLS = 16 * int(os.environ.get("CMRHASH_FUZZ", "1"))  # of a command and kind of event, at most
APPENDS = 18  # what a whole naive extraction writes: three arrays, six blocks
TRAIN = "train --bits 8 --epochs 8 --batch 16 --hidden 16 --dropout 0.1 --device cpu".split()


@pytest.fixture(scope="module")
def order():
    """A function that does something in a folder, in a process of its own; see ``kill_child``."""
    one_thread = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    command = [sys.executable, kill_child.__file__]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, text=True, bufsize=1, env=os.environ | one_thread, **pipes) as child:

        def give(folder, do, args=(), kill=None):
            folder.mkdir(exist_ok=True)
            child.stdin.write(json.dumps([str(folder), do, [str(arg) for arg in args], kill]) + "\n")
            return int(child.stdout.readline())

        yield give
        child.stdin.close()


@pytest.fixture(scope="module")
def commands(tmp_path_factory):
    """Extraction of photos and captions by encoders, and of ready-made features."""
    base = tmp_path_factory.mktemp("data")
    photos = ["--root", write_manifest(base / "mine", 20), "--image-model", "mobilenet_v3_small", "--image-batch", 4]
    rng, kind = np.random.default_rng(0), np.arange(30) % 3
    arrays = {"image": rng.standard_normal((30, 8)), "text": rng.standard_normal((30, 6)), "label": np.eye(3)[kind]}
    np.savez(base / "ready.npz", **{name: array.astype(np.float32) for name, array in arrays.items()})
    extract = ["extract", "--device", "cpu", "--dataset"]
    return {
        "photos": [*extract, "manifest", *photos, "--image-weights", "random", "--text-model", "bow"],
        "ready": [*extract, "features", "--features", base / "ready.npz"],
    }


def files(folder):
    """All that a command leaves behind; not the lock files, which say who had it last."""
    paths = [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def said(folder):
    return (folder / "said").read_text().split() if (folder / "said").exists() else []


def spread(events, luck):
    """The first and last event of each kind and span, and some of each part between, in any order."""
    kills = []
    for kind, (first, last) in sorted(events.items()):
        edges = np.linspace(first, last + 1, KILLS - 1).astype(int)
        some = [luck.randint(start, max(start, end - 1)) for start, end in itertools.pairwise(edges.tolist())]
        kills += [(kind, at) for at in (first, *some, last)]
    luck.shuffle(kills)
    return kills


def kill_until_done(order, folder, do, args, events, seed):
    """Do it again and again, each time up to an event of a seeded kind and number, at last whole; returns the kills."""
    done = []
    for kill in [*spread(events, random.Random(seed)), None]:
        status = order(folder, do, args, kill)
        if status == 0:
            return done
        assert status == -signal.SIGKILL, (folder / "output").read_text()
        done.append(kill)
    raise AssertionError("no end")


@pytest.mark.faults("killed for real, extraction resumed")
@pytest.mark.parametrize(("data", "span"), [("photos", (3, 30)), ("ready", (2, 24))])
def test_a_killed_extraction_goes_on_to_the_same_files(data, span, order, commands, tmp_path, faults):
    assert order(tmp_path / "whole", "cmrhash", commands[data]) == 0
    kills = kill_until_done(order, tmp_path / "killed", "cmrhash", commands[data], {"disk": span}, seed=0)
    assert len(kills) >= 5
    same = files(tmp_path / "killed" / "cache") == files(tmp_path / "whole" / "cache")
    finished = said(tmp_path / "killed")
    faults.tried = len(kills)
    faults.survived = len(kills) * same
    faults.lost = kill_child.ROWS * (len(finished) - len(set(finished)))  # what was finished is not done again
    assert set(finished) <= set(said(tmp_path / "whole"))
    folders = [tmp_path / f"naive{number}" for number in range(len(kills))]
    for folder, (kind, at) in zip(folders, kills, strict=True):
        assert order(folder, "naive extraction", kill=(kind, 1 + at % APPENDS)) == -signal.SIGKILL
    for folder, blocks in zip(folders, crash_naive.look([folder / "image.h5" for folder in folders]), strict=True):
        faults.naive_tried += 1
        faults.naive_survived += len(said(folder)) <= blocks < crash_naive.LOST


@pytest.mark.faults("killed for real, collection changed")
def test_a_killed_addition_or_removal_goes_on_to_the_same_files(order, commands, tmp_path, faults):
    add = ["add", write_manifest(tmp_path / "more", 9), "--prefix", "more/", "--device", "cpu"]
    remove = ["remove", "i7", "more/i1", "--device", "cpu"]
    for name in ("whole", "killed"):
        assert order(tmp_path / name, "cmrhash", commands["photos"]) == 0, (tmp_path / name / "output").read_text()
        assert order(tmp_path / name, "cmrhash", [*TRAIN, "--relevance", "pairs"]) == 0
    for seed, change in enumerate((add, remove)):
        assert order(tmp_path / "whole", "cmrhash", change) == 0, (tmp_path / "whole/output").read_text()
        kills = kill_until_done(order, tmp_path / "killed", "cmrhash", change, {"disk": (3, 48)}, seed=seed)
        assert len(kills) >= 8
        faults.tried += len(kills)
        same = all(files(tmp_path / "killed" / part) == files(tmp_path / "whole" / part) for part in ("cache", "runs"))
        faults.survived += len(kills) * same


@pytest.mark.faults("killed for real, training resumed")
def test_a_killed_training_goes_on_to_the_same_run(order, make_cache, tmp_path, faults):
    for name in ("whole", "killed"):
        make_cache(tmp_path / name / "cache")
    assert order(tmp_path / "whole", "cmrhash", TRAIN) == 0
    kills = kill_until_done(order, tmp_path / "killed", "cmrhash", TRAIN, {"disk": (3, 12), "step": (3, 12)}, seed=1)
    assert len(kills) >= 6
    assert {kind for kind, _ in kills} == {"disk", "step"}
    same = files(tmp_path / "killed" / "runs") == files(tmp_path / "whole" / "runs")
    saved = said(tmp_path / "killed")
    faults.tried = len(kills)
    faults.survived = len(kills) * same
    faults.lost = len(saved) - len(set(saved))  # no epoch that was saved is trained again
    assert set(saved) <= set(said(tmp_path / "whole"))  # a kill may come between a checkpoint and the word of it
    assert order(tmp_path / "naive", "naive training") == 0
    cut = kill_until_done(order, tmp_path / "naive killed", "naive training", [], {"step": (3, 12)}, seed=1)
    last = f"model-{kill_child.EPOCHS - 1}.pt"
    faults.naive_tried = len(cut)
    faults.naive_survived = len(cut) * (files(tmp_path / "naive")[last] == files(tmp_path / "naive killed")[last])
