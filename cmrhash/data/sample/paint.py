"""Drawing of the sample's scenes.

Each kind of scene has its own palette and texture, and each kind of thing its own colours and shape. Colour and texture
alone identify the labels, so that even the features of an untrained encoder support learning.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from cmrhash.data.sample.plan import COLUMNS, SKY_THINGS, Scene, Thing
from cmrhash.data.sample.scenery import (
    BACKDROPS,
    HEIGHT,
    SCALE,
    SHORE,
    WIDTH,
    Backdrop,
    Canvas,
    Colour,
    clouds,
    moon,
    stars,
)


@dataclass(frozen=True)
class _Part:
    """A polygon (x, y, x, y, ...) or oval (left, bottom, right, top) of a thing.

    The unit is the height of the thing: x from its middle to the right, y from its foot upwards. colour: None means the
    thing's own.
    """

    colour: Colour | None
    at: tuple[float, ...]
    oval: bool = False


def _poly(colour: Colour | None, *at: float) -> _Part:
    return _Part(colour, at)


def _oval(colour: Colour | None, *at: float) -> _Part:
    return _Part(colour, at, oval=True)


_DARK, _WOOD, _SKIN, _GLASS = (34, 32, 36), (104, 70, 40), (236, 190, 156), (196, 224, 240)
_COLOURS: dict[str, Colour] = {
    "yellow": (250, 208, 36),
    "colourful": (226, 52, 96),
    "large": (26, 26, 30),
    "red": (208, 42, 36),
    "white": (248, 248, 250),
    "green": (54, 148, 48),
    "dark green": (16, 84, 52),
    "blue": (32, 78, 190),
    "black": (22, 20, 24),
    "brown": (126, 76, 38),
    "orange": (244, 128, 24),
}
_WINGS = (-0.26, 0.24, -0.1, 0.2, 0, 0.06, 0.1, 0.2, 0.26, 0.24, 0.08, 0.12, 0, -0.04, -0.08, 0.12)
# thing -> height in pixels before reduction, parts from back to front
_SHAPES: dict[str, tuple[int, tuple[_Part, ...]]] = {
    "sun": (
        58,
        (
            _oval((255, 240, 176), -0.62, -0.12, 0.62, 1.12),
            _oval((255, 228, 110), -0.5, 0, 0.5, 1),
            _oval(None, -0.4, 0.1, 0.4, 0.9),
        ),
    ),
    "balloon": (
        92,
        (
            _oval(None, -0.4, 0.22, 0.4, 1),
            _oval((250, 206, 50), -0.25, 0.22, 0.25, 1),
            _oval((60, 130, 210), -0.1, 0.22, 0.1, 1),
            _poly(_DARK, -0.2, 0.29, -0.18, 0.29, -0.07, 0.12, -0.09, 0.12),
            _poly(_DARK, 0.2, 0.29, 0.18, 0.29, 0.07, 0.12, 0.09, 0.12),
            _poly(_WOOD, -0.1, 0.13, 0.1, 0.13, 0.08, 0, -0.08, 0),
        ),
    ),
    "birds": (
        58,
        tuple(
            _poly(None, *(v + (dx, dy)[i % 2] for i, v in enumerate(_WINGS)))
            for dx, dy in ((-0.62, 0.1), (-0.1, 0.38), (0.5, 0.2), (-0.45, 0.66), (0.28, 0.74), (0.05, 0.0))
        ),
    ),
    "house": (
        100,
        (
            _poly(None, -0.46, 0, 0.46, 0, 0.46, 0.56, -0.46, 0.56),
            _poly((74, 44, 40), -0.56, 0.54, 0.56, 0.54, 0.3, 0.96, -0.3, 0.96),
            _poly(_WOOD, -0.08, 0, 0.1, 0, 0.1, 0.34, -0.08, 0.34),
            _poly(_GLASS, -0.36, 0.22, -0.18, 0.22, -0.18, 0.42, -0.36, 0.42),
            _poly(_GLASS, 0.2, 0.22, 0.38, 0.22, 0.38, 0.42, 0.2, 0.42),
        ),
    ),
    "tree": (
        116,
        (
            _poly(_WOOD, -0.06, 0, 0.07, 0, 0.05, 0.5, -0.05, 0.5),
            _oval((40, 118, 38), -0.4, 0.32, 0.14, 0.8),
            _oval((44, 128, 40), -0.1, 0.34, 0.42, 0.82),
            _oval(None, -0.3, 0.44, 0.3, 1),
            _oval((84, 176, 66), -0.2, 0.66, 0.06, 0.9),
        ),
    ),
    "fir": (
        122,
        (
            _poly(_WOOD, -0.05, 0, 0.05, 0, 0.05, 0.2, -0.05, 0.2),
            _poly(None, -0.33, 0.14, 0.33, 0.14, 0, 0.6),
            _poly((24, 100, 62), -0.27, 0.4, 0.27, 0.4, 0, 0.82),
            _poly(None, -0.2, 0.64, 0.2, 0.64, 0, 1),
        ),
    ),
    "palm": (
        128,
        (
            _poly((150, 108, 62), -0.05, 0, 0.04, 0, 0.09, 0.45, 0.05, 0.8, 0, 0.8, 0.02, 0.45),
            _poly(None, 0.02, 0.8, -0.18, 0.98, -0.4, 0.84, -0.18, 0.88),
            _poly(None, 0.02, 0.8, 0.22, 0.98, 0.44, 0.84, 0.22, 0.88),
            _poly((40, 120, 40), 0.02, 0.82, -0.22, 0.78, -0.34, 0.56, -0.14, 0.72),
            _poly((40, 120, 40), 0.02, 0.82, 0.26, 0.78, 0.38, 0.56, 0.18, 0.72),
            _poly(None, 0.02, 0.8, -0.06, 1, 0.1, 1),
            _oval(_WOOD, -0.05, 0.72, 0.04, 0.81),
        ),
    ),
    "boat": (
        104,
        (
            _poly(_WOOD, -0.015, 0.16, 0.015, 0.16, 0.015, 1, -0.015, 1),
            _poly(None, 0.04, 0.26, 0.42, 0.26, 0.04, 0.96),
            _poly((228, 230, 236), -0.04, 0.26, -0.34, 0.26, -0.04, 0.86),
            _poly((122, 62, 34), -0.46, 0.2, 0.5, 0.2, 0.36, 0, -0.34, 0),
        ),
    ),
    "car": (
        54,
        (
            _poly(None, -0.56, 0.5, -0.36, 0.98, 0.32, 0.98, 0.6, 0.5),
            _poly(_GLASS, -0.42, 0.54, -0.3, 0.88, -0.04, 0.88, -0.04, 0.54),
            _poly(_GLASS, 0.02, 0.54, 0.02, 0.88, 0.26, 0.88, 0.44, 0.54),
            _poly(None, -0.95, 0.16, -0.93, 0.5, -0.6, 0.58, 0.7, 0.58, 0.96, 0.46, 0.98, 0.16),
            _oval(_DARK, -0.7, 0, -0.34, 0.36),
            _oval(_DARK, 0.36, 0, 0.72, 0.36),
        ),
    ),
    "bus": (
        74,
        (
            _poly(None, -0.78, 0.12, 0.78, 0.12, 0.78, 0.96, 0.72, 1, -0.78, 1),
            *(_poly(_GLASS, x, 0.54, x + 0.26, 0.54, x + 0.26, 0.86, x, 0.86) for x in (-0.7, -0.38, -0.06, 0.26)),
            _poly(_GLASS, 0.6, 0.36, 0.78, 0.36, 0.78, 0.86, 0.6, 0.86),
            _poly((240, 240, 240), -0.78, 0.34, 0.54, 0.34, 0.54, 0.42, -0.78, 0.42),
            _oval(_DARK, -0.56, 0, -0.28, 0.28),
            _oval(_DARK, 0.3, 0, 0.58, 0.28),
        ),
    ),
    "dog": (
        60,
        (
            *(_poly(None, x, 0, x + 0.1, 0, x + 0.1, 0.4, x, 0.4) for x in (-0.42, -0.24, 0.2, 0.36)),
            _oval(None, -0.52, 0.28, 0.5, 0.68),
            _poly(None, -0.44, 0.5, -0.7, 0.84, -0.62, 0.86, -0.34, 0.6),
            _oval(None, 0.3, 0.52, 0.68, 0.92),
            _poly(None, 0.5, 0.56, 0.86, 0.62, 0.84, 0.74, 0.56, 0.84),
            _poly(None, 0.34, 0.8, 0.4, 1, 0.52, 0.88),
            _oval((240, 240, 240), 0.54, 0.74, 0.6, 0.8),
        ),
    ),
    "horse": (
        84,
        (
            *(_poly(None, x, 0, x + 0.08, 0, x + 0.1, 0.5, x - 0.02, 0.5) for x in (-0.42, -0.28, 0.2, 0.34)),
            _oval(None, -0.5, 0.36, 0.46, 0.72),
            _poly(None, 0.22, 0.62, 0.46, 0.98, 0.62, 0.94, 0.46, 0.48),
            _poly(None, 0.44, 1, 0.6, 0.94, 0.8, 0.76, 0.72, 0.7, 0.5, 0.8),
            _poly((48, 30, 20), 0.16, 0.68, 0.4, 1, 0.46, 0.98, 0.28, 0.62),
            _poly((48, 30, 20), -0.46, 0.64, -0.62, 0.3, -0.54, 0.26, -0.42, 0.54),
        ),
    ),
    "tent": (
        74,
        (
            _poly(None, -0.78, 0, 0.78, 0, 0.1, 1, -0.1, 1),
            _poly((255, 214, 150), -0.22, 0, 0.26, 0, 0, 0.98),
            _poly(_DARK, -0.14, 0, 0.16, 0, 0, 0.66),
        ),
    ),
    "cactus": (
        96,
        (
            _oval(None, -0.13, 0.78, 0.13, 1),
            _poly(None, -0.13, 0, 0.13, 0, 0.13, 0.9, -0.13, 0.9),
            _poly(None, -0.13, 0.3, -0.42, 0.3, -0.42, 0.7, -0.27, 0.7, -0.27, 0.45, -0.13, 0.45),
            _oval(None, -0.42, 0.63, -0.27, 0.77),
            _poly(None, 0.13, 0.42, 0.4, 0.42, 0.4, 0.8, 0.25, 0.8, 0.25, 0.57, 0.13, 0.57),
            _oval(None, 0.25, 0.73, 0.4, 0.87),
            _poly((36, 112, 36), -0.02, 0.02, 0.02, 0.02, 0.02, 0.94, -0.02, 0.94),
        ),
    ),
    "snowman": (
        96,
        (
            _oval((176, 188, 206), -0.33, -0.02, 0.33, 0.5),
            _oval(None, -0.3, 0, 0.3, 0.48),
            _oval((176, 188, 206), -0.25, 0.36, 0.25, 0.72),
            _oval(None, -0.22, 0.37, 0.22, 0.7),
            _oval((176, 188, 206), -0.18, 0.6, 0.18, 0.88),
            _oval(None, -0.16, 0.61, 0.16, 0.87),
            _poly((200, 40, 40), -0.2, 0.6, 0.2, 0.6, 0.18, 0.68, -0.18, 0.68),
            _poly(
                _DARK,
                -0.2,
                0.83,
                0.2,
                0.83,
                0.2,
                0.87,
                0.13,
                0.87,
                0.13,
                1,
                -0.13,
                1,
                -0.13,
                0.87,
                -0.2,
                0.87,
            ),
            _poly((240, 130, 30), 0, 0.72, 0.16, 0.74, 0, 0.77),
            _oval(_DARK, -0.09, 0.76, -0.04, 0.81),
            _oval(_DARK, 0.05, 0.76, 0.1, 0.81),
        ),
    ),
    "woman": (
        96,
        (
            _poly(_SKIN, -0.09, 0, -0.03, 0, -0.03, 0.3, -0.09, 0.3),
            _poly(_SKIN, 0.03, 0, 0.09, 0, 0.09, 0.3, 0.03, 0.3),
            _poly(_SKIN, -0.12, 0.72, -0.28, 0.44, -0.23, 0.42, -0.06, 0.66),
            _poly(_SKIN, 0.12, 0.72, 0.28, 0.44, 0.23, 0.42, 0.06, 0.66),
            _poly(None, -0.26, 0.2, 0.26, 0.2, 0.08, 0.52, 0.13, 0.76, -0.13, 0.76, -0.08, 0.52),
            _oval((70, 40, 24), -0.13, 0.7, 0.13, 1),
            _oval(_SKIN, -0.09, 0.76, 0.09, 0.95),
        ),
    ),
}


def paint(scene: Scene, seed: list[int]) -> Image.Image:
    """Draw a scene: RGB image, WIDTH x HEIGHT pixels; ``seed`` determines everything random."""
    rng = np.random.default_rng(seed)
    backdrop = BACKDROPS[scene.kind]
    darkened = scene.night and scene.kind != "city"  # the city always has night colours
    picture = _background(backdrop, rng, darkened)
    tone = 0.36 if darkened else 1.0
    canvas = Canvas(ImageDraw.Draw(picture), rng, backdrop.horizon * HEIGHT * SCALE, tone)
    if scene.night:
        stars(canvas)
    if scene.clouds:
        clouds(canvas)
    if backdrop.decor:
        backdrop.decor(canvas)
    if scene.night:
        moon(canvas)
        canvas.tone = 0.66  # things are darkened less than the background
    for thing in scene.things:
        _place(canvas, thing, scene.kind)
    return picture.reduce(SCALE)


def _background(backdrop: Backdrop, rng: np.random.Generator, darkened: bool) -> Image.Image:
    """Sky and ground as two gradients, with texture, a tint per image and fine noise."""
    rows = round(HEIGHT * backdrop.horizon)
    sky = np.repeat(_gradient(*backdrop.sky, rows), WIDTH, 1)
    ground = _gradient(*backdrop.ground, HEIGHT - rows) + backdrop.texture(rng, HEIGHT - rows)[..., None]
    pixels = np.concatenate([sky, ground]) + rng.normal(0, 6, 3) + rng.normal(0, 2.5, (HEIGHT, WIDTH, 1))
    if darkened:
        pixels *= (0.26, 0.32, 0.5)
    picture = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    return picture.resize((WIDTH * SCALE, HEIGHT * SCALE), Image.Resampling.NEAREST)


def _gradient(top: Colour, bottom: Colour, rows: int) -> NDArray[np.float64]:
    """(rows, 1, 3) from the top colour to the bottom colour."""
    return np.linspace(np.array(top, float), np.array(bottom, float), rows)[:, None]


def _place(canvas: Canvas, thing: Thing, kind: str) -> None:
    """Draw a thing, or two smaller ones side by side, in its column at a plausible height."""
    tall, wide = HEIGHT * SCALE, WIDTH * SCALE
    height = _SHAPES[thing.kind][0] * canvas.rng.uniform(0.88, 1.12)
    pair = thing.number == 2
    size = height * 0.72 if pair else height
    half = size * max(abs(x) for part in _SHAPES[thing.kind][1] for x in part.at[::2])
    apart = min(half * 1.1, 38.0) if pair else 0.0
    x = wide * (2 * COLUMNS.index(thing.column) + 1) / 6 + canvas.rng.uniform(-8, 8)
    x = min(max(x, half + apart + 4), wide - half - apart - 4)  # keep things inside the image
    if thing.kind in SKY_THINGS:
        foot = max(height * 1.1 + 2, canvas.horizon * canvas.rng.uniform(0.6, 0.85))
    elif kind == "beach" and thing.kind == "boat":
        foot = canvas.horizon + canvas.rng.uniform(12, 24)
    elif kind == "lake" and thing.kind == "boat":
        foot = canvas.rng.uniform(canvas.horizon + 12, tall * SHORE - 14)
    elif kind == "lake":
        foot = tall * canvas.rng.uniform(SHORE + 0.08, 0.97)
    else:
        foot = canvas.horizon + (tall - canvas.horizon) * canvas.rng.uniform(0.45, 0.92)
    for side in (-1, 1) if pair else (0,):
        _stamp(canvas, thing, x + apart * side, foot + 4 * side, size)


def _stamp(canvas: Canvas, thing: Thing, x: float, foot: float, height: float) -> None:
    """Draw a thing whose foot is at (x, foot)."""
    own = _COLOURS[thing.colour]
    for part in _SHAPES[thing.kind][1]:
        xs = [x + height * v for v in part.at[::2]]
        ys = [foot - height * v for v in part.at[1::2]]
        if part.oval:
            canvas.oval(part.colour or own, xs[0], ys[1], xs[1], ys[0])
        else:
            canvas.polygon(part.colour or own, list(zip(xs, ys, strict=True)))
