"""Arrays in MATLAB, HDF5, .npz and .npy files from other programs.

MATLAB's .mat files may be of any version (up to 7.2, and 7.3). A file is listed first; only selected arrays are read.
Nothing in it is executed, no link is followed, and an array that declares more than the file can hold is refused before
memory is allocated.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cmrhash.errors import DataError, UsageError
from cmrhash.storage.foreign_hdf5 import DEFLATE_MOST, Foreign, open_foreign

HDF5_STARTS = (0, 512, 1024, 2048, 4096, 8192)  # possible positions of HDF5's signature; MATLAB's files have it at 512
DENSE_ALWAYS = 1 << 30  # bytes: a dense copy of a sparse array may be this large for any file
NUMBERS = ("double", "single", "logical", *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)))


@dataclass(frozen=True)
class Array:
    """An array in a file.

    shape, dtype: as the writing program shows them. refused: reason why it cannot be read, "" if it can.
    """

    file: Path
    name: str
    shape: tuple[int, ...]
    dtype: str
    load: Callable[[], NDArray[Any]]
    refused: str = ""

    def read(self) -> NDArray[Any]:
        """Read the array; a sparse one becomes dense float32.

        Raises DataError if it is refused or damaged.
        """
        if self.refused:
            raise DataError(
                f"array '{self.name}' cannot be read ({self.refused})", self.file, "choose another with `maps`"
            )
        with _one_line_errors(self.file):
            return self.load()

    def __str__(self) -> str:
        shape = " x ".join(map(str, self.shape)) or "-"
        return f"{self.file.stem}:{self.name} ({shape} {self.dtype}{', ' + self.refused if self.refused else ''})"


def list_arrays(path: Path) -> list[Array]:
    """Arrays of a file, whose format is recognised by content.

    Raises DataError for another format, UsageError for a MATLAB file without scipy.
    """
    if not path.is_file():
        raise DataError("no such file", path, "check `features`")
    with path.open("rb") as file:
        begin = file.read(HDF5_STARTS[-1] + 8)
    with _one_line_errors(path):
        if any(begin[at : at + 8] == b"\x89HDF\r\n\x1a\n" for at in HDF5_STARTS):
            return list(_list_hdf5(path))
        if begin.startswith(b"\x93NUMPY"):
            return [_list_npy(path)]
        if begin.startswith(b"PK\x03\x04"):
            return list(_list_npz(path))
        if begin.startswith(b"MATLAB") or path.suffix.lower() == ".mat":
            return list(_list_matlab(path))
    raise DataError("not a .mat, HDF5, .npz or .npy file", path, "save the features as one of these")


@contextmanager
def _one_line_errors(path: Path) -> Iterator[None]:
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


# ---------------------------------------------------------------------------------------------- NumPy


def _list_npy(path: Path) -> Array:
    with path.open("rb") as file:
        shape, dtype = _npy_header(file)
    refused = _refusal(shape, dtype, path.stat().st_size)

    def read() -> NDArray[Any]:
        """Map the file, so that only the rows in use are read."""
        array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
        return array

    return Array(path, path.stem, shape, str(dtype), read, refused)


def _list_npz(path: Path) -> Iterator[Array]:
    def load(name: str) -> Callable[[], NDArray[Any]]:
        def read() -> NDArray[Any]:
            with np.load(path, allow_pickle=False) as archive:
                array: NDArray[Any] = archive[name]
                return array

        return read

    size = path.stat().st_size
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            if not info.filename.endswith(".npy"):
                continue
            with archive.open(info) as member:
                shape, dtype = _npy_header(member)
            holds = min(info.file_size, min(info.compress_size, size) * DEFLATE_MOST)
            known = info.compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
            refused = _refusal(shape, dtype, holds) if known else "packed in an unknown way"
            name = info.filename.removesuffix(".npy")
            yield Array(path, name, shape, str(dtype), load(name), refused)


def _npy_header(file: Any) -> tuple[tuple[int, ...], np.dtype[Any]]:
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    else:
        shape, _, dtype = np.lib.format.read_array_header_2_0(file)
    return shape, dtype


def _refusal(shape: tuple[int, ...], dtype: np.dtype[Any], holds: int) -> str:
    """Reason why an array must not be read, "" if it may be.

    holds: most bytes the file can contain.
    """
    if dtype.kind not in "buif":
        return "not numbers"
    return "declares more than the file holds" if math.prod(shape) * dtype.itemsize > holds else ""


# ---------------------------------------------------------------------------------------------- HDF5


def _list_hdf5(path: Path) -> Iterator[Array]:
    size = path.stat().st_size
    with open_foreign(path) as found:
        for name, array in found.items():
            if array.dtype == "sparse":
                yield _sparse_hdf5(path, name, found, size)
            elif name.rpartition(".")[0] not in found:  # otherwise a part of a sparse array
                yield Array(path, name, array.shape, array.dtype, _hdf5_reader(path, name), array.refused)


def _hdf5_reader(path: Path, name: str) -> Callable[[], NDArray[Any]]:
    def read() -> NDArray[Any]:
        with open_foreign(path) as found:
            return found[name].read()

    return read


def _sparse_hdf5(path: Path, name: str, found: dict[str, Foreign], size: int) -> Array:
    """A sparse matrix of MATLAB 7.3: values, their rows, and the start of each column."""
    parts = [f"{name}.{part}" for part in ("data", "ir", "jc")]
    refused = [found[part].refused if part in found else "an empty matrix" for part in parts]
    columns = math.prod(found[parts[2]].shape) - 1 if parts[2] in found else 0
    shape = (*found[name].shape[:1], columns)

    def read() -> NDArray[Any]:
        with open_foreign(path) as there:
            values, rows, starts = (np.ravel(there[part].read()) for part in parts)
        return _from_columns(values, rows, starts, shape)

    return Array(path, name, shape, "sparse", read, next(filter(None, refused), "") or _too_dense(shape, size))


# ---------------------------------------------------------------------------------------------- MATLAB to 7.2


def _list_matlab(path: Path) -> Iterator[Array]:
    try:
        from scipy.io import loadmat, whosmat
    except ImportError:
        fix = 'pip install "cmrhash[mat]"'
        raise UsageError("MATLAB files up to 7.2 need scipy, which is not installed", path, fix) from None

    def load(name: str) -> Any:
        return loadmat(str(path), appendmat=False, variable_names=[name])[name]

    def reader(name: str) -> Callable[[], NDArray[Any]]:
        return lambda: _dense_from_scipy(load(name))

    size = path.stat().st_size
    for name, shape, kind in whosmat(str(path), appendmat=False):
        if kind == "struct" and shape == (1, 1):  # such as "param" with the splits; small, hence read at once
            yield from _fields(path, name, load(name)[0, 0])
            continue
        refused = "" if kind in (*NUMBERS, "sparse") else "not numbers"
        yield Array(path, name, shape, kind, reader(name), refused or _too_dense(shape, size))


def _fields(path: Path, name: str, record: Any) -> Iterator[Array]:
    """Numeric fields of a MATLAB struct."""
    for field in record.dtype.names or ():
        value = record[field]
        if isinstance(value, np.ndarray) and value.dtype.kind in "buif":
            yield Array(path, f"{name}.{field}", value.shape, str(value.dtype), value.view)


def _dense_from_scipy(value: Any) -> NDArray[Any]:
    """Dense array from scipy's matrix.

    Sparse matrices are converted here, because scipy trusts the indices in the file.
    """
    if isinstance(value, np.ndarray):
        if value.dtype.kind not in "buif":
            raise ValueError(f"{value.dtype} are not real numbers")
        return value
    if value.format == "coo":
        return _dense(value.data, value.row, value.col, value.shape)
    return _from_columns(value.data, value.indices, value.indptr, value.shape)


# ---------------------------------------------------------------------------------------------- sparse


def _too_dense(shape: tuple[int, ...], size: int) -> str:
    """Reason why an array is too large when dense, "" if it is not."""
    holds = max(DENSE_ALWAYS, size * DEFLATE_MOST)
    return "declares more than the file holds" if math.prod(shape) * 4 > holds else ""


def _from_columns(
    values: NDArray[Any], rows: NDArray[Any], starts: NDArray[Any], shape: tuple[int, ...]
) -> NDArray[np.float32]:
    """Dense array from compressed columns.

    Column c has the values from starts[c] to starts[c + 1]; values after the last column are unused.
    """
    begins = starts.astype(np.int64)
    counts, used = begins[1:] - begins[:-1], int(begins[-1])
    if len(counts) != shape[1] or (counts < 0).any() or begins[0] != 0 or used > len(values):
        raise ValueError("columns that do not follow each other")
    return _dense(values[:used], rows[:used], np.repeat(np.arange(shape[1]), counts), shape)


def _dense(
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
