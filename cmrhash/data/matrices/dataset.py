"""Feature files of others as a data set, or as features of one.

As a data set of their own (``dataset="features"``) the files have an image array, a text array and, for relevance by
labels, a label array. Rows are items; arrays with items as columns are transposed. Labels are 0/1 or -1/1 per class, or
one class id per item; without labels relevance is by pairs. Roles follow from the parts that the files name:

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

With another data set (``features`` with any other ``dataset``) an array of all items follows the reader's order, and a
part follows the order of the items with that role, before val is drawn from train. Labels are the reader's.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cmrhash.config import FEATURES_DATASET
from cmrhash.data.items import ImageTextDataset, Item, Ready
from cmrhash.data.matrices.arrays import Array, list_arrays
from cmrhash.data.matrices.roles import INDEX, PARTS, advice, by_view, choose, in_words
from cmrhash.data.view import View
from cmrhash.errors import DataError, UsageError

LABELS = "labels"
STACKED = ("database", "train", "val", "query")  # order of the parts in the data set
Table = dict[str, NDArray[Any]]  # view or labels -> (rows, D)
Members = dict[str, NDArray[np.bool_]]  # part -> (items,) bool


def read(files: Sequence[Path], maps: Sequence[str]) -> ImageTextDataset:
    """Read the files as a data set.

    Raises UsageError if the roles of arrays are ambiguous, DataError for unusable arrays.
    """
    if not files:
        raise UsageError(f"data set '{FEATURES_DATASET}' needs its files", None, 'give `features=("FILE",)`')
    arrays = [array for file in files for array in list_arrays(file)]
    views = by_view(choose(arrays, maps))
    index = views.pop(INDEX, {})
    for what in ("image", "text"):
        if not any(isinstance(view, View) and view.kind == what for view in views):
            raise UsageError(f"no array has a name known for {what} features", files[0], advice(arrays, what))
    parts = list(views[View.IMAGE])  # [""] means arrays of all items
    for view in views:
        if set(views[view]) != set(parts):
            have = [", ".join(part or "one array of all items" for part in views[one]) for one in (View.IMAGE, view)]
            what = f"image has {have[0]}, but {in_words((view, ''))} has {have[1]}"
            raise UsageError(what, files[0], advice(arrays, in_words((view, parts[0]))))
    found: Counter[str] = Counter()
    blocks = {part: _block({what: views[what][part] for what in views}, found) for part in parts}
    table, members = _stacked(blocks, found)
    count = len(table[View.IMAGE])
    if members:
        found["arrays of row numbers passed over, for the parts are arrays themselves"] = len(index)
    elif index:
        members = _members(index, count, found)
    classes, labels = _labels(table.pop(LABELS), views[LABELS]) if LABELS in views else ((), [()] * count)
    splits = _roles(members, count, bool(classes), found) if members else [frozenset[str]()] * count
    none: dict[str, tuple[str, ...]] = {}
    items = tuple(Item(str(n), None, none, labels[n], splits[n]) for n in range(count))
    ready = {View(view): _ready(table[view], views[view]) for view in table}
    labelled = {"classes": len(classes), "labelled items": sum(map(bool, labels))} if classes else {}
    told = {"items": count, **_dims(ready), **labelled, **+found}
    relevance = "labels" if classes else "pairs"
    root = files[0].resolve().parent
    return ImageTextDataset(FEATURES_DATASET, root, items, classes, relevance, told, ready=ready)


def lay_over(dataset: ImageTextDataset, files: Sequence[Path], maps: Sequence[str]) -> ImageTextDataset:
    """The data set with features from the files instead of encoders.

    dataset: as its reader returned it, before roles are drawn. Raises UsageError or DataError if the roles of arrays
    are ambiguous or arrays do not fit the items.
    """
    arrays = [array for file in files for array in list_arrays(file)]
    for option in maps:
        if option.split(".")[0].split("=")[0] not in ("image", "text"):
            what, fix = f"'{option}' does not fit `dataset=\"{dataset.name}\"`", "map image and text only"
            raise UsageError(what, None, f"{fix}: labels and splits are those of the data set", option="maps")
    views = by_view(choose(arrays, maps, also=()))
    if not views:
        raise UsageError("no array has a name known for features", files[0], advice(arrays, View.IMAGE))
    found: Counter[str] = Counter()
    ready = {View(v): _ready(_aligned(dataset, v, views[v], found), views[v]) for v in views}
    return replace(dataset, ready={**dataset.ready, **ready}, found={**dataset.found, **_dims(ready), **+found})


def _ready(x: NDArray[Any], arrays: Mapping[str, Array]) -> Ready:
    """Precomputed features with a name and a description of their arrays."""
    files = list(dict.fromkeys(array.file for array in arrays.values()))
    source = f"{', '.join(file.name for file in files)}: {', '.join(array.name for array in arrays.values())}"
    return Ready(re.sub(r"[^\w.-]", "_", files[0].stem), source, x)


def _dims(ready: Mapping[View, Ready]) -> dict[str, int]:
    """Number of features per item of each view, for the user."""
    return {f"{view} features an item ({own.source})": own.x.shape[1] for view, own in ready.items()}


# ---------------------------------------------------------------------------------------------- arrays to rows


def _block(arrays: Mapping[str, Array], found: Counter[str]) -> Table:
    """Arrays of the same items, each as (rows, D) with one row per item."""
    shapes = [array.shape for array in arrays.values()]
    heights = {shape[0] for shape in shapes if shape}
    common = set.intersection(*map(set, shapes))
    rows = heights if len(heights) == 1 else common - {1} or common
    if len(rows) != 1:
        told = ", ".join(map(str, arrays.values()))
        raise DataError("the arrays differ in their number of items", None, f"{told}: choose others with `maps`")
    return {what: _oriented(array, rows, found) for what, array in arrays.items()}


def _oriented(array: Array, rows: set[int], found: Counter[str]) -> NDArray[Any]:
    """The array as (rows, D), transposed if only its last axis fits.

    rows: the possible numbers of items.
    """
    if len(array.shape) not in (1, 2):
        fix = "features are one row per item; encode raw images first"
        raise DataError(f"{array} has {len(array.shape)} axes", array.file, fix)
    turned = array.shape[0] not in rows
    if turned and array.shape[-1] not in rows:
        raise DataError(
            f"{array} does not have {' or '.join(map(str, sorted(rows)))} items", array.file, "check `maps`"
        )
    x = array.read()
    x = x[:, None] if x.ndim == 1 else x
    found["arrays turned, for their items were columns"] += turned
    return x.T if turned else x


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
        digest.update(x[row].tobytes())
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


# ---------------------------------------------------------------------------------------------- labels


def _labels(x: NDArray[Any], arrays: Mapping[str, Array]) -> tuple[tuple[str, ...], list[tuple[int, ...]]]:
    """Class names, and the classes of every row.

    x: (rows, classes) of 0/1 or -1/1, or (rows, 1) class ids. Raises DataError for other values.
    """
    array = next(iter(arrays.values()))
    values = np.unique(x)
    if x.shape[1] > 1 and (set(values.tolist()) <= {0, 1} or set(values.tolist()) <= {-1, 1}):
        names = tuple(str(n + 1) for n in range(x.shape[1]))
        return names, [tuple(np.flatnonzero(row > 0).tolist()) for row in x]
    if x.shape[1] > 1 or not np.isfinite(values).all() or (values != np.floor(values)).any():
        fix = "labels are 0/1 or -1/1 for every class, or one whole number per item"
        raise DataError(f"{array} is not an array of labels ({', '.join(map(str, values[:5]))}, ...)", array.file, fix)
    ids = np.searchsorted(values, x[:, 0])
    return tuple(str(int(value)) for value in values), [(n,) for n in ids.tolist()]


# ---------------------------------------------------------------------------------------------- other data sets


def _aligned(dataset: ImageTextDataset, view: str, arrays: Mapping[str, Array], found: Counter[str]) -> NDArray[Any]:
    """(items, D) features of a view, in the order of the data set's items."""
    count = len(dataset.items)
    if "" in arrays:
        return _oriented(arrays[""], {count}, found)
    if not any(item.splits for item in dataset.items):
        what = f"{view} features are in parts ({', '.join(arrays)}), but data set '{dataset.name}' has no splits"
        raise UsageError(what, next(iter(arrays.values())).file, "give one array of all items")
    has = {role: np.array([role in item.splits for item in dataset.items]) for role in PARTS}
    learn = has["train"] if "val" in arrays else has["train"] | has["val"]
    fits = {"train": [learn], "val": [has["val"]], "query": [has["query"]], "database": [has["database"]]}
    fits["database"].append(has["database"] & ~learn & ~has["query"] & ~has["val"])  # database rows in no other part
    covered = np.zeros(count, bool)
    x: NDArray[Any] | None = None
    for part in (part for part in STACKED if part in arrays):
        block = _oriented(arrays[part], {int(rows.sum()) for rows in fits[part]}, found)
        if x is None:
            x = np.full((count, block.shape[1]), np.nan, np.result_type(block.dtype, np.float32))
        if block.shape[1] != x.shape[1]:
            raise DataError(
                f"the parts of {view} differ in their number of columns", arrays[part].file, "choose others with `maps`"
            )
        rows = next(rows for rows in fits[part] if rows.sum() == len(block))
        x[rows], covered = block, covered | rows
    left = [item.id for item, done in zip(dataset.items, covered, strict=True) if item.splits and not done]
    if left or x is None or not covered.any():
        what = f"{view} features are missing for {len(left) or count} items ({', '.join(left[:3])}, ...)"
        raise DataError(
            what, next(iter(arrays.values())).file, "map all parts of the data set, or one array of all items"
        )
    return x
