"""The reader of the fashion product images on a small table with the quirks of the real one."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trees import STYLES as HEADER
from trees import put

from cmrhash.data.items import check, with_roles
from cmrhash.data.readers import fashion
from cmrhash.errors import CmrhashError, DataError, UsageError

ROWS = [
    "10,Men,Apparel,Topwear,Shirts,Navy Blue,Fall,2011,Casual,Turtle Check Men Navy Blue Shirt",
    "11,Men,Apparel,Topwear,Tshirts,White,Fall,2011,Casual,Basics Men White, Slim, Fit",
    '12,Men,Apparel,Topwear,Tshirts,White,Fall,2011,,"Said ""no"", Tee"',
    "13,Women,Accessories,Watches,Watches,NA,Winter,2016,NA,Titan\u2028Watch\r",
    "14,Women,Apparel",
    "15,Women,Apparel,Dress,Dresses,Red,,,Party,NA",
]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    put(tmp_path / "styles.csv", "\n".join([HEADER, *ROWS, "", ""]))
    for n in (10, 11, 12, 13, 99):
        put(tmp_path / "images" / f"{n}.jpg")
    return tmp_path


def test_every_row_is_an_item_and_bare_commas_belong_to_the_name(root: Path) -> None:
    dataset = check(fashion.read(root))
    by_id = {item.id: item for item in dataset.items}
    assert list(by_id) == ["10", "11", "12", "13", "14", "15"]
    assert by_id["10"].image == "images/10.jpg"
    assert by_id["11"].texts == {"en": ("Basics Men White, Slim, Fit",)}
    assert by_id["12"].texts == {"en": ('Said "no", Tee',)}
    assert by_id["13"].texts == {"en": ("Titan Watch",)}
    assert (by_id["14"].image, by_id["14"].texts, by_id["15"].texts) == (None, {}, {})


def test_labels_are_attributes_with_their_columns_name(root: Path) -> None:
    dataset = fashion.read(root)
    labels = {item.id: [dataset.classes[n] for n in item.labels] for item in dataset.items}
    assert labels["10"] == ["articleType:Shirts", "baseColour:Navy Blue", "masterCategory:Apparel", "usage:Casual"]
    assert labels["12"] == ["articleType:Tshirts", "baseColour:White", "masterCategory:Apparel"]
    assert labels["13"] == ["articleType:Watches", "masterCategory:Accessories"]
    assert labels["14"] == ["masterCategory:Apparel"]


def test_counts_what_is_there_and_what_is_missing(root: Path) -> None:
    assert fashion.read(root).found == {
        "items": 6,
        "images": 4,
        "en texts": 4,
        "labelled items": 6,
        "classes": 11,
        "items without en text": 2,
        "rows with commas in the name": 2,
        "rows with fields too few": 1,
        "photos without a row": 1,
        "items without an image": 2,
    }


def test_the_name_may_stand_in_any_column(root: Path) -> None:
    put(
        root / "styles.csv", f'\ufeff"productDisplayName",{HEADER.rpartition(",")[0]}\nTee, blue,10,Men,A,T,S,B,F,1,C\n'
    )
    item = fashion.read(root).items[0]
    assert (item.id, item.texts) == ("10", {"en": ("Tee, blue",)})


def test_roles_are_drawn(root: Path) -> None:
    rows = [f"{n},Men,Apparel,Topwear,Shirts,Blue,Fall,2011,Casual,Shirt {n}" for n in range(40)]
    put(root / "styles.csv", "\n".join([HEADER, *rows]))
    for n in range(40):
        put(root / "images" / f"{n}.jpg")
    drawn = check(with_roles(fashion.read(root), seed=0))
    assert [drawn.count(role) for role in ("query", "database", "train", "val")] == [4, 36, 19, 1]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "no column id, productDisplayName, masterCategory, articleType, baseColour, usage in the first line"),
        (HEADER.replace("usage", "use"), "no column usage in the first line"),
        (f"{HEADER}\n\n,Men", "line 3 has no id"),
    ],
)
def test_a_table_that_cannot_be_used_is_refused(root: Path, content: str, message: str) -> None:
    put(root / "styles.csv", content)
    with pytest.raises(DataError, match=rf"^{message}: .*styles\.csv: "):
        fashion.read(root)


def test_a_row_that_stands_there_twice_is_refused(root: Path) -> None:
    put(root / "styles.csv", "\n".join([HEADER, ROWS[0], ROWS[0]]))
    with pytest.raises(DataError, match=r"ids are repeated \(1: 10\)"):
        check(fashion.read(root))


def test_photos_are_needed(root: Path) -> None:
    (root / "images").rename(root / "elsewhere")
    with pytest.raises(DataError, match="no folder 'images'"):
        fashion.read(root)


@given(st.booleans(), st.binary())
def test_any_bytes_are_read_or_refused(tmp_path_factory: pytest.TempPathFactory, header: bool, raw: bytes) -> None:
    root = tmp_path_factory.mktemp("any")
    (root / "images").mkdir()
    put(root / "styles.csv", (HEADER.encode() + b"\n") * header + raw)
    try:
        check(with_roles(fashion.read(root), 0))
    except CmrhashError as error:
        assert "\n" not in str(error)


def labels_of(root: Path, *columns: str) -> dict[str, list[str]]:
    dataset = check(fashion.read(root, columns))
    return {item.id: [dataset.classes[n] for n in item.labels] for item in dataset.items}


def test_chosen_columns_are_the_labels(root: Path) -> None:
    assert labels_of(root, "baseColour") == {
        "10": ["Navy Blue"],
        "11": ["White"],
        "12": ["White"],
        "15": ["Red"],
        "13": [],
        "14": [],
    }
    assert labels_of(root, "articletype,season")["10"] == ["articleType:Shirts", "season:Fall"]
    assert labels_of(root, "season", "season")["10"] == ["Fall"]


def test_only_chosen_columns_are_needed(root: Path) -> None:
    put(root / "styles.csv", "id,colour,productDisplayName\n10,red,Shirt\n")
    assert labels_of(root, "colour") == {"10": ["red"]}


def test_a_chosen_column_that_is_not_there_is_refused_with_the_nearest(root: Path) -> None:
    message = r"^labels: no column 'baseColor': .*styles\.csv: did you mean baseColour\? the columns are id, gender, "
    with pytest.raises(UsageError, match=message):
        fashion.read(root, ("articleType,baseColor",))
    put(root / "styles.csv", "id,colour,productDisplayName\n10,NA,Shirt\n")
    with pytest.raises(DataError, match="no row has a label in column colour: "):
        fashion.read(root, ("colour",))
