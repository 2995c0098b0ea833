"""Labels of feature files: classes by number, by column or by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cmrhash.data.items import clean_label
from cmrhash.data.matrices.array import Array
from cmrhash.errors import DataError


def read_labels(x: NDArray[Any], arrays: Mapping[str, Array]) -> tuple[tuple[str, ...], list[tuple[int, ...]]]:
    """Class names, and the classes of every row.

    x: (rows, classes) of 0/1 or -1/1, (rows, 1) class ids of which -1 is no class, or (rows, 1) tuples of names. Raises
    DataError for other values.
    """
    array = next(iter(arrays.values()))
    if x.dtype == object:
        return _named([[clean_label(name) for name in own] for (own,) in x])
    values = np.unique(x)
    if x.shape[1] > 1 and (set(values.tolist()) <= {0, 1} or set(values.tolist()) <= {-1, 1}):
        names = tuple(str(n + 1) for n in range(x.shape[1]))
        return names, [tuple(np.flatnonzero(row > 0).tolist()) for row in x]
    if x.shape[1] > 1 or not np.isfinite(values).all() or (values != np.floor(values)).any():
        fix = "labels are 0/1 or -1/1 for every class, or one whole number per item"
        raise DataError(f"{array} is not an array of labels ({', '.join(map(str, values[:5]))}, ...)", array.file, fix)
    none = -1 in values and len(values) > 2  # beside other ids, -1 is no class
    values = values[values != -1] if none else values
    ids = np.searchsorted(values, x[:, 0])
    labels: list[tuple[int, ...]] = [(n,) for n in ids.tolist()]
    for row in np.flatnonzero(x[:, 0] == -1) if none else ():
        labels[row] = ()
    return tuple(str(int(value)) for value in values), labels


def _named(names: Sequence[Sequence[str]]) -> tuple[tuple[str, ...], list[tuple[int, ...]]]:
    """Classes and labels of rows by the names of their classes; "" is no class."""
    classes = tuple(sorted({name for own in names for name in own if name}))
    number = {name: n for n, name in enumerate(classes)}
    return classes, [tuple(sorted({number[name] for name in own if name})) for own in names]
