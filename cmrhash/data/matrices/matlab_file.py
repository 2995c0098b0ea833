"""MATLAB's files up to version 7.2 in plain Python and NumPy, which damaged bytes cannot crash.

Each variable is listed by its header; its content is read on request. Layout: "MAT-File Format" of MathWorks. A number
has the type in which it is stored, which may be smaller than its class: MATLAB stores whole doubles as bytes.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cmrhash.data.matrices.array import LARGE, dense, from_columns

HEADER_MOST = 1 << 16  # unpacked bytes in which the header of a variable must end
AXES_MOST = 32
DEPTH_MOST = 16  # cells in cells
MATRIX, PACKED = 14, 15  # types of elements
STORED = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
LETTERS = {1: "utf-8", 2: "utf-8", 4: "utf-16", 16: "utf-8", 17: "utf-16", 18: "utf-32"}  # type -> encoding
CLASSES: tuple[str, ...] = ("", "cell", "struct", "object", "char", "sparse", "double", "single", "int8", "uint8")
CLASSES += ("int16", "uint16", "int32", "uint32", "int64", "uint64", "function", "opaque")
OLD_STORED = ("f8", "f4", "i4", "i2", "u2", "u1")  # of version 4
OLD_CLASSES = ("double", "char", "sparse")


@dataclass(frozen=True)
class Variable:
    """A variable of a file.

    shape, kind: as MATLAB shows them; kind "logical" for 0 and 1. complex: whether it has imaginary parts.
    file, at: its file, and the byte at which it begins. order: "<" or ">". old: of version 4.
    """

    file: Path
    at: int
    order: str
    name: str
    shape: tuple[int, ...]
    kind: str
    complex: bool = False
    old: bool = False

    def read(self) -> Any:
        """The numbers (sparse ones dense), strings without the last axis, cells as objects, or a dict of fields.

        Raises ValueError for a damaged variable and for complex numbers.
        """
        with self.file.open("rb") as file:
            file.seek(self.at)
            return _read_old(file, self.order) if self.old else _value(_matrix(file, self.order), self.order)


def variables(path: Path) -> Iterator[Variable]:
    """Variables of a file in order. Raises ValueError for a damaged file and for other formats."""
    size = path.stat().st_size
    with path.open("rb") as file:
        begin = file.read(128)
        if 0 in begin[:4]:
            yield from _old_variables(path, size)
            return
        order = {b"IM": "<", b"MI": ">"}.get(begin[126:])
        if not order or struct.unpack(f"{order}H", begin[124:126])[0] >> 8 != 1:
            raise ValueError("not a MATLAB file of version 4 to 7.2")
        at = 128
        while at < size:
            file.seek(at)
            kind, length = struct.unpack(f"{order}II", _exactly(file.read(8), 8))
            if kind not in (MATRIX, PACKED) or not length or at + 8 + length > size:
                raise ValueError(f"no variable at byte {at}")
            file.seek(at)
            yield _variable(path, at, order, _matrix(file, order, HEADER_MOST))
            at += 8 + length


def _exactly(raw: bytes, size: int) -> bytes:
    if len(raw) < size:
        raise ValueError("the file ends within a variable")
    return raw


def _matrix(file: Any, order: str, most: int = -1) -> memoryview:
    """Content of the variable that begins here, unpacked; most: at most so many bytes of it, -1 for all."""
    kind, length = struct.unpack(f"{order}II", _exactly(file.read(8), 8))
    if kind == MATRIX:
        size = length if most < 0 else min(length, most)
        return memoryview(_exactly(file.read(size), size))
    packed = file.read(length if most < 0 else min(length, most))
    unpacking = zlib.decompressobj()
    try:
        kind, length = struct.unpack(f"{order}II", _exactly(unpacking.decompress(packed, 8), 8))
        size = length if most < 0 else min(length, most)
        content = unpacking.decompress(unpacking.unconsumed_tail, size) if size else b""
        if most < 0 and not unpacking.eof:
            unpacking.decompress(unpacking.unconsumed_tail, 8)  # the end, with its checksum
    except zlib.error as error:
        raise ValueError(f"packed bytes that are damaged ({error})") from None
    if kind != MATRIX or (most < 0 and (len(content) < length or not unpacking.eof)):
        raise ValueError("packed bytes that are no whole variable")
    return memoryview(content)


class _Elements:
    """The elements of a variable, one after the other."""

    def __init__(self, content: memoryview, order: str) -> None:
        self._left, self.order = content, order

    def next(self) -> tuple[int, memoryview]:
        """Type and bytes of the next element. Raises ValueError at the end."""
        kind, length = struct.unpack(f"{self.order}II", _exactly(self._left[:8].tobytes(), 8))
        start, ends = 8, 8 + -(-length // 8) * 8
        if kind >> 16:  # small: type, length and at most four bytes in eight
            kind, length, start, ends = kind & 0xFFFF, kind >> 16, 4, 8
        if start + length > len(self._left) or (start == 4 and length > 4):
            raise ValueError("an element that is longer than its variable")
        content, self._left = self._left[start : start + length], self._left[ends:]
        return kind, content

    def numbers(self, as_bytes: bool = False) -> NDArray[Any]:
        """(n,) array of the next element, in the byte order of this machine; as_bytes: whatever type it names."""
        kind, content = self.next()
        kind = 2 if as_bytes else kind
        if kind not in STORED:
            raise ValueError(f"numbers of the unknown type {kind}")
        stored = np.dtype(self.order + STORED[kind])
        if len(content) % stored.itemsize:
            raise ValueError("numbers that are cut off")
        return np.frombuffer(content, stored).astype(stored.newbyteorder("="), copy=False)

    def __len__(self) -> int:
        return len(self._left)


@dataclass(frozen=True)
class _Header:
    kind: str
    logical: bool
    complex: bool
    shape: tuple[int, ...]
    name: str


def _header(elements: _Elements) -> _Header:
    flags = int(elements.numbers()[:1].sum())
    number = flags & 0xFF
    kind = CLASSES[number] if 0 < number < len(CLASSES) else "unknown"
    shape = () if kind == "opaque" else tuple(int(n) for n in elements.numbers())
    if len(shape) > AXES_MOST or any(n < 0 for n in shape):
        raise ValueError("a shape that cannot be")
    _, name = elements.next()
    return _Header(kind, bool(flags & 0x200), bool(flags & 0x800), shape, bytes(name).decode("latin-1"))


def _variable(path: Path, at: int, order: str, content: memoryview) -> Variable:
    head = _header(_Elements(content, order))
    kind = "logical" if head.logical and head.kind != "sparse" else head.kind
    # MATLAB keeps what its function handles need in a variable without a name
    return Variable(path, at, order, head.name or "__function_workspace__", head.shape, kind, head.complex)


def _value(content: memoryview, order: str, depth: int = 0) -> Any:
    """The value of a variable, a cell, or a field."""
    if not content:
        return np.zeros((0, 0))
    if depth > DEPTH_MOST:
        raise ValueError("cells in cells in cells")
    elements = _Elements(content, order)
    head = _header(elements)
    count = math.prod(head.shape)
    if head.kind == "sparse":
        rows, starts, values = elements.numbers(), elements.numbers(), elements.numbers(head.logical)
        if head.complex or len(head.shape) != 2:
            raise ValueError("a sparse matrix that is not of real numbers")
        return from_columns(values, rows, starts, (head.shape[0], head.shape[1]))
    if head.kind == "char":
        return _strings(*elements.next(), head.shape, order)
    if head.kind in ("cell", "struct"):
        names = _field_names(elements) if head.kind == "struct" else [""]
        if max(count, 1) * len(names) * 8 > len(elements) + 8 or (head.kind == "struct" and count != 1):
            raise ValueError("cells that are not in the file, or many structs")
        inner = (_inner(elements) for _ in range(count * len(names)))
        if head.kind == "struct":
            return {name: _field(one, order, depth + 1) for name, one in zip(names, inner, strict=True)}
        return _objects([_value(one, order, depth + 1) for one in inner], head.shape)
    if head.complex or head.kind not in CLASSES[6:16]:
        raise ValueError(f"{'complex numbers' if head.complex else head.kind}: not real numbers")
    return _shaped(elements.numbers(), head.shape)


def _field(content: memoryview, order: str, depth: int) -> Any:
    """The value of a field; None if it is of another kind or damaged, which leaves the other fields readable."""
    try:
        return _value(content, order, depth)
    except ValueError:
        return None


def _inner(elements: _Elements) -> memoryview:
    kind, content = elements.next()
    if kind != MATRIX:
        raise ValueError("a cell that is no variable")
    return content


def _shaped(x: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    if len(x) != math.prod(shape):
        raise ValueError(f"{len(x)} numbers for the shape {shape}: {LARGE}")
    return x.reshape(shape, order="F")


def _objects(values: list[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    x = np.empty(len(values), object)
    for at, value in enumerate(values):
        x[at] = value
    return _shaped(x, shape)


def _field_names(elements: _Elements) -> list[str]:
    """Names of a struct's fields, which are stored in equal lengths, filled up with NUL."""
    width, (_, names) = int(elements.numbers()[:1].sum()), elements.next()
    if width <= 0:
        raise ValueError("fields without names")
    return [bytes(names[at : at + width]).split(b"\0")[0].decode("latin-1") for at in range(0, len(names), width)]


