"""Photos that people uploaded as queries, kept in memory under their digests."""

from __future__ import annotations

import hashlib
import io
import threading
from collections import OrderedDict
from dataclasses import dataclass

from PIL import Image

from cmrhash.encoders.pixels import MAX_PIXELS, BadImage, decode
from cmrhash.errors import DataError, UsageError
from cmrhash.show.answers import NO_PHOTO
from cmrhash.show.html.thumbnails import thumbnail

GONE = "This photo is no longer on the server"
WHY = "The server keeps the latest uploads only, until it is stopped. Choose the photo again."


QUALITY = 95  # of the JPEG that stands for a larger one


def bounded(content: bytes, pixels: int) -> tuple[bytes, Image.Image]:
    """Decode an upload: its bytes and its RGB image of at most that many pixels.

    A larger JPEG is decoded at a smaller size, and the result replaces the upload. Raises DataError for an unreadable
    photo and for one of another format that is larger.
    """
    try:
        image = decode(content, pixels, draft=True)
        with Image.open(io.BytesIO(content)) as header:
            same = sorted(header.size) == sorted(image.size)
    except BadImage as bad:
        raise DataError(f"{NO_PHOTO} ({bad})", None, "give another file, or a smaller one") from None
    if not same:
        out = io.BytesIO()
        image.save(out, "JPEG", quality=QUALITY)
        content = out.getvalue()
    return content, image


class PhotoGone(UsageError):
    """A digest of which the server has no photo."""


@dataclass(frozen=True)
class QueryPhoto:
    """An uploaded photo. content: the bytes as uploaded; thumb: a small JPEG of it."""

    content: bytes
    thumb: bytes


class QueryPhotos:
    """The latest uploads, for several threads. count, size: most photos and most bytes kept; pixels: of each."""

    def __init__(self, count: int, size: int, pixels: int = MAX_PIXELS) -> None:
        self.count, self.size, self.pixels = count, size, pixels
        self.bytes = 0
        self._kept: OrderedDict[str, QueryPhoto] = OrderedDict()
        self._lock = threading.Lock()

    def keep(self, content: bytes) -> str:
        """Keep a photo and return its digest; the least recently used ones make room.

        Raises DataError for an unreadable photo.
        """
        digest = hashlib.sha256(content).hexdigest()[:32]
        with self._lock:
            if digest in self._kept:
                self._kept.move_to_end(digest)
                return digest
        content, image = bounded(content, self.pixels)
        photo = QueryPhoto(content, thumbnail(image))
        with self._lock:
            self.bytes += 0 if digest in self._kept else _size(photo)
            self._kept[digest] = photo
            while len(self._kept) > 1 and (len(self._kept) > self.count or self.bytes > self.size):
                self.bytes -= _size(self._kept.popitem(last=False)[1])
        return digest

    def get(self, digest: str) -> QueryPhoto:
        """Return the photo of a digest; raises PhotoGone."""
        with self._lock:
            if digest not in self._kept:
                raise PhotoGone(GONE, None, WHY)
            self._kept.move_to_end(digest)
            return self._kept[digest]


def _size(photo: QueryPhoto) -> int:
    return len(photo.content) + len(photo.thumb)
