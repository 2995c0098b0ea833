"""Fine-tuning task: training items, validation probes, pixels and word pieces."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cmrhash.compute import processes
from cmrhash.config import Progress
from cmrhash.data.items import ImageTextDataset
from cmrhash.data.photo_files import find_photo
from cmrhash.data.view import View
from cmrhash.encoders.image import ImageEncoder
from cmrhash.encoders.text import TextEncoder
from cmrhash.errors import DataError
from cmrhash.features.images import Loaded, load_image, photo_digest
from cmrhash.training.task import Probes, Rows, asked_rows, labels_of, train_items, val_probes

JUDGES = 1000  # limit of val queries, and of database items, that judge an epoch
MEMORY = 2 * 2**30  # bytes of decoded crops to keep at most
BLOCK = 256  # images per batch of the first pass
AHEAD = 2  # batches to decode ahead

Items = NDArray[np.int64]


class Photos:
    """Crops of the items' images, decoded by threads ahead of the batches.

    The crops stay in memory if all of them fit into MEMORY. items: (n,) int64, ascending. Of several processes each
    decodes its part of the files first, and other files only when its batches need them.
    """

    def __init__(self, dataset: ImageTextDataset, items: Items, encoder: ImageEncoder, pool: ThreadPoolExecutor):
        self.items, self.encoder, self.pool = items, encoder, pool
        named = {row: dataset.items[row].image for row in items.tolist()}
        self.files = {row: find_photo(dataset.root, image) for row, image in named.items() if image}
        self.kept: NDArray[np.uint8] | None = None  # (n, S, S, 3)
        self.there = np.zeros(len(items), bool)  # (n,) whether ``kept`` has the crop

    def digest(self) -> str:
        """SHA-256 over the digests of all image files."""
        files = list(self.files.values())
        own = [digest.tobytes() for digest in self.pool.map(photo_digest, files[processes.part(len(files))])]
        digests = (
            torch.frombuffer(bytearray(b"".join(own)), dtype=torch.uint8) if own else torch.empty(0, dtype=torch.uint8)
        )
        every = processes.gather(digests, [16 * count for count in processes.counts(len(files))])
        return hashlib.sha256(every.numpy().tobytes()).hexdigest()

    def look(self, progress: Progress) -> NDArray[np.bool_]:
        """Decode every image once; returns which images are usable, (n,) bool."""
        size, count = self.encoder.crop.size, len(self.items)
        if count * size * size * 3 <= MEMORY:
            self.kept = np.zeros((count, size, size, 3), np.uint8)
        usable = np.zeros(count, bool)
        own = processes.part(count)
        progress("photos", 0, own.stop - own.start)
        blocks = [range(first, min(first + BLOCK, own.stop)) for first in range(own.start, own.stop, BLOCK)]
        decoded = self._decoded(self.items[block.start : block.stop].tolist() for block in blocks)
        for block, loaded in zip(blocks, decoded, strict=True):
            for at, (_, pixels) in zip(block, loaded, strict=True):
                usable[at] = pixels is not None
                if pixels is not None and self.kept is not None:
                    self.kept[at], self.there[at] = pixels, True
            progress("photos", block.stop - own.start, own.stop - own.start)
        return processes.gather(torch.from_numpy(usable[own]), processes.counts(count)).numpy()

    def batches(self, batches: Sequence[Items]) -> Iterator[NDArray[np.uint8]]:
        """Yield the pixels (B, S, S, 3) uint8 of each batch of items (B,).

        Raises DataError if an image can no longer be read.
        """
        places = [np.searchsorted(self.items, batch) for batch in batches]
        absent = [place[~self.there[place]] for place in places]
        decoded = self._decoded(self.items[some].tolist() for some in absent)
        for place, some, loaded in zip(places, absent, decoded, strict=True):
            pixels = [image for _, image in loaded if image is not None]
            if len(pixels) < len(some):
                raise DataError(
                    "an image was removed or changed during the run", self.files[int(self.items[some[0]])].path.parent
                )
            if self.kept is None:
                yield np.stack(pixels)
                continue
            for at, image in zip(some, pixels, strict=True):
                self.kept[at], self.there[at] = image, True
            yield self.kept[place]

    def _decoded(self, batches: Iterable[list[int]]) -> Iterator[list[Loaded]]:
        """Yield the decoded batches in order while threads decode the next ones."""
        waiting: deque[list[Future[Loaded]]] = deque()
        try:
            for batch in batches:
                waiting.append([self.pool.submit(load_image, self.files[row], self.encoder) for row in batch])
                if len(waiting) > AHEAD:
                    yield [future.result() for future in waiting.popleft()]
            while waiting:
                yield [future.result() for future in waiting.popleft()]
        finally:
            for future in (future for batch in waiting for future in batch):
                future.cancel()


@dataclass
class TuneTask:
    """Inputs of a fine-tuning.

    texts: language -> encoder, the same object where languages share one. train: (n,) int64 items. labels: (n, classes)
    float32 of these on the device, None for relevance by pairs. rows: images of the judges and all captions, which the
    probes refer to. pieces: language -> item -> word-piece ids of each caption.
    """

    dataset: ImageTextDataset
    image: ImageEncoder
    texts: dict[str, TextEncoder]
    train: Items
    labels: Tensor | None
    rows: Rows
    probes: Probes | None
    photos: Photos
    pieces: dict[str, dict[int, list[list[int]]]]

    def encoders(self) -> dict[View, ImageEncoder | TextEncoder]:
        """Distinct encoders, each under its first view."""
        first: dict[View, ImageEncoder | TextEncoder] = {View.IMAGE: self.image}
        for lang, encoder in self.texts.items():
            if all(encoder is not other for other in first.values()):
                first[View.text(lang)] = encoder
        return first


@dataclass
class Choice:
    """Items selected from the data set, before any image is opened."""

    dataset: ImageTextDataset
    rows: Rows
    train: Items
    judges: Items  # of the probes


def choose(dataset: ImageTextDataset, langs: list[str]) -> Choice:
    """Select training items as ``task.prepare`` does, and items that judge the epochs.

    Judges are val items, and database items spread evenly over the data set: at most JUDGES of each and no more than
    training items, so that a judgement (a forward pass) costs less than an epoch. Raises DataError if there is nothing
    to train on.
    """
    rows: Rows = {View.IMAGE: np.flatnonzero([item.image is not None for item in dataset.items])}
    for lang in langs:
        counts = [len(item.texts.get(lang, ())) for item in dataset.items]
        rows[View.text(lang)] = np.repeat(np.arange(len(counts)), counts)
    train = train_items(dataset, rows, dataset.root)
    probes = val_probes(dataset, langs, rows, min(JUDGES, len(train)))
    judges = [rows[view][asked_rows(probes, view)] for view in rows] if probes else []
    return Choice(dataset, rows, train, np.unique(np.concatenate([train[:0], *judges])))


def open_task(
    choice: Choice, image: ImageEncoder, texts: dict[str, TextEncoder], photos: Photos, progress: Progress
) -> TuneTask:
    """Decode the images once, drop items with broken images and tokenize the captions."""
    dataset, langs = choice.dataset, list(texts)
    broken = photos.items[~photos.look(progress)]
    usable = {**choice.rows, View.IMAGE: np.setdiff1d(choice.rows[View.IMAGE], broken)}
    train = train_items(dataset, usable, dataset.root)
    rows = {**choice.rows, View.IMAGE: np.setdiff1d(choice.judges, broken)}
    probes = val_probes(dataset, langs, rows)
    pieces: dict[str, dict[int, list[list[int]]]] = {}
    for lang, encoder in texts.items():
        of = [(row, text) for row in photos.items.tolist() for text in dataset.items[row].texts.get(lang, ())]
        pieces[lang] = {}
        for (row, _), ids in zip(of, encoder.pieces([text for _, text in of]), strict=True):
            pieces[lang].setdefault(row, []).append(ids)
    return TuneTask(dataset, image, texts, train, labels_of(dataset, train, image.device), rows, probes, photos, pieces)
