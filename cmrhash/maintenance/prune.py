"""Deletion of the files that no command would use again.

Deletes only regular files below the cache and runs folders, with names and contents that cmrhash writes; never a file
behind a link, one that another process holds, or one that has changed since it was listed.
"""

from __future__ import annotations

import contextlib
import re
import stat
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from cmrhash.config import LEFT_BEHIND, PruneConfig
from cmrhash.data import switch
from cmrhash.data.manifest import ABOUT, BLOCKS, ITEMS, QUARANTINE
from cmrhash.data.view import View
from cmrhash.errors import CmrhashError, LockedError
from cmrhash.maintenance.folders import BROKEN, INDEXES, own_files, run_folders
from cmrhash.maintenance.inventory import (
    FEATURE_FILE,
    Entry,
    Holding,
    checkpoint,
    entries,
    holdings,
    is_finished,
    reason,
)
from cmrhash.maintenance.states import State
from cmrhash.storage import staged
from cmrhash.storage.files import drop_lock, holder, lock_of, locked, remove_lock
from cmrhash.storage.sealed import SHARD, merging
from cmrhash.training import runs

CHECKPOINTS = (runs.CHECKPOINT, "checkpoint-*.safetensors")
# files that are written in one move and without a lock
PARTIAL = re.compile(
    rf"({re.escape(ITEMS)}|{re.escape(BLOCKS)}|{re.escape(ABOUT)}|{re.escape(QUARANTINE)}|words-.+\.h5|graph-.+\.sealed|compare\.(json|csv|md)"
    r"|(config|checkpoint|metrics|change)\.json|history\.jsonl|items\.digests|codes\.h5|(heads|image|model|checkpoint-\d+)\.safetensors"
    r"|(image|text-[\w-]+)\.faiss)\.part"
)
LOCK = re.compile(r"\.(.+)\.lock")
HOLDER = re.compile(rb"(process \d+ on .*\n)?")  # the content of a lock file
LONGEST_HOLDER = 1000  # bytes
DRAWING = re.compile(r"\.[\w.-]+\.part-\d+")  # a folder in which the sample is being drawn


@dataclass(frozen=True)
class Doomed:
    """Files to delete together.

    what: their name in the listing; why: the reason; files: path -> (size, time of the last change in ns) when they
    were listed; locks: files that are locked during the deletion.
    """

    what: str
    why: str
    files: dict[Path, tuple[int, int]]
    locks: tuple[Path, ...] = ()

    @property
    def bytes(self) -> int:
        """Size of the files."""
        return sum(size for size, _ in self.files.values())


def plan(config: PruneConfig, cache: Path, out: Path, only: str | None = None) -> list[Doomed]:
    """List the files to delete, of all data sets or of the data set ``only``.

    cache, out: the folders of all data sets and of all runs. Raises UsageError for an unknown data set.
    """
    found = [one for held in holdings(cache, out, only) for one in _of(config, held)]
    return [one for one in found if one.files and not _refusal(one, (cache, out))]


def delete(doomed: Iterable[Doomed], cache: Path, out: Path) -> Iterator[tuple[Doomed, str]]:
    """Delete the listed files; yield each entry with "", or with the reason why it was left alone."""
    for one in doomed:
        try:
            with contextlib.ExitStack() as stack:
                for path in one.locks:
                    stack.enter_context(locked(path))
                left = _refusal(one, (cache, out))
                if not left:
                    for path in one.files:
                        _unlink(path)
                    for path in one.locks:
                        drop_lock(path)
        except (LockedError, OSError) as error:
            left = reason(error)
        if not left:
            _remove_empty({path.parent for path in one.files}, (cache, out))
        yield one, left


# ---------------------------------------------------------------------------------------------- selection


