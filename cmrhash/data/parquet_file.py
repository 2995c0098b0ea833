"""Parquet files, with pyarrow: rows as a stream, and photos out of a column; ``parquet`` runs this apart.

A column of photos holds binary values, or objects with the fields ``bytes`` and ``path`` as Hugging Face stores images.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from cmrhash.errors import DataError, lacking

BATCH, PHOTOS = 1024, 16  # rows in memory at a time; of a column of photos
KEPT, BATCHES = 64 * 2**20, 64  # bytes and batches of photos that stay in memory, besides the last two batches
OPEN = 4  # columns of photos that stay open
_STARTS = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"RIFF", b"II*\0", b"MM\0*")  # of photos; BMP see below


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Any]:
    """Yield the open file; raises DataError if it is damaged, UsageError without pyarrow."""
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        fix = 'pip install "cmrhash[parquet]"'
        raise lacking("Parquet needs pyarrow", "pyarrow", error, path, fix) from None
    try:  # with these settings a row group is not held whole, however long it is
        with ParquetFile(path, pre_buffer=False, buffer_size=1 << 20) as file:
            yield file
    except (ArrowException, OSError, ValueError, MemoryError) as error:
        raise DataError(f"unreadable ({str(error)[:120]})", path, "write the table again") from None


def columns(path: Path) -> tuple[list[str], list[str]]:
    """Names of all columns, and of those that hold photos."""
    with opened(path) as file:
        photos = [name for name in _binary(file) if _begins_with_a_photo(file, _binary(file)[name])]
        return list(map(str, file.schema_arrow.names)), photos


def blocks(path: Path, names: Sequence[str], photos: Sequence[str]) -> Iterator[list[list[Any]]]:
    """Values of these columns, BATCH rows at a time; for a photo only whether there is one."""
    rows = _rows(path, names, photos)
    while block := list(itertools.islice(rows, BATCH)):
        yield block


def _rows(path: Path, names: Sequence[str], photos: Sequence[str]) -> Iterator[list[Any]]:
    with opened(path) as file:
        there = {name: _present(file, _binary(file)[name]) for name in names if name in photos}
        plain = [name for name in dict.fromkeys(names) if name not in photos]
        classes = {name: found for name, found in _classes(file).items() if name in plain}
        if not plain:
            yield from (list(row) for row in zip(*(there[name] for name in names), strict=True))
            return
        for batch in file.iter_batches(BATCH, columns=plain):
            values = {name: batch.column(name).to_pylist() for name in plain}
            values |= {name: [_named(value, names) for value in values[name]] for name, names in classes.items()}
            for at in range(len(batch)):
                yield [next(there[name]) if name in there else values[name][at] for name in names]


def _classes(file: Any) -> dict[str, list[str]]:
    """Columns of numbers of classes, with the classes' names, which Hugging Face stores in the file."""
    try:
        columns = json.loads(file.schema_arrow.metadata[b"huggingface"])["info"]["features"]
        inner = {name: about.get("feature", about) for name, about in columns.items() if isinstance(about, dict)}
        found = {name: about["names"] for name, about in inner.items() if about.get("_type") == "ClassLabel"}
    except (KeyError, TypeError, ValueError, AttributeError):
        return {}
    return {name: names for name, names in found.items() if isinstance(names, list)}


def _named(value: Any, names: list[str]) -> Any:
    """The name of a class for its number, of each for a list; any other value as it is."""
    if isinstance(value, list):
        return [_named(one, names) for one in value]
    return names[value] if isinstance(value, int) and 0 <= value < len(names) else value


def _binary(file: Any) -> dict[str, str]:
    """Columns that may hold photos: name -> path of the binary values within the schema."""
    from pyarrow import types

    found = {}
    for column in file.schema_arrow:
        inner = types.is_struct(column.type) and column.type.get_field_index("bytes") >= 0
        kind = column.type.field("bytes").type if inner else column.type
        if types.is_binary(kind) or types.is_large_binary(kind):
            found[str(column.name)] = f"{column.name}.bytes" if inner else str(column.name)
    return found


