"""The reader of photos with text files beside them, and the files and ids that readers of folders share."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from trees import put

from cmrhash.data.items import check, with_roles
from cmrhash.data.photos import files_below, ids_of
from cmrhash.data.readers import folder
from cmrhash.errors import DataError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Photos of every kind at several depths; doubled stems, hidden files, texts without a photo."""
    for name in ("top.jpg", "a/b/deep.JPEG", "a/one.PNG", "a/one.webp", "x.gif", "y.bmp", "z.tif", "a/v1.de.jpg"):
        put(tmp_path / name)
    put(tmp_path / "top.txt", "A dog.\r\n\n  Two\tdogs. \n")
    put(tmp_path / "top.de.txt", "Ein Hund.\n")
    put(tmp_path / "top.EN-us.txt", "A dawg.\n")
    put(tmp_path / "a/one.TXT", b"A caf\xe9.\n")
    put(tmp_path / "a/v1.de.txt", "Version one.\n")
    put(tmp_path / "a/b/deep.txt", " \n")
    put(tmp_path / "README.txt", "not a caption\n")
    put(tmp_path / "a/notes.md", "neither\n")
    for name in (".hidden/h.jpg", "a/._one.png", ".top.txt"):
        put(tmp_path / name)
    return tmp_path


def test_every_photo_is_an_item_with_the_captions_beside_it(root: Path) -> None:
    items = {item.id: item for item in check(folder.read(root)).items}
    assert list(items) == ["a/b/deep", "a/one.PNG", "a/one.webp", "a/v1.de", "top", "x", "y", "z"]
    assert items["a/b/deep"].image == "a/b/deep.JPEG"
    assert items["top"].texts == {"en": ("A dog.", "Two dogs."), "de": ("Ein Hund.",), "en-us": ("A dawg.",)}
    assert items["a/b/deep"].texts == items["x"].texts == {}


def test_photos_that_differ_only_in_the_suffix_share_their_captions(root: Path) -> None:
    items = {item.id: item for item in folder.read(root).items}
    assert items["a/one.PNG"].texts == items["a/one.webp"].texts == {"en": ("A café.",)}


def test_the_end_of_a_photos_own_name_is_no_language(root: Path) -> None:
    assert {item.id: item for item in folder.read(root).items}["a/v1.de"].texts == {"en": ("Version one.",)}


def test_counts_what_is_there_and_what_is_missing(root: Path) -> None:
    assert folder.read(root).found == {
        "items": 8,
        "images": 8,
        "de texts": 1,
        "en texts": 4,
        "en-us texts": 1,
        "items without de text": 7,
        "items without en text": 4,
        "items without en-us text": 7,
        "text files without a photo": 1,
    }


def test_a_text_file_of_another_name_is_told_its_name(tmp_path: Path) -> None:
    for name in ("a/1.jpg", "a/text_1.txt"):
        put(tmp_path / name)
    words = "captions have the name of their photo, such as a/1.txt for a/1.jpg: a/text_1.txt has that of no photo"
    assert folder.read(tmp_path).notes == (words,)
    put(tmp_path / "a/1.txt", "a dog")
    assert folder.read(tmp_path).notes == ()  # every photo has its captions


def test_photos_alone_are_items_too(tmp_path: Path) -> None:
    put(tmp_path / "a/1.jpg")
    put(tmp_path / "2.jpg")
    dataset = check(with_roles(folder.read(tmp_path), seed=0))
    assert [(item.id, item.texts) for item in dataset.items] == [("2", {}), ("a/1", {})]
    assert dataset.found["photos without captions"] == 2
    assert (dataset.relevance, dataset.languages) == ("pairs", ())


def test_names_in_both_forms_of_unicode_meet(tmp_path: Path) -> None:
    put(tmp_path / "gru\u0308n.jpg")
    put(tmp_path / "gr\u00fcn.txt", "Green.\n")
    [item] = folder.read(tmp_path).items
    assert (item.id, item.image, item.texts) == ("gr\u00fcn", "gru\u0308n.jpg", {"en": ("Green.",)})


def test_roles_are_drawn_and_the_queries_are_the_database(tmp_path: Path) -> None:
    for n in range(40):
        put(tmp_path / f"{n}.jpg")
        put(tmp_path / f"{n}.txt", f"number {n}")
    dataset = check(with_roles(folder.read(tmp_path), seed=0))
    assert [dataset.count(role) for role in ("query", "database", "train", "val")] == [4, 4, 34, 2]


def test_a_folder_without_photos_is_refused(tmp_path: Path) -> None:
    put(tmp_path / "a.txt", "A dog.")
    put(tmp_path / ".a.jpg")
    with pytest.raises(DataError, match=r"no photo \(\.jpg, .*give the folder that holds the photos"):
        folder.read(tmp_path)
    with pytest.raises(DataError, match="no such folder"):
        folder.read(tmp_path / "none")


@pytest.mark.faults("hostile file")
@pytest.mark.parametrize("name", ["a.jpg", "a.txt", "sub"])
def test_links_out_of_the_root_are_counted(name: str, tmp_path: Path) -> None:
    put(tmp_path / "root/b.jpg")
    put(tmp_path / "outside/a.jpg")
    put(tmp_path / "outside/a.txt", "secret")
    (tmp_path / "root" / name).symlink_to(tmp_path / "outside" / ("" if name == "sub" else name))
    dataset = folder.read(tmp_path / "root")
    assert [(item.id, item.texts) for item in dataset.items] == [("b", {})]
    assert dataset.found["links out of the folder, not followed (`follow_links=True` follows them)"] == 1


def test_links_inside_the_root_are_read_once(tmp_path: Path) -> None:
    put(tmp_path / "a/1.jpg")
    (tmp_path / "2.jpg").symlink_to("a/1.jpg")
    (tmp_path / "a/up").symlink_to("..")
    (tmp_path / "b").symlink_to("a")
    (tmp_path / "loop.jpg").symlink_to("loop.jpg")
    (tmp_path / "gone.jpg").symlink_to("nowhere.jpg")
    extra: Counter[str] = Counter()
    assert files_below(tmp_path, extra) == ["2.jpg", "a/1.jpg"]
    assert extra == {"links that are not followed": 4}


def test_names_that_cannot_be_ids_are_counted(tmp_path: Path) -> None:
    for name in ("good.jpg", "bad\n.jpg", "back\\slash.jpg", " .jpg"):
        put(tmp_path / name)
    put(tmp_path / "bad\nfolder/x.jpg")
    dataset = check(folder.read(tmp_path))
    assert [item.id for item in dataset.items] == ["good"]
    named = r"' .jpg', 'back\\slash.jpg', 'bad\n.jpg', ..."
    assert dataset.found[f"files whose names cannot be used ({named})"] == 4


def test_no_two_photos_have_the_same_id() -> None:
    photos = ["a.jpg", "a.png", "a.jpg.png", "a.jpg.png.gif", "b/a.jpg", "c.d.jpg"]
    assert ids_of(photos) == ["a.jpg", "a.png", "a.jpg.png", "a.jpg.png.gif", "b/a", "c.d"]
