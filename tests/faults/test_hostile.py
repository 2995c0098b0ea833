"""Files that were made to do harm: nothing in them is run, nothing outside them is opened, and they take no more memory
than they have bytes. They are refused in one line, also if somebody has given them the right digests.

Beside it the plain way to read them.
"""

from __future__ import annotations

import ctypes
import hashlib
import io
import json
import os
import pickle
import shutil
import struct
import sys
import zipfile
import zlib
from pathlib import Path

import h5py
import naive
import numpy as np
import pytest
import scipy.io
import torch
from running import EXTRACT, QUICK, run, write_own

from cmrhash.data import manifest
from cmrhash.data.items import ImageTextDataset, Item
from cmrhash.data.matrices import dataset as matrices
from cmrhash.data.matrices.arrays import list_arrays
from cmrhash.encoders import text as text_encoders
from cmrhash.errors import DamagedError, DataError, EncoderError, UsageError
from cmrhash.evaluation.run_codes import load_heads, stored_codes
from cmrhash.features import file as feature_file
from cmrhash.storage import hdf5, sealed
from cmrhash.storage.files import read_json, write_json
from cmrhash.training import runs
from cmrhash.training.checkpoint import State

EVIDENCE = "hostile file"

OPENED = set()  # every path that this process has opened by Python's hand since the last clearing


def _listen(event, args):
    if event == "open" and isinstance(args[0], str | bytes | os.PathLike):
        OPENED.add(os.path.abspath(os.fsdecode(args[0])))


sys.addaudithook(_listen)


class Canary:
    """A file that nobody may open: watched by Python's audit events and, on Linux, by inotify, which sees HDF5 too."""

    def __init__(self, path):
        self.path = path
        with h5py.File(path, "w") as file:
            file["x"] = np.arange(8, dtype="f4").reshape(4, 2)
        self._libc = ctypes.CDLL(None)
        self._watch = self._libc.inotify_init1(os.O_NONBLOCK) if hasattr(self._libc, "inotify_init1") else None
        if self._watch is not None:
            in_open = 0x20
            assert self._libc.inotify_add_watch(self._watch, os.fsencode(path), in_open) >= 0
        OPENED.clear()

    def opened(self):
        """Whether somebody has, since it was made."""
        try:
            seen = self._watch is not None and bool(os.read(self._watch, 4096))
        except BlockingIOError:
            seen = False
        return seen or str(self.path) in OPENED

    def close(self):
        if self._watch is not None:
            os.close(self._watch)


@pytest.fixture
def canary(tmp_path):
    canary = Canary(tmp_path / "canary.h5")
    yield canary
    assert not canary.opened()
    canary.close()


def test_the_canary_sings(tmp_path):
    for look in (Path.read_bytes, lambda path: h5py.File(path, "r").close()):
        canary = Canary(tmp_path / "canary.h5")
        look(canary.path)
        assert canary.opened()
        canary.close()


