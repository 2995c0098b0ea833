"""Some features, and the way that a script would write them: appended to one HDF5 file, closed at the end.

Run as a program, it looks at such files after a crash, each in a process of its own: HDF5 may die of one, or hang.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import h5py
import numpy as np

ROWS, DIM, BLOCK = 22, 96, 4  # a block of x is three sectors of a disk
RNG = np.random.default_rng(0)
VALID = np.arange(ROWS) % 5 != 3
X = np.where(VALID[:, None], RNG.standard_normal((ROWS, DIM)), 0).astype(np.float32)
SOURCE = RNG.integers(1, 256, (ROWS, 16)).astype(np.uint8)
ARRAYS = {"x": X, "valid": VALID, "source": SOURCE}
LOST = 100  # more than there are: the file cannot be opened, or rows are wrong


def append(folder: Path, say: Callable[[object], None]) -> None:
    with h5py.File(folder / "image.h5", "w") as file:
        for name, values in ARRAYS.items():
            file.create_dataset(name, (0, *values.shape[1:]), values.dtype, maxshape=(None, *values.shape[1:]))
        for first in range(0, ROWS, BLOCK):
            for name, values in ARRAYS.items():
                file[name].resize(min(first + BLOCK, ROWS), axis=0)
                file[name][first:] = values[first : first + BLOCK]
            say(first // BLOCK)


def blocks(path: Path) -> int:
    """Of how many blocks all rows are there; raises if the file cannot be opened or a row is wrong."""
    with h5py.File(path, "r") as file:
        rows = [len(file[name]) for name in ARRAYS]
        for count, (name, values) in zip(rows, ARRAYS.items(), strict=True):
            assert np.array_equal(file[name][...], values[:count])
    return -(-min(rows) // BLOCK)


def look(paths: Sequence[Path]) -> list[int]:
    """`blocks` of each, or LOST."""
    command = [sys.executable, __file__, *map(str, paths)]
    shown = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout
    return [int(line) for line in shown.split()]


def _look(path: Path) -> int:
    child = os.fork()
    if not child:
        signal.alarm(5)
        try:
            os._exit(blocks(path))
        except BaseException:
            os._exit(LOST)
    status = os.waitpid(child, 0)[1]
    return os.WEXITSTATUS(status) if os.WIFEXITED(status) else LOST


if __name__ == "__main__":
    for name in sys.argv[1:]:
        print(_look(Path(name)))
