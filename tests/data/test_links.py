"""Photos and folders outside the root, which ``follow_links`` reads through symbolic links."""

from __future__ import annotations

import json
import os
import pickle
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from trees import COUNT, WRITERS, put, write_folder

from cmrhash.config import DATASETS, SAMPLE_DATASET, ExtractConfig
from cmrhash.data.catalog import read_dataset
from cmrhash.data.items import LinkedRoot, resolve_image, root_of
from cmrhash.data.manifest import load, store
from cmrhash.data.photos import LEAVING, LINKS, files_below
from cmrhash.data.recognise import recognise
from cmrhash.errors import DataError, UsageError


def linked(tmp_path: Path, *names: str) -> Path:
    """Move these files or folders out of ``tmp_path/root``, and link to them from their old places."""
    root = tmp_path / "root"
    for name in names:
        away = tmp_path / "away" / name
        away.parent.mkdir(parents=True, exist_ok=True)
        (root / name).rename(away)
        (root / name).symlink_to(away)
    return root


def test_links_are_followed_and_no_other_way_leaves_the_root(tmp_path: Path) -> None:
    put(tmp_path / "root/a/1.jpg", b"x")
    root = LinkedRoot(linked(tmp_path, "a"))
    assert resolve_image(root, "a/1.jpg").read_bytes() == b"x"
    assert isinstance(resolve_image(root, "a"), LinkedRoot)
    for image in ("../away/a/1.jpg", str(tmp_path / "away/a/1.jpg"), "a\\1.jpg"):
        with pytest.raises(DataError, match=r"leaves the data set's folder: .*: use paths below the root"):
            resolve_image(root, image)
    with pytest.raises(DataError, match="by a symbolic link: .*: use `follow_links=True`, or copy the files"):
        resolve_image(Path(root), "a/1.jpg")


def test_the_choice_travels_with_the_root(tmp_path: Path) -> None:
    root = root_of(tmp_path, True)
    assert root == tmp_path
    assert str(root) == str(tmp_path)
    for path in (root / "a", root.parent, root.resolve(), root.expanduser(), pickle.loads(pickle.dumps(root))):
        assert isinstance(path, LinkedRoot)
    assert not isinstance(root_of(tmp_path, False), LinkedRoot)


def test_every_folder_is_read_once_so_that_loops_end(tmp_path: Path) -> None:
    put(tmp_path / "out/deep/1.jpg")
    put(tmp_path / "root/a/2.jpg")
    root, out = tmp_path / "root", tmp_path / "out"
    for link, target in {
        root / "up": tmp_path,
        root / "z": out / "deep",
        root / "a/self": root,
        root / "b": root / "a",
        out / "back": root,
        out / "loop": out / "loop",
        out / "gone": out / "none",
        out / "photo.jpg": out / "deep/1.jpg",
    }.items():
        link.symlink_to(target)
    extra: Counter[str] = Counter()
    assert files_below(LinkedRoot(root), extra) == ["a/2.jpg", "up/out/deep/1.jpg", "up/out/photo.jpg"]
    assert extra == {LINKS: 6 + 1}
    extra.clear()
    assert files_below(root, extra) == ["a/2.jpg"]
    assert extra == {LEAVING: 2, LINKS: 2}


def test_a_folder_that_cannot_be_read_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path / "a.jpg")
    put(tmp_path / "closed/b.jpg")
    scandir = os.scandir

    def refusing(folder: Path) -> Any:
        if Path(folder).name == "closed":
            raise PermissionError(13, "Permission denied", str(folder))
        return scandir(folder)

    monkeypatch.setattr("cmrhash.data.photos.os.scandir", refusing)
    extra: Counter[str] = Counter()
    assert files_below(tmp_path, extra) == ["a.jpg"]
    assert extra == {"folders that cannot be read": 1}


# One folder or file that every layout needs photos from.
AWAY = {
    "iaprtc12": "iaprtc12/images",
    "iaprtc12-lists": "JPEGImages",
    "pascal": "dataset",
    "wikipedia": "images/art",
    "flickr30k": "flickr30k-images",
    "flickr8k": "Flicker8k_Dataset",
    "fashion": "images",
    "mirflickr": "mirflickr/im1.jpg",
    "nuswide": "Flickr/dog",
    "coco": "train2017",
    "folder": "0",
    "imagefolder": "train",
    "manifest": "images",
    "table": "images",
    "webdataset": "00001.tar",
    "mat-lists": "images",
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_reader_follows_links_if_asked(tmp_path: Path, name: str) -> None:
    WRITERS[name](tmp_path / "root")
    config = ExtractConfig(dataset=name, root=tmp_path / "root")
    items = read_dataset(config).items
    linked(tmp_path, AWAY[name])
    if name in ("folder", "imagefolder", "webdataset"):
        assert 0 < len(read_dataset(config).items) < COUNT
    else:
        with pytest.raises(DataError, match=r"by a symbolic link: .*: use `follow_links=True`"):
            read_dataset(config)
    found = read_dataset(replace(config, follow_links=True))
    assert found.items == items
    assert isinstance(found.root, LinkedRoot)


def test_a_folder_of_links_alone_is_recognised_and_refused_with_the_option(tmp_path: Path) -> None:
    write_folder(tmp_path / "root")
    root = linked(tmp_path, "0", "1", "2")
    assert recognise(LinkedRoot(root)).sign == f"{COUNT} photos"
    with pytest.raises(
        UsageError, match=r"holds 3 links out of the folder, not followed .*: read through the links with "
    ):
        recognise(root)
    with pytest.raises(
        DataError, match=r"no photo \(.*; 3 links out of the folder, not followed \(`follow_links=True`"
    ):
        read_dataset(ExtractConfig(dataset="folder", root=root))


def test_the_choice_is_stored_with_the_data_set(tmp_path: Path) -> None:
    write_folder(tmp_path / "root")
    root, cache = linked(tmp_path, "0"), tmp_path / "cache"
    for follow in (False, True):
        dataset = read_dataset(ExtractConfig(dataset="folder", root=root, follow_links=follow))
        store(dataset, cache)
        assert json.loads((cache / "dataset.json").read_text()).get("follow_links") is (True if follow else None)
        assert isinstance(load(cache).root, LinkedRoot) is follow
    [image] = [item.image for item in load(cache).items if item.id == "0/0"]
    assert image
    assert resolve_image(load(cache).root, image).is_file()
    again = read_dataset(ExtractConfig(dataset="manifest", root=cache))
    assert isinstance(again.root, LinkedRoot)


@pytest.mark.parametrize("name", [SAMPLE_DATASET, "features"])
def test_data_sets_without_a_folder_of_photos_refuse_it(name: str) -> None:
    with pytest.raises(UsageError, match=f"^follow_links: data set '{name}' has no folder of photos: leave it out"):
        read_dataset(ExtractConfig(dataset=name, follow_links=True))
    assert set(AWAY) == set(DATASETS) - {SAMPLE_DATASET, "features"}
