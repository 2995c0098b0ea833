"""Pascal Sentence: photos of 20 classes with five English sentences each (Rashtchian et al. 2010).

    dataset/CLASS/ID.jpg        sentence/CLASS/ID.txt, one sentence per line
    dataset/CLASS_ID.jpg        sentence/CLASS_ID.txt, the same without folders of classes

The folders may also be named images, and sentences or texts. The class of a photo is its folder, or the prefix of its
id (which begins with a digit: aeroplane_2008_000716). Both layouts give the same items.

Protocol: a fifth of every class, drawn from the seed, is test; test items are both queries and database. The others are
train, 5 % of these val.
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

from cmrhash.data.cleaning import clean_text
from cmrhash.data.items import ImageTextDataset, Item
from cmrhash.data.parsing import FOREIGN, IMAGE_SUFFIXES, files_by_stem, need_folder, read_lines, report, subfolders
from cmrhash.errors import DataError

IMAGES, SENTENCES = ("dataset", "images"), ("sentence", "sentences", "texts")  # possible names of the two folders
_FLAT = re.compile(r"(.+?)_(\d.*)|(.+)_([^_]+)")  # CLASS_ID; an id contains "_" only if it begins with a digit
# Published work joins a photo's sentences to one text; so does this reader, in the order of the file.
BETWEEN_SENTENCES = " "


def read(root: Path) -> ImageTextDataset:
    """Read the data set: an item per photo or sentence file, with id CLASS/ID.

    Raises DataError if one of the two folders is missing.
    """
    extra: Counter[str] = Counter()
    images = _scan(root, IMAGES, IMAGE_SUFFIXES, extra)
    texts = _scan(root, SENTENCES, (".txt",), extra)
    keys = sorted(images.keys() | texts.keys())
    folders = sorted({folder for folder, _ in keys})
    items = tuple(
        Item(
            id=f"{folder}/{stem}",
            image=images.get((folder, stem)),
            texts=_read_text(root, texts.get((folder, stem)), extra),
            labels=(folders.index(folder),),
        )
        for folder, stem in keys
    )
    classes = tuple(folders)
    found = report(items, classes, ["en"], extra)
    return ImageTextDataset("pascal", root, items, classes, found=found, protocol="per-class")


def _scan(
    root: Path, names: tuple[str, ...], suffixes: tuple[str, ...], extra: Counter[str]
) -> dict[tuple[str, str], str]:
    """Map (class, id) to the path below the root, for both layouts."""
    top = need_folder(root, *names)
    files: dict[tuple[str, str], str] = {}
    for stem, path in files_by_stem(root, top, suffixes, extra).items():
        if parts := _FLAT.fullmatch(stem):
            files[parts[1] or parts[3], parts[2] or parts[4]] = path
        else:
            extra[FOREIGN] += 1
    for folder in subfolders(top):
        for stem, path in files_by_stem(root, folder, suffixes, extra).items():
            if (folder.name, stem) in files:
                raise DataError(f"two files for '{folder.name}/{stem}'", root, f"remove {path} or the other")
            files[folder.name, stem] = path
    return files


def _read_text(root: Path, path: str | None, extra: Counter[str]) -> dict[str, tuple[str, ...]]:
    if path is None:
        return {}
    sentences = [text for line in read_lines(root / path) if (text := clean_text(line))]
    extra[f"items with {len(sentences)} sentences"] += 1
    return {"en": (BETWEEN_SENTENCES.join(sentences),)} if sentences else {}
