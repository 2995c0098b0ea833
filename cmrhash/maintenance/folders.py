"""Files and folders that cmrhash wrote, by their names, with their sizes."""

from __future__ import annotations

import contextlib
import stat
from pathlib import Path

from cmrhash.data.switch import NEXT
from cmrhash.data.view import View
from cmrhash.errors import CmrhashError
from cmrhash.training import runs

INDEXES = (View.IMAGE.index_file, View.text("*").index_file)
RUN_FILES = (
    *(runs.CONFIG, runs.CHECKPOINT, runs.HEADS, runs.HISTORY, runs.DIGESTS, runs.CODES, runs.METRICS, runs.WORDS),
    *("checkpoint-*.safetensors", "queries-*.npz", *INDEXES),
)
BROKEN = (KeyError, TypeError, ValueError, AttributeError, IndexError, RecursionError)  # of JSON in another format


def run_folders(folder: Path) -> list[Path]:
    """List the folders below ``folder`` in which a training has begun."""
    marks = (runs.CONFIG, runs.CHECKPOINT, f".{runs.CONFIG}.lock")
    return [path for path in folders_of(folder) if any((path / mark).exists() for mark in marks)]


def own_files(folder: Path) -> list[Path]:
    """List the files of a run or of tuned encoders that cmrhash wrote, without locks and partial files."""
    found = {path for name in RUN_FILES for path in folder.glob(name)}
    with contextlib.suppress(CmrhashError, OSError, *BROKEN):
        found |= {folder / name for name in runs.read_record(folder)["files"] if ".." not in Path(name).parts}
    return sorted(path for path in found if path.is_relative_to(folder) and path.is_file() and not path.is_symlink())


def size_of(path: Path) -> int:
    """Bytes of a file, or of what cmrhash wrote into a folder of a run, tuned encoders or a change."""
    size, files = 0, [path]
    if path.is_dir():
        files = [*path.rglob("*")] if path.name == NEXT else own_files(path)
    for each in files:
        with contextlib.suppress(OSError):
            about = each.lstat()
            if stat.S_ISREG(about.st_mode) and not (
                path.name == NEXT and about.st_nlink > 1
            ):  # a link to a file in use
                size += about.st_size
    return size


def folders_of(folder: Path) -> list[Path]:
    """Folders directly below a folder, sorted; none if it is missing."""
    return sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
