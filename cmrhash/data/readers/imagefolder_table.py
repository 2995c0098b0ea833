"""The tables of Hugging Face's imagefolder: ``metadata.csv``, ``metadata.jsonl`` and ``metadata.parquet``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from cmrhash.data.cleaning import clean_label, clean_text, is_printable
from cmrhash.data.columns import NAMES, caption_columns, count_unused, label_columns, label_prefixes
from cmrhash.data.items import resolve_image
from cmrhash.data.tables import Table, open_table, strings
from cmrhash.errors import DataError, did_you_mean

FILE_NAME, STEM, SUFFIXES = "file_name", "metadata", (".csv", ".jsonl", ".parquet")


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


@dataclass(frozen=True)
class _Roles:
    """Numbers of the columns that are read; those of labels with the prefix of their labels."""

    file: int
    texts: dict[str, list[int]]
    labels: dict[int, str]


def find_tables(root: Path, files: Iterable[str]) -> list[str]:
    """Paths of the tables among these files. Raises DataError for two in one folder."""
    tables: dict[PurePosixPath, str] = {}
    for path in files:
        name = PurePosixPath(path)
        if name.stem.lower() != STEM or name.suffix.lower() not in SUFFIXES:
            continue
        if name.parent in tables:
            both = f"{root / tables[name.parent]} and {path}"
            raise DataError("two tables in one folder", both, "remove one of them")
        tables[name.parent] = path
    return list(tables.values())


def read_table(root: Path, table: str, rows: dict[str, Row], extra: Counter[str], labels: Sequence[str] = ()) -> None:
    """Add the rows of a table to ``rows``: path of the photo below the root -> row.

    extra: counts the columns that are not used. labels: names of the columns of labels, instead of the usual ones.
    Raises DataError that names the line of a bad row, UsageError for Parquet without pyarrow and for a name in
    ``labels`` that is no column.
    """
    opened, folder, empty = open_table(root / table), PurePosixPath(table).parent, True
    roles, used = _roles(opened, labels, extra)
    for line, values in opened.rows(used, False):
        empty = False
        try:
            cells = {at: strings(value, as_list=at != roles.file) for at, value in zip(used, values, strict=True)}
            photo = (folder / _file_name(cells[roles.file])).as_posix()
        except ValueError as error:
            raise DataError(f"line {line} holds {error}", opened.path, "fix this line") from None
        if photo not in rows:
            resolve_image(root, photo)
        rows.setdefault(photo, Row()).joined(_row(cells, roles))
    if empty:
        raise DataError("the table has no rows", opened.path, f"give a row with {FILE_NAME} for every photo")


def _roles(table: Table, labels: Sequence[str], extra: Counter[str]) -> tuple[_Roles, list[int]]:
    """The columns by role, and the numbers of all that are used. Raises DataError without a column of photos."""
    names = [clean_text(name).lower() for name in table.columns]
    if FILE_NAME not in names:
        what = f"no column {FILE_NAME} (columns: {', '.join(table.columns)})"
        fix = f"{did_you_mean(FILE_NAME, names)} call the column of the photos' paths {FILE_NAME}"
        raise DataError(what, table.path, fix)
    prefixes = dict.fromkeys((at for at, name in enumerate(names) if name in NAMES["labels"]), "")
    if labels:
        prefixes = label_prefixes(table.columns, label_columns(table.columns, labels, table.path))
    roles = _Roles(names.index(FILE_NAME), caption_columns(names, prefixes), prefixes)
    used = sorted({roles.file, *prefixes, *(at for columns in roles.texts.values() for at in columns)})
    count_unused(table, used, extra)
    return roles, used


def _file_name(cell: list[str]) -> str:
    """The path of the photo, with "/" between folders. Raises ValueError."""
    name = "".join(cell).strip()
    if not name or not is_printable(name):
        raise ValueError(f"no path of a photo in {FILE_NAME}")
    return name.replace("\\", "/")


def _row(cells: dict[int, list[str]], roles: _Roles) -> Row:
    texts = {
        lang: [text for at in columns for text in map(clean_text, cells[at]) if text]
        for lang, columns in roles.texts.items()
    }
    labels = {prefix + name for at, prefix in roles.labels.items() for name in map(clean_label, cells[at]) if name}
    return Row({lang: captions for lang, captions in texts.items() if captions}, labels)
