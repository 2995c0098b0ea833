"""Files that are whole or not there, and what they were written as: one move, digests, locks. Standard library only."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import socket
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cmrhash.errors import DamagedError, LockedError

_DIGEST = re.compile(rb'^ "sha256": "([0-9a-f]{64})",\n', re.MULTILINE)  # a line of a JSON object's own


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file in one move: whoever reads it finds the old content or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".part")
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON object in one move, a field a line; the first one, "sha256", is the digest of all the others."""
    body = json.dumps(content, ensure_ascii=False, indent=1).encode(errors="backslashreplace") + b"\n"
    digest = hashlib.sha256(body).hexdigest()
    write_bytes(path, body.replace(b"{\n", f'{{\n "sha256": "{digest}",\n'.encode(), 1))


def read_json(path: Path, fix: str) -> dict[str, Any]:
    """What ``write_json`` wrote, without its digest. Raises DamagedError for any other bytes before they are parsed."""
    if not stat.S_ISREG(path.stat().st_mode):  # a pipe would block for ever
        raise DamagedError("not a regular file", path, fix)
    raw = path.read_bytes()
    digest = _DIGEST.search(raw)
    body = raw.replace(digest[0], b"", 1) if digest else raw
    if not digest or hashlib.sha256(body).hexdigest().encode() != digest[1]:
        raise DamagedError("not what was written, its sha256 differs", path, fix)
    content: dict[str, Any] = json.loads(body)
    return content


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def checked(folder: Path, name: str, digest: object, fix: str) -> Path:
    """The file that a record names, once its sha256 is the recorded one. Raises DamagedError if not, and for a name
    that leaves the folder or is no regular file: what is named is opened.
    """
    path = folder / name
    leaves = Path(name).is_absolute() or ".." in Path(name).parts
    if leaves or not path.is_file() or sha256(path) != digest:
        raise DamagedError("missing, or does not match its sha256", path, fix)
    return path


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a hidden lock file beside ``path``; the kernel frees it when the process ends, however it ends.

    Raises LockedError that names the holder.
    """
    lock = path.with_name(f".{path.name}.lock")
    with lock.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            raise LockedError(f"being written by {file.read().strip()}", path, "wait for it, or end it") from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield


def sync_folder(folder: Path) -> None:
    """Make a rename in the folder last through a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
