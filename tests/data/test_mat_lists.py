"""The reader of lists in MATLAB files, with the quirks of those that repositories share."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import scipy.io
from matrix_files import cells, matlab73, matlab73_strings
from trees import put, write_mat_lists
from typer.testing import CliRunner

from cmrhash.config import ExtractConfig
from cmrhash.data.catalog import read_dataset
from cmrhash.data.items import check
from cmrhash.data.readers import mat_lists
from cmrhash.errors import DataError, UsageError
from cmrhash_cli.main import app

FOUR = [[f"a dog {n} ", "it runs"] for n in range(3)] + [["one alone"]]
PATHS = [f"/home/author/coco/{'train' if n % 2 else 'val'}2017/00{n}.jpg" for n in range(4)]
LABELS = np.array([[1, 0], [0, 1], [1, 1], [0, 0]], np.uint8)


def lists(root: Path, paths=PATHS, captions=FOUR, labels=LABELS, keys=("index", "caption", "category")) -> Path:
    root.mkdir(exist_ok=True)
    scipy.io.savemat(root / "index.mat", {keys[0]: np.array(paths)})
    scipy.io.savemat(root / "caption.mat", {keys[1]: cells(captions)})
    scipy.io.savemat(root / "label.mat", {keys[2]: labels})
    return root


def lists73(root: Path) -> Path:
    root.mkdir(exist_ok=True)
    matlab73_strings(root / "index.mat", {"index": PATHS}, {})
    matlab73_strings(root / "caption.mat", {"caption": FOUR}, {})
    matlab73(root / "label.mat", {"category": LABELS})
    return root


@pytest.mark.parametrize("write", [lists, lists73])
def test_photos_are_found_below_another_folder(tmp_path: Path, write) -> None:
    root, images = write(tmp_path / "lists"), tmp_path / "photos"
    put(images / "val2017/000.jpg")
    put(images / "001.JPG")
    put(images / "train2017/003.jpg")
    dataset = check(mat_lists.read(root, images))
    assert [item.image for item in dataset.items] == ["val2017/000.jpg", "001.JPG", None, "train2017/003.jpg"]
    assert [item.id for item in dataset.items] == ["000", "001", "002", "003"]
    assert [item.texts["en"] for item in dataset.items[::3]] == [("a dog 0", "it runs"), ("one alone",)]
    assert [item.labels for item in dataset.items] == [(0,), (1,), (0, 1), ()]
    assert (dataset.root, dataset.classes) == (images, ("1", "2"))
    assert (
        dataset.found["photos not found (002.jpg)"]
        == dataset.found["photos found by a similar name or in another folder"]
        == 1
    )


@pytest.mark.parametrize("keys", [("index", "tags", "LAll"), ("index", "YAll", "labels"), ("index", "x", "y")])
def test_arrays_go_by_several_names(tmp_path: Path, keys) -> None:
    assert len(mat_lists.read(lists(tmp_path / "lists", keys=keys)).items) == 4


def test_captions_may_be_lines_and_the_same_names_lie_in_two_folders(tmp_path: Path) -> None:
    root = lists(tmp_path / "lists", [r"D:\nus\sky\1.jpg", r"D:\nus\sea\1.jpg", "sky/2.jpg", "sky/3.jpg"])
    (root / "caption.mat").unlink()
    put(root / "caption.txt", "blue sky\r\n\r\nmoon\nsun\n")
    put(root / "images/sea/1.jpg")
    dataset = check(mat_lists.read(root))
    assert [item.id for item in dataset.items] == ["sky/1", "sea/1", "sky/2", "sky/3"]
    assert [item.image for item in dataset.items] == [None, "images/sea/1.jpg", None, None]
    assert [dict(item.texts) for item in dataset.items[:2]] == [{"en": ("blue sky",)}, {}]


def wrong_count(root: Path) -> None:
    put(root / "caption.txt", "one\ntwo\n")
    (root / "caption.mat").unlink()


def wrong_labels(root: Path) -> None:
    scipy.io.savemat(root / "label.mat", {"category": LABELS[:3]})


def numbers(root: Path) -> None:
    scipy.io.savemat(root / "caption.mat", {"YAll": LABELS})


def nameless(root: Path) -> None:
    scipy.io.savemat(root / "label.mat", {"a": LABELS, "b": LABELS})


def unpaired(root: Path) -> None:
    (root / "label.mat").unlink()


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (wrong_count, r"2 lines for 4 photos: .*caption.txt: give a line per photo"),
        (wrong_labels, r"label:category \(3 x 2 uint8\) does not have 4 items"),
        (numbers, r"caption:YAll .* holds numbers, no captions: .*read them with `dataset=.features"),
        (nameless, r"no array category or LAll.*rename one of its arrays: label:a .*, label:b"),
        (unpaired, r"no file 'label.mat'"),
    ],
)
def test_lists_that_do_not_fit(tmp_path: Path, spoil, words: str) -> None:
    root = lists(tmp_path / "lists")
    spoil(root)
    with pytest.raises(DataError, match=words):
        mat_lists.read(root)


def test_photos_elsewhere(tmp_path: Path) -> None:
    root = lists(tmp_path / "lists")
    put(tmp_path / "photos/other.jpg")
    with pytest.raises(DataError, match=r"none of the 4 photos was found, such as /home/author.*give the folder"):
        mat_lists.read(root, tmp_path / "photos")
    config = ExtractConfig(dataset="folder", root=tmp_path / "photos", images=tmp_path)
    with pytest.raises(UsageError, match="images: data set 'folder' has its photos below its root"):
        read_dataset(config)


def test_the_command_recognises_the_lists(tmp_path: Path) -> None:
    write_mat_lists(tmp_path / "flickr25k")
    (tmp_path / "flickr25k/images").rename(tmp_path / "photos")
    args = ["extract", tmp_path / "flickr25k", "--images", tmp_path / "photos", "--text-model", "bow"]
    args += ["--image-model", "mobilenet_v3_small", "--image-weights", "random", "--cache", tmp_path / "cache"]
    done = CliRunner().invoke(app, [str(arg) for arg in args])
    assert done.exit_code == 0, done.output
    assert "recognised as mat-lists by index.mat" in done.output
    assert (tmp_path / "cache/flickr25k/text-en-bow2912.h5").exists()
