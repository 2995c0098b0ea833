"""Recognition of layouts: every small tree by its own files, anybody's data by name, anything else in one line."""

import re

import pytest
from PIL import Image
from trees import WRITERS, put

from cmrhash.config import FEATURES_DATASET
from cmrhash.data import sample
from cmrhash.data.readers import table
from cmrhash.data.recognise import recognise
from cmrhash.errors import UsageError


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


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (
            ["notes.txt", "b/c.txt"],
            r"holds 2 \.txt\): .* layout is folder, which lacks a photo beside each text file, such as dog\.jpg",
        ),
        (["IMG.heic"], r"holds 1 \.heic\): .* folder, which lacks photos as \.jpg, .*: convert them"),
        (["a.xlsx", "README"], r"1 files without a suffix, 1 \.xlsx\): .* table, which lacks its \.csv form"),
        (["raw.mat", "x.md"], "features, which lacks a file as PATH: give it instead of its folder"),
        (["photos.zip"], "folder, which lacks the files of the archive: unpack it"),
        (["annotations/instances_val2017.json"], "coco, which lacks annotations/captions_train2017.json"),
        (["NUS_WID_Tags/All_Tags.txt"], "nuswide, which lacks ImageList/Imagelist.txt"),
        (["a.py"], "table, which lacks photos and a table that names them"),
        ([], r"holds no files\)"),
        (["inner/trainset_txt_img_cat.list"], r"trainset_txt_img_cat\.list is in a folder inside: give .*inner$"),
    ],
)
def test_what_fits_nothing_names_the_nearest_layout_and_what_it_lacks(tmp_path, names, words):
    for name in names:
        put(tmp_path / name)
    with pytest.raises(UsageError, match=rf"^no known layout \(the folder .*{words}"):
        recognise(tmp_path)


def test_what_fits_nothing_is_shown_how_a_table_begins(tmp_path):
    root = tmp_path / "my photos"
    put(root / "notes.md")
    with pytest.raises(UsageError) as caught:
        recognise(root)
    first, second = re.findall('"(.+?)"', str(caught.value).partition("start captions.csv with ")[2])
    (root / "captions.csv").write_text(f"{first}\n{second}\n2.jpg,a cat sleeps,cat\n")
    for n in (1, 2):
        photo(root / f"{n}.jpg")
    dataset = table.read(recognise(root).root)
    assert [(item.image, item.texts["en"]) for item in dataset.items] == [
        ("1.jpg", ("a dog runs",)),
        ("2.jpg", ("a cat sleeps",)),
    ]
    assert dataset.classes == ("cat", "dog")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("x.zip", r"layout of a \.zip: .*folder lacks the files of the archive: unpack it; give a folder, "),
        ("x", "no known layout of a file"),
    ],
)
def test_another_file_is_one_line(tmp_path, name, words):
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(UsageError, match=words):
        recognise(tmp_path / name)


def test_nothing_there_is_refused(tmp_path):
    with pytest.raises(UsageError, match="no such file or folder"):
        recognise(tmp_path / "none")
    with pytest.raises(UsageError, match=r"no known layout \(the folder holds no files\): \S+: put photos into it"):
        recognise(tmp_path)
