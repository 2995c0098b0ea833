"""``faiss:DIR``: collections in a folder, searched by Faiss on one machine, without a server.

NAME.json            bits, rows, meta; the current folder and the sha256 of its files; replaced atomically
NAME.<8 hex>/        codes.faiss  an IndexBinaryFlat, memory-mapped
                     keys         all keys in UTF-8, concatenated; key_ends: int64, end of each key
                     codes.ivf    an IndexBinaryIVF, if requested or for many codes

A change writes a new folder beside the old one, so adding codes takes as long as writing the whole collection.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
from collections.abc import Collection as Keys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cmrhash.config import BATCH_ROWS, IVF_ROWS, PROBES, at_home
from cmrhash.errors import CmrhashError, DataError, UsageError
from cmrhash.retrieval.codes import check_bits, check_k
from cmrhash.retrieval.index import ApproximateIndex, BinaryIndex, FlatWriter
from cmrhash.retrieval.ranking import Rank
from cmrhash.search.stores import (
    Batch,
    Collection,
    Found,
    Near,
    Packed,
    Ranked,
    by_code,
    check_name,
    check_query,
    checked_batches,
    missing_collection,
    own_place,
    packed_queries,
    refuse_embeddings,
)
from cmrhash.storage.files import checked, locked, new_folder, read_json, refuse_folded, sha256, sync, write_json

CODES, IVF, KEYS, ENDS = "codes.faiss", "codes.ivf", "keys", "key_ends"
AGAIN = "create it again with `index`"


class FolderStore:
    """A `cmrhash.search.stores.CodeStore` in a folder, created by the first write."""

    def __init__(self, url: str, probes: int | None) -> None:
        path = url.partition(":")[2]
        self.folder = at_home(Path(path.removeprefix("//")))
        self.url = f"faiss:{self.folder}"
        if not path.strip("/"):
            raise UsageError("no folder is named", url, "give faiss:DIR")
        if self.folder.exists() and not self.folder.is_dir():
            raise UsageError("not a folder", self.url, "give faiss:DIR")
        self._probes = PROBES["faiss"] if probes is None else probes
        self._opened: dict[str, _Opened] = {}

    def __repr__(self) -> str:
        return f"FolderStore({self.url!r})"

    def names(self) -> list[str]:
        """Names of the collections, sorted."""
        return sorted(path.name.removesuffix(".json") for path in self.folder.glob("*.json"))

    def about(self, name: str) -> Collection:
        """Describe a collection, from its manifest alone."""
        return _collection(name, self._manifest(name))

    def replace(
        self,
        name: str,
        bits: int,
        batches: Iterable[Batch],
        meta: Mapping[str, Any] | None = None,
        approximate: bool | None = None,
        embeddings: bool = False,
    ) -> Collection:
        """Create or replace a collection; keeps codes alone."""
        refuse_embeddings(embeddings, "a folder", self.url)
        with self._writing(name):
            return self._swap(Collection(name, check_bits(bits), 0, meta or {}, approximate), batches)

    def add(self, name: str, batches: Iterable[Batch]) -> Collection:
        """Add codes; writes the whole collection."""
        self._manifest(name)
        with self._writing(name):
            old = self._open(name)
            return self._swap(old.about, chain(old.batches(), batches))

    def remove(self, name: str, keys: Sequence[str]) -> Collection:
        """Remove codes; writes the whole collection."""
        self._manifest(name)
        with self._writing(name):
            old, gone = self._open(name), set(keys)
            found = {key for batch in old.batches() for key in batch[0] if key in gone}
            if found != gone:
                raise DataError(f"no key '{min(gone - found)}' in {name}", self.url, "nothing was removed")
            return self._swap(old.about, old.batches(without=gone))

    def search(self, name: str, packed: Packed, k: int, keys: Sequence[str] | None = None) -> Found:
        """Find the k nearest codes of each query; an exact search orders equal distances by row."""
        return self._search(self._open(name), packed, k, keys)[0]

    def ranked(
        self, name: str, embedding: NDArray[np.float32], k: int, rank: Rank, keys: Sequence[str] | None = None
    ) -> Ranked:
        """Find the k best of each query's nearest codes, by the codes."""
        opened = self._open(name)
        packed = packed_queries(embedding, rank, opened.about.bits)
        found, rows = self._search(opened, packed, rank.candidates(check_k(k)), keys)
        width = packed.shape[1]
        return by_code(found, [opened.flat.stored[line, :width] for line in rows], embedding, k, rank)

    def within(self, name: str, packed: Packed, radius: int, keys: Sequence[str] | None = None) -> list[Near]:
        """Find all codes within a Hamming radius of each query; equal distances are ordered by row."""
        opened = self._open(name)
        found = opened.within(packed, radius, keys)
        return [(distances, [opened.key(row) for row in rows.tolist()]) for distances, rows in found]

    def _search(
        self, opened: _Opened, packed: Packed, k: int, keys: Sequence[str] | None
    ) -> tuple[Found, NDArray[np.int64]]:
        """Distances, keys and rows (Q, k)."""
        k = check_query(packed, opened.about, k, keys)
        distances, rows = np.empty((len(packed), 0), np.int32), np.empty((len(packed), 0), np.int64)
        if k:
            distances, rows = opened.search(packed, k, self._probes, keys)
        return (distances, [[opened.key(row) for row in line] for line in rows.tolist()]), rows

    def close(self) -> None:
        """Close the files."""
        self._opened.clear()

    # ------------------------------------------------------------------------------------------ files

    def _path(self, name: str) -> Path:
        return self.folder / f"{check_name(name)}.json"

    def _manifest(self, name: str) -> dict[str, Any]:
        try:
            return read_json(self._path(name), AGAIN)
        except FileNotFoundError:
            raise missing_collection(name, self.names(), self.url) from None

    def _open(self, name: str) -> _Opened:
        """Files of a collection, kept open until it is replaced."""
        manifest = self._manifest(name)
        opened = self._opened.get(name)
        if opened is None or opened.manifest != manifest:
            try:
                opened = self._opened[name] = _Opened(self.folder, name, manifest)
            except (CmrhashError, OSError, RuntimeError):  # each may mean a deleted file
                if self._manifest(name) == manifest:
                    raise
                return self._open(name)  # the collection was replaced meanwhile
        return opened

    @contextmanager
    def _writing(self, name: str) -> Iterator[None]:
        """Lock a collection for writing; raise system errors as CmrhashError."""
        path = self._path(name)
        refuse_folded(path)
        try:
            with new_folder(self.folder), locked(path):
                yield
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise CmrhashError(
                f"cannot write '{name}' ({reason})", self.url, "check the folder and the free space"
            ) from error

    def _swap(self, about: Collection, batches: Iterable[Batch]) -> Collection:
        """Write new files of a collection beside the present ones, then switch its manifest."""
        folder = self.folder / f"{about.name}.{secrets.token_hex(4)}"
        folder.mkdir()
        try:
            rows = _write(folder, about.bits, batches)
            if rows and (rows > IVF_ROWS if about.approximate is None else about.approximate):
                ApproximateIndex.build(BinaryIndex.load(folder / CODES, about.bits, mapped=True)).save(folder / IVF)
            sync(folder)
            sync(self.folder)  # its name, before the manifest refers to it
            manifest = {
                "bits": about.bits,
                "rows": rows,
                "meta": dict(about.meta),
                "approximate": about.approximate,
                "folder": folder.name,
                "files": {path.name: sha256(path) for path in sorted(folder.iterdir())},
            }
            write_json(self._path(about.name), manifest)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        self._clear(about.name, keep=folder.name)
        return _collection(about.name, manifest)

    def _clear(self, name: str, keep: str) -> None:
        """Remove old files, also of a killed writer; processes that have them open can still read."""
        for path in self.folder.iterdir():
            if re.fullmatch(re.escape(name) + r"\.[0-9a-f]{8}", path.name) and path.name != keep and path.is_dir():
                shutil.rmtree(path, ignore_errors=True)


