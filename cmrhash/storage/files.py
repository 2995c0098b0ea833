"""Atomic file writes, digests and locks.

A reader finds a complete file or none, also after a crash or a power cut.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import os
import re
import socket
import stat
import time
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import portalocker
from portalocker import LockFlags

from cmrhash.errors import CmrhashError, DamagedError, LockedError, UsageError

log = logging.getLogger(__name__)

WINDOWS = os.name == "nt"  # it cannot sync folders, nor rename or delete open files; its locks block readers, too
MOVES = 100  # attempts to rename, 20 ms apart, while another process reads the target (Windows only)
NO_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.EBADF)  # errors of network file systems without fsync for folders
RESERVED = re.compile("con|prn|aux|nul|com[0-9]|lpt[0-9]", re.IGNORECASE)  # names of devices on Windows
OF_NFS = ".nfs"  # start of the names of files that were deleted while a process had them open
PIECE = 1 << 20  # bytes: smaller pieces are joined before they are written
_DIGEST = re.compile(rb'^ "sha256": "([0-9a-f]{64})",\n', re.MULTILINE)  # a line at the top level of a JSON object


def is_there(text: str) -> bool:
    """Whether a text that may be a path is the path of a file or folder; one that no path can be is not."""
    try:
        return Path(text).exists()
    except (OSError, ValueError):  # too long, or with characters that no path has
        return False


def is_refused_elsewhere(name: str) -> bool:
    """Whether Windows, or a disk shared with it, refuses a file of this name."""
    return name.endswith((".", " ")) or RESERVED.fullmatch(name.partition(".")[0]) is not None


def write_bytes(path: Path, content: bytes | Iterable[bytes]) -> None:
    """Write a file atomically.

    A reader finds the old content or the new content, nothing in between. Concurrent writers take turns.
    content: bytes, or an iterable of bytes, which is consumed during the write.
    Raises OSError that names the file.
    """
    if not path.name or path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    make_folder(path.parent)
    partial = path.with_name(path.name + ".part")
    with _open_exclusively(partial) as file:
        try:
            with file if WINDOWS else contextlib.nullcontext():
                file.truncate(0)
                for piece in _joined(content):
                    left = memoryview(piece)
                    while left:
                        left = left[file.write(left) :]
                os.fsync(file.fileno())
            move(partial, path)
        except OSError as error:
            partial.unlink(missing_ok=True)
            raise OSError(error.errno, error.strerror, str(path)) from None  # the error of a failed write names no file


def move(part: Path, path: Path) -> None:
    """Rename a finished file durably, replacing any file of that name."""
    about = os.stat(part)
    for left in reversed(range(MOVES if WINDOWS else 1)):
        try:
            os.replace(part, path)
            break
        except PermissionError:
            if not left:
                raise
            time.sleep(0.02)
        except FileNotFoundError:  # NFS: the server had done it, and was asked again
            if not (path.exists() and os.path.samestat(about, path.stat())):
                raise
            break
    sync(path.parent)


def _joined(content: bytes | Iterable[bytes]) -> Iterator[bytes]:
    """Join small pieces until they hold at least PIECE bytes.

    The file is unbuffered so that a full disk raises a single error; larger pieces keep the number of system calls low.
    """
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
    """Delete a file if it exists, and sync its folder."""
    if path.exists():
        path.unlink(missing_ok=True)
        sync(path.parent)


def clear(folder: Path, keep: str = "") -> None:
    """Remove all files and folders below a folder, but for the file of this name, and what NFS keeps for readers."""
    for path in sorted(folder.rglob("*"), reverse=True):
        if path.is_dir() and not path.is_symlink():
            with contextlib.suppress(OSError):  # not empty: a file that another process has open on NFS
                path.rmdir()
        elif path.name != keep and not path.name.startswith(OF_NFS):
            path.unlink(missing_ok=True)


def refuse_folded(path: Path) -> None:
    """Raise UsageError if a path leads to a file or folder whose name differs by case, as some file systems allow."""
    if not os.path.lexists(path):
        return
    plain = unicodedata.normalize("NFC", path.name)
    try:
        names = {unicodedata.normalize("NFC", name) for name in os.listdir(path.parent)}
    except PermissionError:  # a folder that may be entered, but not listed
        return
    same = sorted(name for name in names if name.casefold() == plain.casefold())
    if same and plain not in names:
        what = f"'{path.name}' is '{same[0]}' here: the file system does not tell upper from lower case"
        raise UsageError(what, path.parent, "choose another name or folder")


def below(folder: Path, *names: str) -> Path:
    """Path below a folder, after ``refuse_folded`` of each of its names."""
    for name in names:
        folder = folder / name
        refuse_folded(folder)
    return folder


@contextlib.contextmanager
def _open_exclusively(partial: Path) -> Iterator[IO[bytes]]:
    """Open a file for writing, once no other process writes it.

    A process that finished has renamed its file; then this one opens a new file of the same name.
    """
    if WINDOWS:  # a file must be closed before it can be renamed, so another file is locked
        with locked(partial, wait=True), partial.open("ab", buffering=0) as file:
            yield file
        return
    while True:
        with partial.open("ab", buffering=0) as file:
            _lock(file, wait=True)
            if _is_current(partial, file):
                yield file
                return


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON object atomically, one field per line.

    The first field, "sha256", is the digest of all the others.
    """
    body = json.dumps(content, ensure_ascii=False, indent=1).encode(errors="backslashreplace") + b"\n"
    digest = hashlib.sha256(body).hexdigest()
    write_bytes(path, body.replace(b"{\n", f'{{\n "sha256": "{digest}",\n'.encode(), 1))


