"""New files of a folder take the place of the old ones in one step that a kill or a full disk cannot tear.

    .next/             the new files, complete and synced while the old ones stay in use
    .next/switch.json  names of the files to move from there, and of old files to delete

The switch is the moment in which ``switch.json`` appears. Before, the folder has the old files; afterwards whoever
opens it with ``settle`` finishes the moves that a killed process has left.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

from cmrhash.errors import DamagedError
from cmrhash.storage import files
from cmrhash.storage.files import (
    drop_lock,
    lock_of,
    locked,
    make_folder,
    move,
    new_folder,
    read_json,
    remove,
    sync,
    write_json,
)

NEXT, SWITCH = ".next", "switch.json"
AGAIN = f"delete {NEXT}, and run the command that wrote this folder again"
_UNUSED = (".lock", ".part")  # suffixes of files that are not moved


@contextlib.contextmanager
def staged(folder: Path, last: str, replaces: Iterable[str] = ()) -> Iterator[Path]:
    """Give a folder for new files; after the block they replace those of the same names in ``folder``.

    last: name of the file that describes the others, which is moved last. replaces: patterns of old files that go, too.
    If the block raises, the old files stay as they are. Concurrent writers take turns.
    """
    settle(folder)
    aside = folder / NEXT
    with _alone(aside):
        _clear(aside)
        try:
            yield aside
            names = sorted(_files(aside), key=lambda name: (name == last, name))
            for path in {aside / name for name in names} | {(aside / name).parent for name in names}:
                sync(path)
            old = {path.relative_to(folder).as_posix() for each in replaces for path in folder.glob(each)}
            gone = sorted(name for name in old - {*names} if (folder / name).is_file())
            write_json(aside / SWITCH, {"files": names, "removed": gone})
        except BaseException:
            _clear(aside)
            _drop(aside)
            raise
        _move(folder)
        _drop(aside)


@contextlib.contextmanager
def _alone(aside: Path) -> Iterator[None]:
    """Make the folder of the new files and lock it; another writer may remove it just then."""
    with contextlib.ExitStack() as stack:
        while True:
            stack.enter_context(new_folder(aside))
            with contextlib.suppress(FileNotFoundError):
                stack.enter_context(locked(aside / SWITCH, wait=True))
                break
        yield
    _drop_lock(aside)


def settle(folder: Path) -> None:
    """Finish a switch that a killed process has begun. Raises DamagedError for one that leads out of the folder."""
    aside = folder / NEXT
    if not (aside / SWITCH).is_file():
        return
    with contextlib.suppress(FileNotFoundError), locked(aside / SWITCH, wait=True):
        if (aside / SWITCH).is_file():
            _move(folder)
            _drop(aside)
    _drop_lock(aside)


def _drop_lock(aside: Path) -> None:
    """Remove the lock and its folder where a lock that is held cannot be removed, as on Windows."""
    if files.WINDOWS:
        files.remove_lock(aside / SWITCH)
        with contextlib.suppress(OSError):  # another writer has begun
            aside.rmdir()


def inside(folder: Path, name: str) -> Path:
    """Path of a file below a folder; raises DamagedError for a name that leads elsewhere, also by a link."""
    parts = PurePosixPath(name).parts
    way = [folder.joinpath(*parts[:length]) for length in range(1, len(parts))]
    if not parts or parts[0] == "/" or ".." in parts or "\\" in name or any(path.is_symlink() for path in way):
        raise DamagedError(f"a file that is not below the folder ({name!r})", folder, AGAIN)
    return folder / name


def _files(aside: Path) -> list[str]:
    """Names of the new files."""
    return sorted(files_below(aside, aside))


def files_below(folder: Path, part: Path) -> set[str]:
    """Names of the files below a part of a folder, relative to the folder, but for unfinished ones and locks."""
    found = (path for path in part.rglob("*") if path.is_file() and path.suffix not in _UNUSED)
    return {path.relative_to(folder).as_posix() for path in found if not path.name.startswith(files.OF_NFS)}


def _move(folder: Path) -> None:
    """Delete the old files and move the new ones, as far as this is not done."""
    aside = folder / NEXT
    about = read_json(aside / SWITCH, AGAIN)
    old = [inside(folder, name) for name in about["removed"]]
    new = [(inside(aside, name), inside(folder, name)) for name in about["files"]]
    if aside.is_symlink():
        raise DamagedError("a link instead of a folder", aside, AGAIN)
    for path in old:
        remove(path)
    for source, target in new:
        if source.exists():
            make_folder(target.parent)
            move(source, target)
    for path in {path.parent for path, _ in new} & {path for path in (aside, *aside.rglob("*")) if path.is_dir()}:
        sync(path)  # the other end of each rename
    for path in {path.parent for path in old} - {folder}:
        with contextlib.suppress(OSError):  # not empty
            path.rmdir()
    remove(aside / SWITCH)


def _clear(aside: Path) -> None:
    """Remove what a killed process has left, but for the lock."""
    remove(aside / SWITCH)
    files.clear(aside, lock_of(aside / SWITCH).name)


def _drop(aside: Path) -> None:
    """Remove the folder of the new files, with its lock."""
    _clear(aside)
    with contextlib.suppress(OSError):  # Windows keeps a lock file that is open
        drop_lock(aside / SWITCH)
        aside.rmdir()
        sync(aside.parent)
