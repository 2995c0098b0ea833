"""Verification of cache and runs: digests of all files, and photos and captions against the features."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache as cached
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cmrhash.config import Progress, VerifyConfig
from cmrhash.data.items import ImageTextDataset
from cmrhash.data.photo_files import find_photo
from cmrhash.errors import CmrhashError, DamagedError, DataError, StaleError, UsageError
from cmrhash.features.captions import captions_of
from cmrhash.features.file import Features, read_features, source_digest
from cmrhash.features.images import DECODERS, photo_digest
from cmrhash.maintenance.folders import BROKEN
from cmrhash.maintenance.inventory import REMAKE, RESTART, Entry, Holding, checkpoint, entries, holdings, reason
from cmrhash.maintenance.states import EXIT_CODES, State
from cmrhash.storage.files import checked as checked_file
from cmrhash.storage.sealed import SHARD, check_frame, check_payload, read_manifest
from cmrhash.training import runs

EXTRACT = "run `extract` with `overwrite=True`"
EVAL = "delete it; `evaluate` creates it again"
NAMED = 3  # photos or captions that a message names

Photos = Callable[[], NDArray[np.uint8] | None]


@dataclass(frozen=True)
class Checked:
    """Result of the check of a file. status: as of an Entry; words: the state in words; fix: advice to the user."""

    path: Path
    status: str
    words: str
    fix: str = ""
    bytes: int = 0


def verify(
    config: VerifyConfig, cache: Path, out: Path, only: str | None = None, progress: Progress = lambda *_: None
) -> Iterator[Checked]:
    """Check every file, of all data sets or of the data set ``only``; each is read when its result is due.

    cache, out: the folders of all data sets and of all runs. Raises UsageError if there is nothing to verify.
    """
    found = [(held, list(entries(held))) for held in holdings(cache, out, only)]
    if not any(own for _, own in found):
        raise UsageError("nothing to verify", f"{cache} and {out}", "run `extract` first, or check `cache`")
    total = sum(entry.bytes for _, own in found for entry in own)
    done = 0
    for held, own in found:
        photos = cached(partial(_photos, held.dataset, progress)) if config.sources and held.dataset else None
        for entry in own:
            progress("MB read", done // 1_000_000, total // 1_000_000, str(entry.path))
            yield from _check(entry, held, photos)
            done += entry.bytes
    progress("MB read", total // 1_000_000, total // 1_000_000)


def exit_code(checked: Sequence[Checked]) -> int:
    """Exit code of the command: 6 if any file is damaged, else 4 if any is stale, else 0."""
    return max((EXIT_CODES.get(one.status, 0) for one in checked), default=0)


def _check(entry: Entry, held: Holding, photos: Photos | None) -> Iterator[Checked]:
    """Yield the results of an entry: one for a file, several for a run."""
    words = entry.detail if entry.state == entry.status else entry.words
    line = Checked(entry.path, entry.status, words, entry.fix, entry.bytes)
    part = entry.path.suffix == ".part"
    sealed = entry.path.suffix == ".h5" or entry.kind == "graph" or SHARD.fullmatch(entry.path.name)
    if entry.kind in ("run", "tuned"):
        yield replace(line, bytes=0)
        if entry.status != "busy":
            yield from _trained(entry)
    elif (part and entry.status == "unfinished") or (sealed and entry.status not in ("damaged", "foreign")):
        yield _file(line, entry, held, photos)
    else:
        yield line


# ---------------------------------------------------------------------------------------------- feature files


def _file(line: Checked, entry: Entry, held: Holding, photos: Photos | None) -> Checked:
    """Check a feature file, its words, the graph of an encoder, a shard or an unfinished file.

    The extraction that merges shards compares their sources; the one that resumes a file checks its rows.
    """
    again = "delete it and rerun the same `extract`"
    try:
        if line.path.suffix == ".part":
            again = "delete it, or run `extract` with `overwrite=True`"
            check_frame(line.path)
            return line
        if line.path.suffix != ".h5" or entry.status == "stale" or entry.kind == "words" or held.dataset is None:
            check_payload(line.path)
            return line
        features = read_features(line.path)
        stale = _differs(features, held.dataset, photos)
    except DataError:
        return replace(line, status=State.FOREIGN.status, words=State.FOREIGN.value)
    except StaleError:
        return line
    except (CmrhashError, OSError, *BROKEN) as error:
        return replace(line, status="damaged", words=reason(error), fix=again)
    if stale:
        return replace(line, status="stale", words=stale, fix=EXTRACT)
    root, compared = held.dataset.root, photos and entry.kind == "image" and not features.header.is_ready_made
    missing = compared and not root.is_dir()
    return replace(line, words=f"{line.words}, photos not compared: {root} is not there") if missing else line


def _differs(features: Features, dataset: ImageTextDataset, photos: Photos | None) -> str:
    """Describe which sources of a feature file have changed; "" if none has."""
    if features.ids != tuple(item.id for item in dataset.items):
        return State.ITEMS_CHANGED.value
    if photos is None or features.header.is_ready_made:
        return ""
    lang = features.header.view.lang
    if lang is None:
        digests = photos()
        return "" if digests is None else _compared("photos", features, dataset, digests)
    item, captions = captions_of(dataset, lang)
    if not np.array_equal(item, features.item):
        return "captions came or went"
    now = np.array([source_digest(caption.encode()) for caption in captions], np.uint8).reshape(-1, 16)
    return _compared("captions", features, dataset, now)


def _compared(what: str, features: Features, dataset: ImageTextDataset, now: NDArray[np.uint8]) -> str:
    differs = (features.source != now).any(1)
    gone = differs & ~now.any(1)  # no file, no digest
    parts = []
    for rows, word in ((differs & ~gone, "changed"), (gone, "gone")):
        if rows.any():
            ids = list(dict.fromkeys(dataset.items[at].id for at in features.item[rows].tolist()))
            names = ", ".join(ids[:NAMED]) + (", ..." if len(ids) > NAMED else "")
            parts.append(f"{rows.sum()} {what} {word} ({names})")
    return ", ".join(parts)


def _photos(dataset: ImageTextDataset, progress: Progress) -> NDArray[np.uint8] | None:
    """Digest every photo: (items, 16) uint8, zeros where there is no photo; None without the folder of photos."""
    if not dataset.root.is_dir():
        return None
    images = [item.image for item in dataset.items]
    digests = np.zeros((len(images), 16), np.uint8)
    with ThreadPoolExecutor(DECODERS) as pool:
        for row, digest in enumerate(pool.map(partial(_photo, dataset.root), images)):
            digests[row] = digest
            progress(f"{dataset.name} photos", row + 1, len(images))
    return digests


def _photo(root: Path, image: str | None) -> NDArray[np.uint8]:
    try:
        return photo_digest(find_photo(root, image) if image else None)
    except DataError:  # a link that leads out of the folder
        return photo_digest(None)


# ---------------------------------------------------------------------------------------------- runs


def _trained(entry: Entry) -> Iterator[Checked]:
    """Check the files of a run or of tuned encoders against their recorded sha256."""
    folder, codes = entry.path, entry.path / runs.CODES
    with suppress(CmrhashError, OSError, *BROKEN):  # the result of the folder reports them
        if about := checkpoint(folder):
            yield _digest(folder, about["file"], about["tensors_sha256"], RESTART)
        files: Mapping[str, str] = runs.read_record(folder)["files"]
        for name, digest in files.items():
            yield _digest(folder, name, digest, REMAKE[entry.kind])
        if not codes.exists():
            return
        line = Checked(codes, "whole", "whole", bytes=codes.stat().st_size)
        try:
            check_payload(codes)
            indexes: Mapping[str, str] = read_manifest(codes)["indexes"]
        except (CmrhashError, OSError, *BROKEN) as error:
            yield replace(line, status="damaged", words=reason(error), fix=EVAL)
            return
        yield line
        for name, digest in indexes.items():
            if (folder / name).exists():
                yield _digest(folder, name, digest, EVAL)


def _digest(folder: Path, name: str, digest: str, fix: str) -> Checked:
    path = folder / name
    try:
        return Checked(path, "whole", "whole", bytes=checked_file(folder, name, digest, fix).stat().st_size)
    except (DamagedError, OSError) as error:
        return Checked(path, "damaged", reason(error) if path.is_file() else "missing", fix)
