"""What the readers share: any bytes become text, lines stay apart, links do not lead out."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trees import WRITERS

from cmrhash.config import DATASETS, FEATURES_DATASET, SAMPLE_DATASET
from cmrhash.data.catalog import READERS
from cmrhash.data.items import ROLES, check, with_roles
from cmrhash.data.parsing import FOREIGN, decode, files_by_stem, need_file, need_folder, read_lines
from cmrhash.errors import DataError
from cmrhash.features.photos import photo_bytes


def test_the_names_of_the_readers_are_those_of_the_command_line() -> None:
    assert (*READERS, FEATURES_DATASET) == DATASETS


def test_the_tests_have_a_small_tree_of_every_data_set() -> None:
    assert WRITERS.keys() == READERS.keys() - {SAMPLE_DATASET}


@pytest.mark.parametrize("name", WRITERS)
def test_a_small_tree_is_read_whole_with_items_of_every_role(name: str, tmp_path: Path) -> None:
    WRITERS[name](tmp_path)
    dataset = check(with_roles(READERS[name](tmp_path), seed=0))
    assert dataset.found["items"] == len(dataset.items)
    assert all(item.texts and item.image and photo_bytes(tmp_path, item.image) for item in dataset.items)
    assert all(dataset.count(role) for role in ROLES)
    assert dataset.items == check(with_roles(READERS[name](tmp_path), seed=0)).items


@pytest.mark.parametrize("name", [name for name in READERS if name != SAMPLE_DATASET])
def test_a_reader_says_in_one_line_that_it_found_nothing(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        READERS[name](tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


@given(st.binary())
def test_any_bytes_decode(raw: bytes) -> None:
    assert isinstance(decode(raw), str)


@pytest.mark.parametrize(
    ("raw", "lines"),
    [
        (b"", []),
        (b"\n", [""]),
        (b"a\r\nb", ["a", "b"]),
        ("grün\u2028rot\n".encode() + b"gr\xfcn\n", ["grün\u2028rot", "grün"]),
        ("\ufeffgrün\nrot\n".encode(), ["grün", "rot"]),
        ("grün\nrot".encode("utf-16"), ["grün", "rot"]),
    ],
)
def test_lines(raw: bytes, lines: list[str], tmp_path: Path) -> None:
    (tmp_path / "lines").write_bytes(raw)
    assert read_lines(tmp_path / "lines") == lines


def test_files_by_stem_counts_what_it_passes_over(tmp_path: Path) -> None:
    for name in ("b.jpg", "a.JPEG", "Thumbs.db", "c\\d.jpg", "bad\n.jpg"):
        (tmp_path / name).touch()
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "link.jpg").symlink_to("b.jpg")
    (tmp_path / "loop.jpg").symlink_to("loop.jpg")
    extra: Counter[str] = Counter()
    files = files_by_stem(tmp_path, tmp_path, (".jpg", ".jpeg"), extra)
    assert list(files.items()) == [("a", "a.JPEG"), ("b", "b.jpg"), ("link", "link.jpg")]
    named = r"'bad\n.jpg', 'c\\d.jpg'"
    assert extra == {FOREIGN: 1, f"files whose names cannot be used ({named})": 2}


def test_two_files_of_one_stem_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").touch()
    (tmp_path / "a.jpeg").touch()
    with pytest.raises(DataError, match=r"two files for 'a': a\.jpeg and a\.jpg"):
        files_by_stem(tmp_path, tmp_path, (".jpg", ".jpeg"), Counter())


@pytest.mark.faults("hostile file")
def test_links_out_of_the_root_are_refused(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "images").mkdir(parents=True)
    (tmp_path / "a.jpg").touch()
    (root / "images" / "a.jpg").symlink_to(tmp_path / "a.jpg")
    (root / "out").symlink_to(tmp_path)
    for read in (
        lambda: files_by_stem(root, root / "images", (".jpg",), Counter()),
        lambda: files_by_stem(root, root / "out", (".jpg",), Counter()),
        lambda: need_folder(root, "out"),
    ):
        with pytest.raises(DataError, match="leaves the data set's folder"):
            read()


def test_what_is_needed_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no folder 'a' or 'b'"):
        need_folder(tmp_path, "a", "b")
    with pytest.raises(DataError, match="no such folder"):
        need_folder(tmp_path / "none", "a")
    with pytest.raises(DataError, match="no file 'a' or 'b': .*: put the data set's files there"):
        need_file(tmp_path, "a", "b")
    (tmp_path / "inside" / "B").mkdir(parents=True)
    (tmp_path / "inside" / "c").touch()
    with pytest.raises(DataError, match=r"no folder 'a' or 'b': .*: did you mean \S*inside\?"):
        need_folder(tmp_path, "a", "b")
    with pytest.raises(DataError, match=r"no file 'c': .*: did you mean \S*inside\?"):
        need_file(tmp_path, "c")
