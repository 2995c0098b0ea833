"""IAPR TC-12 as lists of photos with word and label bits, as shared by hashing papers.

    JPEGImages/NN/ID.jpg        annotations/NN/ID.txt
    iapr_train, iapr_test, iapr_retrieval       a photo per line: NN/ID.jpg, 2,912 word bits, 255 label bits

White space or commas separate the bits. The word bits are used only on request (``own_features``); texts are encoded
from the annotations (English; the plain text, or its DESCRIPTION if present). Classes are the positions of the label
bits, from 1. Protocol: that of the lists; test is query, retrieval is database, train is train and database (5 % of it
val). A photo in several lists has the roles of all.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cmrhash.data.cleaning import clean_text
from cmrhash.data.items import ImageTextDataset, Item, Ready
from cmrhash.data.parsing import (
    IMAGE_SUFFIXES,
    decode,
    files_by_stem,
    need_file,
    need_folder,
    report,
    subfolders,
)
from cmrhash.data.readers.iaprtc12 import parse
from cmrhash.data.view import View
from cmrhash.errors import DataError

IMAGES, ANNOTATIONS = "JPEGImages", "annotations"
WORDS, LABELS = 2912, 255  # bits per line
LISTS = {
    "iapr_train": frozenset({"train", "database"}),
    "iapr_test": frozenset({"query"}),
    "iapr_retrieval": frozenset({"database"}),
}

_PHOTO = re.compile(rb"(?:[^\s,]*/)?([0-9]{1,9}/[0-9]{1,9})\.jpe?g", re.IGNORECASE)
_SEPARATORS = b" ,\t\r\n\v\f"


@dataclass
class _Photo:
    """Labels and roles of a photo in the lists."""

    labels: tuple[int, ...]
    splits: frozenset[str]


def read(root: Path) -> ImageTextDataset:
    """Read the data set: an item per photo of the three lists, with id NN/ID.

    Raises DataError if a folder or a list is missing, or if a line is invalid.
    """
    extra: Counter[str] = Counter()
    images = _scan(root, IMAGES, IMAGE_SUFFIXES, extra)
    texts = _scan(root, ANNOTATIONS, (".txt",), extra)
    photos: dict[str, _Photo] = {}
    for name, splits in LISTS.items():
        for ident, bits in _entries(need_file(root, name)):
            labels = tuple(n for n, bit in enumerate(bits[WORDS:]) if bit == ord("1"))
            photo = photos.setdefault(ident, _Photo(labels, frozenset()))
            photo.splits |= splits
            extra["lines with other labels than the photo's first"] += photo.labels != labels
    items = tuple(
        Item(ident, images.get(ident), _read_text(root, texts.get(ident), extra), photo.labels, photo.splits)
        for ident, photo in photos.items()
    )
    extra["photos in no list"] = len(images.keys() - photos.keys())
    classes = tuple(str(n + 1) for n in range(LABELS))
    return ImageTextDataset("iaprtc12-lists", root, items, classes, found=report(items, classes, ["en"], extra))


def own_features(dataset: ImageTextDataset) -> dict[View, Ready]:
    """The lists' word bits, the bag of words of hashing papers.

    (items, WORDS) uint8 of 0 and 1.
    """
    row_of = {item.id: row for row, item in enumerate(dataset.items)}
    words = np.zeros((len(dataset.items), WORDS), np.uint8)
    for name in reversed(LISTS):  # the first line of a photo counts, as for its labels
        for ident, bits in _entries(need_file(dataset.root, name)):
            words[row_of[ident]] = np.frombuffer(bits[:WORDS], np.uint8) - ord("0")
    return {View.text("en"): Ready("words", "the lists' word bits", words)}


def _scan(root: Path, name: str, suffixes: tuple[str, ...], extra: Counter[str]) -> dict[str, str]:
    """Map NN/ID to the path below the root."""
    folder = need_folder(root, name)
    files = {
        f"{part.name}/{stem}": path
        for part in subfolders(folder)
        for stem, path in files_by_stem(root, part, suffixes, extra).items()
    }
    if not files:
        raise DataError(f"no files '{name}/NN/ID{suffixes[0]}'", root, "unpack the data set there")
    return files


def _entries(path: Path) -> Iterator[tuple[str, bytes]]:
    """Yield NN/ID and the bits, as "0" and "1", of every line.

    Lines are parsed as bytes for speed: there are 18,000 lines of 3,168 fields.
    """
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            fields = line.removeprefix(b"\xef\xbb\xbf").replace(b",", b" ").split(None, 1)
            if not fields:
                continue
            photo = _PHOTO.fullmatch(fields[0])
            bits = fields[-1].translate(None, _SEPARATORS)
            if not photo or len(bits) != WORDS + LABELS or bits.strip(b"01"):
                what = f"line {number} is not NN/ID.jpg with {WORDS} + {LABELS} bits: '{clean_text(decode(line[:40]))}'"
                raise DataError(what, path, "fix this line")
            yield photo[1].decode(), bits


def _read_text(root: Path, path: str | None, extra: Counter[str]) -> dict[str, tuple[str, ...]]:
    if path is None:
        return {}
    raw = (root / path).read_bytes()
    text = parse(raw) if b"<description>" in raw.lower() else clean_text(decode(raw))
    extra["empty texts"] += not text
    return {"en": (text,)} if text else {}
