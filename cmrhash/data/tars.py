"""Tars that are read in place: their members as a stream, each with its bytes' place in the file."""

from __future__ import annotations

import itertools
import os
import re
import tarfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

from cmrhash.data.cleaning import is_printable
from cmrhash.data.photo_files import Slice
from cmrhash.errors import DataError

COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst")
_MAGIC = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd")
_BROKEN = (tarfile.TarError, OSError, ValueError, ArithmeticError, LookupError, RecursionError, EOFError)
_EXTENDED = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, b"X")
MAX_HEADER = 1 << 20  # bytes of an extended header, which is read whole
TAIL = 1 << 20  # bytes after the last member that are checked to be zeros
MAX_TARS = 1_000_000  # of a brace pattern
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"([0-9]{1,12})\.\.([0-9]{1,12})")
SPECIAL, ODD = "links and special files in tars, left out", "members with an absolute or odd name, left out"
UNMARKED = "tars without an end mark, perhaps cut off"


def is_pattern(path: Path) -> bool:
    """Whether a path is a brace pattern of tars, as "{00000..00012}.tar"."""
    return _BRACES.search(str(path)) is not None and ".tar" in path.name and not os.path.lexists(path)


def expand(pattern: Path) -> tuple[Path, list[str]]:
    """The tars of a brace pattern: their folder, and paths below it in the order of the pattern.

    "{00000..00012}" stands for numbers of equal width, "{a,b}" for one of several words. Raises DataError if a tar is
    missing.
    """
    before, *parts = re.split(r"(\{[^{}]*\})", str(pattern))
    folder = Path(before).parent if before[-1:] != os.sep else Path(before)
    choices = [_choices(part[1:-1], pattern) if part[:1] == "{" else [part] for part in parts]
    count = 1
    for choice in choices:
        count *= len(choice)
    if count > MAX_TARS:
        raise DataError(f"the pattern names {count:,} files", pattern, f"name at most {MAX_TARS:,}")
    paths = [before + "".join(chosen) for chosen in itertools.product(*choices)]
    missing = [path for path in paths if not os.path.isfile(path)]
    if missing:
        what = f"{len(missing)} of the {count} files of the pattern are missing, the first is {missing[0]}"
        raise DataError(what, pattern, "fix the pattern, or get the files")
    return folder, [os.path.relpath(path, folder).replace(os.sep, "/") for path in dict.fromkeys(paths)]


def _choices(inside: str, pattern: Path) -> list[str]:
    """What a pair of braces stands for."""
    if not (numbers := _RANGE.fullmatch(inside)):
        return inside.split(",")
    first, last = int(numbers[1]), int(numbers[2])
    if not 0 <= last - first < MAX_TARS:
        raise DataError(f"cannot count from {numbers[1]} to {numbers[2]}", pattern, "write {FIRST..LAST}")
    return [str(n).zfill(len(numbers[1])) for n in range(first, last + 1)]


class _Header(tarfile.TarInfo):
    """A header that is parsed in a third of the time if it is that of a plain file with a short name."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        """The header of 512 bytes; raises tarfile.TarError for other bytes."""
        plain = len(buf) == tarfile.BLOCKSIZE and buf[156:157] == tarfile.REGTYPE and buf[257:262] == b"ustar"
        if plain and not buf[345]:
            size, chksum = (bytes(field).strip(b" \0") for field in (buf[124:136], buf[148:156]))
            if size.isdigit() and chksum.isdigit() and int(chksum, 8) == sum(buf) - sum(buf[148:156]) + 8 * 32:
                header = cls(bytes(buf[:100]).partition(b"\0")[0].decode(encoding, errors))
                header.size, header.chksum, header.type = int(size, 8), int(chksum, 8), tarfile.REGTYPE
                return header
        header = super().frombuf(buf, encoding, errors)
        if header.size < 0 or (header.type in _EXTENDED and header.size > MAX_HEADER):
            raise tarfile.HeaderError(f"a header with the size {header.size}")
        return header


class Tar:
    """An open tar. Use it as a context manager; raises DataError for a file that is compressed or no tar."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._raw = path.open("rb")
        except OSError as error:
            raise DataError(f"cannot be opened ({error.strerror})", path, "check the file") from None
        if self._raw.read(6).startswith(_MAGIC):
            self._raw.close()
            refuse_compressed(path)
        self._raw.seek(0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._raw.close()

    def members(self, extra: Counter[str]) -> Iterator[tuple[str, Slice]]:
        """Name and place of every regular file.

        extra: counts those that are left out. Raises DataError for a tar that is damaged or cut off.
        """
        at = -1
        try:
            tar: Any = tarfile.TarFile(fileobj=self._raw, tarinfo=_Header, errors="surrogateescape")
            while (member := tar.next()) is not None:
                if tar.offset <= at:  # a header that leads back
                    raise ValueError(f"at byte {member.offset}")
                at, tar.members = tar.offset, []  # or all members stay in memory
                if not member.isreg() or member.issparse():
                    extra[SPECIAL] += not member.isdir()
                elif (name := _plain(member.name)) is None:
                    extra[ODD] += 1
                else:
                    yield name, Slice(member.offset_data, member.size)
            self._raw.seek(tar.offset)
            tail = self._raw.read(TAIL)
        except _BROKEN as error:
            fix = "get or write the file again, or take it out of the folder"
            raise DataError(f"damaged or cut off ({str(error)[:80]})", self.path, fix) from None
        if tail.strip(b"\0"):
            fix = "get the file again, or keep joined tars in files of their own"
            raise DataError(f"damaged at byte {tar.offset}, or another tar was appended there", self.path, fix)
        extra[UNMARKED] += not tail

    def read(self, part: Slice) -> bytes:
        """Bytes of a member; raises DataError."""
        try:
            self._raw.seek(part.offset)
            return self._raw.read(part.size)
        except OSError as error:
            raise DataError(f"cannot be read ({error.strerror})", self.path, "check the disk") from None


def refuse_compressed(path: Path) -> None:
    """Raise DataError for a compressed tar, in which no photo can be read in place."""
    fix = f"decompress it first: {'gunzip' if path.suffix in ('.gz', '.tgz') else 'unpack'} {path.name}"
    raise DataError("a compressed tar; photos are read in place, out of plain tars only", path, fix)


def _plain(name: str) -> str | None:
    """The name without "./", None if it could not be an id."""
    while name.startswith("./"):
        name = name[2:]
    odd = name.startswith("/") or "\\" in name or not is_printable(name) or ".." in name.split("/")
    return None if odd or not name else name
