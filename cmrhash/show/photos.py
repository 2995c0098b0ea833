"""Small JPEGs of a data set's photos, drawn anew from their pixels: no byte of a file is handed on."""

from __future__ import annotations

import base64
import io
from pathlib import Path

from PIL import Image

from cmrhash.data.items import resolve_image
from cmrhash.encoders.pixels import BadImage, decode, read_bytes
from cmrhash.errors import DataError

QUALITY = 80


def thumbnail(image: Image.Image, side: int) -> bytes:
    """An RGB image -> a JPEG whose long side is at most ``side`` pixels."""
    small = image.copy()
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    small.save(out, "JPEG", quality=QUALITY, optimize=True)
    return out.getvalue()


def thumbnail_of(root: Path, image: str | None, side: int) -> bytes | None:
    """The same of an item's photo; None if it has none, or if that is no longer there or cannot be read."""
    if image is None:
        return None
    try:
        return thumbnail(decode(read_bytes(resolve_image(root, image))), side)
    except (BadImage, DataError):
        return None


def data_uri(jpeg: bytes | None) -> str:
    """A JPEG as an address that holds it; "" for none."""
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}" if jpeg else ""
