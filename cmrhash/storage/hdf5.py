"""Sealed HDF5 files: written atomically with a digest, which is checked before reading.

HDF5 itself notices few flipped bits, and a hostile file can crash it or make it read other files. Therefore the digest
is checked before HDF5 parses any byte.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from cmrhash.errors import CmrhashError, DamagedError
from cmrhash.storage.files import make_folder, move, sync
from cmrhash.storage.sealed import (
    DELETE,
    MAGIC,
    USER_BLOCK,
    VERSION,
    payload,
    read_manifest,
    refuse_payload,
    write_block,
)

Arrays = Mapping[str, NDArray[Any]]
UNREADABLE = (OSError, RuntimeError, LookupError, ValueError, TypeError)  # errors of h5py


# ---------------------------------------------------------------------------------------------- writing


def write_sealed(path: Path, arrays: Arrays, manifest: Mapping[str, Any]) -> None:
    """Write complete arrays (for example codes) as a sealed file, atomically.

    Raises CmrhashError if the file cannot be written.
    """
    part = path.with_name(path.name + ".part")
    make_folder(path.parent)
    try:
        reserve(part, sum(value.nbytes for value in arrays.values()))
        with h5py.File(part, "w", userblock_size=USER_BLOCK) as file:
            for name, value in arrays.items():
                preallocate(file, name, value.shape, value.dtype)
                file[name][...] = value
        sync(part)
        seal(part, path, manifest)
    except (OSError, ValueError, RuntimeError) as error:
        part.unlink(missing_ok=True)
        raise CmrhashError(f"cannot write ({error})", path, "free some space or choose another folder") from None


def seal(part: Path, path: Path, manifest: Mapping[str, Any]) -> None:
    """Write digest and manifest into a finished partial file and rename it to ``path``."""
    with part.open("r+b") as file:
        digest, size = payload(file)
        write_block(file, MAGIC, {"version": VERSION, **manifest, "payload_sha256": digest, "payload_bytes": size})
        file.flush()
        os.fsync(file.fileno())
    move(part, path)


@contextlib.contextmanager
def write_errors(path: Path) -> Iterator[None]:
    """Raise a failed write as CmrhashError."""
    try:
        yield
    except OSError as error:
        fix = "free some space, then rerun the command to resume"
        raise CmrhashError(f"cannot write ({error.strerror})", path, fix) from None


def reserve(path: Path, size: int) -> None:
    """Allocate disk space for arrays of ``size`` bytes; raise OSError if it is missing.

    After a failed write HDF5 prints a traceback for every handle that it cannot close; allocating first avoids that.
    """
    size += USER_BLOCK + (1 << 16)
    with path.open("wb") as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)
        elif shutil.disk_usage(path.parent).free < size:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def preallocate(file: h5py.File, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    """Create a contiguous dataset of zeros, allocated on disk at once, without time stamps."""
    plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plan.set_layout(h5py.h5d.CONTIGUOUS)
    plan.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    plan.set_fill_time(h5py.h5d.FILL_TIME_ALLOC)
    plan.set_obj_track_times(False)
    space = h5py.h5s.create_simple(shape)
    h5py.h5d.create(file.id, name.encode(), h5py.h5t.py_create(dtype), space, plan)


# ---------------------------------------------------------------------------------------------- reading


@contextlib.contextmanager
def open_sealed(
    path: Path, manifest: Mapping[str, Any] | None = None
) -> Iterator[tuple[Mapping[str, Any], dict[str, h5py.Dataset]]]:
    """Open a sealed file after checking its digest; yield its manifest and its datasets.

    Slicing a dataset reads only that slice.
    manifest: the file's manifest, if it has already been read.
    Raises DataError, DamagedError or StaleError as ``read_manifest`` does.
    """
    manifest = manifest or read_manifest(path)
    with path.open("rb") as file:
        refuse_payload(file, manifest, path)
        with contextlib.ExitStack() as stack:
            try:  # the digest may fit and the bytes be no HDF5: of another program
                h5 = stack.enter_context(h5py.File(file, "r"))
                arrays = {name: _plain(h5, name, manifest["payload_bytes"], path) for name in h5}
            except UNREADABLE as error:
                raise DamagedError(f"unreadable ({str(error)[:120]})", path, DELETE) from None
            yield manifest, arrays


def read_sealed(
    path: Path, manifest: Mapping[str, Any] | None = None
) -> tuple[Mapping[str, Any], dict[str, NDArray[Any]]]:
    """Read a sealed file: its manifest, and all arrays in memory."""
    with open_sealed(path, manifest) as (manifest, arrays):
        return manifest, {name: data[...] for name, data in arrays.items()}


def _plain(h5: h5py.File, name: str, size: int, path: Path) -> h5py.Dataset:
    """The dataset, if all its bytes are stored plainly in this file.

    Links, external storage, virtual datasets and chunked (compressed) datasets raise DamagedError.
    """
    if not isinstance(h5.get(name, getlink=True), h5py.HardLink) or not isinstance(h5[name], h5py.Dataset):
        raise DamagedError(f"'{name}' is not a plain dataset", path, DELETE)
    data = h5[name]
    elsewhere = data.external is not None or data.is_virtual or data.chunks is not None
    if elsewhere or data.dtype.kind not in "uif" or data.shape is None or data.nbytes > size:
        raise DamagedError(f"'{name}' is not a plain dataset", path, DELETE)
    start = data.id.get_offset()  # None: not stored in one piece
    if data.nbytes and (start is None or start + data.nbytes > USER_BLOCK + size):
        raise DamagedError(f"'{name}' is not a plain dataset", path, DELETE)
    return data
