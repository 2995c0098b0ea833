"""Extraction by several processes, --shard I/N in any order or torchrun, gives the cache of one, to the byte."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import typer.testing

from cmrhash.config import ExtractConfig, FinetuneConfig
from cmrhash.errors import DataError, StaleError, UsageError
from cmrhash.features import captions as extract_texts
from cmrhash.features import images as extract_images
from cmrhash.features.extract import extract, refuse_bad
from cmrhash.features.file import read_features
from cmrhash.training.finetune.extract import extract_tuned
from cmrhash_cli.main import app

SMALL = "shufflenet_v2_x0_5"  # the quickest of torchvision's classifiers
COUNT, BLOCK = 20, 4
FILES = {"image": f"image-{SMALL}-random.h5", "de": "text-de-bow9.h5", "en": "text-en-bow9.h5"}
# what torchrun starts: the command line, with blocks that are small enough for two processes to share 20 photos
SCRIPT = f"""
import os
from cmrhash.features import images as extract_images
from cmrhash.features import captions as extract_texts
from cmrhash.errors import DataError
from cmrhash_cli.main import main

extract_images.IMAGE_BLOCK = extract_texts.TEXT_BLOCK = {BLOCK}
if os.environ.get("RANK") == os.environ.get("FAIL"):
    def fail(*_):
        raise DataError("a disk went away", "somewhere", "mount it again")
    extract_images.load_image = fail
