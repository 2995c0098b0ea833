"""Folders in every state that a cache and its runs can be in, and the commands that look at them."""

import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from cmrhash.config import PruneConfig, TrainConfig
from cmrhash.data import manifest
from cmrhash.data.items import ids_digest
from cmrhash.features.dataset import ExtractedDataset
from cmrhash.features.file import FeatureWriter
from cmrhash.features.graph_files import load_or_make
from cmrhash.features.shards import Shard, Target
from cmrhash.maintenance.inventory import survey
from cmrhash.maintenance.prune import plan
from cmrhash.storage import files, hdf5
from cmrhash.storage.hdf5 import write_sealed
from cmrhash.training import runs
from cmrhash.training.train import train
from cmrhash_cli.main import app

CACHE, RUNS = Path("cache"), Path("runs")
TOY, RUN = CACHE / "toy", RUNS / "toy" / "triplet-8"
SMALL = TrainConfig(bits=8, epochs=2, batch=16, hidden=16, device="cpu")
TRAIN = ["train", "--bits", 8, "--epochs", 2, "--batch", 16, "--hidden", 16, "--device", "cpu", "--dataset", "toy"]
CHANGED = "damaged (the file was changed after writing: its sha256 differs)"
RECIPE = {"kind": "image", "encoder": "other"}


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


def interrupted(config, overwrite=False):
    """Stop a training after its first epoch."""

    def stop(what, done, total, note):
        if done == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(config, ExtractedDataset.open(CACHE, "toy"), RUNS, overwrite=overwrite, progress=stop)


def half_trained(**settings):
    """A training that is interrupted after its first epoch."""
    interrupted(replace(SMALL, bits=16, **settings))


def half_trained_again():
    """A finished run whose overwriting by other settings was interrupted."""
    interrupted(replace(SMALL, epochs=5), overwrite=True)


def other_heads():
    train(replace(SMALL, seed=1), ExtractedDataset.open(CACHE, "toy"), RUNS)
    for name in (runs.HEADS, runs.CONFIG, runs.HISTORY):
        shutil.copy(RUNS / "toy/triplet-8-seed1" / name, RUN)
    shutil.rmtree(RUNS / "toy/triplet-8-seed1")


def other_version():
    config = runs.read_record(RUN)
    runs.write_record(RUN, config | {"version": 2})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hdf5, "VERSION", 3)
        write_sealed(TOY / "image-new.h5", {"x": np.zeros(3)}, {"kind": "features"})


def fields_missing():
    config = runs.read_record(RUN)
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


OTHER_ITEMS = {f"cache/toy/{view}-toy.h5": "items changed" for view in ("image", "text-de", "text-en")}
OTHER_ITEMS |= {"runs/toy/triplet-8": "codes of other items"}
# name -> (what makes the state, path -> its words for all that is not whole)
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
            **OTHER_ITEMS,
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
            **OTHER_ITEMS,
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
    "a graph of no features": (
        lambda: load_or_make(TOY / "graph-other-0123456789abcdef.sealed", "other", lambda: b"graph"),
        {"cache/toy/graph-other-0123456789abcdef.sealed": "graph of no features"},
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
