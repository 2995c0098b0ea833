"""The copy of the items in blocks: the same items, faster, and never in the way."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cmrhash.data import item_blocks, manifest
from cmrhash.data.items import ImageTextDataset, Item
from cmrhash.errors import DamagedError
from cmrhash.storage.files import read_json, write_json

CLASSES = ("dog", 'Katze "ü" \ud800', "🐕")
TEXT = st.text(st.characters(exclude_categories=()), max_size=6)
ITEM = st.builds(
    Item,
    st.just(""),
    st.none() | TEXT,
    st.dictionaries(st.sampled_from(["de", "en", "zh-Hant"]), st.lists(TEXT, min_size=1, max_size=3).map(tuple)),
    st.lists(st.integers(0, 2), unique=True).map(tuple),
    st.sampled_from([(), ("train",), ("train", "database"), ("query",)]).map(frozenset),
)


def toy(items):
    items = tuple(replace(item, id=f"i{n}") for n, item in enumerate(items))
    return ImageTextDataset("toy", Path("/photos"), items, CLASSES)


def lines_only(monkeypatch):
    """Load without the copy, as from a cache of version 0.1."""
    monkeypatch.setattr(manifest, "BLOCKS", "none")


@given(st.lists(ITEM, min_size=1, max_size=9), st.integers(1, 4))
@settings(max_examples=200, deadline=None)
def test_the_copy_and_the_lines_give_the_same_items(items, size):
    data = toy(items)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(item_blocks, "BLOCK", size)
        lines = list(item_blocks.dump(data, "abc"))
    assert len(lines) == 1 + -(-len(items) // size)
    read = item_blocks.load(lines[1:], CLASSES)
    stored = manifest._stored(manifest.dump(data), CLASSES)
    assert read == stored == data.items
    assert [list(item.texts) for item in read] == [list(item.texts) for item in stored]
    assert len({id(item.labels) for item in read}) == len({item.labels for item in read})


@pytest.fixture
def folder(tmp_path):
    manifest.store(toy([Item("", f"{n}.jpg", {"en": ("a",), "de": ("b", "c")}, (n % 3,)) for n in range(9)]), tmp_path)
    return tmp_path


def test_the_copy_is_what_is_read(folder, monkeypatch):
    monkeypatch.setattr(manifest, "_stored", lambda *_: pytest.fail("read the lines"))
    assert len(manifest.load(folder).items) == 9


@pytest.mark.parametrize("harm", ["missing", "cut", "flipped", "empty", "a folder", "of other items", "not recorded"])
def test_without_a_good_copy_the_lines_are_read(folder, monkeypatch, harm):
    expected, path = manifest.load(folder), folder / manifest.BLOCKS
    content, about = path.read_bytes(), read_json(folder / manifest.ABOUT, "")
    path.unlink()
    if harm == "a folder":
        path.mkdir()
    elif harm == "of other items":
        other = b"0" * 64 + content[64:]
        path.write_bytes(other)
        write_json(folder / manifest.ABOUT, about | {"blocks_sha256": hashlib.sha256(other).hexdigest()})
    elif harm == "not recorded":
        path.write_bytes(content)
        del about["blocks_sha256"]
        write_json(folder / manifest.ABOUT, about)
    elif harm != "missing":
        changed = {"cut": content[:-9], "flipped": content[:-9] + b"x" + content[-8:], "empty": b""}
        path.write_bytes(changed[harm])
    monkeypatch.setattr(item_blocks, "load", lambda *_: pytest.fail("read the copy"))
    assert manifest.load(folder) == expected


WRONG = {
    "a number as id": [[1], [None], [[["dog"]], [0]], [[[]], [0]], {}],
    "a number as image": [["a"], [1], [[["dog"]], [0]], [[[]], [0]], {}],
    "one image too many": [["a"], [None, None], [[["dog"]], [0]], [[[]], [0]], {}],
    "an unknown label": [["a"], [None], [[["cow"]], [0]], [[[]], [0]], {}],
    "a label's number too high": [["a"], [None], [[["dog"]], [1]], [[[]], [0]], {}],
    "a label's number below 0": [["a"], [None], [[["dog"]], [-1]], [[[]], [0]], {}],
    "an unknown split": [["a"], [None], [[["dog"]], [0]], [[["test"]], [0]], {}],
    "a number as caption": [["a"], [None], [[["dog"]], [0]], [[[]], [0]], {"en": [[1], None]}],
    "captions of too few items": [["a"], [None], [[["dog"]], [0]], [[[]], [0]], {"en": [["x"], []]}],
    "more captions than there are": [["a"], [None], [[["dog"]], [0]], [[[]], [0]], {"en": [["x"], [2]]}],
    "a count that is no number": [["a"], [None], [[["dog"]], [0]], [[[]], [0]], {"en": [["x"], ["y"]]}],
    "no language": [["a"], [None], [[["dog"]], [0]], [[[]], [0]], {"../x": [["x"], None]}],
    "an object": {},
    "a number": 3,
    "the same twice": [["a", "a"], [None, None], [[["dog"]], [0, 0]], [[[]], [0, 0]], {}],
}


@pytest.mark.faults("hostile file")
@pytest.mark.parametrize("kind", WRONG)
def test_a_copy_with_the_right_digest_and_wrong_values_is_damage(folder, kind):
    about = read_json(folder / manifest.ABOUT, "")
    content = f"{about['items_sha256']}\n{json.dumps(WRONG[kind])}\n".encode()
    (folder / manifest.BLOCKS).write_bytes(content)
    write_json(folder / manifest.ABOUT, about | {"blocks_sha256": hashlib.sha256(content).hexdigest()})
    with pytest.raises(DamagedError, match=r"unreadable \(.*dataset\.json: delete it and run `extract`"):
        manifest.load(folder)
