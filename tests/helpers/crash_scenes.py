"""What is done while every system call is recorded, and what must hold of the folder after a crash.

A scene does its work and says, on stdout, what it has finished; its check looks at a rebuilt folder, knowing what had
been said by then. Run as a program, this file does every scene in a folder of its own, and is watched by `tracing`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import ready_data
import torch
import tracing
from crash_naive import BLOCK, DIM, ROWS, SOURCE, VALID, X, append

from cmrhash.data import manifest, switch
from cmrhash.data.items import ImageTextDataset, Item
from cmrhash.encoders.text import TextEncoder
from cmrhash.errors import DamagedError, DataError, UsageError
from cmrhash.features import extract as extraction
from cmrhash.features import file as feature_file
from cmrhash.features import half
from cmrhash.features.file import FeatureWriter, read_features
from cmrhash.retrieval.index import BinaryIndex
from cmrhash.storage import staged
from cmrhash.storage.files import make_folder, sha256, write_bytes
from cmrhash.storage.hdf5 import read_sealed, write_sealed
from cmrhash.training import runs, train
from cmrhash.training.checkpoint import TrainingState
from cmrhash.training.finetune import tuned

Said = tuple[str, ...]
Say = Callable[[object], None]


@dataclass(frozen=True)
class Scene:
    """do: (folder, say). check: (folder, what was said, the files of an undisturbed end) -> how many finished things
    are lost; raises AssertionError if what it finds is wrong, and whatever else if nothing there can be used.
    mutant: what is changed about cmrhash meanwhile; then after some crash of that model the check must find it so.
    share: one of so many crashes is checked, unless CMRHASH_CRASHES is set.
    """

    do: Callable[[Path, Say], None]
    check: Callable[[Path, Said, dict[str, bytes]], int]
    mutant: Callable[[], AbstractContextManager[object]] = nullcontext
    model: str = ""
    found: str = ""
    share: int = 1


# ---------------------------------------------------------------------------------------------- a feature file

FEATURES = "cache/toy/image-toy.h5"


RECIPES = {"float32": {"kind": "image"}, "float16": {"kind": "image", "store_dtype": "float16"}}


def writer(folder: Path, stored: str = "float32") -> FeatureWriter:
    ids, item = tuple(f"Bild {n} ü" for n in range(ROWS)), np.arange(ROWS, dtype=np.int32)
    return FeatureWriter(folder / FEATURES, item, ids, DIM, RECIPES[stored], BLOCK)


def read_back(stored: str) -> Any:
    """The features as readers find them."""
    if stored == "float32":
        return X
    blocks = [half.encode(X[first : first + BLOCK]) for first in range(0, ROWS, BLOCK)]
    return np.concatenate([x * scale for x, scale in blocks])


def fill(w: FeatureWriter, blocks: list[int], say: Say = lambda _: None) -> None:
    for block in blocks:
        rows = w.slice(block)
        w.commit(block, X[rows], VALID[rows], SOURCE[rows])
        say(block)


def extract(folder: Path, say: Say, stored: str = "float32") -> None:
    """Stopped once, so that blocks are also written between others that are there already."""
    with writer(folder, stored) as w:
        fill(w, [0, 1, 4], say)
    with writer(folder, stored) as w:
        fill(w, [2, 3, 5], say)
        w.seal({})
        say("sealed")


def check_features(folder: Path, said: Said, whole: dict[str, bytes], stored: str = "float32") -> int:
    """Readers find the whole file or none; the writer finds all that was said to be done, as it was, and goes on to the
    same bytes.
    """
    path, x, finished = folder / FEATURES, read_back(stored), {int(word) for word in said if word.isdigit()}
    if path.exists():
        features = read_features(path)
        wrong = not (np.array_equal(features.x, x) and np.array_equal(features.valid, VALID))
        assert not wrong, "the sealed file is wrong"
        finished.clear()
    else:
        assert "sealed" not in said, "the sealed file is gone"
        with writer(folder, stored) as w:
            done = sorted(w.done)
            for block in done:
                for name, right in (("x", x), ("valid", VALID), ("source", SOURCE)):
                    assert np.array_equal(w.committed(name, block), right[w.slice(block)]), f"block {block} is wrong"
            fill(w, [block for block in range(w.blocks) if block not in w.done])
            w.seal({})
        finished -= set(done)
    assert path.read_bytes() == whole[FEATURES], "not the same bytes at the end"
    assert not (left := list(folder.rglob("*.part*"))), f"something half-written stays: {left}"
    return len(finished)


def sync_late(self: FeatureWriter) -> None:
    """The fsync of a block only when the next one is written."""
    if getattr(self, "late", False):
        os.fsync(self._disk.fileno())
    self.late = True


def changed(model: str, found: str, target: object, name: str, new: object) -> Scene:
    return Scene(extract, check_features, lambda: patch.object(target, name, new), model, found)


HALF = Scene(partial(extract, stored="float16"), partial(check_features, stored="float16"))


# ---------------------------------------------------------------------------------------------- files in one move


def numbered(found: Callable[[Path], int], *steps: Callable[[Path], None]) -> Scene:
    """Steps, each said when done. found: the number of the step that the folder shows whole, 0 for none."""

    def do(folder: Path, say: Say) -> None:
        for number, step in enumerate(steps, 1):
            step(folder)
            say(number)

    def check(folder: Path, said: Said, _: dict[str, bytes]) -> int:
        shown, promised = found(folder), int(said[-1]) if said else 0
        steps[-1](folder)
        assert found(folder) == len(steps), "the last step does not go through again"
        assert not (left := list(folder.rglob("*.part*"))), f"something half-written stays: {left}"
        return max(0, promised - shown)

    return Scene(do, check)


def twice(step: Callable[[int, Path], None]) -> Iterator[Callable[[Path], None]]:
    """To be done first with one content, then with another."""
    return (partial(step, number) for number in (1, 2))


def put_lines(number: int, folder: Path) -> None:
    write_bytes(folder / "new" / "quarantine.jsonl", b"%d\n" % number * 400)


def show_lines(folder: Path) -> int:
    path = folder / "new" / "quarantine.jsonl"
    return (b"", b"1\n" * 400, b"2\n" * 400).index(path.read_bytes() if path.exists() else b"")


def put_codes(number: int, folder: Path) -> None:
    write_sealed(folder / "new" / "codes.h5", {"x": X[:number]}, {})


def show_codes(folder: Path) -> int:
    try:
        arrays = read_sealed(folder / "new" / "codes.h5")[1]
    except DataError:
        return 0
    assert np.array_equal(arrays["x"], X[: len(arrays["x"])])
    return len(arrays["x"])


def put_index(number: int, folder: Path) -> None:
    BinaryIndex.build(SOURCE[:number], 128).save(folder / "image.faiss")


def show_index(folder: Path) -> int:
    try:
        packed = BinaryIndex.load(folder / "image.faiss", 128).packed
    except UsageError:
        return 0
    assert np.array_equal(packed, SOURCE[: len(packed)])
    return len(packed)


def put_folder(number: int, folder: Path) -> None:
    """Files in folders, other ones each time."""
    with staged.staged(folder / "out", "config", ("sub/**/*",)) as aside:
        for name in ("heads", f"sub/{number}/weights", "config"):
            make_folder((aside / name).parent)
            (aside / name).write_bytes(b"%d\n" % number * 400)


def show_folder(folder: Path) -> int:
    staged.settle(folder / "out")
    files = {str(path.relative_to(folder / "out")): path for path in folder.rglob("*") if path.is_file()}
    files = {name: path for name, path in files.items() if not name.startswith(staged.NEXT)}
    shown = {path.read_bytes()[:2] for path in files.values()}
    assert len(shown) < 2, "files of both"
    number = int(shown.pop()) if shown else 0
    assert set(files) == ({"heads", f"sub/{number}/weights", "config"} if number else set())
    return number


def put_items(number: int, folder: Path) -> None:
    every = (Item(f"i{n}", f"{n}.jpg", {"en": (f"{n}",)}, (0,), frozenset({"train"})) for n in range(number))
    manifest.store(ImageTextDataset("toy", Path("/photos"), tuple(every), ("a",), "labels"), folder / "toy")


def show_items(folder: Path) -> int:
    try:
        return len(manifest.load(folder / "toy").items)
    except DamagedError as error:
        assert error.what == "incomplete data set folder", error
        return 0


def put_collection(folder: Path, number: int) -> None:
    """Items and a feature file of these."""
    every = tuple(Item(f"i{n}", f"{n}.jpg", {}, (), frozenset({"database"})) for n in range(number))
    manifest.store(ImageTextDataset("toy", Path("/photos"), every, (), "pairs"), folder)
    ids, item = tuple(one.id for one in every), np.arange(number, dtype=np.int32)
    with FeatureWriter(folder / "image-toy.h5", item, ids, DIM, {"kind": "image"}, BLOCK) as w:
        w.commit(0, X[:number], VALID[:number], SOURCE[:number])
        w.seal({})


def grow(folder: Path) -> None:
    """What ``add`` does: the larger collection aside, then the switch; nothing if it is there already."""
    if not show_collection(folder):
        put_collection(folder / "toy", 1)
    if show_collection(folder) < 2:
        put_collection(switch.start(folder / "toy", (), "toy"), 2)
        switch.switch(folder / "toy", ["gone"])
    switch.done(folder / "toy")


def show_collection(folder: Path) -> int:
    try:
        items = manifest.load(folder / "toy").items
        features = read_features(folder / "toy/image-toy.h5")
    except (DamagedError, DataError):
        assert not (folder / "toy/items.jsonl").exists() or not (folder / "toy/image-toy.h5").exists(), "unusable"
        return 0
    assert features.ids == tuple(item.id for item in items), "features of other items"
    return len(items)


RECIPE: dict[str, Any] = {  # of a run, all that its reader asks for beside the outcome and the files
    "dataset": "toy",
    "relevance": "labels",
    "items_sha256": "",
    "langs": [],
    "train": {"bits": 8, "method": "triplet", "seed": 0},
    "train_items": 0,
    "batch": 1,
    "source": "",
    "head": {},
    "features": {},
}


def trained(epochs: int) -> TrainingState:
    """A training after so many epochs."""
    torch.manual_seed(0)
    heads = torch.nn.ModuleDict({"image": torch.nn.Linear(16, 8)})
    state = TrainingState(heads, torch.nn.ModuleDict(), torch.optim.AdamW(heads.parameters()))
    for epoch in range(epochs):
        for parameter in heads.parameters():
            parameter.grad = torch.full_like(parameter, epoch - 1.5)
        state.optimizer.step()
        state.finish_epoch({"epoch": epoch, "skipped": 0, "val_map_mean": epoch / 10})
    return state


def show_training(folder: Path) -> int:
    """1 and 2: epochs that it would go on from; 3: the run of these two; 4: that of three epochs."""
    if (folder / runs.CONFIG).exists():
        run = runs.open_run(folder)
        assert len(run.file(runs.HISTORY).read_text().splitlines()) == run.outcome.epochs
        return int(run.outcome.epochs) + (1 if run.file(runs.HEADS) else 0)
    state = trained(0)
    state.resume(folder, {}, overwrite=False)
    right = trained(state.epoch)
    assert all(torch.equal(tensor, right._tensors()[name]) for name, tensor in state._tensors().items())
    assert state.history == right.history
    return state.epoch


def finish(epochs: int, folder: Path) -> None:
    group = SimpleNamespace(items=np.zeros(0, np.int64))
    task = SimpleNamespace(dataset=ImageTextDataset("toy", Path("/photos"), (), ()), train=group, partial=[])
    train._finish(trained(epochs), RECIPE, folder, task)


class Pretrained:
    """A config or tokenizer of transformers, as far as writing it goes."""

    def save_pretrained(self, folder: Path) -> None:
        (folder / "vocab.txt").write_text("cat\ndog\n")


def tune(epochs: int, folder: Path) -> None:
    """What a fine-tuning leaves behind: weights in one move, and what transformers writes in its own way."""
    state = trained(epochs)
    state.best = {f"encoders.text-en.{name}": tensor for name, tensor in state.best.items()}
    network = SimpleNamespace(config=Pretrained())
    encoder = object.__new__(TextEncoder)  # without the rest, which writing does not ask for
    encoder.module, encoder.tokenizer = network, Pretrained()
    tuned.write(folder / "tuned", {}, state, None, {"en": encoder})


def show_tuned(folder: Path) -> int:
    found = tuned.find(folder / "tuned")
    for name, digest in found.files.items() if found else ():
        assert sha256(folder / "tuned" / name) == digest, f"{name} is wrong"
    return found.outcome.epochs if found else 0


SCENES = {
    "features": Scene(extract, check_features),
    "features as float16": HALF,
    "one file": numbered(show_lines, *twice(put_lines)),
    "codes": numbered(show_codes, *twice(put_codes)),
    "index": numbered(show_index, *twice(put_index)),
    "items": numbered(show_items, *twice(put_items)),
    "folder": numbered(show_folder, *twice(put_folder)),
    "collection": numbered(show_collection, lambda f: put_collection(f / "toy", 1), grow),
    "overwritten": replace(numbered(show_collection, *twice(ready_data.put)), share=12),
    "training": numbered(
        show_training,
        lambda f: trained(1).save(f, {}),
        lambda f: trained(2).save(f, {}),
        partial(finish, 2),
        partial(finish, 3),
    ),
    "fine-tuning": numbered(show_tuned, *twice(tune)),
}


MUTANTS = {
    "resume unchecked": changed(
        "torn", "wrong", FeatureWriter, "_intact", lambda w, b: bool(w._rows("_commit", b, b + 1))
    ),
    "record without source": changed("power cut", "wrong", feature_file, "RECORDED", ("x", "valid", "item")),
    "record without valid": changed("power cut", "wrong", feature_file, "RECORDED", ("x", "source", "item")),
    "record without scales": replace(
        HALF, mutant=lambda: patch.object(FeatureWriter, "_scales", lambda *_: b""), model="power cut", found="wrong"
    ),
    "no fsync": changed("power cut", "lost", FeatureWriter, "_sync", lambda w: None),
    "switch not finished": replace(
        numbered(show_collection, lambda f: put_collection(f / "toy", 1), grow),
        mutant=lambda: patch.object(manifest, "settle", lambda _: None),
        model="killed",
        found="wrong",
    ),
    "items before features": replace(
        SCENES["overwritten"],
        mutant=lambda: patch.object(extraction, "replacing", lambda *_: False),
        model="killed",
        found="wrong",
    ),
    "told before the fsync": changed("power cut", "lost", FeatureWriter, "_sync", sync_late),
}


def main(base: Path) -> None:
    """Do every scene; what is said starts with the scene's name."""
    tracing.trace_me()
    for name, scene in {**SCENES, **MUTANTS, "naive": Scene(append, check_features)}.items():
        (base / name).mkdir()
        say(f"scene {name}")
        with scene.mutant():
            scene.do(base / name, say)


def say(what: object) -> None:
    os.write(1, f"{what}\n".encode())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
