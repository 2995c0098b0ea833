"""HDF5 files from other programs.

They have no digest to check, so only arrays of numbers and strings stored inside the file are read.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from cmrhash.errors import DataError

DEFLATE_MOST = 1032  # most bytes that one deflated byte can expand to
FILTERS = (1, 2, 3, 32000)  # HDF5's filter ids of deflate, shuffle, fletcher32 and lzf
STRINGS_AT_ONCE = 256  # rows
STRINGS_MOST = 1 << 30  # bytes of the strings of one array, which may refer to the same place many times


@dataclass(frozen=True)
class Foreign:
    """An array in an HDF5 file from another program.

    shape: as that program shows it; MATLAB stores the axes in reverse order.
    dtype: NumPy's name; "text" for strings, MATLAB's characters (a row each) and cells; "sparse" for MATLAB's
    compressed columns: then shape is (rows,), and the arrays are NAME.data, NAME.ir and NAME.jc.
    refused: the reason why the array must not be read, "" if it may be.
    data: the open h5py dataset. path: its path in the file, with "/" between groups.
    """

    shape: tuple[int, ...]
    dtype: str
    refused: str = ""
    data: Any = None
    path: str = ""

    def read(self) -> NDArray[Any]:
        """Read the array while the file is open; text as an object array of strings, or of arrays of them."""
        if self.dtype == "text":
            return _texts(self.data)
        array: NDArray[Any] = self.data[...]
        return array.T if "MATLAB_class" in self.data.attrs else array


@contextlib.contextmanager
def open_foreign(path: Path) -> Iterator[dict[str, Foreign]]:
    """Open an HDF5 file; yield its arrays by path, with "." between groups.

    Raises DataError if the file is damaged or is not HDF5.
    """
    try:
        with h5py.File(path, "r") as h5:
            yield dict(_walk(h5, path.stat().st_size, set()))
    except (OSError, RuntimeError, ValueError, TypeError, KeyError) as error:
        raise DataError(
            f"not a readable HDF5 file ({str(error)[:120]})", path, "it may be damaged: get the file again"
        ) from None


def _walk(group: h5py.Group, size: int, seen: set[int], prefix: str = "") -> Iterator[tuple[str, Foreign]]:
    """Yield the arrays below a group; a group with several links is visited once."""
    seen.add(h5py.h5o.get_info(group.id).addr)
    for key in (key for key in group if not key.startswith("#")):  # MATLAB keeps the content of cell arrays in "#refs#"
        name = f"{prefix}{key}"
        node = group[key] if isinstance(group.get(key, getlink=True), h5py.HardLink) else None
        if node is None or (isinstance(node, h5py.Dataset) and (node.external is not None or node.is_virtual)):
            yield name, Foreign((), "a link", "its data lie elsewhere")
        elif isinstance(node, h5py.Dataset):
            shape = (node.shape or ())[:: -1 if "MATLAB_class" in node.attrs else 1]
            shape, dtype = (shape[:1] if _matlab_class(node) == "char" else shape), str(node.dtype)
            yield name, Foreign(shape, "text" if _is_text(node) else dtype, _refusal(node, size), node, node.name)
        elif isinstance(node, h5py.Group) and h5py.h5o.get_info(node.id).addr not in seen:
            if "MATLAB_sparse" in node.attrs and node.attrs.get_id("MATLAB_sparse").dtype.kind in "iu":
                yield name, Foreign(tuple(map(int, np.ravel(node.attrs["MATLAB_sparse"]))), "sparse")
            yield from _walk(node, size, seen, f"{name}.")


def _refusal(data: h5py.Dataset, size: int) -> str:
    """Reason why a dataset must not be read, "" if it may be.

    It must be numeric, use known filters, and declare no more bytes than the file can hold.
    """
    plan = data.id.get_create_plist()
    filters = [plan.get_filter(n)[0] for n in range(plan.get_nfilters())]
    if not (data.dtype.kind in "buif" or _is_text(data)) or not data.size:
        return "not numbers" if data.size else "empty"
    if not set(filters) <= set(FILTERS):
        return "packed by an unknown filter"
    chunk = math.prod(data.chunks or (0,)) * data.dtype.itemsize
    holds = min(data.id.get_storage_size(), size) * (DEFLATE_MOST if filters else 1)
    return "declares more than the file holds" if max(data.nbytes, chunk) > holds else ""


# ---------------------------------------------------------------------------------------------- strings


def _matlab_class(node: Any) -> str:
    """MATLAB's class of an array, such as "char"; "" in files of other programs."""
    known = "MATLAB_class" in node.attrs and node.attrs.get_id("MATLAB_class").dtype.kind == "S"
    return bytes(node.attrs["MATLAB_class"]).decode("latin-1") if known else ""


def _is_text(data: h5py.Dataset) -> bool:
    """Whether a dataset holds strings: HDF5's own, MATLAB's characters, or references to cells."""
    if _matlab_class(data) == "char":
        return bool(data.dtype.kind == "u")
    cells = h5py.check_ref_dtype(data.dtype) is h5py.Reference and _matlab_class(data) == "cell"
    return cells or h5py.check_string_dtype(data.dtype) is not None


def _texts(data: h5py.Dataset) -> NDArray[Any]:
    """Strings of a dataset in an object array; those of a cell are an array in it.

    Raises ValueError for more than STRINGS_MOST bytes, and for cells of cells of cells.
    """
    if _matlab_class(data) == "char":
        return np.array(_characters(data), object)
    found, left = [], STRINGS_MOST
    for first in range(0, len(data), STRINGS_AT_ONCE) if data.ndim else ():
        block = data[first : first + STRINGS_AT_ONCE]
        if _matlab_class(data) == "cell":
            for at, reference in np.ndenumerate(block):
                block[at] = _cell(data.file[reference], data.file.id.get_filesize())
        left -= sum(len(str(text)) for cell in block.flat for text in (cell if isinstance(cell, list) else [cell]))
        if left < 0:
            raise ValueError("strings that are longer than the file")
        found.append(block)
    array = np.concatenate(found) if found else np.ravel(data[()])
    return array.T if "MATLAB_class" in data.attrs else array


def _cell(node: Any, size: int, depth: int = 1) -> list[Any]:
    """Strings or numbers of a cell, which may hold cells itself."""
    if not isinstance(node, h5py.Dataset) or node.external is not None or node.is_virtual:
        raise ValueError("a cell that is no array")
    if "MATLAB_empty" in node.attrs:
        return []
    if reason := _refusal(node, size):
        raise ValueError(f"a cell that cannot be read ({reason})")
    if _matlab_class(node) == "char":
        return _characters(node)
    if not _is_text(node):
        return list(np.ravel(node[...]).tolist())
    if depth > 1:
        raise ValueError("cells that hold cells that hold cells")
    return [text for ref in np.ravel(node[...]) for text in _cell(node.file[ref], size, depth + 1)]


def _characters(node: h5py.Dataset) -> list[str]:
    """Strings of MATLAB's characters, which are stored a column each, in UTF-16."""
    rows = np.atleast_2d(np.asarray(node[...], "<u2").T)
    return [row.tobytes().decode("utf-16-le", "replace") for row in rows]
