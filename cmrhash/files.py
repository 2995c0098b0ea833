"""Files that are whole or not there: writing in one move, digests, locks. Standard library only."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import socket
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

from cmrhash.errors import LockedError


def write_bytes(path: Path, content: bytes | Iterable[bytes]) -> None:
    """Write a file in one move, of pieces that are made as they are written if there are many: whoever reads it finds
    the old content or the new one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".part")
    try:
        with partial.open("wb") as file:
            file.writelines([content] if isinstance(content, bytes) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def locked(path: Path, wait: bool = False) -> Iterator[None]:
    """Hold a hidden lock file beside ``path``; the kernel frees it when the process ends, however it ends.

    Raises LockedError that names the holder, unless it is to wait for that one.
    """
    lock = lock_of(path)
    while True:
        with lock.open("a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except OSError:
                file.seek(0)
                raise LockedError(f"being written by {file.read().strip()}", path, "wait for it, or end it") from None
            if not _is_at(lock, file):
                continue  # cleared away before it was held: whoever comes next would lock another file
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
            file.flush()
            yield
            return


def lock_of(path: Path) -> Path:
    """The lock file of ``path``."""
    return path.with_name(f".{path.name}.lock")


def holder(path: Path) -> str:
    """Who holds the lock of ``path``, as "process 17 on host"; "" if nobody does."""
    try:
        with lock_of(path).open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return file.read().strip() or "another process"
    except OSError:  # there is none, or it cannot be asked
        pass
    return ""


def _is_at(path: Path, file: IO[str]) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def sync_folder(folder: Path) -> None:
    """Make a rename in the folder last through a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
