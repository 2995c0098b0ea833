"""The user block: the first 8 KiB of the .h5 files.

It describes a file before HDF5, which skips the block, parses any byte.

    sealed       MAGIC, sha256 of the manifest, the manifest (recipe, sha256 of the payload, versions), zeros
    unfinished   UNFINISHED, sha256 of the note, the note (recipe, rows, blocks, position of the commit records, byte
                 ranges that will still change, sha256 of all other bytes), zeros

Standard library only.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from cmrhash.errors import CmrhashError, DamagedError, DataError, StaleError
from cmrhash.storage.recipes import canonical

MAGIC = b"cmrhash sealed HDF5\n"
UNFINISHED = b"cmrhash unfinished\n\n"
USER_BLOCK = 8192  # bytes before the HDF5 payload
VERSION = 1
COMMITTED = 1 << 32  # bit of a commit record for "done"; the lower 32 bits are the block's CRC-32
DELETE = "delete it and create it again"
OVERWRITE = "use `overwrite=True`"
SHARD = re.compile(r"(.+)\.shard-(\d+)-of-(\d+)")  # name of one process's part of a feature file


@dataclass(frozen=True)
class Unfinished:
    """TrainingState of an unfinished extraction.

    done: number of committed blocks, out of ``blocks``; their checksums are not verified.
    """

    recipe: Mapping[str, Any]
    rows: int
    blocks: int
    done: int


def merging(path: Path) -> Path:
    """Path whose lock guards the merging of shards into the feature file ``path``."""
    return path.with_name(f"{path.name}.shards")


def write_block(file: IO[bytes], magic: bytes, content: Mapping[str, Any]) -> None:
    """Write the user block of an open file. Raises CmrhashError if the content does not fit."""
    body = canonical(content)
    block = _block(magic, body)
    if len(block) > USER_BLOCK:
        raise CmrhashError(f"the manifest has {len(body)} bytes", file.name, f"it may have at most {USER_BLOCK - 90}")
    file.seek(0)
    file.write(block)


def read_manifest(path: Path) -> dict[str, Any]:
    """Read the manifest of a sealed file and check the manifest's own digest.

    Raises DataError if there is no file, DamagedError, or StaleError for another format version.
    """
    try:
        manifest = _read_block(path, MAGIC)
    except FileNotFoundError:
        raise DataError("no such file", path, "run `extract` first") from None
    if manifest is None:
        raise DamagedError("not a sealed file of cmrhash, or damaged", path, DELETE)
    if not isinstance(manifest, dict) or not {"version", "payload_sha256", "payload_bytes"} <= manifest.keys():
        raise DamagedError("not a cmrhash manifest", path, DELETE)  # the digest fits, but the fields are not ours
    if manifest["version"] != VERSION:
        fix = f"this cmrhash reads version {VERSION}; upgrade it, or {DELETE}"
        raise StaleError(f"file format version {manifest['version']}", path, fix)
    return manifest


def check_payload(path: Path) -> dict[str, Any]:
    """Read the manifest and check the digest of the payload. Raises DamagedError, StaleError."""
    manifest = read_manifest(path)
    with path.open("rb") as file:
        refuse_payload(file, manifest, path)
    return manifest


def refuse_payload(file: IO[bytes], manifest: Mapping[str, Any], path: Path) -> None:
    """Raise DamagedError if the bytes after the user block differ from the sealed ones."""
    if payload(file) != (manifest["payload_sha256"], manifest["payload_bytes"]):
        raise DamagedError("does not match its sha256", path, DELETE)


def payload(file: IO[bytes]) -> tuple[str, int]:
    """sha256 and size of the bytes after the user block."""
    file.seek(USER_BLOCK)
    digest = hashlib.sha256()
    while chunk := file.read(1 << 22):
        digest.update(chunk)
    return digest.hexdigest(), file.tell() - USER_BLOCK


def write_note(
    path: Path, recipe: Mapping[str, Any], rows: int, blocks: int, commits_at: int, changing: Sequence[tuple[int, int]]
) -> None:
    """Write the note of an unfinished file into its user block.

    commits_at: byte position of the commit records, (blocks,) uint64.
    changing: (start, size) of every byte range that is written later; all other bytes stay as they are now.
    """
    note = {"version": VERSION, "recipe": recipe, "rows": rows, "blocks": blocks, "commits_at": commits_at}
    with path.open("r+b") as file:
        frame = {"changing": changing, "frame_sha256": _frame(file, changing)}
        write_block(file, UNFINISHED, {**note, **frame})
        file.flush()
        os.fsync(file.fileno())


def check_frame(path: Path) -> None:
    """Raise DamagedError if a part of an unfinished file changed that never should.

    HDF5 has not parsed the file yet. A file without a note passes: an interrupted seal leaves one.
    """
    note = _read_block(path, UNFINISHED)
    if note is None or "frame_sha256" not in note:
        return
    with path.open("rb") as file:
        if _frame(file, note["changing"]) != note["frame_sha256"]:
            raise DamagedError("unfinished file is damaged", path, f"delete it, or {OVERWRITE}")


def _frame(file: IO[bytes], changing: Sequence[Sequence[int]]) -> str:
    """sha256 of the file size and of all bytes after the user block outside ``changing``."""
    size = file.seek(0, os.SEEK_END)
    digest, at = hashlib.sha256(b"%d" % size), USER_BLOCK
    for start, length in [*sorted((a, b) for a, b in changing), (size, 0)]:
        file.seek(at)
        digest.update(file.read(max(start - at, 0)))
        at = start + length
    return digest.hexdigest()


def read_note(path: Path) -> Unfinished | None:
    """Progress of an unfinished file; None if it has no valid note."""
    note = _read_block(path, UNFINISHED)
    if note is None or note["version"] != VERSION:
        return None
    with path.open("rb") as file:
        file.seek(note["commits_at"])
        records = file.read(min(8 * note["blocks"], path.stat().st_size))
    done = sum(int.from_bytes(records[at : at + 8], "little") & COMMITTED != 0 for at in range(0, len(records), 8))
    return Unfinished(note["recipe"], note["rows"], note["blocks"], done)


def _read_block(path: Path, magic: bytes) -> dict[str, Any] | None:
    """Content of the user block, if it has this magic and matches its digest; otherwise None."""
    if not stat.S_ISREG(path.stat().st_mode):  # reading a pipe would block forever
        return None
    with path.open("rb") as file:
        block = file.read(USER_BLOCK)
    body = block[len(magic) + 65 :].rstrip(b"\0")
    if block != _block(magic, body):
        return None
    try:
        content: dict[str, Any] = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return content


def _block(magic: bytes, body: bytes) -> bytes:
    """The user block as bytes, padded to 8 KiB."""
    return (magic + hashlib.sha256(body).hexdigest().encode() + b"\n" + body).ljust(USER_BLOCK, b"\0")
