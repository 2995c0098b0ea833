"""Tars that are read in place: every member with its place, damage in one line, brace patterns."""

from __future__ import annotations

import gzip
import io
import tarfile
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from trees import put, tar_of

from cmrhash.data.photo_files import Slice
from cmrhash.data.tars import ODD, SPECIAL, UNMARKED, Tar, expand, is_pattern
from cmrhash.errors import DataError

FILES: dict[str, str | bytes] = {"a.jpg": b"1" * 700, "b/c.txt": "text", "empty.txt": b"", "d.jpg": b"22"}


def members(path: Path, extra: Counter[str] | None = None) -> dict[str, bytes]:
    """Content of every member, read out of the file by its place."""
    content = path.read_bytes()
    with Tar(path) as tar:
        found = list(tar.members(Counter() if extra is None else extra))
        assert all(tar.read(part) == content[part.offset : part.offset + part.size] for _, part in found)
    return {name: content[part.offset : part.offset + part.size] for name, part in found}


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_member_has_its_place_in_every_format(format: int, tmp_path: Path) -> None:
    files = {"./a.jpg": b"1" * 700, f"{'folder/' * 12}b.txt": b"x", "grün.txt": b"", "c.jpg": b"0" * 512}
    if format != tarfile.USTAR_FORMAT:
        files["n" * 200 + ".jpg"] = b"long"
    with tarfile.open(tmp_path / "x.tar", "w", format=format) as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size, member.mtime = len(content), 1.5  # type: ignore[assignment]
            tar.addfile(member, io.BytesIO(content))
    assert members(tmp_path / "x.tar") == {name.removeprefix("./"): content for name, content in files.items()}


def test_links_and_odd_names_are_counted(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE):
            member = tarfile.TarInfo(f"kind{kind.decode()}.jpg")
            member.type, member.linkname = kind, "/etc/passwd"
            tar.addfile(member)
        for name in ("/abs.jpg", "../up.jpg", "a/../../b.jpg", "back\\slash.jpg", "line\nbreak.jpg", "good.jpg"):
            tar.addfile(tarfile.TarInfo(name))
    extra: Counter[str] = Counter()
    assert list(members(tmp_path / "x.tar", extra)) == ["good.jpg"]
    assert (extra[SPECIAL], extra[ODD], extra[UNMARKED]) == (3, 5, 0)


def test_a_tar_without_an_end_mark_is_read_and_counted(tmp_path: Path) -> None:
    put(tmp_path / "x.tar", tar_of({"a.jpg": b"1" * 512})[:1024])
    extra: Counter[str] = Counter()
    assert members(tmp_path / "x.tar", extra) == {"a.jpg": b"1" * 512}
    assert +extra == {UNMARKED: 1}


@pytest.mark.parametrize("cut", [1, 511, 600, 1000, 1536, 2047, 2100])
def test_a_tar_that_was_cut_off_is_one_line(cut: int, tmp_path: Path) -> None:
    put(tmp_path / "x.tar", tar_of(FILES)[:cut])
    if cut == 1536:  # between two members; it lacks nothing but the end mark
        assert list(members(tmp_path / "x.tar")) == ["a.jpg"]
        return
    with pytest.raises(DataError, match=r"^damaged (or cut off|at byte 1536).*: get ") as caught:
        members(tmp_path / "x.tar")
    assert "x.tar" in str(caught.value)


@pytest.mark.parametrize("at", [0, 100, 130, 150, 156, 1536, 1536 + 124])
def test_a_damaged_header_is_one_line(at: int, tmp_path: Path) -> None:
    content = bytearray(tar_of(FILES))
    content[at] ^= 0x15
    put(tmp_path / "x.tar", bytes(content))
    with pytest.raises(DataError, match="x.tar"):
        members(tmp_path / "x.tar")


def test_a_second_tar_behind_the_first_is_not_passed_over(tmp_path: Path) -> None:
    put(tmp_path / "x.tar", tar_of({"a.jpg": b"1"}) + tar_of({"b.jpg": b"2"}))
    with pytest.raises(DataError, match=r"damaged at byte 1024, or another tar was appended there"):
        members(tmp_path / "x.tar")


