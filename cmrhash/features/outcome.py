"""What images and captions share on their way into the cache: what becomes of a feature file, and its account."""

from __future__ import annotations

import importlib.metadata
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cmrhash.data.view import View
from cmrhash.features.shards import Target

CODE = 1  # raised when a change of this package changes the features of an unchanged recipe

Progress = Callable[..., None]  # (what, done, total[, note])


@dataclass
class Extracted:
    """One feature file as ``extract`` leaves it.

    items = ok + quarantined. bad: how many of these are broken files or features
    rather than parts that the data set does not have. missing: shards that are not there yet; until they are, path and
    counts are those of this process's shard, and nobody has been quarantined.
    """

    path: Path
    view: View
    items: int
    rows: int
    ok: int
    seconds: float
    fresh: bool  # False: it was there already
    quarantine: list[dict[str, str]] = field(default_factory=list)
    missing: tuple[int, ...] = ()

    @property
    def bad(self) -> int:
        """Broken, as opposed to missing."""
        return sum(entry["code"] not in ("no-image", "no-text") for entry in self.quarantine)


@dataclass
class FeaturePart:
    """A feature file, or this process's shard of it, once it is sealed.

    reason: item -> code, path and reason of one that has no features. beside: writes what lies beside the whole file.
    """

    target: Target
    view: View
    seconds: float
    fresh: bool
    reason: Callable[[int], dict[str, str]]
    beside: Callable[[], None] = lambda: None

    def finish(self, progress: Progress) -> Extracted:
        """Merge the shards if this is the last one, and give account of every item."""
        start, target = time.monotonic(), self.target
        was_whole = target.whole
        target.merge(self.beside, lambda done, total: progress(f"{target.path.name} merged", done, total))
        item = target.item if target.whole else target.item[target.rows]
        items = np.arange(len(target.ids)) if target.whole else np.unique(item)
        has = np.zeros(len(target.ids), bool)
        has[item[target.valid]] = True
        lacking = np.flatnonzero(~has).tolist() if target.whole else []
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


def made_with(device: torch.device, **more: Any) -> dict[str, Any]:
    """Versions and device: told in the file, never compared, since they change nothing but last digits."""
    versions = {p: importlib.metadata.version(p) for p in ("cmrhash", "torch", "torchvision", "transformers", "pillow")}
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {**versions, "device": f"{device.type} {name}", **more}
