"""The feature cache: one ordinary .h5 a modality and encoder that survives a kill at any instant.

Life of a file (the only module that imports h5py):

    create   every dataset at its full size, contiguous, zero-filled and on disk, as ``X.h5.part``; a full disk shows
             here, before any encoder has run, and HDF5's own metadata never changes again
    commit   a block of rows, then its CRC-32 as a commit record, then one fsync
    resume   re-check the CRC of every committed block, encode only the others; the result has the same bytes
    seal     sha256 of the payload and a JSON manifest into the HDF5 user block, then rename to ``X.h5``

Readers see sealed files only, and check the digest before HDF5 parses a byte: it notices few flipped bits itself, and a
hostile file can crash it or make it read others. Of foreign files, which have no digest, only plain numbers are read.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from cmrhash.errors import CmrhashError, DamagedError, DataError, StaleError
from cmrhash.files import locked, sync_folder
from cmrhash.recipe import canonical, refuse_difference
from cmrhash.sealed import (
    COMMITTED,
    DELETE,
    MAGIC,
    USER_BLOCK,
    VERSION,
    payload,
    read_manifest,
    refuse_payload,
    write_block,
    write_note,
)

DEFLATE_MOST = 1032  # bytes that one deflated byte can become: a file that declares more holds less than it says
FILTERS = (1, 2, 3, 32000)  # HDF5's numbers of deflate, shuffle, fletcher32 and lzf

Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Features:
    """What a sealed feature file holds.

    x: (N, D) float32, one row an image or a caption; zeros where not valid. item: (N,) int32, the item of each row.
    valid: (N,) bool. source: (N, 16) uint8, BLAKE2b-128 of the image file's bytes or of the caption.
    ids: the items' ids, in the data set's order. recipe: all that changes the numbers. sha256: of the payload.
    """

    x: NDArray[np.float32]
    item: NDArray[np.int32]
    valid: NDArray[np.bool_]
    source: NDArray[np.uint8]
    ids: tuple[str, ...]
    recipe: Mapping[str, Any]
    sha256: str


def source_digest(content: bytes) -> NDArray[np.uint8]:
    """(16,) uint8: what a row was made from, so that a changed photo or caption is noticed."""
    return np.frombuffer(hashlib.blake2b(content, digest_size=16).digest(), np.uint8)


# ---------------------------------------------------------------------------------------------- writing


class FeatureWriter:
    """Writes one feature file in blocks of rows; resumes an unfinished one of the same recipe.

    An unfinished file of another recipe or other items is refused with StaleError, or removed if ``replace``.
    Use as a context manager: it holds the file's lock, and leaves ``X.h5.part`` behind if not sealed.
    """

    def __init__(
        self,
        path: Path,
        item: NDArray[np.int32],
        ids: tuple[str, ...],
        dim: int,
        recipe: Mapping[str, Any],
        block_rows: int,
        replace: bool = False,
    ) -> None:
        self.path, self.recipe, self.block_rows, self.replace = path, dict(recipe), block_rows, replace
        self.rows = len(item)
        self.blocks = -(-self.rows // block_rows)
        self._part = path.with_name(path.name + ".part")
        self._static = {
            "item": item.astype(np.int32),
            **_id_arrays(ids),
            "recipe": _as_bytes(canonical(recipe)),
        }
        self._shapes: dict[str, tuple[tuple[int, ...], Any]] = {
            "x": ((self.rows, dim), np.float32),
            "valid": ((self.rows,), np.uint8),
            "source": ((self.rows, 16), np.uint8),
            "_commit": ((self.blocks,), np.uint64),
        }
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> FeatureWriter:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._stack.enter_context(locked(self.path))
            if self.replace and self._part.exists() and not self._resumable():
                self._part.unlink()
            if not self._part.exists():
                self._create()
            self._file = self._stack.enter_context(h5py.File(self._part, "r+"))
            self._check_part()
            self.done = {b for b in range(self.blocks) if self._file["_commit"][b] == self._record(b)}
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def slice(self, block: int) -> slice:
        """The rows of a block."""
        return slice(block * self.block_rows, min((block + 1) * self.block_rows, self.rows))

    def committed(self, name: str, block: int) -> NDArray[Any]:
        """The rows of a committed block out of "x", "valid" or "source"."""
        array: NDArray[Any] = self._file[name][self.slice(block)]
        return array

    def commit(self, block: int, x: NDArray[np.float32], valid: NDArray[np.bool_], source: NDArray[np.uint8]) -> None:
        """Write a block and make it last. Rows that are not valid must be zeros.

        Raises CmrhashError for arrays that do not fit, which HDF5 would broadcast or cast without a word.
        """
        rows = self.slice(block)
        values: dict[str, NDArray[Any]] = {"x": x, "valid": valid.astype(np.uint8), "source": source}
        for name, value in values.items():
            shape, dtype = self._shapes[name]
            if value.shape != (rows.stop - rows.start, *shape[1:]) or value.dtype != dtype:
                raise CmrhashError(f"block of {name}: {value.shape} {value.dtype}", self._part, "this is a bug")
        if not np.isfinite(x).all() or x[~valid].any():
            raise CmrhashError("features must be finite, and zero where not valid", self._part, "this is a bug")
        for name, value in values.items():
            self._file[name][rows] = value
        self._file.flush()
        self._file["_commit"][block] = self._record(block)
        self._sync()
        self.done.add(block)

    def seal(self, made_with: Mapping[str, Any]) -> None:
        """Turn the part into the finished file. made_with: versions and devices, told but not compared."""
        missing = self.blocks - len(self.done)
        if missing:
            raise CmrhashError(f"{missing} of {self.blocks} blocks are missing", self._part, "this is a bug")
        counts = {"rows": self.rows, "ok": int(self._file["valid"][...].sum()), "dim": self._shapes["x"][0][1]}
        self._file.close()
        manifest = {"kind": "features", "recipe": self.recipe, "made_with": dict(made_with), **counts}
        _seal(self._part, self.path, manifest)

    def _create(self) -> None:
        new = self._part.with_name(self._part.name + ".new")
        arrays: dict[str, tuple[tuple[int, ...], Any]] = {n: (a.shape, a.dtype) for n, a in self._static.items()}
        arrays |= self._shapes
        need = sum(int(np.prod(shape)) * np.dtype(dtype).itemsize for shape, dtype in arrays.values())
        try:
            _reserve(new, need)
            with h5py.File(new, "w", userblock_size=USER_BLOCK) as file:
                for name, (shape, dtype) in arrays.items():
                    _preallocate(file, name, shape, np.dtype(dtype))
                for name, value in self._static.items():
                    file[name][...] = value
                file.flush()
                os.fsync(file.id.get_vfd_handle())
                commits_at = file["_commit"].id.get_offset()
            write_note(new, self.recipe, self.rows, self.blocks, commits_at)
        except (OSError, ValueError, RuntimeError) as error:
            new.unlink(missing_ok=True)
            fix = "free some space or choose another --cache"
            raise CmrhashError(f"cannot set aside {need / 1e6:.1f} MB ({error})", new, fix) from None
        os.replace(new, self._part)
        sync_folder(self.path.parent)

    def _resumable(self) -> bool:
        with h5py.File(self._part, "r") as self._file:
            try:
                self._check_part()
            except StaleError:
                return False
        return True

    def _check_part(self) -> None:
        """An unfinished file must be of this recipe; then its static arrays are these ones, to the byte."""
        recipe = json.loads(bytes(self._file["recipe"][...])) if "recipe" in self._file else {}
        refuse_difference(recipe, self.recipe, self._part, "unfinished file")
        for name, value in self._static.items():
            if not np.array_equal(self._file[name][...], value):
                raise StaleError(f"unfinished file of other items ('{name}' differs)", self._part, "use --overwrite")

    def _record(self, block: int) -> int:
        """The commit record of what the file holds now: CRC-32 of every array's rows, and a bit that says "done"."""
        crc, rows = 0, self.slice(block)
        for name in ("x", "valid", "source", "item"):
            crc = zlib.crc32(self._file[name][rows].tobytes(), crc)
        return crc | COMMITTED

    def _sync(self) -> None:
        self._file.flush()
        os.fsync(self._file.id.get_vfd_handle())


