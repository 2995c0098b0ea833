"""Outcome of an extraction: counts and quarantined items of a feature file."""

from __future__ import annotations

import importlib.metadata
import logging
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cmrhash.config import ONNX, STORE_DTYPE, STORE_DTYPES, TORCH, ExtractConfig, Progress
from cmrhash.data.view import View
from cmrhash.features.shards import Target

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

CODE = 1  # increase it when a change of this package changes the features of an unchanged recipe

# fields of a feature recipe that do not describe its encoder
OF_DATA = ("kind", "lang", "code", "items", STORE_DTYPE)


def storage_of(config: ExtractConfig) -> dict[str, str]:
    """Field of a recipe for the dtype on disk; none for float32, so that recipes of version 0.1 stay the same."""
    return {STORE_DTYPE: config.store_dtype} if config.store_dtype != STORE_DTYPES[0] else {}


@dataclass
class Extracted:
    """Outcome of extracting one feature file; items = ok + absent + broken, the latter two in ``quarantine``.

    absent: items without such a photo or text; broken: items whose files or features cannot be used; missing: shards to
    come. Until they are finished, path and counts describe this process's shard and ``quarantine`` is empty.
    """

    path: Path
    view: View
    items: int
    rows: int
    ok: int
    seconds: float
    fresh: bool  # False: the file existed already
    quarantine: list[dict[str, str]] = field(default_factory=list)
    missing: tuple[int, ...] = ()

    @property
    def absent(self) -> int:
        """Number of items that have no such photo or text."""
        return sum(entry["code"] in ("no-image", "no-text") for entry in self.quarantine)

    @property
    def broken(self) -> int:
        """Number of items whose photo, text or features cannot be used."""
        return len(self.quarantine) - self.absent


@dataclass
class FeaturePart:
    """A sealed feature file, or this process's shard of it.

    reason: item without features -> code, path and reason. beside: writes the files that accompany the whole file.
    """

    target: Target
    view: View
    seconds: float
    fresh: bool
    reason: Callable[[int], dict[str, str]]
    beside: Callable[[], None] = lambda: None

    def finish(self, progress: Progress) -> Extracted:
        """Merge the shards if all are finished, and account for every item."""
        start, target = time.monotonic(), self.target
        was_whole = target.whole
        target.merge(self.beside, lambda done, total: progress(f"{target.path.name} merged", done, total))
        item = target.item if target.whole else target.item[target.rows]
        items = np.arange(len(target.ids)) if target.whole else np.unique(item)
        has = np.zeros(len(target.ids), bool)
        has[item[target.valid]] = True
        lacking = np.flatnonzero(~has).tolist() if target.whole else []
        state = "encoded" if self.fresh else "already complete"
        log.info("%s: %s, %d rows, %d items without features", target.path, state, len(item), len(lacking))
        return Extracted(
            target.path if target.whole else target.own,
            self.view,
            len(items),
            len(item),
            int(has.sum()),
            self.seconds + time.monotonic() - start,
            self.fresh or target.whole > was_whole,
            [{"id": target.ids[n], "stage": self.view.short, **self.reason(n)} for n in lacking],
            target.missing,
        )


def made_with(device: torch.device | None = None, runtime: str = TORCH, **more: Any) -> dict[str, Any]:
    """Versions and device (None: the CPU), recorded but never compared, since they change only last digits."""
    packages = ["cmrhash", "torch", "torchvision", "transformers", "pillow", *["onnxruntime"] * (runtime == ONNX)]
    versions = {package: importlib.metadata.version(package) for package in packages}
    kind, name = "cpu" if device is None else device.type, platform.machine()
    if kind == "cuda":
        import torch

        name = torch.cuda.get_device_name(device)
    return {**versions, "device": f"{kind} {name}", **more}
