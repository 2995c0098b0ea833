"""Bytes of the photos of items, wherever the photos are: in files, in tars, in Parquet tables."""

from __future__ import annotations

from pathlib import Path

from cmrhash.data import parquet
from cmrhash.data.photo_files import PhotoFile, Slice, find_photo
from cmrhash.encoders.pixels import MAX_BYTES, BadImage, read_bytes
from cmrhash.errors import DataError


def photo_bytes(root: Path, image: str) -> bytes:
    """Bytes of an item's photo; ``image`` is the item's field.

    Raises BadImage for a photo that is missing, too large or outside its file, DataError for one outside the root.
    """
    return bytes_of(find_photo(root, image))


def bytes_of(photo: PhotoFile) -> bytes:
    """Bytes of a photo at that place; raises BadImage."""
    if photo.part is None:
        return read_bytes(photo.path)
    if isinstance(photo.part, Slice):
        return read_bytes(photo.path, photo.part.offset, photo.part.size)
    try:
        content = parquet.photo(photo.path, photo.part.column, photo.part.row)
    except FileNotFoundError:
        raise BadImage("missing", "no such file") from None
    except (KeyError, IndexError):
        raise BadImage("missing", "no such row or column in the table") from None
    except (OSError, DataError) as error:
        raise BadImage("unreadable", str(error)) from None
    if content is not None and len(content) > MAX_BYTES:
        raise BadImage("too-large", f"{len(content)} bytes, at most {MAX_BYTES} are read")
    return content or b""