def _reserve(path: Path, size: int) -> None:
    """Raise OSError if the disk has no room for arrays of that many bytes: HDF5 itself, once a write has failed,
    prints a traceback for every handle that it cannot close.
    """
    with path.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, USER_BLOCK + size + (1 << 16))


def _preallocate(file: h5py.File, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    """A contiguous dataset whose bytes are on disk, zeros, before it is used; no time stamps."""
    plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plan.set_layout(h5py.h5d.CONTIGUOUS)
    plan.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    plan.set_fill_time(h5py.h5d.FILL_TIME_ALLOC)
    plan.set_obj_track_times(False)
    space = h5py.h5s.create_simple(shape)
    h5py.h5d.create(file.id, name.encode(), h5py.h5t.py_create(dtype), space, plan)


def write_sealed(path: Path, arrays: Arrays, manifest: Mapping[str, Any]) -> None:
    """Write arrays that are made in one go (codes) as a sealed file; complete or not there at all."""
    part = path.with_name(path.name + ".part")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        _reserve(part, sum(value.nbytes for value in arrays.values()))
        with h5py.File(part, "w", userblock_size=USER_BLOCK) as file:
            for name, value in arrays.items():
                _preallocate(file, name, value.shape, value.dtype)
                file[name][...] = value
            file.flush()
            os.fsync(file.id.get_vfd_handle())
        _seal(part, path, manifest)
    except (OSError, ValueError, RuntimeError) as error:
        part.unlink(missing_ok=True)
        raise CmrhashError(f"cannot write ({error})", path, "free some space or choose another folder") from None


def _seal(part: Path, path: Path, manifest: Mapping[str, Any]) -> None:
    with part.open("r+b") as file:
        digest, size = payload(file)
        write_block(file, MAGIC, {"version": VERSION, **manifest, "payload_sha256": digest, "payload_bytes": size})
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)
    sync_folder(path.parent)


