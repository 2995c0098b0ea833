"""The sample: a built-in data set of drawn scenes with English and German captions.

It needs no download. It is written in the layout of IAPR TC-12 and read by that reader, so that the default run
exercises the code for real data. Equal seed and count give equal scenes, captions and labels on every machine.
"""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from cmrhash.data.items import ImageTextDataset
from cmrhash.data.readers.iaprtc12 import ANNOTATIONS, IMAGES, LABELS
from cmrhash.data.readers.iaprtc12 import read as read_layout
from cmrhash.data.sample.paint import paint
from cmrhash.data.sample.plan import CLASSES, Scene, compose
from cmrhash.data.sample.words import english, german
from cmrhash.errors import CmrhashError, DataError, StaleError

SEED, COUNT = 0, 1000
VERSION = 1  # of the drawing: increase it when the same seed gives other images, captions or labels
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
    """Read the sample below ``root``; draw it first if it does not exist.

    Raises StaleError if another version drew it, DataError if the folder has other content.
    """
    if not _is_complete(root):
        draw(root)
    return replace(read_layout(root), name="sample")


@contextmanager
def undrawn_if_refused(root: Path) -> Iterator[None]:
    """Remove the sample below ``root``, with its new folders, if the body draws it and then raises a CmrhashError."""
    was_there, new = root.exists(), [folder for folder in (root, *root.parents) if not folder.exists()]
    complete = (root / MARKER).exists()
    try:
        yield
    except CmrhashError:
        if not complete and (root / MARKER).exists():
            shutil.rmtree(root, ignore_errors=True)  # other ranks of a refused call do the same
            with suppress(OSError):  # another process has put something there
                for folder in new[1:]:
                    folder.rmdir()
            if was_there:
                root.mkdir()
        raise


def draw(root: Path, seed: int = SEED, count: int = COUNT) -> None:
    """Draw ``count`` scenes into the folder ``root``, which must be empty or missing.

    The scenes are drawn in a temporary folder, which is renamed at the end, so that ``root`` is complete even after a
    kill.
    Raises DataError for a folder with content, or a count below 1.
    """
    if root.exists() and any(root.iterdir()):
        fix = "give a new or empty folder"
        if (root / "manifest.jsonl").exists():  # the user probably forgot to choose the reader
            fix = 'read its manifest.jsonl with `dataset="manifest"`'
        raise DataError("the folder is not empty and is not a complete sample", root, fix)
    if count < 1:
        raise DataError(f"cannot draw {count} scenes", root, "give 1 or more")
    root.parent.mkdir(parents=True, exist_ok=True)
    # The name contains the process id, so that concurrent processes use different folders.
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
            root.rmdir()  # it is empty; not every system can rename onto a folder
        part.replace(root)
    except OSError:
        if not _is_complete(root):  # otherwise another process has finished the same scenes first
            raise


def _is_complete(root: Path) -> bool:
    """Whether ``root`` has a sample of this version, of any seed and count."""
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
    """Write a scene's image and annotations, and append its labels to labels.txt."""
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
    """The path, after its folder has been created."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return path