def _of(config: PruneConfig, held: Holding) -> Iterator[Doomed]:
    found = list(entries(held))
    doomed = [one for entry in found for one in _of_entry(config, entry, found, held) if one.files]
    doomed += _prepared(config, held)
    yield from doomed
    yield from _staged(held)
    yield from _partials(held)
    yield from _locks(held, {lock_of(path) for one in doomed for path in one.locks})


def _of_entry(config: PruneConfig, entry: Entry, found: list[Entry], held: Holding) -> Iterator[Doomed]:
    path, when = entry.path, {"always": True, "unfinished": config.unfinished, "gone": config.gone}
    wanted = when.get(entry.state.prune, False)
    if entry.kind in ("run", "tuned"):
        if not (entry.kind == "tuned" and entry.state is State.ITEMS_CHANGED and _is_in_use(entry, found, held)):
            yield from _of_training(config, entry, wanted)
    elif wanted and entry.kind == "graph":
        yield _doom(path, entry.words, [path])
    elif wanted and FEATURE_FILE.fullmatch(path.name) and not PARTIAL.fullmatch(path.name):
        own = path.with_name(path.name.removesuffix(".new").removesuffix(".part"))
        shard = SHARD.fullmatch(own.name)
        yield _doom(path, entry.words, [path], own, *([merging(own.with_name(shard[1]))] if shard else []))


def _is_in_use(entry: Entry, found: list[Entry], held: Holding) -> bool:
    """Whether features that are still good were made by these tuned encoders."""
    good = {one.path.name for one in found if one.status == "whole"}
    digest = str(entry.facts.get("digest"))
    return any(name in good and made["recipe"].get("tuned") == digest for name, made in held.manifests.items())


def _of_training(config: PruneConfig, entry: Entry, wanted: bool) -> Iterator[Doomed]:
    """Select a whole run or tuned encoders; or, of a run that stays, codes of other heads and checkpoints."""
    folder = entry.path
    locks = [folder / name for name in ((runs.CONFIG, runs.CODES) if entry.kind == "run" else (runs.CONFIG,))]
    if entry.state in (State.OTHER_HEADS, State.OTHER_ITEMS):
        indexes = [path for name in INDEXES for path in folder.glob(name)]
        yield _doom(folder / runs.CODES, entry.words, [folder / runs.CODES, *indexes], *locks)
    elif wanted:
        yield _doom(folder, entry.words, own_files(folder), *locks)
        return
    if entry.status in ("whole", "gone", "stale"):
        yield from _checkpoint(config, folder)


def _checkpoint(config: PruneConfig, folder: Path) -> Iterator[Doomed]:
    """Select the checkpoint beside a finished training: its own, or that of another, unfinished training."""
    try:
        about, made = checkpoint(folder), runs.read_record(folder)
        finished = about is None or is_finished(about, made.get("recipe", made))
    except (CmrhashError, OSError, *BROKEN):
        return
    if finished or config.unfinished:
        why = "of a training that is finished" if finished else "unfinished, in place of a finished one"
        files = [path for name in CHECKPOINTS for path in folder.glob(name)]
        yield _doom(folder / runs.CHECKPOINT, why, files, folder / runs.CONFIG)


def _prepared(config: PruneConfig, held: Holding) -> Iterator[Doomed]:
    """Select the files of a change of the collection that was interrupted before it took place."""
    aside = held.folder / switch.NEXT
    if config.unfinished and aside.is_dir() and not holder(aside):
        yield _doom(aside, "unfinished", [path for path in aside.rglob("*") if path.is_file()], aside)


def _staged(held: Holding) -> Iterator[Doomed]:
    """Select new files that a killed process has not put in the place of old ones."""
    tuned = run_folders(held.folder / runs.TUNED)
    for folder in (held.folder, *tuned, *run_folders(held.runs)):
        aside = folder / staged.NEXT
        files = [path for path in aside.rglob("*") if path.is_file()]
        begun = (aside / staged.SWITCH).exists() or holder(aside / staged.SWITCH)
        if not begun and files and all(_age(path) > LEFT_BEHIND for path in files):
            yield _doom(aside, "left behind by a killed process", files)