main()
"""


@pytest.fixture(autouse=True, scope="module")
def small_blocks():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(extract_images, "IMAGE_BLOCK", BLOCK)
        patch.setattr(extract_texts, "TEXT_BLOCK", BLOCK)
        yield


@pytest.fixture(scope="module")
def source(make_manifest, tmp_path_factory):
    """20 photos, two of them broken, and one item without a German caption."""
    root = make_manifest(tmp_path_factory.mktemp("source"), COUNT)
    for n in (2, 13):
        (root / "images" / f"{n}.jpg").write_bytes(b"no photo")
    entries = [json.loads(line) for line in (root / "manifest.jsonl").read_text().splitlines()]
    del entries[7]["texts"]["de"]
    (root / "manifest.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return root


def config(root, cache, **changes):
    settings = ExtractConfig(
        dataset="manifest", root=root, cache=cache, image_model=SMALL, image_weights="random", image_batch=4
    )
    return replace(settings, text_models=("bow",), vocabulary=9, **changes)


@pytest.fixture(scope="module")
def clean(small_blocks, source, tmp_path_factory):
    """The report of one process."""
    return extract(config(source, tmp_path_factory.mktemp("clean")))


def watched(settings):
    """What progress was told after the encoders were loaded, and the report."""
    calls = []
    return calls, extract(settings, lambda *call: call[0].startswith("loading") or calls.append(call))


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.startswith(".")}


def quarantined(folder):
    return [(e["id"], e["stage"]) for e in map(json.loads, (folder / "quarantine.jsonl").read_text().splitlines())]


def test_shards_stored_as_float16_give_the_bytes_of_one_process(source, clean, tmp_path):
    asked = {"store_dtype": "float16"}
    whole = extract(config(source, tmp_path / "whole", **asked))
    for number in (2, 1, 3):
        report = extract(config(source, tmp_path / "shards", shard=f"{number}/3", **asked))
    assert contents(report.folder) == contents(whole.folder)
    for name in FILES.values():
        half, full = (read_features(of.folder / name) for of in (whole, clean))
        assert half.recipe == {**full.recipe, "store_dtype": "float16"}
        assert half.x.dtype == np.float32
        np.testing.assert_allclose(half.x, full.x, rtol=2**-11, atol=2**-29 * np.abs(full.x).max())
        np.testing.assert_array_equal(half.source, full.source)
    with pytest.raises(StaleError, match="with store_dtype = float16, but this call has nothing"):
        extract(config(source, tmp_path / "whole"))
    with pytest.raises(UsageError, match="'float8' cannot be stored: choose one of float32, float16"):
        extract(config(source, tmp_path / "none", store_dtype="float8"))
    assert not (tmp_path / "none").exists()


def test_rows_stored_as_float16_are_reused_when_the_data_set_grows(make_manifest, tmp_path):
    root = make_manifest(tmp_path / "mine", COUNT)
    asked = {"store_dtype": "float16", "langs": ("EN",)}
    lines = (root / "manifest.jsonl").read_text().splitlines(keepends=True)
    (root / "manifest.jsonl").write_text("".join(lines[:-3]))
    extract(replace(config(root, tmp_path / "grown", **asked), text_models=("En=bow",)))
    (root / "manifest.jsonl").write_text("".join(lines))
    calls, report = watched(config(root, tmp_path / "grown", **asked))
    assert max(total for what, _, total in calls if what == "images") == COUNT
    assert [file.path.name for file in report.files] == [FILES["image"], FILES["en"]]
    grown = {file.view: read_features(file.path) for file in report.files}
    whole = {file.view: read_features(file.path) for file in extract(config(root, tmp_path / "whole", **asked)).files}
    np.testing.assert_allclose(grown["image"].x, whole["image"].x, rtol=2**-9, atol=1e-6)
    assert grown["image"].ids == whole["image"].ids


@pytest.mark.slow
@pytest.mark.parametrize("order", [(1, 2), (3, 1, 2)])
def test_shards_give_the_cache_of_one_process(source, clean, tmp_path, order):
    of = len(order)
    for at, number in enumerate(order):
        calls, report = watched(config(source, tmp_path, shard=f"{number}/{of}"))
        waiting = tuple(sorted(order[at + 1 :]))
        assert {file.missing for file in report.files} == {waiting}
        assert all(what.endswith((f" of shard {number}/{of}", "merged")) for what, *_ in calls)
        rows = sum(done for what, done, total in calls if what.startswith("images of shard") and done == total)
        assert rows == {2: {1: 8, 2: 12}, 3: {1: 4, 2: 8, 3: 8}}[of][number]
        if waiting:
            assert all(file.path.name.endswith(f".h5.shard-{number}-of-{of}") for file in report.files)
            assert [file.items for file in report.files] == [file.rows for file in report.files]
            assert not (report.folder / "quarantine.jsonl").exists()
            refuse_bad(report, 0)
    assert contents(report.folder) == contents(clean.folder)
    assert quarantined(report.folder) == [("i2", "image"), ("i13", "image"), ("i7", "de")]
    assert [replace(file, seconds=0, path=None) for file in report.files] == [
        replace(file, seconds=0, path=None) for file in clean.files
    ]
    with pytest.raises(DataError, match="2 of 20 items could not be used"):
        refuse_bad(report, 0)
    again = extract(config(source, tmp_path, shard=f"1/{of}"))
    assert not any(file.fresh or file.missing for file in again.files)
    assert contents(report.folder) == contents(clean.folder)


def test_an_interrupted_shard_goes_on_where_it_was(source, clean, tmp_path):
    def kill(what, done, _):
        if what.startswith("images") and done >= 8:
            raise KeyboardInterrupt

    extract(config(source, tmp_path, shard="1/2"))
    with pytest.raises(KeyboardInterrupt):
        extract(config(source, tmp_path, shard="2/2"), kill)
    calls, report = watched(config(source, tmp_path, shard="2/2"))
    assert calls[0] == ("images of shard 2/2", 4, 12)
    assert contents(report.folder) == contents(clean.folder)


def test_shards_of_a_data_set_that_changed_between_them_are_refused(make_manifest, tmp_path):
    root = make_manifest(tmp_path / "mine", COUNT)
    extract(config(root, tmp_path / "cache", shard="1/2"))
    lines = (root / "manifest.jsonl").read_text()
    (root / "manifest.jsonl").write_text(lines.replace("dog 4", "dog 5"))
    with pytest.raises(
        StaleError, match=r"changed \(1 changed \(i4\), 19 as before\).*extract the changes in one process"
    ):
        extract(config(root, tmp_path / "cache", shard="2/2"))


def test_another_vocabulary_is_another_recipe(source, tmp_path):
    extract(config(source, tmp_path, shard="1/2", pooling="binary"))
    with pytest.raises(
        StaleError, match=r"shard was made with weights_sha256 = \w+, but this call has \w+: .*shard-1-of-2"
    ):
        extract(config(source, tmp_path, shard="1/2", seed=1))


def test_fine_tuning_is_not_sharded(source, tmp_path):
    with pytest.raises(UsageError, match="shard: fine-tuning has no shards: tune in one call"):
        extract_tuned(config(source, tmp_path, shard="1/2"), FinetuneConfig())
    assert not any(tmp_path.iterdir())


def test_torchrun_deals_out_the_shards_itself(source, tmp_path, monkeypatch):
    for name, value in {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 2, "MASTER_ADDR": "x", "MASTER_PORT": 1}.items():
        monkeypatch.setenv(name, str(value))
    with pytest.raises(UsageError, match="shard: torchrun gives each process its own shard: leave out"):
        extract(config(source, tmp_path, shard="1/2"))


def options(source, cache):
    given = {"dataset": "manifest", "root": source, "cache": cache, "image-model": SMALL, "image-weights": "random"}
    given |= {"image-batch": 4, "text-model": "bow", "vocabulary": 9, "max-bad": 0.5}
    return ["extract", *(str(part) for name, value in given.items() for part in (f"--{name}", value))]


def test_the_last_lines_say_what_is_still_missing(source, clean, tmp_path):
    shell = typer.testing.CliRunner()
    first = shell.invoke(app, [*options(source, tmp_path), "--shard", "2/3"])
    assert first.exit_code == 0
    waiting = [f"{FILES[stage]} waits for shard 1/3, 3/3" for stage in ("image", "de", "en")]
    assert first.stderr.splitlines()[-4:] == [
        *waiting,
        "shard 2/3 is done; the process that finishes last merges the shards",
    ]
    assert f"{FILES['image']}.shard-2-of-3" in first.stdout
    second = shell.invoke(app, [*options(source, tmp_path), "--shard", "1/3", "--json", "-q"])
    assert [file["missing_shards"] for file in json.loads(second.stdout)["files"]] == [[3]] * 3
    last = shell.invoke(app, [*options(source, tmp_path), "--shard", "3/3"])
    assert last.stderr.splitlines()[-1].startswith("next: cmrhash train")
    assert contents(tmp_path / "manifest") == contents(clean.folder)


def torchrun(script, args, **env):
    """Two processes on this machine; returns how it ended and what all of them printed."""
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | env
    return subprocess.run([*start, *args], env=environment, capture_output=True, text=True, timeout=120)


@pytest.mark.slow
def test_two_processes_of_torchrun_give_the_cache_of_one(source, clean, tmp_path):
    """Slow: two times two real processes, each of which imports torch. First one of them fails half-way."""
    (tmp_path / "script.py").write_text(SCRIPT)
    failed = torchrun(tmp_path / "script.py", options(source, tmp_path / "cache"), FAIL="1")
    assert failed.returncode
    told = [line for line in failed.stderr.splitlines() if line.startswith("error: ")]
    assert told == ["error: a disk went away: somewhere: mount it again"], failed.stderr
    assert failed.stdout == ""
    done = torchrun(tmp_path / "script.py", options(source, tmp_path / "cache"))
    assert done.returncode == 0, done.stderr
    assert contents(tmp_path / "cache/manifest") == contents(clean.folder)
    assert done.stdout.count(FILES["image"]) == 1
    assert done.stderr.count("reading") == done.stderr.count("next: cmrhash train") == 1
    assert "images of shard 1/2: 8/8" in failed.stderr + done.stderr
    assert "shard 2/2" not in failed.stderr + done.stderr
