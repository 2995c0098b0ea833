"""Arrays in files from other programs: MATLAB, HDF5, .npz, .npy and .safetensors.

MATLAB's .mat files may be of any version (up to 7.2, and 7.3). A file is listed first; only selected arrays are read.
Nothing in it is executed, no link is followed, and an array that declares more than the file can hold is refused before
memory is allocated.
"""

from __future__ import annotations

import json
import math
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from cmrhash.data.matrices.array import LARGE, TEXT, Array, dense, from_columns, one_line_errors, too_dense
from cmrhash.data.matrices.hdf5_arrays import list_hdf5
from cmrhash.data.matrices.matlab_arrays import list_matlab
from cmrhash.errors import DataError
from cmrhash.storage.foreign_hdf5 import DEFLATE_MOST

HDF5_STARTS = (0, 512, 1024, 2048, 4096, 8192)  # possible positions of HDF5's signature; MATLAB's files have it at 512
HEADER_MOST = 100 << 20  # bytes of the JSON at the start of a .safetensors file
SAFETENSORS = {  # its types in NumPy's; BF16, the upper half of a float32, has none
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "|i1",
    "U64": "<u8",
    "U32": "<u4",
    "U16": "<u2",
    "U8": "|u1",
    "BOOL": "|b1",
    "BF16": "<u2",
}
SPARSE = {"data", "shape", "format"}  # members of scipy's sparse .npz, besides the positions


def list_arrays(path: Path) -> list[Array]:
    """Arrays of a file, whose format is recognised by content.

    Raises DataError for another format and for a damaged file.
    """
    if not path.is_file():
        raise DataError("no such file", path, "check the path")
    with path.open("rb") as file:
        begin = file.read(HDF5_STARTS[-1] + 8)
    with one_line_errors(path):
        if any(begin[at : at + 8] == b"\x89HDF\r\n\x1a\n" for at in HDF5_STARTS):
            return list(list_hdf5(path))
        if begin.startswith(b"\x93NUMPY"):
            return [_list_npy(path)]
        if begin.startswith(b"PK\x03\x04"):
            return list(_list_npz(path))
        if begin[8:9] == b"{" and path.suffix.lower() == ".safetensors":
            return list(_list_safetensors(path))
        if begin.startswith(b"MATLAB") or path.suffix.lower() == ".mat":
            return list(list_matlab(path))
    raise DataError("not a .mat, HDF5, .npz, .npy or .safetensors file", path, "save the features as one of these")


# ---------------------------------------------------------------------------------------------- NumPy


def _list_npy(path: Path) -> Array:
    with path.open("rb") as file:
        shape, dtype = _npy_header(file)
    refused = _refusal(shape, dtype, path.stat().st_size)

    def read() -> NDArray[Any]:
        """Map the file, so that only the rows in use are read."""
        array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
        return array

    return Array(path, path.stem, shape, _shown(dtype), read, refused)


def _list_npz(path: Path) -> Iterator[Array]:
    size = path.stat().st_size
    found: dict[str, Array] = {}
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
            found[name] = Array(path, name, shape, _shown(dtype), _npz_reader(path, name), refused)
    positions = set(found) - SPARSE
    if set(found) > SPARSE and positions in ({"indices", "indptr"}, {"row", "col"}):
        yield _sparse_npz(path, found)
    else:
        yield from found.values()


def _npz_reader(path: Path, name: str) -> Callable[[], NDArray[Any]]:
    def read() -> NDArray[Any]:
        with np.load(path, allow_pickle=False) as archive:
            array: NDArray[Any] = archive[name]
            return array

    return read


def _sparse_npz(path: Path, parts: dict[str, Array]) -> Array:
    """A sparse matrix as ``scipy.sparse.save_npz`` writes it: compressed rows or columns, or coordinates."""
    refused = next((part.refused for part in parts.values() if part.refused and part.name != "format"), "")
    if refused or parts["shape"].shape != (2,) or math.prod(parts["format"].shape) != 1:
        return Array(path, path.stem, (), "sparse", lambda: np.zeros(0), refused or "not a matrix")
    shape = tuple(int(n) for n in parts["shape"].load())
    kind = str(parts["format"].load().astype("U").item())

    def read() -> NDArray[Any]:
        values = parts["data"].load()
        if kind == "coo":
            return dense(values, parts["row"].load(), parts["col"].load(), shape)
        indices, starts = parts["indices"].load(), parts["indptr"].load()
        if kind == "csc":
            return from_columns(values, indices, starts, shape)
        return from_columns(values, indices, starts, shape[::-1]).T

    refused = "" if kind in ("csr", "csc", "coo") else f"stored as {kind!r}"
    return Array(path, path.stem, shape, "sparse", read, refused or too_dense(shape, path.stat().st_size))


def _npy_header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    else:
        shape, _, dtype = np.lib.format.read_array_header_2_0(file)
    return shape, dtype


def _shown(dtype: np.dtype[Any]) -> str:
    return TEXT if dtype.kind in "US" else str(dtype)


def _refusal(shape: tuple[int, ...], dtype: np.dtype[Any], holds: int) -> str:
    """Reason why an array must not be read, "" if it may be.

    holds: most bytes the file can contain.
    """
    if dtype.kind not in "buifUS":
        return "not numbers"
    return LARGE if math.prod(shape) * dtype.itemsize > holds else ""


# ---------------------------------------------------------------------------------------------- safetensors


def _list_safetensors(path: Path) -> Iterator[Array]:
    """Tensors by the JSON header: 8 bytes with its length, the header, then the numbers."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > min(size - 8, HEADER_MOST):
            raise ValueError("a header that is longer than the file")
        header = json.loads(file.read(length))
    for name, about in header.items():
        if name == "__metadata__":
            continue
        shape, kind = tuple(int(n) for n in about["shape"]), str(about["dtype"])
        begin, end = (8 + length + int(at) for at in about["data_offsets"])
        bytes_each = np.dtype(SAFETENSORS[kind]).itemsize if kind in SAFETENSORS else 0
        right = begin >= 8 + length and end - begin == math.prod(shape) * bytes_each
        refused = "not numbers" if not bytes_each else "" if right and end <= size else LARGE
        yield Array(path, name, shape, kind.lower(), _tensor_reader(path, shape, kind, begin), refused)


def _tensor_reader(path: Path, shape: tuple[int, ...], kind: str, begin: int) -> Callable[[], NDArray[Any]]:
    def read() -> NDArray[Any]:
        """Map the file, so that only the rows in use are read."""
        if not math.prod(shape):
            return np.zeros(shape, SAFETENSORS[kind])
        x: NDArray[Any] = np.memmap(path, SAFETENSORS[kind], "r", begin, shape)
        return (x.astype("<u4") << 16).view("<f4") if kind == "BF16" else x

    return read
