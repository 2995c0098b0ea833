"""MIRFlickr-25K: photos of Flickr with the tags of their owners and 24 classes (Huiskes & Lew 2008).

    mirflickr/imN.jpg
    mirflickr/meta/tags/tagsN.txt              one tag per line
    mirflickr/doc/common_tags.txt              optional; the tags that 20 photos or more have, one per line
    mirflickr25k_annotations_v080/CLASS.txt    numbers of the photos of a class, one per line

The text of a photo is its tags, joined by spaces. The classes are the files without "_r1" in their names (those list
the photos in which a class is prominent), sorted. Protocol: roles drawn from the seed, with the shares of IAPR TC-12.
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

from cmrhash.data.cleaning import clean_text
from cmrhash.data.items import ImageTextDataset, Item
from cmrhash.data.parsing import FOREIGN, IMAGE_SUFFIXES, files_by_stem, need_folder, read_lines, report
from cmrhash.errors import DataError

IMAGES, TAGS, ANNOTATIONS = "mirflickr", "mirflickr/meta/tags", "mirflickr25k_annotations_v080"
COMMON_TAGS = "mirflickr/doc/common_tags.txt"
COMMON = 20  # photos of a common tag
PROMINENT = "_r1"
_NUMBER = re.compile(r"[0-9]{1,9}")


def read(root: Path) -> ImageTextDataset:
    """Read the data set: an item per photo or tag file, with the photo's number as id.

    Raises DataError if photos, tags or annotations are missing, or if an annotation is not a number.
    """
    extra: Counter[str] = Counter()
    images = _numbered(root, IMAGES, "im", IMAGE_SUFFIXES, extra)
    tag_files = _numbered(root, TAGS, "tags", (".txt",), extra)
    classes, labels = _annotations(root, extra)
    tags = {number: _tags(root / path) for number, path in tag_files.items()}
    if common := _common_tags(root):
        extra["different tags outside common_tags.txt"] = len({tag for each in tags.values() for tag in each} - common)
    numbers = sorted(images.keys() | tags.keys())
    items = tuple(
        Item(
            id=str(number),
            image=images.get(number),
            texts={"en": (" ".join(tags[number]),)} if tags.get(number) else {},
            labels=tuple(labels.get(number, ())),
        )
        for number in numbers
    )
    extra["annotated numbers without photo and tags"] = len(labels.keys() - set(numbers))
    return ImageTextDataset("mirflickr", root, items, classes, found=report(items, classes, ["en"], extra))


def _numbered(root: Path, folder: str, prefix: str, suffixes: tuple[str, ...], extra: Counter[str]) -> dict[int, str]:
    """Files PREFIX + number of a folder: number -> path below the root."""
    files: dict[int, str] = {}
    for stem, path in files_by_stem(root, need_folder(root, folder), suffixes, extra).items():
        number = stem.removeprefix(prefix)
        if number == stem or not _NUMBER.fullmatch(number):
            extra[FOREIGN] += 1
        elif int(number) in files:
            raise DataError(f"two files for number {int(number)}", f"{files[int(number)]} and {path}", "remove one")
        else:
            files[int(number)] = path
    if not files:
        raise DataError(f"no file '{prefix}1{suffixes[0]}' or with another number", root / folder, "unpack it there")
    return files


def with_common_tag(dataset: ImageTextDataset) -> list[bool]:
    """Whether each item has a common tag: one of the list of the archive or, without it, one of 20 photos or more."""
    tags = [set(item.texts["en"][0].split()) if item.texts else set[str]() for item in dataset.items]
    common = _common_tags(dataset.root)
    if not common:
        counts = Counter(tag for own in tags for tag in own)
        common = {tag for tag, count in counts.items() if count >= COMMON}
    return [not own.isdisjoint(common) for own in tags]


def _common_tags(root: Path) -> set[str]:
    """Tags of the list of the archive; none without the list."""
    path = root / COMMON_TAGS
    return {line.split()[0] for line in _tags(path)} if path.is_file() else set()


def _tags(path: Path) -> list[str]:
    return [tag for line in read_lines(path) if (tag := clean_text(line))]


def _annotations(root: Path, extra: Counter[str]) -> tuple[tuple[str, ...], dict[int, list[int]]]:
    """The classes, and the labels of every annotated number in ascending order."""
    folder = need_folder(root, ANNOTATIONS)
    files = files_by_stem(root, folder, (".txt",), extra)
    classes = tuple(sorted(stem for stem in files if not stem.endswith(PROMINENT) and stem.casefold() != "readme"))
    if not classes:
        raise DataError("no file 'animals.txt' or of another class", folder, "unpack the annotations there")
    labels: dict[int, list[int]] = {}
    for label, name in enumerate(classes):
        for number in sorted(_photo_numbers(root / files[name])):
            labels.setdefault(number, []).append(label)
    return classes, labels


def _photo_numbers(path: Path) -> set[int]:
    numbers: set[int] = set()
    for at, line in enumerate(read_lines(path), 1):
        text = clean_text(line)
        if text and not _NUMBER.fullmatch(text):
            raise DataError(f"line {at} is {text[:40]!r}, not the number of a photo", path, "fix this line")
        if text:
            numbers.add(int(text))
    return numbers
