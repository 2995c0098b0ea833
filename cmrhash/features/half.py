"""Features stored as float16 with a scale per column and block of rows.

Plain float16 loses values that are small or large beside 1. Here each column of a block is divided by a power of two,
which changes no digit, so that its largest value is between 2^14 and 2^15; rounding to float16 then keeps 11 binary
digits of every value down to 2^-29 of the largest. Storing values that were read back gives the same bytes, so that
shards merge into the file of a single process.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cmrhash.errors import DamagedError
from cmrhash.storage.sealed import DELETE

TOP = 15  # binary exponent of the largest stored value; float16 ends at 2^16
LARGEST = np.float32((2 - 2**-10) * 2**127)  # larger values would round up to infinity
LEAST = -110  # smaller exponents would give scales that float32 cannot invert


def encode(x: NDArray[np.float32]) -> tuple[NDArray[np.float16], NDArray[np.float32]]:
    """Scale a block of finite features (B, D); return the stored (B, D) float16 and the scales (D,) float32."""
    x = np.clip(x, -LARGEST, LARGEST)
    largest = np.abs(x).max(0, initial=0)
    exponent = np.maximum(np.frexp(largest)[1], LEAST)
    scale = np.ldexp(np.float32(1), exponent - TOP)
    # a value that rounds up to 2^15 belongs to the next scale, or reading and storing it again would change bytes
    scale[(largest / scale).astype(np.float16) == 2**TOP] *= 2
    return (x / scale).astype(np.float16), scale


@dataclass(frozen=True)
class HalfRows:
    """Rows of a stored array, read as float32.

    x: (N, D) float16, scale: (ceil(N / block_rows), D) float32; arrays, or datasets of a file, read slice by slice.
    """

    x: Any
    scale: Any
    block_rows: int

    @property
    def shape(self) -> tuple[int, int]:
        """Number of rows, number of columns."""
        rows, columns = self.x.shape
        return rows, columns

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any) -> NDArray[Any]:
        """Rows of a slice without step, or all of them with ``[...]``, as float32."""
        start, stop, _ = (slice(None) if rows is ... else rows).indices(len(self))
        out = np.empty((max(stop - start, 0), self.shape[1]), np.float32)
        for block in range(start // self.block_rows, -(-stop // self.block_rows)):
            first = max(block * self.block_rows, start)
            last = min((block + 1) * self.block_rows, stop)
            np.multiply(self.x[first:last], self.scale[block], out=out[first - start : last - start], dtype=np.float32)
        return out


def of_file(x: Any, scale: Any, block_rows: object, path: Path) -> HalfRows:
    """Rows of a feature file; raises DamagedError if its scales do not fit its rows."""
    if not isinstance(block_rows, int) or block_rows < 1 or scale.shape != (-(-x.shape[0] // block_rows), x.shape[1]):
        raise DamagedError("its scales do not fit its features", path, DELETE)
    return HalfRows(x, scale, block_rows)
