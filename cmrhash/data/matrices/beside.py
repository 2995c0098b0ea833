"""Ids and captions in files of their own, beside feature files."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from cmrhash.data.cleaning import clean_text
from cmrhash.data.matrices import SUFFIXES
from cmrhash.data.matrices.arrays import list_arrays
from cmrhash.data.matrices.roles import LANG, listed
from cmrhash.data.parsing import read_lines
from cmrhash.errors import DataError, UsageError

ORDER = "in the order of the rows; of several parts database, train, val, query"


def ids_of(path: Path, count: int) -> list[str]:
    """The id of each of ``count`` items: a line or a string each. Raises DataError for another number of ids."""
    rows = _rows(path, "ids")
    if len(rows) != count:
        raise DataError(f"{len(rows)} ids for {count} items", path, f"give an id per item, {ORDER}")
    return [clean_text(" ".join(own)) for own in rows]


def captions_of(
    options: Sequence[str], count: int, inside: Mapping[str, Sequence[tuple[str, ...]]]
) -> list[dict[str, tuple[str, ...]]]:
    """Captions of each item by language.

    options: "[LANG=]FILE". inside: those of the feature files. Raises UsageError for an unusable option or a language
    given twice, DataError for a number of captions that is no multiple of the number of items.
    """
    rows_of = dict(inside)
    for option in options:
        match = None if Path(option).is_file() else re.fullmatch(r"([A-Za-z0-9_-]+)=(.+)", option)
        lang, file = (match[1].lower(), match[2]) if match else (LANG, option)
        if lang in rows_of:
            raise UsageError(f"there are other {lang} captions", file, "leave them out", option="captions")
        rows = _rows(Path(file).expanduser(), "captions")
        if not rows or len(rows) % count:
            fix = f"give as many captions for each item, {ORDER}"
            raise DataError(f"{len(rows)} captions for {count} items", file, fix)
        each = len(rows) // count
        rows_of[lang] = [sum(rows[first : first + each], ()) for first in range(0, len(rows), each)]
    texts: list[dict[str, tuple[str, ...]]] = [{} for _ in range(count)]
    for lang, own_rows in sorted(rows_of.items()):
        for own, row in zip(texts, own_rows, strict=True):
            if captions := tuple(filter(None, map(clean_text, row))):
                own[lang] = captions
    return texts


def _rows(path: Path, option: str) -> list[tuple[str, ...]]:
    """Strings of each row of the only text array of a file, else of its only array; or the lines of a text file."""
    if not path.is_file():
        raise DataError("no such file", path, f"check `{option}`")
    if path.suffix.lower() not in SUFFIXES:
        return [(line,) for line in read_lines(path)]
    arrays = list_arrays(path)
    texts = [array for array in arrays if array.is_text] or arrays
    if len(texts) != 1:
        raise DataError(f"{len(texts)} arrays that may be the {option} ({listed(texts)})", path, "give a file with one")
    return texts[0].read_texts()
