"""Feature files: one HDF5 file per view and encoder that survives a kill at any instant.

Life of a file:

    create   every dataset at full size, contiguous and zero-filled, in ``X.h5.part``: a full disk fails here, before
             any encoder runs, and HDF5's own metadata never changes afterwards
    commit   a block of rows, then its CRC-32 as commit record, then one fsync; written straight to the file offsets,
             because HDF5 cannot close a file after a failed write
    resume   check the CRC of every committed block and extract only the other blocks; the bytes come out identical
    seal     write the payload's sha256 and a JSON manifest into the HDF5 user block, then rename to ``X.h5``

Readers open sealed files only and check the digest before HDF5 parses a byte: HDF5 itself notices few flipped bits, and
a hostile file can crash it or make it read other files. The constant parts of an unfinished file are checked likewise.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from cmrhash.config import READY, STORE_DTYPE
from cmrhash.data.view import View
from cmrhash.errors import CmrhashError, DamagedError, DataError, StaleError
from cmrhash.features import half
from cmrhash.storage import hdf5
from cmrhash.storage.files import locked, make_folder, move, sync
from cmrhash.storage.recipes import canonical, fingerprint, refuse_difference
from cmrhash.storage.sealed import (
    COMMITTED,
    DELETE,
    OVERWRITE,
    USER_BLOCK,
    check_frame,
    read_manifest,
    write_note,
)

BESIDE = ("items", STORE_DTYPE, "runtime")  # fields of a recipe that do not tell whether trained heads fit
RECORDED = ("x", "valid", "source", "item")  # arrays with one entry per row, which a commit record covers
LAYOUT = {"x": (np.float32, 2), "item": (np.int32, 1), "valid": (np.uint8, 1), "source": (np.uint8, 2)}
LAYOUT |= {"ids": (np.uint8, 1), "id_ends": (np.int64, 1)}  # dtype and number of axes
HALF = {"x": (np.float16, 2), "scale": (np.float32, 2)}  # in place of x, if the recipe's store_dtype is float16


@dataclass(frozen=True)
class Features:
    """Content of a sealed feature file.

    x: (N, D) float32, one row per image or caption, zeros where not valid. item: (N,) int32, the item of each row.
    valid: (N,) bool. source: (N, 16) uint8, BLAKE2b-128 of the image file's bytes or of the caption. ids: the items'
    ids in the data set's order.
    """

    header: FeatureHeader
    x: NDArray[np.float32]
    item: NDArray[np.int32]
    valid: NDArray[np.bool_]
    source: NDArray[np.uint8]
    ids: tuple[str, ...]

    def __repr__(self) -> str:
        return f"Features({self.header.path.name!r}, {self.x.shape[0]} x {self.x.shape[1]})"

    @property
    def recipe(self) -> Mapping[str, Any]:
        """All settings that change the features."""
        return self.header.recipe

    @property
    def sha256(self) -> str:
        """SHA-256 of the payload."""
        return self.header.sha256


@dataclass(frozen=True)
class FeatureHeader:
    """Header of a sealed feature file, read without its payload.

    encoder: the encoder's name in the file name; recipe: all settings that change the features; made_with: versions,
    device and source of the weights; sha256: of the payload; rows: number of images or captions; ok: number of valid
    rows; dim: features per row; manifest: all of it, as stored.
    """

    path: Path
    view: View
    encoder: str
    recipe: Mapping[str, Any]
    made_with: Mapping[str, Any]
    sha256: str
    rows: int
    ok: int
    dim: int
    manifest: Mapping[str, Any] = field(repr=False, compare=False)

    @property
    def architecture(self) -> str:
        """Architecture of the encoder, such as "resnet18"; its name for ready-made features."""
        return str(self.recipe["encoder"])

    @property
    def weights(self) -> str:
        """Kind of the encoder's weights: "random", "tuned", ..., or "ready" for ready-made features."""
        return str(self.recipe["weights"])

    @property
    def weights_sha256(self) -> str:
        """SHA-256 of the encoder's weights, "" if the recipe has none."""
        return str(self.recipe.get("weights_sha256", ""))

    @property
    def made_as(self) -> str:
        """Fingerprint of the recipe, whatever the items, the runtime and the number type on disk."""
        return fingerprint({key: value for key, value in self.recipe.items() if key not in BESIDE})

    @property
    def is_ready_made(self) -> bool:
        """Whether the features come from elsewhere, made by an encoder unknown to cmrhash."""
        return self.weights == READY

    @property
    def source(self) -> str:
        """Path or public name of the encoder's weights, "" if the file does not record it."""
        return str(self.made_with.get("source") or "")