def header(**fields: tuple[int, bytes]) -> bytes:
    """The header of a member, with fields at their places overwritten and the sum of its bytes made to fit."""
    raw = bytearray(tarfile.TarInfo("a.jpg").tobuf(tarfile.GNU_FORMAT))
    for at, content in fields.values():
        raw[at : at + len(content)] = content
    raw[148:156] = b" " * 8
    raw[148:156] = b"%06o\0 " % sum(raw)
    return bytes(raw)


@pytest.mark.faults("hostile file")
@pytest.mark.parametrize(
    "fields",
    [
        {"size": (124, b"\xff" * 10 + b"\xfe\x00")},  # base 256: -512, which leads back
        {"type": (156, b"x"), "size": (124, b"77777777777\0")},  # 8 GB of a header that is read whole
        {"type": (156, b"L"), "size": (124, b"77777777777\0")},
        {"type": (156, b"S"), "sparse": (386, b"\xff" * 96), "extended": (482, b"\1")},
    ],
)
def test_a_hostile_header_is_one_line(fields: dict[str, tuple[int, bytes]], tmp_path: Path) -> None:
    put(tmp_path / "x.tar", header() + header(**fields) + header(**fields) + bytes(1024))
    with pytest.raises(DataError, match="damaged"):
        members(tmp_path / "x.tar")


@pytest.mark.faults("hostile file")
@settings(max_examples=200, deadline=None)
@given(at=st.integers(100, 511), content=st.binary(min_size=1, max_size=12), kind=st.sampled_from(b"0157xgLKSVX\0"))
def test_no_header_makes_anything_else_than_a_data_error(
    at: int, content: bytes, kind: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzzed.tar"
    odd = header(type=(156, bytes([kind])), odd=(at, content[: 512 - at]))
    put(path, header() + odd + bytes(1536) + header() + bytes(1024))
    try:
        assert len(members(path)) <= 3
    except DataError as error:
        assert "fuzzed.tar" in str(error)


@settings(max_examples=60, deadline=None)
@given(at=st.integers(0, 5000), value=st.integers(0, 255))
def test_no_byte_makes_anything_else_than_a_data_error(
    at: int, value: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    content = bytearray(tar_of(FILES))
    content[at] = value
    path = tmp_path_factory.mktemp("tar") / "x.tar"
    put(path, bytes(content))
    try:
        found = members(path)
    except DataError:
        return
    assert len(found) <= len(FILES)


@pytest.mark.parametrize("name", ["x.tar", "x.tar.gz", "x.tgz"])
def test_a_compressed_tar_is_refused_with_what_to_do(name: str, tmp_path: Path) -> None:
    put(tmp_path / name, gzip.compress(tar_of(FILES)))
    with pytest.raises(DataError, match=rf"a compressed tar.*{name}.*decompress it first"):
        members(tmp_path / name)


def test_a_brace_pattern_names_its_tars_in_order(tmp_path: Path) -> None:
    for name in ("train/00008.tar", "train/00009.tar", "train/00010.tar", "val/00008.tar", "train/00011.tar"):
        put(tmp_path / name)
    assert expand(tmp_path / "train/{00008..00010}.tar") == (
        tmp_path / "train",
        ["00008.tar", "00009.tar", "00010.tar"],
    )
    assert expand(tmp_path / "{val,train}/0000{8..8}.tar") == (tmp_path, ["val/00008.tar", "train/00008.tar"])
    assert expand(tmp_path / "tr{ain}/00008.tar") == (tmp_path, ["train/00008.tar"])
    assert is_pattern(tmp_path / "{0..1}.tar")
    assert not is_pattern(tmp_path / "01.tar")


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ("{00000..00002}.tar", "2 of the 3 files of the pattern are missing, the first is .*00001.tar"),
        ("{3..1}.tar", "cannot count from 3 to 1: "),
        ("{0..99999999}.tar", "cannot count from 0 to 99999999"),
        ("{0..9999}{0..9999}.tar", "the pattern names 100,000,000 files"),
    ],
)
def test_a_pattern_that_does_not_fit_is_one_line(pattern: str, words: str, tmp_path: Path) -> None:
    put(tmp_path / "00000.tar")
    with pytest.raises(DataError, match=words):
        expand(tmp_path / pattern)


def test_a_slice_is_named_by_its_place() -> None:
    assert Slice(512, 9).within("a/0.tar") == "a/0.tar@512+9"
