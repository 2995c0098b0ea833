"""File systems that are not like a local disk: NFS, and those that do not tell upper from lower case.

What they do differently is put into the calls of ``os``; each must be safe, or one line.
"""

from __future__ import annotations

import errno
import os
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from ready_data import put
from running import files as files_of
from running import run

from cmrhash.data import manifest
from cmrhash.errors import CmrhashError, UsageError
from cmrhash.features.dataset import ExtractedDataset
from cmrhash.storage import files, staged

KIND = "file system that lacks something"


def error(number):
    return OSError(number, os.strerror(number))


# ---------------------------------------------------------------------------------------------- NFS


@pytest.fixture
def silly(monkeypatch):
    """A file that is deleted stays as .nfs... until nobody has it open, as the client of NFS has it."""
    real, count = os.unlink, iter(range(10**6))

    def unlink(path, *args, **options):
        opened = {os.path.realpath(f"/proc/self/fd/{number}") for number in os.listdir("/proc/self/fd")}
        if os.path.realpath(path) in opened:
            os.rename(path, Path(os.fsdecode(path)).with_name(f".nfs{next(count):08}"))
        else:
            real(path, *args, **options)

    monkeypatch.setattr(os, "unlink", unlink)
    monkeypatch.setattr(Path, "unlink", lambda path, missing_ok=False: _unlink(unlink, path, missing_ok))
    return unlink


def _unlink(unlink, path, missing_ok):
    if path.exists() or path.is_symlink() or not missing_ok:
        unlink(path)


@pytest.mark.faults(KIND)
@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="the open files are listed on Linux")
def test_deleted_files_that_stay_under_another_name_are_not_ours(tmp_path, silly):
    put(5, tmp_path, texts=True)
    with (tmp_path / "toy/image-toy.h5").open("rb"), (tmp_path / "toy/items.jsonl").open("rb"):
        put(7, tmp_path, texts=True)
        put(8, tmp_path, texts=True, overwrite=False)
    data = ExtractedDataset.open(tmp_path, "toy")
    assert len(data.dataset.items) == 8
    assert {len(header.path.read_bytes()) > 0 for header in data.headers("image")} == {True}
    with staged.staged(tmp_path / "out", "config") as aside:
        (aside / ".nfs00000001").write_bytes(b"deleted")
        (aside / "config").write_bytes(b"kept")
    assert [path.name for path in (tmp_path / "out").iterdir() if path.is_file()] == ["config"]


@pytest.mark.faults(KIND)
def test_a_lock_that_was_deleted_through_another_machine_is_taken_again(tmp_path, monkeypatch):
    real, stale = os.fstat, [True]

    def fstat(handle):
        if stale and stale.pop():
            raise error(errno.ESTALE)
        return real(handle)

    monkeypatch.setattr(files.os, "fstat", fstat)
    with files.locked(tmp_path / "x.h5"):
        assert not stale
    files.write_bytes(tmp_path / "a", b"a")
    assert (tmp_path / "a").read_bytes() == b"a"


@pytest.mark.faults(KIND)
def test_a_rename_that_the_server_did_twice_was_done(tmp_path, monkeypatch):
    real = os.replace

    def twice(part, path):
        real(part, path)
        real(part, path)

    monkeypatch.setattr(os, "replace", twice)
    files.write_bytes(tmp_path / "a", b"new")
    assert (tmp_path / "a").read_bytes() == b"new"
    (tmp_path / "part").write_bytes(b"lost")

    def gone(part, path):
        os.unlink(part)
        raise FileNotFoundError(errno.ENOENT, "gone")

    monkeypatch.setattr(os, "replace", gone)
    with pytest.raises(FileNotFoundError):
        files.move(tmp_path / "part", tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == b"new"


@pytest.mark.faults(KIND)
@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP])
def test_locks_that_the_server_refuses_are_named(tmp_path, monkeypatch, number):
    pytest.importorskip("fcntl")

    def refuse(*_):
        raise error(number)

    monkeypatch.setattr("portalocker.portalocker.LOCKER", refuse)  # fcntl.flock
    for write in (lambda: put(3, tmp_path), lambda: files.write_bytes(tmp_path / "a", b"a")):
        with pytest.raises(
            CmrhashError, match=rf"takes no locks \(.*{os.strerror(number)}.*use folders on a local disk"
        ):
            write()
    for open_folder in (staged.staged(tmp_path / "export", "a"), files.new_folder(tmp_path / "run")):
        with pytest.raises(CmrhashError, match="takes no locks"), open_folder, files.locked(tmp_path / "run/a"):
            pass
    assert [path for path in tmp_path.rglob("*") if path.name in ("export", "run") or path.suffix == ".lock"] == []


