"""MS COCO 2014 and 2017: photos with five English captions and objects of 80 categories (Lin et al. 2014).

    annotations/captions_trainYEAR.json     annotations/captions_valYEAR.json
    annotations/instances_trainYEAR.json    annotations/instances_valYEAR.json
    trainYEAR/*.jpg                         valYEAR/*.jpg
    dataset_coco.json                       optional, also in annotations/: Karpathy's captions and split

Items are the images of train and val together, ordered by id. Captions stay in the order of the file; labels are the
categories of an image's objects, ordered by their numbers (1 to 90 with gaps). One captions file is enough; without any
instances file relevance is by pairs. Protocol: roles drawn from the seed, with the shares of IAPR TC-12.

With Karpathy's file, items are its photos, relevance is by pairs, and the 5,000 test items are searched among each
other. Photos are found by their number in the folders above or in images/; instances files of any year, if there are,
give labels, so that ``relevance="labels"`` can be chosen in training.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from cmrhash.data.cleaning import clean_label, clean_text
from cmrhash.data.items import ImageTextDataset, Item, resolve_image
from cmrhash.data.json_stream import members
from cmrhash.data.parsing import IMAGE_SUFFIXES, files_by_stem, need_file, need_folder, report, unique_keys
from cmrhash.data.readers import karpathy
from cmrhash.errors import DataError

ANNOTATIONS, CAPTIONS, INSTANCES = "annotations", "captions", "instances"
KARPATHY, IMAGES = "dataset_coco.json", "images"
SPLITS, YEARS = ("train", "val"), ("2014", "2017")
# The parser drops every other field as soon as an object ends: outlines of objects are most of an instances file.
_USED = frozenset(
    ["images", "annotations", "categories", "id", "file_name", "image_id", "caption", "category_id", "name"]
)


@dataclass
class _Content:
    """What is kept of the annotation files, by image id, and the names of the categories by number.

    photos: folder and stem of the photo, as "train2017/000000000009"; with Karpathy's file, the id as text.
    """

    photos: dict[int, str] = field(default_factory=dict)
    captions: dict[int, list[str]] = field(default_factory=dict)
    objects: dict[int, set[int]] = field(default_factory=dict)
    categories: dict[int, str] = field(default_factory=dict)
    splits: dict[int, frozenset[str]] = field(default_factory=dict)


def read(root: Path) -> ImageTextDataset:
    """Read the data set: an item per image of the annotation files, or of Karpathy's file.

    Raises DataError without captions, with files of both years, and for a file that is not COCO's or Karpathy's JSON.
    """
    for path in (root / KARPATHY, root / ANNOTATIONS / KARPATHY):
        if path.is_file():
            return _read_karpathy(root, path)
    year, extra, content = _year(root), Counter[str](), _Content()
    files: dict[str, str] = {}
    for split in SPLITS:
        folder = split + year
        for kind in (CAPTIONS, INSTANCES):
            path = root / ANNOTATIONS / f"{kind}_{folder}.json"
            if path.is_file():
                _add_file(root, path, kind, folder, content)
            else:
                extra[f"missing file {path.name}"] += 1
        if (root / folder).is_dir():
            stems = files_by_stem(root, root / folder, IMAGE_SUFFIXES, extra)
            files |= {f"{folder}/{stem}": path for stem, path in stems.items()}
    if not any(content.captions.values()):
        what = f"no captions in {CAPTIONS}_*{year}.json"
        raise DataError(what, root / ANNOTATIONS, "use the files of the published archive")
    return _dataset(root, content, files, extra, by_pairs=False)


def _read_karpathy(root: Path, path: Path) -> ImageTextDataset:
    extra, content, entries = Counter[str](), _Content(), karpathy.read(path)
    for photo in entries:
        number = _number_of(photo.name)
        if number is None:
            raise DataError(f"photo '{photo.name[:60]}' has no number", path, "use the published file")
        content.photos[number] = str(number)
        content.captions[number], content.splits[number] = list(photo.captions), photo.splits
    karpathy.refuse_repeated(path, len(entries), len(content.photos))
    files: dict[str, str] = {}
    for folder in (*(split + year for year in YEARS for split in SPLITS), IMAGES):
        instances = root / ANNOTATIONS / f"{INSTANCES}_{folder}.json"
        if instances.is_file():
            _add_file(root, instances, INSTANCES, "", content)
        if (root / folder).is_dir():
            stems = files_by_stem(root, root / folder, IMAGE_SUFFIXES, extra)
            files |= {str(_number_of(stem)): file for stem, file in stems.items()}
    return _dataset(root, content, files, extra, by_pairs=True)


def _number_of(name: str) -> int | None:
    """Id of a photo: the digits at the end of its name."""
    match = re.search(r"([0-9]{1,18})(?:\.\w+)?$", name)
    return int(match[1]) if match else None


def _dataset(
    root: Path, content: _Content, files: dict[str, str], extra: Counter[str], by_pairs: bool
) -> ImageTextDataset:
    """The data set with all counts. files: photo as in the content -> path below the root."""
    extra["captions of unknown images"] = _count_unknown(content.captions, content.photos)
    extra["objects of unknown images"] = _count_unknown(content.objects, content.photos)
    extra["photos without an entry"] = len(files.keys() - set(content.photos.values()))
    classes = tuple(dict.fromkeys(name for _, name in sorted(content.categories.items()) if name))
    items = tuple(_items(content, classes, files, extra))
    found = report(items, classes, ["en"], extra)
    return ImageTextDataset("coco", root, items, classes, "labels" if classes and not by_pairs else "pairs", found)


def _year(root: Path) -> str:
    """The year of the annotation files. Raises DataError without captions, and for two years."""
    names = {
        year: [f"{kind}_{split}{year}.json" for kind in (CAPTIONS, INSTANCES) for split in SPLITS] for year in YEARS
    }
    there = [year for year in YEARS if any((root / ANNOTATIONS / name).is_file() for name in names[year])]
    if len(there) > 1:
        raise DataError(
            f"annotation files of {' and '.join(there)}", root / ANNOTATIONS, "keep the files of one year in the folder"
        )
    need_file(root / ANNOTATIONS, *(name for year in there or YEARS for name in names[year][: len(SPLITS)]))
    need_folder(root, ANNOTATIONS)
    return there[0]


def _add_file(root: Path, path: Path, kind: str, folder: str, content: _Content) -> None:
    """Add the content of one annotation file. Raises DataError that names the file and the reason.

    folder: that of its photos; empty: the photos are known already.
    """
    wanted = {"annotations": _add_caption if kind == CAPTIONS else _add_object}
    wanted |= {"images": partial(_add_photo, root, folder)} if folder else {}
    wanted |= {} if kind == CAPTIONS else {"categories": _add_category}
    lists = set[str]()
    try:
        for name, entry in members(path, _used):
            if entry == [] and name not in lists:
                lists.add(name)
            elif name in wanted:
                if name not in lists or not isinstance(entry, dict):
                    raise ValueError(f"no list of objects '{name}'")
                wanted[name](content, entry)
        if lacking := sorted(wanted.keys() - lists):
            raise ValueError(f"no list of objects '{lacking[0]}'")
    except (OSError, ValueError, RecursionError) as error:
        reason = clean_text(str(error))[:120]
        raise DataError(f"not COCO's JSON ({reason})", path, "use the file of the published archive") from None


def _used(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The fields of a JSON object that the reader uses. Raises ValueError for a repeated key."""
    return {key: value for key, value in unique_keys(pairs).items() if key in _USED}


