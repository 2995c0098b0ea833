"""A changed collection takes the place of the old one in one step that a kill cannot tear.

    next/NAME/     items and feature files of the changed collection, prepared while the old one is used
    change.json    files to move from there, and ids of removed items; kept until codes and stores are up to date

The switch is the moment in which ``change.json`` appears. Whoever opens the collection later moves the files that a
killed process has not moved. Before that moment the collection is the old one, whatever ``next`` holds.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from cmrhash.storage.files import locked, make_folder, move, read_json, remove, sync, write_json
from cmrhash.storage.staged import inside

CHANGE, NEXT = "change.json", "next"
LAST = "dataset.json"  # moved last: it describes the other files
AGAIN = "run `extract` again"


def clear(folder: Path) -> None:
    """Remove the prepared files."""
    for path in sorted((folder / NEXT).rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    with contextlib.suppress(FileNotFoundError):
        (folder / NEXT).rmdir()


def start(folder: Path, names: Iterable[str]) -> Path:
    """Make the folder of the changed collection, with these files of the present one, and return it."""
    remove(folder / CHANGE)
    clear(folder)
    aside = folder / NEXT / folder.name
    make_folder(aside)
    for name in names:
        try:
            os.link(folder / name, aside / name)  # no file is changed in place, so both can share it
        except OSError:  # a file system without hard links
            shutil.copyfile(folder / name, aside / name)
    return aside


def switch(folder: Path, removed: Iterable[str]) -> None:
    """Put the prepared files in the place of the present ones. removed: ids, kept until ``done``."""
    aside = folder / NEXT / folder.name
    names = {path.name for path in aside.iterdir() if path.is_file() and path.suffix not in (".lock", ".part")}
    with locked(folder / CHANGE, wait=True):
        for path in (aside, aside.parent, folder):
            sync(path)
        files = [*sorted(names - {LAST}), LAST]
        write_json(folder / CHANGE, {"from": aside.name, "files": files, "removed": list(removed)})
        _move(folder)


def settle(folder: Path) -> None:
    """Finish a switch that a killed process has begun."""
    if (folder / CHANGE).exists() and (folder / NEXT).is_dir():
        with locked(folder / CHANGE, wait=True):
            if (folder / CHANGE).exists():
                _move(folder)


def removed(folder: Path) -> tuple[str, ...]:
    """Ids that the last change removed, as long as codes and stores are not up to date; otherwise none."""
    return tuple(read_json(folder / CHANGE, AGAIN)["removed"]) if (folder / CHANGE).exists() else ()


def done(folder: Path) -> None:
    """Forget the last change: codes and stores are up to date."""
    remove(folder / CHANGE)


def _move(folder: Path) -> None:
    about = read_json(folder / CHANGE, AGAIN)
    aside = inside(folder, f"{NEXT}/{about['from']}")
    for name in about["files"]:
        source, target = inside(aside, name), inside(folder, name)
        if source.exists():
            move(source, target)
    if aside.is_dir():
        sync(aside)  # the other end of each rename
    clear(folder)
