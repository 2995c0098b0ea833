"""cmrhash cache ls, verify and prune over folders in every state that a cache and its runs can be in."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from cmrhash.config import LEFT_BEHIND, PruneConfig, TrainConfig
from cmrhash.data import manifest
from cmrhash.data.items import ids_digest
from cmrhash.features.dataset import ExtractedDataset
from cmrhash.features.file import FeatureWriter
from cmrhash.features.shards import Shard, Target
from cmrhash.maintenance.inventory import survey
from cmrhash.maintenance.prune import Doomed, delete, plan
from cmrhash.storage import files, hdf5
from cmrhash.storage.files import locked
from cmrhash.storage.hdf5 import write_sealed
from cmrhash.storage.sealed import merging
from cmrhash.training import checkpoint, runs
from cmrhash.training.train import train
from cmrhash_cli.main import app

CACHE, RUNS = Path("cache"), Path("runs")
TOY, RUN = CACHE / "toy", RUNS / "toy" / "triplet-8"
SMALL = TrainConfig(bits=8, epochs=2, batch=16, hidden=16, device="cpu")
TRAIN = ["train", "--bits", 8, "--epochs", 2, "--batch", 16, "--hidden", 16, "--device", "cpu", "--dataset", "toy"]
CHANGED = "damaged (the file was changed after writing: its sha256 differs)"
RECIPE = {"kind": "image", "encoder": "other"}


@pytest.fixture(scope="module")
def prepared(make_cache, tmp_path_factory):
    """``cache/toy`` and a scored run of 8 bits, whose photos (all of them empty files) lie beside the caches."""
    base, before = tmp_path_factory.mktemp("prepared"), os.getcwd()
    os.chdir(base)
    make_cache(CACHE)
    for n in range(120):
        Path(f"cache/{n}.jpg").touch()
    assert invoke(*TRAIN, "-q").exit_code == 0
    os.chdir(before)
    return base


@pytest.fixture
def here(prepared, tmp_path, monkeypatch):
    """A copy of it as the current folder."""
    shutil.copytree(prepared, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    manifest.store(replace(manifest.load(TOY), root=CACHE), TOY)
    return tmp_path


def invoke(*args):
    return CliRunner().invoke(app, [str(arg) for arg in args])


def states():
    """Path below the two folders -> state in words, for all that is not simply there."""
    return {str(e.path): e.words for e in survey(CACHE, RUNS) if e.words not in ("whole", "sealed", "trained")}


def contents(folder="."):
    return {p: p.read_bytes() for p in Path(folder).rglob("*") if p.is_file() and not p.name.endswith(".lock")}


def verified(*options):
    """Exit code, and path -> line of everything that is not whole."""
    done = invoke("cache", "verify", "-q", *options)
    *lines, last = done.stdout.splitlines()
    assert " files checked, " in last, done.output
    return done.exit_code, {line.split()[1].rstrip(":"): line for line in lines if not line.startswith("whole ")}


def pruned(**options):
    """Names of what would go, with the reasons."""
    return {one.what: one.why for one in plan(PruneConfig(**options), CACHE, RUNS)}


def flip(path, at=-2):
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


# ---------------------------------------------------------------------------------------------- states


def half_extracted():
    """An extraction that stopped after two of three blocks."""
    data = manifest.load(TOY)
    recipe, ids = RECIPE | {"items": ids_digest(data)}, tuple(item.id for item in data.items)
    with FeatureWriter(TOY / "image-other.h5", np.arange(120, dtype=np.int32), ids, 4, recipe, 50) as writer:
        for block in (0, 1):
            writer.commit(block, np.ones((50, 4), np.float32), np.ones(50, bool), np.zeros((50, 16), np.uint8))


def other_items():
    data = manifest.load(TOY)
    manifest.store(replace(data, items=data.items[:-1]), TOY)


def half_trained(**settings):
    """A training that is interrupted after its first epoch."""

    def stop(what, done, total, note):
        if done == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(replace(SMALL, bits=16, **settings), ExtractedDataset.open(CACHE, "toy"), RUNS, progress=stop)


def half_trained_again():
    """A finished run whose overwriting by other settings was interrupted."""

    def stop(what, done, total, note):
        if done == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(replace(SMALL, epochs=5), ExtractedDataset.open(CACHE, "toy"), RUNS, overwrite=True, progress=stop)


def other_heads():
    train(replace(SMALL, seed=1), ExtractedDataset.open(CACHE, "toy"), RUNS)
    for name in (runs.HEADS, runs.CONFIG, runs.HISTORY):
        shutil.copy(RUNS / "toy/triplet-8-seed1" / name, RUN)
    shutil.rmtree(RUNS / "toy/triplet-8-seed1")


def other_version():
    config = dict(runs.read_record(RUN))
    runs.write_record(RUN, config | {"version": 2})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hdf5, "VERSION", 3)
        write_sealed(TOY / "image-new.h5", {"x": np.zeros(3)}, {"kind": "features"})


def fields_missing():
    config = dict(runs.read_record(RUN))
    del config["relevance"]
    runs.write_record(RUN, config)
    write_sealed(TOY / "image-odd.h5", {"x": np.zeros(3)}, {"kind": "features", "recipe": "none"})


def words_left():
    recipe = RECIPE | {"kind": "text", "lang": "en", "items": ids_digest(manifest.load(TOY))}
    write_sealed(TOY / "words-en-bow.h5", {"x": np.zeros(3)}, {"kind": "words", "recipe": recipe})


def foreign():
    (TOY / "notes.h5").write_bytes(b"my own")
    (TOY / "image-mine.h5").write_bytes(b"my own")
    (TOY / "text-en-x.h5").write_bytes(b"")
    (TOY / "image-folder.h5").mkdir()
    (TOY / "image-gone.h5").symlink_to("nowhere")
    os.mkfifo(TOY / "image-pipe.h5")
    os.mkfifo(TOY / "image-pipe.h5.part")


def damaged():
    half_trained()
    flip(TOY / "image-toy.h5", 300)
    (RUN / runs.HEADS).unlink()
    (RUNS / "toy/triplet-16" / runs.CHECKPOINT).write_bytes(b"{}")


def tuned(name, sha256):
    folder = TOY / runs.TUNED / name
    folder.mkdir(parents=True)
    (folder / "image.safetensors").write_bytes(b"weights")
    (folder / "text-en").mkdir()
    (folder / "text-en/tokenizer.json").write_bytes(b"{}")
    made = {name: files.sha256(folder / name) for name in ("image.safetensors", "text-en/tokenizer.json")}
    recipe = {"items_sha256": sha256, "finetune": {"epochs": 3}}
    runs.write_record(folder, {"recipe": recipe, "weights": {"image": "image.safetensors"}, "files": made})
    return recipe


def shards():
    """Of three shards of a feature file the second, and two of three blocks of the third."""
    data = manifest.load(TOY)
    recipe, ids = RECIPE | {"items": ids_digest(data)}, tuple(item.id for item in data.items)

    def target(number):
        return Target(
            TOY / "image-other.h5", np.arange(120, dtype=np.int32), ids, 4, recipe, 14, Shard(number, 3), False
        )

    for number, blocks in ((2, 3), (3, 2)):
        with target(number).writer() as writer:
            for block in range(blocks):
                rows = writer.slice(block).stop - writer.slice(block).start
                writer.commit(
                    block, np.ones((rows, 4), np.float32), np.ones(rows, bool), np.zeros((rows, 16), np.uint8)
                )
            if blocks == writer.blocks:
                target(number).seal(writer, {})


STATES = {
    "all is whole": (lambda: None, {}),
    "shards": (
        shards,
        {
            "cache/toy/image-other.h5.shard-2-of-3": "shard 2 of 3",
            "cache/toy/image-other.h5.shard-3-of-3.part": "unfinished (shard 3 of 3, 2 of 3 blocks)",
        },
    ),
    "shards of other items": (
        lambda: (shards(), other_items()),
        {
            "cache/toy/image-other.h5.shard-2-of-3": "items changed",
            "cache/toy/image-other.h5.shard-3-of-3.part": "items changed (unfinished, shard 3 of 3, 2 of 3 blocks)",
            **{f"cache/toy/{view}-toy.h5": "items changed" for view in ("image", "text-de", "text-en")},
            "runs/toy/triplet-8": "items changed",
        },
    ),
    "a shard killed while space was set aside": (
        lambda: (TOY / "image-other.h5.shard-2-of-3.part.new").touch(),
        {"cache/toy/image-other.h5.shard-2-of-3.part.new": "left behind"},
    ),
    "an extraction": (half_extracted, {"cache/toy/image-other.h5.part": "unfinished (2 of 3 blocks)"}),
    "an extraction of other items": (
        lambda: (half_extracted(), other_items()),
        {
            "cache/toy/image-other.h5.part": "items changed (unfinished, 2 of 3 blocks)",
            **{f"cache/toy/{view}-toy.h5": "items changed" for view in ("image", "text-de", "text-en")},
            "runs/toy/triplet-8": "items changed",
        },
    ),
    "features gone": (
        lambda: (TOY / "text-de-toy.h5").unlink(),
        {"runs/toy/triplet-8": "features gone (codes left)"},
    ),
    "features and codes gone": (
        lambda: (shutil.rmtree(TOY), (RUN / runs.CODES).unlink()),
        {"runs/toy/triplet-8": "features gone (no codes yet)"},
    ),
    "no codes": (lambda: (RUN / runs.CODES).unlink(), {"runs/toy/triplet-8": "trained (no codes yet)"}),
    "no index": (lambda: (RUN / "image.faiss").unlink(), {"runs/toy/triplet-8": "trained (without image.faiss)"}),
    "a training": (half_trained, {"runs/toy/triplet-16": "unfinished (epoch 1 of 2)"}),
    "a training anew": (half_trained_again, {"runs/toy/triplet-8": "trained (another one at epoch 1 of 5)"}),
    "nothing trained": (
        lambda: (RUNS / "toy/cca-8").mkdir() or files.lock_of(RUNS / "toy/cca-8" / runs.CONFIG).touch(),
        {"runs/toy/cca-8": "left behind (nothing saved yet)"},
    ),
    "other heads": (other_heads, {"runs/toy/triplet-8": "codes of other heads"}),
    "a newer cmrhash": (
        other_version,
        {
            "cache/toy/image-new.h5": "another format (file format version 3)",
            "runs/toy/triplet-8": "another format (run format version 2)",
        },
    ),
    "an older cmrhash": (
        fields_missing,
        {
            "cache/toy/image-odd.h5": "another format (fields are missing)",
            "runs/toy/triplet-8": "another format (fields are missing)",
        },
    ),
    "words": (words_left, {"cache/toy/words-en-bow.h5": "words of other features"}),
    "files of others": (
        foreign,
        {
            "cache/toy/notes.h5": "not of cmrhash",
            "cache/toy/image-mine.h5": "damaged (not a sealed file of cmrhash, or damaged)",
            "cache/toy/text-en-x.h5": "damaged (not a sealed file of cmrhash, or damaged)",
            **{f"cache/toy/image-{name}.h5": "not of cmrhash (no file)" for name in ("folder", "gone", "pipe")},
            "cache/toy/image-pipe.h5.part": "not of cmrhash (no file)",
        },
    ),
    "damaged files": (
        damaged,
        {
            "cache/toy/image-toy.h5": "damaged (not a sealed file of cmrhash, or damaged)",
            "runs/toy/triplet-8": "damaged (heads.safetensors is missing)",
            "runs/toy/triplet-16": CHANGED,
        },
    ),
    "a damaged config": (
        lambda: flip(RUN / runs.CONFIG, 50),
        {"runs/toy/triplet-8": CHANGED},
    ),
    "damaged items": (
        lambda: flip(TOY / manifest.ITEMS),
        {"cache/toy/items.jsonl": "damaged (the items were changed after extraction)"},
    ),
    "no items": (
        lambda: (TOY / manifest.ABOUT).unlink(),
        {"cache/toy/items.jsonl": "damaged (incomplete data set folder)"},
    ),
    "killed while space was set aside": (
        lambda: (TOY / "image-other.h5.part.new").touch(),
        {"cache/toy/image-other.h5.part.new": "left behind"},
    ),
    "tuned encoders": (
        lambda: (tuned("a", manifest.load(TOY).sha256), tuned("b", "other"), (TOY / "tuned/b/history.jsonl").touch()),
        {"cache/toy/tuned/a": "tuned", "cache/toy/tuned/b": "items changed"},
    ),
}


@pytest.mark.parametrize("name", STATES)
def test_every_state_is_told(here, name):
    make, wanted = STATES[name]
    make()
    before = contents()
    assert states() == wanted
    done = invoke("cache", "ls")
    assert done.exit_code == 0, done.output
    for path, state in wanted.items():
        assert state.partition(" (")[0] in done.stdout
        assert Path(path).name in done.stdout
    assert contents() == before


def test_features_that_were_extracted_again(here, make_cache):
    make_cache(CACHE, shift="train")
    assert states() == {str(RUN): "features changed (image-toy.h5, text-de-toy.h5, text-en-toy.h5)"}
    code, lines = verified("--no-sources")
    assert code == 4
    assert list(lines) == [str(RUN)]
    assert "run cmrhash train with --overwrite, or cmrhash cache prune" in lines[str(RUN)]


def test_what_another_process_is_writing(here):
    half_extracted()
    who = f"being written (by process {os.getpid()} on "
    with locked(TOY / "image-other.h5"), locked(TOY / "image-toy.h5"), locked(RUN / runs.CONFIG):
        found = states()
        assert found.pop("cache/toy/image-other.h5.part").startswith(who)
        assert "2 of 3 blocks" in {str(e.path): e.detail for e in survey(CACHE, RUNS)}["cache/toy/image-other.h5.part"]
        assert found.pop("cache/toy/image-toy.h5").startswith(who)
        assert found.pop("runs/toy/triplet-8").startswith(who)
        assert found == {}
        assert {what for what in pruned(unfinished=True, gone=True) if "lock file" not in what} == set()
    with locked(RUN / runs.CODES):  # it is being encoded
        assert states()[str(RUN)].startswith(who)
    assert "cache/toy/image-other.h5.part" in pruned(unfinished=True)


def test_ls_counts_rows_and_sizes_as_json(here):
    done = invoke("cache", "ls", "--json")
    found = json.loads(done.stdout)
    by_name = {Path(entry["path"]).name: entry for entry in found["files"]}
    assert set(by_name) == {"items.jsonl", "image-toy.h5", "text-de-toy.h5", "text-en-toy.h5"}
    text = by_name["text-de-toy.h5"]
    wanted = {
        "view": "text-de",
        "encoder": "toy",
        "rows": 240,
        "ok": 240,
        "dim": 12,
        "state": "sealed",
    }
    assert {key: text[key] for key in wanted} == wanted
    assert text["bytes"] == (TOY / "text-de-toy.h5").stat().st_size
    (run,) = found["runs"]
    assert (run["path"], run["method"], run["bits"], run["status"]) == ("runs/toy/triplet-8", "triplet", 8, "whole")
    assert 0 < run["val_map"] < 1
    assert run["bytes"] == sum(len(content) for content in contents(RUN).values())


def test_ls_imports_no_torch(here):
    code = """
