"""Photos of a folder at any depth, and their ids."""

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath

from cmrhash.data.cleaning import clean_label, is_printable
from cmrhash.data.items import LinkedRoot, resolve_image
from cmrhash.data.parsing import count_unusable, holds
from cmrhash.errors import DataError

FOLDERS = ("images", "Images", "photos", "img")  # usual folders of photos beside a table
PHOTO_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")


LINKS = "links that are not followed"  # broken ones, and those to folders that are read under another path
LEAVING = "links out of the folder, not followed (`follow_links=True` follows them)"
_TOP = {(name,) for name in FOLDERS}


def files_below(root: Path, extra: Counter[str]) -> list[str]:
    """Paths below the root of all files at any depth, sorted; see ``walk``."""
    return sorted(walk(root, extra))


def walk(root: Path, extra: Counter[str]) -> Iterator[str]:
    """Paths below the root of all files at any depth, in no order, without hidden files and folders.

    A link to a file of the root is followed. Below a LinkedRoot all links are, but no folder is read twice, so that
    loops of links end; a path without links to folders comes first. extra: counts files and folders whose name cannot
    be printed, links that are not followed, and folders that cannot be read. Raises DataError if the root is no folder.
    """
    if not root.is_dir():
        raise DataError("no such folder", root, "give the data set's folder")
    folders, linked, met, unusable = [""], list[str](), set[str](), list[str]()
    while folders or linked:
        if not folders:
            linked.sort(reverse=True)
        inside = folders.pop() if folders else linked.pop()
        if isinstance(root, LinkedRoot):
            real = os.path.realpath(root / inside)
            if real in met:
                extra[LINKS] += 1
                continue
            met.add(real)
        for entry in _entries(root / inside, extra):
            path = inside + entry.name
            if entry.name.startswith("."):
                continue
            if not is_printable(path) or "\\" in path or not _stem(entry.name).strip():
                unusable.append(path)
            elif not _leads_inside(root, path, entry):
                extra[LEAVING] += 1
            elif holds(entry.is_file):
                yield path
            elif holds(entry.is_dir) and (isinstance(root, LinkedRoot) or not entry.is_symlink()):
                (linked if entry.is_symlink() else folders).append(path + "/")
            elif entry.is_symlink():
                extra[LINKS] += 1
    count_unusable(unusable, extra)


def _entries(folder: Path, extra: Counter[str]) -> Iterator[os.DirEntry[str]]:
    """Entries of a folder; a folder that this user cannot read is counted."""
    try:
        with os.scandir(folder) as entries:
            yield from entries
    except (PermissionError, FileNotFoundError, ProcessLookupError):  # the latter two: deleted meanwhile, as in /proc
        extra["folders that cannot be read"] += 1


def _leads_inside(root: Path, path: str, entry: os.DirEntry[str]) -> bool:
    """Whether an entry is no link, or one that may be followed by the rules of ``resolve_image``."""
    try:
        return not entry.is_symlink() or bool(resolve_image(root, path))
    except DataError:
        return False


def _stem(path: str) -> str:
    return os.path.splitext(path)[0]


def is_photo(path: str) -> bool:
    """Whether the suffix is one of PHOTO_SUFFIXES, in any case."""
    return PurePosixPath(path).suffix.lower() in PHOTO_SUFFIXES


def need_photos(root: Path, files: Iterable[str], extra: Mapping[str, int]) -> list[str]:
    """The photos among these files, in the same order. Raises DataError for none; extra: what else there was."""
    if photos := [path for path in files if is_photo(path)]:
        return photos
    seen = "".join(f"; {count} {what}" for what, count in extra.items())
    raise DataError(f"no photo ({', '.join(PHOTO_SUFFIXES)}{seen})", root, "give the folder that holds the photos")


def composed(path: str) -> str:
    """The path in Unicode's composed form (NFC); some systems store names in the other one."""
    return unicodedata.normalize("NFC", path)


def folded(path: str) -> str:
    """The same key for paths that differ only in case or in the form of Unicode."""
    return composed(composed(path).casefold())


def stem_of(path: str) -> str:
    """The path without its suffix, composed: the key under which a photo and the files beside it meet."""
    return composed(_stem(path))


def folder_labels(root: Path, photos: Iterable[str]) -> list[str]:
    """Label per photo: the folder in which it lies.

    "" for a photo directly in the root, or in one of FOLDERS there. Raises DataError if no photo has a label.
    """
    folders = [PurePosixPath(path).parts[:-1] for path in photos]
    labels = [clean_label(inside[-1]) if inside and inside not in _TOP else "" for inside in folders]
    if any(labels):
        return labels
    fix = 'put the photos of each label into a folder of its name, or leave out `labels_from="folder"`'
    raise DataError("no photo is inside a folder that could be its label", root, fix)


def ids_of(photos: Iterable[str]) -> list[str]:
    """An id per photo: the path without its suffix; with it, if the id would be that of another photo.

    >>> ids_of(["a/1.jpg", "a/2.jpg", "a/2.png"])
    ['a/1', 'a/2.jpg', 'a/2.png']
    """
    photos = list(photos)
    count, paths = Counter(map(stem_of, photos)), set(map(composed, photos))
    return [stem if count[stem] == 1 and stem not in paths else path for path in photos for stem in [stem_of(path)]]
