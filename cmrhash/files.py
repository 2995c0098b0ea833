"""Files that are whole or not there: writing in one move, digests, locks. Standard library only."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from cmrhash.errors import LockedError


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file in one move: whoever reads it finds the old content or the new one."""
    make_folder(path.parent)
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
    sync(path.parent)


def remove(path: Path) -> None:
    """Remove a file if it is there, before anything that comes later is on disk."""
    if path.exists():
        path.unlink()
        sync(path.parent)


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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


def make_folder(folder: Path) -> None:
    """Make a folder and those above it; they last through a power cut, and what is written into them with them."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for path in missing:
        sync(path.parent)


def sync(path: Path) -> None:
    """Make a file's content, or what a folder's files are called, last through a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
