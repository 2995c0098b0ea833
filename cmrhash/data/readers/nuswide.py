"""NUS-WIDE: 269,648 photos of Flickr with the tags of their owners and 81 concepts (Chua et al. 2009).

    ImageList/Imagelist.txt                     CLASS\\NNNN_FLICKRID.jpg, a photo per line
    Flickr/CLASS/NNNN_FLICKRID.jpg              photos, or images/ with or without folders of classes
    Groundtruth/AllLabels/Labels_CONCEPT.txt    0 or 1 per photo of the list
    NUS_WID_Tags/All_Tags.txt                   FLICKRID TAG TAG ..., in any order

All photos of the list are items, because many have vanished from Flickr; the missing ones are counted. The text of a
photo is its tags, joined by spaces. Concepts are sorted by name. Protocol: roles drawn from the seed, with the shares
of IAPR TC-12; the split in Groundtruth/TrainTestLabels is not read.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Container
from pathlib import Path

import numpy as np

from cmrhash.data.cleaning import clean_text
from cmrhash.data.items import ImageTextDataset, Item
from cmrhash.data.parsing import (
    FOREIGN,
    IMAGE_SUFFIXES,
    decode,
    files_by_stem,
    need_file,
    need_folder,
    read_lines,
    report,
    subfolders,
)
from cmrhash.errors import DataError

LIST, TAGS = "ImageList/Imagelist.txt", "NUS_WID_Tags/All_Tags.txt"
IMAGES, LABELS = ("Flickr", "images"), "Groundtruth/AllLabels"
CONCEPT = "Labels_"
_PHOTO = re.compile(r"(?:.*/)?([^/]+/[0-9]+_([0-9]+))\.jpe?g", re.IGNORECASE)


def read(root: Path) -> ImageTextDataset:
    """Read the data set: an item per photo of the list, with id CLASS/NNNN_FLICKRID.

    Raises DataError if a file or folder is missing, if a line of the list or a label cannot be read, or if a concept
    has more or fewer labels than the list has photos.
    """
    extra: Counter[str] = Counter()
    listed = _listed(need_file(root, LIST))
    classes, labels = _labels(root, len(listed), extra)
    images = _photos(root, extra)
    texts = _texts(need_file(root, TAGS), {flickr for _, flickr in listed}, extra)
    items = tuple(
        Item(
            id=name,
            image=images.pop(name, None) or images.pop(name.rpartition("/")[2], None),
            texts={"en": (texts[flickr],)} if texts.get(flickr) else {},
            labels=labels[row],
        )
        for row, (name, flickr) in enumerate(listed)
    )
    extra["photos that the list does not name"] = len(images)
    return ImageTextDataset("nuswide", root, items, classes, found=report(items, classes, ["en"], extra))


def _listed(path: Path) -> list[tuple[str, str]]:
    """Name CLASS/NNNN_FLICKRID and Flickr's id of every photo of the list."""
    listed: list[tuple[str, str]] = []
    for number, line in enumerate(read_lines(path), 1):
        if not (text := clean_text(line).replace("\\", "/")):
            continue
        if not (photo := _PHOTO.fullmatch(text)):
            raise DataError(f"line {number} is not CLASS\\NNNN_FLICKRID.jpg: {text[:60]!r}", path, "fix this line")
        listed.append((photo[1], photo[2]))
    if not listed:
        raise DataError("the list names no photos", path, "use the list of the archive")
    return listed


def _photos(root: Path, extra: Counter[str]) -> dict[str, str]:
    """Photos on the disk: CLASS/STEM, or STEM without a folder of the class -> path below the root."""
    top = need_folder(root, *IMAGES)
    photos = files_by_stem(root, top, IMAGE_SUFFIXES, extra)
    for folder in subfolders(top):
        for stem, path in files_by_stem(root, folder, IMAGE_SUFFIXES, extra).items():
            photos[f"{folder.name}/{stem}"] = path
    return photos


def _labels(root: Path, count: int, extra: Counter[str]) -> tuple[tuple[str, ...], list[tuple[int, ...]]]:
    """The concepts, and the labels of every row; rows with equal labels share one tuple to save memory."""
    folder = need_folder(root, LABELS)
    files = files_by_stem(root, folder, (".txt",), extra)
    concepts = tuple(sorted(name for stem in files if (name := stem.removeprefix(CONCEPT)) not in ("", stem)))
    extra[FOREIGN] += len(files) - len(concepts)
    if not concepts:
        raise DataError(f"no file '{CONCEPT}CONCEPT.txt'", folder, "unpack the labels there")
    bits = np.zeros((count, len(concepts)), dtype=bool)
    for column, name in enumerate(concepts):
        path = root / files[CONCEPT + name]
        values = decode(path.read_bytes()).split()
        if len(values) != count:
            raise DataError(f"{len(values)} labels for the {count} photos of the list", path, "unpack this file again")
        if wrong := set(values) - {"0", "1"}:
            raise DataError(f"label {min(wrong)[:40]!r} is neither 0 nor 1", path, "unpack this file again")
        bits[:, column] = np.frombuffer("".join(values).encode(), dtype=np.uint8) == ord("1")
    same: dict[bytes, tuple[int, ...]] = {}
    rows: list[tuple[int, ...]] = []
    for packed, row in zip(np.packbits(bits, axis=1), bits, strict=True):
        key = packed.tobytes()
        rows.append(same.get(key) or same.setdefault(key, tuple(np.flatnonzero(row).tolist())))
    return concepts, rows


def _texts(path: Path, wanted: Container[str], extra: Counter[str]) -> dict[str, str]:
    """Flickr's id -> its tags as one text, read line by line; the first of several lines of an id counts."""
    texts: dict[str, str] = {}
    with path.open("rb") as lines:
        for line in lines:
            flickr, _, tags = clean_text(decode(line)).partition(" ")
            if flickr in texts:
                extra["repeated lines of tags"] += 1
            elif flickr in wanted:
                texts[flickr] = tags
            elif flickr:
                extra["lines of tags of no photo of the list"] += 1
    return texts
