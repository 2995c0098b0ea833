"""Hugging Face's imagefolder: photos in folders of splits and classes, with a table of captions.

    [data/][train|validation|test/][CLASS/]x.png
    metadata.csv | .jsonl | .parquet    in the folder of the photos or in one above it

The table has a column ``file_name``, the path below the table's folder; captions and labels have one of their usual
names (``cmrhash.data.columns``). Labels are a value or a list in JSON. Several rows of a photo give several captions.
Without a table, or with ``labels_from``, the innermost folder of a photo is its label.

Protocol: the split folders if there is train beside test or validation: train and validation are the database, test is
query; without test, validation is query. Otherwise roles are drawn from the seed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

from cmrhash.data.cleaning import clean_label
from cmrhash.data.items import ImageTextDataset, Item
from cmrhash.data.parsing import report
from cmrhash.data.photos import files_below, folded, ids_of, need_photos, stem_of
from cmrhash.data.readers.imagefolder_table import FILE_NAME, Row, find_tables, read_table
from cmrhash.errors import DataError, UsageError

SPLITS = {
    "train": ("train", "training"),
    "val": ("validation", "valid", "val", "dev"),
    "query": ("test", "testing", "eval", "evaluation"),
}
_SPLIT_OF = {name: split for split, names in SPLITS.items() for name in names}
_QUERY = frozenset({"query"})
_DATA = "data"  # an outer folder without a meaning


def read(root: Path, labels: Sequence[str] = (), labels_from: str | None = None) -> ImageTextDataset:
    """Read the data set: an item per photo, and per photo that only the table names.

    labels: names of the table's columns of labels. labels_from: "folder" makes the folder of a photo its label, also
    beside a table. Raises DataError without photos, for a table that cannot be read, or if it names none of the photos,
    UsageError for ``labels`` that no table has.
    """
    extra: Counter[str] = Counter()
    files = files_below(root, extra)
    photos = need_photos(root, files, extra)
    tables = find_tables(root, files)
    if labels and not tables:
        fix = "without one, the folder of a photo is its label"
        raise UsageError("there is no table metadata.csv, .jsonl or .parquet", root, fix, option="labels")
    rows: dict[str, Row] = {}
    for table in tables:
        read_table(root, table, rows, extra, labels)
    named = _match(photos, rows)
    if rows and len(named) == len(photos) + len(rows):
        what = f"none of the {len(rows)} photos of {FILE_NAME} exists, such as {next(iter(rows))}"
        raise DataError(what, root / tables[0], f"give paths below the table's folder; one photo is {photos[0]}")
    if tables:
        extra["photos without a row"] = sum(row is None for row in named.values())
    if labels_from or not tables:
        own = _folders(list(named))
    else:
        own = {path: row.labels if row else set() for path, row in named.items()}
    if (labels or labels_from) and not any(own.values()):
        what = f"no photo has a label in {', '.join(labels)}" if labels else "the photos are not in several folders"
        raise DataError(what, root, "leave out `labels`" if labels else "leave out `labels_from`")
    roles = _roles(named)
    if roles:
        extra["items outside the split folders"] = len(named) - len(roles)
    items, classes = _items(named, own, roles, frozenset(photos))
    languages = sorted({lang for item in items for lang in item.texts})
    found = report(items, classes, languages, extra)
    return ImageTextDataset("imagefolder", root, items, classes, "labels" if classes else "pairs", found=found)


def _items(
    named: dict[str, Row | None], labels: dict[str, set[str]], roles: dict[str, frozenset[str]], photos: frozenset[str]
) -> tuple[tuple[Item, ...], tuple[str, ...]]:
    """Items in the order of ``named``, and the classes."""
    classes = tuple(sorted({label for own in labels.values() for label in own}))
    number = {label: n for n, label in enumerate(classes)}
    items = tuple(
        Item(
            id=ident,
            image=path if path in photos else None,
            texts={lang: tuple(captions) for lang, captions in sorted(row.texts.items())} if row else {},
            labels=tuple(sorted(number[label] for label in labels[path])),
            splits=roles.get(path, frozenset()),
        )
        for ident, (path, row) in zip(ids_of(named), named.items(), strict=True)
    )
    return items, classes


def _match(photos: list[str], rows: dict[str, Row]) -> dict[str, Row | None]:
    """Every photo with its row, sorted; a row without a photo stands under the path that it names.

    A row that names no photo takes the only one that no row names and whose path differs in case, in the form of
    Unicode or in the suffix.
    """
    free: dict[str, list[str]] = {}
    for path in photos:
        if path not in rows:
            for key in {folded(path), folded(stem_of(path))}:
                free.setdefault(key, []).append(path)
    named: dict[str, Row | None] = dict.fromkeys(photos)
    for name, row in rows.items():
        path = name if name in named else _nearest(name, free)
        before = named.get(path)
        named[path] = before.joined(row) if before else row
    return dict(sorted(named.items()))


def _nearest(name: str, free: dict[str, list[str]]) -> str:
    """The only photo of that path or, failing that, of that stem; otherwise ``name``."""
    for key in (folded(name), folded(stem_of(name))):
        if len(found := free.get(key, [])) == 1:
            return found[0]
    return name


def _folders(photos: list[str]) -> dict[str, set[str]]:
    """Labels of each photo: its innermost folder below that of the split; none if all photos share one folder."""
    folders = {path: clean_label((["", *_inner(path)])[-1]) for path in photos}
    several = len(set(folders.values()) - {""}) > 1
    return {path: {folder} if folder and several else set() for path, folder in folders.items()}


def _inner(path: str) -> list[str]:
    """Folders of a photo, without those of data and split."""
    folders = list(PurePosixPath(path).parts[:-1])
    at = _split_at(folders)
    return folders if at is None else folders[at + 1 :]


def _split_at(folders: list[str]) -> int | None:
    """Position of the split among the folders of a photo: the outermost, or the next one below ``data``."""
    at = int(bool(folders) and folders[0].lower() == _DATA)
    return at if len(folders) > at and folders[at].lower() in _SPLIT_OF else None


def _roles(paths: Iterable[str]) -> dict[str, frozenset[str]]:
    """Roles of the items in split folders; empty if the folders do not make a training and a query split."""
    split_of = {}
    for path in paths:
        folders = list(PurePosixPath(path).parts[:-1])
        if (at := _split_at(folders)) is not None:
            split_of[path] = _SPLIT_OF[folders[at].lower()]
    splits = set(split_of.values())
    if "train" not in splits or len(splits) == 1:
        return {}
    val = frozenset({"val", "database"}) if "query" in splits else _QUERY
    role = {"train": frozenset({"train", "database"}), "val": val, "query": _QUERY}
    return {path: role[split] for path, split in split_of.items()}
