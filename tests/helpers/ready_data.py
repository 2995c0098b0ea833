"""A data set of ready-made features, which is extracted without encoders in a few milliseconds."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from cmrhash.config import ExtractConfig
from cmrhash.data.items import ImageTextDataset, Item, Ready
from cmrhash.data.view import View
from cmrhash.features.extract import Extraction, Opened, extract

IMAGES, TEXTS = "image-toy.h5", "text-en-toy.h5"


def dataset(number: int, texts: bool = False, name: str = "toy") -> ImageTextDataset:
    """So many items, with features that tell how many they are."""
    every = tuple(Item(f"i{n}", None, {}, (), frozenset({"database"})) for n in range(number))
    x = np.arange(number * 3, dtype=np.float32).reshape(number, 3) + number
    ready = {View.IMAGE: Ready("toy", "", x), **({View.text("en"): Ready("toy", "", -x)} if texts else {})}
    return ImageTextDataset(name, Path("/photos"), every, (), "pairs", ready=ready)


def put(number: int, cache: Path, texts: bool = False, stop_at: str = "", **settings: object) -> Extraction:
    """Extract them into a cache. stop_at: the progress at which Ctrl-C is pressed."""
    config = ExtractConfig(cache=cache, **{"overwrite": True, **settings})  # type: ignore[arg-type]

    def progress(what: str, *_: object) -> None:
        if stop_at and what.startswith(stop_at):
            raise KeyboardInterrupt

    if texts:
        return extract(config, progress, Opened(dataset(number, texts), ["en"], None, {}))
    return extract(config, progress, Opened(dataset(number), [], None, {}))
