"""Feature files of a changed collection, prepared beside the present ones by the encoders that made these."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from cmrhash.config import READY, STORE_DTYPE, TORCH, ExtractConfig, Progress
from cmrhash.data import manifest, switch
from cmrhash.data.changes import Changes
from cmrhash.data.items import ImageTextDataset, Item, Ready
from cmrhash.data.view import View
from cmrhash.errors import UsageError
from cmrhash.features.captions import load_words, words_path
from cmrhash.features.dataset import ExtractedDataset
from cmrhash.features.extract import Opened, extract
from cmrhash.features.file import FeatureHeader, read_features
from cmrhash.features.graph_files import GRAPH_FILE
from cmrhash.features.outcome import Extracted
from cmrhash.features.stored import StoredEncoder

Opener = Callable[[FeatureHeader], Any]  # feature file -> the encoder that made it


def open_needed(data: ExtractedDataset, new: Sequence[Item], opener: Opener) -> dict[Path, Any]:
    """Open the encoder of each feature file in which new items have a row, by path, before anything is written.

    Raises UsageError for ready-made features, and as ``opener`` does.
    """
    opened = {}
    for view, headers in data.present().items():
        if any(item.image if view.is_image else item.texts.get(str(view.lang)) for item in new):
            for header in headers:
                if header.is_ready_made:
                    what = (
                        f"the {view} features of '{data.name}' are ready-made: no encoder can make those of new items"
                    )
                    raise UsageError(what, header.path, "add their rows to the feature file and run `extract`")
                opened[header.path] = opener(header)
    return opened


def prepare(
    data: ExtractedDataset,
    dataset: ImageTextDataset,
    changes: Changes,
    opened: Mapping[Path, Any],
    device: str,
    progress: Progress,
) -> list[Extracted]:
    """Write items and features of the changed collection beside the present ones; resume after a kill.

    dataset: the changed collection; opened: encoders, as ``open_needed`` gives them. Every feature file of the present
    items gets a new one. Rows of items that stay are copied, new photos and captions are encoded.
    """
    aside, progress = _start(data, dataset), _of_new(progress, dataset, changes)
    files = []
    for headers in _turns(data.present()):
        ready = {header.view: _kept(header, dataset) for header in headers if header.is_ready_made}
        stored = {header.view: _encoder(header, opened.get(header.path)) for header in headers}
        image = None if View.IMAGE in ready else stored.pop(View.IMAGE, None)
        texts = {str(view.lang): encoder for view, encoder in stored.items() if view not in ready and view.lang}
        langs = [str(header.view.lang) for header in headers if header.view.lang]
        batch = next((h.made_with["batch"] for h in headers if "batch" in h.made_with), ExtractConfig.image_batch)
        config = ExtractConfig(cache=aside.parent, device=device, image_batch=batch, runtime=TORCH)
        each = Opened(replace(dataset, ready=ready), langs, image, texts, changes)
        files += extract(config, progress, each).files
    return files


def _of_new(progress: Progress, dataset: ImageTextDataset, changes: Changes) -> Progress:
    """Progress over rows as progress over those of new items, which come last; over copied rows if there are none."""
    there = dataset.items[: len(dataset.items) - len(changes.new)]
    known = {"images": len(there)}
    known |= {f"{lang} texts": sum(len(item.texts.get(lang, ())) for item in there) for lang in dataset.languages}

    def shown(what: str, done: int, total: int, note: str = "") -> None:
        if what not in known:
            progress(what, done, total, note)
        elif not changes.new:
            progress(f"{what} copied", done, total, note)
        elif new := total - known[what]:
            progress(f"new {what}", max(0, done - known[what]), new, note)

    return shown


def _start(data: ExtractedDataset, dataset: ImageTextDataset) -> Path:
    """Folder of the changed collection: that of a killed call with the same items, or a new one."""
    purpose = manifest.items_digest(dataset)
    if begun := switch.begun(data.folder, purpose):
        return begun
    headers = [header for of_view in data.present().values() for header in of_view]
    names = [header.path.name for header in headers]
    names += [path.name for header in headers if (path := words_path(header.path)).exists() and header.view.lang]
    names += [path.name for path in data.folder.glob("graph-*") if GRAPH_FILE.fullmatch(path.name)]
    names += [manifest.QUARANTINE] * (data.folder / manifest.QUARANTINE).exists()
    aside = switch.start(data.folder, names, purpose)
    manifest.keep(dataset, aside)
    return aside


def _turns(present: Mapping[View, list[FeatureHeader]]) -> Iterator[list[FeatureHeader]]:
    """Feature files by turns, of which each has one file of a view."""
    for turn in range(max(map(len, present.values()), default=0)):
        yield [headers[turn] for headers in present.values() if turn < len(headers)]


def _encoder(header: FeatureHeader, opened: Any) -> Any:
    """The encoder of a feature file; one that has learned its words is opened in any case, for its own file."""
    if header.view.lang and words_path(header.path).exists():
        words = load_words(header.path)
        words.recipe |= {key: value for key, value in header.recipe.items() if key == STORE_DTYPE}
        return words
    return StoredEncoder.of(header, opened)


def _kept(header: FeatureHeader, dataset: ImageTextDataset) -> Ready:
    """Ready-made features of the items that stay."""
    features = read_features(header.path, header)
    place = {item.id: n for n, item in enumerate(dataset.items)}
    item = np.array([place.get(ident, -1) for ident in features.ids], np.int32)[features.item]
    x = features.x.copy()
    x[~features.valid] = np.nan  # again not valid
    rows = np.flatnonzero(item >= 0)
    rows = rows[np.argsort(item[rows], kind="stable")]
    digest = str(header.recipe["weights_sha256"])
    assert header.weights == READY
    return Ready(header.encoder, header.source, x[rows], item[rows], digest)