import sys
sys.argv = ["cmrhash", "cache", "ls"]
from cmrhash_cli.main import main
try:
    main()
except SystemExit as end:
    assert not end.code
print([m for m in ("torch", "torchvision", "transformers", "faiss") if m in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


def test_one_data_set_or_none(here, make_cache):
    make_cache(CACHE, "other")
    for command in ("ls", "verify", "prune"):
        done = invoke("cache", command, "--dataset", "toyy")
        assert str(done.exception) == "no data set 'toyy' (there: other, toy): cache: did you mean toy?"
        there = invoke("cache", command, "--dataset", "other").stdout
        assert "other" in there
        assert "toy/" not in there
    shutil.rmtree(CACHE)
    shutil.rmtree(RUNS)
    assert "run cmrhash extract first" in invoke("cache", "ls").stderr
    assert json.loads(invoke("cache", "prune", "--json").stdout)["things"] == []
    assert str(invoke("cache", "verify").exception).startswith("nothing to verify: cache and runs: ")


# ---------------------------------------------------------------------------------------------- verify


def test_all_is_whole(here):
    assert verified() == (0, {})
    done = invoke("cache", "verify", "--json")
    found = json.loads(done.stdout)
    assert (found["whole"], found["stale"], found["damaged"]) == (len(found["files"]), 0, 0)
    assert {Path(file["file"]).name for file in found["files"]} == {
        *("items.jsonl", "image-toy.h5", "text-de-toy.h5", "text-en-toy.h5", "triplet-8"),
        *("heads.safetensors", "history.jsonl", "codes.h5", "image.faiss", "text-de.faiss", "text-en.faiss"),
    }
    assert "MB read: " in done.stderr
    assert "toy photos: 120/120" in done.stderr


@pytest.mark.faults("flipped bit")
def test_every_flipped_bit_is_found(here, faults):
    """In every file that has a digest, one bit near the end."""
    half_trained()
    tuned("a", manifest.load(TOY).sha256)
    told_by = {RUN / runs.CONFIG: RUN, TOY / "tuned/a" / runs.CONFIG: TOY / "tuned/a"}
    told_by |= {RUNS / "toy/triplet-16" / runs.CHECKPOINT: RUNS / "toy/triplet-16"}
    told_by |= {TOY / manifest.ABOUT: TOY / manifest.ITEMS}
    for path in sorted(path for path in contents() if path.suffix != ".jpg" and path.name != runs.METRICS):
        content = path.read_bytes()
        flip(path)
        code, lines = verified("--no-sources")
        faults.tried += 1
        bad = {where for where, line in lines.items() if line.startswith("DAMAGED")}
        faults.survived += code == 6 and bad == {str(told_by.get(path, path))}
        path.write_bytes(content)
    assert faults.tried == 17
    assert verified("--no-sources")[0] == 0


def test_what_is_gone_is_told_with_what_to_do(here):
    (RUN / runs.HEADS).unlink()
    code, lines = verified()
    assert code == 6
    assert lines[str(RUN / runs.HEADS)].endswith("missing: run cmrhash train with --overwrite")
    flip(TOY / "text-de-toy.h5")
    flip(RUN / "image.faiss")
    lines = verified()[1]
    assert lines["cache/toy/text-de-toy.h5"].endswith("delete it and rerun the same cmrhash extract")
    assert lines["runs/toy/triplet-8/image.faiss"].endswith("delete it; cmrhash eval creates it again")


def test_what_is_not_whole_is_told_last(here):
    """The first file is the one with the bad bit, the photos' folder is gone: both stand above the sum."""
    flip(TOY / "image-toy.h5")
    manifest.store(replace(manifest.load(TOY), root=Path("elsewhere")), TOY)
    data = invoke("cache", "verify", "-q").stdout.splitlines()
    assert [line.split()[0] for line in data[:-1]] == ["whole"] * (len(data) - 2) + ["DAMAGED"]
    flip(TOY / "image-toy.h5")
    *_, before, line, total = invoke("cache", "verify", "-q").stdout.splitlines()
    assert before.startswith("whole ")
    assert "photos not compared: " in line
    assert " files checked, " in total


def test_photos_that_changed_or_are_gone(here):
    for n in (3, 5, 7, 9):
        Path(f"cache/{n}.jpg").write_bytes(b"another photo")
    for n in (110, 4):
        Path(f"cache/{n}.jpg").unlink()
    Path("cache/11.jpg").unlink()
    Path("cache/11.jpg").symlink_to("/etc/hostname")  # out of the folder
    code, lines = verified()
    assert code == 4
    (line,) = lines.values()
    assert (
        "image-toy.h5: 4 photos changed (i3, i5, i7, ...), 3 photos gone (i4, i11, i110): run cmrhash extract" in line
    )
    assert verified("--no-sources") == (0, {})
    flip(RUN / "image.faiss")
    assert verified()[0] == 6  # damage counts more


def test_captions_that_changed(here):
    data = manifest.load(TOY)
    texts = {**data.items[8].texts, "de": ("neu", data.items[8].texts["de"][1])}
    items = [replace(item, texts=texts) if n == 8 else item for n, item in enumerate(data.items)]
    manifest.store(replace(data, items=tuple(items)), TOY)
    code, lines = verified()
    assert code == 4
    assert "1 captions changed (i8)" in lines.pop("cache/toy/text-de-toy.h5")
    assert "items changed" in lines.pop(str(RUN))
    assert lines == {}
    items[9] = replace(items[9], texts={**items[9].texts, "en": ("one only",)})
    manifest.store(replace(data, items=tuple(items)), TOY)
    assert "captions came or went" in verified()[1]["cache/toy/text-en-toy.h5"]


def test_photos_that_cannot_be_compared(here):
    manifest.store(replace(manifest.load(TOY), root=Path("elsewhere")), TOY)
    done = invoke("cache", "verify", "-q")
    assert done.exit_code == 0
    assert f"image-toy.h5: sealed, photos not compared: {here / 'elsewhere'} is not there" in done.stdout


@pytest.mark.parametrize("name", ["image-other.h5.shard-2-of-3", "image-other.h5.shard-3-of-3.part"])
def test_a_shard_that_is_damaged(here, name):
    shards()
    assert verified()[0] == 0
    flip(TOY / name, hdf5.USER_BLOCK + 20)
    code, lines = verified()
    assert code == 6
    assert lines[f"cache/toy/{name}"].startswith("DAMAGED")


def test_an_unfinished_file_that_is_damaged(here):
    half_extracted()
    flip(TOY / "image-other.h5.part", hdf5.USER_BLOCK + 20)
    code, lines = verified()
    assert code == 6
    assert lines["cache/toy/image-other.h5.part"].startswith("DAMAGED")


@pytest.mark.parametrize(
    "name", ["an extraction", "shards", "features gone", "no codes", "killed while space was set aside"]
)
def test_what_is_neither_stale_nor_damaged(here, name):
    STATES[name][0]()
    code, lines = verified()
    assert code == 0
    assert all(line.split()[0] in ("unfinished", "gone", "leftover") for line in lines.values())


@pytest.mark.parametrize("name", ["other heads", "a newer cmrhash", "an older cmrhash", "words", "tuned encoders"])
def test_what_is_stale(here, name):
    STATES[name][0]()
    assert verified()[0] == 4


# ---------------------------------------------------------------------------------------------- prune


def test_without_yes_nothing_is_deleted_and_with_it_just_what_was_listed(here):
    half_extracted()
    half_trained()
    half_trained(seed=1)
    tuned("b", "other")
    words_left()
    (TOY / "image-new.h5.part.new").write_bytes(b"")
    (RUN / "notes.txt").write_text("mine")
    before = contents()
    everything = set(here.rglob("*"))
    listed = json.loads(invoke("cache", "prune", "--unfinished", "--gone", "--json").stdout)
    assert not listed["deleted"]
    assert contents() == before
    assert set(here.rglob("*")) == everything
    done = json.loads(invoke("cache", "prune", "--unfinished", "--gone", "--yes", "--json").stdout)
    assert done == listed | {"deleted": True}
    gone = {Path(file) for thing in done["things"] for file in thing["files"]}
    after = contents()
    assert after == {path: content for path, content in before.items() if path not in gone}
    assert done["bytes"] >= sum(len(before[path]) for path in before.keys() - after.keys()) > 0
    assert not (TOY / runs.TUNED).exists()
    assert not (RUNS / "toy/triplet-16").exists()
    assert list(here.rglob("*.lock")) == []
    assert pruned(unfinished=True, gone=True) == {}


def test_what_a_command_would_use_stays(here):
    """After a prune nothing is made again: not the features, not the run, not its codes."""
    half_extracted()
    half_trained_again()
    before = contents()
    assert set(pruned()) == {"2 lock files in runs/toy", "4 lock files in cache/toy"}
    assert invoke("cache", "prune", "--yes").exit_code == 0
    assert contents() == before
    assert not json.loads(invoke(*TRAIN, "--json").stdout)[0]["trained"]
    assert invoke("eval", "--json").exit_code == 0
    unchanged = {path: content for path, content in contents().items() if path.name != runs.METRICS}
    assert unchanged == {path: content for path, content in before.items() if path.name != runs.METRICS}
    with pytest.raises(KeyboardInterrupt):  # and the training in its place goes on where it was
        train(
            replace(SMALL, epochs=5), ExtractedDataset.open(CACHE, "toy"), RUNS, overwrite=True, progress=from_epoch(1)
        )


def from_epoch(wanted):
    def stop(what, done, total, note):
        assert done == wanted
        raise KeyboardInterrupt

    return stop


WHY = {
    "an extraction of other items": {
        "cache/toy/image-other.h5.part": "items changed (unfinished, 2 of 3 blocks)",
        **{f"cache/toy/{view}-toy.h5": "items changed" for view in ("image", "text-de", "text-en")},
        "runs/toy/triplet-8": "items changed",
    },
    "other heads": {"runs/toy/triplet-8/codes.h5": "codes of other heads"},
    "words": {"cache/toy/words-en-bow.h5": "words of other features"},
    "tuned encoders": {"cache/toy/tuned/b": "items changed"},
    "killed while space was set aside": {"cache/toy/image-other.h5.part.new": "left behind"},
    "a shard killed while space was set aside": {"cache/toy/image-other.h5.shard-2-of-3.part.new": "left behind"},
    "shards of other items": {
        "cache/toy/image-other.h5.shard-2-of-3": "items changed",
        "cache/toy/image-other.h5.shard-3-of-3.part": "items changed (unfinished, shard 3 of 3, 2 of 3 blocks)",
        **{f"cache/toy/{view}-toy.h5": "items changed" for view in ("image", "text-de", "text-en")},
        "runs/toy/triplet-8": "items changed",
    },
}
KEPT = (
    "shards",
    "an extraction",
    "a training",
    "a training anew",
    "features gone",
    "features and codes gone",
    "nothing trained",
)
KEPT += ("a newer cmrhash", "an older cmrhash", "files of others", "damaged files", "no items")


@pytest.mark.parametrize("name", [*WHY, *KEPT])
def test_what_goes_and_why(here, name):
    STATES[name][0]()
    found = pruned()
    assert {what: why for what, why in found.items() if "lock file" not in what} == WHY.get(name, {})
    before = contents()
    assert invoke("cache", "prune", "--yes").exit_code == 0
    assert pruned() == {}
    gone = {str(path) for path in before.keys() - contents().keys()}
    assert all(any(path.startswith(what.removesuffix("/codes.h5")) for what in found) for path in gone)
    if name == "other heads":
        assert (RUN / runs.HEADS).exists()
        assert invoke("eval").exit_code == 0


def test_unfinished_and_gone_go_only_when_asked(here):
    half_extracted()
    half_trained()
    half_trained_again()
    wanted = {"cache/toy/image-other.h5.part", "runs/toy/triplet-16", "runs/toy/triplet-8/checkpoint.json"}
    assert {what for what in pruned(unfinished=True) if "lock file" not in what} == wanted
    (TOY / "text-de-toy.h5").unlink()
    assert "runs/toy/triplet-8" not in pruned()
    assert pruned(gone=True)["runs/toy/triplet-8"] == "features gone (codes left)"


def test_shards_go_only_when_asked_and_while_nobody_is_at_them(here):
    shards()
    names = [f"cache/toy/image-other.h5.shard-{name}" for name in ("2-of-3", "3-of-3.part")]
    assert [what for what in pruned(unfinished=True) if "lock file" not in what] == names
    before = contents()
    planned = plan(PruneConfig(unfinished=True), CACHE, RUNS)
    merger = merging(TOY / "image-other.h5")
    with locked(merger):
        assert states()[names[0]].startswith(f"being written (merged by process {os.getpid()} on ")
        left = {one.what: left for one, left in delete(planned, CACHE, RUNS)}
        assert all(left[name].startswith(f"being written by process {os.getpid()} on ") for name in names)
    assert contents() == before
    assert invoke("cache", "prune", "--unfinished", "--yes").exit_code == 0
    assert {str(path) for path in before.keys() - contents().keys()} == set(names)
    assert list(TOY.glob(".*.lock")) == []


def test_a_checkpoint_that_outlived_its_training(here, monkeypatch):
    """Killed between the run and the removal of its checkpoint."""
    monkeypatch.setattr("cmrhash.training.train.forget", lambda _: None)
    half_trained()
    train(replace(SMALL, bits=16), ExtractedDataset.open(CACHE, "toy"), RUNS)
    folder = RUNS / "toy/triplet-16"
    assert (folder / runs.CHECKPOINT).exists()
    assert pruned()[str(folder / runs.CHECKPOINT)] == "of a training that is finished"
    before = contents()
    invoke("cache", "prune", "--yes")
    assert {path.name for path in before.keys() - contents().keys()} == {"checkpoint.json", "checkpoint-1.safetensors"}
    assert checkpoint.CHECKPOINT == runs.CHECKPOINT


def test_what_is_held_or_has_changed_is_left_alone(here):
    other_items()
    planned = plan(PruneConfig(), CACHE, RUNS)
    (TOY / "text-en-toy.h5").write_bytes(b"extracted again meanwhile")
    before = contents()
    with locked(TOY / "image-toy.h5"), locked(RUN / runs.CONFIG):
        done = {one.what: left for one, left in delete(planned, CACHE, RUNS)}
    assert done.pop("cache/toy/text-de-toy.h5") == ""
    assert done.pop("cache/toy/text-en-toy.h5") == "cache/toy/text-en-toy.h5 has changed meanwhile"
    assert done.pop("cache/toy/image-toy.h5").startswith(f"being written by process {os.getpid()} on ")
    assert done.pop("runs/toy/triplet-8").startswith("being written by ")
    assert before.keys() - contents().keys() == {TOY / "text-de-toy.h5"}
    with locked(RUN / runs.CONFIG):
        shown = invoke("cache", "prune", "--yes").stdout
    assert "runs/toy/triplet-8 " not in shown  # it is busy: not even planned


def test_nothing_behind_a_link_is_deleted(here, make_cache):
    outside = here / "outside"
    outside.mkdir()
    other_items()
    shutil.move(RUN, outside / "run")
    RUN.symlink_to(outside / "run")
    shutil.move(TOY / "image-toy.h5", outside)
    (TOY / "image-toy.h5").symlink_to(outside / "image-toy.h5")
    make_cache(outside, "linked")
    manifest.store(replace(manifest.load(outside / "linked"), items=manifest.load(TOY).items), outside / "linked")
    (CACHE / "linked").symlink_to(outside / "linked")
    before = contents(outside)
    assert states()["cache/linked/image-toy.h5"] == "items changed"  # to look is no harm
    assert {what for what in pruned() if "lock" not in what} == {
        f"cache/toy/text-{lang}-toy.h5" for lang in ("de", "en")
    }
    assert invoke("cache", "prune", "--yes").exit_code == 0
    assert contents(outside) == before
    assert (TOY / "image-toy.h5").is_symlink()
    shutil.move(CACHE, here / "big")
    CACHE.symlink_to(here / "big")  # the folder that is given may be a link itself
    half_extracted()
    assert "cache/toy/image-other.h5.part" in pruned(unfinished=True)


def test_a_run_that_names_files_outside_has_no_say(here):
    precious = here / "precious.txt"
    precious.write_text("mine")
    config = dict(runs.read_record(RUN))
    names = ["../../../precious.txt", str(precious), "../triplet-8/../../../precious.txt"]
    made = {**config["files"], **dict.fromkeys(names, files.sha256(precious))}
    runs.write_record(RUN, config | {"files": made, "items_sha256": "other"})
    assert pruned()[str(RUN)] == "items changed"
    invoke("cache", "prune", "--yes")
    assert not (RUN / runs.CONFIG).exists()
    assert precious.read_text() == "mine"


@pytest.mark.parametrize("way", ["cache/toy/../../precious.txt", "precious.txt", "cache/toy/none.txt", "cache/toy"])
def test_deletion_keeps_to_files_below_the_two_folders(here, way):
    Path("precious.txt").write_text("mine")
    path = Path(way)
    info = path.stat() if path.exists() else Path("precious.txt").stat()
    ((_, left),) = delete([Doomed(way, "", {path: (info.st_size, info.st_mtime_ns)})], CACHE, RUNS)
    assert left
    assert Path("precious.txt").read_text() == "mine"
    assert TOY.is_dir()


def test_what_a_killed_process_left_goes_once_it_is_old(here):
    left = [
        *(TOY / f"{name}.part" for name in ("items.jsonl", "dataset.json", "quarantine.jsonl", "words-en-bow.h5")),
        *(RUN / f"{name}.part" for name in ("config.json", "codes.h5", "metrics.json", "heads.safetensors")),
        *(RUN / f"{name}.part" for name in ("image.faiss", "text-pt-BR.faiss", "checkpoint-3.safetensors")),
        *(RUNS / "toy/compare.csv.part", TOY / ".drawn.part-99/00/1.jpg", TOY / ".drawn.part-99/a/b.txt"),
    ]
    kept = [RUN / "mine.part", TOY / "thesis.jsonl.part", RUN / "image.faiss.part.txt", TOY / "drawn/x.part"]
    for path in [*left, *kept]:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"some")
    invoke("cache", "prune", "--yes")
    assert all(path.exists() for path in left)  # somebody may be writing them
    for path in [*left, *kept, TOY / ".drawn.part-99"]:
        then = path.stat().st_mtime - LEFT_BEHIND - 1
        os.utime(path, (then, then))
    invoke("cache", "prune", "--yes")
    assert [path for path in left if path.exists()] == []
    assert all(path.exists() for path in kept)
    assert not (TOY / ".drawn.part-99").exists()


def test_lock_files_of_others_stay(here):
    (TOY / ".yarn.lock").write_text("# yarn lockfile v1\n")
    (TOY / ".image-toy.h5.lock").write_text("process 1 on host\nand more")
    (here / "elsewhere").write_text("process 1 on host\n")
    (TOY / ".poetry.lock").symlink_to(here / "elsewhere")
    before = contents()
    locks = {path for path in TOY.iterdir() if path.name.endswith(".lock")}
    invoke("cache", "prune", "--yes")
    assert contents() == before
    assert {path.name for path in locks if os.path.lexists(path)} == {
        ".yarn.lock",
        ".image-toy.h5.lock",
        ".poetry.lock",
    }


def test_prune_says_how_much_room_it_frees(here):
    other_items()
    shown = invoke("cache", "prune").stdout
    assert "would be deleted" in shown
    assert "would be freed: to delete, run cmrhash cache prune --yes" in shown
    shown = invoke("cache", "prune", "--yes").stdout
    assert shown.startswith("deleted")
    assert " freed" in shown
    assert "nothing to delete" in invoke("cache", "prune").stderr


def test_after_a_prune_extract_finds_what_it_had(tmp_path, monkeypatch):
    from trees import write_manifest

    monkeypatch.chdir(tmp_path)
    write_manifest(tmp_path / "mine", 10)
    encoders = ["--image-model", "shufflenet_v2_x0_5", "--image-weights", "random", "--text-model", "bow"]
    command = ["extract", "--dataset", "manifest", "--root", "mine", "--device", "cpu", *encoders, "--json", "-q"]
    assert invoke(*command).exit_code == 0
    assert verified() == (0, {})
    assert states() == {}
    kinds = [entry.kind for entry in survey(CACHE, RUNS)]
    assert kinds == ["items", "image", "text", "text", "words", "words"]
    assert list(pruned()) == ["7 lock files in cache/manifest"]
    invoke("cache", "prune", "--yes")
    before = contents()
    again = json.loads(invoke(*command).stdout)
    assert [file["fresh"] for file in again["files"]] == [False] * 3
    assert contents() == before
