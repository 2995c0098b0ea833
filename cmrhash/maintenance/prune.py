"""What can be deleted without any command missing it, and its deletion.

Only regular files below the two folders, of the names and kinds that cmrhash writes; nothing behind a link; nothing
that another process holds, or that has changed since it was looked at.
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
from cmrhash.data.manifest import ABOUT, ITEMS, QUARANTINE
from cmrhash.errors import CmrhashError, LockedError
from cmrhash.maintenance.inventory import (
    BROKEN,
    CODES,
    FEATURES,
    VIEW,
    Entry,
    Holding,
    checkpoint,
    entries,
    holdings,
    is_finished,
    own_files,
    run_folders,
)
from cmrhash.maintenance.inventory import ITEMS as OTHER_ITEMS
from cmrhash.maintenance.inventory import WORDS as OTHER_WORDS
from cmrhash.storage.files import drop_lock, holder, lock_of, locked, remove_lock
from cmrhash.storage.sealed import SHARD, merging
from cmrhash.training import runs

CHECKPOINTS = (runs.CHECKPOINT, "checkpoint-*.safetensors")
# written in one move and under no lock
PARTIAL = re.compile(
    rf"({re.escape(ITEMS)}|{re.escape(ABOUT)}|{re.escape(QUARANTINE)}|words-.+\.h5|compare\.(json|csv|md)"
    r"|(config|checkpoint|metrics)\.json|history\.jsonl|codes\.h5|(heads|image|model|checkpoint-\d+)\.safetensors"
    r"|(image|text-[\w-]+)\.faiss)\.part"
)
LOCK = re.compile(r"\.(.+)\.lock")
HOLDER = re.compile(rb"(process \d+ on .*\n)?")  # what is written into it
LONGEST_HOLDER = 1000  # bytes of that
DRAWING = re.compile(r"\.[\w.-]+\.part-\d+")  # a sample that is being drawn


@dataclass(frozen=True)
class Doomed:
    """Files that go together. what: their name for people; why: the reason; locks: what must not be held meanwhile.

    files: path -> (size, time of the last change in ns) as they were found.
    """

    what: str
    why: str
    files: dict[Path, tuple[int, int]]
    locks: tuple[Path, ...] = ()

    @property
    def bytes(self) -> int:
        """The room that they take."""
        return sum(size for size, _ in self.files.values())


def plan(config: PruneConfig, cache: Path, out: Path, only: str | None = None) -> list[Doomed]:
    """What would go, by data set. cache, out: the folders of all data sets and of all runs; only: a data set.

    Raises UsageError if that data set is not there.
    """
    found = [one for held in holdings(cache, out, only) for one in _of(config, held)]
    return [one for one in found if one.files and not _refusal(one, (cache, out))]


def delete(doomed: Iterable[Doomed], cache: Path, out: Path) -> Iterator[tuple[Doomed, str]]:
    """Delete what was planned; yields each with "", or with the reason why all of it was left alone."""
    for one in doomed:
        try:
            with contextlib.ExitStack() as stack:
                for path in one.locks:
                    stack.enter_context(locked(path))
                reason = _refusal(one, (cache, out))
                if not reason:
                    for path in one.files:
                        _unlink(path)
                    for path in one.locks:
                        drop_lock(path)
        except LockedError as error:
            reason = error.what
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
        if not reason:
            _remove_empty({path.parent for path in one.files}, (cache, out))
        yield one, reason


# ---------------------------------------------------------------------------------------------- what goes


def _of(config: PruneConfig, held: Holding) -> Iterator[Doomed]:
    found = list(entries(held))
    doomed = [one for entry in found for one in _of_entry(config, entry, found, held) if one.files]
    yield from doomed
    yield from _partials(held)
    yield from _locks(held, {lock_of(path) for one in doomed for path in one.locks})


def _of_entry(config: PruneConfig, entry: Entry, found: list[Entry], held: Holding) -> Iterator[Doomed]:
    path = entry.path
    if entry.kind == "run":
        yield from _of_run(config, entry)
    elif entry.kind == "tuned":
        yield from _of_tuned(config, entry, found, held)
    elif path.name.endswith(".part.new") and entry.status == "leftover":
        yield _doom(path, entry.words, [path], path.with_suffix("").with_suffix(""))
    elif VIEW.fullmatch(path.name) and path.suffix != ".h5":  # an unfinished file, or a shard
        if entry.state == OTHER_ITEMS or (config.unfinished and entry.status == "unfinished"):
            own = path.with_name(path.name.removesuffix(".part"))
            shard = SHARD.fullmatch(own.name)
            yield _doom(path, entry.words, [path], own, *([merging(own.with_name(shard[1]))] if shard else []))
    elif VIEW.fullmatch(path.name) and entry.state in (OTHER_ITEMS, OTHER_WORDS):
        yield _doom(path, entry.words, [path], path)


def _of_run(config: PruneConfig, entry: Entry) -> Iterator[Doomed]:
    """A run that nothing would score; or of one that is kept, codes of other heads and checkpoints."""
    folder, locks = entry.path, (entry.path / runs.CONFIG, entry.path / runs.CODES)
    if entry.status == "busy":
        return
    unwanted = entry.state in (OTHER_ITEMS, FEATURES) or entry.status == "leftover"
    if unwanted or (config.gone and entry.status == "gone") or (config.unfinished and entry.status == "unfinished"):
        yield _doom(folder, entry.words, own_files(folder), *locks)
        return
    if entry.state == CODES:
        indexes = sorted(folder.glob("*.faiss"))
        yield _doom(folder / runs.CODES, entry.words, [folder / runs.CODES, *indexes], *locks)
    if entry.status in ("whole", "gone", "stale"):
        yield from _checkpoint(config, folder)


def _of_tuned(config: PruneConfig, entry: Entry, found: list[Entry], held: Holding) -> Iterator[Doomed]:
    """Tuned encoders that extract would refuse, unless there are features by them that are still good."""
    if entry.status == "unfinished" or entry.status == "leftover":
        if config.unfinished or entry.status == "leftover":
            yield _doom(entry.path, entry.words, own_files(entry.path), entry.path / runs.CONFIG)
    elif entry.state == OTHER_ITEMS:
        digest = str(entry.facts.get("digest"))
        good = {one.path.name for one in found if one.status == "whole"}
        if not any(name in good and made["recipe"].get("tuned") == digest for name, made in held.manifests.items()):
            yield _doom(entry.path, entry.words, own_files(entry.path), entry.path / runs.CONFIG)
    elif entry.status == "whole":
        yield from _checkpoint(config, entry.path)


def _checkpoint(config: PruneConfig, folder: Path) -> Iterator[Doomed]:
    """The checkpoint beside a finished training: of that very one, or of another one that is unfinished."""
    try:
        about, made = checkpoint(folder), runs.read_record(folder)
        finished = about is None or is_finished(about, made.get("recipe", made))
    except (CmrhashError, OSError, *BROKEN):
        return
    if finished or config.unfinished:
        why = "of a training that is finished" if finished else "unfinished, in place of a finished one"
        files = [path for name in CHECKPOINTS for path in folder.glob(name)]
        yield _doom(folder / runs.CHECKPOINT, why, files, folder / runs.CONFIG)


def _partials(held: Holding) -> Iterator[Doomed]:
    """What a killed process left of files that are written in one move."""
    why = "left behind by a killed process"
    for path in _files(held):
        if PARTIAL.fullmatch(path.name) and _age(path) > LEFT_BEHIND:
            yield _doom(path, why, [path])
    for folder in held.folder.glob(".*.part-*"):
        files = [path for path in folder.rglob("*") if not path.is_dir()]
        if DRAWING.fullmatch(folder.name) and all(_age(path) > LEFT_BEHIND for path in [folder, *files]):
            yield _doom(folder, why, files)


def _locks(held: Holding, taken: set[Path]) -> Iterator[Doomed]:
    """Lock files that nobody holds, those of the cache and those of the runs. taken: they go with what they lock."""
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
    """The files that lie where cmrhash writes."""
    tuned = run_folders(held.folder / runs.TUNED)
    models = [model for folder in tuned for model in folder.glob("text-*")]
    for folder in (held.folder, *tuned, *models, held.runs, *run_folders(held.runs)):
        yield from sorted(path for path in folder.glob("*") if path.is_file())


def _doom(what: Path | str, why: str, files: Iterable[Path], *locks: Path) -> Doomed:
    known = {}
    first = (runs.CONFIG, runs.CHECKPOINT)  # so that they never speak of files that are gone
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
    """Why a thing must not be deleted; "" if it may be."""
    for path, signature in one.files.items():
        if not any(_is_below(path, top) for top in tops):
            return f"{path} lies behind a link, or elsewhere"
        if not stat.S_ISREG(path.lstat().st_mode) or _signature(path) != signature:
            return f"{path} has changed meanwhile"
    return ""


def _is_below(path: Path, top: Path) -> bool:
    """Whether the way from one to the other has no link and no turn in it."""
    if not path.is_relative_to(top) or ".." in path.parts[len(top.parts) :]:
        return False
    way = [path, *path.parents][: len(path.parts) - len(top.parts)]
    return not any(part.is_symlink() for part in way)


def _unlink(path: Path) -> None:
    """Delete a file; a lock file only while it is held, and not if somebody else holds it by now."""
    match = LOCK.fullmatch(path.name)
    if match:
        remove_lock(path.with_name(match[1]))
    else:
        path.unlink()


def _remove_empty(folders: Iterable[Path], tops: Sequence[Path]) -> None:
    """Remove folders that hold nothing any more, and those above them."""
    for folder in folders:
        for each in (folder, *folder.parents):
            if not any(_is_below(each, top) and each != top for top in tops):
                break
            try:
                each.rmdir()
            except OSError:  # not empty
                break