def _strings(kind: int, content: memoryview, shape: tuple[int, ...], order: str) -> NDArray[Any]:
    """Strings along the last axis, which is stored last."""
    if kind not in LETTERS:
        raise ValueError(f"characters of the unknown type {kind}")
    encoding, raw = LETTERS[kind], bytes(content)
    if encoding != "utf-8":
        encoding += "-le" if order == "<" else "-be"
    text = raw.decode(encoding, "replace")
    return _lines(raw.decode("latin-1") if kind in (1, 2) and "\ufffd" in text else text, shape)


def _lines(text: str, shape: tuple[int, ...]) -> NDArray[Any]:
    if not math.prod(shape):
        return np.full(shape[:-1], "")
    if math.prod(shape[:-1]) == 1:
        return np.array([text])
    lines = ["".join(row) for row in _shaped(np.array(list(text), "U1"), shape).reshape(-1, shape[-1])]
    return np.array(lines).reshape(shape[:-1])


# ---------------------------------------------------------------------------------------------- version 4


def _old_header(raw: bytes) -> tuple[str, int, tuple[int, ...]]:
    """Byte order, type (thousands: machine; tens: numbers; ones: matrix), and rows, columns, imaginary, name length."""
    for order in "<>":
        kind, *more = struct.unpack(f"{order}5i", _exactly(raw, 20))
        machine, rest = divmod(kind, 1000)
        if kind >= 0 and machine == (order == ">") and rest < 100 and rest // 10 < 6 and rest % 10 < 3:
            if min(more) < 0:
                break
            return order, kind, tuple(more)
    raise ValueError("not a variable of MATLAB 4")


