"""The built-in data set: small drawn scenes with English and German captions, ready without a download.

It is written in IAPR TC-12's own layout and read by that reader, so the default path is the path of the real
data. The same seed and count give the same scenes, captions and labels everywhere.
"""

from __future__ import annotations

import json
import os
import random
import shutil
from dataclasses import replace
from pathlib import Path

from cmrhash.data.items import ImageTextDataset
from cmrhash.data.readers.iaprtc12 import ANNOTATIONS, IMAGES, LABELS
from cmrhash.data.readers.iaprtc12 import read as read_layout
from cmrhash.data.sample.paint import paint
from cmrhash.data.sample.plan import CLASSES, Scene, compose
from cmrhash.data.sample.words import english, german
from cmrhash.errors import DataError, StaleError

SEED, COUNT = 0, 1000
VERSION = 1  # of the drawing: raise it whenever the same seed gives another picture, caption or label
MARKER = "sample.json"
PER_FOLDER = 100
JPEG_QUALITY = 92

_ANNOTATION = """<DOC>
<DOCNO>annotations/{place}{suffix}</DOCNO>
<TITLE>Scene {number}</TITLE>
<DESCRIPTION>{description}</DESCRIPTION>
<NOTES></NOTES>
<LOCATION></LOCATION>
<DATE></DATE>
<IMAGE>images/{place}.jpg</IMAGE>
<THUMBNAIL>thumbnails/{place}.jpg</THUMBNAIL>
</DOC>
"""


def read(root: Path) -> ImageTextDataset:
    """The sample below ``root``; it is drawn first where there is none yet.

    Raises StaleError if another version drew it, DataError if the folder holds something else.
    """
    if not _is_complete(root):
        draw(root)
    return replace(read_layout(root), name="sample")


def draw(root: Path, seed: int = SEED, count: int = COUNT) -> None:
    """Draw ``count`` scenes into the folder ``root``, which must be empty or not be there.

    They are drawn beside it and renamed at the end: a sample at ``root`` is complete whenever this is killed.
    """
    if root.exists() and any(root.iterdir()):
        fix = "give a new or empty folder"
        if (root / "manifest.jsonl").exists():  # the default data set was hardly meant
            fix = 'read its manifest.jsonl with `dataset="manifest"`'
        raise DataError("the folder is not empty and is not a complete sample", root, fix)
    if count < 1:
        raise DataError(f"cannot draw {count} scenes", root, "give 1 or more")
    root.parent.mkdir(parents=True, exist_ok=True)
    # One name for each process, so that two of them drawing at once do not write into each other's files.
    part = root.parent / f".{root.name}.part-{os.getpid()}"
    shutil.rmtree(part, ignore_errors=True)
    try:
        for number, scene in enumerate(compose(seed, count), 1):
            _write_scene(part, number, scene, seed)
        names = "".join(f"{label}\t{name}\n" for label, name in enumerate(CLASSES, 1))
        (part / LABELS / "wlist.txt").write_bytes(names.encode())
        marker = {"version": VERSION, "seed": seed, "count": count}
        (part / MARKER).write_bytes(json.dumps(marker).encode())
        _put_in_place(part, root)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _put_in_place(part: Path, root: Path) -> None:
    try:
        if root.exists():
            root.rmdir()  # empty, as checked; not every system renames onto a folder
        part.replace(root)
    except OSError:
        if not _is_complete(root):  # else another process was quicker, with the same scenes
            raise


def _is_complete(root: Path) -> bool:
    """Whether a sample of this version stands at ``root``, of any seed and count."""
    try:
        marker = json.loads((root / MARKER).read_bytes())
        version = marker["version"]
    except FileNotFoundError:
        return False
    except (ValueError, TypeError, KeyError) as error:
        raise DataError(
            "not the marker of a sample", root / MARKER, "delete the folder to create the sample again"
        ) from error
    if version != VERSION:
        what = f"the sample has version {version}, this cmrhash makes version {VERSION}"
        raise StaleError(what, root, "delete the folder to create the sample again")
    return True


def _write_scene(top: Path, number: int, scene: Scene, seed: int) -> None:
    """Write one scene's image and annotations, and append its lines to the folder's labels.txt."""
    folder = f"{(number - 1) // PER_FOLDER:02d}"
    place = f"{folder}/{number}"
    image = _file(top / IMAGES / f"{place}.jpg")
    paint(scene, [seed, number]).save(image, "JPEG", quality=JPEG_QUALITY)
    for lang, caption in (("en", english), ("de", german)):
        name, suffix = ANNOTATIONS[lang]
        description = caption(scene, random.Random(f"{lang}/{seed}/{number}"))
        text = _ANNOTATION.format(place=place, suffix=suffix, number=number, description=description)
        _file(top / name / f"{place}{suffix}").write_bytes(text.encode("cp1252"))  # as in the real data
    with open(_file(top / LABELS / folder / "labels.txt"), "ab") as labels:
        for region, label in enumerate(scene.labels, 1):
            labels.write(f"{number}\t{region}\t{CLASSES.index(label) + 1}\n".encode())


def _file(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path