def read_header(path: Path) -> FeatureHeader:
    """Read the header of a sealed feature file; raises DataError for other artifacts, DamagedError and StaleError."""
    return header_of(path, read_manifest(path))


def header_of(path: Path, manifest: Mapping[str, Any]) -> FeatureHeader:
    """Build the header of a feature file from its manifest; raises DataError or DamagedError."""
    if manifest.get("kind") != "features":
        raise DataError("not a feature file", path, "it is another kind of cmrhash file")
    try:
        recipe = manifest["recipe"]
        view = View.IMAGE if recipe["kind"] == "image" else View.text(recipe["lang"])
        rows, ok, dim = (int(manifest[key]) for key in ("rows", "ok", "dim"))
        made_with, sha = manifest["made_with"], str(manifest["payload_sha256"])
        return FeatureHeader(path, view, view.encoder_of(path.name), recipe, made_with, sha, rows, ok, dim, manifest)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DamagedError(f"not the manifest of a feature file ({error})", path, DELETE) from None


def source_digest(content: bytes) -> NDArray[np.uint8]:
    """BLAKE2b-128 of a row's source, (16,) uint8, to detect a changed photo or caption."""
    return np.frombuffer(hashlib.blake2b(content, digest_size=16).digest(), np.uint8)


# ---------------------------------------------------------------------------------------------- writing