def _partials(held: Holding) -> Iterator[Doomed]:
    """Select old partial files of a killed process, of the kinds that are written in one move."""
    why = "left behind by a killed process"
    for path in _files(held):
        if PARTIAL.fullmatch(path.name) and _age(path) > LEFT_BEHIND:
            yield _doom(path, why, [path])
    for folder in held.folder.glob(".*.part-*"):
        files = [path for path in folder.rglob("*") if not path.is_dir()]
        if DRAWING.fullmatch(folder.name) and all(_age(path) > LEFT_BEHIND for path in [folder, *files]):
            yield _doom(folder, why, files)


def _locks(held: Holding, taken: set[Path]) -> Iterator[Doomed]:
    """Select lock files that nobody holds. taken: lock files that are deleted with the files they lock."""
    free = [path for path in _files(held) if path not in taken and _is_free_lock(path)]
    for top in (held.folder, held.runs):
        mine = [path for path in free if path.is_relative_to(top)]
        yield _doom(f"{len(mine)} lock file{'s' if len(mine) > 1 else ''} in {top}", "nobody holds them", mine)


def _is_free_lock(path: Path) -> bool:
    match = LOCK.fullmatch(path.name)
    if not match or path.is_symlink() or path.stat().st_size > LONGEST_HOLDER:
        return False
    return not holder(path.with_name(match[1])) and HOLDER.fullmatch(path.read_bytes()) is not None


def _files(held: Holding) -> Iterator[Path]:
    """Yield the files in every folder that cmrhash writes to."""
    tuned = run_folders(held.folder / runs.TUNED)
    models = [model for folder in tuned for model in folder.glob(str(View.ANY_TEXT))]
    for folder in (held.folder, *tuned, *models, held.runs, *run_folders(held.runs)):
        yield from sorted(path for path in folder.glob("*") if path.is_file())


def _doom(what: Path | str, why: str, files: Iterable[Path], *locks: Path) -> Doomed:
    known = {}
    first = (runs.CONFIG, runs.CHECKPOINT)  # deleted first, so that they never name files that are gone
    for path in sorted(files, key=lambda path: (path.name not in first, path)):
        with contextlib.suppress(OSError):
            known[path] = _signature(path)
    return Doomed(str(what), why, known, locks)


def _signature(path: Path) -> tuple[int, int]:
    info = path.lstat()
    return info.st_size, info.st_mtime_ns


def _age(path: Path) -> float:
    return time.time() - path.lstat().st_mtime


# ---------------------------------------------------------------------------------------------- deleting


def _refusal(one: Doomed, tops: Sequence[Path]) -> str:
    """Reason why the files must not be deleted; "" if they may be."""
    for path, signature in one.files.items():
        if not any(_is_below(path, top) for top in tops):
            return f"{path} is behind a link or outside the folders"
        if not stat.S_ISREG(path.lstat().st_mode) or _signature(path) != signature:
            return f"{path} has changed meanwhile"
    return ""


def _is_below(path: Path, top: Path) -> bool:
    """Whether path is below top, without a link or ".." between them."""
    if not path.is_relative_to(top) or ".." in path.parts[len(top.parts) :]:
        return False
    way = [path, *path.parents][: len(path.parts) - len(top.parts)]
    return not any(part.is_symlink() for part in way)


def _unlink(path: Path) -> None:
    """Delete a file; a lock file only while this process holds it."""
    match = LOCK.fullmatch(path.name)
    if match:
        remove_lock(path.with_name(match[1]))
    else:
        path.unlink()


def _remove_empty(folders: Iterable[Path], tops: Sequence[Path]) -> None:
    """Remove empty folders, and the folders above them that became empty."""
    for folder in folders:
        for each in (folder, *folder.parents):
            if not any(_is_below(each, top) and each != top for top in tops):
                break
            try:
                each.rmdir()
            except OSError:  # not empty
                break
