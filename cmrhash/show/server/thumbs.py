"""The thumbnails of the page: drawn once, the last used ones kept."""

from __future__ import annotations

import threading
from collections import OrderedDict

from cmrhash.data.items import ImageTextDataset, Item
from cmrhash.show.photos import thumbnail_of

SIDE = 360  # pixels of the long side


class Thumbnails:
    """Those of one data set, the last used ones kept up to ``limit`` bytes. May be asked from several threads."""

    def __init__(self, dataset: ImageTextDataset, limit: int, side: int = SIDE) -> None:
        self.dataset, self.limit, self.side = dataset, limit, side
        self.bytes = 0
        self._kept: OrderedDict[str, bytes | None] = OrderedDict()
        self._lock = threading.Lock()  # held while drawing: one photo at a time is in memory

    def of(self, item: Item) -> bytes | None:
        """JPEG, None if the item has no photo that can be read."""
        with self._lock:
            if item.id in self._kept:
                self._kept.move_to_end(item.id)
                return self._kept[item.id]
            jpeg = thumbnail_of(self.dataset.root, item.image, self.side)
            self._kept[item.id] = jpeg
            self.bytes += len(jpeg or b"")
            while self.bytes > self.limit:
                self.bytes -= len(self._kept.popitem(last=False)[1] or b"")
            return jpeg
