"""A changed collection takes the place of the old one in one step that a kill cannot tear.

    next/NAME/     items and feature files of the changed collection, prepared while the old one is used
    next/for.json  what is prepared there, so that only the same command resumes it
    change.json    files to move from there, files to delete, and ids of removed items; kept until codes and stores are
                   up to date

The switch is the moment in which ``change.json`` appears. Whoever opens the collection later moves the files that a
killed process has not moved. Before that moment the collection is the old one, whatever ``next`` holds.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from cmrhash.errors import DamagedError, LockedError
from cmrhash.storage import files
from cmrhash.storage.files import holder, locked, make_folder, move, read_json, remove, sync, write_json
from cmrhash.storage.staged import files_below, inside

CHANGE, NEXT = "change.json", "next"
PURPOSE = "for.json"
LAST = "dataset.json"  # moved last: it describes the other files
AGAIN = "run `extract` again"


def clear(folder: Path) -> None:
    """Remove the prepared files."""
    files.clear(folder / NEXT)
    with contextlib.suppress(OSError):
        (folder / NEXT).rmdir()


def begun(folder: Path, purpose: str) -> Path | None:
    """Folder that a killed process has prepared for the same purpose, None if there is none."""
    aside, path = folder / NEXT / folder.name, folder / NEXT / PURPOSE
    if (folder / CHANGE).exists() or not (aside / LAST).exists() or not path.exists():
        return None
    with contextlib.suppress(DamagedError):
        return aside if read_json(path, AGAIN).get("purpose") == purpose else None
    return None


def start(folder: Path, names: Iterable[str], purpose: str) -> Path:
    """Make the folder of the changed collection, with these files of the present one, and return it.

    purpose: digest of what will be prepared. Raises LockedError if another process writes there.
    """
    refuse_busy((folder / NEXT).rglob(".*.lock"))
    remove(folder / CHANGE)
    clear(folder)
    aside = folder / NEXT / folder.name
    make_folder(aside)
    write_json(folder / NEXT / PURPOSE, {"purpose": purpose})
    for name in names:
        try:
            os.link(folder / name, aside / name)  # no file is changed in place, so both can share it
        except OSError:  # a file system without hard links
            shutil.copyfile(folder / name, aside / name)
    return aside


def refuse_busy(locks: Iterable[Path]) -> None:
    """Raise LockedError if another process holds one of these locks."""
    for lock in locks:
        path = lock.with_name(lock.name[1:].removesuffix(".lock"))
        if process := holder(path):
            raise LockedError(f"being written by {process}", path, "wait for that process, or stop it")


def switch(folder: Path, removed: Iterable[str], whole: Iterable[str] = (), brief: bool = False) -> None:
    """Put the prepared files in the place of the present ones.

    removed: ids, kept until ``done``; brief: there is nothing to do afterwards. whole: folders of which no old file
    stays.
    """
    aside = folder / NEXT / folder.name
    with locked(folder / CHANGE, wait=True):
        for path in (*(path for path in aside.rglob("*") if path.is_dir()), aside, aside.parent, folder):
            sync(path)
        names = files_below(aside, aside)
        gone = sorted({name for each in whole for name in files_below(folder, folder / each)} - names)
        change = {
            "from": aside.name,
            "files": [*sorted(names - {LAST}), LAST],
            "gone": gone,
            "removed": list(removed),
            "brief": brief,
        }
        write_json(folder / CHANGE, change)
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
    for name in about.get("gone", ()):
        remove(inside(folder, name))
    for name in about["files"]:
        source, target = inside(aside, name), inside(folder, name)
        if source.exists():
            make_folder(target.parent)
            move(source, target)
    for path in (aside, *aside.rglob("*")):
        if path.is_dir():
            sync(path)  # the other end of each rename
    if about.get("brief"):
        remove(folder / CHANGE)
    clear(folder)
