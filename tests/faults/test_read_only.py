"""A cache and runs on a file system that is read-only: what only reads works, what writes is refused in one line."""

from __future__ import annotations

import builtins
import errno
import os

import pytest
from running import QUICK, run

KIND = "file system that lacks something"
WRITES = ("mkdir", "replace", "rename", "unlink", "rmdir", "truncate", "link")


@pytest.fixture
def read_only(monkeypatch):
    """A function after which nothing below a folder can be written."""

    def start(folder):
        def guarded(real, writes):
            def call(path, *args, **options):
                below = not isinstance(path, int) and os.path.abspath(os.fsdecode(path)).startswith(str(folder))
                if below and writes(*args, **options):
                    raise OSError(errno.EROFS, os.strerror(errno.EROFS), os.fsdecode(path))
                return real(path, *args, **options)

            return call

        for name in WRITES:
            monkeypatch.setattr(os, name, guarded(getattr(os, name), lambda *_, **__: True))
        flags = os.O_WRONLY | os.O_RDWR | os.O_CREAT
        monkeypatch.setattr(os, "open", guarded(os.open, lambda wanted=0, *_, **__: bool(wanted & flags)))
        opened = guarded(open, lambda mode="r", *_, **__: bool(set(mode) & set("wax+")))
        monkeypatch.setattr(builtins, "open", opened)
        monkeypatch.setattr("io.open", opened)

    return start


@pytest.mark.faults(KIND)
def test_reading_commands_work_and_writing_ones_are_refused(make_cache, tmp_path, monkeypatch, capsys, read_only):
    make_cache(tmp_path / "cache", count=40)
    monkeypatch.chdir(tmp_path)
    assert run("train", *QUICK, "-q") == run("eval", "-q") == 0
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    read_only(tmp_path)
    capsys.readouterr()
    for command in (
        ["cache", "ls"],
        ["search", "--id", "i1", "-q"],
        ["eval", "-q"],
        ["cache", "verify", "--no-sources"],
    ):
        assert run(*command) == 0, (command, capsys.readouterr().err)
    capsys.readouterr()
    for command in (["train", *QUICK, "-q", "--overwrite"], ["train", *QUICK, "--seed", "3", "-q"]):
        assert run(*command) == 1
        error = capsys.readouterr().err
        assert "Read-only file system" in error
        assert error.count("\n") == 1
    assert {path: path.read_bytes() for path in before} == before
