"""Recipes: all that decides a file's content, as nested JSON. Equal recipe, equal content; else the file is refused."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cmrhash.errors import StaleError

Difference = tuple[str, str, str]  # field, found, wanted


def canonical(value: Mapping[str, Any]) -> bytes:
    """JSON with sorted keys: equal content, equal bytes. A lone surrogate, as of a file name that is no UTF-8, becomes
    its JSON escape.
    """
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.encode(errors="backslashreplace")


def fingerprint(recipe: Mapping[str, Any]) -> str:
    """The start of the sha256 of a recipe: what the features of tuned encoders are known by."""
    return hashlib.sha256(canonical(recipe)).hexdigest()[:16]


def refuse_difference(made: Mapping[str, Any], asked: Mapping[str, Any], where: Path, what: str) -> None:
    """Raise StaleError that names the first field in which two recipes differ, with both values."""
    difference = first_difference(made, asked)
    if difference:
        field, found, wanted = difference
        message = f"{what} was made with {field} = {found}, but this call has {wanted}"
        raise StaleError(message, where, "use the same settings, or replace it with `overwrite=True`")


def first_difference(made: Mapping[str, Any], asked: Mapping[str, Any]) -> Difference | None:
    """The first field in which two recipes differ, with both values in words; None for equal recipes."""
    made_flat, asked_flat = dict(_flat(made)), dict(_flat(asked))
    for field in [*asked_flat, *made_flat]:
        if made_flat.get(field) != asked_flat.get(field):
            width = 12 if "sha256" in field else 80
            found, wanted = (str(flat.get(field, "nothing"))[:width] for flat in (made_flat, asked_flat))
            return field, found, wanted
    return None


def _flat(recipe: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in recipe.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, list(value) if isinstance(value, tuple) else value
