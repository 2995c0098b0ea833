"""Everything that cmrhash wrote, read again: digests of all files, and photos and captions against the features."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cmrhash.config import Progress, VerifyConfig
from cmrhash.data.items import ImageTextDataset, resolve_image
from cmrhash.errors import CmrhashError, DamagedError, DataError, StaleError, UsageError
from cmrhash.features.captions import captions_of
from cmrhash.features.file import Features, read_features, source_digest
from cmrhash.features.images import DECODERS, file_digest
from cmrhash.maintenance.inventory import ANEW, BROKEN, REMAKE, Entry, Holding, checkpoint, entries, holdings
from cmrhash.storage.files import checked as checked_file
from cmrhash.storage.sealed import SHARD, check_frame, check_payload, read_manifest
from cmrhash.training import runs

AGAIN = "run `extract` with `overwrite=True`"
EVAL = "delete it; `evaluate` creates it again"
NAMED = 3  # photos or captions that are named


@dataclass(frozen=True)
class Checked:
    """What a file was found to be. status: as of an Entry; words: the state in words; fix: what to do."""

    path: Path
    status: str
    words: str
    fix: str = ""
    bytes: int = 0


def verify(
    config: VerifyConfig, cache: Path, out: Path, only: str | None = None, progress: Progress = lambda *_: None
) -> Iterator[Checked]:
    """Look at every file, one after the other; the next one is read when it is asked for.

    cache, out: the folders of all data sets and of all runs; only: a data set. Raises UsageError if there is nothing.
    """
    found = [(held, list(entries(held))) for held in holdings(cache, out, only)]
    if not any(own for _, own in found):
        raise UsageError("nothing to verify", f"{cache} and {out}", "run `extract` first, or check `cache`")
    total = sum(entry.bytes for _, own in found for entry in own)
    done = 0
    for held, own in found:
        photos = _Photos(held.dataset, progress) if config.sources and held.dataset else None
        for entry in own:
            progress("MB read", done // 1_000_000, total // 1_000_000, str(entry.path))
            yield from _check(entry, held, photos)
            done += entry.bytes
    progress("MB read", total // 1_000_000, total // 1_000_000)


def exit_code(checked: Sequence[Checked]) -> int:
    """That of the command: 6 if anything is damaged, else 4 if anything is stale, else 0."""
    found = {one.status for one in checked}
    return DamagedError.exit_code if "damaged" in found else StaleError.exit_code if "stale" in found else 0


def _check(entry: Entry, held: Holding, photos: _Photos | None) -> Iterator[Checked]:
    """The lines of an entry: one of a file, several of a run."""
    words = entry.detail if entry.state == entry.status else entry.words
    line = Checked(entry.path, entry.status, words, entry.fix, entry.bytes)
    if entry.kind in ("run", "tuned"):
        yield replace(line, bytes=0)
        if entry.status != "busy":
            yield from _trained(entry)
    elif entry.path.suffix == ".part" and entry.status == "unfinished":
        yield _part(line)
    elif _is_sealed(entry.path) and entry.status in ("whole", "stale", "busy", "unfinished"):
        yield _sealed(line, entry, held, photos)
    else:
        yield line


# ---------------------------------------------------------------------------------------------- feature files


def _is_sealed(path: Path) -> bool:
    return path.suffix == ".h5" or SHARD.fullmatch(path.name) is not None


def _sealed(line: Checked, entry: Entry, held: Holding, photos: _Photos | None) -> Checked:
    """A feature file, the words of one, or a shard, whose sources the extract that merges it has compared."""
    try:
        shard = entry.path.suffix != ".h5"
        if shard or entry.status == "stale" or entry.kind == "words" or held.dataset is None:
            check_payload(entry.path)
            return line
        features = read_features(entry.path)
        stale = _differs(features, held.dataset, photos)
    except DataError:
        return replace(line, status="foreign", words="not of cmrhash")
    except StaleError:
        return line
    except (CmrhashError, OSError, *BROKEN) as error:
        return _damaged(line, error, "delete it and rerun the same `extract`")
    missing = photos and entry.kind == "image" and not features.header.is_ready_made and not photos.there
    note = f", photos not compared: {held.dataset.root} is not there" if missing else ""
    return replace(line, status="stale", words=stale, fix=AGAIN) if stale else replace(line, words=line.words + note)


def _part(line: Checked) -> Checked:
    """An unfinished file; its rows are checked against their records by the extract that goes on with it."""
    try:
        check_frame(line.path)
    except (CmrhashError, OSError, *BROKEN) as error:
        return _damaged(line, error, "delete it, or run `extract` with `overwrite=True`")
    return line


def _differs(features: Features, dataset: ImageTextDataset, photos: _Photos | None) -> str:
    """What a feature file was made from and is not any more, in words; "" if all is as it was."""
    if features.ids != tuple(item.id for item in dataset.items):
        return "items changed"
    if photos is None or features.header.is_ready_made:
        return ""
    lang = features.header.view.lang
    if lang is None:
        return _compared("photos", features, dataset, photos.digests()) if photos.there else ""
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


class _Photos:
    """The photos of a data set, read once however many feature files are of them."""

    def __init__(self, dataset: ImageTextDataset, progress: Progress) -> None:
        self.dataset, self.progress = dataset, progress
        self.there = dataset.root.is_dir()
        self._digests: NDArray[np.uint8] | None = None

    def digests(self) -> NDArray[np.uint8]:
        """(items, 16) uint8, zeros where there is no photo."""
        if self._digests is None:
            items = self.dataset.items
            self._digests = np.zeros((len(items), 16), np.uint8)
            with ThreadPoolExecutor(DECODERS) as pool:
                for row, digest in enumerate(pool.map(self._digest, [item.image for item in items])):
                    self._digests[row] = digest
                    self.progress(f"{self.dataset.name} photos", row + 1, len(items))
        return self._digests

    def _digest(self, image: str | None) -> NDArray[np.uint8]:
        try:
            return file_digest(resolve_image(self.dataset.root, image) if image else None)
        except DataError:  # a link that leads out of the folder
            return file_digest(None)


# ---------------------------------------------------------------------------------------------- runs


def _trained(entry: Entry) -> Iterator[Checked]:
    """The files of a run, or of tuned encoders, against their recorded sha256."""
    folder = entry.path
    try:
        about = checkpoint(folder)
        if about:
            yield _digest(folder, about["file"], about["tensors_sha256"], ANEW)
        if not (folder / runs.CONFIG).exists():
            return
        files: Mapping[str, str] = runs.read_record(folder)["files"]
    except (CmrhashError, OSError, *BROKEN):
        return  # the line of the folder says so
    for name, digest in files.items():
        yield _digest(folder, name, digest, REMAKE[entry.kind])
    if not (folder / runs.CODES).exists():
        return
    codes = Checked(folder / runs.CODES, "whole", "whole", bytes=(folder / runs.CODES).stat().st_size)
    try:
        check_payload(folder / runs.CODES)
        indexes: Mapping[str, str] = read_manifest(folder / runs.CODES)["indexes"]
    except (CmrhashError, OSError, *BROKEN) as error:
        yield _damaged(codes, error, EVAL)
        return
    yield codes
    for name, digest in indexes.items():
        if (folder / name).exists():
            yield _digest(folder, name, digest, EVAL)


def _digest(folder: Path, name: str, digest: str, fix: str) -> Checked:
    path = folder / name
    try:
        return Checked(path, "whole", "whole", bytes=checked_file(folder, name, digest, fix).stat().st_size)
    except DamagedError as error:
        return Checked(path, "damaged", error.what if path.is_file() else "missing", fix)
    except OSError as error:
        return Checked(path, "damaged", (error.strerror or str(error)).lower(), fix)


def _damaged(line: Checked, error: Exception, fix: str) -> Checked:
    words = error.what if isinstance(error, CmrhashError) else str(error) or "not what cmrhash writes"
    return replace(line, status="damaged", words=words, fix=fix)
