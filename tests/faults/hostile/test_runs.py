"""Run folders that were made to do harm: heads, checkpoints, codes, pickles and pipes."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import struct

import pytest
import torch
from hostile_files import EVIDENCE, OPENED, Evil
from running import QUICK, run

from cmrhash.errors import DamagedError
from cmrhash.evaluation.run_codes import load_heads, stored_codes
from cmrhash.storage import hdf5
from cmrhash.storage.files import read_json, write_json
from cmrhash.training import runs
from cmrhash.training.checkpoint import TrainingState


def record(folder, **files):
    """Let a run's config say that these are its files, with the right digest over itself."""
    config = read_json(folder / runs.CONFIG, "")
    write_json(folder / runs.CONFIG, config | {"files": config["files"] | files})
    return runs.open_run(folder)


def tensors(entries, data=b"\0" * 64):
    """The bytes of a safetensors file with that header."""
    body = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    return struct.pack("<Q", len(body)) + body + data


def entry(start, end, shape=(4,), dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}


HEADERS = {
    "longer than the file": struct.pack("<Q", 1 << 62) + b"{}",
    "longer than any": struct.pack("<Q", 200 << 20) + b"{}",
    "cut": struct.pack("<Q", 100) + b"{",
    "no JSON": tensors(b"\x80\x04pickle"),
    "deep": tensors(b"[" * 100_000),
    "overlapping": tensors({"a": entry(0, 16), "b": entry(8, 24)}),
    "with a hole": tensors({"a": entry(0, 16), "b": entry(32, 48)}),
    "beyond the end": tensors({"a": entry(0, 1 << 40, [1 << 38])}),
    "backwards": tensors({"a": entry(16, 0)}),
    "of another shape": tensors({"a": entry(0, 64, [1 << 62, 4])}),
    "of an unknown type": tensors({"a": entry(0, 64, [16], "OBJ")}),
    "of other tensors": tensors({"a": entry(0, 64, [16])}),
    "empty": b"",
    "a pickle": pickle.dumps({"a": 1}),
}


@pytest.mark.faults(EVIDENCE)
@pytest.mark.parametrize("kind", HEADERS)
def test_heads_with_a_hostile_header_and_the_right_digest(mine, kind):
    (mine / runs.HEADS).write_bytes(HEADERS[kind])
    forged = record(mine, **{runs.HEADS: hashlib.sha256(HEADERS[kind]).hexdigest()})
    with pytest.raises(DamagedError, match=r"heads\.safetensors: run `train` with `overwrite=True`") as caught:
        load_heads(forged)
    assert "\n" not in str(caught.value)


def state():
    heads = torch.nn.ModuleDict({"image": torch.nn.Linear(2, 2)})
    return TrainingState(heads, torch.nn.ModuleDict(), torch.optim.AdamW(heads.parameters()))


@pytest.mark.faults(EVIDENCE)
@pytest.mark.parametrize("name", ["evil.safetensors", "../canary.h5", "{canary}", "/dev/zero", "pipe", "link", ""])
def test_a_checkpoint_that_names_another_file(tmp_path, canary, trap, name):
    """A pickle, a file elsewhere, one that never ends, one that blocks for ever."""
    folder = tmp_path / "run"
    folder.mkdir()
    pickled = pickle.dumps(Evil(trap))
    (folder / "evil.safetensors").write_bytes(pickled)
    os.mkfifo(folder / "pipe")
    (folder / "link").symlink_to("/dev/zero")
    one = state()
    one.finish_epoch({"epoch": 0, "skipped": 0})
    one.save(folder, {})
    about = read_json(folder / "checkpoint.json", "")
    about |= {"file": name.format(canary=canary.path), "tensors_sha256": hashlib.sha256(pickled).hexdigest()}
    write_json(folder / "checkpoint.json", about)
    with pytest.raises(DamagedError, match="start again with `overwrite=True`"):
        state().resume(folder, {}, overwrite=False)


@pytest.mark.faults(EVIDENCE)
@pytest.mark.parametrize(
    ("name", "words"),
    [
        *((name, "codes of an unknown view") for name in ("../canary.h5", "{canary}", "/dev/zero", "pipe.faiss")),
        *((name, "missing, or does not match") for name in ("text-pipe.faiss", "text-/../../canary.faiss")),
    ],
)
def test_codes_that_name_another_file_as_index(mine, canary, name, words):
    os.mkfifo(mine / "pipe.faiss")
    os.mkfifo(mine / "text-pipe.faiss")
    manifest, arrays = hdf5.read_sealed(mine / runs.CODES)
    manifest["indexes"] = {name.format(canary=canary.path): "0" * 64}
    hdf5.write_sealed(mine / runs.CODES, arrays, manifest)
    with pytest.raises(DamagedError, match=words):
        dict(stored_codes(runs.open_run(mine)))


@pytest.mark.faults(EVIDENCE)
def test_codes_that_lack_an_array(mine):
    manifest, arrays = hdf5.read_sealed(mine / runs.CODES)
    del arrays["image.item"]
    hdf5.write_sealed(mine / runs.CODES, arrays, manifest)
    with pytest.raises(DamagedError, match=r"'image\.item' is missing"):
        dict(stored_codes(runs.open_run(mine)))


@pytest.mark.faults(EVIDENCE)
def test_pickles_that_lie_in_a_run_are_nobodys(mine, trap):
    names = ("checkpoint.pt", "heads.pt", "heads.pth", "model.bin", "optimizer.pkl", "codes.npy")
    for name in names:
        (mine / name).write_bytes(pickle.dumps(Evil(trap)))
    (mine / runs.CODES).unlink()
    OPENED.clear()
    assert run("train", *QUICK, "-q") == run("eval", "-q") == 0
    assert run("train", *QUICK, "--overwrite", "-q") == 0
    assert {str(mine / runs.CONFIG), str(mine / runs.HEADS)} <= OPENED
    assert not OPENED & {str(mine / name) for name in names}


@pytest.mark.faults(EVIDENCE)
@pytest.mark.parametrize("name", ["cache/toy/dataset.json", "cache/toy/image-toy.h5", "runs/toy/triplet-8/config.json"])
def test_a_pipe_in_place_of_a_file_blocks_nobody(mine, capsys, name):
    path = mine.parents[2] / name
    path.unlink()
    os.mkfifo(path)
    assert run("train", *QUICK, "-q") in (2, 5, 6)
    assert capsys.readouterr().err.count("\n") == 1
