"""Atomic writes and digests, call by call. Beyond Linux: tests/faults/test_any_os.py."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import stat
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cmrhash.errors import DamagedError, UsageError
from cmrhash.storage import files

FIX = "make it again"


@pytest.fixture
def calls(monkeypatch):
    """Names of the calls of the system that matter here, with the base names of their paths, in their order."""
    if not os.path.isdir("/proc/self/fd"):
        pytest.skip("open files are listed on Linux")
    seen = []

    def watch(name, real):
        def call(*args, **options):
            path = args[-1] if name == "replace" else args[0]
            done = real(*args, **options)
            if isinstance(path, int):
                seen.append((name, os.path.basename(os.readlink(f"/proc/self/fd/{path}"))))
            else:
                seen.append((name, os.path.basename(path)))
            return done

        return call

    for name in ("fsync", "replace"):
        monkeypatch.setattr(os, name, watch(name, getattr(os, name)))
    return seen


# ---------------------------------------------------------------------------------------------- writes


@given(st.lists(st.binary(max_size=30), max_size=12), st.integers(1, 40))
def test_pieces_are_joined_up_to_a_size_and_none_is_lost(pieces, size):
    files_piece, files.PIECE = files.PIECE, size
    try:
        joined = list(files._joined(iter(pieces)))
    finally:
        files.PIECE = files_piece
    assert b"".join(joined) == b"".join(pieces)
    assert all(len(piece) >= size for piece in joined[:-1])
    assert all(len(piece) - size < max(map(len, pieces)) for piece in joined[:-1])
    assert len(joined[-1]) < size


def test_bytes_are_one_piece():
    whole = b"x" * (2 * files.PIECE)
    assert list(files._joined(whole)) == [whole]
    assert files.PIECE == 2**20


def test_a_file_is_on_disk_before_it_is_renamed_and_its_name_after(tmp_path, calls):
    files.write_bytes(tmp_path / "new/deep/a.txt", iter([b"one", b"two"]))
    assert (tmp_path / "new/deep/a.txt").read_bytes() == b"onetwo"
    made = [("fsync", "new"), ("fsync", tmp_path.name)]
    assert calls == [*made, ("fsync", "a.txt.part"), ("replace", "a.txt"), ("fsync", "deep")]
    assert [path.name for path in tmp_path.rglob("*")] == ["new", "deep", "a.txt"]
    calls.clear()
    files.remove(tmp_path / "new/deep/a.txt")
    files.remove(tmp_path / "new/deep/a.txt")
    assert calls == [("fsync", "deep")]
    assert not (tmp_path / "new/deep/a.txt").exists()


def test_what_an_earlier_write_left_is_written_over(tmp_path):
    (tmp_path / "a.part").write_bytes(b"of a process that was killed")
    (tmp_path / "a").write_bytes(b"old")
    files.write_bytes(tmp_path / "a", b"new")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a": b"new"}


def test_who_waited_for_a_write_that_is_done_opens_a_new_file(tmp_path, monkeypatch):
    real, waited = files._lock, []

    def lock(file, wait):
        if not waited:  # the other process finishes: it has renamed the file that this one has open
            (tmp_path / "a.part").rename(tmp_path / "a")
        waited.append(wait)
        return real(file, wait)

    monkeypatch.setattr(files, "_lock", lock)
    (tmp_path / "a.part").write_bytes(b"of the other")
    with files._open_exclusively(tmp_path / "a.part") as file:
        assert (tmp_path / "a").read_bytes() == b"of the other"
        file.write(b"own")
        assert (tmp_path / "a.part").read_bytes() == b"own"
    assert waited == [True, True]


def test_windows_locks_another_file_while_it_writes(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "WINDOWS", True)
    real, waits = files.locked, []
    monkeypatch.setattr(files, "locked", lambda path, wait=False: (waits.append(wait), real(path, wait))[1])
    with files._open_exclusively(tmp_path / "a.part") as file:
        assert files.holder(tmp_path / "a.part").startswith("process ")
        file.write(b"whole")  # unbuffered
        assert (tmp_path / "a.part").read_bytes() == b"whole"
    assert files.holder(tmp_path / "a.part") == ""
    assert waits == [True]
    files.write_bytes(tmp_path / "a", b"new")
    assert (tmp_path / "a").read_bytes() == b"new"


def test_a_write_that_takes_part_of_the_bytes_goes_on_behind_them(tmp_path, monkeypatch):
    real = files._open_exclusively

    class Slow:
        def __init__(self, file):
            self.file = file

        def write(self, piece):
            return self.file.write(piece[:3])

        def __getattr__(self, name):
            return getattr(self.file, name)

    @contextlib.contextmanager
    def slowly(partial):
        with real(partial) as file:
            yield Slow(file)

    monkeypatch.setattr(files, "_open_exclusively", slowly)
    files.write_bytes(tmp_path / "a", b"0123456789")
    assert (tmp_path / "a").read_bytes() == b"0123456789"


def test_windows_syncs_no_folder(tmp_path, monkeypatch, calls):
    (tmp_path / "a").write_bytes(b"")
    files.sync(tmp_path / "a")
    files.sync(tmp_path)
    assert calls == [("fsync", "a"), ("fsync", tmp_path.name)]
    calls.clear()
    monkeypatch.setattr(files, "WINDOWS", True)
    files.sync(tmp_path)
    files.sync(tmp_path / "a")
    assert calls == [("fsync", "a")]


@pytest.mark.parametrize("number", files.NO_SYNC)
def test_folders_that_cannot_be_synced_are_passed_over(tmp_path, monkeypatch, number):
    def fail(_):
        raise OSError(number, os.strerror(number))

    (tmp_path / "a").write_bytes(b"")
    monkeypatch.setattr(os, "fsync", fail)
    files.sync(tmp_path)
    with pytest.raises(OSError, match=os.strerror(number)):
        files.sync(tmp_path / "a")


def test_a_sync_closes_what_it_opened(tmp_path, monkeypatch):
    closed, real = [], os.close

    def fail(_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "close", lambda handle: (closed.append(handle), real(handle)))
    files.sync(tmp_path)
    assert len(closed) == 1
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        files.sync(tmp_path)
    assert len(closed) == 2


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_failed_write_names_the_file_leaves_the_old_one_and_no_part(tmp_path, monkeypatch, call):
    (tmp_path / "a").write_bytes(b"old")

    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(OSError, match="No space left on device") as caught:
        files.write_bytes(tmp_path / "a", b"new")
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(tmp_path / "a"))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a": b"old"}


def test_a_failed_sync_of_the_name_is_told_although_the_file_is_there(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda handle: stat.S_ISDIR(os.fstat(handle).st_mode) and fail(handle))

    def fail(_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with pytest.raises(OSError, match=os.strerror(errno.EIO)) as caught:
        files.write_bytes(tmp_path / "a", b"new")
    assert (caught.value.errno, caught.value.filename) == (errno.EIO, str(tmp_path / "a"))


def test_a_folder_is_no_file(tmp_path):
    (tmp_path / "a").mkdir()
    content = iter([b"never read"])
    with pytest.raises(IsADirectoryError) as caught:
        files.write_bytes(tmp_path / "a", content)
    assert next(content) == b"never read"
    assert (caught.value.errno, caught.value.filename) == (errno.EISDIR, str(tmp_path / "a"))
    assert os.strerror(errno.EISDIR) in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_move_that_is_refused_is_tried_again_on_windows_alone(tmp_path, monkeypatch):
    tried, slept = [], []

    def refuse(*_):
        tried.append(1)
        raise PermissionError(errno.EACCES, "in use")

    (tmp_path / "part").write_bytes(b"new")
    monkeypatch.setattr(os, "replace", refuse)
    monkeypatch.setattr(files.time, "sleep", slept.append)
    for windows, count in ((False, 1), (True, files.MOVES)):
        monkeypatch.setattr(files, "WINDOWS", windows)
        tried.clear()
        with pytest.raises(PermissionError, match="in use"):
            files.move(tmp_path / "part", tmp_path / "a")
        assert len(tried) == count
    assert (len(slept), {*slept}) == (files.MOVES - 1, {0.02})
    assert 1 < files.MOVES * 0.02 < 5


def test_a_part_that_is_gone_is_told_although_another_file_is_there(tmp_path, monkeypatch):
    (tmp_path / "part").write_bytes(b"new")

    def gone(part, path):
        os.unlink(part)
        raise FileNotFoundError(errno.ENOENT, "gone")

    monkeypatch.setattr(os, "replace", gone)
    for old in (False, True):
        (tmp_path / "part").write_bytes(b"new")
        if old:
            (tmp_path / "a").write_bytes(b"old")
        with pytest.raises(FileNotFoundError, match="^.Errno 2. gone$"):
            files.move(tmp_path / "part", tmp_path / "a")


# ---------------------------------------------------------------------------------------------- folders and names


def test_a_folder_is_emptied_but_for_the_kept_file_and_what_others_have_open(tmp_path):
    for name in ("a", "keep", "sub/deep/b", "other/keep", "nfs/.nfs0001", "nfs/c"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/mine").write_bytes(b"")
    folder = tmp_path / "x"
    folder.mkdir()
    for name in ("a", "keep", "sub", "other", "nfs"):
        (tmp_path / name).rename(folder / name)
    (folder / "link").symlink_to(tmp_path / "outside")
    files.clear(folder, "keep")
    left = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))
    assert left == ["keep", "nfs", "nfs/.nfs0001", "other", "other/keep"]
    assert (tmp_path / "outside/mine").exists()
    files.clear(folder)
    assert sorted(path.name for path in folder.rglob("*")) == [".nfs0001", "nfs"]


def test_a_file_that_another_process_deletes_meanwhile_is_no_error(tmp_path):
    (tmp_path / "a").write_bytes(b"")
    files.clear(SimpleNamespace(rglob=lambda _: [tmp_path / "a", tmp_path / "gone"]))
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("refused", "names"),
    [(True, "con NUL.txt com1 lpt9.tar.gz a. .."), (False, "console com com10 x.con a.b .a")],
)
def test_names_that_windows_refuses(refused, names):
    assert {files.is_refused_elsewhere(name) for name in names.split(" ")} == {refused}
    assert files.is_refused_elsewhere("a ")


def test_a_name_that_differs_by_case_is_told_with_its_folder_and_what_is_there(tmp_path, monkeypatch):
    (tmp_path / "toy").mkdir()
    monkeypatch.setattr(os, "listdir", lambda _: ["b", "Toy", "TOY", "zoo"])
    with pytest.raises(UsageError, match="^'toy' is 'TOY' here: the file system does not tell upper from") as caught:
        files.refuse_folded(tmp_path / "toy")
    assert (caught.value.where, caught.value.fix) == (tmp_path, "choose another name or folder")
    monkeypatch.setattr(os, "listdir", lambda _: ["Toy", "toy"])
    files.refuse_folded(tmp_path / "toy")
    monkeypatch.setattr(os, "listdir", lambda _: ["zoo"])  # it was deleted meanwhile
    files.refuse_folded(tmp_path / "toy")
    (tmp_path / "link").symlink_to("nowhere")
    monkeypatch.setattr(os, "listdir", lambda _: ["LINK"])
    with pytest.raises(UsageError, match="^'link' is 'LINK' here"):
        files.refuse_folded(tmp_path / "link")


def test_each_name_of_a_path_is_looked_at(tmp_path, monkeypatch):
    (tmp_path / "Runs/toy/cca-16").mkdir(parents=True)
    assert files.below(tmp_path / "Runs", "toy", "cca-16") == tmp_path / "Runs/toy/cca-16"
    for upper in ("toy", "cca-16"):
        monkeypatch.setattr(os, "listdir", lambda path, upper=upper: [upper.upper(), path.name, "toy2"])
        with pytest.raises(UsageError, match=f"^'{upper}' is '{upper.upper()}' here"):
            files.below(tmp_path / "Runs", "toy", "cca-16")


def test_a_folder_that_may_not_be_listed_is_not_asked(tmp_path, monkeypatch):
    (tmp_path / "toy").mkdir()
    monkeypatch.setattr(os, "listdir", lambda path: os.scandir(path / "none"))
    with pytest.raises(FileNotFoundError):
        files.refuse_folded(tmp_path / "toy")

    def refuse(path):
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(os, "listdir", refuse)
    files.refuse_folded(tmp_path / "toy")


# ---------------------------------------------------------------------------------------------- JSON and digests

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(), lambda c: st.lists(c) | st.dictionaries(st.text(), c)
)


@settings(max_examples=20)
@given(st.dictionaries(st.text(), JSON, max_size=4))
def test_an_object_is_read_as_it_was_written(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "a.json"
    files.write_json(path, content)
    if "{\n" in path.read_text(encoding="utf-8"):
        assert json.loads(path.read_bytes()).keys() == content.keys() | {"sha256"}
        surrogates = any(0xD800 <= ord(letter) < 0xE000 for letter in json.dumps(content, ensure_ascii=False))
        assert surrogates or files.read_json(path, FIX) == content


def test_the_first_line_is_the_digest_of_the_other_bytes_and_letters_are_letters(tmp_path):
    path = tmp_path / "a.json"
    files.write_json(path, {"name": "Grün", "more": {"sha256": "0" * 64}, "odd": "\udcff"})
    first, digest, *rest = path.read_bytes().split(b"\n")
    assert (first, digest[:12], digest[-2:]) == (b"{", b' "sha256": "', b'",')
    assert digest[12:-2].decode() == hashlib.sha256(b"\n".join([first, *rest])).hexdigest()
    assert b"\n".join(rest).decode() == (
        ' "name": "Grün",\n "more": {\n  "sha256": "' + "0" * 64 + '"\n },\n "odd": "\\udcff"\n}\n'
    )
    assert files.read_json(path, FIX)["odd"] == "\udcff"


def damaged(path, words):
    with pytest.raises(DamagedError) as caught:
        files.read_json(path, FIX)
    assert (caught.value.what, caught.value.where, caught.value.fix) == (words, path, FIX)


def test_what_is_no_such_object_is_damage(tmp_path):
    path = tmp_path / "a.json"
    files.write_json(path, {"a": 1, "b": 2})
    whole, changed = path.read_bytes(), "the file was changed after writing: its sha256 differs"
    for other in (whole.replace(b"1", b"3"), whole + b" ", whole[:-1], b"", b"{}", whole.replace(b"sha256", b"sha255")):
        path.write_bytes(other)
        damaged(path, changed)
    for body in (b"[\n]\n", b"{\n", b"3", b"[" * 100_000):
        line = f' "sha256": "{hashlib.sha256(body).hexdigest()}",\n'.encode()
        path.write_bytes(body + b"\n" + line if body == b"3" else line + body)
        if body == b"3":
            path.write_bytes(f' "sha256": "{hashlib.sha256(body).hexdigest()}",\n3'.encode())
        damaged(path, "not a JSON object")
    path.unlink()
    os.mkfifo(path)
    damaged(path, "not a regular file")


def test_a_file_is_named_by_its_digest(tmp_path):
    (tmp_path / "a").write_bytes(b"x" * 100_000)
    digest = hashlib.sha256(b"x" * 100_000).hexdigest()
    assert files.sha256(tmp_path / "a") == digest
    assert files.checked(tmp_path, "a", digest, FIX) == tmp_path / "a"
    (tmp_path / "sub").mkdir()
    for name, of in (("a", digest[::-1]), ("a", None), ("b", digest), ("sub", digest), ("sub/../a", digest)):
        with pytest.raises(DamagedError, match="missing, or does not match its sha256") as caught:
            files.checked(tmp_path, name, of, FIX)
        assert (caught.value.where, caught.value.fix) == (tmp_path / name, FIX)
    with pytest.raises(DamagedError):
        files.checked(tmp_path, str(tmp_path / "a"), digest, FIX)
