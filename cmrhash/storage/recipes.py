"""Recipes: all settings that determine the content of a file, as nested JSON.

Files of equal recipes have equal content. A file whose recipe differs from the wanted one is refused.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cmrhash.errors import StaleError

LACKING = {"runtime": "torch", "mirror": "False"}  # what a recipe without a field means
SETTINGS = ("dtype", "layer", "pooling")  # fields that are settings of the same name, or `image_layers`
Difference = tuple[str, str, str]  # field, found, wanted


def canonical(value: Mapping[str, Any]) -> bytes:
    """JSON with sorted keys, so that equal content gives equal bytes.

    Lone surrogates (from file names that are not UTF-8) become JSON escapes.
    """
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.encode(errors="backslashreplace")


def fingerprint(recipe: Mapping[str, Any]) -> str:
    """First 16 hex digits of a recipe's sha256; they name features of fine-tuned encoders."""
    return hashlib.sha256(canonical(recipe)).hexdigest()[:16]


def refuse_difference(made: Mapping[str, Any], asked: Mapping[str, Any], where: Path, what: str) -> None:
    """Raise StaleError that names the first field in which two recipes differ.

    made: recipe of the file at ``where``; asked: recipe of this call; what: name of the file in the message.
    """
    difference = first_difference(made, asked)
    if difference:
        field, found, wanted = difference
        message = f"{what} was made with {field} = {found}, but this call has {wanted}"
        of_classifier = field == "layer" and "normalised" not in made  # which only the recipes of towers have
        setting = "image_layers" if of_classifier else field
        same = f"use `{setting}={found!r}`" if field in SETTINGS and field in made else "use the same settings"
        raise StaleError(message, where, f"{same}, or replace it with `overwrite=True`")


def first_difference(made: Mapping[str, Any], asked: Mapping[str, Any]) -> Difference | None:
    """First field in which two recipes differ, with both values as text; None if equal."""
    made_flat, asked_flat = dict(_flat(made)), dict(_flat(asked))
    # the runtime decides the number type, and so comes first
    for field in ["runtime", *asked_flat, *made_flat]:
        if made_flat.get(field) != asked_flat.get(field):
            width = 12 if "sha256" in field else 80
            lacking = LACKING.get(field, "nothing")
            found, wanted = (str(flat.get(field, lacking))[:width] for flat in (made_flat, asked_flat))
            return field, found, wanted
    return None


def _flat(recipe: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted path, value) of every field."""
    for key, value in recipe.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, list(value) if isinstance(value, tuple) else value
