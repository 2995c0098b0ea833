"""Small JPEGs of the data set's photos, drawn anew from their pixels: no byte of a file is handed on."""

from __future__ import annotations

import io
import threading
from collections import OrderedDict

from PIL import Image

from cmrhash.data.dataset import ImageTextDataset, Item, resolve_image
from cmrhash.encoders.pixels import BadImage, decode, read_bytes
from cmrhash.errors import DataError

SIDE = 360  # pixels of the long side
QUALITY = 82


def thumbnail(image: Image.Image, side: int = SIDE) -> bytes:
    """An RGB image -> a JPEG whose long side is at most ``side`` pixels."""
    small = image.copy()
    small.thumbnail((side, side))
    out = io.BytesIO()
    small.save(out, "JPEG", quality=QUALITY)
    return out.getvalue()


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
            jpeg = self._drawn(item)
            self._kept[item.id] = jpeg
            self.bytes += len(jpeg or b"")
            while self.bytes > self.limit:
                self.bytes -= len(self._kept.popitem(last=False)[1] or b"")
            return jpeg

    def _drawn(self, item: Item) -> bytes | None:
        if item.image is None:
            return None
        try:
            return thumbnail(decode(read_bytes(resolve_image(self.dataset.root, item.image))), self.side)
        except (BadImage, DataError):
            return None