def _begins_with_a_photo(file: Any, column: str) -> bool:
    """Whether the first value looks like a file of a photo; some programs store texts as binary values."""
    for batch in file.iter_batches(PHOTOS, columns=[column]):
        if first := next(filter(None, _contents(batch)), None):
            return first.startswith(_STARTS) or (first[:2] == b"BM" and first[6:10] == bytes(4))
    return False


def _present(file: Any, column: str) -> Iterator[bool]:
    """Whether each row has a photo; row groups without nulls, by their statistics, are not read."""
    leaf = [file.schema.column(n).path for n in range(len(file.schema))].index(column)
    for group in range(file.num_row_groups):
        about = file.metadata.row_group(group)
        known = about.column(leaf).statistics
        if known is not None and known.has_null_count and not known.null_count:
            yield from (True for _ in range(about.num_rows))
            continue
        for batch in file.iter_batches(PHOTOS, row_groups=[group], columns=[column]):
            yield from (content is not None for content in _contents(batch))


def _contents(batch: Any) -> list[bytes | None]:
    """Bytes of the only column of a batch, or of the field of its objects."""
    return [value.get("bytes") if isinstance(value, dict) else value for value in batch.column(0).to_pylist()]


# ---------------------------------------------------------------------------------------------- single photos


def photo(path: Path, column: str, row: int) -> bytes | None:
    """The photo in a row, counted from 0; None for an empty cell.

    Raises IndexError without such a row, KeyError without such a column, OSError without the file, else as ``opened``.
    """
    about = path.stat()
    photos = _opened_photos(path, column, about.st_ino, about.st_size, about.st_mtime_ns)
    with photos.lock:
        return photos.read(row)


@lru_cache(OPEN)
def _opened_photos(path: Path, column: str, *_: int) -> _Photos:
    return _Photos(path, column)


class _Photos:
    """Photos of a column, which is read forward in small batches.

    The last batches are kept, so photos that are asked for in about the order of the rows are read once. For a row
    before the kept ones, its row group is read again.
    """

    def __init__(self, path: Path, column: str) -> None:
        self.lock, self._path = threading.Lock(), path
        self._files = contextlib.ExitStack()  # closes the file when this object goes
        self._file = self._files.enter_context(opened(path))
        self._column = _binary(self._file)[column]
        self._at, self._stream = 0, iter(())  # the row that the stream gives next
        self._kept: OrderedDict[int, list[bytes | None]] = OrderedDict()  # first row -> photos
        self._bytes = 0
        self._starts = [0]
        for group in range(self._file.num_row_groups):
            self._starts.append(self._starts[-1] + self._file.metadata.row_group(group).num_rows)

    def read(self, row: int) -> bytes | None:
        """The photo of a row."""
        if not 0 <= row < self._starts[-1]:
            raise IndexError(row)
        while (first := next((n for n, kept in self._kept.items() if n <= row < n + len(kept)), None)) is None:
            self._next(row)
        return self._kept[first][row - first]

    def _next(self, row: int) -> None:
        """Read one more batch of the row group of ``row``, from the first one if the stream is elsewhere."""
        from pyarrow import ArrowException

        group = next(n for n, end in enumerate(self._starts[1:]) if row < end)
        start = self._starts[group]
        if not start < self._at <= row:
            self._at, self._stream = start, self._file.iter_batches(PHOTOS, row_groups=[group], columns=[self._column])
        try:
            photos = _contents(next(self._stream))
        except (ArrowException, OSError, StopIteration) as error:
            self._at = -1
            raise DataError(f"unreadable ({str(error)[:120]})", self._path, "write the table again") from None
        self._bytes += _size(photos) - _size(self._kept.pop(self._at, []))
        self._kept[self._at] = photos
        self._at += len(photos)
        while (self._bytes > KEPT or len(self._kept) > BATCHES) and len(self._kept) > 2:
            self._bytes -= _size(self._kept.popitem(last=False)[1])


def _size(photos: Iterable[bytes | None]) -> int:
    return sum(len(photo or b"") for photo in photos)
