"""Image decoding: an image file -> RGB pixels, safely.

Only Pillow is used, because torchvision's decoder crashes on damaged PNGs. The rules for unusual images are part of
every recipe (``RULES``): EXIF orientation is applied, transparency becomes white, 16-bit grey is scaled, animations
give their first frame. All other images raise ``BadImage``.
"""

from __future__ import annotations

import io
import math
import re
import stat
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from cmrhash.errors import DamagedError, StaleError

FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF")
MAX_PIXELS = 64_000_000  # checked in the header, before decoding
MAX_BYTES = 256 * 2**20
MAX_SCANS = 10 * MAX_PIXELS  # pixels times scans of a progressive JPEG, each of which costs as much as a decoding
MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")  # of a JPEG, behind the bytes of a scan
SCAN, END_OF_IMAGE = 0xDA, 0xD9
ROWS = 256  # made opaque at once, so that a large photo needs less memory
MAX_SIDE = 4096  # pixels: longest side of a prepared photo
RULES = "pillow; exif orientation; white behind transparency; 16 bit / 257; first frame; v1"


class BadImage(Exception):
    """An unusable image. ``code``: short reason for statistics; ``str()``: the reason as a sentence."""

    def __init__(self, code: str, words: str) -> None:
        super().__init__(words)
        self.code = code


def odd_colours(mean: Sequence[float], std: Sequence[float]) -> str:
    """Why values cannot normalise the three channels of photos, from 0 to 1; "" if they can."""
    for name, values in (("mean", mean), ("standard deviation", std)):
        if len(values) != 3 or not all(map(math.isfinite, values)):
            return f"the {name} of the colours is {list(values)}"
    return "" if min(std) > 1e-3 and max(std) < 1e3 else f"the standard deviation of the colours is {list(std)}"


