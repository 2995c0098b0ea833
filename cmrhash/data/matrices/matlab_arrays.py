"""Arrays in MATLAB's files up to version 7.2, which scipy reads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cmrhash.data.matrices.array import TEXT, Array, dense, from_columns, too_dense
from cmrhash.errors import lacking

NUMBERS = ("double", "single", "logical", *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)))
STRINGS = ("char", "cell")  # cells may hold numbers, too: the classes of an item, say


def list_matlab(path: Path) -> Iterator[Array]:
    """Arrays of the file, and the numbers in its structs. Raises UsageError without scipy."""
    try:
        from scipy.io import loadmat, whosmat
    except ImportError as error:
        fix = 'pip install "cmrhash[mat]"'
        raise lacking("MATLAB files up to 7.2 need scipy", "scipy", error, path, fix) from None

    def load(name: str) -> Any:
        return loadmat(str(path), appendmat=False, variable_names=[name])[name]

    def reader(name: str) -> Callable[[], NDArray[Any]]:
        return lambda: _dense_from_scipy(load(name))

    def text_reader(name: str) -> Callable[[], NDArray[Any]]:
        return lambda: np.asarray(load(name))

    size = path.stat().st_size
    for name, shape, kind in whosmat(str(path), appendmat=False):
        if kind == "struct" and shape == (1, 1):  # such as "param" with the splits; small, hence read at once
            yield from _fields(path, name, load(name)[0, 0])
        elif kind in STRINGS:
            yield Array(path, name, shape[:1] if kind == "char" else shape, TEXT, text_reader(name))
        else:
            refused = "" if kind in (*NUMBERS, "sparse") else "not numbers"
            yield Array(path, name, shape, kind, reader(name), refused or too_dense(shape, size))


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
        return dense(value.data, value.row, value.col, value.shape)
    return from_columns(value.data, value.indices, value.indptr, value.shape)
