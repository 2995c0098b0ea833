"""Short memory, full disks without a name, and packages of which a part is missing: one line that says so."""

import errno
import io
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from running import QUICK

from cmrhash.encoders.pixels import decode
from cmrhash.errors import DataError, UsageError, lacking
from cmrhash_cli import output

FAULT = pytest.mark.faults("limit of memory")
LINE = "error: not enough memory: raise its limit or give smaller batches, and rerun: finished work is kept\n"


def wrapped(error):
    """A DataError that another error caused."""
    try:
        raise error
    except Exception as cause:
        made = DataError("not readable", "x.h5")
        made.__cause__ = cause
        return made


@pytest.fixture
def failing(monkeypatch, capsys):
    """A function that runs a command in which an error is raised; returns its exit code and what stderr got."""
    monkeypatch.setattr(sys, "argv", ["cmrhash", "eval"])

    def call(error):
        def app(standalone_mode):
            raise error

        with pytest.raises(SystemExit) as ended:
            output.run(app)
        return ended.value.code, capsys.readouterr().err

    return call


@FAULT
@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        np._core._exceptions._ArrayMemoryError((1, 2), np.dtype(np.float32)),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        RuntimeError("can't start new thread"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:119] . DefaultCPUAllocator: can't allocate memory: you tried"),
        RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        wrapped(MemoryError()),
        wrapped(RuntimeError("can't start new thread")),
    ],
    ids=lambda error: type(error.__cause__ or error).__name__,
)
def test_short_memory_is_one_line(failing, error):
    code, line = failing(error)
    assert (code, line) == (getattr(error, "exit_code", 1), LINE)


def test_a_full_disk_without_a_name_leaves_no_empty_path(failing):
    fix = "check the path, its permissions and the free space\n"
    assert failing(OSError(errno.ENOSPC, "No space left on device")) == (1, f"error: No space left on device: {fix}")
    assert failing(OSError(errno.ENOSPC, "No space left", "a.h5")) == (1, f"error: No space left: a.h5: {fix}")


@FAULT
def test_a_photo_is_not_called_damaged_because_memory_is_short(monkeypatch):
    out = io.BytesIO()
    Image.new("RGB", (20, 20)).save(out, "PNG")

    def load(self):
        raise MemoryError

    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", load)
    with pytest.raises(MemoryError):
        decode(out.getvalue())


def test_the_part_of_a_package_that_is_missing_is_named():
    whole = lacking("plots need Matplotlib", "matplotlib", ImportError("x", name="matplotlib.style"), None, "pip")
    part = lacking(
        "plots need Matplotlib", "matplotlib", ImportError("No module named 'kiwi'", name="kiwi"), None, "pip"
    )
    assert isinstance(whole, UsageError)
    assert str(whole) == "plots need Matplotlib, which is not installed: pip"
    assert str(part) == "plots need Matplotlib, which cannot be loaded (No module named 'kiwi'): pip"


@FAULT
@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the limit is of Linux")
@pytest.mark.parametrize("megabytes", [150, 1000, 3500])
def test_a_command_below_a_limit_ends_in_one_line_or_is_done(make_cache, tmp_path, megabytes):
    make_cache(tmp_path / "cache")
    code = f"import resource; resource.setrlimit(resource.RLIMIT_AS, ({megabytes << 20},) * 2)\n"
    code += "from cmrhash_cli.main import main; main()"
    command = [sys.executable, "-c", code, "train", *QUICK, "-q"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.stderr == ("" if done.returncode == 0 else LINE)
