"""The three commands of the README, each as typed, each a process of its own, on a small built-in sample."""

import json
import os
import re
import subprocess
import sys

import pytest

from cmrhash.data.sample import draw

SCRIPT = [sys.executable, "-c", "from cmrhash_cli.main import main; main()"]
COUNT = 60


def cmrhash(folder, *args):
    done = subprocess.run([*SCRIPT, *args], cwd=folder, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return done


@pytest.fixture(scope="module")
def story(tmp_path_factory):
    """What the three commands printed, in their order; drawn before, so that the sample is a small one."""
    folder = tmp_path_factory.mktemp("story")
    draw(folder / "cache/sample/drawn", count=COUNT)
    extract = cmrhash(folder, "extract")
    train = cmrhash(folder, "train", "--bits", "32")
    score = cmrhash(folder, "eval", "--lang", "de")
    return folder, extract, train, score


def test_extract_uses_the_drawn_sample(story):
    folder, extract, _, _ = story
    cache = folder / "cache/sample"
    assert json.loads((cache / "dataset.json").read_text())["name"] == "sample"
    assert len((cache / "items.jsonl").read_text().splitlines()) == COUNT
    assert {path.name for path in cache.glob("*.h5")} == {
        "image-resnet18-random.h5",
        "text-de-bert-random.h5",
        "text-en-bert-random.h5",
    }
    assert f"images: {COUNT}/{COUNT}" in extract.stderr
    assert "next: cmrhash train" in extract.stderr
    assert (cache / "quarantine.jsonl").read_text() == ""


def test_train_leaves_a_run_with_codes(story):
    folder, _, train, _ = story
    names = {path.name for path in (folder / "runs/sample/triplet-32").iterdir() if not path.name.startswith(".")}
    files = "config.json heads.safetensors history.jsonl codes.h5 image.faiss text-de.faiss text-en.faiss metrics.json"
    assert names == set(files.split())
    assert "de i2t" in train.stdout
    assert "next: cmrhash eval" in train.stderr


def test_eval_prints_figures_with_their_protocol(story):
    shown = story[3].stdout
    title, rest = shown.split("\n", 1)
    assert title.strip().startswith("sample: mAP over the whole database")
    assert "UNTRAINED ENCODERS" in title
    head, row = (next(line.split() for line in rest.splitlines() if re.search(p, line)) for p in ("method", "triplet"))
    assert head[:7] == ["method", "bits", "seed", "lang", "i2t", "t2i", "chance"]
    assert row[:4] == ["triplet", "32", "0", "de"]
    i2t, t2i, chance = map(float, row[4:7])
    assert i2t > chance + 0.08
    assert t2i > chance + 0.08
    for line in ("6 query items", "54 database items", "shares at least one label", "random order", "drawn from seed 0"):
        assert line in rest


def test_nothing_but_cache_and_runs_is_left(story):
    assert sorted(os.listdir(story[0])) == ["cache", "runs"]


def test_the_same_commands_find_everything_there(story):
    folder = story[0]
    made = [path for path in folder.rglob("*") if path.suffix in (".h5", ".faiss", ".safetensors", ".jsonl")]
    before = {path: path.stat().st_mtime_ns for path in made if path.name != "quarantine.jsonl"}
    assert "was there" in cmrhash(folder, "train", "--bits", "32").stdout
    assert cmrhash(folder, "eval", "--lang", "de").stdout == story[3].stdout
    assert before == {path: path.stat().st_mtime_ns for path in before}
