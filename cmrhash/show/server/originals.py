"""Original photos, streamed from wherever the data set has them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cmrhash.data.photo_files import Slice, find_photo
from cmrhash.encoders.pixels import BadImage, decode
from cmrhash.errors import DataError
from cmrhash.features.photos import bytes_of
from cmrhash.show.html.thumbnails import thumbnail

CHUNK = 64 * 1024  # bytes
REDRAWN = 2048  # pixels of the longer side, for formats that browsers do not show
MAGIC = {b"\xff\xd8\xff": "image/jpeg", b"\x89PNG\r\n\x1a\n": "image/png", b"GIF8": "image/gif", b"BM": "image/bmp"}


class TooLarge(DataError):
    """An original photo above the size limit."""


@dataclass(frozen=True)
class Original:
    """A photo to send. media: its media type; size: bytes; chunks: the content."""

    media: str
    size: int
    chunks: Iterator[bytes]


def original(root: Path, image: str | None, limit: int) -> Original | None:
    """Open the original of an item's photo, given its field; None if it is missing or unreadable.

    limit: most bytes; raises TooLarge above it. A photo in a format that browsers do not show is redrawn as a JPEG.
    """
    if image is None:
        return None
    try:
        photo = find_photo(root, image)
        if photo.part is None or isinstance(photo.part, Slice):
            offset, size = (photo.part.offset, photo.part.size) if photo.part else (0, _size(photo.path))
            head = next(_read(photo.path, offset, min(16, size)), b"")
            whole = None
        else:
            offset, whole = 0, bytes_of(photo)
            size, head = len(whole), whole[:16]
        if size > limit:
            raise TooLarge("This photo is too large to show", None, f"The limit is {limit / 1e6:g} MB.")
        media = _media(head)
        if media is None:
            whole = thumbnail(decode(whole if whole is not None else bytes_of(photo)), REDRAWN)
            media, size = "image/jpeg", len(whole)
        chunks = iter([whole]) if whole is not None else _read(photo.path, offset, size)
        return Original(media, size, chunks)
    except TooLarge:
        raise
    except (OSError, BadImage, DataError):
        return None


def can_show(root: Path, image: str | None, limit: int) -> bool:
    """Tell whether the original of a photo can be sent."""
    try:
        return original(root, image, limit) is not None
    except TooLarge:
        return False


def _size(path: Path) -> int:
    if not path.is_file():
        raise BadImage("missing", "no such file")
    return path.stat().st_size


def _read(path: Path, offset: int, size: int) -> Iterator[bytes]:
    with path.open("rb") as file:
        file.seek(offset)
        while size > 0 and (chunk := file.read(min(CHUNK, size))):
            size -= len(chunk)
            yield chunk


def _media(head: bytes) -> str | None:
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "image/webp"
    return next((media for magic, media in MAGIC.items() if head.startswith(magic)), None)
