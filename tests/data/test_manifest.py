"""The manifest: what is refused and by which words, and what the cache makes of a data set and gives back."""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cmrhash.data import manifest
from cmrhash.data.items import ImageTextDataset, Item, check, with_roles
from cmrhash.errors import CmrhashError, DamagedError, DataError, StaleError, UsageError
from cmrhash.features.dataset import ExtractedDataset
from cmrhash.storage.files import read_json, write_json

GOOD = {"id": "a", "image": "a.jpg", "texts": {"en": ["a dog"]}, "labels": ["dog"]}


def write(root, *entries):
    """A manifest of entries (turned into JSON) or raw lines (bytes)."""
    root.mkdir(exist_ok=True)
    lines = [e if isinstance(e, bytes) else json.dumps(e).encode() for e in entries]
    (root / "manifest.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    return root


def example(root):
    items = (
        Item("Bild ü", "ordner ä/ü 1.jpg", {"de": ("Ein Hund.", "Zwei"), "en": ("A \u2028 dog 🐕",)}, (1, 0)),
        Item("二", None, {"zh-hant": ("狗",)}, ()),
        Item("3", "c.jpg", {}, (0,)),
    )
    items = tuple(replace(i, splits=frozenset(s)) for i, s in zip(items, [["query"], ["train"], ["val"]], strict=True))
    items = (replace(items[0], labels=(0, 1), texts={"de": ("Ein Hund.", "Zwei"), "en": ("A dog 🐕",)}), *items[1:])
    return ImageTextDataset("meins ü", root, items, ("Hund", "Tier 🐾"), "labels", {"items": 3, "ohne": 1}, 7)


# ---------------------------------------------------------------------------------------------- reading


def test_every_field_is_read(tmp_path):
    root = write(
        tmp_path,
        {"id": 17, "image": "images/a.jpg", "texts": {"en": ["a  dog\n"], "de": "ein Hund"}, "labels": ["dog", 4]},
        {"id": "b", "texts": {"en": ["", " "]}, "labels": ["cat", "cat"]},
    )
    read = manifest.read(root)
    assert read.classes == ("4", "cat", "dog")
    assert read.relevance == "labels"
    assert read.items == (
        Item("17", "images/a.jpg", {"de": ("ein Hund",), "en": ("a dog",)}, (0, 2)),
        Item("b", None, {}, (1,)),
    )
    there = {"items": 2, "images": 1, "de texts": 1, "en texts": 1, "labelled items": 2, "classes": 3}
    lacking = dict.fromkeys(["items without de text", "items without en text", "items without an image"], 1)
    assert read.found == {**there, **lacking, "photos not found (images/a.jpg)": 1}
    (root / "images").mkdir()
    (root / "images/a.jpg").write_bytes(b"photo")
    assert manifest.read(root).found == {**there, **lacking}


def test_photos_are_found_by_similar_names(tmp_path):
    names = ["images/A.JPG", "images/cafe\u0301.png", "images/plain.png", "images/lost.jpg", "images\\back.png"]
    written = ["images/a.jpg", "images/caf\u00e9.png", "plain", "images/gone.jpg", "images\\back.png"]
    for name in names:
        path = tmp_path / name.replace("\\", "/")
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"photo")
    root = write(tmp_path, *({"id": n, "image": image} for n, image in enumerate(written)))
    read = manifest.read(root)
    expected = [names[0], names[1], names[2], written[3], "images/back.png"]
    assert [item.image for item in read.items] == expected
    assert read.found["photos not found (images/gone.jpg)"] == 1
    assert read.found["photos found by a similar name or in another folder"] == 3


def test_without_labels_relevance_is_by_pairs(tmp_path):
    assert manifest.read(write(tmp_path, {"id": "a", "texts": {"en": "x"}})).relevance == "pairs"


def test_blank_lines_a_byte_order_mark_and_windows_line_ends_are_accepted(tmp_path):
    line = json.dumps(GOOD).encode()
    (tmp_path / "manifest.jsonl").write_bytes(b"\xef\xbb\xbf" + line + b"\r\n\r\n  \n" + line.replace(b'"a"', b'"b"'))
    assert [i.id for i in manifest.read(tmp_path).items] == ["a", "b"]


