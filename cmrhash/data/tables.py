"""Tables as a stream of rows: CSV and TSV, JSON lines, and Parquet (with pyarrow).

A table is opened for its columns first; ``Table.rows`` then reads the columns that are used, row by row. A Parquet
table may have several files, and may hold the photos themselves.
"""

from __future__ import annotations

import ast
import codecs
import contextlib
import csv
import itertools
import json
import math
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from cmrhash.data import parquet
from cmrhash.data.parsing import unique_keys
from cmrhash.data.photo_files import Cell
from cmrhash.data.split_names import splits_of
from cmrhash.errors import DataError

PARQUET = ".parquet"
SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", PARQUET)
DATA, SPLIT = "data", "split"
DELIMITERS = (",", ";", "\t", "|")
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, whose mark it starts with
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
Row = tuple[int, list[Any]]  # number of the row's first line, and a value per asked column


@dataclass(frozen=True)
class Table:
    """A table that is read row by row.

    path: its file, or the folder of its files. columns: names in order. rows: function of the numbers of the asked
    columns; with ``open_end``, surplus fields of a CSV row belong to its last column, otherwise they are an error. Rows
    without any value are passed over. photos: columns that hold the photos themselves; their values are places as of
    ``cmrhash.data.photo_files``, or None.
    """

    path: Path
    columns: tuple[str, ...]
    rows: Callable[[Sequence[int], bool], Iterator[Row]]
    photos: frozenset[str] = frozenset()

    @property
    def folder(self) -> Path:
        """Folder of the table, below which its photos are."""
        return self.path if self.path.is_dir() else self.path.parent


def find_table(root: Path) -> Table:
    """Open the table at ``root``: that file, the only table in that folder, or its Parquet files with equal columns.

    Raises DataError, or UsageError for Parquet without pyarrow.
    """
    if root.is_file():
        return open_table(root)
    if not root.is_dir():
        raise DataError("no such file or folder", root, "give a table, or the folder that holds it")
    names = tables_in(root)
    if len(names) == 1 and "/" not in names[0]:
        return open_table(root / names[0])
    if names and all(name.lower().endswith(PARQUET) for name in names) and (joined := _joined(root, names)):
        return joined
    what = f"{len(names)} tables ({', '.join(names[:5])})" if names else f"no table ({', '.join(SUFFIXES)})"
    raise DataError(what, root, "give the file of the table with `root`")


def tables_in(folder: Path) -> list[str]:
    """Names of the tables in a folder, by suffix in any case, sorted; without hidden ones.

    Without any, Parquet files in its folder ``data``, where Hugging Face has them.
    """
    names = sorted(name for name in os.listdir(folder) if name.lower().endswith(SUFFIXES) and name[0] != ".")
    if not names and (folder / DATA).is_dir():
        names = [f"{DATA}/{name}" for name in sorted(os.listdir(folder / DATA)) if name.endswith(PARQUET)]
    return names


def open_table(path: Path) -> Table:
    """Read the columns of a table; its suffix tells the format, any unknown suffix means CSV.

    Raises DataError for a table without columns, UsageError for Parquet without pyarrow.
    """
    suffix = path.suffix.lower()
    opened = {".jsonl": _open_lines, ".ndjson": _open_lines, ".parquet": _open_parquet}.get(suffix, _open_csv)(path)
    if not any(name.strip() for name in opened.columns):
        raise DataError("the table has no columns", path, "write their names into the first line")
    return opened


@contextlib.contextmanager
def _text(path: Path, newline: str) -> Iterator[TextIO]:
    """Open a file in the encoding of its byte order mark, else UTF-8; a DataError names the first bad line."""
    with path.open("rb") as raw:
        start = raw.read(4)
    encoding = next((encoding for mark, encoding in _MARKS if start.startswith(mark)), "utf-8")
    try:
        with path.open(encoding=encoding, newline=newline) as lines:
            yield lines
    except UnicodeError:
        line = f"line {_bad_line(path)} is" if "utf-8" in encoding else "it is"
        raise DataError(f"{line} not {encoding[:6].upper()}", path, "save the table as UTF-8") from None


def _bad_line(path: Path) -> int:
    """Number of the first line that is not UTF-8."""
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            try:
                line.decode()
            except UnicodeDecodeError:
                return number
    return number


# ---------------------------------------------------------------------------------------------- cells


def strings(value: Any, as_list: bool) -> list[str]:
    """Strings of a cell of a table: none, one, or those of a list (as_list: also of a list written as text).

    Raises ValueError for objects.
    """
    if isinstance(value, str):
        listed = _listed(value) if as_list else None
        return [value] if listed is None else listed
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return []
    if isinstance(value, float) and value.is_integer():
        return [str(int(value))]
    if isinstance(value, bool | int | float):
        return [str(value)]
    if isinstance(value, list) and as_list:
        return [text for one in value for text in strings(one, as_list=False)]
    raise ValueError("a list" if isinstance(value, list) else "an object")


def _listed(text: str) -> list[str] | None:
    """Strings of a list in the notation of JSON or Python; None for any other text."""
    text = text.strip()
    if text[:1] != "[" or text[-1:] != "]":
        return None
    for parse in (json.loads, _literal):
        try:
            return strings(parse(text), as_list=True)
        except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
            continue
    return None


def _literal(text: str) -> Any:
    """Value of a literal of Python, without the warnings that its parser gives for odd texts."""
    with warnings.catch_warnings(action="ignore"):
        return ast.literal_eval(text)


