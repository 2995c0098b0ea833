"""HDF5 files from other programs.

They have no digest to check, so only numeric arrays stored inside the file are read.
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


@dataclass(frozen=True)
class Foreign:
    """An array in an HDF5 file from another program.

    shape: as that program shows it; MATLAB stores the axes in reverse order.
    dtype: NumPy's name, or "sparse" for MATLAB's compressed columns. Then shape is (rows,), and the arrays are
    NAME.data,
    NAME.ir and NAME.jc.
    refused: the reason why the array must not be read, "" if it may be.
    data: the open h5py dataset.
    """

    shape: tuple[int, ...]
    dtype: str
    refused: str = ""
    data: Any = None

    def read(self) -> NDArray[Any]:
        """Read the array while the file is open."""
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
            yield name, Foreign(shape, str(node.dtype), _refusal(node, size), node)
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
    if data.dtype.kind not in "buif" or not data.size:
        return "not numbers" if data.size else "empty"
    if not set(filters) <= set(FILTERS):
        return "packed by an unknown filter"
    chunk = math.prod(data.chunks or (0,)) * data.dtype.itemsize
    holds = min(data.id.get_storage_size(), size) * (DEFLATE_MOST if filters else 1)
    return "declares more than the file holds" if max(data.nbytes, chunk) > holds else ""
