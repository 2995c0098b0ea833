"""The tables of Hugging Face's imagefolder: ``metadata.csv`` and ``metadata.jsonl``."""

from __future__ import annotations

import codecs
import csv
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from cmrhash.data.items import clean_label, clean_text, resolve_image
from cmrhash.errors import DataError, did_you_mean

FILE_NAME, STEM = "file_name", "metadata"
CAPTIONS = ("text", "caption", "sentence", "description")  # of a language, the first of these is read
LABELS = ("label", "labels", "class", "category", "categories", "tags")
FILE, LABEL = ("file", ""), ("label", "")  # roles of columns; that of captions: (one of CAPTIONS, language)
_CAPTION = re.compile(rf"({'|'.join(CAPTIONS)})s?(?:[_.-]?\d+)?(?:[_.-](?!id$)([a-z]{{2}}))?(?:[_.-]?\d+)?")
Roles = dict[str, tuple[str, str] | None]  # column -> role; None: not used
_MARKS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}


@dataclass
class Row:
    """What the rows of a photo say: captions by language, and labels."""

    texts: dict[str, list[str]] = field(default_factory=dict)
    labels: set[str] = field(default_factory=set)

    def joined(self, other: Row) -> Row:
        """This row with the captions and labels of another one added."""
        for lang, captions in other.texts.items():
            self.texts.setdefault(lang, []).extend(captions)
        self.labels |= other.labels
        return self


def find_tables(root: Path, files: Iterable[str]) -> list[str]:
    """Paths of the tables among these files. Raises DataError for two in one folder, or for Parquet."""
    tables: dict[PurePosixPath, str] = {}
    for path in files:
        name = PurePosixPath(path)
        if name.stem.lower() != STEM or name.suffix.lower() not in (".csv", ".jsonl", ".parquet"):
            continue
        if name.suffix.lower() == ".parquet":
            raise DataError("Parquet is not read here", root / path, f"write it as {STEM}.csv or {STEM}.jsonl")
        if name.parent in tables:
            raise DataError(
                "two tables in one folder", f"{root / tables[name.parent]} and {path}", "remove one of them"
            )
        tables[name.parent] = path
    return list(tables.values())


def read_table(root: Path, table: str, rows: dict[str, Row], extra: Counter[str]) -> None:
    """Add the rows of a table to ``rows``: path of the photo below the root -> row.

    extra: counts the columns that are not used. Raises DataError that names the line of a bad row.
    """
    path, folder = root / table, PurePosixPath(table).parent
    entries = _csv(path) if table.lower().endswith(".csv") else _jsonl(path)
    roles: Roles = {}
    for number, entry in entries:
        for column in entry.keys() - roles.keys():
            roles[column] = _role(column)
        try:
            name = _file_name(entry, roles)
            texts, labels = _captions(entry, roles), _labels(entry, roles)
        except ValueError as error:
            raise DataError(f"line {number}: {error}", path, "fix this line") from None
        photo = (folder / name).as_posix()
        if photo not in rows:
            resolve_image(root, photo)
        rows.setdefault(photo, Row()).joined(Row(texts, labels))
    if not roles:
        raise DataError("the table has no rows", path, f"give a row with {FILE_NAME} for every photo")
    if unused := sorted(clean_text(column) or "unnamed" for column, role in roles.items() if role is None):
        extra[f"columns not used ({', '.join(unused[:5])}{', ...' if len(unused) > 5 else ''})"] += len(unused)


def _role(column: str) -> tuple[str, str] | None:
    """Role of a column: FILE, LABEL, or a kind of caption and its language; None: not used."""
    name = clean_text(column).lower()
    if name == FILE_NAME or name in LABELS:
        return FILE if name == FILE_NAME else LABEL
    match = _CAPTION.fullmatch(name)
    return (match[1], match[2] or "en") if match else None


def _columns(entry: dict[str, Any], roles: Roles, role: tuple[str, str]) -> list[Any]:
    return [value for column, value in entry.items() if roles[column] == role]


def _file_name(entry: dict[str, Any], roles: Roles) -> str:
    """The path of the photo, with "/" between folders. Raises ValueError."""
    values = _columns(entry, roles, FILE)
    if not isinstance(values[0], str) or not values[0].strip() or not values[0].strip().isprintable():
        raise ValueError(f"{FILE_NAME} is not the path of a photo")
    return values[0].strip().replace("\\", "/")