class Evil:
    """Pickled, it makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.fixture
def trap(tmp_path):
    """The file that must not come to be."""
    path = tmp_path / "trap"
    yield path
    assert not path.exists()


# ---------------------------------------------------------------------------------------------- HDF5


def virtual(file, secret):
    layout = h5py.VirtualLayout((4, 2), "f4")
    layout[:] = h5py.VirtualSource(str(secret), "x", (4, 2))
    file.create_virtual_dataset("image", layout)


def huge(file, _):
    plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    h5py.h5d.create(file.id, b"image", h5py.h5t.IEEE_F64LE, h5py.h5s.create_simple((1 << 40, 2)), plan)


def huge_chunk(file, _):
    data = file.create_dataset("image", (4, 2), "f4", chunks=(1 << 24, 2), maxshape=(None, 2), compression="gzip")
    data.id.write_direct_chunk((0, 0), zlib.compress(bytes(32)))


def packed_zeros(file, _):
    """64 MB of zeros in 64 kB: what the file holds, but not what a feature file of ours needs to."""
    data = file.create_dataset("image", (1 << 23, 2), "f4", chunks=(1 << 23, 2), compression="gzip")
    squeeze = zlib.compressobj(9)
    packed = b"".join(squeeze.compress(bytes(1 << 22)) for _ in range(16)) + squeeze.flush()
    data.id.write_direct_chunk((0, 0), packed)


def references(file, _):
    file["x"] = np.zeros((4, 2))
    file.create_dataset("image", (4,), h5py.ref_dtype)[:] = [file["x"].ref] * 4


def made(*args, **options):
    return lambda file, _: file.create_dataset("image", *args, **options)


def outside(file, secret):
    file.create_dataset("image", (4, 2), "f4", external=[(str(secret), 0, h5py.h5f.UNLIMITED)])


def linked(file, secret):
    file["image"] = h5py.ExternalLink(str(secret), "x")


def soft(file, _):
    file["x"] = np.zeros((4, 2))
    file["image"] = h5py.SoftLink("/x")


def nested(file, _):
    file["image/x"] = np.zeros((4, 2))


ELSEWHERE, NO_NUMBERS, TOO_MUCH = "its data lie elsewhere", "not numbers", "declares more than the file holds"

HDF5 = {
    "external storage": (outside, ELSEWHERE),
    "external link": (linked, ELSEWHERE),
    "soft link": (soft, ELSEWHERE),
    "virtual": (virtual, ELSEWHERE),
    "references": (references, NO_NUMBERS),
    "strings": (made(data=["a", "b"], dtype=h5py.string_dtype()), NO_NUMBERS),
    "lists": (made((4,), h5py.vlen_dtype(np.float32)), NO_NUMBERS),
    "complex": (made(data=np.zeros((4, 2), complex)), NO_NUMBERS),
    "huge": (huge, TOO_MUCH),
    "huge and packed": (made((1 << 30, 2), "f4", chunks=(1024, 2), compression="gzip"), TOO_MUCH),
    "a huge chunk": (huge_chunk, TOO_MUCH),
    "unknown filter": (
        made(data=np.arange(8).reshape(4, 2), chunks=(4, 2), scaleoffset=4),
        "packed by an unknown filter",
    ),
    "empty": (made(data=h5py.Empty("f4")), "empty"),
}


@pytest.mark.faults(EVIDENCE)
@pytest.mark.parametrize("kind", HDF5)
def test_hdf5_is_read_for_plain_numbers_inside_the_file_only(tmp_path, canary, kind):
    path = tmp_path / "f.h5"
    with h5py.File(path, "w") as file:
        file["text"] = np.zeros((4, 2))
        make, reason = HDF5[kind]
        make(file, canary.path)
    words = rf"f:image \(.*, {reason}\) cannot be image: .*f\.h5: say which with --map"
    with pytest.raises(DataError, match=words) as caught:
        matrices.read([path], ())
    assert "\n" not in str(caught.value)
    (image,) = (array for array in list_arrays(path) if array.name == "image")
    with pytest.raises(DataError, match="'image' is not read"):
        image.read()


FORGED = {kind: make for kind, (make, _) in HDF5.items()} | {"packed zeros": packed_zeros, "a group": nested}


def forge(path, fill, kind="features"):
    """A file that says it is ours, sealed by our own code, with what ``fill`` puts into it."""
    part = path.with_name(path.name + ".part")
    with h5py.File(part, "w", userblock_size=sealed.USER_BLOCK) as file:
        fill(file)
    hdf5.seal(part, path, {"kind": kind, "recipe": {}})


@pytest.mark.faults(EVIDENCE)
@pytest.mark.parametrize("kind", FORGED)
def test_a_right_digest_opens_no_door(tmp_path, canary, kind):
    path = tmp_path / "image-x.h5"
    forge(path, lambda file: FORGED[kind](file, canary.path))
    with pytest.raises(DamagedError, match="is not a plain dataset") as caught:
        feature_file.read_features(path)
    assert "\n" not in str(caught.value)


HONEST = {
    "x": np.zeros((3, 2), np.float32),
    "item": np.arange(3, dtype=np.int32),
    "valid": np.ones(3, np.uint8),
    "source": np.zeros((3, 16), np.uint8),
    "ids": np.frombuffer(b"abc", np.uint8),
    "id_ends": np.arange(1, 4),
}


@pytest.mark.faults(EVIDENCE)
@pytest.mark.parametrize(
    "change",
    [
        *({name: None} for name in HONEST),
        {"item": np.array([0, 1, 3], np.int32)},
        {"item": np.array([0, 1, -1], np.int32)},
        {"item": np.arange(3.0)},
        {"x": np.zeros((4, 2), np.float32)},
        {"x": np.zeros(3, np.float32)},
        {"ids": np.frombuffer(b"\xff\xfe\xff", np.uint8)},
    ],
    ids=lambda change: " ".join(f"{name}-{'none' if x is None else x.dtype}" for name, x in change.items()),
)
def test_a_sealed_file_of_other_arrays(tmp_path, change):
    path = tmp_path / "image-x.h5"
    arrays = {name: x for name, x in (HONEST | change).items() if x is not None}
    forge(path, lambda file: [file.create_dataset(name, data=x) for name, x in arrays.items()])
    with pytest.raises(DamagedError, match="its arrays are not those of a feature file"):
        feature_file.read_features(path)


# ---------------------------------------------------------------------------------------------- items

ENTRY = {"id": "a", "image": "a.jpg", "texts": {"en": ["x"]}, "labels": ["dog"], "splits": ["train"]}

LINES = {
    **{f"without {name}": {key: value for key, value in ENTRY.items() if key != name} for name in ENTRY},
    "a number for an id": ENTRY | {"id": 3},
    "an id of a line feed": ENTRY | {"id": "a\nb"},
    "a list for a path": ENTRY | {"image": ["a.jpg"]},
    "a list for texts": ENTRY | {"texts": ["x"]},
    "a string for captions": ENTRY | {"texts": {"en": "x"}},
    "an object for captions": ENTRY | {"texts": {"en": {"x": 1}}},
    "numbers for captions": ENTRY | {"texts": {"en": [1]}},
    "a path for a language": ENTRY | {"texts": {"../en": ["x"]}},
    "a string for labels": ENTRY | {"labels": "dog"},
    "another label": ENTRY | {"labels": ["cat"]},
    "a list as a label": ENTRY | {"labels": [["dog"]]},
    "a string for splits": ENTRY | {"splits": "train"},
    "another split": ENTRY | {"splits": ["test"]},
    "two splits that exclude each other": ENTRY | {"splits": ["train", "query"]},
    "a list": [ENTRY],
    "a number": 3,
    "no JSON": b"{",
    "no UTF-8": b'{"id": "\xff"}',
    "too deep": b"[" * 100_000,
    "the same twice": b"\n".join([json.dumps(ENTRY).encode()] * 2),
    "an empty line": json.dumps(ENTRY).encode() + b"\n",
    "nothing": b"",
}


@pytest.mark.faults(EVIDENCE)
@pytest.mark.parametrize("kind", LINES)
def test_items_with_the_right_digest(tmp_path, kind):
    root = Path("/photos")
    manifest.store(ImageTextDataset("toy", root, (Item("a", None, {}, (0,)),), ("dog",)), tmp_path)
    line = LINES[kind] if isinstance(LINES[kind], bytes) else json.dumps(LINES[kind]).encode()
    content = line + b"\n" if line else b""
    (tmp_path / "items.jsonl").write_bytes(content)
    about = read_json(tmp_path / "dataset.json", "")
    write_json(tmp_path / "dataset.json", about | {"items_sha256": hashlib.sha256(content).hexdigest()})
    with pytest.raises(
        DamagedError, match=r"unreadable \(.*dataset\.json: delete it and run cmrhash extract"
    ) as caught:
        manifest.load(tmp_path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400 + len(str(tmp_path))


# ---------------------------------------------------------------------------------------------- NumPy and MATLAB


def header(shape, kind="<f8"):
    raw = io.BytesIO()
    np.lib.format.write_array_header_1_0(raw, {"descr": kind, "fortran_order": False, "shape": shape})
    return raw.getvalue()


def zipped(path, content, how=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", how) as archive:
        archive.writestr("image.npy", content)


def write_numpy(kind, folder, trap):
    """A hostile .npy or .npz; returns its path and the reason by which it is refused."""
    path = folder / ("f.npz" if "npz" in kind else "image.npy")
    pickled = np.array([[Evil(trap), 1]], object)
    return path, {
        "objects npy": lambda: np.save(path, pickled, allow_pickle=True) or NO_NUMBERS,
        "objects npz": lambda: np.savez(path, image=pickled) or NO_NUMBERS,
        "huge npy": lambda: path.write_bytes(header((1 << 40, 2)) + b"\0" * 64) and TOO_MUCH,
        "huge npz": lambda: zipped(path, header((1 << 40, 2)) + b"\0" * 64) or TOO_MUCH,
        "bzip2 npz": lambda: zipped(path, header((4, 2)) + b"\0" * 64, zipfile.ZIP_BZIP2) or "packed in an unknown way",
        "text npy": lambda: np.save(path, np.array(["a", "b"])) or NO_NUMBERS,
        "records npy": lambda: np.save(path, np.zeros(3, [("a", "f4"), ("b", "i4")])) or NO_NUMBERS,
    }[kind]()


NUMPY = ["objects npy", "objects npz", "huge npy", "huge npz", "bzip2 npz", "text npy", "records npy"]


@pytest.mark.faults(EVIDENCE)
@pytest.mark.parametrize("kind", NUMPY)
def test_numpy_files_hold_no_objects_and_no_more_than_they_say(tmp_path, trap, kind):
    path, reason = write_numpy(kind, tmp_path, trap)
    with pytest.raises(DataError, match=rf"image \(.*{reason}.*\) cannot be image"):
        matrices.read([path], ())


@pytest.mark.faults(EVIDENCE)
@pytest.mark.parametrize("value", [{"a": 1.0}, np.array([{"a": 1}, 2], object), "text", np.zeros((3, 2), complex)])
def test_matlab_files_of_the_wrong_kind(tmp_path, value):
    path = tmp_path / "f.mat"
    scipy.io.savemat(path, {"image": value, "text": np.ones((3, 2))})
    with pytest.raises((DataError, UsageError)) as caught:
        matrices.read([path], ())
    assert "\n" not in str(caught.value)


# ---------------------------------------------------------------------------------------------- run folders


@pytest.fixture(scope="module")
def trained(make_cache, tmp_path_factory):
    """An extracted data set and a scored run of it."""
    base, before = tmp_path_factory.mktemp("trained"), os.getcwd()
    make_cache(base / "cache", count=40)
    os.chdir(base)
    assert run("train", *QUICK, "-q") == run("eval", "-q") == 0
    os.chdir(before)
    return base


@pytest.fixture
def mine(trained, tmp_path, monkeypatch):
    """A copy, and its run's folder."""
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "runs/toy/triplet-8"


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
    with pytest.raises(DamagedError, match=r"heads\.safetensors: train again with --overwrite") as caught:
        load_heads(forged)
    assert "\n" not in str(caught.value)