def _add_caption(content: _Content, entry: dict[str, Any]) -> None:
    kept = content.captions.setdefault(_number(entry, "image_id"), [])
    kept.append(clean_text(_text(entry, "caption")))


def _add_object(content: _Content, entry: dict[str, Any]) -> None:
    content.objects.setdefault(_number(entry, "image_id"), set()).add(_number(entry, "category_id"))


def _add_category(content: _Content, entry: dict[str, Any]) -> None:
    number, name = _number(entry, "id"), clean_label(_text(entry, "name"))
    if content.categories.setdefault(number, name) != name:
        raise ValueError(f"category {number} is '{name}' here and '{content.categories[number]}' before")


def _number(entry: dict[str, Any], key: str) -> int:
    value = entry.get(key)
    if type(value) is not int:  # True is an int, too
        raise ValueError(f"'{key}' must be a whole number, found {json.dumps(value)[:40]}")
    return value


def _text(entry: dict[str, Any], key: str) -> str:
    value = entry.get(key)
    if not isinstance(value, str):
        raise ValueError(f"'{key}' must be a string, found {json.dumps(value)[:40]}")
    return value


def _add_photo(root: Path, folder: str, content: _Content, entry: dict[str, Any]) -> None:
    """Add an image. Raises DataError for a path out of the root, ValueError for an id with two photos."""
    number, name = _number(entry, "id"), _text(entry, "file_name")
    if "/" in name or "\\" in name:
        resolve_image(root / folder, name)
    photo = f"{folder}/{os.path.splitext(name)[0]}"
    if content.photos.setdefault(number, photo) != photo:
        raise ValueError(f"image {number} has two photos, '{content.photos[number]}' and '{photo}'")


def _count_unknown(found: dict[int, list[str]] | dict[int, set[int]], known: Collection[int]) -> int:
    return sum(len(entries) for number, entries in found.items() if number not in known)


def _items(content: _Content, classes: tuple[str, ...], files: dict[str, str], extra: Counter[str]) -> Iterator[Item]:
    """Items by ascending id; equal label sets share one tuple to save memory."""
    place = {name: n for n, name in enumerate(classes)}
    label = {number: place[name] for number, name in content.categories.items() if name}
    same: dict[tuple[int, ...], tuple[int, ...]] = {}
    for number, photo in sorted(content.photos.items()):
        numbers = content.objects.get(number, set())
        extra["labels of unknown categories"] += len(numbers - content.categories.keys())
        labels = tuple(sorted({label[n] for n in numbers if n in label}))
        texts = tuple(filter(None, content.captions.get(number, ())))
        roles = content.splits.get(number, frozenset())
        text = {"en": texts} if texts else {}
        yield Item(str(number), files.get(photo), text, same.setdefault(labels, labels), roles)
