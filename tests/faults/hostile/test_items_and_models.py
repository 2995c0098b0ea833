"""Hostile items, manifests and models: nothing outside their folder is opened, nothing in them is run."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import h5py
import pytest
import torch
from hostile_files import EVIDENCE, OPENED, Canary, Evil
from running import EXTRACT, run, write_own

from cmrhash.data import manifest
from cmrhash.data.items import ImageTextDataset, Item
from cmrhash.encoders import text as text_encoders
from cmrhash.errors import DamagedError, EncoderError
from cmrhash.storage.files import read_json, write_json


def test_the_canary_sings(tmp_path):
    for look in (Path.read_bytes, lambda path: h5py.File(path, "r").close()):
        canary = Canary(tmp_path / "canary.h5")
        look(canary.path)
        assert canary.opened()
        canary.close()


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
    with pytest.raises(DamagedError, match=r"unreadable \(.*dataset\.json: delete it and run `extract`") as caught:
        manifest.load(tmp_path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400 + len(str(tmp_path))


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


@pytest.mark.slow
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
