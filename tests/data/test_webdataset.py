"""Samples in tars and unpacked: captions, labels, ids, splits, and what is left out or refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from trees import put, tar_of

from cmrhash.config import ExtractConfig
from cmrhash.data.catalog import read_dataset
from cmrhash.data.items import ImageTextDataset, Item, check
from cmrhash.data.readers import webdataset
from cmrhash.data.recognise import recognise
from cmrhash.errors import DataError


def read(root: Path, members: dict[str, str | bytes], name: str = "00000.tar") -> ImageTextDataset:
    put(root / name, tar_of(members))
    return check(webdataset.read(root))


def one(root: Path, **members: str) -> Item:
    """The item of the only sample, by suffix; "_" in a name stands for a dot."""
    [item] = read(root, {f"1.{name.replace('_', '.')}": content for name, content in members.items()}).items
    return item


def test_members_of_a_sample_share_the_name_up_to_its_first_dot(tmp_path: Path) -> None:
    members: dict[str, str | bytes] = {
        "a/1.jpg": b"one",
        "a/1.txt": "A dog.",
        "a/1.v2.txt": "not a caption",
        "b.c/2.seg.png": b"a mask",
        "b.c/2.PNG": b"two",
        "b.c/2.caption": "A cat.",
        "3.webp": b"three",
    }
    dataset = read(tmp_path, members)
    assert [(item.id, item.texts) for item in dataset.items] == [
        ("a/1", {"en": ("A dog.",)}),
        ("b.c/2", {"en": ("A cat.",)}),
        ("3", {}),
    ]
    content = (tmp_path / "00000.tar").read_bytes()
    for item, photo in zip(dataset.items, (b"one", b"two", b"three"), strict=True):
        offset, size = map(int, str(item.image).removeprefix("00000.tar@").split("+"))
        assert content[offset : offset + size] == photo
    assert dataset.found == {
        "items": 3,
        "images": 3,
        "en texts": 2,
        "items without en text": 1,
        "members .v2.txt, not used": 1,
        "members .seg.png, not used": 1,
    }


def test_members_that_are_not_adjacent_meet(tmp_path: Path) -> None:
    items = read(tmp_path, {"1.jpg": b"1", "2.jpg": b"2", "2.txt": "two", "1.txt": "one"}).items
    assert [(item.id, item.texts["en"]) for item in items] == [("1", ("one",)), ("2", ("two",))]


def test_captions_of_txt_come_before_those_of_json(tmp_path: Path) -> None:
    assert one(tmp_path, jpg="1", json='{"caption": "json"}').texts == {"en": ("json",)}
    assert one(tmp_path, jpg="1", json='{"caption": "json"}', txt=" \n").texts == {"en": ("json",)}
    item = one(tmp_path, jpg="1", json='{"caption": "json"}', txt="a\n\nb\n", de_txt="Hund")
    assert item.texts == {"de": ("Hund",), "en": ("a", "b")}


def test_lines_that_json_knows_as_one_caption_are_one(tmp_path: Path) -> None:
    item = one(tmp_path, jpg="1", json='{"caption": "a\\nb"}', txt="a\nb")
    assert item.texts == {"en": ("a b",)}


@pytest.mark.parametrize(
    ("row", "texts", "labels"),
    [
        ({"caption": ["a", " ", "b"], "caption_de": "c"}, {"de": ("c",), "en": ("a", "b")}, ()),
        ({"TEXT": "a", "title": "b", "label": ["dog ", "cat", "dog"]}, {"en": ("a",)}, ("cat", "dog")),
        ({"text": None, "label": 3, "exif": "{}"}, {}, ("3",)),
        ({"caption": {"raw": "a"}, "tags": "-1"}, {}, ()),
    ],
)
def test_fields_of_json(
    row: dict[str, object], texts: dict[str, tuple[str, ...]], labels: tuple[str, ...], tmp_path: Path
) -> None:
    dataset = read(tmp_path, {"1.jpg": b"1", "1.json": json.dumps(row)})
    assert dataset.items[0].texts == texts
    assert tuple(dataset.classes[n] for n in dataset.items[0].labels) == dataset.classes == labels
    assert dataset.relevance == ("labels" if labels else "pairs")
    assert dataset.found.get("fields of .json with an object, not used") == (1 if "tags" in row else None)


def test_cls_comes_before_the_labels_of_json(tmp_path: Path) -> None:
    members: dict[str, str | bytes] = {}
    for n, label in enumerate(["7", "12\n", "7 ", "-1"]):
        members |= {f"{n}.jpg": b"x", f"{n}.cls": label, f"{n}.json": '{"label": "other"}'}
    dataset = read(tmp_path, members)
    assert dataset.classes == ("12", "7", "other")
    assert [item.labels for item in dataset.items] == [(1,), (0,), (1,), (2,)]


def test_downloads_without_success_are_left_out_and_counted(tmp_path: Path) -> None:
    members: dict[str, str | bytes] = {}
    for n, status in enumerate(["success", "failed_to_download", "failed_to_resize"]):
        members |= {f"{n}.jpg": b"x", f"{n}.json": json.dumps({"key": "", "status": status, "error_message": None})}
    dataset = read(tmp_path, members | {"9.json": '{"status": "draft", "caption": "a field of one\'s own"}'})
    assert [item.id for item in dataset.items] == ["0", "9"]
    assert dataset.found["downloads without success, left out"] == 2


def test_what_is_odd_is_counted(tmp_path: Path) -> None:
    members: dict[str, str | bytes] = {
        "1.jpg": b"x",
        "1.png": b"y",
        "1.json": "{'not': json}",
        "2.json": '{"caption": "a", "caption": "b"}',
        "2.txt": "two",
        "3.cls": "4",
        "4.npy": b"",
        ".hidden.jpg": b"",
    }
    dataset = read(tmp_path, members)
    assert [(item.id, item.image is None) for item in dataset.items] == [("1", False), ("2", True)]
    found = dataset.found
    assert found["further photos of a sample, not used"] == 1
    assert found[".json members that cannot be read"] == 2
    assert found["samples with neither photo nor caption, left out"] == 1
    assert (found["members .npy, not used"], found["members .hidden.jpg, not used"]) == (1, 1)


def test_texts_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webdataset, "MAX_TEXT", 10)
    dataset = read(tmp_path, {"1.jpg": b"x" * 99, "1.txt": "a" * 11, "2.txt": "a" * 10})
    assert [item.texts for item in dataset.items] == [{}, {"en": ("a" * 10,)}]
    assert dataset.found[".text members that are too large"] == 1


# ---------------------------------------------------------------------------------------------- several tars


def test_keys_that_repeat_get_the_name_of_their_tar(tmp_path: Path) -> None:
    put(tmp_path / "a/0.tar", tar_of({"1.txt": "one", "2.txt": "two"}))
    put(tmp_path / "a/1.tar", tar_of({"1.txt": "other"}))
    dataset = check(webdataset.read(tmp_path))
    assert [(item.id, item.texts["en"]) for item in dataset.items] == [
        ("a/0.tar/1", ("one",)),
        ("2", ("two",)),
        ("a/1.tar/1", ("other",)),
    ]
    assert dataset.found["keys that several tars have"] == 1


@pytest.mark.parametrize("names", [("train-0.tar", "test-0.tar"), ("mine/train/0.tar", "mine/val/0.tar")])
@pytest.mark.parametrize("labels", [True, False])
def test_splits_by_the_names_of_the_tars(names: tuple[str, str], labels: bool, tmp_path: Path) -> None:
    for key, name in zip(("training", "queries"), names, strict=True):
        put(tmp_path / name, tar_of({f"{key}.txt": "x"} | ({f"{key}.cls": "3"} if labels else {})))
    splits = {item.id: item.splits for item in webdataset.read(tmp_path).items}
    both: dict[str, set[str]] = {"training": {"train", "database"}, "queries": {"query"}}
    assert splits == (both if labels else {"training": {"train"}, "queries": {"query", "database"}})


def test_names_without_a_test_split_leave_the_roles_to_the_seed(tmp_path: Path) -> None:
    put(tmp_path / "train-0.tar", tar_of({"1.txt": "x"}))
    put(tmp_path / "extra-0.tar", tar_of({"2.txt": "x"}))
    assert not any(item.splits for item in webdataset.read(tmp_path).items)


def test_one_tar_or_a_pattern_is_a_root(tmp_path: Path) -> None:
    for n in range(8, 12):
        put(tmp_path / f"d/{n:05d}.tar", tar_of({f"{n}.txt": "x"}))
    for root, ids in ((tmp_path / "d/00009.tar", ["9"]), (tmp_path / "d/{00009..00011}.tar", ["9", "10", "11"])):
        layout = recognise(root)
        assert (layout.dataset, layout.root) == ("webdataset", root)
        dataset = read_dataset(ExtractConfig(dataset="webdataset", root=root))
        assert ([item.id for item in dataset.items], dataset.root) == (ids, tmp_path / "d")


def test_a_tar_beside_photos_or_a_table_is_not_the_data_set(tmp_path: Path) -> None:
    put(tmp_path / "photos/1.jpg")
    put(tmp_path / "photos.tar", tar_of({"photos/1.jpg": b"x"}))
    assert recognise(tmp_path).dataset == "folder"
    put(tmp_path / "captions.csv", "filename,caption\n1.jpg,a\n")
    assert recognise(tmp_path).dataset == "table"


# ---------------------------------------------------------------------------------------------- unpacked


def test_the_files_of_img2dataset(tmp_path: Path) -> None:
    for shard in ("00000", "00001"):
        for n in range(2):
            key = f"{shard}{n:04d}"
            put(tmp_path / f"{shard}/{key}.jpg")
            put(tmp_path / f"{shard}/{key}.txt", f"number {n}")
            about = {"caption": f"number {n}", "status": "success", "error_message": None, "key": key, "sha256": "0"}
            put(tmp_path / f"{shard}/{key}.json", json.dumps(about))
        put(tmp_path / f"{shard}.parquet", b"PAR1")
        stats = {"count": 5, "successes": 2, "failed_to_download": 2, "failed_to_resize": 1}
        put(tmp_path / f"{shard}_stats.json", json.dumps(stats) if shard == "00000" else "{")
    layout = recognise(tmp_path)
    assert (layout.dataset, layout.sign) == ("webdataset", "00000.parquet")
    dataset = check(webdataset.read(tmp_path))
    assert [(item.id, item.image) for item in dataset.items][1:3] == [
        ("00000/000000001", "00000/000000001.jpg"),
        ("00001/000010000", "00001/000010000.jpg"),
    ]
    assert dataset.found == {"items": 4, "images": 4, "en texts": 4, "downloads without success, left out": 3}


# ---------------------------------------------------------------------------------------------- refused


def test_nothing_to_use_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no sample with a photo or a caption in 1 tars; other members: \.npy, \.pth"):
        read(tmp_path, {"1.npy": b"", "1.pth": b"", "1.cls": "1"})


@pytest.mark.parametrize("path", ["", "0.tar.gz"])
def test_compressed_tars_are_refused_by_name(path: str, tmp_path: Path) -> None:
    put(tmp_path / "0.tar.gz", b"\x1f\x8b")
    layout = recognise(tmp_path / path)
    assert layout.dataset == "webdataset"
    with pytest.raises(DataError, match=r"a compressed tar.*decompress it first: gunzip 0\.tar\.gz"):
        read_dataset(ExtractConfig(dataset="webdataset", root=layout.root))


@pytest.mark.faults("hostile file")
def test_a_tar_outside_the_root_is_refused(tmp_path: Path) -> None:
    put(tmp_path / "outside.tar", tar_of({"1.txt": "x"}))
    (tmp_path / "d").mkdir()
    (tmp_path / "d/0.tar").symlink_to(tmp_path / "outside.tar")
    with pytest.raises(
        DataError,
        match=r"no tar and no samples; 1 links out of the folder, not followed \(`follow_links=True` follows them\)",
    ):
        webdataset.read(tmp_path / "d")
    [item] = webdataset.read(tmp_path / "d/0.tar").items  # named by the user
    assert item.id == "1"
