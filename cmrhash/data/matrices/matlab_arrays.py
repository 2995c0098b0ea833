"""Arrays in MATLAB's files up to version 7.2."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from cmrhash.data.matrices.array import TEXT, Array, too_dense
from cmrhash.data.matrices.matlab_file import Variable, variables

NUMBERS = ("double", "single", "logical", *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)))
STRINGS = ("char", "cell")  # cells may hold numbers, too: the classes of an item, say


def list_matlab(path: Path) -> Iterator[Array]:
    """Arrays of the file, and the numbers in its structs."""
    size = path.stat().st_size
    for one in variables(path):
        if one.kind == "struct" and one.shape == (1, 1):  # such as "param" with the splits; small, hence read at once
            yield from _fields(path, one)
        elif one.kind in STRINGS:
            yield Array(path, one.name, one.shape[:1] if one.kind == "char" else one.shape, TEXT, one.read)
        else:
            refused = "" if one.kind in (*NUMBERS, "sparse") and not one.complex else "not numbers"
            kind = f"complex {one.kind}" if one.complex else one.kind
            yield Array(path, one.name, one.shape, kind, one.read, refused or too_dense(one.shape, size))


def _fields(path: Path, struct: Variable) -> Iterator[Array]:
    """Numeric fields of a MATLAB struct."""
    for field, value in struct.read().items():
        if isinstance(value, np.ndarray) and value.dtype.kind in "buif":
            yield Array(path, f"{struct.name}.{field}", value.shape, str(value.dtype), value.view)