# ---------------------------------------------------------------------------------------------- CSV, TSV


def _open_csv(path: Path) -> Table:
    with _text(path, "") as lines:
        head = list(itertools.islice(lines, 50))
    headers = {mark: next((row for _, row in _records(path, head, mark) if any(row)), []) for mark in DELIMITERS}
    delimiter = max(DELIMITERS, key=lambda mark: len(headers[mark]))
    if any(name.startswith(" ") for name in headers[delimiter][1:]):  # "image| comment": the space is no part of fields
        delimiter += " "
    columns = tuple(name.strip(' "') for name in headers[delimiter[0]])

    def rows(asked: Sequence[int], open_end: bool) -> Iterator[Row]:
        with _text(path, "") as lines:
            records = ((line, row) for line, row in _records(path, lines, delimiter, closed=True) if any(row))
            next(records)
            for line, row in records:
                row = _fitted(row, len(columns), delimiter, open_end, f"line {line}", path)
                yield line, [row[at] for at in asked]

    return Table(path, columns, rows)


def _records(path: Path, lines: Iterable[str], delimiter: str, closed: bool = False) -> Iterator[tuple[int, list[str]]]:
    """Records with the number of their first line.

    delimiter: a space after it means that spaces after delimiters belong to no field. closed: raise DataError for a
    quote that nothing closes.
    """
    ended = False

    def until_the_end() -> Iterator[str]:
        nonlocal ended
        yield from lines
        ended = True

    reader = csv.reader(until_the_end(), delimiter=delimiter[0], skipinitialspace=len(delimiter) > 1)
    first = 1
    unclosed = "opens a quote that is never closed"
    try:
        for record in reader:
            if ended and closed:  # the reader looked for more lines before the record was whole
                raise DataError(f"line {first} {unclosed}", path, "close it, or double the quotes within a field")
            yield first, record
            first = reader.line_num + 1
    except csv.Error as error:
        if closed:
            long = f"{unclosed}, or has a field of over {csv.field_size_limit():,} characters"
            what = long if "limit" in str(error) else f"cannot be read ({error})"
            raise DataError(f"line {first} {what}", path, "close its quote, or double quotes within a field") from None


def _fitted(row: list[str], count: int, delimiter: str, open_end: bool, line: str, path: Path) -> list[str]:
    """The row with as many fields as there are columns."""
    while len(row) > count and not row[-1].strip():
        row.pop()
    if len(row) <= count:
        return row + [""] * (count - len(row))
    if not open_end:
        what = f"{line} has {len(row)} fields, the table has {count} columns"
        raise DataError(what, path, f"put quotes around fields that contain {delimiter[0]!r}")
    return [*row[: count - 1], delimiter.join(row[count - 1 :])]


# ---------------------------------------------------------------------------------------------- JSON lines


def _open_lines(path: Path) -> Table:
    plain = json.JSONDecoder().decode  # ``rows`` looks for repeated keys, which takes twice as long
    columns = tuple(dict.fromkeys(itertools.chain.from_iterable(row for _, row in _objects(path, plain))))

    def rows(asked: Sequence[int], open_end: bool) -> Iterator[Row]:
        names = [columns[at] for at in asked]
        for line, row in _objects(path, json.JSONDecoder(object_pairs_hook=unique_keys).decode):
            yield line, [row.get(name) for name in names]

    return Table(path, columns, rows)


def _objects(path: Path, decode: Callable[[str], Any]) -> Iterator[tuple[int, dict[str, Any]]]:
    with _text(path, "\n") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = decode(line.strip())
                if not isinstance(row, dict):
                    raise ValueError("no JSON object")
            except (ValueError, RecursionError) as error:
                raise DataError(f"line {number} cannot be read ({error})", path, "write a JSON object") from None
            yield number, row


# ---------------------------------------------------------------------------------------------- Parquet


def _open_parquet(path: Path, name: str = "") -> Table:
    """Open a Parquet file; name: its path below the table's folder, if that is not its own."""
    columns, photos = parquet.columns(path)

    def rows(asked: Sequence[int], open_end: bool) -> Iterator[Row]:
        names = [columns[at] for at in asked]
        for number, row in enumerate(parquet.rows(path, names, photos)):
            for at, column in enumerate(names):
                if column in photos:
                    row[at] = Cell(column, number).within(name or path.name) if row[at] else None
            yield number + 1, row

    return Table(path, columns, rows, photos)


def _joined(root: Path, names: Sequence[str]) -> Table | None:
    """The Parquet files of a folder as one table, None if their columns differ; rows are counted through all files.

    A column "split" is added if the names of the files tell their splits (``splits_of``).
    """
    parts = [_open_parquet(root / name, name) for name in names]
    if any((part.columns, part.photos) != (parts[0].columns, parts[0].photos) for part in parts):
        return None
    splits = splits_of(names)
    named = any(splits) and SPLIT not in parts[0].columns
    columns = (*parts[0].columns, SPLIT) if named else parts[0].columns

    def rows(asked: Sequence[int], open_end: bool) -> Iterator[Row]:
        before = 0
        for part, split in zip(parts, splits, strict=True):
            line = 0
            for line, row in part.rows([at for at in asked if at < len(part.columns)], open_end):
                values = iter(row)
                yield before + line, [next(values) if at < len(part.columns) else split for at in asked]
            before += line

    return Table(root, columns, rows, parts[0].photos)
