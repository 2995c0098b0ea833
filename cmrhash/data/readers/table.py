"""A table beside photos: CSV, TSV, JSON lines or Parquet, one row per photo or per caption.

    captions.csv        columns by their usual names (``cmrhash.data.columns``), or by ``maps``
    images/...          the photos that the table names, anywhere below its folder
    data.parquet        or the photos themselves, in a column of a Parquet file or of all files of a folder

Photos in the same folders that no row names are counted. Rows of the same photo, or of the same id, are one item:
their captions and labels are joined. Labels are separated by ";", "|" or ",", the first of them that occurs in the
column, or are a JSON list; captions may be a JSON list, too. Splits: train, val, test and database by their usual
names. With labels, train and val items are also in the database; without, the test items are their own database. A
table without splits has them drawn, by shares of all items. Rows of img2dataset whose download failed are left out.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cmrhash.data.cleaning import clean_label, clean_text
from cmrhash.data.columns import Columns, choose, count_unused, label_prefixes
from cmrhash.data.items import ImageTextDataset, Item
from cmrhash.data.named_photos import Photos, as_path, count_photos
from cmrhash.data.parsing import DOWNLOAD, FAILED, report
from cmrhash.data.photos import folder_labels
from cmrhash.data.split_names import roles_of
from cmrhash.data.tables import Table, find_table, strings
from cmrhash.errors import DataError

SEPARATORS = (";", "|", ",")
SPLITS = {
    **dict.fromkeys(("train", "training", "restval"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing", "query"), "query"),
    **dict.fromkeys(("database", "gallery", "retrieval"), "database"),
}
_FOLDER = -1  # in place of a column: the folder of the photo
NO_SPLIT = 'or write `maps=("split=",)` to have splits drawn'


def read(
    root: Path, maps: Sequence[str] = (), labels: Sequence[str] = (), labels_from: str | None = None
) -> ImageTextDataset:
    """Read the table at ``root``, a file or the only table of a folder.

    maps: "ROLE=COLUMN" for columns without a usual name. labels: names of the columns of labels. labels_from: "folder"
    makes the folder in which a photo lies its label. Raises UsageError for a map or name that does not fit, DataError
    for a table that cannot be read or has no usable row.
    """
    table = find_table(root)
    columns = choose(table, (*maps, *(("labels=",) if labels_from else ())), labels)
    rows, extra, used = _Rows(table, columns), Counter[str](), columns.used
    status = [table.columns.index("status")] if set(table.columns) >= DOWNLOAD else []
    for line, values in table.rows([*used, *status], _open_end(table, columns)):
        if status and values.pop() != "success":
            extra[FAILED] += 1
        else:
            rows.add(line, dict(zip(used, values, strict=True)))
    rows.by_image, rows.by_id = {}, {}  # or the drafts would stay beside the items
    if not rows.items:
        what = f"none of the {extra[FAILED]} downloads succeeded" if extra[FAILED] else "the table has no rows"
        raise DataError(what, table.path, "write one row per photo or caption")
    if columns.image is None or table.columns[columns.image] not in table.photos:
        _find_photos(rows, Photos(table.folder), extra)
    if labels_from:
        _label_by_folder(rows)
    own = _Labels(rows)
    _check_splits(rows)
    items = tuple(filter(None, (_item(rows, at, own, extra) for at in range(len(rows.items)))))
    if not items or (columns.texts and not any(item.texts for item in items)):
        what = f"no row has a caption in {_names(table, [at for found in columns.texts.values() for at in found])}"
        raise DataError(what, table.path, "give the column of the captions with `maps`")
    count_unused(table, [*columns.used, *status], extra)
    if labels and not own.classes:
        raise DataError(f"no row has a label in {_names(table, columns.labels)}", table.path, "choose other `labels`")
    relevance = "labels" if own.classes else "pairs"
    found = report(items, own.classes, columns.texts, extra)
    return ImageTextDataset("table", table.folder, items, own.classes, relevance, found)


def _open_end(table: Table, columns: Columns) -> bool:
    """Whether surplus fields of a row belong to its last column, because that is the only one of captions."""
    return [at for found in columns.texts.values() for at in found] == [len(table.columns) - 1]


def _names(table: Table, columns: Sequence[int]) -> str:
    return f"column {', '.join(table.columns[at] for at in columns)}"


class _Draft:
    """An item while rows are read: its labels are values of cells, its image is the path as written."""

    __slots__ = ("id", "image", "labels", "line", "split", "texts")

    def __init__(self, ident: str, image: str, line: int) -> None:
        self.id, self.image, self.line = ident, image, line
        self.texts: dict[str, list[str]] = {}
        self.labels: tuple[tuple[int, tuple[str, ...]], ...] = ()  # column and values
        self.split = ""


class _Rows:
    """Rows of a table joined to items, in the order of their first rows."""

    def __init__(self, table: Table, columns: Columns) -> None:
        self.table, self.columns = table, columns
        self.items: list[_Draft | None] = []
        self.by_image: dict[str, _Draft] = {}
        self.by_id: dict[str, _Draft] = {}
        self.separators: dict[int, str] = {}  # of a column of labels: the first of SEPARATORS that occurs in it
        self.same: dict[Any, Any] = {}  # equal labels share one object, because a million rows have few distinct ones

    def add(self, line: int, row: dict[int, Any]) -> None:
        """Add the row of that line: column -> value."""
        cells = {at: self._cell(line, at, value) for at, value in row.items()}
        if not any(text.strip() for cell in cells.values() for text in cell):
            return
        draft = self._draft(line, cells)
        before = draft.labels
        for at in self.columns.labels:
            self._label(draft, at, row[at], cells[at])
        # a row that adds a label, one row per label, repeats the captions; other repeated captions are the data's own
        repeats = draft.labels != before and bool(before)
        for lang, columns in self.columns.texts.items():
            texts = [text for at in columns for text in map(clean_text, cells[at]) if text]
            if texts:
                have = draft.texts.setdefault(sys.intern(lang), [])
                have += [text for text in texts if not (repeats and text in have)]
        if self.columns.split is not None:
            self._split(draft, line, cells[self.columns.split])

    def _cell(self, line: int, at: int, value: Any) -> list[str]:
        try:
            return strings(value, as_list=at not in (self.columns.image, self.columns.id, self.columns.split))
        except ValueError as error:
            where = f"line {line}: column '{self.table.columns[at]}' holds {error}"
            raise DataError(where, self.table.path, "write a string, a number or a list of them") from None

    def _draft(self, line: int, cells: dict[int, list[str]]) -> _Draft:
        """The item of a row: that of its image or id, or a new one."""
        columns = self.columns
        image = as_path("".join(cells[columns.image])) if columns.image is not None else ""
        ident = clean_text("".join(cells[columns.id])) if columns.id is not None else ""
        if not (columns.own_id and ident) and image in self.by_image:
            return self.by_image[image]
        known = self.by_id.get(ident) if ident else None
        if known and image and known.image and known.image != image:
            what = f"line {line} gives id '{ident}' the photo {image!r}, line {known.line} gives it {known.image!r}"
            fix = 'give the column of the ids with `maps=("id=COLUMN",)`, or "id=" if there is none'
            raise DataError(what, self.table.path, fix)
        draft = known or _Draft(ident or clean_text(image) or f"row {line}", image, line)
        if known is None:
            self.items.append(draft)
        draft.image = draft.image or image
        if image:
            self.by_image.setdefault(image, draft)
        if ident:
            self.by_id[ident] = draft
        return draft

    def _label(self, draft: _Draft, at: int, value: Any, cells: list[str]) -> None:
        """Keep the labels of a cell as they stand, because the column's separator is known at its end only."""
        listed = not isinstance(value, str) or cells != [value]
        if not listed:
            ranks = [n for n, mark in enumerate(SEPARATORS) if mark in value]
            best = SEPARATORS.index(self.separators[at]) if at in self.separators else len(SEPARATORS)
            if ranks and ranks[0] < best:
                self.separators[at] = SEPARATORS[ranks[0]]
        label = (at, ("", *cells) if listed else tuple(cells))  # "" first: is not to be split
        if cells and label not in draft.labels:
            joined = (*draft.labels, label)
            draft.labels = self.same.setdefault(joined, joined)

    def _split(self, draft: _Draft, line: int, cells: list[str]) -> None:
        written = clean_text("".join(cells))
        if not written:
            return
        split = SPLITS.get(written.casefold())
        if split is None or draft.split not in ("", split):
            odd = f"the split '{written}'" if split is None else f"'{draft.id}' a second split"
            fix = f"use train, val, test, database, {NO_SPLIT}"
            raise DataError(f"line {line} gives {odd}", self.table.path, fix)
        draft.split = split