@pytest.mark.parametrize("order", ["le", "be"])
def test_a_manifest_in_utf_16_is_refused_with_what_to_do(tmp_path, order):
    write(tmp_path / "mine", ("\ufeff" + json.dumps(GOOD)).encode(f"utf-16-{order}"))
    with pytest.raises(DataError, match=r"the file is in UTF-16.*manifest.jsonl: save it as UTF-8$"):
        manifest.read(tmp_path / "mine")


def test_a_folder_without_a_manifest_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"no manifest\.jsonl: .*check `root`"):
        manifest.read(tmp_path)


@pytest.mark.faults("broken or odd text")
@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b'{"id": "x"', "Expecting"),
        (b"not json", "Expecting value"),
        (b'{"id": "\xff"}', "can't decode byte 0xff"),
        (b"[" * 100_000, "recursion"),
        (b'["x"]', "not a JSON object"),
        (b'{"image": "x.jpg"}', "'id' must be a printable string"),
        (b'{"id": " "}', "'id' must be a printable string"),
        (b'{"id": true}', "'id' must be a printable string"),
        (b'{"id": NaN}', "'id' must be a printable string"),
        (b'{"id": "a\\nb"}', "'id' must be a printable string"),
        (b'{"id": "\\ud800"}', "'id' must be a printable string"),
        (b'{"id": "x", "image": ""}', "'image' must be a path or null"),
        (b'{"id": "x", "image": 3}', "'image' must be a path or null"),
        (b'{"id": "x", "image": "a\\u0000b"}', "'image' must be a path or null"),
        (b'{"id": "x", "texts": ["a"]}', "'texts' must map a language to captions"),
        (b'{"id": "x", "texts": {"en": 3}}', "'texts.en' must be a list of strings"),
        (b'{"id": "x", "texts": {"en": ["a", 3]}}', "'texts.en' must be a list of strings"),
        (b'{"id": "x", "texts": {"../x": ["a"]}}', "'../x' is not a language code"),
        (b'{"id": "x", "texts": {"": ["a"]}}', "'' is not a language code"),
        (b'{"id": "x", "labels": "dog"}', "'labels' must be a list of strings"),
        (b'{"id": "x", "labels": [["dog"]]}', "'labels' must be a list of strings"),
        (b'{"id": "x", "splits": "train"}', "'splits' must be a list of strings"),
        (b'{"id": "x", "splits": ["train", "test"]}', "splits must be among train, .*, found test"),
    ],
)
def test_a_malformed_line_is_named_with_what_is_wrong_in_it(tmp_path, line, words):
    root = write(tmp_path, GOOD, b"", line)
    with pytest.raises(DataError, match=rf"line 3 is not a manifest entry \(.*{words}.*manifest\.jsonl: fix this line"):
        manifest.read(root)


def test_splits_are_given_for_all_items_or_for_none(tmp_path):
    with pytest.raises(DataError, match="item 'b' has no splits, other items have"):
        manifest.read(write(tmp_path, {"id": "a", "splits": ["train"]}, {"id": "b"}))


def test_labels_that_differ_in_spaces_are_one_class_and_empty_ones_are_none(tmp_path):
    labels = (["dog"], ["dog "], [" dog"], [""], [" "], ["-1", "cat"], [-1], ["NaN"], ["\ud800"])
    root = write(tmp_path, *({"id": str(i), "texts": {"en": "x"}, "labels": names} for i, names in enumerate(labels)))
    read = manifest.read(root)
    assert read.classes == ("cat", "dog")
    assert [item.labels for item in read.items] == [(1,), (1,), (1,), (), (), (0,), (), (), ()]


@pytest.mark.parametrize("image", ["../a.jpg", "/a.jpg", "..\\a.jpg", "\ud800.jpg"])
def test_an_image_path_that_cannot_be_is_refused(tmp_path, image):
    with pytest.raises(DataError, match=r"\.jpg"):
        manifest.read(write(tmp_path, {"id": "a", "image": image}))


@pytest.mark.parametrize("label", ["dog", "Hund ü", "🐕", "a, b"])
def test_every_label_survives_the_cache(tmp_path, label):
    root = write(tmp_path / "mine", {"id": "a", "texts": {"en": "x"}, "labels": [label]})
    manifest.store(manifest.read(root), tmp_path / "cache")
    assert manifest.load(tmp_path / "cache").classes == (label,)


