"""Photos that a table names, found below its folder also where the spelling differs."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path, PurePosixPath

from cmrhash.data.items import ImagesBelow, resolve_image
from cmrhash.data.photos import FOLDERS, PHOTO_SUFFIXES, folded, is_photo, walk
from cmrhash.errors import did_you_mean


def as_path(written: str) -> str:
    """The path as a table has it, with "/" between folders and without "./"."""
    path = written.strip().replace("\\", "/")
    return str(PurePosixPath(path)) if "//" in path or (not {"", "."}.isdisjoint(path.split("/")) and path) else path


def count_photos(missing: Sequence[str], similar: int, extra: Counter[str]) -> None:
    """Count photos found by a similar name, and those that are missing under a key that lists the first three."""
    extra["photos found by a similar name or in another folder"] += similar
    if missing:
        extra[f"photos not found ({', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''})"] += len(missing)


class Photos:
    """The photos below a folder. Listings of folders are read only where a file is not found as written."""

    def __init__(self, root: Path) -> None:
        self.root, self._below = root, ImagesBelow(root)
        self._listings: dict[str, dict[str, str | None]] = {}
        self._before = ["", *(f"{name}/" for name in FOLDERS if (root / name).is_dir())]

    def find(self, image: str, anywhere: bool = False) -> tuple[str | None, bool]:
        """Path below the root of a photo that is written so, and whether it was found under a similar name.

        As written comes before a usual folder, and both before a similar name: other case, composed or decomposed
        accents, another suffix or none; ``anywhere``, a name without a folder is sought in all folders. None if no or
        several files fit. Raises DataError for a path or link that leaves the root.
        """
        if image.startswith("/") and Path(image).is_relative_to(self.root.absolute()):
            image = Path(image).relative_to(self.root.absolute()).as_posix()
        if image.startswith("/") or ".." in image.split("/"):
            resolve_image(self.root, image)
        for before in self._before:
            if os.path.isfile(f"{self.root}/{before}{image}"):
                return self._inside(before + image), False
        for before in self._before:
            if near := self._near(before + image):
                return self._inside(near), True
        deep = self._deep.get(folded(image)) if anywhere and "/" not in image else None
        return (self._inside(deep), True) if deep else (None, False)

    @cached_property
    def _deep(self) -> dict[str, str | None]:
        """Paths of all photos below the root by their folded names; None where several have the name."""
        found: dict[str, str | None] = {}
        for path in filter(is_photo, walk(self.root, Counter())):
            key = folded(os.path.basename(path))
            found[key] = None if key in found else path
        return found

    def beside(self, found: Iterable[str]) -> int:
        """Number of other photos in the folders of these."""
        own = set(found)
        folders = {os.path.dirname(image) for image in own}
        there = (
            f"{folder}/{name}" if folder else name for folder in folders for name in os.listdir(self.root / folder)
        )
        return sum(is_photo(path) and path not in own for path in there)

    def nearest(self, image: str) -> str:
        """ "did you mean X?" for the file nearest to a photo that is not there, "" if none is near."""
        folders = [before + os.path.dirname(image) for before in self._before]
        names = {name for folder in folders for name in self._listing(folder).values() if name}
        return did_you_mean(os.path.basename(image), sorted(names))

    def _inside(self, image: str) -> str:
        self._below.check(image)
        return image

    def _near(self, image: str) -> str | None:
        """The path with each part as it stands on disk."""
        found = ""
        for part in PurePosixPath(image).parts:
            if os.path.lexists(self.root / found / part):
                near: str | None = part
            else:
                listing = self._listing(found)
                near = listing.get(folded(part)) or listing.get(_stem(part))
            if near is None:
                return None
            found = f"{found}/{near}" if found else near
        return found if os.path.isfile(self.root / found) else None

    def _listing(self, folder: str) -> dict[str, str | None]:
        """Names in a folder by their folded name and, for photos, by stem; None where several fit."""
        if folder not in self._listings:
            listing: dict[str, str | None] = {}
            try:
                names = sorted(os.listdir(self.root / folder))
            except OSError:
                names = []
            for name in names:
                keys = {folded(name)} | ({_stem(name)} if is_photo(name) else set())
                listing |= {key: None if key in listing else name for key in keys}
            self._listings[folder] = listing
        return self._listings[folder]


def _stem(name: str) -> str:
    """Key of a photo's name without its suffix; no file name contains "/"."""
    stem, suffix = os.path.splitext(name)
    return f"/{folded(stem if suffix.lower() in PHOTO_SUFFIXES else name)}"
