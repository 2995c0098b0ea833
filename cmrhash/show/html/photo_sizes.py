"""Width and height of photos, read from their headers."""

from __future__ import annotations

import io
import threading
import warnings
from collections import OrderedDict
from pathlib import Path

from PIL import Image

from cmrhash.data.photo_files import find_photo
from cmrhash.encoders.pixels import FORMATS, BadImage
from cmrhash.errors import DataError
from cmrhash.features.photos import bytes_of

ORIENTATION = 0x0112  # EXIF tag; from 5 on the photo is turned by 90 degrees
LIMIT = 100_000  # sizes kept

Size = tuple[int, int]


class PhotoSizes:
    """Sizes of a data set's photos as people see them, for several threads. root: folder of the photos."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._kept: OrderedDict[str, Size] = OrderedDict()
        self._lock = threading.Lock()

    def of(self, image: str | None) -> Size | None:
        """Return (width, height) of an upright photo in pixels; None if it is missing or unreadable."""
        if image is None:
            return None
        with self._lock:
            if image in self._kept:
                self._kept.move_to_end(image)
                return self._kept[image]
        size = self._read(image)
        if size is None:  # a photo that is missing may be back later
            return None
        with self._lock:
            self._kept[image] = size
            if len(self._kept) > LIMIT:
                self._kept.popitem(last=False)
        return size

    def _read(self, image: str) -> Size | None:
        try:
            photo = find_photo(self.root, image)
            if photo.part is None and not photo.path.is_file():
                return None
            source = photo.path if photo.part is None else io.BytesIO(bytes_of(photo))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                with Image.open(source, formats=FORMATS) as opened:
                    width, height = opened.size
                    turned = opened.getexif().get(ORIENTATION, 1) >= 5
        except (OSError, ValueError, SyntaxError, TypeError, Image.DecompressionBombError, BadImage, DataError):
            return None
        if not width or not height:
            return None
        return (height, width) if turned else (width, height)
