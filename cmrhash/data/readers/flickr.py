"""Flickr30k and Flickr8k: photos with five English captions, and German ones of Multi30k.

    flickr30k_images/ | flickr30k-images/ | Flicker8k_Dataset/ | images/       the photos; may be missing

Captions come from the first of these files that exists:

    dataset_flickr30k.json | dataset_flickr8k.json              Karpathy's captions and split
    results_20130124.token | Flickr8k.token.txt                 "name.jpg#0<TAB>caption"
    results.csv | captions.txt                                  "name.jpg| 0| caption" or "name.jpg,caption"

    multi30k/SPLIT_images.txt     name of a photo per line; SPLIT is train, val or test
    multi30k/SPLIT.de             their German captions; several per photo: SPLIT.1.de ... or SPLIT.de.1 ...

Relevance is by pairs. Protocol: Karpathy's split if available (train with restval, val, test), otherwise drawn from the
seed; the queries are also the database. Ids are the names of the photos without ".jpg".
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cmrhash.data.items import ImageTextDataset, Item, clean_text
from cmrhash.data.parsing import (
    IMAGE_SUFFIXES,
    decode,
    files_by_stem,
    need_file,
    need_folder,
    read_lines,
    report,
    unquoted,
)
from cmrhash.errors import DataError

IMAGES = ("flickr30k_images", "flickr30k-images", "Flicker8k_Dataset", "images")
KARPATHY = {"flickr30k": "dataset_flickr30k.json", "flickr8k": "dataset_flickr8k.json"}
TOKENS = {"flickr30k": "results_20130124.token", "flickr8k": "Flickr8k.token.txt"}
TABLES = {"flickr30k": "results.csv", "flickr8k": "captions.txt"}
GERMAN = "multi30k"
ROLES_OF = {
    "train": frozenset({"train"}),
    "restval": frozenset({"train"}),
    "val": frozenset({"val"}),
    "test": frozenset({"query", "database"}),
}

_TOKEN = re.compile(r"(?P<photo>[^\t#]+)#\d+\s(?P<text>.*)")
# One line of the published file lacks the second bar.
_BARS = re.compile(r"(?P<photo>[^|]+)\|\s*\d+\s*(?:\||\s)(?P<text>.*)")
_COMMA = re.compile(r"(?P<photo>[^,]+?\.jpe?g),(?P<text>.*)", re.IGNORECASE)
_HEADER = re.compile(r"image(_name)?\s*[|,].*comment|image,caption", re.IGNORECASE)


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
    path = need_file(root, KARPATHY[name], TOKENS[name], TABLES[name])
    photos = _read_karpathy(path) if path.name == KARPATHY[name] else _read_captions(path)
    if (root / GERMAN).is_dir():
        _add_german(need_folder(root, GERMAN), photos, extra)
    images: dict[str, str] = {}
    if any((root / folder).is_dir() for folder in IMAGES):
        images = files_by_stem(root, need_folder(root, *IMAGES), IMAGE_SUFFIXES, extra)
    items = tuple(
        Item(stem, images.get(stem), {lang: tuple(texts) for lang, texts in photo.texts.items()}, (), photo.splits)
        for stem, photo in photos.items()
    )
    extra["photos without captions"] = len(images.keys() - photos.keys())
    languages = sorted({"en", *(lang for item in items for lang in item.texts)}, key="en de".index)
    return ImageTextDataset(name, root, items, (), "pairs", found=report(items, (), languages, extra))


def _stem(photo: str) -> str:
    """Name of a photo without folder and ".jpg"."""
    stem, suffix = os.path.splitext(clean_text(photo).rsplit("/", 1)[-1])
    return stem if suffix.lower() in IMAGE_SUFFIXES else stem + suffix


def _read_karpathy(path: Path) -> dict[str, _Photo]:
    try:
        entries = json.loads(decode(path.read_bytes()))["images"]
        photos = dict(_karpathy_photo(entry) for entry in entries)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        what = f"not the JSON of Karpathy's splits ({type(error).__name__}: {clean_text(str(error))[:80]})"
        raise DataError(what, path, "give an object of images with filename, split and sentences with raw") from None
    if len(photos) < len(entries):
        raise DataError(f"{len(entries) - len(photos)} photos are repeated", path, "keep one entry per photo")
    return photos


def _karpathy_photo(entry: Any) -> tuple[str, _Photo]:
    photo = _Photo(splits=ROLES_OF[entry["split"]])
    for sentence in entry["sentences"]:
        photo.add("en", sentence["raw"])
    return _stem(entry["filename"]), photo


def _read_captions(path: Path) -> dict[str, _Photo]:
    """Read a file with one caption per line, in one of the three formats of the module's docstring."""
    lines = read_lines(path)
    form = _TOKEN if path.name in TOKENS.values() else _BARS if "|" in "".join(lines[:1]) else _COMMA
    photos: dict[str, _Photo] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip() or (number == 1 and form is not _TOKEN and _HEADER.match(line)):
            continue
        match = form.fullmatch(line)
        if not match:
            what = f"line {number} is not a photo's name and a caption: '{clean_text(line)[:40]}'"
            raise DataError(what, path, "fix this line")
        photos.setdefault(_stem(match["photo"]), _Photo()).add("en", unquoted(match["text"]))
    return photos


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
