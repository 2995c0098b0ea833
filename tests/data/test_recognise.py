"""Recognition of layouts: every small tree by its own files, anybody's data by name, anything else in one line."""

import json

import pytest
from PIL import Image
from trees import WRITERS

from cmrhash.config import FEATURES_DATASET
from cmrhash.data import sample
from cmrhash.data.recognise import recognise
from cmrhash.errors import DataError, UsageError


def photo(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8)).save(path)


@pytest.mark.parametrize("name", WRITERS)
def test_every_small_tree_is_recognised(name, tmp_path):
    root = tmp_path / "mine"
    WRITERS[name](root)
    found = recognise(root)
    assert (found.dataset, found.features) == (name, ())
    assert found.root is not None
    assert found.root.is_relative_to(root)


def test_the_sample_is_recognised_by_its_marker(tmp_path):
    sample.draw(tmp_path / "drawn", count=4)
    assert recognise(tmp_path / "drawn").dataset == "sample"


@pytest.mark.parametrize("name", ["a.mat", "b.npz", "c.h5", "d.npy"])
def test_a_feature_file(tmp_path, name):
    (tmp_path / name).write_bytes(b"x")
    found = recognise(tmp_path / name)
    assert (found.dataset, found.root, found.features) == (FEATURES_DATASET, None, (tmp_path / name,))
    assert found.name == name[0]


@pytest.mark.parametrize("name", ["my table.csv", "t.TSV", "t.jsonl", "t.NDJSON", "t.parquet"])
def test_a_table_is_named_by_its_file(tmp_path, name):
    (tmp_path / name).write_text("image,caption\n")
    found = recognise(tmp_path / name)
    assert (found.dataset, found.root) == ("table", tmp_path / name)
    assert found.name == name.split(".")[0].replace(" ", "_")
    found = recognise(tmp_path)
    assert (found.dataset, found.root, found.sign) == ("table", tmp_path, name)


def test_photos_at_any_depth_and_nothing_else_are_a_folder(tmp_path):
    photo(tmp_path / "holiday" / "2019" / "a.JPG")
    found = recognise(tmp_path / "holiday")
    assert (found.dataset, found.root, found.name, found.sign) == (
        "folder",
        tmp_path / "holiday",
        "holiday",
        "1 photos",
    )


def test_a_table_beside_photos(tmp_path):
    photo(tmp_path / "images" / "a.jpg")
    (tmp_path / "captions.csv").write_text("filename,caption\na.jpg,a dog\n")
    found = recognise(tmp_path)
    assert (found.dataset, found.sign) == ("table", "captions.csv")


def test_what_fits_nothing_is_shown_a_manifest_to_copy(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(UsageError, match=r"no known layout \(1 files, none of them a photo or a table\)") as caught:
        recognise(tmp_path)
    line = str(caught.value)[str(caught.value).index("{") :]
    assert json.loads(line)["texts"] == {"en": ["a dog runs"]}


@pytest.mark.parametrize(
    ("name", "words"), [("x.zip", "no known layout of a .zip"), ("x", "no known layout of a file")]
)
def test_another_file_is_one_line(tmp_path, name, words):
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(UsageError, match=words):
        recognise(tmp_path / name)


def test_nothing_there_is_a_data_error(tmp_path):
    with pytest.raises(DataError, match="no such file or folder"):
        recognise(tmp_path / "none")
    with pytest.raises(UsageError, match=r"no known layout \(no files\)"):
        recognise(tmp_path)
