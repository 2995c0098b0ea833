"""Parquet files: columns, rows and photos, read in another process because damaged files may crash pyarrow."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from cmrhash.storage import apart

_INSIDE = "cmrhash.data.parquet_file"


def columns(path: Path) -> tuple[tuple[str, ...], frozenset[str]]:
    """Names of all columns, and of those that hold photos.

    Raises DataError if the file is damaged, UsageError without pyarrow.
    """
    names, photos = apart.call(f"{_INSIDE}:columns", path)
    return tuple(names), frozenset(photos)


def rows(path: Path, names: Sequence[str], photos: Iterable[str]) -> Iterator[list[Any]]:
    """Values of these columns, row by row; for a photo only whether there is one. Raises as ``columns`` does."""
    for block in apart.stream(f"{_INSIDE}:blocks", path, list(names), sorted(photos)):
        yield from block


def photo(path: Path, column: str, row: int) -> bytes | None:
    """The photo in a row, counted from 0; None for an empty cell.

    Raises IndexError without such a row, KeyError without such a column, OSError without the file, else as ``columns``.
    """
    content: bytes | None = apart.call(f"{_INSIDE}:photo", path, column, row)
    return content
