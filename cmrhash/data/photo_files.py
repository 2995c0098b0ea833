"""Places of photos: a file, a part of a tar, or a cell of a Parquet table.

An item names its photo by one string, a path below the root that may have a part behind it:

    images/17.jpg                   a file
    00000.tar@1536+20481            20,481 bytes of the tar, from byte 1,536 on
    train.parquet@image+17          row 17, counted from 0, of the column "image"

A file whose name looks like a path with a part is read as a file.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from cmrhash.data.items import resolve_image

_SLICE = re.compile(r"(?P<file>.+\.tar)@(?P<offset>[0-9]{1,18})\+(?P<size>[0-9]{1,18})", re.IGNORECASE | re.DOTALL)
_CELL = re.compile(r"(?P<file>.+?\.parquet)@(?P<column>.+)\+(?P<row>[0-9]{1,18})", re.IGNORECASE | re.DOTALL)


@dataclass(frozen=True, slots=True)
class Slice:
    """Bytes of a file: ``size`` of them from byte ``offset`` on."""

    offset: int
    size: int

    def within(self, file: str) -> str:
        """The string that names this part of a file."""
        return f"{file}@{self.offset}+{self.size}"


@dataclass(frozen=True, slots=True)
class Cell:
    """A value of a Parquet table: name of the column, number of the row from 0."""

    column: str
    row: int

    def within(self, file: str) -> str:
        """The string that names this part of a file."""
        return f"{file}@{self.column}+{self.row}"


@dataclass(frozen=True, slots=True)
class PhotoFile:
    """Place of a photo: ``path`` of a file, and the part of it that is the photo; None: the whole file."""

    path: Path
    part: Slice | Cell | None = None

    def __str__(self) -> str:
        return self.part.within(str(self.path)) if self.part else str(self.path)


def find_photo(root: Path, image: str) -> PhotoFile:
    """Place of an item's photo; raises DataError if it is not below the root, as ``resolve_image``."""
    if found := _SLICE.fullmatch(image):
        part: Slice | Cell = Slice(int(found["offset"]), int(found["size"]))
    elif found := _CELL.fullmatch(image):
        part = Cell(found["column"], int(found["row"]))
    if not found or os.path.isfile(root / image):
        return PhotoFile(resolve_image(root, image))
    return PhotoFile(resolve_image(root, found["file"]), part)
