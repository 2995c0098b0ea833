"""Arrays in HDF5 files, which MATLAB 7.3 writes, too; they are read in another process, which a file may crash."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cmrhash.data.matrices.array import Array, from_columns, too_dense
from cmrhash.storage import apart
from cmrhash.storage.foreign_hdf5 import Foreign, open_foreign

A_PHOTO = "global_descriptor"  # dataset in the group of each photo, as hloc writes them


def list_hdf5(path: Path) -> Iterator[Array]:
    """Arrays of the file; groups that hold the vector of one photo each make one array."""
    for number, (name, shape, dtype, refused, names) in enumerate(apart.call(f"{__name__}:described", path)):
        load = partial(apart.call, f"{__name__}:content", path, number)
        yield Array(path, name, tuple(shape), dtype, load, refused, tuple(names))


def described(path: Path) -> list[tuple[str, tuple[int, ...], str, str, tuple[str, ...]]]:
    """Name, shape, dtype, refusal and names of the rows of each array; runs in the other process."""
    return [(array.name, array.shape, array.dtype, array.refused, array.names) for array in _arrays(path)]


def content(path: Path, number: int) -> NDArray[Any]:
    """The array of that number; runs in the other process."""
    return list(_arrays(path))[number].load()


def _arrays(path: Path) -> Iterator[Array]:
    size = path.stat().st_size
    with open_foreign(path) as found:
        photos = {name: array for name, array in found.items() if name.endswith(f".{A_PHOTO}")}
        if len({(array.shape, array.refused) for array in photos.values()}) != 1:
            photos = {}
        groups = {name.removesuffix(A_PHOTO) for name in photos}
        beside = Counter(leaf for name in found for group, leaf in [_split(name)] if group in groups)
        for leaf, count in beside.items():
            if leaf == A_PHOTO:
                yield _of_photos(path, photos)
            else:
                yield Array(path, leaf, (count,), "groups", lambda: np.zeros(0), "in the group of each photo")
        for name, array in found.items():
            if array.dtype == "sparse":
                yield _sparse(path, name, found, size)
            elif _split(name)[0] not in groups and name.rpartition(".")[0] not in found:  # else a part of a sparse one
                yield Array(path, name, array.shape, array.dtype, _reader(path, name), array.refused)


def _split(name: str) -> tuple[str, str]:
    """Groups of an array, with the last dot, and its own name."""
    leaf = name.rpartition(".")[2]
    return name.removesuffix(leaf), leaf


def _reader(path: Path, name: str) -> Callable[[], NDArray[Any]]:
    def read() -> NDArray[Any]:
        with open_foreign(path) as found:
            return found[name].read()

    return read


def _of_photos(path: Path, photos: dict[str, Foreign]) -> Array:
    """(photos, D) array of one vector per group; the paths of the groups name the rows."""
    first = next(iter(photos.values()))
    names = tuple(array.path.strip("/").removesuffix(f"/{A_PHOTO}") for array in photos.values())

    def read() -> NDArray[Any]:
        with open_foreign(path) as found:
            return np.stack([np.ravel(found[name].read()) for name in photos])

    return Array(path, A_PHOTO, (len(photos), math.prod(first.shape)), first.dtype, read, first.refused, names)


def _sparse(path: Path, name: str, found: dict[str, Foreign], size: int) -> Array:
    """A sparse matrix of MATLAB 7.3: values, their rows, and the start of each column."""
    parts = [f"{name}.{part}" for part in ("data", "ir", "jc")]
    refused = [found[part].refused if part in found else "an empty matrix" for part in parts]
    columns = math.prod(found[parts[2]].shape) - 1 if parts[2] in found else 0
    shape = (*found[name].shape[:1], columns)

    def read() -> NDArray[Any]:
        with open_foreign(path) as there:
            values, rows, starts = (np.ravel(there[part].read()) for part in parts)
        return from_columns(values, rows, starts, shape)

    return Array(path, name, shape, "sparse", read, next(filter(None, refused), "") or too_dense(shape, size))
