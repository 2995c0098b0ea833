"""Feature files of others as a data set of their own.

As a data set of their own (``dataset="features"``) the files have an image array, a text array or captions and, for
relevance by labels, a label array. Rows are items; arrays with items as columns are transposed. If there are k times as
many texts as images, each image has k texts, side by side. Labels are 0/1 or -1/1 per class, or the number or names of
an item's classes; without labels relevance is by pairs. Roles follow from the parts that the files name:

    nothing                     drawn from the seed, as for any data set
    query, with labels          these rows are query only; without labels they are the database, too
    train and query             with labels the train rows are also the database, the custom of hashing papers
    database and query          the model trains on the database
    train, database and query   a train row that equals a database row (in every array) is the same item; the other
                                train rows only train
    row numbers of the parts    rows in no part join the database if it has no row numbers; numbers may overlap, except
                                those of query and train

Parts are separate arrays (I_tr, I_te, ...), or row numbers (or a mask) for arrays of all items. Numbers count from 1 if
the largest equals the number of items, from 0 if the smallest is 0, otherwise as the file's language does. Without a
val part, val is drawn from train with the seed.

"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cmrhash.config import FEATURES_DATASET
from cmrhash.data.items import ImageTextDataset, Item
from cmrhash.data.matrices.array import Array
from cmrhash.data.matrices.arrays import list_arrays
from cmrhash.data.matrices.beside import captions_of, ids_of
from cmrhash.data.matrices.labels import read_labels
from cmrhash.data.matrices.roles import (
    CAPTIONS,
    IDS,
    INDEX,
    LABELS,
    advice,
    by_view,
    choose,
    in_words,
    left_over,
)
from cmrhash.data.matrices.rows import Table, block, dims, ready_made, several, unused
from cmrhash.data.view import View
from cmrhash.errors import DataError, UsageError

STACKED = ("database", "train", "val", "query")  # order of the parts in the data set
Members = dict[str, NDArray[np.bool_]]  # part -> (items,) bool


def read(
    files: Sequence[Path], maps: Sequence[str], ids: Path | None = None, captions: Sequence[str] = ()
) -> ImageTextDataset:
    """Read the files as a data set.

    ids: file with an id per item. captions: "[LANG=]FILE", with a caption or several per item. Raises UsageError if the
    roles of arrays are ambiguous, DataError for unusable arrays.
    """
    if not files:
        raise UsageError(f"data set '{FEATURES_DATASET}' needs its files", None, 'give `features=("FILE",)`')
    arrays = [array for file in files for array in list_arrays(file)]
    chosen = choose(arrays, maps)
    views = by_view(chosen)
    index = views.pop(INDEX, {})
    _check_views(views, arrays, bool(captions))
    parts = list(views[View.IMAGE])  # [""] means arrays of all items
    found: Counter[str] = Counter()
    blocks = {part: block({what: views[what][part] for what in views}, found) for part in parts}
    table, members = _stacked(blocks, found)
    count = len(table[View.IMAGE])
    if members:
        found["arrays of row numbers passed over, for the parts are arrays themselves"] = len(index)
    elif index:
        members = _members(index, count, found)
    classes, labels = read_labels(table.pop(LABELS), views[LABELS]) if LABELS in views else ((), [()] * count)
    splits = _roles(members, count, bool(classes), found) if members else [frozenset[str]()] * count
    own = [str(*one) for one in _words(table, IDS)] or list(views[View.IMAGE][parts[0]].names if parts == [""] else ())
    names = ids_of(ids, count) if ids else own or [str(n) for n in range(count)]
    inside = {what.partition(".")[2]: _words(table, what) for what in list(table) if what.startswith(CAPTIONS)}
    texts = captions_of(captions, count, inside)
    items = tuple(Item(names[n], None, texts[n], labels[n], splits[n]) for n in range(count))
    ready = {View(view): ready_made(x, views[view], found[several(view)]) for view, x in table.items()}
    labelled = {"classes": len(classes), "labelled items": sum(map(bool, labels))} if classes else {}
    shown = {f"{lang} texts": sum(lang in own for own in texts) for lang in sorted({lang for t in texts for lang in t})}
    notes, left = unused(left_over(arrays, chosen, maps))
    told = {"items": count, **dims(ready), **shown, **labelled, **+found, **left}
    relevance = "labels" if classes else "pairs"
    root = files[0].resolve().parent
    return ImageTextDataset(FEATURES_DATASET, root, items, classes, relevance, told, ready=ready, notes=notes)


def _check_views(views: Mapping[str, Mapping[str, Array]], arrays: Sequence[Array], captions: bool) -> None:
    """Raise UsageError without images, without texts, and for views of other parts than the images have."""
    has = [view for view in views if isinstance(view, View)]
    captions = captions or any(what.startswith(CAPTIONS) for what in views)
    for what, there in (("image", View.IMAGE in has), ("text", captions or any(not view.is_image for view in has))):
        if not there:
            fix = advice(arrays, what) + (", or give captions with `captions`" if what == "text" else "")
            raise UsageError(f"no array has a name known for {what} features", arrays[0].file if arrays else None, fix)
    parts = set(views[View.IMAGE])
    for view in views:
        if set(views[view]) != parts:
            have = [", ".join(part or "one array of all items" for part in views[one]) for one in (View.IMAGE, view)]
            what = f"image has {have[0]}, but {in_words((view, ''))} has {have[1]}"
            raise UsageError(what, arrays[0].file, advice(arrays, in_words((view, next(iter(views[View.IMAGE]))))))


def _words(table: Table, what: str) -> list[tuple[str, ...]]:
    """Take the strings of every item out of the table; empty without any."""
    return [own for (own,) in table.pop(what)] if what in table else []


# ---------------------------------------------------------------------------------------------- roles


def _stacked(blocks: Mapping[str, Table], found: Counter[str]) -> tuple[Table, Members]:
    """Concatenate the parts, the database first; train and val rows found there are merged."""
    if "" in blocks:
        return blocks[""], {}
    order = [part for part in STACKED if part in blocks]
    for what in blocks[order[0]]:
        widths = {blocks[part][what].shape[1] for part in order}
        if len(widths) > 1:
            raise DataError(
                f"the parts of {what} differ in their number of columns, {sorted(widths)}",
                None,
                "choose others with `maps`",
            )
    table = {what: np.concatenate([blocks[part][what] for part in order]) for what in blocks[order[0]]}
    of = np.repeat(np.arange(len(order)), [len(blocks[part][next(iter(table))]) for part in order])
    members = {part: of == at for at, part in enumerate(order)}
    if "database" not in blocks:
        return table, members
    place: dict[bytes, list[int]] = {}
    for row in np.flatnonzero(members["database"]).tolist()[::-1]:
        place.setdefault(_row_digest(table, row), []).append(row)
    keep = np.ones(len(of), bool)
    for part in members.keys() & {"train", "val"}:
        for row in np.flatnonzero(members[part]).tolist():
            if same := place.get(_row_digest(table, row)):
                members[part][same.pop()] = True
                keep[row] = False
    found["train and val rows that stand in the database too"] = int((~keep).sum())
    return {what: x[keep] for what, x in table.items()}, {part: among[keep] for part, among in members.items()}


def _row_digest(table: Table, row: int) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for x in table.values():
        digest.update(repr(x[row].tolist()).encode() if x.dtype == object else x[row].tobytes())
    return digest.digest()


def _members(index: Mapping[str, Array], count: int, found: Counter[str]) -> Members:
    """Convert row numbers or masks of each part to (items,) bool."""
    numbers = {part: np.ravel(array.read()) for part, array in index.items()}
    masks = {part for part, n in numbers.items() if len(n) == count > 2 and set(np.unique(n).tolist()) <= {0, 1}}
    members = {part: numbers.pop(part).astype(bool) for part in masks}
    if not numbers:
        return members
    every, where = np.concatenate(list(numbers.values())), next(iter(index.values())).file
    low, high = float(every.min(initial=count)), float(every.max(initial=0))
    from_one = high == count or (low > 0 and where.suffix.lower() == ".mat")
    if low < from_one or not high - from_one < count or (every != np.floor(every)).any():
        fix = f"give whole numbers from 0 to {count - 1} or from 1 to {count}"
        raise DataError(f"row numbers run from {low:g} to {high:g} for {count} items", where, fix)
    for part, rows in numbers.items():
        members[part] = np.zeros(count, bool)
        members[part][rows.astype(np.int64) - from_one] = True
    found["row numbers counted from 1" if from_one else "row numbers counted from 0"] = len(every)
    return members


def _roles(members: Members, count: int, by_labels: bool, found: Counter[str]) -> list[frozenset[str]]:
    """Roles of every item, by the table in the module's docstring."""
    if "query" not in members:
        fix = "map a query part, or map arrays of all items to have splits drawn"
        raise UsageError(f"the files have {', '.join(members)} but no query part", None, fix)
    query, none = members["query"], np.zeros(count, bool)
    val = members.get("val", none)
    rest = ~query & ~val
    train = members["train"] & ~val if "train" in members else members.get("database", ~none) & rest
    database = members.get("database", ~query if by_labels else none)
    for part, taken in (("train", train), ("database", database)):
        if part not in members:
            found[f"rows taken as {part}, which the files do not name"] = int(taken.sum())
    database = database if by_labels else database | query
    by_role = {"train": train, "val": val, "query": query, "database": database}
    roles = (frozenset(role for role, among in by_role.items() if among[row]) for row in range(count))
    same: dict[frozenset[str], frozenset[str]] = {}  # share one object between equal roles to save memory
    return [same.setdefault(r, r) for r in roles]