def state():
    heads = torch.nn.ModuleDict({"image": torch.nn.Linear(2, 2)})
    return State(heads, torch.nn.ModuleDict(), torch.optim.AdamW(heads.parameters()))


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
    with pytest.raises(DamagedError, match="start anew with --overwrite"):
        state().resume(folder, {}, overwrite=False)


@pytest.mark.faults(EVIDENCE)
@pytest.mark.parametrize("name", ["../canary.h5", "{canary}", "/dev/zero", "pipe.faiss"])
def test_codes_that_name_another_file_as_index(mine, canary, name):
    os.mkfifo(mine / "pipe.faiss")
    manifest, arrays = hdf5.read_sealed(mine / runs.CODES)
    manifest["indexes"] = {name.format(canary=canary.path): "0" * 64}
    hdf5.write_sealed(mine / runs.CODES, arrays, manifest)
    with pytest.raises(DamagedError, match="missing, or does not match"):
        stored_codes(runs.open_run(mine))


@pytest.mark.faults(EVIDENCE)
def test_codes_that_lack_an_array(mine):
    manifest, arrays = hdf5.read_sealed(mine / runs.CODES)
    del arrays["image.item"]
    hdf5.write_sealed(mine / runs.CODES, arrays, manifest)
    with pytest.raises(DamagedError, match=r"'image\.item' is not there"):
        stored_codes(runs.open_run(mine))


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


