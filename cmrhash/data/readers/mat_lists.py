"""Lists of photos, captions and labels in MATLAB files, as repositories of CLIP-based hashing share them (DCHMT, MITH).

    index.mat      index: the path of each photo on its author's machine
    caption.mat    caption (tags, YAll): its text, or cells of several; or caption.txt with a line per photo
    label.mat      category (LAll, labels, label): 0/1 per class

The files may be of any MATLAB version. A photo is looked for by the last two parts of its path, then by the last, below
``images`` or else below the folder of the lists. Ids are the shortest ends of the paths that are unique. Protocol:
roles are drawn from the seed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from cmrhash.data.cleaning import clean_text
from cmrhash.data.items import ImageTextDataset, Item
from cmrhash.data.matrices.array import Array
from cmrhash.data.matrices.arrays import list_arrays
from cmrhash.data.matrices.labels import read_labels
from cmrhash.data.matrices.roles import CAPTIONS, LABELS, LANG, listed
from cmrhash.data.matrices.rows import oriented
from cmrhash.data.named_photos import Photos, as_path, count_photos
from cmrhash.data.parsing import need_file, read_lines, report
from cmrhash.errors import DataError

INDEX = "index.mat", ("index",)  # file and names of its array
CAPTION = "caption.mat", ("caption", "captions", "tags", "YAll")
LABEL = "label.mat", ("category", "LAll", "labels", "label")
LINES = "caption.txt"


def read(root: Path, images: Path | None = None) -> ImageTextDataset:
    """Read the data set: an item per path of the index.

    images: folder of the photos; None: that of the lists. Raises DataError for lists of different lengths, for a file
    without a known array, and if ``images`` holds none of the photos.
    """
    extra: Counter[str] = Counter()
    index = _array(root, *INDEX)
    written = [as_path(own[0]) if own else "" for own in index.read_texts()]
    count = len(written)
    if not any(written):
        raise DataError(f"{index} names no photos", index.file, "give the paths of the photos")
    captions = _captions(root, count, extra)
    label = _array(root, *LABEL)
    classes, labels = read_labels(oriented(LABELS, label, {count}, extra), {"": label})
    photos = _photos(root, images, written, extra)
    ids = _ids(written)
    items = tuple(Item(ids[n], photos[n], {LANG: captions[n]} if captions[n] else {}, labels[n]) for n in range(count))
    found = report(items, classes, [LANG], extra)
    return ImageTextDataset("mat-lists", images or root, items, classes, found=found)


def _array(root: Path, name: str, keys: Sequence[str]) -> Array:
    """The array of a file with one of these names, else its only array; raises DataError."""
    path = need_file(root, name)
    arrays = [array for array in list_arrays(path) if not array.name.startswith("__")]
    known = [array for key in keys for array in arrays if array.name.lower() == key.lower()]
    if not known and len(arrays) != 1:
        raise DataError(f"no array {' or '.join(keys)}", path, f"rename one of its arrays: {listed(arrays)}")
    return (known or arrays)[0]


def _captions(root: Path, count: int, extra: Counter[str]) -> list[tuple[str, ...]]:
    """Captions of each item, from the MATLAB file or else from the lines of a text file."""
    if (root / LINES).is_file() and not (root / CAPTION[0]).is_file():
        rows = [(line,) for line in read_lines(root / LINES)]
        if len(rows) != count:
            raise DataError(f"{len(rows)} lines for {count} photos", root / LINES, "give a line per photo")
    else:
        array = _array(root, *CAPTION)
        if not array.is_text:
            what = f"{array} holds numbers, no captions"
            raise DataError(what, array.file, 'read them with `dataset="features"`, or give the texts')
        rows = [own for (own,) in oriented(f"{CAPTIONS}.{LANG}", array, {count}, extra)]
    return [tuple(filter(None, map(clean_text, own))) for own in rows]


def _photos(root: Path, images: Path | None, written: Sequence[str], extra: Counter[str]) -> list[str | None]:
    """Path of each photo below the folder of the photos, None for those that are not there."""
    photos, found = Photos(images or root), list[str | None]()
    similar = 0
    for path in written:
        there, near = next(filter(lambda one: one[0], (photos.find(end) for end in _ends(path)[1:])), (None, False))
        found.append(there)
        similar += near
    missing = [path for path, there in zip(written, found, strict=True) if path and not there]
    if images and not any(found):
        fix = f"{photos.nearest(_ends(missing[0])[-1])} give the folder that holds the photos"
        raise DataError(f"none of the {len(missing)} photos was found, such as {missing[0]}", images, fix)
    count_photos([_ends(path)[-1] for path in missing], similar, extra)
    return found


def _ends(path: str) -> list[str]:
    """The whole path without its root, its last two parts, and its last part."""
    parts = [part for part in PurePosixPath(path).parts if part not in ("/", "..")]
    return ["/".join(parts[-length:]) for length in (len(parts), 2, 1)] if parts else []


def _ids(written: Sequence[str]) -> list[str]:
    """Ids of the items: the shortest ends of all paths that differ, without suffix."""
    for length in (-1, -2, 0):
        ids = [str(PurePosixPath(_ends(path)[length]).with_suffix("")) if path else "" for path in written]
        if len(set(ids)) == len(ids):
            break
    return ids
