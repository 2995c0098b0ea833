"""The reader of IAPR TC-12 as lists, on a small generated tree."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from trees import list_line as line
from trees import put

from cmrhash.config import ExtractConfig
from cmrhash.data.catalog import read_dataset
from cmrhash.data.items import check, with_roles
from cmrhash.data.readers import iaprtc12_lists
from cmrhash.data.readers.iaprtc12_lists import WORDS
from cmrhash.errors import CmrhashError, DataError

TRAIN, TEST, RETRIEVAL = iaprtc12_lists.LISTS


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Photos 00/1 to 00/6: two train (of which one is no retrieval line), one test, the others retrieval only."""
    for n in range(1, 7):
        put(tmp_path / "JPEGImages/00" / f"{n}.jpg")
        put(tmp_path / "annotations/00" / f"{n}.txt", f"a yellow\r\nbuilding {n};\n")
    put(tmp_path / "JPEGImages/01/7.jpg")
    (tmp_path / "annotations/00/4.txt").unlink()
    put(tmp_path / "annotations/00/5.txt", b"<DOC><DESCRIPTION>a caf\xe9</DESCRIPTION></DOC>")
    put(tmp_path / "annotations/00/6.txt", " \n")
    put(tmp_path / TRAIN, line("00/1.jpg", 1, 255) + line("00/2.jpg", 3))
    put(tmp_path / TEST, line("JPEGImages/00/3.JPG", 1, between=",") + "\n")
    lines = [line("00/2.jpg", 4), line("00/4.jpg", 3, between="\t"), line("00/5.jpg"), line("00/6.jpg", 3)]
    put(tmp_path / RETRIEVAL, "\ufeff" + "".join([*lines, line("00/8.jpg", 9).rstrip() + " \r\n"]))
    return tmp_path


def test_reads_photos_texts_and_labels(root: Path) -> None:
    dataset = check(iaprtc12_lists.read(root))
    by_id = {item.id: item for item in dataset.items}
    assert list(by_id) == ["00/1", "00/2", "00/3", "00/4", "00/5", "00/6", "00/8"]
    assert by_id["00/1"].image == "JPEGImages/00/1.jpg"
    assert by_id["00/1"].texts == {"en": ("a yellow building 1;",)}
    assert by_id["00/5"].texts == {"en": ("a café",)}
    assert [dataset.classes[n] for n in by_id["00/1"].labels] == ["1", "255"]
    assert [item.labels for item in dataset.items] == [(0, 254), (2,), (0,), (2,), (), (2,), (8,)]


def test_the_lists_are_the_roles(root: Path) -> None:
    dataset = iaprtc12_lists.read(root)
    roles = [{"train", "database"}, {"train", "database"}, {"query"}, *[{"database"}] * 4]
    assert [set(item.splits) for item in dataset.items] == roles
    drawn = check(with_roles(dataset, seed=0))
    assert [drawn.count(role) for role in ("query", "database", "train", "val")] == [1, 6, 1, 1]


def test_counts_what_is_there_and_what_is_missing(root: Path) -> None:
    assert iaprtc12_lists.read(root).found == {
        "items": 7,
        "images": 6,
        "en texts": 4,
        "labelled items": 6,
        "classes": 255,
        "items without en text": 3,
        "items without a label": 1,
        "lines with other labels than the photo's first": 1,
        "empty texts": 1,
        "photos in no list": 1,
        "items without an image": 1,
    }


def test_the_words_are_there_for_the_asking(root: Path) -> None:
    other = line("00/2.jpg", 4).replace("1", "0", 1)  # another word than in the train list, whose line counts
    put(root / RETRIEVAL, other + line("00/4.jpg", 3).replace(" 1 0", " 1 1", 1))
    dataset = iaprtc12_lists.read(root)
    assert not dataset.ready
    words = iaprtc12_lists.own_features(dataset)["text-en"].x
    assert (words.shape, words.dtype) == ((4, WORDS), np.uint8)
    plain = [int(n % 7 == 0) for n in range(WORDS)]
    assert words[:3].tolist() == [plain] * 3
    assert words[3].tolist() == [1, 1, *plain[2:]]


def test_own_words_in_place_of_a_text_model(root: Path, tmp_path: Path) -> None:
    config = ExtractConfig(dataset="iaprtc12-lists", root=root, cache=tmp_path / "cache", text_models=("en=own",))
    assert list(read_dataset(config).ready) == ["text-en"]
    assert not read_dataset(replace(config, text_models=())).ready


@pytest.mark.parametrize("name", ["JPEGImages", "annotations", TRAIN, TEST, RETRIEVAL])
def test_what_is_needed_is_named(root: Path, name: str) -> None:
    (root / name).rename(root / "elsewhere")
    with pytest.raises(DataError, match=rf"no (file|folder) '{name}'"):
        iaprtc12_lists.read(root)


def test_an_empty_folder_is_named(root: Path) -> None:
    (root / "JPEGImages").rename(root / "elsewhere")
    (root / "JPEGImages").mkdir()
    with pytest.raises(DataError, match=r"no files 'JPEGImages/NN/ID\.jpg'"):
        iaprtc12_lists.read(root)


@pytest.mark.parametrize(
    "bad",
    [
        "00/3.jpg",
        "00/3.jpg 0 1",
        line("3.jpg"),
        line("00/3.png"),
        line("00/3.jpg")[:-2],
        line("00/3.jpg").replace("1", "2"),
    ],
    ids=["no bits", "few bits", "no folder", "no photo", "a bit less", "no bit"],
)
def test_a_line_that_is_none_is_named(root: Path, bad: str) -> None:
    put(root / TEST, line("00/3.jpg") + bad)
    with pytest.raises(
        DataError, match=r"line 2 is not NN/ID\.jpg with 2912 \+ 255 bits: '.*': .*iapr_test: "
    ) as caught:
        iaprtc12_lists.read(root)
    assert "\n" not in str(caught.value)


def test_a_photo_that_is_train_and_test_is_refused(root: Path) -> None:
    put(root / TEST, line("00/1.jpg"))
    with pytest.raises(DataError, match=r"query items are also train or val items \(1: 00/1\)"):
        check(iaprtc12_lists.read(root))


@given(st.sampled_from([TRAIN, TEST, RETRIEVAL, "annotations/00/1.txt"]), st.booleans(), st.binary())
def test_any_bytes_are_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, name: str, after_a_line: bool, raw: bytes
) -> None:
    root = tmp_path_factory.mktemp("any")
    put(root / "JPEGImages/00/1.jpg")
    put(root / "annotations/00/1.txt", "a")
    for other in (TRAIN, TEST, RETRIEVAL):
        put(root / other, "")
    put(root / name, after_a_line * line("00/2.jpg").encode() + raw)
    try:
        check(with_roles(iaprtc12_lists.read(root), 0))
    except CmrhashError as error:
        assert "\n" not in str(error)


def test_a_list_of_the_real_length_is_read_quickly(root: Path) -> None:
    one = line("00/{}.jpg", 5, 9)
    put(root / RETRIEVAL, "".join(one.replace("{}", str(n)) for n in range(100, 2100)))
    start = time.process_time()
    assert len(iaprtc12_lists.read(root).items) == 2003
    assert time.process_time() - start < 5
