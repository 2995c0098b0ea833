"""Benchmarks of the feature file: writing and reading.

The naive ways use HDF5 as common scripts do.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path as File

import h5py
import numpy as np
from numpy.typing import NDArray

from cmrhash.bench import Case, Path, pieces
from cmrhash.features.file import FeatureWriter, read_features

ROWS, DIM, BLOCK = 20_000, 768, 256
RECIPE = {"kind": "image", "encoder": "bench", "weights": "random"}
SHARE = 0.1


@contextmanager
def _write() -> Iterator[Case]:
    """The naive way appends row by row, and a kill loses the file."""
    with tempfile.TemporaryDirectory() as folder:
        x = _features()

        def naive() -> float:
            with h5py.File(File(folder) / "naive.h5", "w") as file:
                rows = file.create_dataset("x", (0, DIM), np.float32, maxshape=(None, DIM))
                for n, row in enumerate(x[: round(SHARE * ROWS)]):
                    rows.resize(n + 1, axis=0)
                    rows[n] = row
            return float(DIM)

        def ours() -> float:
            path = File(folder) / "ours.h5"
            path.unlink(missing_ok=True)
            _store(path, x)
            return float(DIM)

        def limit() -> None:
            with (File(folder) / "raw").open("wb") as file:
                for rows in pieces(ROWS, BLOCK):
                    file.write(x[rows].tobytes())

        yield Case(naive, ours, limit, SHARE)


@contextmanager
def _read() -> Iterator[Case]:
    """The naive file has one chunk per row, as appending creates it, and is read row by row."""
    with tempfile.TemporaryDirectory() as folder:
        x = _features()
        path, raw = File(folder) / "ours.h5", File(folder) / "raw.npy"
        _store(path, x)
        np.save(raw, x)
        with h5py.File(File(folder) / "naive.h5", "w") as file:
            file.create_dataset("x", data=x[: round(SHARE * ROWS)], chunks=(1, DIM))

        def naive() -> float:
            with h5py.File(File(folder) / "naive.h5", "r") as file:
                rows = file["x"]
                return float(np.stack([rows[n] for n in range(len(rows))])[0].sum())

        yield Case(naive, lambda: read_features(path).x[0].sum(), lambda: np.load(raw), SHARE)


def _features() -> NDArray[np.float32]:
    return np.random.default_rng(0).standard_normal((ROWS, DIM), np.float32)


def _store(path: File, x: NDArray[np.float32]) -> None:
    item, ids = np.arange(ROWS, dtype=np.int32), tuple(map(str, range(ROWS)))
    valid, source = np.ones(ROWS, bool), np.zeros((ROWS, 16), np.uint8)
    with FeatureWriter(path, item, ids, DIM, RECIPE, BLOCK) as writer:
        for block in range(writer.blocks):
            rows = writer.slice(block)
            writer.commit(block, x[rows], valid[rows], source[rows])
        writer.seal({})


PATHS = {
    "cache-write": Path(
        "20,000 x 768 features written, committed and sealed; against a row at a time",
        "the same bytes written to a plain file",
        5,
        _write,
    ),
    "cache-read": Path(
        "20,000 x 768 features read, digest checked; against a row at a time",
        "numpy.load of a plain file",
        2,
        _read,
    ),
}
