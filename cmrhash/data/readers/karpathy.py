"""Karpathy's files of captions and splits: dataset_flickr30k.json, dataset_flickr8k.json and dataset_coco.json.

    {"images": [{"filename": "1.jpg", "split": "train", "sentences": [{"raw": "A dog.", ...}, ...], ...}, ...]}

The splits are those of instance retrieval (Karpathy & Fei-Fei 2015): the test photos and captions are searched among
each other; restval joins train.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cmrhash.data.cleaning import clean_text
from cmrhash.data.parsing import decode, unique_keys
from cmrhash.errors import DataError

ROLES_OF = {
    "train": frozenset({"train"}),
    "restval": frozenset({"train"}),
    "val": frozenset({"val"}),
    "test": frozenset({"query", "database"}),
}


@dataclass(frozen=True, slots=True)
class Photo:
    """An entry: the file's name as written, the cleaned captions (never empty) and the roles."""

    name: str
    captions: tuple[str, ...]
    splits: frozenset[str]


def read(path: Path) -> list[Photo]:
    """Read the entries of a file in its order. Raises DataError for any other JSON."""
    try:
        entries = json.loads(decode(path.read_bytes()), object_pairs_hook=_used)["images"]
        return [_photo(entry) for entry in entries]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        what = f"not the JSON of Karpathy's splits ({type(error).__name__}: {clean_text(str(error))[:80]})"
        raise DataError(what, path, "give an object of images with filename, split and sentences with raw") from None


def _used(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object without its list of words, which is most of the file. Raises ValueError for a repeated key."""
    entry = unique_keys(pairs)
    entry.pop("tokens", None)
    return entry


def _photo(entry: Any) -> Photo:
    captions = (clean_text(sentence["raw"]) for sentence in entry["sentences"])
    return Photo(clean_text(entry["filename"]), tuple(filter(None, captions)), ROLES_OF[entry["split"]])


def refuse_repeated(path: Path, entries: int, photos: int) -> None:
    """Raise DataError if fewer photos than entries are left."""
    if photos < entries:
        raise DataError(f"{entries - photos} photos are repeated", path, "keep one entry per photo")
