"""IAPR TC-12: 20,000 photos with English and German descriptions, and SAIAPR region labels.

The archives are read as unpacked; each named folder may be at the root or up to three levels below:

    images/NN/ID.jpg
    annotations_complete_eng/NN/ID.eng      annotations_complete_ger/NN/ID.ger
    saiapr_tc-12/NN/labels.txt              "image region label" per line; wlist.txt ("label name") is optional

Copies of the data set differ, so no counts are assumed; ``found`` reports what exists and what is missing.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from cmrhash.data.cleaning import clean_text
from cmrhash.data.items import ImageTextDataset, Item, resolve_image
from cmrhash.data.parsing import FOREIGN, IMAGE_SUFFIXES, below, decode, report, subfolders, text_between
from cmrhash.errors import DataError

IMAGES, LABELS = "images", "saiapr_tc-12"
ANNOTATIONS = {"en": ("annotations_complete_eng", ".eng"), "de": ("annotations_complete_ger", ".ger")}
LABEL_IDS = range(1, 277)
SEARCH_DEPTH = 3

_NUMBER = re.compile(r"[0-9]{1,9}")
_OPEN = re.compile(r"<\s*DESCRIPTION\s*>", re.IGNORECASE)
# Only tags of this format end a description; a raw "<" or an unknown tag does not.
_END = re.compile(
    r"<\s*(?:/\s*)?(?:DOC|DOCNO|TITLE|DESCRIPTION|NOTES|LOCATION|DATE|IMAGE|THUMBNAIL)\s*>", re.IGNORECASE
)


@dataclass(frozen=True)
class _Table:
    """Files of one kind: image id -> (folder, path); and the number of other files."""

    files: dict[int, tuple[str, str]]
    passed_over: int


def read(root: Path) -> ImageTextDataset:
    """Read the data set below ``root``: an item per id with an image or an annotation.

    Raises DataError if images, annotations or labels are missing, or if a label line is invalid.
    """
    folders = _find_folders(root)
    images = _scan(_need(root, folders, IMAGES), IMAGE_SUFFIXES)
    tables = {
        lang: _scan(folders[name], (suffix,)) if name in folders else _Table({}, 0)
        for lang, (name, suffix) in ANNOTATIONS.items()
    }
    if not any(table.files for table in tables.values()):
        looked = " or ".join(f"'{name}/NN/ID{suffix}'" for name, suffix in ANNOTATIONS.values())
        raise DataError(f"no annotations found (looked for {looked})", root, "unpack them below this folder")
    labels, names = _read_labels(_need(root, folders, LABELS))
    found: dict[str, int] = {}
    texts = {lang: _read_texts(table, lang, found) for lang, table in tables.items()}
    places = _places([images, *tables.values()])
    used = sorted({label for number in places for label in labels.get(number, ())})
    index = {label: row for row, label in enumerate(used)}
    items = tuple(
        Item(
            id=str(number),
            image=below(root, images.files[number][1]) if number in images.files else None,
            texts={lang: (table[number],) for lang, table in texts.items() if number in table},
            labels=tuple(sorted(index[label] for label in labels.get(number, ()))),
        )
        for number in sorted(places, key=lambda n: (places[n], n))
    )
    found[FOREIGN] = sum(t.passed_over for t in [images, *tables.values()])
    found["labelled images without image and text"] = len(labels.keys() - places.keys())
    found["labelled items without an image"] = sum(bool(i.labels) and i.image is None for i in items)
    classes = _class_names(used, names)
    return ImageTextDataset("iaprtc12", root, items, classes, found=report(items, classes, ANNOTATIONS, found))


def parse(raw: bytes) -> str:
    """Cleaned description of an annotation file; "" if it has none.

    The files look like XML but are invalid (raw "&" and "<", several encodings), so no XML parser is used.
    """
    return text_between(raw, _OPEN, _END)


def _find_folders(root: Path) -> dict[str, Path]:
    """The data set's named folders: nearest to the root, then first by name.

    The search does not enter named folders, because the label archive contains its own ``images`` folders.
    """
    if not root.is_dir():
        raise DataError("no such folder", root, "give the folder of the unpacked IAPR TC-12")
    wanted = {IMAGES, LABELS, *(name for name, _ in ANNOTATIONS.values())}
    folders: dict[str, Path] = {}
    level = [root]
    for _ in range(SEARCH_DEPTH + 1):
        deeper: list[Path] = []
        for folder in level:
            for path in subfolders(folder):
                if path.name not in wanted:
                    deeper.append(path)
                elif path.name not in folders and (path.name != IMAGES or _has_numbered(path)):
                    folders[path.name] = path
        # Folders with numeric names hold thousands of files, but no named folders.
        level = [path for path in deeper if not path.name.isdecimal()]
    return folders


def _has_numbered(folder: Path) -> bool:
    return any(path.name.isdecimal() for path in subfolders(folder))


def _need(root: Path, folders: dict[str, Path], name: str) -> Path:
    """The folder of that name; raises DataError if it is missing or a link that leaves the root."""
    if name not in folders:
        what = f"no folder '{name}' with folders 00, 01, ... in it" if name == IMAGES else f"no folder '{name}'"
        fix = f"unpack it there or up to {SEARCH_DEPTH} levels below"
        raise DataError(what, root, fix)
    resolve_image(root, below(root, str(folders[name])))  # refuse links that leave the root
    return folders[name]


def _scan(top: Path, suffixes: tuple[str, ...]) -> _Table:
    """List ``top/NN/ID.suffix``.

    An id identifies a photo regardless of its folder, because labels refer to ids only.
    """
    files: dict[int, tuple[str, str]] = {}
    passed_over = 0
    for folder in subfolders(top):
        with os.scandir(folder) as entries:
            names = sorted(entry.name for entry in entries)
        for name in names:
            stem, suffix = os.path.splitext(name)
            if suffix.lower() not in suffixes or not _NUMBER.fullmatch(stem):
                passed_over += 1
            elif int(stem) in files:
                both = f"{files[int(stem)][1]} and {os.path.join(folder, name)}"
                raise DataError(f"two files for image {int(stem)}", both, "remove one of them")
            else:
                files[int(stem)] = (folder.name, os.path.join(folder, name))
    return _Table(files, passed_over)


def _places(tables: Iterable[_Table]) -> dict[int, str]:
    """Folder NN of every id; the folder of the image takes precedence."""
    places: dict[int, str] = {}
    for table in tables:
        for number, (folder, _) in table.files.items():
            places.setdefault(number, folder)
    return places


def _read_texts(table: _Table, lang: str, found: dict[str, int]) -> dict[int, str]:
    """Descriptions by id; empty ones are left out and counted.

    Entries that are not regular files count as empty, because reading a pipe would block forever.
    """
    texts: dict[int, str] = {}
    for number, (_, path) in table.files.items():
        text = parse(Path(path).read_bytes()) if os.path.isfile(path) else ""
        if text:
            texts[number] = text
    found[f"empty {lang} descriptions"] = len(table.files) - len(texts)
    return texts


def _read_labels(top: Path) -> tuple[dict[int, set[int]], dict[int, str]]:
    """Label ids by image id, and names by label id (empty without wlist.txt)."""
    files = sorted(_label_files(top, SEARCH_DEPTH))
    if not files:
        raise DataError("no labels.txt", top, "unpack the SAIAPR TC-12 labels (NN/labels.txt) there")
    names = next((n for n in map(_read_names, (top / "wlist.txt", top.parent / "wlist.txt")) if n), {})
    labels: dict[int, set[int]] = {}
    bad: list[str] = []
    for path in files:
        for line, text in enumerate(decode(path.read_bytes()).splitlines(), 1):
            fields = text.split()
            if fields and (pair := _image_and_label(fields, names)):
                labels.setdefault(pair[0], set()).add(pair[1])
            elif fields:
                bad.append(f"{below(top.parent, str(path))}:{line} '{clean_text(text)[:40]}'")
    if bad:
        known = "one of wlist.txt" if names else f"{LABEL_IDS[0]} to {LABEL_IDS[-1]}"
        more = ", ..." if len(bad) > 5 else ""
        what = f"{len(bad)} label lines are not 'image region label' with a label id {known}"
        raise DataError(what, f"{', '.join(bad[:5])}{more}", "fix these lines")
    return labels, names


def _label_files(folder: Path, depth: int) -> Iterator[Path]:
    """Every labels.txt below a folder.

    Folders beside a labels.txt contain images and masks and are skipped.
    """
    if (folder / "labels.txt").is_file():
        yield folder / "labels.txt"
    elif depth:
        for path in subfolders(folder):
            yield from _label_files(path, depth - 1)


def _read_names(path: Path) -> dict[int, str]:
    if not path.is_file():
        return {}
    lines = (line.split(maxsplit=1) for line in decode(path.read_bytes()).splitlines())
    return {int(f[0]): clean_text(f[1]) for f in lines if len(f) == 2 and _NUMBER.fullmatch(f[0])}


def _image_and_label(fields: list[str], names: dict[int, str]) -> tuple[int, int] | None:
    """Image id and label id of a line; None if the line is invalid."""
    if len(fields) < 3 or not (_NUMBER.fullmatch(fields[0]) and _NUMBER.fullmatch(fields[2])):
        return None
    label = int(fields[2])
    return (int(fields[0]), label) if label in (names or LABEL_IDS) else None


def _class_names(used: list[int], names: dict[int, str]) -> tuple[str, ...]:
    """Name per label id: the id if it has no name; with the id if two share the name."""
    plain = [names.get(label) or str(label) for label in used]
    return tuple(
        f"{name} ({label})" if plain.count(name) > 1 else name for label, name in zip(used, plain, strict=True)
    )
