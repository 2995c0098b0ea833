"""Wikipedia featured articles: sections of text with a photo, in 10 categories (Rasiwasia et al. 2010).

    texts/NAME.xml                  the section between <text> and </text>
    images/CATEGORY/NAME.jpg        the folder may be missing
    trainset_txt_img_cat.list       "text<TAB>image<TAB>category" per line, names without suffix, categories from 1
    testset_txt_img_cat.list        the same
    categories.list                 the names of the categories

Protocol: the split of the lists; test items are both queries and database, the others are train (5 % of these val). Ids
are the names of the texts.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cmrhash.data.cleaning import clean_text
from cmrhash.data.items import ImageTextDataset, Item
from cmrhash.data.parsing import (
    IMAGE_SUFFIXES,
    files_by_stem,
    need_file,
    need_folder,
    read_lines,
    report,
    subfolders,
    text_between,
)
from cmrhash.errors import DataError

IMAGES, TEXTS, CATEGORIES = "images", "texts", "categories.list"
LISTS = {
    "trainset_txt_img_cat.list": frozenset({"train"}),
    "testset_txt_img_cat.list": frozenset({"query", "database"}),
}

_OPEN = re.compile(r"<\s*text\s*>", re.IGNORECASE)
_END = re.compile(r"<\s*/\s*(?:text|document)\s*>|<\s*imageset\s*>", re.IGNORECASE)
_NUMBER = re.compile(r"[0-9]{1,4}")


@dataclass(frozen=True)
class _Entry:
    """One line of a list; ``category`` counts from 0."""

    text: str
    image: str
    category: int
    splits: frozenset[str]


def read(root: Path) -> ImageTextDataset:
    """Read the data set: an item per line of the two lists.

    An item may lack its files. Raises DataError if the texts or a list is missing, or if a line is invalid.
    """
    extra: Counter[str] = Counter()
    texts = files_by_stem(root, need_folder(root, TEXTS), (".xml",), extra)
    images = _scan_images(root, extra)
    classes = _read_classes(need_file(root, CATEGORIES))
    entries = [entry for name, splits in LISTS.items() for entry in _entries(need_file(root, name), splits, classes)]
    repaired = _repaired(entries, set(texts))
    items = tuple(
        Item(
            id=(name := repaired.get(entry.text, entry.text)),
            image=images.get((classes[entry.category], entry.image)),
            texts=_read_text(root, texts.get(name), extra),
            labels=(entry.category,),
            splits=entry.splits,
        )
        for entry in entries
    )
    extra["misspelt names of text files corrected"] = len(repaired)
    extra["texts in no list"] = len(texts.keys() - {item.id for item in items})
    return ImageTextDataset("wikipedia", root, items, classes, found=report(items, classes, ["en"], extra))


def parse(raw: bytes) -> str:
    """Cleaned text of an article's section; "" if there is none. Accepts any bytes."""
    return text_between(raw, _OPEN, _END)


def _scan_images(root: Path, extra: Counter[str]) -> dict[tuple[str, str], str]:
    """Map (category, name) to the path below the root; empty without a folder of photos."""
    if not (root / IMAGES).is_dir():
        return {}
    return {
        (folder.name, stem): path
        for folder in subfolders(need_folder(root, IMAGES))
        for stem, path in files_by_stem(root, folder, IMAGE_SUFFIXES, extra).items()
    }


def _read_classes(path: Path) -> tuple[str, ...]:
    names = [name for line in read_lines(path) if (name := clean_text(line))]
    if len(set(names)) < len(names) or not names:
        raise DataError("categories are missing or repeated", path, "give one name per line")
    return tuple(names)


def _entries(path: Path, splits: frozenset[str], classes: tuple[str, ...]) -> Iterator[_Entry]:
    """Yield the lines of a list. Raises DataError for an invalid line."""
    for number, line in enumerate(read_lines(path), 1):
        fields = [clean_text(field) for field in line.split("\t")]
        if fields == [""]:
            continue
        good = len(fields) == 3 and all(fields) and _NUMBER.fullmatch(fields[2])
        if not good or not 1 <= int(fields[2]) <= len(classes):
            what = f"line {number} is not 'text<TAB>image<TAB>category' with a category 1 to {len(classes)}"
            raise DataError(what, path, "fix this line")
        yield _Entry(fields[0], fields[1], int(fields[2]) - 1, splits)


def _repaired(entries: list[_Entry], texts: set[str]) -> dict[str, str]:
    """Map names without a file to the unlisted file that differs by one leading letter.

    One line of the published list has an extra "A" at its start, and copies may have lost a letter.
    """
    listed = {entry.text for entry in entries}
    free = texts - listed
    repaired: dict[str, str] = {}
    for name in sorted(listed - texts):
        alike = [text for text in free if name[1:] == text or name == text[1:]]
        if len(alike) == 1:
            repaired[name] = alike[0]
    return repaired


def _read_text(root: Path, path: str | None, extra: Counter[str]) -> dict[str, tuple[str, ...]]:
    if path is None:
        return {}
    text = parse((root / path).read_bytes())
    extra["empty texts"] += not text
    return {"en": (text,)} if text else {}