def _captions(entry: dict[str, Any], roles: Roles) -> dict[str, list[str]]:
    """Captions by language, of the first kind that has a column for that language. Raises ValueError."""
    kinds: dict[str, str] = {}
    for role in filter(None, map(roles.__getitem__, entry)):
        kind, lang = role
        if lang and CAPTIONS.index(kind) <= CAPTIONS.index(kinds.get(lang, kind)):
            kinds[lang] = kind
    texts: dict[str, list[str]] = {}
    for column, value in entry.items():
        role_of = roles[column]
        if role_of and role_of[1] and kinds[role_of[1]] == role_of[0]:
            captions = [text for one in _strings(column, value) if (text := clean_text(one))]
            if captions:
                texts.setdefault(role_of[1], []).extend(captions)
    return texts


def _strings(column: str, value: Any) -> list[str]:
    values = value if isinstance(value, list) else [] if value is None else [value]
    if not all(isinstance(one, str) for one in values):
        raise ValueError(f"'{column}' is neither a string nor a list of strings")
    return values


def _labels(entry: dict[str, Any], roles: Roles) -> set[str]:
    """Labels, without those that stand for none. Raises ValueError."""
    found = set()
    for value in _columns(entry, roles, LABEL):
        if isinstance(value, str) and value.strip().startswith("["):
            value = _json(value)
        for label in value if isinstance(value, list) else [value]:
            if isinstance(label, dict | list):
                raise ValueError("a label is neither a string nor a number")
            found.add(clean_label("" if label is None else str(label)))
    return found - {""}


def _lines(path: Path) -> Iterator[str]:
    """Lines of a text file with their ends: UTF-8, or UTF-16 with a mark. Raises DataError for other bytes."""
    with path.open("rb") as raw:
        start = raw.read(3)
    encoding = next((name for mark, name in _MARKS.items() if start.startswith(mark)), "utf-8")
    try:
        with path.open(encoding=encoding, newline="") as lines:
            yield from lines
    except UnicodeError as error:
        what = f"not {encoding.removesuffix('-sig').upper()} text ({error.args[-1]})"
        raise DataError(what, path, "save the table as UTF-8") from None


def _csv(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Rows with the number of their last line; a short row lacks its last columns."""
    reader = csv.reader(_lines(path), strict=True)
    try:
        header = next(reader, [])
        _need_file_name(header, path)
        if len(set(header)) < len(header):
            raise DataError("two columns have the same name", path, "rename one of them")
        for fields in reader:
            if len(fields) > len(header):
                what = f"line {reader.line_num} has {len(fields)} fields, the first line {len(header)}"
                raise DataError(what, path, "quote the fields that contain commas")
            if any(fields):
                yield reader.line_num, dict(zip(header, fields, strict=False))
    except csv.Error as error:
        raise DataError(f"line {reader.line_num} is not CSV ({error})", path, "fix this line") from None


def _need_file_name(columns: Iterable[str], path: Path) -> None:
    """Raise DataError without a column for the photos' paths."""
    if all(_role(column) != FILE for column in columns):
        names = list(map(clean_text, columns))
        near = did_you_mean(FILE_NAME, [name.lower() for name in names])
        what = f"no column {FILE_NAME} (columns: {', '.join(names) or 'none'})"
        raise DataError(what, path, f"{near} call the column of the photos' paths {FILE_NAME}")


def _jsonl(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(_lines(path), 1):
        if line.strip():
            try:
                entry = _json(line)
                if not isinstance(entry, dict):
                    raise ValueError("not a JSON object")
                _need_file_name(entry, path)
            except ValueError as error:
                raise DataError(f"line {number} is not a row ({error})", path, "fix this line") from None
            yield number, entry


def _json(text: str) -> Any:
    """Value of a JSON text. Raises ValueError, also for a repeated key."""
    try:
        return json.loads(text, object_pairs_hook=_object)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = Counter(key for key, _ in pairs)
    if doubles := [key for key, count in keys.items() if count > 1]:
        raise ValueError(f"the key '{doubles[0]}' is repeated")
    return dict(pairs)