# ---------------------------------------------------------------------------------------------- manifests and models

PATHS = {
    "up and out": "../canary.h5",
    "up and out again": "images/../../canary.h5",
    "absolute": "{canary}",
    "a link out": "images/out",
    "through a folder's link": "images/there/canary.h5",
    "a link to itself": "images/loop",
    "a pipe": "images/pipe",
    "a device": "images/zero",
    "a folder": "images",
    "a URL": "https://example.com/a.jpg",
    "a file's URL": "file://{canary}",
    "a Windows drive": "C:/canary.h5",
    "Windows' way out": "..\\canary.h5",
    "a share": "\\\\host\\canary.h5",
    "home": "~/canary.h5",
    "a variable": "$HOME/canary.h5",
}


@pytest.mark.faults(EVIDENCE)
@pytest.mark.parametrize("kind", PATHS)
def test_a_photo_lies_below_the_root_or_is_no_photo(tmp_path, monkeypatch, capsys, canary, kind):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    tiny = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    monkeypatch.setattr(text_encoders, "TINY", tiny)
    image = PATHS[kind].format(canary=canary.path)
    write_own(tmp_path / "mine", change=lambda entries: [{**entries[0], "image": image}, *entries[1:]])
    images = tmp_path / "mine/images"
    (images / "out").symlink_to(canary.path)
    (images / "there").symlink_to(tmp_path)
    (images / "loop").symlink_to("loop")
    (images / "zero").symlink_to("/dev/zero")
    os.mkfifo(images / "pipe")
    assert run(*EXTRACT, "--image-model", "shufflenet_v2_x0_5", "--max-bad", "0", "-q") == 5
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "leaves the data set's folder" in error or "1 of 8 items could not be used" in error


