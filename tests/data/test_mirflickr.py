"""The reader of MIRFlickr-25K on a small tree with the quirks of the real archive."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trees import put

from cmrhash.data.items import check, with_roles
from cmrhash.data.readers import mirflickr
from cmrhash.data.readers.mirflickr import ANNOTATIONS, COMMON_TAGS, IMAGES, TAGS
from cmrhash.errors import CmrhashError, DataError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Photos 1, 2, 3 and 10; tags of 1, 2 (none), 3 and 4; classes "baby" and "sky"."""
    for n in (1, 2, 3, 10):
        put(tmp_path / IMAGES / f"im{n}.jpg")
    put(tmp_path / IMAGES / "cover.jpg")
    put(tmp_path / TAGS / "tags1.txt", "sky\r\n\r\nblue \t moon\r\n")
    put(tmp_path / TAGS / "tags2.txt", " \n\n")
    put(tmp_path / TAGS / "tags3.txt", b"caf\xe9\n" + "grün\n".encode() + b"\0\x81\n")
    put(tmp_path / TAGS / "tags4.txt", "sky")
    put(tmp_path / ANNOTATIONS / "sky.txt", "3\r\n\r\n 1 \r\n1\r\n99\r\n")
    put(tmp_path / ANNOTATIONS / "baby.txt", "\ufeff10\n3")
    put(tmp_path / ANNOTATIONS / "baby_r1.txt", "10\n")
    put(tmp_path / ANNOTATIONS / "README.txt", "Annotations\n")
    return tmp_path


def test_an_item_is_a_photo_or_a_tag_file_in_the_order_of_the_numbers(root: Path) -> None:
    dataset = check(mirflickr.read(root))
    assert [(item.id, item.image) for item in dataset.items] == [
        ("1", "mirflickr/im1.jpg"),
        ("2", "mirflickr/im2.jpg"),
        ("3", "mirflickr/im3.jpg"),
        ("4", None),
        ("10", "mirflickr/im10.jpg"),
    ]


def test_the_text_is_the_tags(root: Path) -> None:
    texts = {item.id: item.texts for item in mirflickr.read(root).items}
    assert texts == {
        "1": {"en": ("sky blue moon",)},
        "2": {},
        "3": {"en": ("café grün",)},
        "4": {"en": ("sky",)},
        "10": {},
    }


def test_the_classes_are_the_files_without_r1_and_readme(root: Path) -> None:
    dataset = mirflickr.read(root)
    assert dataset.classes == ("baby", "sky")
    assert [item.labels for item in dataset.items] == [(1,), (), (0, 1), (), (0,)]


def test_counts_what_is_there_and_what_is_missing(root: Path) -> None:
    found = {
        "items": 5,
        "images": 4,
        "en texts": 3,
        "labelled items": 3,
        "classes": 2,
        "items without en text": 2,
        "items without a label": 2,
        "files that are none of the data set's": 1,
        "annotated numbers without photo and tags": 1,
        "items without an image": 1,
    }
    assert mirflickr.read(root).found == found
    before = mirflickr.read(root).items
    put(root / COMMON_TAGS, "sky 845\r\ncafé 20\r\n\r\n")
    assert mirflickr.read(root).found == found | {"different tags outside common_tags.txt": 2}
    assert mirflickr.read(root).items == before


def test_roles_are_drawn(root: Path) -> None:
    for n in range(40):
        put(root / IMAGES / f"im{n}.jpg")
        put(root / TAGS / f"tags{n}.txt", "sky")
    put(root / ANNOTATIONS / "sky.txt", "".join(f"{n}\n" for n in range(40)))
    drawn = check(with_roles(mirflickr.read(root), seed=0))
    assert [drawn.count(role) for role in ("query", "database", "train", "val")] == [4, 36, 19, 1]


@pytest.mark.parametrize("folder", [IMAGES, TAGS, ANNOTATIONS])
def test_a_missing_folder_is_named(root: Path, folder: str) -> None:
    (root / folder).rename(root / "elsewhere")
    with pytest.raises(DataError, match=rf"^no folder '{folder}': "):
        mirflickr.read(root)


@pytest.mark.parametrize(
    ("folder", "pattern", "message"),
    [
        (IMAGES, "*.jpg", "no file 'im1.jpg' or with another number"),
        (TAGS, "*.txt", "no file 'tags1.txt' or with another number"),
        (ANNOTATIONS, "[a-z]*[a-z].txt", "no file 'animals.txt' or of another class"),
    ],
)
def test_an_empty_folder_is_refused(root: Path, folder: str, pattern: str, message: str) -> None:
    for path in (root / folder).glob(pattern):
        path.unlink()
    with pytest.raises(DataError, match=rf"^{message}: .*{folder}: "):
        mirflickr.read(root)


def test_two_photos_of_one_number_are_refused(root: Path) -> None:
    put(root / IMAGES / "im01.jpg")
    with pytest.raises(DataError, match=r"two files for number 1: mirflickr/im01\.jpg and mirflickr/im1\.jpg"):
        mirflickr.read(root)


@pytest.mark.parametrize("line", ["im1", "-1", "1.0", "\u0661", "9" * 5000])
def test_an_annotation_that_is_no_number_is_refused(root: Path, line: str) -> None:
    put(root / ANNOTATIONS / "sky.txt", f"1\n{line}\n")
    with pytest.raises(DataError, match=r"^line 2 is '.{1,40}', not the number of a photo: .*sky\.txt: "):
        mirflickr.read(root)


@pytest.mark.faults("hostile file")
def test_a_link_out_of_the_folder_is_refused(root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    outside = tmp_path_factory.mktemp("outside") / "secret.txt"
    put(outside, "secret")
    (root / TAGS / "tags7.txt").symlink_to(outside)
    with pytest.raises(DataError, match="leaves the data set's folder"):
        mirflickr.read(root)


@given(st.binary(), st.binary())
def test_any_bytes_are_read_or_refused(tmp_path_factory: pytest.TempPathFactory, tags: bytes, numbers: bytes) -> None:
    root = tmp_path_factory.mktemp("any")
    put(root / IMAGES / "im1.jpg")
    put(root / TAGS / "tags1.txt", tags)
    put(root / COMMON_TAGS, tags)
    put(root / ANNOTATIONS / "sky.txt", numbers)
    try:
        assert check(with_roles(mirflickr.read(root), 0)).items[0].id == "1"
    except CmrhashError as error:
        assert "\n" not in str(error)
