"""The reader of NUS-WIDE on a small tree with the quirks of the real archive."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trees import put

from cmrhash.data.items import check, with_roles
from cmrhash.data.readers import nuswide
from cmrhash.data.readers.nuswide import LABELS, LIST, TAGS
from cmrhash.errors import CmrhashError, DataError

NAMES = ["actor/0001_11", "actor/0002_12", "zoo/0001_13", "zoo/0003_14", "zoo/0004_15"]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Five photos in the list, three of them there; concepts "sky" and "dog"; tags in another order."""
    put(tmp_path / LIST, "".join(name.replace("/", "\\") + ".jpg\r\n" for name in NAMES) + "\r\n")
    for name in (*NAMES[:2], NAMES[3], "zoo/0009_99"):
        put(tmp_path / "Flickr" / f"{name}.jpg")
    put(tmp_path / "Flickr/zoo/Thumbs.db")
    put(tmp_path / LABELS / "Labels_sky.txt", "1\r\n0\r\n1\r\n0\r\n0\r\n")
    put(tmp_path / LABELS / "Labels_dog.txt", "1\n0\n1\n0\n\n1\n\n")
    put(tmp_path / LABELS / "notes.txt", "none")
    put(tmp_path / "Groundtruth/TrainTestLabels/Labels_sky_Train.txt", "-1130179")
    lines = [b"\xef\xbb\xbf15      dog  nikon \r\n", b"\r\n", b"77 stray\n", b"14\n", b"12\tcaf\xe9 \xf0\x9f\x90\x95\n"]
    put(tmp_path / TAGS, b"".join([*lines, "11   grün sky".encode(), b"\n11 again\n"]))
    return tmp_path


def test_every_photo_of_the_list_is_an_item(root: Path) -> None:
    dataset = check(nuswide.read(root))
    assert [item.id for item in dataset.items] == NAMES
    images = [f"Flickr/{NAMES[0]}.jpg", f"Flickr/{NAMES[1]}.jpg", None, f"Flickr/{NAMES[3]}.jpg", None]
    assert [item.image for item in dataset.items] == images


def test_tags_belong_to_the_photo_of_their_id(root: Path) -> None:
    texts = [item.texts for item in nuswide.read(root).items]
    assert texts[0] == {"en": ("grün sky",)}
    assert texts[1]["en"][0].startswith("café ")
    assert texts[2:] == [{}, {}, {"en": ("dog nikon",)}]


def test_labels_are_the_concepts_in_sorted_order(root: Path) -> None:
    dataset = nuswide.read(root)
    assert dataset.classes == ("dog", "sky")
    assert [item.labels for item in dataset.items] == [(0, 1), (), (0, 1), (), (0,)]
    assert dataset.items[0].labels is dataset.items[2].labels


def test_counts_what_is_there_and_what_is_missing(root: Path) -> None:
    assert nuswide.read(root).found == {
        "items": 5,
        "images": 3,
        "en texts": 3,
        "labelled items": 3,
        "classes": 2,
        "items without en text": 2,
        "items without a label": 2,
        "files that are none of the data set's": 2,
        "lines of tags of no photo of the list": 1,
        "repeated lines of tags": 1,
        "photos that the list does not name": 1,
        "items without an image": 2,
    }


def test_photos_may_be_in_images_without_folders_of_classes(root: Path) -> None:
    (root / "Flickr").rename(root / "elsewhere")
    put(root / "images/0002_12.JPG")
    put(root / "images/zoo/0001_13.jpeg")
    images = [item.image for item in nuswide.read(root).items]
    assert images == [None, "images/0002_12.JPG", "images/zoo/0001_13.jpeg", None, None]


def test_the_list_may_have_slashes_and_longer_paths(root: Path) -> None:
    put(root / LIST, "".join(f"C:/ImageData/Flickr/{name}.JPG\n" for name in NAMES))
    assert [item.id for item in nuswide.read(root).items] == NAMES


def test_roles_are_drawn(root: Path) -> None:
    names = [f"actor/{n:04d}_{n}" for n in range(40)]
    put(root / LIST, "".join(f"{name}.jpg\n" for name in names))
    for name in names:
        put(root / f"Flickr/{name}.jpg")
    put(root / LABELS / "Labels_dog.txt", "0\n" * 40)
    put(root / LABELS / "Labels_sky.txt", "1\n" * 40)
    put(root / TAGS, "".join(f"{n} tag\n" for n in range(40)))
    drawn = check(with_roles(nuswide.read(root), seed=0))
    assert [drawn.count(role) for role in ("query", "database", "train", "val")] == [4, 36, 19, 1]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (LIST, f"no file '{LIST}'"),
        ("Flickr", "no folder 'Flickr' or 'images'"),
        (LABELS, f"no folder '{LABELS}'"),
        (TAGS, f"no file '{TAGS}'"),
    ],
)
def test_what_is_missing_is_named(root: Path, path: str, message: str) -> None:
    (root / path).rename(root / "elsewhere")
    with pytest.raises(DataError, match=rf"^{message}: "):
        nuswide.read(root)


@pytest.mark.parametrize(
    ("path", "content", "message"),
    [
        (f"{LABELS}/Labels_dog.txt", "1\n0\n1\n0\n", r"4 labels for the 5 photos of the list: .*Labels_dog\.txt"),
        (f"{LABELS}/Labels_sky.txt", "1\n" * 6, r"6 labels for the 5 photos of the list: .*Labels_sky\.txt"),
        (f"{LABELS}/Labels_sky.txt", "0\n0\n-1130179\n1\n1\n", r"label '-1130179' is neither 0 nor 1: .*Labels_sky"),
        (LIST, "\nactor.jpg\n", r"line 2 is not CLASS\\NNNN_FLICKRID\.jpg: 'actor\.jpg': .*Imagelist"),
        (LIST, "\r\n\r\n", "the list names no photos: .*Imagelist"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused(root: Path, path: str, content: str, message: str) -> None:
    put(root / path, content)
    with pytest.raises(DataError, match=f"^{message}"):
        nuswide.read(root)


def test_labels_are_needed(root: Path) -> None:
    for path in (root / LABELS).glob("Labels_*"):
        path.unlink()
    with pytest.raises(DataError, match="^no file 'Labels_CONCEPT.txt': "):
        nuswide.read(root)


def test_a_photo_listed_twice_is_refused(root: Path) -> None:
    put(root / LIST, "".join(f"{name}.jpg\n" for name in [*NAMES[:4], NAMES[0]]))
    with pytest.raises(DataError, match=r"ids are repeated \(1: actor/0001_11\)"):
        check(nuswide.read(root))


@pytest.mark.faults("hostile file")
def test_a_link_out_of_the_folder_is_refused(root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    outside = tmp_path_factory.mktemp("outside") / "secret.jpg"
    put(outside)
    (root / f"Flickr/{NAMES[2]}.jpg").symlink_to(outside)
    with pytest.raises(DataError, match="leaves the data set's folder"):
        nuswide.read(root)


@given(st.binary(), st.binary(), st.binary())
def test_any_bytes_are_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, listed: bytes, labels: bytes, tags: bytes
) -> None:
    root = tmp_path_factory.mktemp("any")
    (root / "Flickr").mkdir()
    put(root / LIST, b"actor\\0001_11.jpg\n" + listed)
    put(root / LABELS / "Labels_sky.txt", b"1\n" + labels)
    put(root / TAGS, b"11 " + tags)
    try:
        assert check(with_roles(nuswide.read(root), 0)).items[0].labels == (0,)
    except CmrhashError as error:
        assert "\n" not in str(error)
