"""Data sets made in memory, from lists of image files, captions and labels."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from cmrhash.data.cleaning import clean_label, clean_language, clean_text
from cmrhash.data.items import ROLES, ImageTextDataset, Item, check
from cmrhash.errors import DataError, UsageError, did_you_mean

Captions = Sequence[str | Sequence[str] | None]


def dataset(
    images: Sequence[str | Path | None] = (),
    texts: Mapping[str, Captions] | None = None,
    labels: Sequence[str | Sequence[str] | None] | None = None,
    *,
    splits: Sequence[str | Sequence[str]] | None = None,
    ids: Sequence[str] | None = None,
    name: str = "mine",
) -> ImageTextDataset:
    """Make a data set of N items from lists of equal length.

    images: N image files, None for an item without one. texts: language -> N captions, each a string, a list of
    strings, or None. labels: N labels, each a string, a list of strings, or None; without labels an item is relevant to
    its own counterpart alone. splits: N roles out of "train", "val", "query" and "database"; None: drawn at extraction.
    ids: N unique strings; None: "0", "1", ... Raises UsageError for lists of other lengths, DataError for bad values.
    """
    texts = _by_language(texts or {})
    columns: dict[str, Sequence[object]] = {"images": images, **{f"texts.{k}": v for k, v in texts.items()}}
    columns |= {
        key: value for key, value in (("labels", labels), ("splits", splits), ("ids", ids)) if value is not None
    }
    counts = {key: len(value) for key, value in columns.items() if key != "images" or len(value)}
    if not counts:
        raise UsageError("no items", None, "give `images` and `texts`")
    count = max(counts.values())
    if other := [key for key, length in counts.items() if length != count]:
        what = f"{counts[other[0]]} {other[0]}, but {count} items"
        raise UsageError(what, None, "give lists of one length", option=other[0].partition(".")[0])
    root, files = _below_one_folder(images or [None] * count)
    named = [set(map(clean_label, _listed(value))) - {""} for value in labels or [None] * count]
    classes = tuple(sorted({label for own in named for label in own}))
    place = {label: n for n, label in enumerate(classes)}
    items = tuple(
        Item(
            str(ids[n]) if ids is not None else str(n),
            files[n],
            {lang: own for lang, column in sorted(texts.items()) if (own := _captions(column[n]))},
            tuple(sorted({place[label] for label in named[n]})),
            _roles(splits[n]) if splits is not None else frozenset(),
        )
        for n in range(count)
    )
    return check(ImageTextDataset(name, root, items, classes, "labels" if classes else "pairs"))


def _below_one_folder(images: Sequence[str | Path | None]) -> tuple[Path, list[str | None]]:
    """The folder that all image files share, and each file's path below it."""
    for image in images:
        if not (image is None or isinstance(image, (str, Path))):
            fix = "give paths; save other images to files first"
            raise UsageError(f"an image is a {type(image).__name__}, not a path", None, fix, option="images")
    paths = [None if image is None else Path(os.path.abspath(Path(image).expanduser())) for image in images]
    folders = {str(path.parent) for path in paths if path is not None}
    root = Path(os.path.commonpath(folders)) if folders else Path.cwd()
    return root, [None if path is None else path.relative_to(root).as_posix() for path in paths]


def _by_language(texts: Mapping[str, Captions]) -> dict[str, Captions]:
    """Captions by language tag in lower case. Raises UsageError for a tag that is none, or that is repeated."""
    found: dict[str, Captions] = {}
    for lang, captions in texts.items():
        try:
            tag = clean_language(lang)
        except ValueError as error:
            raise UsageError(str(error), None, "write a tag such as en or pt-br", option="texts") from None
        if tag in found:
            raise UsageError(f"language '{tag}' is given twice", None, "join its captions", option="texts")
        found[tag] = captions
    return found


def _listed(value: str | Sequence[str] | None) -> tuple[str, ...]:
    return () if value is None else (value,) if isinstance(value, str) else tuple(map(str, value))


def _captions(value: str | Sequence[str] | None) -> tuple[str, ...]:
    return tuple(text for text in map(clean_text, _listed(value)) if text)


def _roles(value: str | Sequence[str]) -> frozenset[str]:
    roles = frozenset(_listed(value))
    if unknown := sorted(roles - set(ROLES)):
        fix = f"{did_you_mean(unknown[0], ROLES)} choose out of {', '.join(ROLES)}"
        raise DataError(f"unknown split '{unknown[0]}'", None, fix)
    return roles
