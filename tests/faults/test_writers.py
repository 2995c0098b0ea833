"""Two processes at the same files: the second writer is told who the first one is, and a reader sees whole files only.

Beside it what HDF5 itself does to them.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import threading

import h5py
import naive
import numpy as np
import pytest
from running import EXTRACT, QUICK, files, run, write_own

from cmrhash.config import EvalConfig
from cmrhash.data.items import ImageTextDataset
from cmrhash.data.view import View
from cmrhash.errors import DataError, LockedError
from cmrhash.evaluation.evaluate import evaluate
from cmrhash.features.dataset import ExtractedDataset
from cmrhash.features.file import FeatureWriter, read_features
from cmrhash.storage.files import write_bytes

pytestmark = pytest.mark.slow

HOLD = """
import sys
from pathlib import Path
from cmrhash.storage.files import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""
TRAIN = ["train", "--dataset", "toy", *QUICK]
FEATURES, RUN = "own/manifest/image-mobilenet_v3_small-random.h5", "runs/toy/triplet-8"
LOCKED = {  # what another process writes, and the command that wants to
    FEATURES: [*EXTRACT, "--cache", "own", "--overwrite"],
    f"{RUN}/config.json": TRAIN,
    f"{RUN}/codes.h5": ["eval", "--dataset", "toy"],
}
X = np.arange(40, dtype=np.float32).reshape(10, 4)


@pytest.fixture(scope="module")
def prepared(make_cache, tmp_path_factory):
    """An extracted data set with a trained run, and another one of photos."""
    base, before = tmp_path_factory.mktemp("prepared"), os.getcwd()
    make_cache(base / "cache", count=40)
    write_own(base / "mine")
    os.chdir(base)
    assert run(*TRAIN, "-q") == run(*EXTRACT, "--cache", "own", "-q") == 0
    os.chdir(before)
    return base


@pytest.fixture
def here(prepared, tmp_path, monkeypatch):
    shutil.copytree(prepared, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def contents(folder):
    """All but the account of the data set: it names the folder of the photos, which has moved."""
    return {path: content for path, content in files(folder).items() if path.name != "dataset.json"}


@contextlib.contextmanager
def held_elsewhere(path, **environment):
    """Another process holds the lock of a file."""
    child = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ | environment,
    )
    assert child.stdout.readline() == b"held\n"
    try:
        yield child.pid
    finally:
        child.kill()
        child.communicate()


@pytest.mark.faults("second writer, reader meanwhile")
@pytest.mark.parametrize("path", LOCKED)
@pytest.mark.parametrize("locking", ["TRUE", "FALSE"])
def test_a_second_process_is_told_who_writes_and_changes_nothing(here, capsys, monkeypatch, path, locking):
    monkeypatch.setenv("HDF5_USE_FILE_LOCKING", locking)  # not what any of this depends on
    if path.endswith("codes.h5"):
        (here / path).unlink()
    before = contents(here)
    with held_elsewhere(here / path, HDF5_USE_FILE_LOCKING=locking) as pid:
        assert run(*LOCKED[path], "-q") == 3
        error = capsys.readouterr().err
    assert f"being written by process {pid} on " in error
    assert error.count("\n") == 1
    assert contents(here) == before
    assert run(*LOCKED[path], "-q") == 0  # the holder was killed: its lock went with it


def write(path, x, replace=True):
    """A feature file, with a word in between: a generator that stops after each of its blocks."""
    item, ids = np.arange(len(x), dtype=np.int32), tuple(f"i{n}" for n in range(len(x)))
    with FeatureWriter(path, item, ids, x.shape[1], {"of": float(x[0, 0])}, 4, replace) as writer:
        for block in range(writer.blocks):
            rows = writer.slice(block)
            count = rows.stop - rows.start
            writer.commit(block, x[rows], np.ones(count, bool), np.zeros((count, 16), np.uint8))
            yield block
        writer.seal({})


@pytest.mark.faults("second writer, reader meanwhile")
def test_nothing_is_there_before_all_of_it_is(tmp_path, faults):
    path = tmp_path / "image-x.h5"
    data = ExtractedDataset(ImageTextDataset("toy", tmp_path, (), ()), tmp_path)
    for _ in write(path, X):
        faults.tried += 1
        with pytest.raises(DataError, match="no such file"):
            read_features(path)
        faults.survived += not data.headers(View.IMAGE)
    np.testing.assert_array_equal(read_features(path).x, X)


