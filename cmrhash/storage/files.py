"""Files that are whole or not there, and what they were written as: one move, digests, locks."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import socket
import stat
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import portalocker
from portalocker import LockFlags

from cmrhash.errors import DamagedError, LockedError

WINDOWS = os.name == "nt"  # it opens no folder, moves and removes no open file, and locks are for readers, too
MOVES = 100  # tries, 20 ms apart, while somebody reads the file that is to be replaced; on Windows alone
NO_SYNC = (errno.EINVAL, errno.ENOTSUP)  # what network file systems answer that have no fsync for folders
PIECE = 1 << 20  # bytes: a file that is made piece by piece is written in pieces of at least that size
_DIGEST = re.compile(rb'^ "sha256": "([0-9a-f]{64})",\n', re.MULTILINE)  # a line of a JSON object's own


def write_bytes(path: Path, content: bytes | Iterable[bytes]) -> None:
    """Write a file in one move: whoever reads it finds the old content or the new one. Two who do so take turns.

    content: or the pieces of it, which are made as they are written.
    """
    make_folder(path.parent)
    partial = path.with_name(path.name + ".part")
    with _alone(partial) as file:
        try:
            with file if WINDOWS else contextlib.nullcontext():
                file.truncate(0)
                for piece in _pieces(content):
                    left = memoryview(piece)
                    while left:
                        left = left[file.write(left) :]
                os.fsync(file.fileno())
            move(partial, path)
        except OSError as error:
            partial.unlink(missing_ok=True)
            raise OSError(error.errno, error.strerror, str(path)) from None  # a failed write names no file


def move(part: Path, path: Path) -> None:
    """Give a finished file its name, for good; a file of that name is replaced."""
    for left in reversed(range(MOVES if WINDOWS else 1)):
        try:
            os.replace(part, path)
            break
        except PermissionError:
            if not left:
                raise
            time.sleep(0.02)
    sync(path.parent)


def _pieces(content: bytes | Iterable[bytes]) -> Iterator[bytes]:
    """Pieces that are worth a call to the system: the file itself is not buffered, so that a full disk is met once."""
    if isinstance(content, bytes):
        yield content
        return
    held, size = list[bytes](), 0
    for piece in content:
        held.append(piece)
        size += len(piece)
        if size >= PIECE:
            yield b"".join(held)
            held, size = [], 0
    yield b"".join(held)


def remove(path: Path) -> None:
    """Remove a file if it is there, before anything that comes later is on disk."""
    if path.exists():
        path.unlink()
        sync(path.parent)


@contextlib.contextmanager
def _alone(partial: Path) -> Iterator[IO[bytes]]:
    """The open file, once no other process writes it: who has finished has moved it away."""
    if WINDOWS:  # the file must be closed before it can be moved: the lock is another one
        with locked(partial, wait=True), partial.open("ab", buffering=0) as file:
            yield file
        return
    while True:
        with partial.open("ab", buffering=0) as file:
            _lock(file, wait=True)
            if _is_at(partial, file):
                yield file
                return


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
        raise DamagedError("the file was changed after writing: its sha256 differs", path, fix)
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
def locked(path: Path, wait: bool = False) -> Iterator[None]:
    """Hold a hidden lock file beside ``path``; the system frees it when the process ends, however it ends.

    Raises LockedError that names the holder, unless it is to wait for that one.
    """
    lock = lock_of(path)
    while True:
        with lock.open("a+", encoding="utf-8", errors="replace") as file:
            if not _lock(file, wait):
                raise LockedError(f"being written by {_holder(file)}", path, "wait for that process, or stop it")
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
        with lock_of(path).open(encoding="utf-8", errors="replace") as file:
            shared = LockFlags.EXCLUSIVE if WINDOWS else LockFlags.SHARED  # Windows knows those with pywin32 alone
            return "" if _lock(file, wait=False, how=shared) else _holder(file)
    except OSError:  # there is none, or it cannot be asked
        return ""


def drop_lock(path: Path) -> None:
    """Remove the lock file of ``path``, which this process holds; on Windows it stays, for it is open."""
    if not WINDOWS:
        lock_of(path).unlink(missing_ok=True)


def remove_lock(path: Path) -> None:
    """Remove the lock file of ``path``, unless somebody holds it."""
    if WINDOWS:  # refuses by itself to remove one that is held
        with contextlib.suppress(FileNotFoundError, PermissionError):
            lock_of(path).unlink()
        return
    with contextlib.suppress(LockedError), locked(path):
        drop_lock(path)


def _lock(file: IO[Any], wait: bool, how: LockFlags = LockFlags.EXCLUSIVE) -> bool:
    """Lock an open file until it is closed; False if another process holds it and this one is not to wait."""
    while True:
        try:
            portalocker.lock(file, how if wait else how | LockFlags.NON_BLOCKING)
            return True
        except portalocker.AlreadyLocked:  # Windows waits for ten seconds at a time
            if not wait:
                return False
        except portalocker.LockException as error:
            raise OSError(errno.ENOLCK, f"the lock is refused ({error.strerror})", file.name) from error


def _holder(file: IO[str]) -> str:
    """Who says in an open lock file that he holds it; on Windows nobody else can read that."""
    try:
        file.seek(0)
        return file.read().strip() or "another process"
    except OSError:
        return "another process"


def _is_at(path: Path, file: IO[Any]) -> bool:
    if WINDOWS:
        return True  # no file is removed while it is open
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def make_folder(folder: Path) -> None:
    """Make a folder and those above it; they last through a power cut, and what is written into them with them."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for path in missing:
        sync(path.parent)


def sync(path: Path) -> None:
    """Make a file's content, or what a folder's files are called, last through a power cut.

    Nothing is done for a folder on Windows, and on file systems that do not offer it.
    """
    folder = path.is_dir()
    if WINDOWS and folder:
        return
    handle = os.open(path, os.O_RDWR if WINDOWS else os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if not folder or error.errno not in NO_SYNC:
            raise
    finally:
        os.close(handle)
