"""Flickr30k and Flickr8k: photos with five English captions, and German ones of Multi30k.

    flickr30k_images/ | flickr30k-images/ | Flicker8k_Dataset/ | Flickr8k_Dataset/ | images/

hold the photos (.jpg, else .png and others); the folder has its name in any case, and may be missing.

Captions come from the first of these files that exists:

    dataset_flickr30k.json | dataset_flickr8k.json              Karpathy's captions and split
    results_20130124.token | Flickr8k.token.txt                 "name.jpg#0<TAB>caption"
    results.csv                                                 "name.jpg| 0| caption"
    captions.txt | captions.csv                                 "name.jpg,caption" or "name.jpg,0,caption"
    flickr_annotations_30k.csv                                  the Hub's table: filename, raw (a list), split

A table with other columns is read by their usual names (``cmrhash.data.columns``), as a CSV file.

    multi30k/SPLIT_images.txt     name of a photo per line; SPLIT is train, val or test
    multi30k/SPLIT.de             their German captions; several per photo: SPLIT.1.de ... or SPLIT.de.1 ...

Relevance is by pairs. Protocol: Karpathy's split if available (train with restval, val, test; his file and the Hub's
table have it), otherwise drawn from the seed; the queries are also the database. Ids are the names of the photos
without suffix.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from pathlib import Path

from cmrhash.data.cleaning import clean_text
from cmrhash.data.columns import choose
from cmrhash.data.items import ImageTextDataset, Item
from cmrhash.data.parsing import (
    FOREIGN,
    IMAGE_SUFFIXES,
    files_by_stem,
    has_folder,
    need_file,
    need_folder,
    read_lines,
    report,
    unquoted,
)
from cmrhash.data.photos import PHOTO_SUFFIXES
from cmrhash.data.readers import karpathy
from cmrhash.data.tables import open_table, strings
from cmrhash.errors import DataError

IMAGES = ("flickr30k_images", "flickr30k-images", "Flicker8k_Dataset", "Flickr8k_Dataset", "images")
KARPATHY = {"flickr30k": "dataset_flickr30k.json", "flickr8k": "dataset_flickr8k.json"}
TOKENS = {"flickr30k": "results_20130124.token", "flickr8k": "Flickr8k.token.txt"}
TABLES = ("results.csv", "captions.txt", "captions.csv", "flickr_annotations_30k.csv")
GERMAN = "multi30k"
_TOKEN = re.compile(r"(?P<photo>[^\t#]+)#\d+\s(?P<text>.*)")
# One line of the published file lacks the second bar.
_BARS = re.compile(r"(?P<photo>[^|]+)\|\s*\d+\s*(?:\||\s)(?P<text>.*)")
_COMMA = re.compile(r"(?P<photo>[^,]+?\.(?:jpe?g|png)),(?P<text>.*)", re.IGNORECASE)
_NUMBERED = re.compile(r"(?P<photo>[^,]+),\s*\d+,(?P<text>.*)")
_HEADER = re.compile(r"image(_name)?\s*(\|.*|,\s*(?P<number>comment_number\s*,)?\s*)(caption|comment)s?", re.IGNORECASE)


@dataclass
class _Photo:
    texts: dict[str, list[str]] = field(default_factory=dict)
    splits: frozenset[str] = frozenset()

    def add(self, lang: str, text: str) -> None:
        if text := clean_text(text):
            self.texts.setdefault(lang, []).append(text)


def read_flickr30k(root: Path) -> ImageTextDataset:
    """Read Flickr30k: an item per photo with captions. Raises DataError."""
    return _read(root, "flickr30k")


def read_flickr8k(root: Path) -> ImageTextDataset:
    """Read Flickr8k: an item per photo with captions. Raises DataError."""
    return _read(root, "flickr8k")


def _read(root: Path, name: str) -> ImageTextDataset:
    extra: Counter[str] = Counter()
    path = need_file(root, KARPATHY[name], TOKENS[name], *TABLES)
    photos = _read_karpathy(path) if path.name == KARPATHY[name] else _read_captions(path)
    if (root / GERMAN).is_dir():
        _add_german(need_folder(root, GERMAN), photos, extra)
    images = _images(root, photos.keys(), extra)
    items = tuple(
        Item(stem, images.get(stem), {lang: tuple(texts) for lang, texts in photo.texts.items()}, (), photo.splits)
        for stem, photo in photos.items()
    )
    extra["photos without captions"] = len(images.keys() - photos.keys())
    languages = sorted({"en", *(lang for item in items for lang in item.texts)}, key="en de".index)
    return ImageTextDataset(name, root, items, (), "pairs", found=report(items, (), languages, extra))


def _images(root: Path, named: AbstractSet[str], extra: Counter[str]) -> dict[str, str]:
    """Photos by stem: path below the root. Other forms than JPEG are looked for where a named photo has no JPEG."""
    if not has_folder(root, *IMAGES):
        return {}
    folder = need_folder(root, *IMAGES)
    images = files_by_stem(root, folder, IMAGE_SUFFIXES, extra)
    if named - images.keys():
        others = files_by_stem(root, folder, tuple(set(PHOTO_SUFFIXES) - set(IMAGE_SUFFIXES)), Counter())
        more = {stem: path for stem, path in others.items() if stem in named - images.keys()}
        extra[FOREIGN] -= len(more)
        images |= more
    return images


def _stem(photo: str) -> str:
    """Name of a photo without folder and suffix."""
    stem, suffix = os.path.splitext(clean_text(photo).rsplit("/", 1)[-1])
    return stem if suffix.lower() in PHOTO_SUFFIXES else stem + suffix


def _read_karpathy(path: Path) -> dict[str, _Photo]:
    entries = karpathy.read(path)
    photos = {_stem(photo.name): _Photo({"en": list(photo.captions)}, photo.splits) for photo in entries}
    karpathy.refuse_repeated(path, len(entries), len(photos))
    return photos


def _read_captions(path: Path) -> dict[str, _Photo]:
    """Read a file of captions in one of the formats of the module's docstring."""
    lines = read_lines(path)
    first = next(iter(lines), "")
    header = None if path.name in TOKENS.values() else _HEADER.fullmatch(first.strip())
    form = _TOKEN if path.name in TOKENS.values() else _BARS if "|" in first else _COMMA
    if header and header["number"]:
        form = _NUMBERED
    elif form is _COMMA and first and not header and not _COMMA.match(first):
        return _read_table(path)
    photos: dict[str, _Photo] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip() or (number == 1 and header):
            continue
        match = form.fullmatch(line)
        if not match:
            what = f"line {number} is not a photo's name and a caption: '{clean_text(line)[:40]}'"
            raise DataError(what, path, "fix this line")
        photos.setdefault(_stem(match["photo"]), _Photo()).add("en", unquoted(match["text"]))
    return photos


