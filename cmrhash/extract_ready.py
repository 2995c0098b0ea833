"""Ready-made features of a view -> one feature file, of the same form as those that an encoder fills."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cmrhash.cache import FeatureWriter, read_features, source_digest
from cmrhash.config import READY, ExtractConfig
from cmrhash.data.dataset import ImageTextDataset, ids_digest
from cmrhash.extracted import CODE, Extracted, Progress, made_with, still_good

READY_BLOCK = 1024  # rows a commit
BROKEN = {"code": "non-finite", "path": "", "reason": "its ready-made features are not finite as float32"}


def extract_ready(
    dataset: ImageTextDataset, view: str, folder: Path, config: ExtractConfig, progress: Progress
) -> Extracted:
    """Write ``<view>-<name>.h5``, or find it there; one row an item, zeros and not valid where a row is not finite.

    A file of other features under the same name is refused with StaleError: the recipe holds the sha256 of the rows.
    """
    start, own = time.monotonic(), dataset.ready[view]
    kind, _, lang = view.partition("-")
    path = folder / f"{view}-{own.name}.h5"
    digest = hashlib.sha256()
    for x in _blocks(own.x):
        digest.update(x.tobytes())
    made_by = {"encoder": own.name, "weights": READY, "weights_sha256": digest.hexdigest()}
    recipe = {"kind": kind, "code": CODE, "items": ids_digest(dataset), **({"lang": lang} if lang else {}), **made_by}
    there = still_good(path, recipe, config.overwrite)
    fresh, rows = there is None, len(dataset.items)
    if there is None:
        item, ids = np.arange(rows, dtype=np.int32), tuple(i.id for i in dataset.items)
        with FeatureWriter(path, item, ids, own.x.shape[1], recipe, READY_BLOCK, config.overwrite) as writer:
            for block, x in enumerate(_blocks(own.x)):
                if block not in writer.done:
                    source = np.stack([source_digest(row.tobytes()) for row in x])
                    valid = np.asarray(np.isfinite(x).all(1))
                    x[~valid] = 0
                    writer.commit(block, x, valid, source)
                progress(f"{view} features", writer.slice(block).stop, rows)
            writer.seal(made_with(torch.device("cpu"), source=own.source))
        there = read_features(path)
    stage = lang or kind
    bad = [{"id": dataset.items[row].id, "stage": stage, **BROKEN} for row in np.flatnonzero(~there.valid)]
    return Extracted(path, stage, rows, rows, rows - len(bad), time.monotonic() - start, fresh, bad)


def _blocks(x: NDArray[Any]) -> Iterator[NDArray[np.float32]]:
    """READY_BLOCK rows after the other as float32, each its own copy; what float32 cannot hold becomes infinite."""
    for first in range(0, len(x), READY_BLOCK):
        with np.errstate(over="ignore"):
            yield np.array(x[first : first + READY_BLOCK], np.float32, order="C")