# ---------------------------------------------------------------------------------------------- reading


@contextlib.contextmanager
def open_sealed(path: Path) -> Iterator[tuple[dict[str, Any], dict[str, h5py.Dataset]]]:
    """Manifest and arrays of a sealed file, after its digest has been checked; what is sliced of an array is read."""
    manifest = read_manifest(path)
    with path.open("rb") as file:
        refuse_payload(file, manifest, path)
        with h5py.File(file, "r") as h5:
            yield manifest, {name: _plain(h5, name, manifest["payload_bytes"], path) for name in h5}


def read_sealed(path: Path) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """The same, with all arrays in memory."""
    with open_sealed(path) as (manifest, arrays):
        return manifest, {name: data[...] for name, data in arrays.items()}


def read_features(path: Path) -> Features:
    """Read a sealed feature file whole (a few hundred MB at most; training works on it in memory)."""
    manifest, a = read_sealed(path)
    if manifest.get("kind") != "features":
        raise DataError("not a feature file", path, "it is another artifact of cmrhash")
    blob, ends = bytes(a["ids"]), a["id_ends"].tolist()
    ids = tuple(blob[i:j].decode() for i, j in zip([0, *ends], ends, strict=False))
    valid = a["valid"].astype(bool)
    return Features(a["x"], a["item"], valid, a["source"], ids, manifest["recipe"], manifest["payload_sha256"])


def _plain(h5: h5py.File, name: str, size: int, path: Path) -> h5py.Dataset:
    """The dataset, if it is nothing but bytes inside this file: no links, external storage or virtual parts."""
    if not isinstance(h5.get(name, getlink=True), h5py.HardLink) or not isinstance(h5[name], h5py.Dataset):
        raise DamagedError(f"'{name}' is not a plain dataset", path, DELETE)
    data = h5[name]
    if data.external is not None or data.is_virtual or data.dtype.kind not in "uif" or data.nbytes > size:
        raise DamagedError(f"'{name}' is not a plain dataset", path, DELETE)
    return data


# ---------------------------------------------------------------------------------------------- files of others


@dataclass(frozen=True)
class Foreign:
    """An array in an HDF5 file that others wrote. shape: as that program shows it, MATLAB stores the axes in reverse.

    dtype: "sparse" for MATLAB's compressed columns; then shape is (rows,), and the arrays are NAME.data, NAME.ir and
    NAME.jc. refused: why it must not be read, or "".
    """

    shape: tuple[int, ...]
    dtype: str
    refused: str = ""
    data: Any = None  # the open dataset

    def read(self) -> NDArray[Any]:
        """The array, as long as the file is open."""
        array: NDArray[Any] = self.data[...]
        return array.T if "MATLAB_class" in self.data.attrs else array


@contextlib.contextmanager
def open_foreign(path: Path) -> Iterator[dict[str, Foreign]]:
    """Every array of an HDF5 file by its path, "." between groups. Raises DataError if it is none, or damaged."""
    try:
        with h5py.File(path, "r") as h5:
            yield dict(_walk(h5, path.stat().st_size, set()))
    except (OSError, RuntimeError, ValueError, TypeError, KeyError) as error:
        raise DataError(f"not a readable HDF5 file ({str(error)[:120]})", path, "damaged? fetch it again") from None


def _walk(group: h5py.Group, size: int, seen: set[int], prefix: str = "") -> Iterator[tuple[str, Foreign]]:
    """What lies below a group, each group once, however often it is linked."""
    seen.add(h5py.h5o.get_info(group.id).addr)
    for key in (key for key in group if not key.startswith("#")):  # "#refs#": what MATLAB's cells point to
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
    """Why a dataset is not read: it must be numbers, and no more of them than its bytes can hold."""
    plan = data.id.get_create_plist()
    filters = [plan.get_filter(n)[0] for n in range(plan.get_nfilters())]
    if data.dtype.kind not in "buif" or not data.size:
        return "not numbers" if data.size else "empty"
    if not set(filters) <= set(FILTERS):
        return "packed by an unknown filter"
    chunk = math.prod(data.chunks or (0,)) * data.dtype.itemsize
    holds = min(data.id.get_storage_size(), size) * (DEFLATE_MOST if filters else 1)
    return "declares more than the file holds" if max(data.nbytes, chunk) > holds else ""


# ---------------------------------------------------------------------------------------------- small parts


def _id_arrays(ids: tuple[str, ...]) -> dict[str, NDArray[Any]]:
    """Ids as one UTF-8 blob and the end of each: fixed-width HDF5 strings would cut long ones without a word."""
    lengths = np.fromiter((len(i.encode()) for i in ids), np.int64, len(ids))
    return {"ids": _as_bytes("".join(ids).encode()), "id_ends": np.cumsum(lengths)}


def _as_bytes(content: bytes) -> NDArray[np.uint8]:
    return np.frombuffer(content, np.uint8)
