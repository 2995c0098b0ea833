"""Data sets: one reader a file, all of them giving an ``ImageTextDataset``.

``READERS`` maps a name to a function ``(root) -> ImageTextDataset``; the names are those of ``config.DATASETS``.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from cmrhash.config import SAMPLE_DATASET, ExtractConfig
from cmrhash.data.dataset import ImageTextDataset, check, with_roles
from cmrhash.data.fashion import read as read_fashion
from cmrhash.data.flickr import read_flickr8k, read_flickr30k
from cmrhash.data.iaprtc12 import read as read_iaprtc12
from cmrhash.data.iaprtc12_lists import read as read_iaprtc12_lists
from cmrhash.data.manifest import read as read_manifest
from cmrhash.data.pascal import read as read_pascal
from cmrhash.data.sample import read as read_sample
from cmrhash.data.wikipedia import read as read_wikipedia
from cmrhash.errors import DataError, UsageError

READERS: dict[str, Callable[[Path], ImageTextDataset]] = {
    SAMPLE_DATASET: read_sample,
    "iaprtc12": read_iaprtc12,
    "iaprtc12-lists": read_iaprtc12_lists,
    "pascal": read_pascal,
    "wikipedia": read_wikipedia,
    "flickr30k": read_flickr30k,
    "flickr8k": read_flickr8k,
    "fashion": read_fashion,
    "manifest": read_manifest,
}


def read_dataset(config: ExtractConfig) -> ImageTextDataset:
    """Read the data set by its reader, with checked roles. Raises UsageError, DataError."""
    if config.dataset not in READERS:
        raise UsageError(f"unknown data set '{config.dataset}'", None, f"choose one of {', '.join(READERS)}")
    root = config.root
    if root is None:
        if config.dataset != SAMPLE_DATASET:
            raise UsageError(f"data set '{config.dataset}' needs its folder", None, "give --root DIR")
        root = config.cache / SAMPLE_DATASET / "drawn"
    elif not root.is_dir():
        raise DataError("no such folder", root, "give the data set's folder with --root")
    dataset = with_roles(READERS[config.dataset](root), config.seed)
    name = config.name or dataset.name
    if not re.fullmatch(r"[\w][\w.-]*", name):
        raise UsageError(f"--name {name}", None, "use letters, digits, '.', '_' and '-'")
    return check(replace(dataset, name=name))
