"""Arrays of feature files as a row per item."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cmrhash.data.items import Ready
from cmrhash.data.matrices.array import Array
from cmrhash.data.matrices.roles import (
    CAPTIONS,
    IDS,
    NOTED,
)
from cmrhash.data.view import View
from cmrhash.errors import DataError

MOST_TEXTS = 100  # of an item
Table = dict[str, NDArray[Any]]  # what -> (rows, D) numbers, (rows, k * D) for k texts an item; (rows, 1) tuples of str


def block(arrays: Mapping[str, Array], found: Counter[str]) -> Table:
    """Arrays of the same items, each as (rows, D) with one row per item."""
    for array in arrays.values():
        if 0 in array.plain:
            raise DataError(f"{array} is empty", array.file, "choose another with `maps`")
    rows = {array.plain[0] for array in arrays.values()}
    if len(rows) > 1:
        common = set.intersection(*(set(array.plain) for array in arrays.values()))
        rows, photos = common - {1} or common, arrays[View.IMAGE].plain[0]
        if photos > max(rows, default=1) and all(_times(what, array, photos) for what, array in arrays.items()):
            rows = {photos}
    if len(rows) != 1:
        told = ", ".join(map(str, arrays.values()))
        raise DataError("the arrays differ in their number of items", None, f"{told}: choose others with `maps`")
    return {what: oriented(what, array, rows, found) for what, array in arrays.items()}


def _times(what: str, array: Array, count: int) -> int:
    """Rows of the array for each of ``count`` items: 1, more for several texts an item, 0 if it does not fit."""
    times, rest = divmod(array.plain[0], count)
    return 0 if rest or times > (MOST_TEXTS if what.startswith(("text-", CAPTIONS)) else 1) else times


def oriented(what: str, array: Array, rows: set[int], found: Counter[str]) -> NDArray[Any]:
    """The array as (rows, D), transposed if only its last axis fits; with k texts an item as (rows, k * D).

    rows: the possible numbers of items.
    """
    shape = array.plain
    if len(shape) not in (1, 2):
        fix = "features are one row per item; encode raw images first"
        raise DataError(f"{array} has {len(shape)} axes", array.file, fix)
    turned = shape[0] not in rows and shape[-1] in rows
    times = 1 if turned or shape[0] in rows else next((t for n in rows if (t := _times(what, array, n))), 0)
    if not times:
        told = " or ".join(map(str, sorted(rows)))
        raise DataError(f"{array} does not have {told} items", array.file, "check `maps`")
    x = _strings(array) if array.is_text or what == IDS else array.read()
    x = x[:, None] if x.ndim == 1 else x
    found["arrays turned, for their items were columns"] += turned
    if turned:
        return x.T
    if times == 1:
        return x
    if found[several(what)] not in (0, times):
        raise DataError(f"{array} has {times} rows per item, other parts do not", array.file, "check `maps`")
    found[several(what)] = times
    x = x.reshape(len(x) // times, -1)
    return _column([sum(own, ()) for own in x.tolist()]) if array.is_text else x


def several(what: str) -> str:
    """Key of the count of rows of every item, for the user."""
    return f"{what} rows per photo, taken as its captions"


def _strings(array: Array) -> NDArray[Any]:
    return _column(array.read_texts())


def _column(rows: Sequence[tuple[str, ...]]) -> NDArray[Any]:
    """(rows, 1) object array of tuples."""
    x = np.empty((len(rows), 1), object)
    for at, own in enumerate(rows):
        x[at, 0] = own
    return x


def unused(left: Mapping[str, tuple[Array, str]]) -> tuple[tuple[str, ...], dict[str, int]]:
    """A note for each file on its arrays that are not used, and their count for the user. left: see ``left_over``."""
    if not left:
        return (), {}
    notes = []
    for file in dict.fromkeys(array.file for array, _ in left.values()):
        own = [one for one in left.values() if one[0].file == file]
        ways = [f'"{way}"' for _, way in own[:NOTED] if way]
        more = f", and {len(own) - NOTED} more" if len(own) > NOTED else ""
        use = f"; to use {'it' if len(own) == 1 else 'them'}: `maps=({', '.join(ways)}{',' * (len(ways) == 1)})`"
        notes.append(f"not used: {', '.join(str(array) for array, _ in own[:NOTED])}{more}" + use * bool(ways))
    names = ", ".join(list(left)[:5]) + (", ..." if len(left) > 5 else "")
    return tuple(notes), {f"arrays not used ({names})": len(left)}


def ready_made(x: NDArray[Any], arrays: Mapping[str, Array], times: int = 0) -> Ready:
    """Precomputed features with a name and a description of their arrays; ``times`` rows an item, 0 means one."""
    files = list(dict.fromkeys(array.file for array in arrays.values()))
    source = f"{', '.join(file.name for file in files)}: {', '.join(array.name for array in arrays.values())}"
    item = np.repeat(np.arange(len(x), dtype=np.int32), times) if times else None
    x = x.reshape(len(x) * times, -1) if times else x
    return Ready(re.sub(r"[^\w.-]", "_", files[0].stem), source, x, item)


def dims(ready: Mapping[View, Ready]) -> dict[str, int]:
    """Number of features per item of each view, for the user."""
    return {f"{view} features an item ({own.source})": own.x.shape[1] for view, own in ready.items()}
