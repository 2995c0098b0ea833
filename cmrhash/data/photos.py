"""Photos of a folder at any depth, and their ids."""

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from cmrhash.data.items import resolve_image
from cmrhash.data.parsing import FOREIGN
from cmrhash.errors import DataError

PHOTO_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")


def files_below(root: Path, extra: Counter[str]) -> list[str]:
    """Paths below the root of all files at any depth, sorted, without hidden files and folders.

    extra: counts files whose name cannot be printed, and links that are not followed: broken ones, and those to folders
    of the same root. Raises DataError for a link that leaves the root.
    """
    if not root.is_dir():
        raise DataError("no such folder", root, "give the data set's folder")
    files, folders = list[str](), [""]
    while folders:
        inside = folders.pop()
        with os.scandir(root / inside) as entries:
            for entry in entries:
                path = inside + entry.name
                if entry.name.startswith("."):
                    continue
                if not path.isprintable() or "\\" in path or not _stem(entry.name).strip():
                    extra[FOREIGN] += 1
                elif entry.is_symlink() and not _leads_to_a_file(root, path):
                    extra["links that are not followed"] += 1
                elif entry.is_dir():
                    folders.append(path + "/")
                elif entry.is_file():
                    files.append(path)
    return sorted(files)


def _leads_to_a_file(root: Path, path: str) -> bool:
    return os.path.isfile(resolve_image(root, path))


def _stem(path: str) -> str:
    return os.path.splitext(path)[0]


def is_photo(path: str) -> bool:
    """Whether the suffix is one of PHOTO_SUFFIXES, in any case."""
    return PurePosixPath(path).suffix.lower() in PHOTO_SUFFIXES


def need_photos(root: Path, files: Iterable[str]) -> list[str]:
    """The photos among these files, in the same order. Raises DataError if there is none."""
    if photos := [path for path in files if is_photo(path)]:
        return photos
    raise DataError(f"no photo ({', '.join(PHOTO_SUFFIXES)})", root, "give the folder that holds the photos")


def composed(path: str) -> str:
    """The path in Unicode's composed form (NFC); some systems store names in the other one."""
    return unicodedata.normalize("NFC", path)


def folded(path: str) -> str:
    """The same key for paths that differ only in case or in the form of Unicode."""
    return composed(composed(path).casefold())


def stem_of(path: str) -> str:
    """The path without its suffix, composed: the key under which a photo and the files beside it meet."""
    return composed(_stem(path))


def ids_of(photos: Iterable[str]) -> list[str]:
    """An id per photo: the path without its suffix; with it, if the id would be that of another photo.

    >>> ids_of(["a/1.jpg", "a/2.jpg", "a/2.png"])
    ['a/1', 'a/2.jpg', 'a/2.png']
    """
    photos = list(photos)
    count, paths = Counter(map(stem_of, photos)), set(map(composed, photos))
    return [stem if count[stem] == 1 and stem not in paths else path for path in photos for stem in [stem_of(path)]]
