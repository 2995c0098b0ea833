"""Image files of every odd kind: which are read, as which pixels, and under which code the others are refused."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import subprocess
import sys
import warnings
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import CenterCrop, InterpolationMode, Resize

from cmrhash.encoders.pixels import MAX_BYTES, BadImage, Crop, decode, read_bytes

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def noise(width=40, height=32, channels=3, seed=0):
    """(H, W, C) uint8, or (H, W) for one channel."""
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)


def encoded(image, kind="PNG", **options):
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def with_header_size(png, width, height):
    """A PNG whose header claims another size, with the right checksum."""
    header = b"IHDR" + width.to_bytes(4, "big") + height.to_bytes(4, "big") + png[24:29]
    return png[:12] + header + zlib.crc32(header).to_bytes(4, "big") + png[33:]


def refused(content):
    with pytest.raises(BadImage) as caught:
        decode(content)
    assert str(caught.value)
    return caught.value.code


@contextlib.contextmanager
def at_most(seconds):
    """Fail instead of waiting for ever."""

    def late(*_):
        raise TimeoutError(f"still busy after {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


# ---------------------------------------------------------------------------------------------- accepted


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "GIF", "WEBP"])
def test_every_lossless_format_gives_its_pixels(kind):
    flat = np.zeros((8, 6, 3), np.uint8)
    flat[:, 3:] = (200, 100, 50)
    options = {"lossless": True} if kind == "WEBP" else {}
    np.testing.assert_array_equal(np.asarray(decode(encoded(flat, kind, **options))), flat)


def test_a_jpeg_gives_the_pixels_that_pillow_gives():
    content = encoded(noise(), "JPEG", quality=90)
    np.testing.assert_array_equal(np.asarray(decode(content)), np.asarray(Image.open(io.BytesIO(content))))


def test_the_name_of_a_file_does_not_matter(tmp_path):
    (tmp_path / "photo.jpg").write_bytes(encoded(noise()))
    np.testing.assert_array_equal(np.asarray(decode(read_bytes(tmp_path / "photo.jpg"))), noise())


def test_what_follows_an_image_does_not_matter():
    content = encoded(noise(), "JPEG")
    np.testing.assert_array_equal(np.asarray(decode(content + b"junk" * 9)), np.asarray(decode(content)))


def test_a_bad_colour_profile_does_not_matter():
    np.testing.assert_array_equal(np.asarray(decode(encoded(noise(), icc_profile=b"no profile"))), noise())


def test_bad_exif_does_not_matter():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        image = decode(encoded(noise(), "JPEG", exif=b"Exif\0\0MM\0\x2a\0\0\0\x08\xff\xff"))
    assert image.size == (40, 32)


def test_an_animation_gives_its_first_frame():
    red, blue = (Image.new("RGB", (8, 8), colour) for colour in ("red", "blue"))
    for kind in ("GIF", "WEBP", "PNG"):
        image = decode(encoded(red, kind, save_all=True, append_images=[blue], duration=100))
        assert np.abs(np.asarray(image).astype(int) - [255, 0, 0]).max() <= 3, kind


@pytest.mark.parametrize(
    ("orientation", "turn"),
    [
        (1, lambda a: a),
        (2, np.fliplr),
        (3, lambda a: np.rot90(a, 2)),
        (4, np.flipud),
        (5, lambda a: a.swapaxes(0, 1)),
        (6, lambda a: np.rot90(a, -1)),
        (7, lambda a: np.rot90(a, 2).swapaxes(0, 1)),
        (8, np.rot90),
    ],
)
def test_the_orientation_of_the_camera_is_applied(orientation, turn):
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = decode(encoded(noise(), exif=exif))
    np.testing.assert_array_equal(np.asarray(image), turn(noise()))


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_is_laid_on_white(mode):
    pixels = noise(channels=len(mode))
    pixels[0, 0, -1], pixels[0, 1, -1] = 0, 255
    image = np.asarray(decode(encoded(bands(mode, pixels))))
    colour, alpha = pixels[..., :-1].astype(float), pixels[..., -1:] / 255
    expected = np.broadcast_to(colour * alpha + 255 * (1 - alpha), image.shape)
    assert np.abs(image - expected).max() <= 1
    assert image[0, 0].tolist() == [255, 255, 255]
    assert (image[0, 1] == pixels[0, 1, :-1]).all()


def bands(mode, pixels):
    return Image.merge(mode, [Image.fromarray(np.ascontiguousarray(band)) for band in np.moveaxis(pixels, -1, 0)])


@pytest.mark.parametrize("kind", ["PNG", "GIF"])
def test_a_transparent_palette_colour_is_white(kind):
    image = Image.new("P", (8, 8), 0)
    image.putpalette([0, 0, 0, 10, 200, 30])
    image.paste(1, (4, 0, 8, 8))
    pixels = np.asarray(decode(encoded(image, kind, transparency=0)))
    assert pixels[0, 0].tolist() == [255, 255, 255]
    assert pixels[0, 7].tolist() == [10, 200, 30]


def test_a_palette_with_partly_transparent_colours_is_mixed_with_white():
    image = Image.new("P", (8, 8), 0)
    image.putpalette([0, 0, 0, 10, 200, 30])
    pixels = np.asarray(decode(encoded(image, transparency=bytes([128, 255]))))
    assert np.abs(pixels.astype(int) - 127).max() <= 1


def test_a_transparent_colour_of_rgb_and_grey_is_white():
    black = np.zeros((8, 8, 3), np.uint8)
    black[:, 4:] = (9, 9, 9)
    for image, colour in ((Image.fromarray(black), (0, 0, 0)), (Image.fromarray(black).convert("L"), 0)):
        pixels = np.asarray(decode(encoded(image, transparency=colour)))
        assert pixels[0, 0].tolist() == [255, 255, 255]
        assert pixels[0, 7].tolist() == [9, 9, 9]


@pytest.mark.parametrize("mode", ["1", "L", "P"])
def test_fewer_colours_become_rgb(mode):
    small = Image.fromarray(noise()).convert(mode)
    image = decode(encoded(small))
    assert image.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(image), np.asarray(small.convert("RGB")))


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_grey_of_16_bits_is_scaled_to_8(kind):
    grey = np.random.default_rng(0).integers(0, 65536, (32, 40)).astype(np.uint16)
    grey[0, :3] = 0, 257, 65535
    pixels = np.asarray(decode(encoded(grey, kind)))
    np.testing.assert_array_equal(pixels, np.repeat((grey // 257).astype(np.uint8)[..., None], 3, 2))
    assert pixels[0, :3, 0].tolist() == [0, 1, 255]


def test_a_cmyk_jpeg_is_read():
    cmyk = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    pixels = np.asarray(decode(encoded(cmyk, "JPEG", quality=95))).astype(int)
    assert np.abs(pixels - np.asarray(cmyk.convert("RGB"))).max() <= 8
    assert pixels[0, 0, 0] > 200 > 60 > pixels[0, 0, 1]


# ---------------------------------------------------------------------------------------------- refused


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP"])
@pytest.mark.parametrize("kept", [0.5, 0.9])
def test_a_truncated_image_is_corrupt(kind, kept):
    content = encoded(noise(), kind)
    assert refused(content[: int(len(content) * kept)]) == "corrupt"


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_an_image_cut_within_its_header_is_refused(kind):
    assert refused(encoded(noise(), kind)[:20]) in ("corrupt", "not-an-image")


def test_a_flipped_bit_in_a_png_is_corrupt():
    content = bytearray(encoded(noise()))
    content[len(content) // 2] ^= 1
    assert refused(bytes(content)) == "corrupt"


def test_an_empty_file_is_refused():
    assert refused(b"") == "empty"


@pytest.mark.parametrize(
    "content",
    [
        b"<!DOCTYPE html><html><body>404 Not Found</body></html>",
        b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'></svg>",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n",
        encoded(noise(), "PPM"),
        encoded(noise(32, 32), "ICO"),
        bytes(1000),
        b"a dog",
    ],
    ids=["html", "svg", "eps", "ppm", "ico", "zeros", "text"],
)
def test_what_is_no_image_of_a_known_format_is_refused(content):
    assert refused(content) == "not-an-image"


def test_floating_point_pixels_are_refused():
    assert refused(encoded(np.ones((8, 8), np.float32), "TIFF")) == "unsupported"


def test_grey_beyond_16_bits_is_refused():
    grey = np.full((8, 8), 70_000, np.int32)
    assert refused(encoded(grey, "TIFF")) == "unsupported"
    assert refused(encoded(-grey, "TIFF")) == "unsupported"


@pytest.mark.parametrize("side", [8_001, 10_000, 60_000])  # below, within and above Pillow's own limits
def test_a_decompression_bomb_is_refused_by_its_header(side):
    content = with_header_size(encoded(noise(8, 8)), side, side)
    with at_most(2):
        assert refused(content) == "too-large"


# ---------------------------------------------------------------------------------------------- files


def unreadable(path):
    with at_most(2), pytest.raises(BadImage) as caught:
        read_bytes(path)
    assert str(caught.value)
    return caught.value.code


def test_what_is_not_a_regular_file_is_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "fifo.jpg")
    (tmp_path / "link.jpg").symlink_to(tmp_path / "fifo.jpg")
    for path in (tmp_path, tmp_path / "fifo.jpg", tmp_path / "link.jpg"):
        assert unreadable(path) == "not-a-file"


def test_a_missing_file_and_a_dangling_link_are_missing(tmp_path):
    (tmp_path / "link.jpg").symlink_to(tmp_path / "nowhere")
    assert unreadable(tmp_path / "none.jpg") == "missing"
    assert unreadable(tmp_path / "link.jpg") == "missing"


def test_a_path_that_cannot_be_opened_is_unreadable(tmp_path):
    (tmp_path / "loop.jpg").symlink_to(tmp_path / "loop.jpg")
    (tmp_path / "file").write_bytes(b"x")
    for path in (tmp_path / "loop.jpg", tmp_path / ("x" * 5000), tmp_path / "a\0b", tmp_path / "file" / "a.jpg"):
        assert unreadable(path) == "unreadable"


def test_a_huge_file_is_not_even_read(tmp_path):
    with (tmp_path / "huge.jpg").open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    assert unreadable(tmp_path / "huge.jpg") == "too-large"


def test_a_name_outside_of_ascii_is_read(tmp_path):
    for name in ("ü 二.png", os.fsdecode(b"\xff.png")):
        (tmp_path / name).write_bytes(b"x")
        assert read_bytes(tmp_path / name) == b"x"


# ---------------------------------------------------------------------------------------------- anything at all

SEEDS = [encoded(noise(), kind) for kind in ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP")]
CROP = Crop(16, 12, "BILINEAR", MEAN, STD)


def decodes_or_is_bad(content):
    with contextlib.suppress(BadImage):
        image = decode(content)
        assert image.mode == "RGB"
        assert CROP(image).shape == (12, 12, 3)


@given(st.sampled_from([b"", *(seed[:12] for seed in SEEDS)]), st.binary(max_size=200))
@settings(max_examples=200, deadline=None)
def test_arbitrary_bytes_never_raise_anything_but_bad_image(magic, content):
    decodes_or_is_bad(magic + content)


@given(
    st.sampled_from(SEEDS), st.lists(st.tuples(st.floats(0, 0.999), st.integers(1, 255)), max_size=4), st.floats(0, 1)
)
@settings(max_examples=200, deadline=None)
def test_damaged_images_never_raise_anything_but_bad_image(seed, flips, kept):
    content = bytearray(seed)
    for place, bits in flips:
        content[int(place * len(content))] ^= bits
    decodes_or_is_bad(bytes(content[: int(kept * len(content)) or None]))


# ---------------------------------------------------------------------------------------------- the crop

SIZES = [(40, 32), (32, 40), (224, 224), (256, 256), (257, 255), (300, 200), (640, 480), (3, 60), (200, 7), (1, 90)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    ("resize", "cut", "how"), [(256, 224, "BILINEAR"), (232, 224, "BILINEAR"), (75, 64, "BICUBIC"), (64, 64, "BICUBIC")]
)
def test_the_crop_is_that_of_torchvision_within_one_grey_level(size, resize, cut, how):
    image = Image.fromarray(noise(*size))
    mode = InterpolationMode.BILINEAR if how == "BILINEAR" else InterpolationMode.BICUBIC
    expected = np.asarray(CenterCrop(cut)(Resize(resize, mode, antialias=True)(image)))
    found = Crop(resize, cut, how, MEAN, STD)(image)
    assert found.shape == (cut, cut, 3)
    assert found.dtype == np.uint8
    off = np.abs(found.astype(int) - expected)
    if resize == 232:  # Pillow keeps the box in float32: rounded twice, a pixel in 100,000 is two levels off
        assert (off > 1).mean() < 5e-4
        off = np.maximum(off - 1, 0)
    assert off.max() <= 1


def test_everything_that_changes_the_pixels_is_in_the_recipe():
    recipe = Crop(256, 224, "BILINEAR", MEAN, STD).recipe()
    rules = recipe.pop("rules")
    assert recipe == {
        "resize": 256,
        "size": 224,
        "interpolation": "BILINEAR",
        "mean": list(MEAN),
        "std": list(STD),
    }
    assert all(word in rules for word in ("exif", "white", "16 bit", "first frame"))


def test_a_line_of_pixels_is_cropped_in_little_memory(tmp_path):
    """Resize(256) would make 256 x 2,560,000 pixels of it, 2 GB and more."""
    (tmp_path / "line.png").write_bytes(encoded(noise(1, 10_000)))
    (tmp_path / "row.png").write_bytes(encoded(noise(10_000, 1)))
    code = """
import resource, sys
from cmrhash.encoders.pixels import Crop, decode, read_bytes
from pathlib import Path
crop = Crop(256, 224, "BILINEAR", (0, 0, 0), (1, 1, 1))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for name in sys.argv[1:]:
    assert crop(decode(read_bytes(Path(name)))).shape == (224, 224, 3)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    command = [sys.executable, "-c", code, str(tmp_path / "line.png"), str(tmp_path / "row.png")]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    grown = int(subprocess.run(command, capture_output=True, text=True, check=True, timeout=60, env=env).stdout)
    assert grown < 50_000  # kB
