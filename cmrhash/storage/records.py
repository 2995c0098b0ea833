"""Typed reading of records: JSON that others may have written, compared with the annotations of our classes."""

from __future__ import annotations

import math
import types
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from typing import Any, Union, get_args, get_origin, get_type_hints

MOST = 1 << 53  # largest whole number that JSON of other programs keeps


def typed(kind: Any, value: Any, name: str) -> Any:
    """The value as the annotation ``kind`` says: a plain type, a union, a tuple[X, ...], a Mapping, a dataclass.

    name: of the field, for messages. Raises ValueError for a value of another type, a number that is not finite, and a
    field of a dataclass that has no default and is missing (as KeyError).
    """
    origin, inner = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if origin in (Union, types.UnionType):
        return _one_of(inner, value, name)
    if kind is None or kind is types.NoneType:
        return _is(value is None, value, name)
    if origin is tuple:
        _is(isinstance(value, list | tuple), value, name)
        return tuple(typed(inner[0], one, f"{name}[{at}]") for at, one in enumerate(value))
    if origin is not None and issubclass(origin, Mapping):
        _is(isinstance(value, Mapping), value, name)
        return {typed(inner[0], key, name): typed(inner[1], one, f"{name}.{key}") for key, one in value.items()}
    if is_dataclass(kind):
        return read(kind, _is(isinstance(value, Mapping), value, name), name)
    return _plain(kind, value, name)


def read(kind: Any, record: Mapping[str, Any], name: str = "", /, **given: Any) -> Any:
    """A dataclass of a record, whose other fields are ignored. given: fields that do not come from it."""
    made = dict(given)
    for field in fields(kind):
        if field.name in given or (field.name not in record and _has_default(field)):
            continue
        way = f"{name}.{field.name}" if name else field.name
        made[field.name] = typed(_hints(kind)[field.name], record[field.name], way)
    return kind(**made)


def _has_default(field: Any) -> bool:
    return field.default is not MISSING or field.default_factory is not MISSING


@cache
def _hints(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind)


def _one_of(kinds: tuple[Any, ...], value: Any, name: str) -> Any:
    for kind in kinds:
        try:
            return typed(kind, value, name)
        except ValueError:
            continue
    return _is(False, value, name)


def _plain(kind: Any, value: Any, name: str) -> Any:
    """A string (or a class of strings), a truth value, or a number within bounds."""
    if issubclass(kind, str):
        return kind(_is(isinstance(value, str), value, name))
    if kind is bool:
        return _is(isinstance(value, bool), value, name)
    number = isinstance(value, int if kind is int else int | float) and not isinstance(value, bool)
    return kind(_is(number and math.isfinite(value) and abs(value) <= MOST, value, name))


def _is(right: bool, value: Any, name: str) -> Any:
    if not right:
        raise ValueError(f"'{name}' cannot be {str(value)[:40]!r}")
    return value
