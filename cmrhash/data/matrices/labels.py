"""Labels of feature files: classes by number, by column or by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cmrhash.data.cleaning import clean_label
from cmrhash.data.matrices.array import Array
from cmrhash.errors import DataError


def read_labels(x: NDArray[Any], arrays: Mapping[str, Array]) -> tuple[tuple[str, ...], list[tuple[int, ...]]]:
    """Class names, and the classes of every row.

    x: (rows, classes) of 0/1 or -1/1, (rows, 1) class ids of which -1 and NaN are none, or (rows, 1) tuples of names.
    Raises DataError for other values.
    """
    array = next(iter(arrays.values()))
    if x.dtype == object:
        return _named([[clean_label(name) for name in own] for (own,) in x])
    values = np.unique(x)
    if x.shape[1] > 1 and (set(values.tolist()) <= {0, 1} or set(values.tolist()) <= {-1, 1}):
        names = tuple(str(n + 1) for n in range(x.shape[1]))
        return names, [tuple(np.flatnonzero(row > 0).tolist()) for row in x]
    real = values[~np.isnan(values)]
    if x.shape[1] > 1 or not len(real) or not np.isfinite(real).all() or (real != np.floor(real)).any():
        fix = "labels are 0/1 or -1/1 for every class, or one whole number per item (-1 or NaN for none)"
        raise DataError(f"{array} is not an array of labels ({', '.join(map(str, values[:5]))}, ...)", array.file, fix)
    kept = [value for value in real.tolist() if clean_label(str(value))]
    number = {value: (n,) for n, value in enumerate(kept)}
    return tuple(str(int(value)) for value in kept), [number.get(value, ()) for value in x[:, 0].tolist()]


def _named(names: Sequence[Sequence[str]]) -> tuple[tuple[str, ...], list[tuple[int, ...]]]:
    """Classes and labels of rows by the names of their classes; "" is no class."""
    classes = tuple(sorted({name for own in names for name in own if name}))
    number = {name: n for n, name in enumerate(classes)}
    return classes, [tuple(sorted({number[name] for name in own if name})) for own in names]
