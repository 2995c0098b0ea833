"""A made-up space of images and texts: what colours the four quarters of a photo have."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from PIL import Image

from cmrhash.encoders.image import ImageEncoder
from cmrhash.encoders.pixels import Crop

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "white": (255,) * 3, "black": (0,) * 3}
DIM, SIDE, SPACE = 16, 16, "5ace"
BASIS = np.linalg.qr(np.random.default_rng(0).standard_normal((DIM, DIM)))[0]
TO_SPACE, GAPS = BASIS[:12], {"image": 5 * BASIS[12], "text": 5 * BASIS[13]}  # of images and texts, across what differs


def features(quarters, kind):
    """Colours of four quarters, (..., 4, 3) in 0 to 1 -> (..., DIM)."""
    return (np.reshape(quarters, (*np.shape(quarters)[:-2], 12)) @ TO_SPACE + GAPS[kind]).astype(np.float32)


def described(text):
    """A text such as "red" or "red red blue white" -> (4, 3)."""
    known = [COLOURS[word] for word in text.split() if word in COLOURS] or [COLOURS["black"]]
    return np.resize(np.array(known) / 255, (4, 3))


@dataclass
class Pictures:
    """An image encoder, as users write them."""

    dim: int = DIM
    size: int = SIDE
    name: str = "pictures"
    recipe: dict = field(default_factory=lambda: {"version": 1, "space": SPACE})

    def encode(self, pixels):
        quarters = np.asarray(pixels, np.float64).reshape(-1, 2, SIDE // 2, 2, SIDE // 2, 3).mean((2, 4)) / 255
        return features(quarters.reshape(-1, 4, 3), "image")


@dataclass
class Words:
    """Its text encoder."""

    dim: int = DIM
    name: str = "pictures"
    recipe: dict = field(default_factory=lambda: {"version": 1, "space": SPACE})

    def encode(self, texts):
        return np.stack([features(described(text), "text") for text in texts])


class Quarters(torch.nn.Module):
    """(B, 3, S, S) -> (B, DIM), as ``Pictures`` does it."""

    def forward(self, batch):
        return torch.from_numpy(Pictures().encode((batch * 255).permute(0, 2, 3, 1).numpy()))


RECIPE = {"encoder": "pictures", "weights": "trained", "weights_sha256": "0", "layer": "projection", "space": SPACE}


def image_load(model, weights="default", **_):
    """In place of ``encoders.image.load``: the image tower."""
    crop = Crop(SIDE, SIDE, "BILINEAR", (0.0,) * 3, (1.0,) * 3)
    recipe = {**RECIPE, "dtype": "float32", "crop": crop.recipe()}
    return ImageEncoder("pictures", DIM, recipe, "PLACE", crop, Quarters(), torch.device("cpu"), torch.float32)


@dataclass
class Tower(Words):
    """The text tower, as ``encoders.text.load`` gives it."""

    recipe: dict = field(
        default_factory=lambda: {**RECIPE, "dtype": "float32", "pooling": "", "max_length": 9, "tokenizer_sha256": "1"}
    )
    source: str = "PLACE"
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    token_budget: int = 9

    def unknown_share(self, captions):
        return 0.0


def text_load(model, **_):
    """In place of ``encoders.text.load``."""
    assert model == "PLACE"
    return Tower()


def draw(path, quarters):
    """A photo whose quarters have these colours, (4, 3) in 0 to 255."""
    path.parent.mkdir(parents=True, exist_ok=True)
    small = Image.fromarray(np.array(quarters, np.uint8).reshape(2, 2, 3))
    small.resize((SIDE, SIDE), Image.Resampling.NEAREST).save(path)


def draw_photos(folder, count=40):
    """Photos of one colour, named by it, and others of four colours drawn at random."""
    for name, colour in COLOURS.items():
        draw(folder / f"{name}.png", [colour] * 4)
    chosen = np.random.default_rng(1).integers(0, 256, (count - len(COLOURS), 4, 3))
    for n, quarters in enumerate(chosen):
        draw(folder / f"{n}.png", quarters)


def command_line():
    """Run a command of cmrhash whose encoders are the two towers of this space."""
    from cmrhash.encoders import image, text
    from cmrhash_cli.main import main

    image.load, text.load = image_load, text_load
    main()


if __name__ == "__main__":
    command_line()
