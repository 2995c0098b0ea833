"""What images and captions share on their way into the cache: the account of a file, and what makes one stale."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cmrhash.cache import Features, read_features
from cmrhash.data.dataset import ImageTextDataset
from cmrhash.errors import StaleError
from cmrhash.recipe import refuse_difference

CODE = 1  # raised when a change of this package changes the features of an unchanged recipe

Progress = Callable[..., None]  # (what, done, total[, note])


@dataclass
class Extracted:
    """One feature file as ``extract`` leaves it.

    stage: "image" or the language. items = ok + quarantined. bad: how many of these are broken files or features
    rather than parts that the data set does not have.
    """

    path: Path
    stage: str
    items: int
    rows: int
    ok: int
    seconds: float
    fresh: bool  # False: it was there already
    quarantine: list[dict[str, str]] = field(default_factory=list)

    @property
    def bad(self) -> int:
        """Broken, as opposed to missing."""
        return sum(entry["code"] not in ("no-image", "no-text") for entry in self.quarantine)


def still_good(path: Path, recipe: dict[str, Any], overwrite: bool) -> Features | None:
    """The finished file if it is there and of this recipe; None if it has to be made."""
    if overwrite or not path.exists():
        return None
    features = read_features(path)
    refuse_difference(features.recipe, recipe, path, "feature file")
    return features


def refuse_changed(
    before: NDArray[np.uint8],
    now: Iterator[NDArray[np.uint8]],
    dataset: ImageTextDataset,
    path: Path,
    item: NDArray[np.int32],
) -> None:
    """Raise StaleError if a photo or caption is not the one that its features were made from."""
    current = np.stack(list(now)) if len(before) else before
    changed = np.flatnonzero((current != before).any(1))
    if len(changed):
        names = ", ".join(dataset.items[row].id for row in item[changed[:3]])
        what = f"{len(changed)} files or captions changed since they were encoded ({names})"
        raise StaleError(what, path, "use --overwrite to encode anew")


def made_with(device: torch.device, **more: Any) -> dict[str, Any]:
    """Versions and device: told in the file, never compared, since they change nothing but last digits."""
    versions = {p: importlib.metadata.version(p) for p in ("cmrhash", "torch", "torchvision", "transformers", "pillow")}
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {**versions, "device": f"{device.type} {name}", **more}