def _old_size(kind: int, about: tuple[int, ...]) -> int:
    rows, columns, imaginary, _ = about
    return rows * columns * (2 if imaginary else 1) * np.dtype(OLD_STORED[kind % 100 // 10]).itemsize


def _old_variables(path: Path, size: int) -> Iterator[Variable]:
    with path.open("rb") as file:
        at = 0
        while at < size:
            file.seek(at)
            order, kind, about = _old_header(file.read(20))
            ends = at + 20 + about[3] + _old_size(kind, about)
            if ends > size or about[3] > HEADER_MOST:
                raise ValueError(f"a variable at byte {at} that {LARGE}")
            name = file.read(about[3]).split(b"\0")[0].decode("latin-1")
            shape = about[:2]
            if kind % 10 == 2:
                file.seek(at)
                shape = _old_sparse(_old_numbers(file, order))[3]
            yield Variable(path, at, order, name, shape, OLD_CLASSES[kind % 10], bool(about[2]), True)
            at = ends


def _old_numbers(file: Any, order: str) -> NDArray[Any]:
    """(rows, columns) numbers of the variable that begins here, real ones."""
    order, kind, about = _old_header(file.read(20))
    file.seek(about[3], 1)
    stored = np.dtype(order + OLD_STORED[kind % 100 // 10])
    size = about[0] * about[1] * stored.itemsize
    x = np.frombuffer(_exactly(file.read(size), size), stored).astype(stored.newbyteorder("="), copy=False)
    return _shaped(x, about[:2])


def _old_sparse(x: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any], tuple[int, int]]:
    """(n, 1) values (2 if complex), rows, columns and shape; a line each, counted from 1, the last one the shape."""
    if x.ndim != 2 or x.shape[1] not in (3, 4) or not len(x) or not np.isfinite(x[:, :2]).all() or x[:, :2].min() < 0:
        raise ValueError("a sparse matrix that is not of real numbers")
    places = x[:, :2].astype(np.int64)
    return x[:-1, 2:], places[:-1, 0] - 1, places[:-1, 1] - 1, (int(places[-1, 0]), int(places[-1, 1]))


def _read_old(file: Any, order: str) -> Any:
    begin = file.tell()
    _, kind, about = _old_header(file.read(20))
    file.seek(begin)
    x = _old_numbers(file, order)
    if about[2]:
        raise ValueError("complex numbers: not real numbers")
    if kind % 10 == 2:
        values, rows, columns, shape = _old_sparse(x)
        if values.shape[1] > 1:
            raise ValueError("complex numbers: not real numbers")
        return dense(values[:, 0], rows, columns, shape)
    if kind % 10 == 1:
        letters = x.astype(np.uint8) if x.size and x.min() >= 0 and x.max() < 256 else np.zeros(x.shape, np.uint8)
        return _lines(letters.tobytes(order="F").decode("latin-1"), x.shape)
    return x