def read_json(path: Path, fix: str) -> dict[str, Any]:
    """Read an object that ``write_json`` wrote, without its digest.

    The digest is checked before the JSON is parsed. Raises DamagedError, with ``fix`` as the advice, if it differs, and
    for bytes that are no such object.
    """
    if not stat.S_ISREG(path.stat().st_mode):  # reading a pipe would block forever
        raise DamagedError("not a regular file", path, fix)
    raw = path.read_bytes()
    digest = _DIGEST.search(raw)
    body = raw.replace(digest[0], b"", 1) if digest else raw
    if not digest or hashlib.sha256(body).hexdigest().encode() != digest[1]:
        raise DamagedError("the file was changed after writing: its sha256 differs", path, fix)
    try:
        content = json.loads(body)
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise DamagedError("not a JSON object", path, fix)
    return content


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def checked(folder: Path, name: str, digest: object, fix: str) -> Path:
    """Path of a file in a folder, after its sha256 has been compared.

    Raises DamagedError, with ``fix`` as the advice, if the digest differs, if ``name`` leads out of the folder, or if
    the file is not a regular file.
    """
    path = folder / name
    leaves = Path(name).is_absolute() or ".." in Path(name).parts
    if leaves or not path.is_file() or sha256(path) != digest:
        raise DamagedError("missing, or does not match its sha256", path, fix)
    return path


@contextlib.contextmanager
def locked(path: Path, wait: bool = False) -> Iterator[None]:
    """Hold the lock file beside ``path``.

    The operating system releases the lock when the process ends, even after a crash.
    wait: wait for the current holder; otherwise raise LockedError that names it.
    """
    lock = lock_of(path)
    new = not lock.exists()
    while True:
        with lock.open("a+", encoding="utf-8", errors="replace") as file:
            if wait:
                log.debug("locking %s", path)
            try:
                free = _lock(file, wait)
            except CmrhashError:
                if new:
                    drop_lock(path)
                raise
            if not free:
                raise LockedError(f"being written by {_holder(file)}", path, "wait for that process, or stop it")
            if not _is_current(lock, file):
                continue  # deleted before this process locked it: the next process would lock a new file
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
            file.flush()
            yield
            return


def lock_of(path: Path) -> Path:
    """Path of the lock file that belongs to ``path``."""
    return path.with_name(f".{path.name}.lock")


def holder(path: Path) -> str:
    """Holder of the lock of ``path``, as "process 17 on host"; "" if free."""
    try:
        with lock_of(path).open(encoding="utf-8", errors="replace") as file:
            shared = LockFlags.EXCLUSIVE if WINDOWS else LockFlags.SHARED  # on Windows shared locks need pywin32
            return "" if _lock(file, wait=False, how=shared) else _holder(file)
    except (OSError, CmrhashError):  # no lock file, it cannot be opened, or the file system takes no locks
        return ""


def drop_lock(path: Path) -> None:
    """Delete the lock file of ``path`` while this process holds it.

    Windows cannot delete an open file; there the lock file stays.
    """
    if not WINDOWS:
        lock_of(path).unlink(missing_ok=True)


def remove_lock(path: Path) -> None:
    """Delete the lock file of ``path``, unless a process holds it."""
    if WINDOWS:  # Windows refuses to delete an open file, hence a held lock
        with contextlib.suppress(FileNotFoundError, PermissionError):
            lock_of(path).unlink()
        return
    with contextlib.suppress(LockedError), locked(path):
        drop_lock(path)


def _lock(file: IO[Any], wait: bool, how: LockFlags = LockFlags.EXCLUSIVE) -> bool:
    """Lock an open file until it is closed; False if another process holds it and ``wait`` is False."""
    while True:
        try:
            portalocker.lock(file, how if wait else how | LockFlags.NON_BLOCKING)
            return True
        except portalocker.AlreadyLocked:  # Windows gives up after ten seconds
            if not wait:
                return False
        except portalocker.LockException as error:
            reason = error.strerror or next((str(a) for a in error.args if isinstance(a, OSError | str)), "no reason")
            what = f"the file system takes no locks ({reason})"
            raise CmrhashError(what, file.name, "use folders on a local disk, with `cache` and `runs`") from error


def _holder(file: IO[str]) -> str:
    """The process named in an open lock file; Windows lets no other process read it."""
    try:
        file.seek(0)
        return file.read().strip() or "another process"
    except OSError:
        return "another process"


def _is_current(path: Path, file: IO[Any]) -> bool:
    """Whether the open file is still the file at ``path``."""
    if WINDOWS:
        return True  # an open file cannot be deleted
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ESTALE):  # ESTALE: deleted through another machine
            raise
        return False


def make_folder(folder: Path) -> None:
    """Create a folder and its parents, durably: they survive a power cut."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for path in missing:
        sync(path.parent)


@contextlib.contextmanager
def new_folder(folder: Path) -> Iterator[None]:
    """Create a folder and its parents; if the block raises, remove the new ones that hold nothing but free locks."""
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    make_folder(folder)
    try:
        yield
    except Exception:
        for lock in folder.glob(".*.lock") if new else ():
            with contextlib.suppress(OSError, CmrhashError):
                remove_lock(lock.with_name(lock.stem.removeprefix(".")))
        for path in new:
            with contextlib.suppress(OSError):  # it holds something
                path.rmdir()
        raise


def sync(path: Path) -> None:
    """Write a file's content, or a folder's list of names, to disk.

    Folders are skipped on Windows and on file systems that cannot sync them.
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
