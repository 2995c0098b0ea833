"""Thumbnails: small JPEGs encoded anew from the pixels, so that no metadata of a photo is passed on."""

from __future__ import annotations

import base64
import io
import threading
from collections import OrderedDict
from pathlib import Path

from PIL import Image

from cmrhash.encoders.pixels import BadImage, decode
from cmrhash.errors import DataError
from cmrhash.features.photos import photo_bytes

SIDE = 360  # pixels of the longer side
QUALITY = 80


def thumbnail(image: Image.Image, side: int = SIDE) -> bytes:
    """Scale an RGB image down to a JPEG with a longer side of at most ``side`` pixels."""
    small = image.copy()
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    small.save(out, "JPEG", quality=QUALITY, optimize=True)
    return out.getvalue()


def data_uri(jpeg: bytes | None) -> str:
    """Encode a JPEG as a data: URI; "" for None."""
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}" if jpeg else ""


class Thumbnails:
    """Thumbnails of a data set's photos, for several threads.

    root: folder of the photos. limit: bytes to keep, the least recently used are dropped; None keeps all.
    """

    def __init__(self, root: Path, side: int = SIDE, limit: int | None = None) -> None:
        self.root, self.side, self.limit = root, side, limit
        self.bytes = 0
        self._kept: OrderedDict[str, bytes | None] = OrderedDict()
        self._lock = threading.Lock()  # held while decoding: one photo at a time is in memory

    def of(self, image: str | None) -> bytes | None:
        """Return the thumbnail of a photo, given its path below ``root``; None if it is missing or unreadable."""
        if image is None:
            return None
        with self._lock:
            if self._kept.get(image) is not None:  # a photo that was missing may be back
                self._kept.move_to_end(image)
                return self._kept[image]
            jpeg = self._kept[image] = self._make(image)
            self.bytes += len(jpeg or b"")
            while self.limit is not None and self.bytes > self.limit:
                self.bytes -= len(self._kept.popitem(last=False)[1] or b"")
            return jpeg

    def _make(self, image: str) -> bytes | None:
        try:
            return thumbnail(decode(photo_bytes(self.root, image)), self.side)
        except (BadImage, DataError):
            return None

    @property
    def counts(self) -> tuple[int, int]:
        """Number of photos, of those kept, that were readable and that were not."""
        readable = sum(jpeg is not None for jpeg in self._kept.values())
        return readable, len(self._kept) - readable
