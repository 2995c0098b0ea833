"""Files of ours that are no longer what was written: refused before any parser sees them, whichever bit it is.

Beside it what becomes of the same numbers in plain files: HDF5, torch.save, Faiss' own format and JSON.
"""

from __future__ import annotations

import functools
import json
from types import SimpleNamespace

import faiss
import h5py
import naive
import numpy as np
import pytest
import safetensors.torch
import torch

from cmrhash.config import EvalConfig, TrainConfig
from cmrhash.data import manifest
from cmrhash.data.view import View
from cmrhash.encoders import text as text_encoders
from cmrhash.encoders.image import ImageEncoder
from cmrhash.encoders.pixels import Crop
from cmrhash.errors import DamagedError
from cmrhash.evaluation.evaluate import evaluate
from cmrhash.evaluation.run_codes import load_heads, stored_codes
from cmrhash.features.file import FeatureWriter
from cmrhash.retrieval.index import BinaryIndex
from cmrhash.storage.sealed import USER_BLOCK
from cmrhash.training import runs
from cmrhash.training.checkpoint import TrainingState
from cmrhash.training.finetune import tuned
from cmrhash.training.train import train

pytestmark = pytest.mark.slow

FLIPS, CUTS = 200, 12
IDS = tuple(f"i{n}" for n in range(40))
RECIPE = {"train": {"lr": 0.1}}


def small_state():
    """A training of something small, one epoch old, that can be saved and resumed."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        modules = torch.nn.ModuleDict({"image": torch.nn.Linear(5, 4), "text-en": torch.nn.Linear(3, 4)})
    optimizer = torch.optim.AdamW(modules.parameters())
    sum(module.weight.sum() for module in modules.values()).backward()
    optimizer.step()
    return TrainingState(modules, torch.nn.ModuleDict(), optimizer)


def write_tuned(folder):
    """Tuned encoders as a fine-tuning leaves them, of a linear image encoder and the smallest BERT."""
    crop = Crop(8, 8, "BILINEAR", (0.5,) * 3, (0.25,) * 3)
    image = ImageEncoder("tiny", 4, {}, "random", crop, torch.nn.Linear(6, 4), torch.device("cpu"), torch.float32)
    with pytest.MonkeyPatch.context() as patch:
        tiny = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
        patch.setattr(text_encoders, "TINY", tiny)
        text = text_encoders.load("random", corpus=["dog cat"] * 2)
    encoders = torch.nn.ModuleDict({"image": image.module, "text-en": text.module})
    model = torch.nn.ModuleDict({"encoders": encoders})
    state = TrainingState(model, torch.nn.ModuleDict(), torch.optim.AdamW(model.parameters()))
    state.finish_epoch({"epoch": 0, "skipped": 0})
    tuned.write(folder, RECIPE, state, image, {"en": text})
    return image, text


@pytest.fixture(scope="module")
def made(make_cache, tmp_path_factory):
    """One of everything: an extracted data set, a scored run, an unfinished training, tuned encoders."""
    base = tmp_path_factory.mktemp("made")
    data = make_cache(base / "cache", count=60)
    quick = TrainConfig(bits=8, epochs=1, batch=16, hidden=4, device="cpu")
    run, _ = train(quick, data, base / "runs")
    evaluate(EvalConfig(), data, base / "runs")
    state = small_state()
    state.finish_epoch({"epoch": 0, "skipped": 0})
    state.save(base, RECIPE)
    image, text = write_tuned(base / "tuned")
    return SimpleNamespace(
        base=base,
        view=lambda: data.features(View.IMAGE),
        items=lambda: manifest.load(data.folder),
        run=lambda: runs.open_run(run.folder),
        heads=lambda: load_heads(run),
        codes=lambda: dict(stored_codes(run)),
        checkpoint=lambda: small_state().resume(base, RECIPE, overwrite=False),
        tuned=lambda: tuned.find(base / "tuned").apply(image, {"en": text}),
    )


TENSORS = [(safetensors.torch, "load_file"), (torch, "load")]
INDEX = [(BinaryIndex, "load"), (faiss, "read_index_binary"), (faiss, "deserialize_index_binary")]
# what -> file, how the commands load it, the parsers that must never see it, the plain format for the same content
ARTIFACTS = {
    "features": ("cache/toy/image-toy.h5", "view", [(h5py, "File")], "hdf5"),
    "items": ("cache/toy/items.jsonl", "items", [(manifest, "_stored")], "json"),
    "data set": ("cache/toy/dataset.json", "items", [(json, "loads")], "json"),
    "run": ("runs/toy/triplet-8/config.json", "run", [(json, "loads")], "json"),
    "heads": ("runs/toy/triplet-8/heads.safetensors", "heads", TENSORS, "torch"),
    "codes": ("runs/toy/triplet-8/codes.h5", "codes", [(h5py, "File")], "hdf5"),
    "index": ("runs/toy/triplet-8/image.faiss", "codes", INDEX, "faiss"),
    "checkpoint": ("checkpoint.json", "checkpoint", [(json, "loads"), *TENSORS], "json"),
    "checkpoint's tensors": ("checkpoint-1.safetensors", "checkpoint", TENSORS, "torch"),
    "tuned": ("tuned/config.json", "tuned", [(json, "loads"), *TENSORS], "json"),
    "tuned image encoder": ("tuned/image.safetensors", "tuned", TENSORS, "torch"),
    "tuned text encoder": ("tuned/text-en/model.safetensors", "tuned", TENSORS, "torch"),
    "tuned tokenizer": ("tuned/text-en/tokenizer.json", "tuned", TENSORS, "json"),
}


def flips(size):
    """Bits to flip: half of them anywhere, half in the first KiB, where formats describe themselves."""
    rng = np.random.default_rng(size)
    anywhere = rng.choice(8 * size, FLIPS // 2, replace=False)
    return sorted({*anywhere.tolist(), *rng.choice(8 * min(size, 1024), FLIPS // 2, replace=False).tolist()})


def cuts(size):
    """How many bytes are left of a file that was cut short."""
    rng = np.random.default_rng(size)
    return [str(n) for n in (0, 1, size // 2, size - 1, *rng.integers(2, size - 1, CUTS - 4).tolist())]


def harms(size, row):
    return flips(size) if row == "flipped bit" else cuts(size)


def plain(what, file, folder):
    """The content of one of our files, as a script would have saved it."""
    kind = ARTIFACTS[what][3]
    path = folder / f"{what}.{kind}"
    if kind == "hdf5":
        with h5py.File(file, "r") as ours, h5py.File(path, "w") as theirs:
            for name in ours:
                theirs[name] = ours[name][...]
            theirs.attrs["recipe"] = "resnet18 224"
    elif kind == "torch":
        torch.save(safetensors.torch.load_file(file), path)
    elif kind == "faiss":
        faiss.write_index_binary(faiss.read_index_binary(str(file)), str(path))
    else:
        lines = file.read_text(encoding="utf-8").splitlines() if file.suffix == ".jsonl" else [file.read_text("utf-8")]
        path.write_text("".join(json.dumps(json.loads(line)) + "\n" for line in lines), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def naive_way(made, tmp_path_factory):
    """(row, what) -> how often it was tried with a plain file, and how often refused or right all the same."""
    folder = tmp_path_factory.mktemp("naive")
    jobs = []
    for row in ("flipped bit", "cut short"):
        for what in sorted(ARTIFACTS, key=lambda what: ARTIFACTS[what][3]):
            path = plain(what, made.base / ARTIFACTS[what][0], folder)
            jobs += [(row, what, path, harm) for harm in harms(path.stat().st_size, row)]
    told = naive.outcomes([(ARTIFACTS[what][3], path, harm) for _, what, path, harm in jobs], folder)
    counts: dict[tuple[str, str], list[int]] = {}
    for (row, what, *_), outcome in zip(jobs, told, strict=True):
        count = counts.setdefault((row, what), [0, 0])
        count[0] += 1
        count[1] += outcome in ("refused", "same")
    return counts


def seen(*_, **__):
    raise AssertionError("a parser was given damaged bytes")


def refuse_all(made, what, row, faults, monkeypatch):
    """Harm a file in every way; the commands' own loader refuses it each time, and takes it again when it is whole."""
    name, load, parsers, _ = ARTIFACTS[what]
    path = made.base / name
    whole = path.read_bytes()
    getattr(made, load)()
    try:
        for harm in harms(len(whole), row):
            path.write_bytes(naive.harmed(whole, harm))
            with monkeypatch.context() as patch:
                for module, parser in parsers:
                    patch.setattr(module, parser, seen)
                with pytest.raises(DamagedError, match=path.name) as caught:
                    getattr(made, load)()
            assert "\n" not in str(caught.value)
            faults.tried += 1
            faults.survived += 1
    finally:
        path.write_bytes(whole)
    getattr(made, load)()


