"""A new extraction of a data set: complete beside the present one before it takes its place in one step.

Until then every command finds the present items, features and tuned encoders, whatever ends the process. The same
command resumes what a killed one has prepared (``data.switch``).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from cmrhash.compute import processes
from cmrhash.config import ExtractConfig
from cmrhash.data import manifest, switch
from cmrhash.data.items import ImageTextDataset
from cmrhash.errors import DamagedError, LockedError, StaleError, UsageError
from cmrhash.features.graph_files import GRAPH_FILE
from cmrhash.storage.files import drop_lock, locked, remove
from cmrhash.storage.recipes import fingerprint

if TYPE_CHECKING:
    from cmrhash.features.extract import Extraction

    E = TypeVar("E", bound=Extraction)

REFUSED = (StaleError, DamagedError, UsageError)


def replacing(config: ExtractConfig, dataset: ImageTextDataset) -> bool:
    """Whether an extraction of these items replaces another one: with ``overwrite``, or of other items."""
    folder = config.cache / dataset.name
    found = (folder / manifest.ABOUT).exists() and any(folder.glob("*.h5"))
    other = found and (
        config.overwrite or manifest.read_about(folder)["items_sha256"] != manifest.items_digest(dataset)
    )
    processes.agree(f"data set in {folder}", bytes([other]))
    return other


def replaced(
    config: ExtractConfig,
    dataset: ImageTextDataset,
    made_of: Mapping[str, Any],
    work: Callable[[ExtractConfig], E],
    whole: Callable[[E], tuple[str, ...]] = lambda _: (),
) -> E:
    """Extract beside the present data set, then put the result in its place; shards wait for the last one.

    made_of: all that determines the result besides the items. work: extracts into the cache of the config that it gets.
    whole: folders below that of the data set of which no old file stays. What a killed process has prepared of the same
    is used, unless it is damaged or its photos have changed.
    """
    folder = config.cache / dataset.name
    purpose = fingerprint({"items": manifest.items_digest(dataset), "overwrite": config.overwrite, **made_of})
    beside = replace(config, cache=folder / switch.NEXT, overwrite=False)
    switch.settle(folder)
    switch.refuse_busy(folder.glob(".*.h5.lock"))
    with _alone(config, folder) as alone:
        with processes.first(), locked(folder / switch.CHANGE, wait=True):
            begun = switch.begun(folder, purpose) is not None
            if not begun:
                _start(config, dataset, purpose)
        while True:
            try:
                done = work(beside)
                break
            except REFUSED:
                if alone or (processes.world() > 1 and not processes.rank()):
                    switch.clear(folder)
                if not (alone and begun):
                    raise
                begun = False
                _start(config, dataset, purpose)
            except FileNotFoundError:
                if config.shard is None or _is_prepared(folder):
                    raise
                return work(replace(config, overwrite=False))  # the process of another shard has finished it
        if not processes.rank() and not _is_prepared(folder):
            return work(replace(config, overwrite=False))
        if not processes.rank() and not any(file.missing for file in done.files):
            switch.refuse_busy(folder.glob(".*.h5.lock"))
            switch.switch(folder, (), whole(done), brief=True)
            _drop_parts(folder, done)
        return _named(done, folder)


@contextlib.contextmanager
def _alone(config: ExtractConfig, folder: Path) -> Iterator[bool]:
    """Hold the lock of changes, unless several processes share the extraction; yields whether none do."""
    if config.shard is not None or processes.world() > 1:
        yield False
        return
    with locked(folder / switch.NEXT):
        yield True
        drop_lock(folder / switch.NEXT)


def _start(config: ExtractConfig, dataset: ImageTextDataset, purpose: str) -> None:
    """Prepare the folder; unless they are overwritten, it shares the present features, whose rows are used again."""
    folder = config.cache / dataset.name
    names = [path.name for path in folder.glob("graph-*") if GRAPH_FILE.fullmatch(path.name)]
    names += [manifest.QUARANTINE] * (folder / manifest.QUARANTINE).exists()
    if not config.overwrite:
        names += [path.name for path in folder.glob("*.h5")]
    manifest.keep(dataset, switch.start(folder, names, purpose))


def _is_prepared(folder: Path) -> bool:
    return (folder / switch.NEXT / folder.name / manifest.ABOUT).exists()


def _drop_parts(folder: Path, done: Extraction) -> None:
    """Remove unfinished files of what was replaced, unless another process writes them."""
    for name in (manifest.QUARANTINE, *(file.path.name for file in done.files)):
        path = folder / name
        if (part := path.with_name(f"{path.name}.part")).exists():
            with contextlib.suppress(LockedError), locked(path):
                remove(part)


def _named(done: E, folder: Path) -> E:
    """The report, with the paths of the data set's folder."""
    done.folder = folder
    for file in done.files:
        if not file.missing:
            file.path = folder / file.path.name
    return done
