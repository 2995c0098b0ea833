"""Systems other than Linux, as far as one can tell there: what they lack is hidden, what they refuse is refused."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import other_system
import pytest
from running import files, write_own

from cmrhash.errors import CmrhashError, LockedError
from cmrhash.storage import files as storage
from cmrhash.storage.hdf5 import read_sealed, write_sealed

pytestmark = pytest.mark.slow

LACKS = "file system that lacks something"
X = {"x": np.arange(12, dtype=np.float32).reshape(4, 3)}


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """{system: (what each command said, the files that it left)}"""
    found = {}
    for system in ("linux", "windows"):
        folder = tmp_path_factory.mktemp(system)
        write_own(folder / "mine", 20)
        if system == "linux":
            with contextlib.chdir(folder):
                said = {" ".join(args): other_system.said(args) for args in other_system.COMMANDS}
        else:
            command = [sys.executable, other_system.__file__, str(folder)]
            child = subprocess.run(command, capture_output=True, text=True, timeout=300)
            assert child.returncode == 0, child.stderr
            said = json.loads(child.stdout)
        said = {args: re.sub(r'"seconds": [\d.]+', "", text) for args, text in said.items()}
        left = {path.relative_to(folder): content for path, content in files(folder).items()}
        locks = [path for top in ("cache", "runs") for path in (folder / top).rglob("*.lock")]
        found[system] = said, left, locks
    return found


def test_every_command_says_the_same_there(done):
    here, there = done["linux"][0], done["windows"][0]
    prune = "cache prune --yes"
    assert {**here, prune: ""} == {**there, prune: ""}  # which has more lock files to remove there
    assert len(here) == len(other_system.COMMANDS)


def test_every_file_is_the_same_there(done):
    def of(system):
        left = done[system][1].items()
        names_a_folder = {"dataset.json"}
        return {path: content for path, content in left if path.parts[0] != "store" and path.name not in names_a_folder}

    assert of("linux") == of("windows")
    assert {path.suffix for path in of("windows")} >= {".h5", ".safetensors", ".faiss", ".jsonl"}


def test_prune_removes_the_lock_files_there(done):
    assert done["windows"][2] == done["linux"][2] == []


# ---------------------------------------------------------------------------------------------- one call at a time


def failing(error, folders):
    """An fsync that fails with an error, on folders or on files."""
    real = os.fsync

    def fsync(handle):
        if stat.S_ISDIR(os.fstat(handle).st_mode) is folders:
            raise OSError(error, os.strerror(error))
        real(handle)

    return fsync


@pytest.mark.faults(LACKS)
@pytest.mark.parametrize("error", [errno.EINVAL, errno.ENOTSUP, errno.EBADF])
def test_a_file_system_without_a_sync_of_folders_will_do(tmp_path, monkeypatch, error):
    monkeypatch.setattr(os, "fsync", failing(error, folders=True))
    storage.write_bytes(tmp_path / "new/a.txt", b"a")
    write_sealed(tmp_path / "new/x.h5", X, {"kind": "codes"})
    assert (tmp_path / "new/a.txt").read_bytes() == b"a"
    np.testing.assert_array_equal(read_sealed(tmp_path / "new/x.h5")[1]["x"], X["x"])


@pytest.mark.parametrize(("error", "folders"), [(errno.EIO, True), (errno.EINVAL, False)])
def test_no_other_failure_of_a_sync_is_passed_over(tmp_path, monkeypatch, error, folders):
    monkeypatch.setattr(os, "fsync", failing(error, folders))
    with pytest.raises(OSError, match=os.strerror(error)):
        storage.write_bytes(tmp_path / "a.txt", b"a")
    with pytest.raises(CmrhashError, match="cannot write"):
        write_sealed(tmp_path / "x.h5", X, {"kind": "codes"})


def test_a_full_disk_is_met_before_the_work_where_room_cannot_be_reserved(tmp_path, monkeypatch):
    monkeypatch.delattr(os, "posix_fallocate")
    usage = shutil.disk_usage(tmp_path)
    for free, fits in ((1 << 12, False), (1 << 30, True)):
        monkeypatch.setattr(shutil, "disk_usage", lambda _, free=free: usage._replace(free=free))
        if fits:
            write_sealed(tmp_path / "x.h5", X, {"kind": "codes"})
        else:
            with pytest.raises(CmrhashError, match="No space left"):
                write_sealed(tmp_path / "x.h5", X, {"kind": "codes"})
            assert list(tmp_path.iterdir()) == []


class Unreadable(io.TextIOWrapper):
    """A file of which another process has locked every byte, as Windows does it."""

    def read(self, *_):
        raise PermissionError(errno.EACCES, "Permission denied")


def test_a_holder_who_cannot_be_read_is_another_process(tmp_path, monkeypatch):
    path = tmp_path / "x.h5"
    with storage.locked(path):
        monkeypatch.setattr(Path, "open", lambda lock, *_, **__: Unreadable(io.BufferedRandom(io.FileIO(lock, "r+"))))
        assert storage.holder(path) == "another process"
        with pytest.raises(LockedError, match="being written by another process"), storage.locked(path):
            pass


def test_a_wait_that_the_system_breaks_off_goes_on(tmp_path, monkeypatch):
    """Windows waits for a lock for ten seconds at a time."""
    real, tries = storage.portalocker.lock, []

    def lock(file, how):
        tries.append(how)
        if len(tries) < 3:
            raise storage.portalocker.AlreadyLocked
        real(file, how)

    monkeypatch.setattr(storage.portalocker, "lock", lock)
    with storage.locked(tmp_path / "x.h5", wait=True):
        assert len(tries) == 3


@pytest.mark.faults(LACKS)
def test_a_file_system_without_locks_is_told_from_one_that_is_held(tmp_path, monkeypatch):
    def lock(file, how):
        raise storage.portalocker.LockException(1, "No locks available")

    monkeypatch.setattr(storage.portalocker, "lock", lock)
    words = r"takes no locks \(No locks available\): .*: use folders on a local disk"
    with pytest.raises(CmrhashError, match=words), storage.locked(tmp_path / "x.h5"):
        pass
    assert storage.holder(tmp_path / "x.h5") == ""


def test_a_file_is_moved_once_nobody_reads_the_old_one(tmp_path, monkeypatch):
    real, tries = os.replace, []

    def replace(part, path):
        tries.append(path)
        if len(tries) < 3:
            raise PermissionError(errno.EACCES, "it is being used by another process")
        real(part, path)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(PermissionError):
        storage.write_bytes(tmp_path / "a.txt", b"a")
    assert len(tries) == 1  # elsewhere that is not a matter of time
    monkeypatch.setattr(storage, "WINDOWS", True)
    storage.write_bytes(tmp_path / "a.txt", b"a")
    assert (tmp_path / "a.txt").read_bytes() == b"a"
    assert len(tries) == 3