class FeatureWriter:
    """Write one feature file in blocks of rows, or resume an unfinished one.

    Use it as a context manager: it holds the file's lock and leaves ``X.h5.part`` behind unless sealed. Raises
    StaleError for an unfinished file of another recipe or other items and DamagedError for a damaged one, or removes
    such a file with ``replace``.
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
            "recipe": np.frombuffer(canonical(recipe), np.uint8),
        }
        self._half = recipe.get(STORE_DTYPE) == "float16"
        self._shapes: dict[str, tuple[tuple[int, ...], Any]] = {
            "item": ((self.rows,), np.int32),
            "x": ((self.rows, dim), np.float16 if self._half else np.float32),
            "valid": ((self.rows,), np.uint8),
            "source": ((self.rows, 16), np.uint8),
            "_commit": ((self.blocks,), np.uint64),
            **({"scale": ((self.blocks, dim), np.float32)} if self._half else {}),
        }
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> FeatureWriter:
        make_folder(self.path.parent)
        try:
            self._stack.enter_context(locked(self.path))
            if self.replace and self._part.exists() and not self._resumable():
                self._part.unlink()
            if not self._part.exists():
                self._create()
            check_frame(self._part)
            with h5py.File(self._part, "r") as self._file:
                self._check_part()
                self._places = {name: self._file[name].id.get_offset() for name in self._shapes}
            self._disk = self._stack.enter_context(self._part.open("r+b", buffering=0))
            self.done = {block for block in range(self.blocks) if self._intact(block)}
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def slice(self, block: int) -> slice:
        """Rows of a block."""
        return slice(block * self.block_rows, min((block + 1) * self.block_rows, self.rows))

    def committed(self, name: str, block: int) -> NDArray[Any]:
        """Read the rows of a committed block from "x" (as float32), "valid" or "source"."""
        rows = self.slice(block)
        found = self._rows(name, rows.start, rows.stop)
        return found * self._rows("scale", block, block + 1) if name == "x" and self._half else found

    def commit(self, block: int, x: NDArray[np.float32], valid: NDArray[np.bool_], source: NDArray[np.uint8]) -> None:
        """Write a block durably; rows that are not valid must be zeros.

        Raises CmrhashError for arrays that do not fit and for a failed write.
        """
        rows = self.slice(block)
        values: dict[str, NDArray[Any]] = {"x": x, "valid": valid.astype(np.uint8), "source": source}
        if self._half and x.dtype == np.float32:
            values["x"], scale = half.encode(x)
        for name, value in values.items():
            shape, dtype = self._shapes[name]
            if value.shape != (rows.stop - rows.start, *shape[1:]) or value.dtype != dtype:
                raise CmrhashError(f"block of {name}: {value.shape} {value.dtype}", self._part, "this is a bug")
        if not np.isfinite(x).all() or x[~valid].any():
            raise CmrhashError("features must be finite, and zero where not valid", self._part, "this is a bug")
        with hdf5.write_errors(self._part):
            for name, value in values.items():
                self._write(name, rows.start, value)
            if self._half:
                self._write("scale", block, scale)
            self._write("_commit", block, np.uint64(self._record(block)))
            self._sync()
        self.done.add(block)

    def seal(self, made_with: Mapping[str, Any]) -> None:
        """Finish the file. made_with: versions and devices, recorded but never compared."""
        missing = self.blocks - len(self.done)
        if missing:
            raise CmrhashError(f"{missing} of {self.blocks} blocks are missing", self._part, "this is a bug")
        ok = sum(int(self.committed("valid", block).sum()) for block in range(self.blocks))
        counts = {"rows": self.rows, "ok": ok, "dim": self._shapes["x"][0][1]}
        more = {"block_rows": self.block_rows} if self._half else {}
        manifest = {"kind": "features", "recipe": self.recipe, "made_with": dict(made_with), **counts, **more}
        self._disk.close()  # Windows cannot rename an open file
        with hdf5.write_errors(self._part):
            hdf5.seal(self._part, self.path, manifest)

    def _create(self) -> None:
        new = self._part.with_name(self._part.name + ".new")
        arrays = {name: (value.shape, value.dtype) for name, value in self._static.items()} | self._shapes
        need = sum(int(np.prod(shape)) * np.dtype(dtype).itemsize for shape, dtype in arrays.values())
        try:
            hdf5.reserve(new, need)
            with h5py.File(new, "w", userblock_size=USER_BLOCK) as file:
                for name, (shape, dtype) in arrays.items():
                    hdf5.preallocate(file, name, shape, np.dtype(dtype))
                for name, value in self._static.items():
                    file[name][...] = value
                places = {name: (file[name].id.get_offset(), file[name].nbytes) for name in self._shapes}
            sync(new)
            commits_at, changing = places["_commit"][0], [places[name] for name in places if name != "item"]
            write_note(new, self.recipe, self.rows, self.blocks, commits_at, [p for p in changing if p[1]])
        except (OSError, ValueError, RuntimeError) as error:
            new.unlink(missing_ok=True)
            fix = "free some space or choose another `cache`"
            raise CmrhashError(f"cannot reserve {need / 1e6:.1f} MB ({error})", new, fix) from None
        move(new, self._part)

    def _resumable(self) -> bool:
        try:
            check_frame(self._part)
            with h5py.File(self._part, "r") as self._file:
                self._check_part()
        except (StaleError, DamagedError):
            return False
        return True

    def _check_part(self) -> None:
        """Refuse an unfinished file of another recipe or with other constant arrays."""
        recipe = json.loads(bytes(self._file["recipe"][...])) if "recipe" in self._file else {}
        refuse_difference(recipe, self.recipe, self._part, "unfinished file")
        for name, value in self._static.items():
            if not np.array_equal(self._file[name][...], value):
                raise StaleError(f"unfinished file of other items ('{name}' differs)", self._part, OVERWRITE)
        for name, (shape, dtype) in self._shapes.items():
            found = self._file[name].shape, self._file[name].dtype
            if found != (shape, dtype):
                raise StaleError(f"unfinished file with {name} = {found}, not {shape}", self._part, OVERWRITE)

    def _intact(self, block: int) -> bool:
        """Whether a block is committed and unchanged since."""
        return bool(self._rows("_commit", block, block + 1) == self._record(block))

    def _record(self, block: int) -> int:
        """Commit record of the block on disk: CRC-32 of its arrays' rows, and the COMMITTED bit."""
        crc, rows = 0, self.slice(block)
        for name in RECORDED:
            crc = zlib.crc32(self._rows(name, rows.start, rows.stop).tobytes(), crc)
        return zlib.crc32(self._scales(block), crc) | COMMITTED

    def _scales(self, block: int) -> bytes:
        return self._rows("scale", block, block + 1).tobytes() if self._half else b""

    def _sync(self) -> None:
        os.fsync(self._disk.fileno())

    def _rows(self, name: str, start: int, stop: int) -> NDArray[Any]:
        """Read rows of an array from disk."""
        (_, *row), dtype = self._shapes[name]
        size = math.prod(row) * np.dtype(dtype).itemsize
        self._disk.seek(self._places[name] + start * size)
        content = self._disk.read((stop - start) * size)
        return np.frombuffer(content, dtype).reshape(-1, *row)

    def _write(self, name: str, first: int, value: NDArray[Any] | np.uint64) -> None:
        """Write rows of an array to disk, from row ``first`` on."""
        (_, *row), dtype = self._shapes[name]
        content = memoryview(value.tobytes())
        self._disk.seek(self._places[name] + first * math.prod(row) * np.dtype(dtype).itemsize)
        while content:
            content = content[self._disk.write(content) :]