@pytest.mark.faults("flipped bit")
def test_an_unfinished_file_is_refused_or_ends_as_it_would_have(tmp_path, monkeypatch, faults):
    """Rows have their CRC and are written again; what HDF5 would parse has a digest; the note is written over."""
    path, part = tmp_path / "image-x.h5", tmp_path / "image-x.h5.part"
    x = np.random.default_rng(0).standard_normal((40, 6)).astype(np.float32)
    writer = functools.partial(FeatureWriter, path, np.arange(40, dtype=np.int32), IDS, 6, {"a": 1}, 8)

    def fill(w, blocks):
        for block in set(blocks) - w.done:
            w.commit(block, x[w.slice(block)], np.ones(8, bool), np.zeros((8, 16), np.uint8))

    with writer() as w:
        fill(w, range(2))
    unfinished = part.read_bytes()
    with writer() as w:
        fill(w, range(5))
        w.seal({})
    whole = path.read_bytes()
    for harm in [*flips(len(unfinished)), *(8 * USER_BLOCK + bit for bit in flips(len(unfinished) - USER_BLOCK))]:
        path.unlink(missing_ok=True)
        part.write_bytes(naive.harmed(unfinished, harm))
        faults.tried += 1
        try:
            with writer() as w:
                fill(w, range(5))
                w.seal({})
            faults.survived += path.read_bytes() == whole
        except DamagedError as error:
            faults.survived += part.name in str(error)
    part.write_bytes(unfinished[:-1])
    with pytest.raises(DamagedError), writer():
        pass
    with writer(replace=True) as w:
        fill(w, range(5))
        w.seal({})
    assert path.read_bytes() == whole


@pytest.mark.faults("flipped bit")
@pytest.mark.parametrize("what", ARTIFACTS)
def test_no_flipped_bit_is_ever_parsed(made, naive_way, faults, monkeypatch, what):
    refuse_all(made, what, "flipped bit", faults, monkeypatch)
    faults.naive_tried, faults.naive_survived = naive_way["flipped bit", what]


@pytest.mark.faults("cut short")
@pytest.mark.parametrize("what", ARTIFACTS)
def test_no_file_that_was_cut_short_is_ever_parsed(made, naive_way, faults, monkeypatch, what):
    refuse_all(made, what, "cut short", faults, monkeypatch)
    faults.naive_tried, faults.naive_survived = naive_way["cut short", what]