class _Labels:
    """Classes of the rows, and the numbers of an item's labels."""

    def __init__(self, rows: _Rows) -> None:
        self._prefixes = label_prefixes(rows.table.columns, rows.columns.labels) | {_FOLDER: ""}
        self._separators = rows.separators
        distinct = {draft.labels for draft in rows.items if draft}
        names = {labels: self._names(labels) for labels in distinct}
        self.classes = tuple(sorted(set().union(*names.values())))
        number = {name: n for n, name in enumerate(self.classes)}
        self.numbers = {labels: tuple(sorted(number[name] for name in found)) for labels, found in names.items()}

    def _names(self, labels: tuple[tuple[int, tuple[str, ...]], ...]) -> set[str]:
        """Cleaned labels; of several columns with the name of theirs in front."""
        found: set[str] = set()
        for at, cells in labels:
            parts: Sequence[str] = cells
            if cells[0] and at in self._separators:
                parts = cells[0].split(self._separators[at])
            found |= {self._prefixes[at] + name for name in map(clean_label, parts) if name}
        return found


def _find_photos(rows: _Rows, photos: Photos, extra: Counter[str]) -> None:
    """Replace each image by its path below the folder, "" if it is not there; raises DataError if none is."""
    named, missing, similar = 0, list[str](), 0
    for draft in rows.items:
        if not draft or not draft.image:
            continue
        named += 1
        path, near = photos.find(draft.image, anywhere=True)
        similar += near
        if path is None:
            missing.append(draft.image)
        draft.image = path or ""
    if rows.columns.image is not None and len(missing) == named:
        column, where = f"column {rows.table.columns[rows.columns.image]}", rows.table.path
        if not named:
            raise DataError(f"no row names a photo in {column}", where, "give the column of the photos with `maps`")
        what = f"none of the {named} photos in {column} is below the table's folder (the first is {missing[0]!r})"
        raise DataError(what, where, f"{photos.nearest(missing[0])} put the photos, or their folder, beside the table")
    count_photos(missing, similar, extra)
    extra["other photos beside them in no row, left out"] += photos.beside(d.image for d in rows.items if d and d.image)


