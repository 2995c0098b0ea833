"""The three commands of the README, each as typed, each a process of its own, on a small built-in sample."""

import json
import os
import re
import subprocess
import sys

import pytest
from running import run

from cmrhash.data.sample import draw

pytestmark = pytest.mark.slow

SCRIPT = [sys.executable, "-c", "from cmrhash_cli.main import main; main()"]
COUNT = 60


def cmrhash(folder, *args):
    done = subprocess.run([*SCRIPT, *args], cwd=folder, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return done


def test_the_three_commands(tmp_path, monkeypatch, capsys):
    """One test, for each step needs the one before; the sample is drawn first, so that it is a small one."""
    draw(tmp_path / "cache/sample/drawn", count=COUNT)
    check_extract(tmp_path, cmrhash(tmp_path, "extract"))
    check_train(tmp_path, cmrhash(tmp_path, "train", "--bits", "32"))
    first = cmrhash(tmp_path, "eval", "--lang", "de")
    check_eval(first)
    assert sorted(os.listdir(tmp_path)) == ["cache", "runs"]
    made = [path for path in tmp_path.rglob("*") if path.suffix in (".h5", ".faiss", ".safetensors")]
    before = {path: path.stat().st_mtime_ns for path in made}
    monkeypatch.chdir(tmp_path)
    assert run("eval", "--lang", "de") == 0
    assert capsys.readouterr().out == first.stdout
    assert before == {path: path.stat().st_mtime_ns for path in before}


def check_extract(folder, extract):
    cache = folder / "cache/sample"
    assert json.loads((cache / "dataset.json").read_text())["name"] == "sample"
    assert len((cache / "items.jsonl").read_text().splitlines()) == COUNT
    names = {"image-resnet18-random.h5", "text-de-bert-random.h5", "text-en-bert-random.h5"}
    assert {path.name for path in cache.glob("*.h5")} == names
    assert f"images: {COUNT}/{COUNT}" in extract.stderr
    assert "next: cmrhash train" in extract.stderr
    assert (cache / "quarantine.jsonl").read_text() == ""


def check_train(folder, train):
    names = {path.name for path in (folder / "runs/sample/triplet-32").iterdir() if not path.name.startswith(".")}
    wanted = {"config.json", "heads.safetensors", "history.jsonl", "items.digests", "codes.h5"}
    assert names == wanted | {"image.faiss", "text-de.faiss", "text-en.faiss"}
    assert "de i2t" in train.stdout
    assert "next: cmrhash eval" in train.stderr


def check_eval(score):
    title, rest = score.stdout.split("\n", 1)
    assert title.strip().startswith("sample: mAP over the whole database")
    assert "UNTRAINED ENCODERS" in title
    head, row = (next(line.split() for line in rest.splitlines() if re.search(p, line)) for p in ("method", "triplet"))
    assert head[:7] == ["method", "bits", "seed", "lang", "i2t", "t2i", "chance"]
    assert row[:4] == ["triplet", "32", "0", "de"]
    i2t, t2i, chance = map(float, row[4:7])
    assert i2t > chance + 0.08
    assert t2i > chance + 0.08
    for words in ("6 query items", "54 database items", "at least one label", "random order", "drawn from seed 0"):
        assert words in rest
