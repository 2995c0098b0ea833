"""Binary codes: packing of real values into bits, and detection of collapsed codes. NumPy only.

Layout: bit j of an item is ``x[j] >= 0`` and is stored in byte j // 8 at position j % 8, lowest bit first, as Faiss
reads it; unused bits of the last byte are 0. A row has its natural width, ceil(bits / 8) bytes, in every array that
passes between modules; only the Faiss calls see rows padded to 8 bytes (`pad`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cmrhash.errors import DataError, UsageError

# A head has collapsed when more than a quarter of its bits are constant, or fewer than one code in twenty is distinct.
MAX_CONSTANT_BITS = 0.25
MIN_DISTINCT = 0.05
MIN_ROWS = 20  # fewer codes are not judged: a bit of five random codes is constant in one of sixteen cases


@dataclass(frozen=True, eq=False)
class Codes:
    """Binary codes and the item of each row.

    packed: (N, ceil(bits / 8)) uint8, see `pack`; bits: int >= 1; item: (N,) int64, position of each row's item in the
    data set (the captions of an image share one item). Raises UsageError for a wrong dtype or shape, DataError for set
    bits beyond ``bits``.
    """

    packed: NDArray[np.uint8]
    bits: int
    item: NDArray[np.int64]

    def __post_init__(self) -> None:
        check_packed(self.packed, self.bits)
        if not isinstance(self.item, np.ndarray) or self.item.dtype != np.int64 or self.item.ndim != 1:
            raise UsageError(f"items must be a 1-D int64 array, got {describe(self.item)}")
        if len(self.item) != len(self.packed):
            raise UsageError(f"{len(self.packed)} codes but {len(self.item)} items: each code needs one item")

    def __repr__(self) -> str:
        return f"Codes({len(self)} codes of {self.bits} bits)"

    def __len__(self) -> int:
        return len(self.packed)


@dataclass(frozen=True)
class Collapse:
    """Measurements of `collapse`; shares are in [0, 1].

    constant_bits: bits with the same value in all rows, share of bits; distinct: different codes, share of
    rows; balance: mean over bits of |share of ones - 0.5|, 0 (each bit splits the items in half) to 0.5;
    mean_distance: Hamming distance of two different rows, mean over all pairs, share of bits (0.5 for random
    codes); collapsed: constant_bits > 0.25 or distinct < 0.05, of 20 rows or more.
    """

    constant_bits: float
    distinct: float
    balance: float
    mean_distance: float
    collapsed: bool


def pack(x: NDArray[np.floating[Any]]) -> NDArray[np.uint8]:
    """Binarise embeddings: (N, bits) real -> (N, ceil(bits / 8)) uint8, bit = (x >= 0).

    Raises UsageError when x is not a 2-D real array with at least one column, DataError for NaN or infinity, which
    would otherwise pass for a valid code.

    >>> pack(np.array([[0.3, -0.2, 0.0]]))  # bits 0 and 2
    array([[5]], dtype=uint8)
    """
    if not isinstance(x, np.ndarray) or x.dtype.kind not in "fiu" or x.ndim != 2 or x.shape[1] < 1:
        raise UsageError(f"embeddings must be a real (N, bits) array, got {describe(x)}")
    finite = np.isfinite(x).all(axis=1)  # (N,) bool
    if not finite.all():
        row, count = int(np.argmin(finite)), int(np.count_nonzero(~finite))
        raise DataError(
            f"embeddings with NaN or infinite values: {count} of {len(x)} rows, first is row {row}",
            fix="check the features and the training run that made them",
        )
    return np.packbits(x >= 0, axis=1, bitorder="little")


def unpack(packed: NDArray[np.uint8], bits: int) -> NDArray[np.bool_]:
    """Invert `pack`: (N, ceil(bits / 8)) uint8 -> (N, bits) bool. Raises as `check_packed` does.

    >>> unpack(np.array([[5]], np.uint8), bits=3)
    array([[ True, False,  True]])
    """
    check_packed(packed, bits)
    return np.unpackbits(packed, axis=1, count=bits, bitorder="little").astype(bool)


def pad(packed: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Append zero bytes: (N, w) uint8 -> contiguous (N, 8 * ceil(w / 8)) uint8.

    Zero bytes on both sides add nothing to a Hamming distance, and whole 8-byte words let Faiss take its word-wise
    kernels: 4 times faster at 32 bits, 39 times at 48.

    >>> pad(np.array([[5, 1]], np.uint8))
    array([[5, 1, 0, 0, 0, 0, 0, 0]], dtype=uint8)
    """
    width = packed.shape[1]
    padded = -(-width // 8) * 8
    if padded == width:
        return np.ascontiguousarray(packed)
    out = np.zeros((len(packed), padded), np.uint8)
    out[:, :width] = packed
    return out


def check_bits(bits: int) -> int:
    """Return ``bits`` as an int; raise UsageError unless it is a whole number >= 1.

    >>> check_bits(np.int64(32))
    32
    """
    if isinstance(bits, bool) or not isinstance(bits, (int, np.integer)) or bits < 1:
        raise UsageError(f"bits must be a whole number of at least 1, got {bits!r}")
    return int(bits)


def check_k(k: int) -> int:
    """Return the number of neighbours k as an int; raise UsageError unless it is whole and >= 1.

    >>> check_k(10)
    10
    """
    if isinstance(k, bool) or not isinstance(k, (int, np.integer)) or k < 1:
        raise UsageError(f"k must be a whole number of at least 1, got {k!r}")
    return int(k)


def check_radius(radius: int) -> None:
    """Raise UsageError unless the radius is a whole number of bits, 0 or more.

    >>> check_radius(4)
    """
    if isinstance(radius, bool) or not isinstance(radius, (int, np.integer)) or radius < 0:
        raise UsageError(f"radius must be a whole number of at least 0, got {radius!r}", option="radius")


def check_packed(packed: NDArray[np.uint8], bits: int, name: str = "codes") -> None:
    """Raise unless ``packed`` is (N, ceil(bits / 8)) uint8 with zeros beyond ``bits``.

    UsageError for the type, dtype, number of dimensions or width; DataError for set bits in the padding: they would
    silently add to distances.

    >>> check_packed(np.array([[5]], np.uint8), bits=2)
    Traceback (most recent call last):
    cmrhash.errors.DataError: codes have bits set beyond bit 2: first in row 0
    """
    width = -(-check_bits(bits) // 8)
    if not isinstance(packed, np.ndarray) or packed.dtype != np.uint8 or packed.ndim != 2:
        raise UsageError(f"{name} must be a 2-D uint8 array, got {describe(packed)}")
    if packed.shape[1] != width:
        raise UsageError(f"{name} of {bits} bits must have {width} bytes a row, got {packed.shape[1]}")
    beyond = packed[:, -1] >> (bits % 8) if bits % 8 else packed[:0, -1]  # (N,) uint8, 0 in sound codes
    if beyond.any():
        raise DataError(f"{name} have bits set beyond bit {bits}: first in row {int(np.argmax(beyond > 0))}")


def collapse(packed: NDArray[np.uint8], bits: int) -> Collapse:
    """Measure how much the codes still tell items apart; O(N * bits).

    packed: (N, ceil(bits / 8)) uint8 with N >= 2. The mean distance needs no pairs: a bit that is set in c of N rows
    differs in c (N - c) of the N (N - 1) / 2 pairs. Raises as `check_packed` does, DataError for N < 2.

    >>> collapse(np.array([[0], [1]], np.uint8), bits=2)
    Collapse(constant_bits=0.5, distinct=1.0, balance=0.25, mean_distance=0.5, collapsed=False)
    """
    ones = unpack(packed, bits).sum(axis=0, dtype=np.int64)  # (bits,) rows that set the bit
    rows = len(packed)
    if rows < 2:
        raise DataError(f"collapse detection needs at least 2 codes, got {rows}")
    constant = float(np.mean((ones == 0) | (ones == rows)))
    distinct = len({row.tobytes() for row in packed}) / min(rows, 2**bits)
    return Collapse(
        constant_bits=constant,
        distinct=distinct,
        balance=float(np.abs(ones / rows - 0.5).mean()),
        mean_distance=float((2.0 * ones * (rows - ones)).mean() / (rows * (rows - 1))),
        collapsed=rows >= MIN_ROWS and (constant > MAX_CONSTANT_BITS or distinct < MIN_DISTINCT),
    )


def describe(value: object) -> str:
    """Name an argument for an error message: dtype and shape of an array, else its type.

    >>> describe(np.zeros((3, 4))), describe([1, 2])
    ('float64 (3, 4)', 'list')
    """
    if isinstance(value, np.ndarray):
        return f"{value.dtype} {value.shape}"
    return type(value).__name__