@dataclass(frozen=True)
class Crop:
    """Resize the short side to ``resize`` pixels, cut the centre square of ``size``, normalise.

    down: a margin of half a pixel is rounded down, as transformers does; otherwise to even, as torchvision does.
    """

    resize: int
    size: int
    interpolation: str  # name in PIL.Image.Resampling
    mean: tuple[float, ...]
    std: tuple[float, ...]
    down: bool = False

    def recipe(self) -> dict[str, Any]:
        """All settings that change the pixels."""
        fields = {name: value for name, value in asdict(self).items() if name != "down" or value}
        return {**fields, "mean": list(self.mean), "std": list(self.std), "rules": RULES}

    def __call__(self, image: Image.Image) -> NDArray[np.uint8]:
        """(size, size, 3) uint8 of an image.

        Resize and crop are one step: pixels outside the square are never computed, so a 1 x 10,000 image costs no more
        than a square one. Equal to torchvision's Resize and CenterCrop within one grey level.
        """
        width, height = image.size
        short = min(width, height)
        wide, high = (int(self.resize * side / short) for side in (width, height))
        left, top = ((side - self.size) // 2 if self.down else round((side - self.size) / 2) for side in (wide, high))
        per_x, per_y = width / wide, height / high
        box = (left * per_x, top * per_y, (left + self.size) * per_x, (top + self.size) * per_y)
        how = Image.Resampling[self.interpolation]
        return np.asarray(image.resize((self.size, self.size), how, box=box))


@dataclass(frozen=True)
class Squash:
    """Resize to a square of ``resize`` pixels whatever the shape, cut the centre square of ``size``, normalise."""

    resize: int
    size: int
    interpolation: str  # name in PIL.Image.Resampling
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def recipe(self) -> dict[str, Any]:
        """All settings that change the pixels."""
        fields = {**asdict(self), "mean": list(self.mean), "std": list(self.std)}
        return {"squash": fields.pop("resize"), **fields, "rules": RULES}

    def __call__(self, image: Image.Image) -> NDArray[np.uint8]:
        """(size, size, 3) uint8 of an image; resize and cut are one step, as in ``Crop``."""
        start = (self.resize - self.size) // 2
        per_x, per_y = (side / self.resize for side in image.size)
        box = (start * per_x, start * per_y, (start + self.size) * per_x, (start + self.size) * per_y)
        return np.asarray(image.resize((self.size, self.size), Image.Resampling[self.interpolation], box=box))


@dataclass(frozen=True)
class Letterbox:
    """Resize the long side to ``size`` pixels and pad to a square, normalise.

    The photo is at the top left, the padding has the mean colour; no part of the photo is cut off.
    """

    size: int
    interpolation: str  # name in PIL.Image.Resampling
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def fill(self) -> tuple[int, ...]:
        """Colour of the padding, close to 0 after normalisation."""
        return tuple(round(255 * value) for value in self.mean)

    def recipe(self) -> dict[str, Any]:
        """All settings that change the pixels."""
        fields = {**asdict(self), "mean": list(self.mean), "std": list(self.std)}
        return {"letterbox": fields.pop("size"), **fields, "rules": RULES}

    def __call__(self, image: Image.Image) -> NDArray[np.uint8]:
        """(size, size, 3) uint8 of an image."""
        scale = self.size / max(image.size)
        wide, high = (max(1, round(scale * side)) for side in image.size)
        square = np.full((self.size, self.size, 3), self.fill, np.uint8)
        square[:high, :wide] = np.asarray(image.resize((wide, high), Image.Resampling[self.interpolation]))
        return square


Preparation = Crop | Squash | Letterbox


def crop_of(recipe: Mapping[str, Any], where: Path) -> Preparation:
    """The preparation that a ``recipe`` describes.

    Raises StaleError for a recipe with other rules, DamagedError for an invalid one.
    """
    try:
        rules, how = recipe["rules"], Image.Resampling[recipe["interpolation"]].name
        mean, std = (tuple(float(value) for value in recipe[name]) for name in ("mean", "std"))
        kind = next((name for name in ("letterbox", "squash") if name in recipe), "resize")
        sides = [int(recipe[name]) for name in ((kind,) if kind == "letterbox" else (kind, "size"))]
        if not len(mean) == len(std) == 3 or not all(0 < side <= MAX_SIDE for side in sides):
            raise ValueError
    except (KeyError, TypeError, ValueError):
        raise DamagedError("unknown preparation of photos", where, "get the file again") from None
    if rules != RULES:
        raise StaleError(
            f"photos were prepared by rules '{rules}', this version has '{RULES}'", where, "run `extract` again"
        )
    if kind == "letterbox":
        return Letterbox(sides[0], how, mean, std)
    if kind == "squash":
        return Squash(sides[0], sides[1], how, mean, std)
    return Crop(sides[0], sides[1], how, mean, std, bool(recipe.get("down", False)))


def read_bytes(path: Path, offset: int = 0, size: int | None = None) -> bytes:
    """Content of a file, or ``size`` bytes of it from ``offset`` on.

    Raises BadImage unless it is a regular file that holds these bytes, at most MAX_BYTES.
    """
    try:
        info = path.stat()
        if not stat.S_ISREG(info.st_mode):  # reading a pipe would block forever
            raise BadImage("not-a-file", "not a regular file")
        count = info.st_size if size is None else size
        if count > MAX_BYTES:
            raise BadImage("too-large", f"{count} bytes, at most {MAX_BYTES} are read")
        if size is None:
            return path.read_bytes()
        if offset + size > info.st_size:
            raise BadImage("outside", f"bytes {offset} to {offset + size} of a file of {info.st_size} bytes")
        with path.open("rb") as file:
            file.seek(offset)
            return file.read(size)
    except FileNotFoundError:
        raise BadImage("missing", "no such file") from None
    except (OSError, ValueError) as error:
        raise BadImage("unreadable", str(error)) from None


def decode(content: bytes, most: int = MAX_PIXELS, draft: bool = False) -> Image.Image:
    """RGB image from the bytes of a file; raises BadImage for incomplete or other content.

    most: pixels that are decoded. draft: a larger JPEG (up to MAX_PIXELS) is decoded at a half, quarter or eighth of
    its size, which costs little; a progressive one is not, because it needs the memory of its full size.
    """
    if not content:
        raise BadImage("empty", "the file is empty")
    try:
        image = Image.open(io.BytesIO(content), formats=FORMATS)
        wide, high = image.size
        progressive = "progressive" in image.info
        if draft and most < wide * high <= MAX_PIXELS and image.format == "JPEG" and not progressive:
            scale = next(scale for scale in (2, 4, 8) if wide * high <= most * scale**2 or scale == 8)
            image.draft(None, (wide // scale, high // scale))
        if image.width * image.height > most:
            raise BadImage("too-large", f"{wide} x {high} pixels, at most {most} are decoded")
        if progressive and wide * high * _scans(content) > MAX_SCANS:
            raise BadImage("too-large", f"{_scans(content)} scans of {wide} x {high} pixels")
        image.load()
        ImageOps.exif_transpose(image, in_place=True)
        return to_rgb(image)
    except (BadImage, MemoryError):  # a photo is not damaged because memory is short
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BadImage("too-large", str(error)) from None
    except UnidentifiedImageError:
        raise BadImage("not-an-image", f"none of {', '.join(FORMATS)}") from None
    except Exception as error:  # decoders raise many types of errors; all mean a bad file
        raise BadImage("corrupt", f"{type(error).__name__}: {error}") from None


def to_rgb(image: Image.Image) -> Image.Image:
    """8-bit RGB of an image of any mode, transparency on white.

    Raises BadImage for modes without a defined range.
    """
    if image.mode == "F":
        raise BadImage("unsupported", "floating-point pixels have no agreed range")
    if image.mode.startswith("I"):
        grey = np.asarray(image)  # (H, W) uint16 or int32; convert("L") would clip, not scale
        if grey.min() < 0 or grey.max() > 65535:
            raise BadImage("unsupported", "grey values outside 16 bits")
        grey = np.where(grey == image.info.get("transparency", -1), 65535, grey)
        return Image.fromarray((grey // 257).astype(np.uint8)).convert("RGB")
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        return _on_white(image)
    return image if image.mode == "RGB" else image.convert("RGB")


def _on_white(image: Image.Image) -> Image.Image:
    made = Image.new("RGB", image.size)
    for top in range(0, image.height, ROWS):
        part = image.crop((0, top, image.width, min(top + ROWS, image.height))).convert("RGBA")
        made.paste(Image.alpha_composite(Image.new("RGBA", part.size, "white"), part).convert("RGB"), (0, top))
    return made


def _scans(jpeg: bytes) -> int:
    """Number of scans of a JPEG, without those of previews within it or of anything behind its end."""
    at, found = 2, 0
    while at + 4 <= len(jpeg) and jpeg[at] == 0xFF and jpeg[at + 1] != END_OF_IMAGE:
        scan = jpeg[at + 1] == SCAN
        found += scan
        at += 2 + int.from_bytes(jpeg[at + 2 : at + 4], "big") if jpeg[at + 1] != 0xFF else 1
        if scan:
            following = MARKER.search(jpeg, at)
            at = following.start() if following else len(jpeg)
    return found
