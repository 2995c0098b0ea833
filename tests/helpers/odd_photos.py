"""Files that are no ordinary photos, each with what has to become of it: its pixels, or the code of its refusal."""

from __future__ import annotations

import io
import os
import stat
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from cmrhash.encoders.pixels import MAX_BYTES


@dataclass(frozen=True)
class Odd:
    """name: of the file. put: its bytes, or what makes it at a path. seen: the (H, W, 3) uint8 pixels that must come
    out of it, each within ``off`` grey levels, or the code under which it is refused. holds: the pixels that a reader
    of more formats sees in a refused one.
    """

    name: str
    put: bytes | Callable[[Path], object]
    seen: np.ndarray | str
    off: int = 0
    holds: np.ndarray | None = None

    def make(self, folder: Path) -> Path:
        path = folder / self.name
        if isinstance(self.put, bytes):
            path.write_bytes(self.put)
        else:
            self.put(path)
        return path


def noise(width=40, height=32, channels=3, seed=0):
    """(H, W, C) uint8, or (H, W) for one channel."""
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)


def halves(left, right):
    """(32, 40, 3) uint8 of two colours."""
    pixels = np.empty((32, 40, 3), np.uint8)
    pixels[:, :20], pixels[:, 20:] = left, right
    return pixels


def three(grey):
    return np.repeat(grey[..., None], 3, axis=2)


def encoded(image, kind="PNG", **options):
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def bands(mode, pixels):
    return Image.merge(mode, [Image.fromarray(np.ascontiguousarray(band)) for band in np.moveaxis(pixels, -1, 0)])


def chunk(name, content):
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def with_header_size(png, width, height):
    """A PNG whose header claims another size, with the right checksum."""
    return png[:8] + chunk(b"IHDR", struct.pack(">II", width, height) + png[24:29]) + png[33:]


def flipped(content, share):
    """With one bit flipped. share: how far into the file."""
    changed = bytearray(content)
    changed[int(share * len(content))] ^= 1
    return bytes(changed)


RGB = noise()
PNG, JPEG, GIF = encoded(RGB), encoded(RGB, "JPEG", quality=90), encoded(RGB, "GIF")
SEEN = np.asarray(Image.open(io.BytesIO(JPEG)))  # what is left of RGB in that JPEG
ICC = np.random.default_rng(1).bytes(1_500_000)


# ---------------------------------------------------------------------------------------------- odd colours

GREY16 = np.random.default_rng(0).integers(0, 65536, (32, 40)).astype(np.uint16)
GREY16[0, :3] = 0, 257, 65535
RGBA, LA = noise(channels=4), noise(channels=2)
RGBA[0, 0, 3], RGBA[0, 1, 3], LA[0, 0, 1], LA[0, 1, 1] = 0, 255, 0, 255
BLACK, LEAF, WHITE = (0, 0, 0), (10, 200, 30), (255, 255, 255)


def on_white(pixels):
    """(H, W, 3) uint8: what is seen of (H, W, 2 or 4) pixels with transparency before a white wall."""
    share = pixels[..., -1:] / 255
    mixed = np.rint(pixels[..., :-1] * share + 255 * (1 - share)).astype(np.uint8)
    return np.broadcast_to(mixed, (*mixed.shape[:2], 3))


def in_palette():
    image = Image.new("P", (40, 32), 0)
    image.putpalette([*BLACK, *LEAF])
    image.paste(1, (20, 0, 40, 32))
    return image


