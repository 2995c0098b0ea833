"""Labels of the user's choice: columns of a table by ``labels``, folders by ``labels_from``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from trees import put, write_manifest

from cmrhash.config import DATASETS, ExtractConfig
from cmrhash.data.catalog import OPTIONS, read_dataset
from cmrhash.data.items import ImageTextDataset, check
from cmrhash.data.readers import folder, imagefolder, table
from cmrhash.errors import DataError, UsageError

ROWS = "image,caption,kind,colour,tags\na.jpg,A dog,dog,red,x\nb/b.jpg,A cat,cat;pet,,y\n"


def lay(root: Path, content: str, name: str = "data.csv", photos: tuple[str, ...] = ("a.jpg", "b/b.jpg")) -> Path:
    put(root / name, content)
    for photo in photos:
        put(root / photo)
    return root


def labels(dataset: ImageTextDataset) -> dict[str, list[str]]:
    return {item.id: [dataset.classes[n] for n in item.labels] for item in check(dataset).items}


@pytest.mark.parametrize("asked", [("kind", "colour"), ("kind,colour",), (" Kind ,COLOUR",)])
def test_several_columns_of_a_table_stand_before_their_labels(tmp_path: Path, asked: tuple[str, ...]) -> None:
    found = labels(table.read(lay(tmp_path, ROWS), labels=asked))
    assert found == {"a.jpg": ["colour:red", "kind:dog"], "b/b.jpg": ["kind:cat", "kind:pet"]}
    maps = ("labels=kind", "labels=colour")
    assert labels(table.read(tmp_path, maps)) == found


def test_one_column_of_a_table_gives_plain_classes(tmp_path: Path) -> None:
    dataset = table.read(lay(tmp_path, ROWS), labels=("kind",))
    assert labels(dataset) == {"a.jpg": ["dog"], "b/b.jpg": ["cat", "pet"]}
    assert dataset.found['columns not used (colour, tags; `maps=("ROLE=COLUMN",)` uses one)'] == 2


def test_a_column_whose_name_has_a_comma(tmp_path: Path) -> None:
    lay(tmp_path, 'image,caption,"kind, colour"\na.jpg,A dog,dog\n')
    assert labels(table.read(tmp_path, labels=("kind, colour",))) == {"a.jpg": ["dog"]}


def test_columns_of_an_imagefolder(tmp_path: Path) -> None:
    lay(tmp_path, ROWS.replace("image", "file_name", 1), "metadata.csv")
    assert labels(imagefolder.read(tmp_path, ("colour", "kind"))) == {
        "a": ["colour:red", "kind:dog"],
        "b/b": ["kind:cat;pet"],
    }
    assert labels(imagefolder.read(tmp_path, ("colour",))) == {"a": ["red"], "b/b": []}


@pytest.mark.parametrize(
    ("read", "name", "image"), [(table.read, "data.csv", "image"), (imagefolder.read, "metadata.csv", "file_name")]
)
def test_columns_that_cannot_be_the_labels_are_one_line(tmp_path: Path, read: Any, name: str, image: str) -> None:
    lay(tmp_path, ROWS.replace("image", image, 1).replace("red", "nan"), name)
    message = rf"^labels: no column 'color': .*{name}: did you mean colour\? the columns are {image}, caption, kind, "
    with pytest.raises(UsageError, match=message):
        read(tmp_path, labels=("kind,color",))
    with pytest.raises(DataError, match="has a label in (column )?colour: "):
        read(tmp_path, labels=("colour",))
    with pytest.raises(UsageError, match="no column ''"):
        read(tmp_path, labels=("",))


def test_an_imagefolder_without_a_table_has_no_columns(tmp_path: Path) -> None:
    put(tmp_path / "train/a.jpg")
    with pytest.raises(UsageError, match=r"^labels: there is no table metadata\.csv, "):
        imagefolder.read(tmp_path, ("kind",))


def test_labels_given_twice_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="^labels: `maps` names columns of labels, too: use one of the two"):
        table.read(lay(tmp_path, ROWS), ("labels=tags",), ("kind",))
    with pytest.raises(UsageError, match="^labels: columns and folders cannot both be the labels"):
        read_dataset(ExtractConfig(dataset="table", root=tmp_path, labels=("kind",), labels_from="folder"))


# ---------------------------------------------------------------------------------------------- folders

DEEP = ("top.jpg", "images/flat.jpg", "dog/1.jpg", "pets/cat/2.jpg", "images/cat/3.jpg", "cat /4.jpg", "pets/5.jpg")
OF_DEEP = {"top": [], "images/flat": [], "dog/1": ["dog"], "pets/cat/2": ["cat"], "images/cat/3": ["cat"]}
OF_DEEP |= {"cat /4": ["cat"], "pets/5": ["pets"]}


def test_the_folder_in_which_a_photo_lies_is_its_label(tmp_path: Path) -> None:
    lay(tmp_path, "A dog\n", "dog/1.txt", DEEP)
    dataset = folder.read(tmp_path, "folder")
    assert labels(dataset) == OF_DEEP
    assert (dataset.relevance, dataset.classes) == ("labels", ("cat", "dog", "pets"))
    assert (dataset.found["labelled items"], dataset.found["classes"]) == (5, 3)
    assert folder.read(tmp_path).relevance == "pairs"


def test_folders_label_the_photos_of_a_table(tmp_path: Path) -> None:
    rows = [f"{photo},A photo,x" for photo in (*DEEP, "cat/gone.jpg")]
    lay(tmp_path, "\n".join(["image,caption,label", *rows, ",No photo,x"]), photos=DEEP)
    found = labels(table.read(tmp_path, labels_from="folder"))
    assert found == {f"{ident}.jpg": own for ident, own in OF_DEEP.items()} | {"cat/gone.jpg": [], "row 10": []}


def test_folders_label_the_photos_of_an_imagefolder_with_a_table(tmp_path: Path) -> None:
    lay(
        tmp_path,
        "file_name,text,label\ncat/1.jpg,A cat,x\n",
        "train/metadata.csv",
        ("train/cat/1.jpg", "train/dog/2.jpg"),
    )
    assert labels(imagefolder.read(tmp_path)) == {"train/cat/1": ["x"], "train/dog/2": []}
    assert labels(imagefolder.read(tmp_path, labels_from="folder")) == {"train/cat/1": ["cat"], "train/dog/2": ["dog"]}


@pytest.mark.parametrize("name", ["folder", "table", "imagefolder"])
def test_photos_without_folders_cannot_be_labelled_by_them(tmp_path: Path, name: str) -> None:
    lay(tmp_path, "image,caption\na.jpg,A dog\n", photos=("a.jpg", "images/b.jpg"))
    with pytest.raises(DataError, match="no photo is inside a folder|the photos are not in several folders"):
        read_dataset(ExtractConfig(dataset=name, root=tmp_path, labels_from="folder"))


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("name", DATASETS)
def test_every_reader_takes_an_option_or_refuses_it_by_name(tmp_path: Path, option: str, name: str) -> None:
    values = {"labels": ("articleType",), "labels_from": "folder", "follow_links": True, "captions": ("c.txt",)}
    value = values.get(option, tmp_path / "none")
    config = ExtractConfig(dataset=name, root=tmp_path / "none", features=(tmp_path / "none",), **{option: value})
    if name in OPTIONS[option][0]:
        with pytest.raises(DataError, match="no such f"):
            read_dataset(config)
    else:
        with pytest.raises(UsageError, match=f"^{option}: data set '{name}' .*leave it out; .* takes? it$"):
            read_dataset(config)


def test_other_sources_of_labels_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="^labels_from: unknown 'file': use \"folder\""):
        read_dataset(ExtractConfig(dataset="folder", root=write_manifest(tmp_path), labels_from="file"))
