"""Conditions on items: ``label=dog``, ``split!=query``, ``label=dog and not label=snow or label=cat``."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from fnmatch import translate
from functools import cache

import numpy as np
from numpy.typing import NDArray

from cmrhash.data.items import ROLES, ImageTextDataset, Item
from cmrhash.errors import UsageError, did_you_mean, some_of

CONDITION = re.compile(r"\s*(not\s+)?(\w+)\s*(!?=)\s*(.*?)\s*", re.S)
# between two conditions; a value may contain the words
OR, AND = (re.compile(rf"\s+{word}\s+(?=(?:not\s+)?\w+\s*!?=)") for word in ("or", "and"))
WILD = "*?["
EXAMPLE = 'write FIELD=VALUE or FIELD!=VALUE, such as "label=dog or label=cat and not label=snow"'

Texts = Callable[[ImageTextDataset, Item], Iterable[str]]
FIELDS: dict[str, Texts] = {  # values of an item by field of the manifest
    "id": lambda _, item: (item.id,),
    "image": lambda _, item: (item.image or "",),
    "label": lambda dataset, item: (dataset.classes[label] for label in item.labels),
    "split": lambda _, item: item.splits,
    "lang": lambda _, item: (lang for lang, texts in item.texts.items() if texts),
}


def matching(dataset: ImageTextDataset, where: Sequence[str]) -> NDArray[np.bool_]:
    """Whether each item meets all conditions, (items,) bool.

    A condition is FIELD=VALUE (some value of the item is VALUE), FIELD!=VALUE or "not FIELD=VALUE" (none is), or
    several of these joined by "and" and "or", of which "and" binds closer. Fields: id, image (path), label, split, lang
    (of the captions); * and ? in a value are wildcards.
    Raises UsageError for anything else, for a label, split or language that no item has, and if no item is left.
    """
    kept = np.ones(len(dataset.items), np.bool_)
    for condition in where:
        one = np.zeros(len(kept), np.bool_)
        for part in OR.split(condition):
            one |= np.all([_of_part(dataset, each) for each in AND.split(part)], 0)
        kept &= one
    if not kept.any():
        raise UsageError(f"no item has {' and '.join(where)}", dataset.root, "give another condition", option="where")
    return kept


def _of_part(dataset: ImageTextDataset, part: str) -> NDArray[np.bool_]:
    parsed = CONDITION.fullmatch(part)
    if not parsed or not parsed[4]:
        raise UsageError(f"'{part}' is no condition", None, EXAMPLE, option="where")
    negated, field, sign, value = parsed.groups()
    if field not in FIELDS:
        fix = f"{did_you_mean(field, FIELDS)} choose one of {', '.join(FIELDS)}"
        raise UsageError(f"no field '{field}'", None, fix, option="where")
    _refuse_unknown(dataset, field, value)
    values, fits = FIELDS[field], _fitting(value)
    has = np.fromiter((any(map(fits, values(dataset, item))) for item in dataset.items), np.bool_, len(dataset.items))
    return has if (sign == "=") != bool(negated) else ~has


def _fitting(value: str) -> Callable[[str], bool]:
    """Whether a text is the value, or fits it if it has wildcards; each text is compared once."""
    if not any(sign in value for sign in WILD):
        return value.__eq__
    pattern = re.compile(translate(value))
    return cache(lambda text: bool(pattern.match(text)))


def _refuse_unknown(dataset: ImageTextDataset, field: str, value: str) -> None:
    """Raise UsageError for a label, split or language that the data set lacks: most likely it is misspelt."""
    known = {"label": dataset.classes, "split": ROLES, "lang": dataset.languages}.get(field)
    if known is not None and not any(map(_fitting(value), known)):
        near = did_you_mean(value, known)
        listed = f"choose one of {some_of(sorted(known))}" if known else ""
        raise UsageError(f"no item has {field}={value}", dataset.root, f"{near} {listed}".strip(), option="where")
