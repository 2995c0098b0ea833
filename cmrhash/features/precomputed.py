"""Ready-made features of a view -> a feature file in the format of extracted features."""

from __future__ import annotations

import hashlib
import mmap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cmrhash.config import READY, ExtractConfig, Progress
from cmrhash.data.items import ImageTextDataset, ids_digest
from cmrhash.data.view import View
from cmrhash.features.file import source_digest
from cmrhash.features.outcome import CODE, FeaturePart, made_with, storage_of
from cmrhash.features.shards import OF_CORPUS, Shard, Target

READY_BLOCK = 1024  # rows per commit
BROKEN = {"code": "non-finite", "path": "", "reason": "its ready-made features are not finite as float32"}


def extract_ready(
    dataset: ImageTextDataset, view: View, folder: Path, config: ExtractConfig, shard: Shard, progress: Progress
) -> FeaturePart:
    """Write ``<view>-<name>.h5`` from ready-made features, or find it finished.

    Each item has one row, or those that the features name; a row that is not finite becomes zeros and not valid. The
    recipe holds the sha256 of the rows: raises StaleError if a file of this name holds other features.
    """
    start, own = time.monotonic(), dataset.ready[view]
    path = folder / view.feature_file(own.name)
    recipe = ready_recipe(dataset, view, config)
    item = np.arange(len(dataset.items), dtype=np.int32) if own.item is None else own.item
    ids = tuple(i.id for i in dataset.items)
    target = Target(path, item, ids, own.x.shape[1], recipe, READY_BLOCK, shard, config.overwrite, None, OF_CORPUS)
    fresh = not target.found()
    if fresh:
        with target.writer() as writer:
            for block, x in enumerate(_blocks(own.x[target.rows])):
                if block not in writer.done:
                    source = np.stack([source_digest(row.tobytes()) for row in x])
                    valid = np.asarray(np.isfinite(x).all(1))
                    x[~valid] = 0
                    writer.commit(block, x, valid, source)
                progress(f"{view} features", writer.slice(block).stop, writer.rows)
            target.seal(writer, made_with(source=own.source))
    return FeaturePart(target, view, time.monotonic() - start, fresh, lambda _: BROKEN)


def ready_recipe(dataset: ImageTextDataset, view: View, config: ExtractConfig) -> dict[str, Any]:
    """All that determines the file of ready-made features."""
    own = dataset.ready[view]
    made_by = {"encoder": own.name, "weights": READY, "weights_sha256": own.sha256 or _digest(own.x)}
    lang = {} if view.is_image else {"lang": view.lang}
    return {"kind": view.kind, "code": CODE, "items": ids_digest(dataset), **lang, **storage_of(config), **made_by}


def _digest(x: NDArray[Any]) -> str:
    digest = hashlib.sha256()
    for block in _blocks(x):
        digest.update(block.tobytes())
    return digest.hexdigest()


def _blocks(x: NDArray[Any]) -> Iterator[NDArray[np.float32]]:
    """Yield blocks of READY_BLOCK rows as float32 copies; values beyond float32 become infinite."""
    for first in range(0, len(x), READY_BLOCK):
        with np.errstate(over="ignore"):
            yield np.array(x[first : first + READY_BLOCK], np.float32, order="C")
        _release_pages(x)


def _release_pages(x: NDArray[Any]) -> None:
    """Release a mapped file's pages from this process's memory, where the system can."""
    base: Any = x
    while isinstance(base, np.ndarray):
        base = base.base
    if isinstance(base, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        base.madvise(mmap.MADV_DONTNEED)