def test_a_file_name_that_is_not_utf8_survives_the_cache(tmp_path):
    name = os.fsdecode(b"\xff.jpg")
    root = write(tmp_path / "mine", {"id": "a", "image": name, "texts": {"en": "x"}})
    manifest.store(manifest.read(root), tmp_path / "cache")
    assert manifest.load(tmp_path / "cache").items[0].image == name


@given(st.binary(max_size=60))
@settings(max_examples=200)
def test_arbitrary_bytes_never_raise_anything_but_a_data_error(tmp_path_factory, content):
    root = tmp_path_factory.getbasetemp() / "bytes"
    with contextlib.suppress(DataError):
        assert isinstance(manifest.read(write(root, content)), ImageTextDataset)


TEXT = st.text(st.characters(exclude_categories=()), max_size=5)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(TEXT, inner, max_size=2),
    max_leaves=4,
)
LANGUAGE = st.sampled_from(["en", "de", "zh-Hant", "x_1"]) | TEXT
ENTRY = st.fixed_dictionaries(
    {"id": st.integers(0, 20).map(str) | JSON},
    optional={
        "image": TEXT | JSON,
        "texts": st.dictionaries(LANGUAGE, TEXT | st.lists(TEXT, max_size=2), max_size=2) | JSON,
        "labels": st.lists(TEXT | st.integers(), max_size=2) | JSON,
    },
)


@given(st.lists(ENTRY, min_size=1, max_size=3), st.integers(0, 9))
@settings(max_examples=200, deadline=None)
def test_any_json_is_either_refused_as_data_or_survives_the_cache(tmp_path_factory, entries, seed):
    base = tmp_path_factory.getbasetemp()
    try:
        read = check(with_roles(manifest.read(write(base / "json", *entries)), seed))
    except DataError:
        return
    manifest.store(read, base / "json-cache")
    assert replace(manifest.load(base / "json-cache"), sha256="") == read


# ---------------------------------------------------------------------------------------------- the cache


def test_what_is_stored_is_loaded(tmp_path):
    data = example(tmp_path)
    manifest.store(data, tmp_path / "cache")
    loaded = manifest.load(tmp_path / "cache")
    assert replace(loaded, sha256="") == data
    assert len(loaded.sha256) == 64
    assert sorted(p.name for p in (tmp_path / "cache").iterdir()) == ["dataset.json", "items.blocks", "items.jsonl"]


def test_the_digest_is_that_of_the_items(tmp_path):
    data = example(tmp_path)
    manifest.store(data, tmp_path / "one")
    manifest.store(replace(data, name="other", root=tmp_path / "elsewhere"), tmp_path / "two")
    manifest.store(replace(data, items=data.items[::-1]), tmp_path / "three")
    one, two, three = (manifest.load(tmp_path / n).sha256 for n in ("one", "two", "three"))
    assert one == two != three


def test_a_stored_folder_can_be_read_as_a_manifest(tmp_path):
    data = example(tmp_path)
    manifest.store(data, tmp_path / "cache")
    read = manifest.read(tmp_path / "cache")
    assert replace(read, sha256="") == replace(data, name="manifest")


def test_the_stored_items_alone_are_a_manifest(tmp_path):
    data = example(tmp_path)
    manifest.store(data, tmp_path / "cache")
    (tmp_path / "mine").mkdir()
    (tmp_path / "cache" / "items.jsonl").rename(tmp_path / "mine" / "manifest.jsonl")
    assert manifest.read(tmp_path / "mine").items == data.items


def test_tampered_items_are_noticed(tmp_path):
    manifest.store(example(tmp_path), tmp_path)
    path = tmp_path / "items.jsonl"
    path.write_bytes(path.read_bytes().replace(b"Hund.", b"Wolf."))
    with pytest.raises(DamagedError, match=r"the items were changed after .*items\.jsonl: .*run `extract` again"):
        manifest.load(tmp_path)


@pytest.mark.parametrize("name", ["items.jsonl", "dataset.json"])
def test_a_missing_half_is_noticed(tmp_path, name):
    manifest.store(example(tmp_path), tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(DamagedError, match=f"incomplete data set folder: .*{name}"):
        manifest.load(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"3", b"{}", b'{"version": 1}', b"\xff"])
def test_an_unreadable_description_is_damage(tmp_path, content):
    manifest.store(example(tmp_path), tmp_path)
    (tmp_path / "dataset.json").write_bytes(content)
    with pytest.raises(DamagedError, match=r"changed after writing.*dataset\.json"):
        manifest.load(tmp_path)