class _Opened:
    """Memory-mapped files of a collection, after a check of their digests."""

    def __init__(self, base: Path, name: str, manifest: Mapping[str, Any]) -> None:
        self.manifest, self.about = manifest, _collection(name, manifest)
        folder = base / own_place(name, manifest["folder"], r"\w[\w.+-]*\.[0-9a-f]{8}", f"faiss:{base}")
        paths = {file: checked(folder, file, digest, AGAIN) for file, digest in manifest["files"].items()}
        self.flat = BinaryIndex.load(paths[CODES], self.about.bits, mapped=True)
        self.approximate = ApproximateIndex.load(paths[IVF], self.about.bits) if IVF in paths else None
        self._keys, self._ends = _map(paths[KEYS], np.uint8), _map(paths[ENDS], np.int64)

    def key(self, row: int) -> str:
        """Key of a row."""
        start = int(self._ends[row - 1]) if row else 0
        return self._keys[start : int(self._ends[row])].tobytes().decode()

    def batches(self, without: Keys[str] = ()) -> Iterator[Batch]:
        """Yield all keys and codes in order, except the keys in ``without``."""
        for start in range(0, len(self.flat), BATCH_ROWS):
            packed = self.flat.rows(start, start + BATCH_ROWS)
            keys = [self.key(row) for row in range(start, start + len(packed))]
            kept = [at for at, key in enumerate(keys) if key not in without]
            yield [keys[at] for at in kept], packed[kept]

    @cached_property
    def _rows(self) -> dict[str, int]:
        """Row of each key."""
        return {self.key(row): row for row in range(len(self._ends))}

    def search(
        self, packed: Packed, k: int, probes: int, keys: Sequence[str] | None = None
    ) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """Distances and rows (Q, k), exact among some keys and where the approximate index finds too few."""
        if keys is not None:
            some, among = self._among(keys)
            distances, places = among.search(packed, k)
            return distances, some[places]
        if not self.approximate or not probes:
            return self.flat.search(packed, k)
        distances, rows = self.approximate.search(packed, k, probes)
        short = (rows < 0).any(axis=1)
        if short.any():
            distances[short], rows[short] = self.flat.search(packed[short], k)
        return distances, rows

    def within(
        self, packed: Packed, radius: int, keys: Sequence[str] | None
    ) -> list[tuple[NDArray[np.int32], NDArray[np.int64]]]:
        """Distances and rows of all codes, or those of some keys, within a radius of each query."""
        if keys is None:
            return self.flat.within(packed, radius)
        some, among = self._among(keys)
        return [(distances, some[places]) for distances, places in among.within(packed, radius)]

    def _among(self, keys: Sequence[str]) -> tuple[NDArray[np.int64], BinaryIndex]:
        """Rows of the keys that the collection has, and an index of their codes alone."""
        some = np.unique(np.array([self._rows[key] for key in keys if key in self._rows], np.int64))
        width = -(-self.flat.bits // 8)
        return some, BinaryIndex.build(self.flat.stored[some, :width], self.flat.bits)


def _write(folder: Path, bits: int, batches: Iterable[Batch]) -> int:
    """Write codes and keys batch by batch; returns their number."""
    end = 0
    with (
        FlatWriter(folder / CODES, bits) as codes,
        (folder / KEYS).open("wb") as blob,
        (folder / ENDS).open("wb") as ends,
    ):
        for keys, packed, _ in checked_batches(batches, bits):
            encoded = [key.encode() for key in keys]
            places = end + np.cumsum([len(key) for key in encoded], dtype=np.int64)
            end += sum(map(len, encoded))
            codes.add(packed)
            blob.write(b"".join(encoded))
            ends.write(places.tobytes())
        for file in (blob, ends):
            file.flush()
            os.fsync(file.fileno())
    return codes.rows


def _map(path: Path, dtype: Any) -> NDArray[Any]:
    return np.memmap(path, dtype, "r") if path.stat().st_size else np.empty(0, dtype)


def _collection(name: str, manifest: Mapping[str, Any]) -> Collection:
    return Collection(name, manifest["bits"], manifest["rows"], manifest["meta"], manifest["approximate"])
