"""An array in a file from another program: numbers, or text."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cmrhash.data.parsing import decode
from cmrhash.errors import DataError, UsageError
from cmrhash.storage.foreign_hdf5 import DEFLATE_MOST

DENSE_ALWAYS = 1 << 30  # bytes: a dense copy of a sparse array may be this large for any file
TEXT = "text"  # dtype of arrays of strings
LARGE = "declares more than the file holds"


@dataclass(frozen=True)
class Array:
    """An array in a file.

    shape, dtype: as the writing program shows them; TEXT for strings. refused: reason why it cannot be read, "" if it
    can. names: names of the rows, if the file has them. load: for text an object array of str, or of arrays of str.
    """

    file: Path
    name: str
    shape: tuple[int, ...]
    dtype: str
    load: Callable[[], NDArray[Any]]
    refused: str = ""
    names: tuple[str, ...] = ()

    @property
    def is_text(self) -> bool:
        """Whether it holds strings."""
        return self.dtype == TEXT

    @property
    def plain(self) -> tuple[int, ...]:
        """Shape without axes of length 1, if there are more than two axes; of text, the number of rows."""
        if self.is_text:
            return (math.prod(self.shape) if self.shape[:1] == (1,) else self.shape[0],) if self.shape else (1,)
        shape = self.shape if len(self.shape) <= 2 else tuple(n for n in self.shape if n != 1)
        return shape or (1,)

    def read(self) -> NDArray[Any]:
        """Read the numbers, shaped as ``plain``; a sparse array becomes dense float32.

        Raises DataError if it is refused, damaged or text.
        """
        self._check("text" if self.is_text else "")
        with one_line_errors(self.file):
            return self.load().reshape(self.plain)

    def read_texts(self) -> list[tuple[str, ...]]:
        """Read the strings of each row, or whole numbers as strings, without outer blanks.

        Raises DataError if it is refused, damaged or anything else.
        """
        self._check("" if self.is_text or len([n for n in self.plain if n != 1]) <= 1 else "not text")
        with one_line_errors(self.file):
            x = self.load()
            rows = x.size if not x.ndim or x.shape[0] == 1 else len(x)
            return [
                tuple(text for cell in row for text in _strings(cell)) for row in x.reshape(rows, -1 if rows else 1)
            ]

    def _check(self, unfit: str) -> None:
        if reason := self.refused or unfit:
            raise DataError(f"array '{self.name}' cannot be read ({reason})", self.file, "choose another with `maps`")

    def __str__(self) -> str:
        shape = " x ".join(map(str, self.shape)) or "-"
        return f"{self.file.stem}:{self.name} ({shape} {self.dtype}{', ' + self.refused if self.refused else ''})"


def _strings(cell: Any) -> Iterator[str]:
    """The strings of a cell, which may be a string, bytes, a number, or several cells again."""
    if isinstance(cell, np.ndarray | list):
        for inner in cell if isinstance(cell, list) else cell.ravel().tolist():
            yield from _strings(inner)
    elif isinstance(cell, str | bytes):
        yield (decode(cell) if isinstance(cell, bytes) else cell).strip()
    elif cell != int(cell):
        raise ValueError(f"{cell} is neither text nor a whole number")
    else:
        yield str(int(cell))


@contextmanager
def one_line_errors(path: Path) -> Iterator[None]:
    """Turn any error of a damaged file into a one-line DataError."""
    try:
        yield
    except (DataError, UsageError):
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:120]
        raise DataError(
            f"not readable ({type(error).__name__}: {reason})", path, "it may be damaged: get the file again"
        ) from None


# ---------------------------------------------------------------------------------------------- sparse


def too_dense(shape: tuple[int, ...], size: int) -> str:
    """Reason why an array is too large when dense, "" if it is not.

    size: bytes of its file.
    """
    holds = max(DENSE_ALWAYS, size * DEFLATE_MOST)
    return LARGE if math.prod(shape) * 4 > holds else ""


def from_columns(
    values: NDArray[Any], rows: NDArray[Any], starts: NDArray[Any], shape: tuple[int, ...]
) -> NDArray[np.float32]:
    """Dense array from compressed columns.

    Column c has the values from starts[c] to starts[c + 1]; values after the last column are unused.
    """
    begins = starts.astype(np.int64)
    counts, used = begins[1:] - begins[:-1], int(begins[-1])
    if len(counts) != shape[1] or (counts < 0).any() or begins[0] != 0 or used > len(values):
        raise ValueError("columns that do not follow each other")
    return dense(values[:used], rows[:used], np.repeat(np.arange(shape[1]), counts), shape)


def dense(
    values: NDArray[Any], rows: NDArray[Any], columns: NDArray[Any], shape: tuple[int, ...]
) -> NDArray[np.float32]:
    """Dense float32 array with values at (rows, columns), zeros elsewhere.

    Raises ValueError for positions outside the shape.
    """
    if not len(values) == len(rows) == len(columns):
        raise ValueError(f"{len(values)} values in {len(rows)} rows and {len(columns)} columns")
    for places, count in ((rows, shape[0]), (columns, shape[1])):
        if len(places) and (places.min() < 0 or places.max() >= count):
            raise ValueError(f"a place outside {shape[0]} x {shape[1]}")
    array = np.zeros(shape, np.float32)
    with np.errstate(over="ignore"):  # values beyond float32 become infinite, which the extraction reports
        array[rows.astype(np.int64), columns.astype(np.int64)] = values
    return array
