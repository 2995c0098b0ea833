"""Feature files of others in place of the encoders of a data set.

An array of all items follows the reader's order, and a part follows the order of the items with that role, before val
is drawn from train; an array whose rows have names follows these. Labels are the reader's.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cmrhash.config import SAMPLE_DATASET
from cmrhash.data.items import ImageTextDataset, Ready
from cmrhash.data.matrices.array import Array
from cmrhash.data.matrices.arrays import list_arrays
from cmrhash.data.matrices.dataset import STACKED
from cmrhash.data.matrices.roles import (
    PARTS,
    advice,
    by_view,
    choose,
    in_words,
    left_over,
)
from cmrhash.data.matrices.rows import dims, oriented, ready_made, several, unused
from cmrhash.data.view import View
from cmrhash.errors import DataError, UsageError


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
    chosen = choose(arrays, maps, also=())
    views = by_view(chosen)
    if strings := [in_words((what, "")) for what in views if not isinstance(what, View)]:
        what = f"{strings[0]} is mapped to strings, but the captions are those of data set '{dataset.name}'"
        raise UsageError(what, files[0], "map arrays of numbers", option="maps")
    if not views:
        raise UsageError("no array has a name known for features", files[0], advice(arrays, View.IMAGE))
    found: Counter[str] = Counter()
    try:
        ready = {View(v): _laid_over(dataset, View(v), views[v], found) for v in views}
    except (DataError, UsageError) as error:
        if dataset.name != SAMPLE_DATASET:
            raise
        fix = f'{error.fix}; the items are those of the built-in sample: for arrays alone give `dataset="features"`'
        raise type(error)(error.what, error.where, fix) from None
    notes, left = unused(left_over(arrays, chosen, maps))
    photos = {"images", "items without an image"} if View.IMAGE in ready else set()
    known = {what: n for what, n in dataset.found.items() if what not in photos or (what == "images" and n)}
    told = {**known, **dims(ready), **+found, **left}
    return replace(dataset, ready={**dataset.ready, **ready}, found=told, notes=(*dataset.notes, *notes))


# ---------------------------------------------------------------------------------------------- other data sets


def _laid_over(dataset: ImageTextDataset, view: View, arrays: Mapping[str, Array], found: Counter[str]) -> Ready:
    """Features of a view in the order of the data set's items, or of their captions."""
    whole = arrays.get("")
    captions = [len(item.texts.get(view.short, ())) for item in dataset.items]
    if whole and not view.is_image and len(dataset.items) != whole.plain[0] == sum(captions):
        item = np.repeat(np.arange(len(captions), dtype=np.int32), captions)
        found[f"{view} rows, one per caption"] = len(item)
        return replace(ready_made(oriented(view, whole, {len(item)}, found), arrays), item=item)
    x = _by_name(dataset, whole, found) if whole and whole.names else _aligned(dataset, view, arrays, found)
    return ready_made(x, arrays, found[several(view)])


def _by_name(dataset: ImageTextDataset, array: Array, found: Counter[str]) -> NDArray[Any]:
    """(items, D) features of the photos that the array names, by path, file name or id; NaN where it names none."""
    place: dict[str, int] = {}
    for row, name in enumerate(array.names):
        for key in (name, PurePosixPath(name).name):
            place.setdefault(key, row)
    keys = [[i.image or i.id, PurePosixPath(i.image or i.id).name, i.id] for i in dataset.items]
    rows = [next((place[key] for key in own if key in place), -1) for own in keys]
    if max(rows) < 0:
        what = f"none of the {len(rows)} items is named in {array}, which has {', '.join(array.names[:3])}, ..."
        raise DataError(what, array.file, "check `root` and `features`")
    own = array.read()
    x = np.full((len(rows), own.shape[1]), np.nan, np.result_type(own.dtype, np.float32))
    at = np.array(rows)
    x[at >= 0] = own[at[at >= 0]]
    found["items without features of their name"] = int((at < 0).sum())
    return x


def _aligned(dataset: ImageTextDataset, view: str, arrays: Mapping[str, Array], found: Counter[str]) -> NDArray[Any]:
    """(items, D) features of a view, in the order of the data set's items."""
    count = len(dataset.items)
    if "" in arrays:
        return oriented(view, arrays[""], {count}, found)
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
        part_of_x = oriented(view, arrays[part], {int(rows.sum()) for rows in fits[part]}, found)
        if x is None:
            x = np.full((count, part_of_x.shape[1]), np.nan, np.result_type(part_of_x.dtype, np.float32))
        if part_of_x.shape[1] != x.shape[1]:
            raise DataError(
                f"the parts of {view} differ in their number of columns", arrays[part].file, "choose others with `maps`"
            )
        rows = next(rows for rows in fits[part] if rows.sum() == len(part_of_x))
        x[rows], covered = part_of_x, covered | rows
    left = [item.id for item, done in zip(dataset.items, covered, strict=True) if item.splits and not done]
    if left or x is None or not covered.any():
        what = f"{view} features are missing for {len(left) or count} items ({', '.join(left[:3])}, ...)"
        lacks = [part for part in PARTS if part not in arrays and (has[part] & ~covered).any()]
        fix = f"map its {lacks[0]} part, too" if lacks else "map all parts of the data set"
        raise DataError(what, next(iter(arrays.values())).file, f"{fix}, or one array of all items")
    return x