def rgb_of_16_bits():
    rows = b"".join(b"\0" + (row.astype(">u2") * 257).tobytes() for row in RGB)
    header = struct.pack(">IIBBBBB", 40, 32, 16, 2, 0, 0, 0)
    return PNG[:8] + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def grey_with_a_clear_one():
    """16 bits of grey, of which one is transparent."""
    png, clear = encoded(GREY16), GREY16[0, 5]
    seen = GREY16.copy()
    seen[seen == clear] = 65535
    png = png[:33] + chunk(b"tRNS", struct.pack(">H", clear)) + png[33:]
    return Odd("grey-16-clear.png", png, three((seen // 257).astype(np.uint8)))


INK = (20, 100, 200, 60)  # C, M, Y, K
INKED = halves(*[[round((255 - c) * (255 - INK[3]) / 255) for c in INK[:3]]] * 2)


def cmyk():
    return encoded(Image.new("CMYK", (40, 32), INK), "JPEG", quality=95)


def ycck():
    """Like the CMYK JPEG, but with inks stored as brightness and two colours, as Photoshop does."""
    inks = Image.new("RGB", (40, 32), INK[:3]).convert("YCbCr")
    planes = [band.point(lambda value: 255 - value) for band in inks.split()]  # as Pillow inverts what it writes
    content = bytearray(encoded(Image.merge("CMYK", [*planes, Image.new("L", (40, 32), INK[3])]), "JPEG", quality=95))
    content[content.index(b"Adobe") + 11] = 2
    return bytes(content)


COLOURS = [
    Odd(
        "grey.jpg",
        encoded(Image.fromarray(RGB).convert("L"), "JPEG", quality=100),
        three(np.asarray(Image.fromarray(RGB).convert("L"))),
        3,
    ),
    Odd(
        "1-bit.png",
        encoded(Image.fromarray(RGB).convert("1")),
        np.asarray(Image.fromarray(RGB).convert("1").convert("RGB")),
    ),
    Odd("palette.png", encoded(in_palette()), halves(BLACK, LEAF)),
    Odd("palette-clear.png", encoded(in_palette(), transparency=0), halves(WHITE, LEAF)),
    Odd("palette-half-clear.png", encoded(in_palette(), transparency=bytes([128, 255])), halves((127,) * 3, LEAF), 1),
    Odd("clear.gif", encoded(in_palette(), "GIF", transparency=0), halves(WHITE, LEAF)),
    Odd("rgb-clear.png", encoded(halves(BLACK, LEAF), transparency=BLACK), halves(WHITE, LEAF)),
    Odd("grey-clear.png", encoded(halves(BLACK, (9,) * 3)[..., 0], transparency=0), halves(WHITE, (9,) * 3)),
    Odd("rgba.png", encoded(RGBA), on_white(RGBA), 1),
    Odd("rgba.webp", encoded(RGBA, "WEBP", lossless=True, exact=True), on_white(RGBA), 1),
    Odd("la.png", encoded(bands("LA", LA)), on_white(LA), 1),
    Odd("grey-16.png", encoded(GREY16), three((GREY16 // 257).astype(np.uint8))),
    Odd("grey-16.tiff", encoded(GREY16, "TIFF"), three((GREY16 // 257).astype(np.uint8))),
    grey_with_a_clear_one(),
    Odd("rgb-16.png", rgb_of_16_bits(), RGB),
    Odd("cmyk.jpg", cmyk(), INKED, 3),
    Odd("ycck.jpg", ycck(), INKED, 3),
    Odd("float.tiff", encoded(np.ones((8, 8), np.float32), "TIFF"), "unsupported"),
    Odd("grey-32.tiff", encoded(np.full((8, 8), 70_000, np.int32), "TIFF"), "unsupported"),
    Odd("grey-negative.tiff", encoded(np.full((8, 8), -70_000, np.int32), "TIFF"), "unsupported"),
]

# ---------------------------------------------------------------------------------------------- odd wrappings

TURNS = {
    1: lambda a: a,
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
    8: np.rot90,
}
FRAMES = [Image.fromarray(halves((255, 0, 0), (0, 0, 255))), Image.fromarray(halves((0, 255, 0), BLACK))]
MOVING = {"save_all": True, "append_images": FRAMES[1:], "duration": 100}


def turned(orientation, kind="PNG", **options):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(RGB, kind, exif=exif, **options)


WRAPPINGS = [
    *(Odd(f"turned-{n}.png", turned(n), turn(RGB)) for n, turn in TURNS.items()),
    Odd("turned.jpg", turned(6, "JPEG", quality=90), np.rot90(SEEN, -1)),
    Odd("turned.webp", turned(8, "WEBP", lossless=True), np.rot90(RGB)),
    Odd("turned.tiff", turned(3, "TIFF"), np.rot90(RGB, 2)),
    Odd("bad-exif.jpg", encoded(RGB, "JPEG", quality=90, exif=b"Exif\0\0MM\0\x2a\0\0\0\x08\xff\xff"), SEEN),
    Odd("junk-exif.jpg", encoded(RGB, "JPEG", quality=90, exif=b"Exif\0\0" + bytes(range(200))), SEEN),
    Odd("bad-profile.png", encoded(RGB, icc_profile=b"no profile"), RGB),
    Odd("huge-profile.jpg", encoded(RGB, "JPEG", quality=90, icc_profile=ICC), SEEN),
    Odd("huge-profile.png", encoded(RGB, icc_profile=ICC), "corrupt", holds=RGB),
    Odd("moving.gif", encoded(FRAMES[0], "GIF", **MOVING), np.asarray(FRAMES[0])),
    Odd("moving.webp", encoded(FRAMES[0], "WEBP", lossless=True, **MOVING), np.asarray(FRAMES[0])),
    Odd("moving.png", encoded(FRAMES[0], **MOVING), np.asarray(FRAMES[0])),
    Odd(
        "two.mpo.jpg", encoded(RGB, "MPO", save_all=True, append_images=[Image.fromarray(RGB[::-1])], quality=90), SEEN
    ),
    Odd("two-joined.jpg", JPEG + encoded(RGB[::-1], "JPEG"), SEEN),
    Odd("junk-behind.jpg", JPEG + b"junk" * 9, SEEN),
    Odd("last-byte-gone.jpg", JPEG[:-1], SEEN),  # that of the end mark: all of the picture is there
    Odd("last-byte-gone.png", PNG[:-1], RGB),
    Odd("last-byte-gone.gif", GIF[:-1], np.asarray(Image.open(io.BytesIO(GIF)).convert("RGB"))),
    Odd("progressive.jpg", encoded(RGB, "JPEG", quality=90, progressive=True), SEEN),
    Odd("photo.bmp", encoded(RGB, "BMP"), RGB),
    Odd("photo.tiff", encoded(RGB, "TIFF", compression="tiff_lzw"), RGB),
    Odd("photo.webp", encoded(RGB, "WEBP", lossless=True), RGB),
    Odd("photo.png.jpg", PNG, RGB),
    Odd("photo", PNG, RGB),
    Odd("column.png", encoded(noise(1, 10_000)), noise(1, 10_000)),
    Odd("row.png", encoded(noise(10_000, 1)), noise(10_000, 1)),
    Odd("point.png", encoded(noise(1, 1)), noise(1, 1)),
]

# ---------------------------------------------------------------------------------------------- odd files


def linked(path, to):
    path.symlink_to(to)


def fifo_behind_a_link(path):
    os.mkfifo(path.with_suffix(".fifo"))
    path.symlink_to(path.with_suffix(".fifo"))


def huge(path):
    with path.open("wb") as file:
        file.truncate(MAX_BYTES + 1)


def shut(path):
    path.write_bytes(PNG)
    path.chmod(0)


FILES = [
    Odd("bytes-\udcff-\udc80.png", PNG, RGB),  # no UTF-8
    Odd("two\nlines\t.png", PNG, RGB),
    Odd("ü 二 😀.png", PNG, RGB),
    Odd("link.png", lambda p: [p.with_suffix(".real").write_bytes(PNG), linked(p, p.with_suffix(".real"))], RGB),
    Odd("missing.jpg", lambda _: None, "missing"),
    Odd("dangling.jpg", lambda p: linked(p, "nowhere"), "missing"),
    Odd("loop.jpg", lambda p: linked(p, p.name), "unreadable"),
    Odd("x" * 300 + ".jpg", lambda _: None, "unreadable"),
    Odd("file.jpg/photo.jpg", lambda p: p.parent.write_bytes(PNG), "unreadable"),
    Odd("folder.jpg", Path.mkdir, "not-a-file"),
    Odd("fifo.jpg", os.mkfifo, "not-a-file"),
    Odd("fifo-link.jpg", fifo_behind_a_link, "not-a-file"),
    Odd("socket.jpg", lambda p: os.mknod(p, stat.S_IFSOCK | 0o600), "not-a-file"),
    Odd("huge.jpg", huge, "too-large"),
    *([Odd("shut.png", shut, "unreadable")] if os.geteuid() else []),  # root reads it all the same
]

# ---------------------------------------------------------------------------------------------- broken ones

PDF = b"%PDF-1.4\n1 0 obj\n<< /Type /Catalog >>\nendobj\ntrailer\n<< /Root 1 0 R >>\n%%EOF\n"
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n"
HAS_AVIF = ".avif" in Image.registered_extensions()  # Pillow 11.3 and later
AVIF = encoded(FRAMES[0], "AVIF", quality=100, subsampling="4:4:4") if HAS_AVIF else b"\0\0\0\x1cftypavif"

BROKEN = [
    Odd("empty.jpg", b"", "empty"),
    Odd("text.jpg", b"a dog", "not-an-image"),
    Odd("404.jpg", b"<!DOCTYPE html><html><body>404 Not Found</body></html>", "not-an-image"),
    Odd("drawing.svg", b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'></svg>", "not-an-image"),
    Odd("zeros.jpg", bytes(1000), "not-an-image"),
    Odd("eps.jpg", EPS, "not-an-image"),
    Odd("pdf.jpg", PDF, "not-an-image"),
    Odd("photo.avif", AVIF, "not-an-image", 8, np.asarray(FRAMES[0])),
    Odd("photo.ico", encoded(noise(32, 32), "ICO"), "not-an-image", holds=noise(32, 32)),
    Odd("photo.ppm", encoded(RGB, "PPM"), "not-an-image", holds=RGB),
    *(Odd(f"half.{end}", c[: len(c) // 2], "corrupt") for end, c in [("jpg", JPEG), ("png", PNG), ("gif", GIF)]),
    *(
        Odd(f"half.{kind.lower()}", (c := encoded(RGB, kind))[: len(c) // 2], "corrupt")
        for kind in ("BMP", "TIFF", "WEBP")
    ),
    Odd("head-of.jpg", JPEG[:20], "not-an-image"),
    Odd("head-of.png", PNG[:20], "corrupt"),
    *(Odd(f"flipped-{share}.png", flipped(PNG, share), "corrupt") for share in (0.1, 0.5, 0.9)),
    Odd("flipped-head.png", flipped(PNG, 20 / len(PNG)), "not-an-image"),
    Odd("bomb-8001.png", with_header_size(PNG, 8001, 8001), "too-large"),
    Odd("bomb-10000.png", with_header_size(PNG, 10_000, 10_000), "too-large"),
    Odd("bomb-60000.png", with_header_size(PNG, 60_000, 60_000), "too-large"),
    Odd("bomb-1-bit.png", encoded(Image.new("1", (20_000, 20_000))), "too-large"),
]

ODD = [*COLOURS, *WRAPPINGS, *FILES, *BROKEN]
