"""The Pascal Sentence reader on a small tree with the quirks of the real one."""

from __future__ import annotations

from pathlib import Path

import pytest
from trees import put

from cmrhash.data.items import check, with_roles
from cmrhash.data.readers import pascal
from cmrhash.errors import DataError

SHARED = Path(__file__).parents[3] / "shared"
REAL = SHARED / "data" / "pascal_sentence"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two classes of ten complete items; the class "cow" has a photo, a text and an empty text on their own too."""
    for folder in ("bus", "cow"):
        for n in range(10):
            put(tmp_path / "dataset" / folder / f"2008_{n}.jpg")
            put(tmp_path / "sentence" / folder / f"2008_{n}.txt", f"A {folder}.\r\nIt is\tnumber {n}\n\n")
    put(tmp_path / "dataset/cow/alone.jpeg")
    put(tmp_path / "dataset/cow/Thumbs.db")
    put(tmp_path / "dataset/.cache/x.jpg")
    put(tmp_path / "sentence/cow/2009_1.txt", b"A caf\xe9.\n")
    put(tmp_path / "dataset/cow/2009_2.jpg")
    put(tmp_path / "sentence/cow/2009_2.txt", " \n")
    return tmp_path


def test_reads_every_photo_and_text_of_a_class(root: Path) -> None:
    dataset = check(pascal.read(root))
    by_id = {item.id: item for item in dataset.items}
    assert dataset.classes == ("bus", "cow")
    assert by_id["bus/2008_3"].image == "dataset/bus/2008_3.jpg"
    assert by_id["bus/2008_3"].texts == {"en": ("A bus. It is number 3",)}
    assert by_id["cow/2008_3"].labels == (1,)
    assert by_id["cow/alone"].texts == {}
    assert by_id["cow/2009_1"].image is None
    assert by_id["cow/2009_1"].texts == {"en": ("A café.",)}


def test_counts_what_is_there_and_what_is_missing(root: Path) -> None:
    assert pascal.read(root).found == {
        "items": 23,
        "images": 22,
        "en texts": 21,
        "labelled items": 23,
        "classes": 2,
        "items without en text": 2,
        "items with 0 sentences": 1,
        "items with 1 sentences": 1,
        "items with 2 sentences": 20,
        "files that are none of the data set's": 1,
        "items without an image": 1,
    }


def test_a_fifth_of_every_class_is_query_and_database_and_the_others_train(root: Path) -> None:
    drawn = check(with_roles(pascal.read(root), seed=0))
    tests = [item.id for item in drawn.items if item.splits == {"query", "database"}]
    assert sorted(name.split("/")[0] for name in tests) == ["bus", "bus", "cow", "cow"]
    assert [drawn.count(role) for role in ("query", "database", "train", "val")] == [4, 4, 15, 1]
    assert {item.id for item in drawn.items if not item.splits} == {"cow/2009_1", "cow/2009_2", "cow/alone"}


def test_the_seed_decides(root: Path) -> None:
    undrawn = pascal.read(root)
    assert with_roles(undrawn, 1).items == with_roles(undrawn, 1).items
    assert with_roles(undrawn, 1).items != with_roles(undrawn, 2).items


@pytest.mark.parametrize("names", [("dataset", "sentence"), ("images", "sentences"), ("images", "texts")])
def test_photos_of_all_classes_in_one_folder_are_the_same_items(
    root: Path, tmp_path: Path, names: tuple[str, str]
) -> None:
    flat = tmp_path / "flat"
    for old, new in zip(("dataset", "sentence"), names, strict=True):
        for path in [path for path in (root / old).glob("*/*") if not path.parent.name.startswith(".")]:
            put(flat / new / f"{path.parent.name}_{path.name}", path.read_bytes())
    one, other = pascal.read(root), pascal.read(flat)
    assert [(i.id, i.texts, i.labels) for i in other.items] == [(i.id, i.texts, i.labels) for i in one.items]
    assert other.items[0].image == f"{names[0]}/bus_2008_0.jpg"
    assert [i.splits for i in with_roles(other, 3).items] == [i.splits for i in with_roles(one, 3).items]


@pytest.mark.parametrize(
    ("stem", "ident"),
    [
        ("tv_monitor_2008_000123", "tv_monitor/2008_000123"),
        ("bus_7", "bus/7"),
        ("dining_table_a", "dining_table/a"),
        ("2008_1", "2008/1"),
    ],
)
def test_the_class_stands_before_the_id(root: Path, stem: str, ident: str) -> None:
    put(root / f"dataset/{stem}.jpg")
    assert ident in {item.id for item in pascal.read(root).items}


def test_a_file_without_a_class_is_none_of_the_data_set(root: Path) -> None:
    before = pascal.read(root)
    put(root / "dataset/cover.jpg")
    after = pascal.read(root)
    assert after.items == before.items
    assert after.found["files that are none of the data set's"] == 2


def test_one_photo_in_both_ways_is_refused(root: Path) -> None:
    put(root / "dataset/bus_2008_3.jpg")
    with pytest.raises(DataError, match=r"two files for 'bus/2008_3'.*remove dataset/bus/2008_3\.jpg or the other"):
        pascal.read(root)


@pytest.mark.parametrize("gone", ["dataset", "sentence"])
def test_a_missing_folder_is_named(root: Path, gone: str) -> None:
    (root / gone).rename(root / "elsewhere")
    with pytest.raises(DataError, match=f"no folder '{gone}'"):
        pascal.read(root)


def test_a_class_linked_from_outside_is_refused(root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    (root / "dataset/dog").symlink_to(tmp_path_factory.mktemp("outside"))
    with pytest.raises(DataError, match="'dataset/dog' leaves the data set's folder"):
        pascal.read(root)


@pytest.mark.skipif(not REAL.is_dir(), reason=f"the Pascal Sentence set is not at {REAL}")
def test_the_real_data_set() -> None:
    drawn = check(with_roles(pascal.read(REAL), seed=0))
    assert all(item.image and item.texts for item in drawn.items)
    counts = [drawn.count(role) for role in ("query", "database", "train", "val")]
    assert len(drawn.classes) == 20
    assert counts == [200, 200, 760, 40]
    assert sum(n for what, n in drawn.found.items() if what.endswith("sentences")) == 1000