# ---------------------------------------------------------------------------------------------- reading


@contextlib.contextmanager
def open_features(
    path: Path, header: FeatureHeader | None = None
) -> Iterator[tuple[FeatureHeader, dict[str, h5py.Dataset | half.HalfRows]]]:
    """Yield header and arrays of a sealed feature file or shard after checking its digest; x is read as float32.

    header: of this file, if it was read before.
    """
    header = header or read_header(path)
    with hdf5.open_sealed(path, header.manifest) as (_, arrays):
        layout = LAYOUT | HALF if header.recipe.get(STORE_DTYPE) == "float16" else LAYOUT
        fitting = layout.keys() <= arrays.keys() and all(
            arrays[name].dtype == dtype and arrays[name].ndim == ndim for name, (dtype, ndim) in layout.items()
        )
        if not fitting or len({len(arrays[name]) for name in ("x", "item", "valid", "source")}) > 1:
            raise _other_arrays(path)
        if layout is not LAYOUT:
            arrays["x"] = half.of_file(arrays["x"], arrays["scale"], header.manifest.get("block_rows"), path)
        yield header, arrays


def read_features(path: Path, header: FeatureHeader | None = None) -> Features:
    """Read a whole sealed feature file into memory (a few hundred MB at most). header: if it was read before."""
    with open_features(path, header) as (header, arrays):
        a = {name: arrays[name][...] for name in LAYOUT}
    blob, ends = bytes(a["ids"]), a["id_ends"].tolist()
    try:
        ids = tuple(blob[i:j].decode() for i, j in zip([0, *ends], ends, strict=False))
    except UnicodeDecodeError:
        raise _other_arrays(path) from None
    if (a["item"] < 0).any() or (a["item"] >= len(ids)).any():
        raise _other_arrays(path)
    valid = a["valid"].astype(bool)
    return Features(header, a["x"], a["item"], valid, a["source"], ids)


def _other_arrays(path: Path) -> DamagedError:
    return DamagedError("its arrays are not those of a feature file", path, DELETE)


# ---------------------------------------------------------------------------------------------- helpers


def _id_arrays(ids: tuple[str, ...]) -> dict[str, NDArray[Any]]:
    """Ids as one UTF-8 blob with the end of each: fixed-width HDF5 strings truncate silently."""
    lengths = np.fromiter((len(i.encode()) for i in ids), np.int64, len(ids))
    return {"ids": np.frombuffer("".join(ids).encode(), np.uint8), "id_ends": np.cumsum(lengths)}
