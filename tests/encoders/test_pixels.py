"""From an image file to the pixels that an encoder sees. Which odd files are read, and as what: test_odd_photos.py."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from odd_photos import ODD, encoded, noise
from PIL import Image
from torchvision.transforms import CenterCrop, InterpolationMode, Resize

from cmrhash.encoders.pixels import BadImage, Crop, decode, read_bytes

FUZZ = int(os.environ.get("CMRHASH_FUZZ", "1"))  # as in conftest.py
CODES = {"read", "not-an-image", "corrupt", "too-large", "unsupported"}
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def test_a_name_that_no_file_can_have_is_unreadable():
    with pytest.raises(BadImage, match="null") as caught:
        read_bytes(Path("a\0b"))
    assert caught.value.code == "unreadable"


# ---------------------------------------------------------------------------------------------- anything at all

SEEDS = [odd.put for odd in ODD if isinstance(odd.put, bytes) and 100 < len(odd.put) < 20_000]
MUTANTS = 1500 * FUZZ


@given(st.sampled_from([b"", *(seed[:12] for seed in SEEDS)]), st.binary(max_size=200))
@settings(max_examples=200, deadline=None)
def test_arbitrary_bytes_never_raise_anything_but_bad_image(magic, content):
    with contextlib.suppress(BadImage):
        assert decode(magic + content).mode == "RGB"


def mutant(rng):
    """A photo, odd or not, with bytes changed, cut out, repeated or taken from another one."""
    content = bytearray(SEEDS[rng.integers(len(SEEDS))])
    for _ in range(rng.integers(1, 5)):
        at, size = rng.integers(len(content)), int(rng.choice([1, 1, 1, 2, 4, 30]))
        other = SEEDS[rng.integers(len(SEEDS))]
        new = [
            rng.bytes(size),
            bytes([content[at] ^ (1 << rng.integers(8))]),
            bytes(content[at : at + size]) * 2,
            b"",
            other[at : at + size],
            b"\xff" * size,
        ][rng.integers(6)]
        content[at : at + size] = new or b"\0"
    return bytes(content[: len(content) if rng.random() < 0.8 else rng.integers(1, len(content))])


READER = """
import signal, sys
from cmrhash.encoders.pixels import BadImage, Crop, decode

crop = Crop(16, 12, "BILINEAR", (0, 0, 0), (1, 1, 1))
source = sys.stdin.buffer
while size := int.from_bytes(source.read(4), "big"):
    signal.alarm(20)  # ends the process: an answer that takes longer is none
    try:
        answer = "read" if crop(decode(source.read(size))).shape == (12, 12, 3) else "shape"
    except BadImage as bad:
        answer = bad.code
    except BaseException as error:
        answer = repr(error)
    print(answer, flush=True)
"""


def test_mutated_photos_are_read_or_refused_and_never_end_the_process():
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONWARNINGS": "ignore"}
    rng = np.random.default_rng(None if FUZZ > 1 else 0)
    answers = Counter()
    with subprocess.Popen([sys.executable, "-c", READER], stdin=-1, stdout=-1, env=env) as reader:
        for _ in range(MUTANTS):
            content = mutant(rng)
            reader.stdin.write(len(content).to_bytes(4, "big") + content)
            reader.stdin.flush()
            answer = reader.stdout.readline().decode().strip()
            assert answer in CODES, f"{answer or 'no answer'}: {content.hex()}"
            answers[answer] += 1
        reader.stdin.close()
        assert reader.wait(60) == 0
    assert answers["read"] > MUTANTS / 10
    assert answers["corrupt"] > MUTANTS / 10


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