@pytest.mark.faults(KIND)
@pytest.mark.parametrize(
    ("call", "number"),
    [
        ("replace", errno.ESTALE),
        ("replace", errno.EDQUOT),
        ("fsync", errno.EIO),
        ("open", errno.ETIMEDOUT),
        ("stat", errno.ESTALE),
        ("scandir", errno.EIO),
    ],
)
def test_a_server_that_fails_is_one_line_and_loses_nothing(tmp_path, monkeypatch, capsys, number, call):
    """The error comes at the second call below the cache."""
    put(5, tmp_path / "cache", texts=True)
    np.savez(tmp_path / "more.npz", image=np.ones((6, 3), np.float32), text=np.ones((6, 2), np.float32))
    monkeypatch.chdir(tmp_path)
    before = {path: path.read_bytes() for path in (tmp_path / "cache").rglob("*") if path.is_file()}
    real, count = getattr(os, call), iter(range(10**6))

    def failing(path=".", *args, **options):
        inside = isinstance(path, int) or "cache" in os.fspath(path)
        if inside and next(count) == 1:
            raise error(number)
        return real(path, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(os, call, failing)
        extract = ["extract", "--dataset", "features", "--features", "more.npz", "--name", "toy", "--overwrite", "-q"]
        code, printed = run(*extract), capsys.readouterr().err
    assert code in (0, 1, 2, 5), printed
    assert "unexpected" not in printed
    assert printed.count("\n") == (code != 0), printed
    if code:
        now = {path: path.read_bytes() for path in before}
        assert {path for path in now if path.suffix != ".lock" and now[path] != before[path]} == set()
        assert run(*extract) == 0, capsys.readouterr().err
    assert len(ExtractedDataset.open(tmp_path / "cache", "toy").dataset.items) == 6


# ---------------------------------------------------------------------------------------------- upper and lower case


@pytest.fixture
def folding(monkeypatch):
    """A function that lists the names of a folder as another program wrote them."""

    def start(**names):
        real = os.listdir
        monkeypatch.setattr(files.os, "listdir", lambda path: [names.get(name, name) for name in real(path)])

    return start


@pytest.mark.faults(KIND)
def test_a_data_set_whose_name_differs_by_case_is_refused_where_both_are_one_folder(
    tmp_path, monkeypatch, capsys, folding
):
    np.savez(tmp_path / "more.npz", image=np.ones((6, 3), np.float32), text=np.ones((6, 2), np.float32))
    monkeypatch.chdir(tmp_path)
    extract = ["extract", "--dataset", "features", "--features", "more.npz", "--name", "toy", "-q"]
    assert run(*extract) == 0
    before = {path: path.read_bytes() for path in (tmp_path / "cache").rglob("*") if path.is_file()}
    folding(toy="TOY")
    for more in ([], ["--overwrite"]):
        assert run(*extract, *more) == 2
        printed = capsys.readouterr().err
        assert "'toy' is 'TOY' here: the file system does not tell upper from lower case" in printed
        assert printed.count("\n") == 1
    assert {path: path.read_bytes() for path in (tmp_path / "cache").rglob("*") if path.is_file()} == before


@pytest.mark.faults(KIND)
def test_so_is_a_feature_file_of_an_encoder_whose_name_differs_by_case(tmp_path, folding):
    put(5, tmp_path)
    folding(**{"image-toy.h5": "image-Toy.h5"})
    with pytest.raises(UsageError, match="does not tell upper from lower case"):
        put(5, tmp_path, overwrite=True)
    assert len(manifest.load(tmp_path / "toy").items) == 5


RUNS = {
    "train": ["--method", "cca", "--bits", "2"],
    "compare": ["--method", "cca", "--bits", "2", "--seeds", "1"],
    "sweep": ["--method", "triplet", "--bits", "2", "--set", "lr=0.1,1"],
    "plot": ["pr"],
}


@pytest.mark.faults(KIND)
@pytest.mark.parametrize("command", RUNS)
def test_so_are_runs_beside_those_of_such_a_data_set(tmp_path, monkeypatch, capsys, folding, command):
    monkeypatch.chdir(tmp_path)
    np.savez("more.npz", image=np.eye(40, 4), text=np.eye(40, 3), labels=np.arange(40) % 2)
    assert run("extract", "--dataset", "features", "--features", "more.npz", "--name", "toy", "-q") == 0
    (tmp_path / "runs/toy").mkdir(parents=True)
    for name in ("compare.json", "report.html"):
        (tmp_path / "runs/toy" / name).write_bytes(b"of TOY")
    before = files_of(tmp_path)
    folding(toy="TOY")
    assert run(command, *RUNS[command], "-q") == 2
    printed = capsys.readouterr().err
    assert "'toy' is 'TOY' here: the file system does not tell upper from lower case: ./runs: choose" in printed
    assert printed.count("\n") == 1
    assert files_of(tmp_path) == before


def test_a_file_system_that_decomposes_letters_is_not_one_that_folds_case(tmp_path, folding):
    name = "Grün"
    (tmp_path / name).mkdir()
    folding(**{name: unicodedata.normalize("NFD", name)})
    files.refuse_folded(tmp_path / name)
    files.refuse_folded(tmp_path / "missing")


def test_names_that_differ_by_case_are_two_data_sets_elsewhere(tmp_path):
    for name in ("toy", "TOY"):
        (tmp_path / name).mkdir()
        files.refuse_folded(tmp_path / name)