@pytest.mark.faults(EVIDENCE)
def test_a_model_of_pickles_is_not_opened(tmp_path, trap):
    folder = tmp_path / "bert"
    encoder = text_encoders.load("random", corpus=["dog cat"] * 2)
    encoder.tokenizer.save_pretrained(folder)
    encoder.module.save_pretrained(folder)
    (folder / "model.safetensors").unlink()
    pickled = [folder / name for name in ("pytorch_model.bin", "model.pt", "training_args.bin", "tokenizer.pkl")]
    for path in pickled:
        torch.save({"weight": Evil(trap)}, path)
    OPENED.clear()
    with pytest.raises(EncoderError, match="cannot load the text model"):
        text_encoders.load(str(folder))
    assert str(folder / "config.json") in OPENED
    assert not OPENED & set(map(str, pickled))


# ---------------------------------------------------------------------------------------------- the naive way


@pytest.mark.faults(EVIDENCE)
def test_what_the_plain_way_does(tmp_path, faults):
    canary, jobs = Canary(tmp_path / "canary.h5"), []
    for kind in HDF5:
        with h5py.File(tmp_path / f"{kind}.h5", "w") as file:
            HDF5[kind][0](file, canary.path)
        jobs.append(("open hdf5", tmp_path / f"{kind}.h5", 0))
    for n, kind in enumerate(NUMPY):
        (tmp_path / str(n)).mkdir()
        jobs.append(("open numpy", write_numpy(kind, tmp_path / str(n), tmp_path / str(n) / "trap")[0], 0))
    for name in ("checkpoint.pt", "pytorch_model.bin", "net.pth"):
        (tmp_path / name).mkdir()
        torch.save({"weight": Evil(tmp_path / name / "trap")}, tmp_path / name / name)
        jobs.append(("open torch", tmp_path / name / name, 0))
    canary.close()
    faults.naive_tried = len(jobs)
    faults.naive_survived = sum(outcome in ("same", "refused") for outcome in naive.outcomes(jobs, tmp_path))
    assert all((tmp_path / name / "trap").exists() for name in ("0", "1", "checkpoint.pt", "net.pth"))
    faults.tried = faults.survived = 1