def _read_table(path: Path) -> dict[str, _Photo]:
    """Read a table with a line of columns; surplus fields belong to a caption in the last column."""
    table = open_table(path)
    columns = choose(table, ("labels=",))
    captions, image, split = columns.texts.get("en", []), columns.image, columns.split
    if image is None or not captions:
        raise DataError("no column of photos or of English captions", path, "use the file as published")
    photos: dict[str, _Photo] = {}
    for line, values in table.rows(columns.used, captions == [len(table.columns) - 1]):
        row = dict(zip(columns.used, values, strict=True))
        name = str(row[image] or "")
        if not _stem(name):
            raise DataError(f"line {line} names no photo", path, "fix this line")
        photo = photos.setdefault(_stem(name), _Photo())
        for at in captions:
            for text in strings(row[at], as_list=True):
                photo.add("en", text)
        if split is not None:
            photo.splits = _roles(str(row[split] or ""), line, path)
    return photos


def _roles(split: str, line: int, path: Path) -> frozenset[str]:
    """Roles of a split, none for an empty one."""
    if split and split not in karpathy.ROLES_OF:
        raise DataError(f"line {line} gives the split '{split[:40]}'", path, f"use {', '.join(karpathy.ROLES_OF)}")
    return karpathy.ROLES_OF.get(split, frozenset())


def _add_german(folder: Path, photos: dict[str, _Photo], extra: Counter[str]) -> None:
    """Add German captions to the photos of that name; count those of unknown photos."""
    for split in ("train", "val", "test"):
        names = folder / f"{split}_images.txt"
        files = [folder / f"{split}.de"]
        files += [folder / name for n in range(1, 6) for name in (f"{split}.{n}.de", f"{split}.de.{n}")]
        for path in filter(Path.is_file, files):
            stems = [_stem(line.split("#")[0]) for line in read_lines(need_file(folder, names.name))]
            lines = read_lines(path)
            if len(lines) != len(stems):
                what = f"{len(lines)} captions for the {len(stems)} photos of {names.name}"
                raise DataError(what, path, "give one line per photo")
            for stem, line in zip(stems, lines, strict=True):
                if stem in photos:
                    photos[stem].add("de", line)
                else:
                    extra["German captions of other photos"] += 1
