"""Records (JSON objects) in which one field is missing or has an odd value, field by field."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

ODD = (None, "x", "", -1, 0, 10**30, 1.5, float("nan"), True, [], [1], ["x"], {}, {"x": 1}, [[]])
MISSING = object()


def places(record: Any, way: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Ways to all fields and elements, outermost first."""
    inner = record.items() if isinstance(record, dict) else enumerate(record) if isinstance(record, list) else ()
    for key, value in inner:
        yield (*way, key)
        yield from places(value, (*way, key))


def changed(record: dict[str, Any], way: tuple[Any, ...], value: Any) -> dict[str, Any]:
    """A copy with that value at the end of the way, or without it."""
    made = copy.deepcopy(record)
    inside: Any = made
    for key in way[:-1]:
        inside = inside[key]
    if value is MISSING:
        del inside[way[-1]]
    else:
        inside[way[-1]] = value
    return made


def odd(record: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every change, with its name."""
    for way in places(record):
        inside: Any = record
        for key in way:
            inside = inside[key]
        for value in (MISSING, *ODD):
            if type(value) is not type(inside) or value != inside:
                yield (
                    f"{'.'.join(map(str, way))}={'missing' if value is MISSING else value!r}",
                    changed(record, way, value),
                )