def _label_by_folder(rows: _Rows) -> None:
    """Give each item with a photo the name of its folder as label; raises DataError if none has one."""
    drafts = [draft for draft in rows.items if draft and draft.image]
    for draft, name in zip(drafts, folder_labels(rows.table.path.parent, [d.image for d in drafts]), strict=True):
        own = ((_FOLDER, ("", name)),)
        draft.labels = rows.same.setdefault(own, own)


def _check_splits(rows: _Rows) -> None:
    """Raise DataError if some items have no split, or if no item is train or none is query."""
    if rows.columns.split is None:
        return
    splits = Counter(draft.split for draft in rows.items if draft)
    column, path = _names(rows.table, [rows.columns.split]), rows.table.path
    if not any(splits):
        return
    if splits[""]:
        first = next(draft for draft in rows.items if draft and not draft.split)
        what = f"{splits['']} items have no split, others have (the first is in line {first.line})"
        raise DataError(what, path, f"fill {column}, {NO_SPLIT}")
    for split, word in (("train", "train"), ("query", "test")):
        if not splits[split]:
            raise DataError(f"no row is '{word}' in {column}", path, f"name some rows '{word}', {NO_SPLIT}")


def _item(rows: _Rows, at: int, labels: _Labels, extra: Counter[str]) -> Item | None:
    """The item of a draft, which is let go so that captions are not held twice; None with neither photo nor text."""
    draft, rows.items[at] = rows.items[at], None
    assert draft is not None
    if not draft.image and not draft.texts:
        extra["items with neither photo nor text, left out"] += 1
        return None
    splits = roles_of(draft.split, bool(labels.classes))
    texts = {lang: tuple(texts) for lang, texts in sorted(draft.texts.items())}
    same = rows.same.setdefault(splits, splits)
    return Item(draft.id, draft.image or None, texts, labels.numbers[draft.labels], same)