@pytest.mark.parametrize("field", ["name", "root", "relevance", "classes", "split_seed", "found"])
def test_a_description_that_lacks_a_field_is_damage(tmp_path, field):
    manifest.store(example(tmp_path), tmp_path)
    about = read_json(tmp_path / "dataset.json", "")
    del about[field]
    write_json(tmp_path / "dataset.json", about)
    with pytest.raises(DamagedError, match=rf"{field}.*dataset\.json"):
        manifest.load(tmp_path)


def test_classes_that_do_not_fit_the_items_are_damage(tmp_path):
    manifest.store(example(tmp_path), tmp_path)
    about = read_json(tmp_path / "dataset.json", "")
    write_json(tmp_path / "dataset.json", about | {"classes": ["Katze"]})
    with pytest.raises(DamagedError, match=r"dataset\.json"):
        manifest.load(tmp_path)


def test_a_folder_of_a_newer_version_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(manifest, "VERSION", 2)
    manifest.store(example(tmp_path), tmp_path)
    monkeypatch.undo()
    with pytest.raises(StaleError, match=r"version 2: .*dataset\.json: this cmrhash reads version 1; upgrade it"):
        manifest.load(tmp_path)


def test_storing_again_replaces_what_was_there(tmp_path):
    data = example(tmp_path)
    manifest.store(data, tmp_path / "cache")
    manifest.store(replace(data, items=data.items[:1]), tmp_path / "cache")
    assert manifest.load(tmp_path / "cache").items == data.items[:1]


# ---------------------------------------------------------------------------------------------- finding it again


def test_without_extracted_data_the_remedy_is_to_extract(tmp_path):
    for cache in (tmp_path, tmp_path / "none"):
        with pytest.raises(UsageError, match=r"no extracted data set in this folder: .*run `extract` first"):
            manifest.open_extracted(cache, None)


def test_the_only_extracted_data_set_needs_no_name(tmp_path):
    manifest.store(replace(example(tmp_path), name="mine"), tmp_path / "mine")
    (tmp_path / "unfinished").mkdir()
    for name in (None, "mine"):
        data = ExtractedDataset.open(tmp_path, name)
        assert (data.name, data.folder) == ("mine", tmp_path / "mine")


def test_of_several_extracted_data_sets_one_has_to_be_named(tmp_path):
    for name in ("b", "a"):
        manifest.store(replace(example(tmp_path), name=name), tmp_path / name)
    with pytest.raises(UsageError, match=r"several data sets \(a, b\).*`dataset`"):
        manifest.open_extracted(tmp_path, None)
    assert manifest.open_extracted(tmp_path, "a")[0].name == "a"


@pytest.mark.parametrize("name", ["c", "../a", "", "A"])
def test_a_wrong_name_lists_those_that_are_there(tmp_path, name):
    manifest.store(example(tmp_path), tmp_path / "a")
    with pytest.raises(CmrhashError, match=rf"no extracted data set '{name}' \(the cache holds a\)"):
        manifest.open_extracted(tmp_path, name)


@pytest.mark.parametrize(
    ("slip", "field"), [("label", "labels"), ("text", "texts"), ("split", "splits"), ("images", "image")]
)
def test_a_misspelled_field_is_named_and_a_field_of_ones_own_is_not(tmp_path, slip, field):
    line = {"id": "1", "texts": {"en": ["a dog"]}, "photographer": "me"}
    (tmp_path / "manifest.jsonl").write_text(json.dumps(line))
    assert len(manifest.read(tmp_path).items) == 1
    (tmp_path / "manifest.jsonl").write_text(json.dumps(line | {slip: None}))
    with pytest.raises(DataError, match=f"line 1 .*unknown field '{slip}', did you mean {field}"):
        manifest.read(tmp_path)


def test_equal_labels_and_splits_are_kept_once(tmp_path):
    """A million items have few of them."""
    lines = [json.dumps({"id": str(n), "labels": ["b", "a"], "splits": ["train", "database"]}) for n in range(3)]
    (tmp_path / "manifest.jsonl").write_text("\n".join(lines))
    read = manifest.read(tmp_path)
    manifest.store(read, tmp_path / "cache")
    for data in (read, manifest.load(tmp_path / "cache")):
        assert data.items[0].labels == (0, 1)
        assert len({(id(item.labels), id(item.splits)) for item in data.items}) == 1
        assert not hasattr(data.items[0], "__dict__")
