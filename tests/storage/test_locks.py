"""Locks, call by call: who has one, who waits for it, and who deletes it."""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from cmrhash.errors import CmrhashError, LockedError
from cmrhash.storage import files

HELD = """
import sys
from pathlib import Path
from cmrhash.storage.files import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextlib.contextmanager
def held(path):
    """Another process holds the lock of a file."""
    with subprocess.Popen(
        [sys.executable, "-c", HELD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout.readline() == b"held\n"
        yield child.pid
        child.stdin.close()


def test_a_lock_names_its_holder_and_ends_with_it(tmp_path):
    path = tmp_path / "x.h5"
    assert files.lock_of(path) == tmp_path / ".x.h5.lock"
    assert files.holder(path) == ""
    who = f"process {os.getpid()} on {files.socket.gethostname()}"
    files.lock_of(path).write_text("a longer line of the last holder, which is no longer true" * 9)
    with files.locked(path):
        assert files.holder(path) == who
        assert files.lock_of(path).read_text() == who + "\n"
        with pytest.raises(LockedError) as caught, files.locked(path):
            pass
        words = (f"being written by {who}", path, "wait for that process, or stop it")
        assert (caught.value.what, caught.value.where, caught.value.fix) == words
        files.remove_lock(path)
        assert files.lock_of(path).exists()
    assert files.holder(path) == ""
    files.remove_lock(path)
    assert not files.lock_of(path).exists()
    files.remove_lock(path)
    with files.locked(path):
        files.drop_lock(path)
        files.drop_lock(path)
        assert not files.lock_of(path).exists()


def test_a_lock_of_another_process(tmp_path):
    path = tmp_path / "x.h5"
    with held(path) as pid:
        assert files.holder(path).startswith(f"process {pid} on ")
        files.lock_of(path).write_bytes(b"\xff\n")
        assert files.holder(path) == "\ufffd"
        with pytest.raises(LockedError, match="being written by \ufffd"), files.locked(path):
            pass
        files.lock_of(path).write_bytes(b"")
        assert files.holder(path) == "another process"
    assert files.holder(path) == ""


def test_a_holder_that_cannot_be_read_is_another_process():
    class Locked:
        def seek(self, _):
            raise PermissionError(errno.EACCES, "locked")

    assert files._holder(Locked()) == "another process"


def test_who_asks_for_the_holder_is_none(tmp_path):
    path = tmp_path / "x.h5"
    with files.lock_of(path).open("w") as other:
        files.portalocker.lock(other, files.LockFlags.SHARED | files.LockFlags.NON_BLOCKING)
        assert files.holder(path) == ""


def test_who_waits_for_a_lock_gets_it_after_the_holder(tmp_path):
    path, order = tmp_path / "x.h5", []

    def wait():
        with files.locked(path, wait=True):
            order.append("second")

    with files.locked(path):
        other = threading.Thread(target=wait)
        other.start()
        other.join(0.05)
        order.append("first")
    other.join(10)
    assert order == ["first", "second"]


def test_a_lock_file_that_was_deleted_before_it_was_locked_is_made_again(tmp_path, monkeypatch):
    path, real, count = tmp_path / "x.h5", files._lock, []

    def deleted(file, wait, **options):
        if not count:
            files.lock_of(path).unlink()
        count.append(1)
        return real(file, wait, **options)

    monkeypatch.setattr(files, "_lock", deleted)
    with files.locked(path):
        assert files.lock_of(path).read_text().startswith("process ")
        assert len(count) == 2


def _fail(number):
    raise OSError(number, os.strerror(number))


def test_an_unreadable_state_of_a_lock_is_an_error_but_for_one_that_is_gone(tmp_path, monkeypatch):
    path = tmp_path / "a"
    path.write_bytes(b"")
    (tmp_path / "b").write_bytes(b"")
    with path.open("rb") as file:
        assert files._is_current(path, file)
        assert not files._is_current(tmp_path / "b", file)
        assert not files._is_current(tmp_path / "missing", file)
        for number, outcome in ((errno.ENOENT, False), (errno.ESTALE, False), (errno.EIO, errno.EIO)):
            with monkeypatch.context() as patch:
                patch.setattr(os, "fstat", lambda _, number=number: _fail(number))
                try:
                    found = files._is_current(path, file)
                except OSError as error:
                    found = error.errno
            assert found == outcome
        monkeypatch.setattr(files, "WINDOWS", True)
        assert files._is_current(tmp_path / "missing", file)


def test_locks_that_a_file_system_refuses_are_named_with_the_reason(tmp_path, monkeypatch):
    args = {}

    def lock(*_):
        raise files.portalocker.LockException(*args["of"])

    monkeypatch.setattr(files.portalocker, "lock", lock)
    for case, reason in (
        ((1, "No locks available"), "No locks available"),
        ((OSError(errno.ENOLCK, "none"),), f"[Errno {errno.ENOLCK}] none"),
        ((1,), "no reason"),
    ):
        args["of"] = case
        with pytest.raises(CmrhashError) as caught, files.locked(tmp_path / "x"):
            pass
        assert caught.value.what == f"the file system takes no locks ({reason})"
        assert Path(str(caught.value.where)) == tmp_path / ".x.lock"
        assert caught.value.fix == "use folders on a local disk, with `cache` and `runs`"
        assert files.holder(tmp_path / "x") == ""


def test_windows_deletes_no_open_lock(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "WINDOWS", True)
    lock = files.lock_of(tmp_path / "a")
    lock.write_bytes(b"")
    files.drop_lock(tmp_path / "a")
    assert lock.exists()
    files.remove_lock(tmp_path / "a")
    files.remove_lock(tmp_path / "a")
    assert not lock.exists()