@pytest.mark.faults("second writer, reader meanwhile")
def test_who_reads_the_old_file_goes_on_reading_it(tmp_path, faults):
    path = tmp_path / "image-x.h5"
    list(write(path, X))
    with h5py.File(path, "r") as old, path.open("rb") as raw:
        whole = path.read_bytes()
        for _ in write(path, X + 1):
            faults.tried += 1
            faults.survived += np.array_equal(read_features(path).x, X) and np.array_equal(old["x"][...], X)
        assert raw.read() == whole
        np.testing.assert_array_equal(old["x"][...], X)
    np.testing.assert_array_equal(read_features(path).x, X + 1)


@pytest.mark.faults("second writer, reader meanwhile")
def test_two_who_write_the_same_small_file_take_turns(tmp_path):
    """Threads, as two processes would: each opens the file anew, and a lock belongs to what was opened."""
    path = tmp_path / "items.jsonl"
    whole = {bytes([letter]) * 200_000 for letter in b"abcd"}
    errors = []

    def write_often(content):
        try:
            for _ in range(20):
                write_bytes(path, content)
        except OSError as error:
            errors.append(error)

    threads = [threading.Thread(target=write_often, args=(content,)) for content in whole]
    write_bytes(path, min(whole))
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        assert path.read_bytes() in whole
    assert errors == []
    assert [p.name for p in tmp_path.iterdir()] == ["items.jsonl"]


OPENED = []  # (path, how) since the watch began


def _listen(event, args):
    if event == "open" and OPENED and isinstance(args[0], str | bytes | os.PathLike):
        writes = args[2] & (os.O_WRONLY | os.O_RDWR | os.O_TRUNC) if isinstance(args[2], int) else 0
        OPENED.append((os.path.abspath(os.fsdecode(args[0])), bool(writes)))


sys.addaudithook(_listen)


@pytest.mark.faults("second writer, reader meanwhile")
def test_no_file_is_ever_written_under_its_final_name(here, monkeypatch):
    class File(h5py.File):
        def __init__(self, name, mode, **options):
            OPENED.append((os.path.abspath(os.fspath(getattr(name, "name", name))), mode != "r"))
            super().__init__(name, mode, **options)

    monkeypatch.setattr(h5py, "File", File)
    (here / RUN / "codes.h5").unlink()
    OPENED.append(("", False))
    for command in LOCKED.values():
        more = [] if "eval" in command or "--overwrite" in command else ["--overwrite"]
        assert run(*command, *more, "-q") == 0
    shutil.rmtree(here / "own")
    assert run(*EXTRACT, "--cache", "own", "-q") == 0
    written = {path for path, writes in OPENED if writes and path.startswith(str(here))}
    OPENED.clear()
    assert {path for path in written if not path.endswith((".part", ".part.new", ".lock"))} == set()
    names = {"items.jsonl", "dataset.json", "config.json", "heads.safetensors", "codes.h5", os.path.basename(FEATURES)}
    assert {os.path.basename(path).removesuffix(".part") for path in written} >= names


@pytest.mark.faults("second writer, reader meanwhile")
def test_two_scores_of_a_run_at_once_end_with_one_of_them(here, faults):
    """Both find no codes; a second one is refused or finds those of the first, and never seals a mixture."""
    data = ExtractedDataset.open(here / "cache", "toy")
    expected = files(here / RUN)
    (here / RUN / "codes.h5").unlink()
    outcomes = []

    def score():
        try:
            evaluate(EvalConfig(), data, here / "runs")
            outcomes.append("scored")
        except LockedError:
            outcomes.append("refused")

    threads = [threading.Thread(target=score) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert "scored" in outcomes
    assert len(outcomes) == 3
    faults.naive_tried = 3
    faults.naive_survived = naive.outcomes(
        [(kind, here / f"{kind}.h5", 0) for kind in ("write while read", "append twice", "read while written")], here
    ).count("same")
    faults.tried = 3
    faults.survived = 3 * (files(here / RUN)[here / RUN / "codes.h5"] == expected[here / RUN / "codes.h5"])
