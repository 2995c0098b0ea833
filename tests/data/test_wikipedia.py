"""The Wikipedia reader on a small tree with the quirks of the real one."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trees import put, wikipedia_xml

from cmrhash.data.cleaning import clean_text
from cmrhash.data.items import check, with_roles
from cmrhash.data.readers import wikipedia
from cmrhash.errors import CmrhashError, DataError

SHARED = Path(__file__).parents[3] / "shared"
REAL = SHARED / "data" / "wikipedia"
TRAIN, TEST = wikipedia.LISTS


@pytest.fixture
def root(tmp_path: Path) -> Path:
    put(tmp_path / "categories.list", "art\nbiology\r\n\n")
    for name in ("a-1", "a-2.1", "b-1", "c-1", "d-1", "e-1", "unlisted-1"):
        put(tmp_path / "texts" / f"{name}.xml", wikipedia_xml(f"About {name} & ''more'' < it.\n\nEnd."))
    put(tmp_path / "texts/d-1.xml", wikipedia_xml(" "))
    put(tmp_path / TRAIN, "Aa-1\tp1\t1\na-2.1\tp2\t2\n-1\tp3\t1\nd-1\tp4\t1\n\n")
    put(tmp_path / TEST, "b-1\tp5\t2\ngone-1\tp6\t1\nc-1\tp5\t1\n")
    for name in ("art/p1", "biology/p2", "art/p3", "biology/p5"):
        put(tmp_path / "images" / f"{name}.jpg")
    return tmp_path


def test_every_line_of_the_lists_is_an_item(root: Path) -> None:
    dataset = check(wikipedia.read(root))
    assert [item.id for item in dataset.items] == ["a-1", "a-2.1", "-1", "d-1", "b-1", "gone-1", "c-1"]
    by_id = {item.id: item for item in dataset.items}
    assert by_id["a-1"].image == "images/art/p1.jpg"
    assert by_id["a-1"].texts == {"en": ("About a-1 & ''more'' < it. End.",)}
    assert by_id["b-1"].image == "images/biology/p5.jpg"
    assert by_id["c-1"].image is None  # p5 lies in another category
    assert dataset.classes == ("art", "biology")
    assert [item.labels for item in dataset.items] == [(0,), (1,), (0,), (0,), (1,), (0,), (0,)]


def test_counts_what_is_there_and_what_is_missing(root: Path) -> None:
    assert wikipedia.read(root).found == {
        "items": 7,
        "images": 4,
        "en texts": 4,
        "labelled items": 7,
        "classes": 2,
        "items without en text": 3,
        "misspelt names of text files corrected": 1,
        "texts in no list": 2,
        "empty texts": 1,
        "items without an image": 3,
    }


def test_a_name_that_lost_its_first_letter_is_repaired_if_one_file_fits(root: Path) -> None:
    put(root / "texts/x-7.xml", wikipedia_xml("x"))
    put(root / TEST, "-7\tp5\t2\n")
    dataset = wikipedia.read(root)
    assert dataset.items[4].id == "x-7"
    assert dataset.found["misspelt names of text files corrected"] == 2
    put(root / "texts/y-7.xml", wikipedia_xml("y"))
    assert wikipedia.read(root).items[4].id == "-7"


def test_the_lists_are_the_split_and_val_is_taken_from_train(root: Path) -> None:
    drawn = check(with_roles(wikipedia.read(root), seed=0))
    assert [set(item.splits) for item in drawn.items[4:]] == [{"query", "database"}] * 3
    assert [drawn.count(role) for role in ("query", "database", "train", "val")] == [3, 3, 3, 1]


def test_the_photos_may_be_missing_as_a_whole(root: Path) -> None:
    (root / "images").rename(root / "elsewhere")
    dataset = wikipedia.read(root)
    assert all(item.image is None for item in dataset.items)
    assert dataset.found["items without an image"] == 7


@pytest.mark.parametrize("name", ["texts", "categories.list", TRAIN, TEST])
def test_what_is_needed_is_named(root: Path, name: str) -> None:
    (root / name).rename(root / "elsewhere")
    with pytest.raises(DataError, match=rf"no (file|folder) '{name}'"):
        wikipedia.read(root)


@pytest.mark.parametrize(
    "line", ["a-1\tp1", "a-1\tp1\t0", "a-1\tp1\t3", "a-1\t\t1", "a-1 p1 1", "a\tp\t\u0661", "a\tb\tc"]
)
def test_a_bad_line_is_named(root: Path, line: str) -> None:
    put(root / TEST, f"b-1\tp5\t2\n{line}\n")
    with pytest.raises(DataError, match=rf"line 2 is not 'text<TAB>image<TAB>category' .*: {root / TEST}: fix"):
        wikipedia.read(root)


def test_a_text_in_both_lists_is_refused(root: Path) -> None:
    put(root / TEST, "a-2.1\tp5\t2\n")
    with pytest.raises(DataError, match=r"ids are repeated \(1: a-2\.1\)"):
        check(wikipedia.read(root))


@given(name=st.sampled_from([TRAIN, TEST, "categories.list", "texts/a.xml"]), raw=st.binary())
def test_any_bytes_are_read_or_refused(name: str, raw: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    root = tmp_path_factory.mktemp("any")
    put(root / "categories.list", "art\n")
    put(root / "texts/a.xml", wikipedia_xml("a"))
    put(root / TRAIN, "a\tp\t1\n")
    put(root / TEST, "b\tp\t1\n")
    put(root / name, raw)
    try:
        check(with_roles(wikipedia.read(root), 0))
    except CmrhashError as error:
        assert "\n" not in str(error)


@given(st.lists(st.one_of(st.sampled_from([b"<text>", b"</text>", b"&#xD800;"]), st.binary())).map(b"".join))
def test_parse_takes_any_bytes(raw: bytes) -> None:
    text = wikipedia.parse(raw)
    assert clean_text(text) == text


@pytest.mark.skipif(not REAL.is_dir(), reason=f"the Wikipedia set is not at {REAL}")
def test_the_real_data_set() -> None:
    drawn = check(with_roles(wikipedia.read(REAL), seed=0))
    assert all("en" in item.texts for item in drawn.items)
    assert len(drawn.classes) == 10
    assert drawn.found["misspelt names of text files corrected"] == 1
    assert drawn.count("query") == drawn.count("database") == 693
    assert drawn.count("train") + drawn.count("val") == 2173
