"""Data sets: one reader a file, all of them giving an ``ImageTextDataset``.

``READERS`` maps a name to a function ``(root) -> ImageTextDataset``.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from cmrhash.data.dataset import ImageTextDataset
from cmrhash.data.iaprtc12 import read as read_iaprtc12
from cmrhash.data.manifest import read as read_manifest
from cmrhash.data.sample import read as read_sample

READERS: dict[str, Callable[[Path], ImageTextDataset]] = {
    "sample": read_sample,
    "iaprtc12": read_iaprtc12,
    "manifest": read_manifest,
}
