"""Readers in another process: their results, their errors, and their end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from cmrhash.data.matrices.arrays import list_arrays
from cmrhash.errors import DataError, StaleError, UsageError
from cmrhash.storage import apart

HERE = __name__.rpartition(".")[2]  # pytest imports test files by their path; the other process by their name


def odd(path, *_):
    objects = np.empty((2, 1), object)
    objects[:, 0] = ["a", ["b", b"c"]]
    return [np.arange(6.0).reshape(2, 3).T, np.zeros((0, 2), "i4"), objects, b"\0\xff", path.name, None, {"n": 1.5}]


def die(path, number):
    os.kill(os.getpid(), number)


def loop(path):
    while True:
        pass


def fail(path, kind):
    raise {
        "ours": UsageError("no", path, "so", option="bits"),
        "stale": StaleError("old"),
        "index": IndexError("7"),
        "other": ZeroDivisionError("by zero"),
    }[kind]


def count(path, upto):
    yield from ([n, b"x" * n] for n in range(upto))


@pytest.fixture(autouse=True)
def _importable(monkeypatch):
    apart._stop()
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    yield
    apart._stop()


def test_values_come_as_they_are():
    x, none, objects, raw, name, nothing, about = apart.call(f"{HERE}:odd", Path("some/file.h5"))
    assert np.array_equal(x, np.arange(6.0).reshape(2, 3).T)
    assert (none.shape, none.dtype) == ((0, 2), np.int32)
    assert objects.tolist() == [["a"], [["b", b"c"]]]
    assert (raw, name, nothing, about) == (b"\0\xff", "file.h5", None, {"n": 1.5})


def test_a_large_array_comes_whole(tmp_path):
    import h5py

    x = np.random.default_rng(0).random((3000, 700))
    with h5py.File(tmp_path / "f.h5", "w") as file:
        file["x"] = x
    (array,) = list_arrays(tmp_path / "f.h5")
    assert np.array_equal(array.read(), x)
    array.read()[0] = 1  # may be changed, as one that was read here


def test_errors_keep_their_class_and_name_the_file_as_given():
    path = Path("some/file.h5")
    with pytest.raises(UsageError, match=r"^bits: no: some/file\.h5: so$"):
        apart.call(f"{HERE}:fail", path, "ours")
    for kind, error, words in (
        ("stale", StaleError, "^old$"),
        ("index", IndexError, "^7$"),
        ("other", ValueError, "ZeroDivisionError: by zero"),
    ):
        with pytest.raises(error, match=words):
            apart.call(f"{HERE}:fail", path, kind)


@pytest.mark.faults("changed bytes in a foreign file")
@pytest.mark.parametrize(
    ("number", "words"), [(signal.SIGSEGV, "Segmentation fault"), (signal.SIGABRT, "Aborted"), (signal.SIGKILL, "Kill")]
)
def test_the_end_of_the_reader_is_one_line(number, words):
    with pytest.raises(DataError, match=rf"^the file ended the process that reads it \({words}.*\): f\.h5: it may be"):
        apart.call(f"{HERE}:die", Path("f.h5"), int(number))
    assert apart.call(f"{HERE}:odd", Path("f.h5"))[4] == "f.h5"  # the next file has another reader


@pytest.mark.faults("changed bytes in a foreign file")
def test_a_reader_that_loops_for_ever_is_ended(monkeypatch):
    monkeypatch.setattr(apart, "CPU_SECONDS", 0)
    with pytest.raises(DataError, match=r"^the file ended the process that reads it \(CPU time limit exceeded.*\): f"):
        apart.call(f"{HERE}:loop", Path("f.h5"))
    assert apart.call(f"{HERE}:odd", Path("f.h5"))[4] == "f.h5"


def test_streams_take_turns_and_end_with_their_reader():
    path = Path("f")
    one, two = apart.stream(f"{HERE}:count", path, 3), apart.stream(f"{HERE}:count", path, 50)
    assert [next(one), next(two), next(one), next(one), next(two)] == [
        [0, b""],
        [0, b""],
        [1, b"x"],
        [2, b"xx"],
        [1, b"x"],
    ]
    assert list(one) == []
    with pytest.raises(DataError):
        apart.call(f"{HERE}:die", path, int(signal.SIGKILL))
    with pytest.raises(DataError, match="its reader was ended by another file"):
        next(two)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_process_has_a_reader_of_its_own():
    apart.call(f"{HERE}:odd", Path("f"))
    assert apart._reader is not None
    theirs = apart._reader.pid
    child = os.fork()
    if not child:
        apart.call(f"{HERE}:odd", Path("f"))
        os._exit(int(apart._reader.pid == theirs))
    assert os.waitpid(child, 0)[1] == 0
    apart.call(f"{HERE}:odd", Path("f"))
    assert apart._reader.pid == theirs


def test_the_reader_ends_with_its_program():
    start = "import os; from cmrhash.storage.apart import _running; print(_running().pid, flush=True)"
    code = f"{start}; os.kill(os.getpid(), 9)"
    pid = int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout)
    for _ in range(100):
        try:
            stat = Path(f"/proc/{pid}/stat").read_text()
        except FileNotFoundError:
            return
        if ") Z" in stat:
            return
        time.sleep(0.1)
    pytest.fail("still there")
