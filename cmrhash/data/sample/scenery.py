"""Backgrounds of the sample's scenes: palettes, textures and decor."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import ImageDraw

WIDTH, HEIGHT = 160, 120
SCALE = 2  # images are drawn larger by this factor and reduced, for smooth edges
SHORE = 0.80  # start of the lake's near shore, as a share of the height

Colour = tuple[int, int, int]
Point = tuple[float, float]
Array = NDArray[np.float64]


@dataclass
class Canvas:
    """Drawing surface; coordinates and ``horizon`` are pixels before reduction.

    tone: brightness of colours at night; blue is darkened less.
    """

    draw: ImageDraw.ImageDraw
    rng: np.random.Generator
    horizon: float
    tone: float = 1.0

    def ink(self, colour: Colour) -> Colour:
        """The colour at the current brightness."""
        red, green, blue = colour
        return int(red * self.tone), int(green * self.tone), int(blue * min(1.0, self.tone * 1.25))

    def polygon(self, colour: Colour, points: list[Point]) -> None:
        """Draw a filled polygon."""
        self.draw.polygon(points, fill=self.ink(colour))

    def oval(self, colour: Colour, left: float, top: float, right: float, bottom: float) -> None:
        """Draw a filled ellipse."""
        self.draw.ellipse((left, top, right, bottom), fill=self.ink(colour))

    def box(self, colour: Colour, left: float, top: float, right: float, bottom: float) -> None:
        """Draw a filled rectangle."""
        self.draw.rectangle((left, top, right, bottom), fill=self.ink(colour))


@dataclass(frozen=True)
class Backdrop:
    """Background of a kind of scene.

    horizon: the sky's share of the height; sky, ground: colours from top to bottom.
    """

    sky: tuple[Colour, Colour]
    ground: tuple[Colour, Colour]
    horizon: float
    texture: Callable[[np.random.Generator, int], Array]
    decor: Callable[[Canvas], None] | None = None


# Textures: (rows, WIDTH) floats around 0, added to the colours of the ground.


def _grid(rows: int) -> tuple[Array, Array]:
    y, x = np.indices((rows, WIDTH), float)
    return y, x


def _grain(rng: np.random.Generator, rows: int) -> Array:
    """Sand: fine and even."""
    return rng.normal(0, 11, (rows, WIDTH))


def _waves(rng: np.random.Generator, rows: int) -> Array:
    """Water: horizontal crests, wider apart in the foreground."""
    y, x = _grid(rows)
    bend = 1.4 * np.sin(x / rng.uniform(9, 14) + rng.uniform(0, 6)) * (0.4 + y / rows)
    crests = np.sin(9 * np.sqrt(y + 1) + bend)
    return 20 * np.maximum(crests, -0.4) + rng.normal(0, 3, (rows, WIDTH))


def _ripples(rng: np.random.Generator, rows: int) -> Array:
    """Calm water: faint long lines."""
    x = np.arange(WIDTH)
    lines = rng.normal(0, 7, (rows, 1)) * np.sin(x / 17 + rng.uniform(0, 6, (rows, 1)))
    return lines + rng.normal(0, 1.5, (rows, WIDTH))


def _blades(rng: np.random.Generator, rows: int) -> Array:
    """Grass: short upright streaks."""
    streaks = rng.normal(0, 19, (rows // 4 + 1, WIDTH))
    return np.repeat(streaks, 4, axis=0)[:rows]


def _dunes(rng: np.random.Generator, rows: int) -> Array:
    """Dunes: broad bent ridges, lit from one side."""
    y, x = _grid(rows)
    phase = y / 6.5 + 1.8 * np.sin(x / rng.uniform(22, 34) + rng.uniform(0, 6))
    return 26 * ((phase / (2 * math.pi)) % 1 - 0.5) + rng.normal(0, 4, (rows, WIDTH))


def _drifts(rng: np.random.Generator, rows: int) -> Array:
    """Snow: soft blue-grey hollows."""
    y, x = _grid(rows)
    hollows: Array = 7 * np.sin(y / 9 + 2 * np.sin(x / 30 + rng.uniform(0, 6)))
    return hollows - 5


def _furrows(rng: np.random.Generator, rows: int) -> Array:
    """Wheat: rows that converge at the horizon, and ears."""
    y, x = _grid(rows)
    rays = np.sin(14 * (x - WIDTH * rng.uniform(0.3, 0.7)) / (y + 18))
    return 22 * rays + rng.normal(0, 14, (rows, WIDTH))


def _paving(rng: np.random.Generator, rows: int) -> Array:
    """Paving stones: a brick pattern of joints."""
    y, x = _grid(rows)
    joint: Array = 34.0 * ((y % 7 == 0) | ((x + 6 * (y // 7 % 2)) % 12 == 0))
    return rng.normal(0, 7, (rows, WIDTH)) - joint


def _wet(rng: np.random.Generator, rows: int) -> Array:
    """A wet road at night: upright streaks of light."""
    streaks = np.maximum(rng.normal(-6, 16, (1, WIDTH)), -8)
    return streaks * np.linspace(1, 0.2, rows)[:, None]


# Decor: parts of the background that are not things.


def stars(canvas: Canvas) -> None:
    """Draw stars, at full brightness."""
    for _ in range(30):
        x, y = canvas.rng.uniform(0, WIDTH * SCALE), canvas.rng.uniform(0, canvas.horizon)
        canvas.draw.ellipse((x - 1, y - 1, x + 1, y + 1), fill=(235, 235, 220))


def moon(canvas: Canvas) -> None:
    """Draw a full moon near the upper edge."""
    x, y = canvas.rng.uniform(0.1, 0.9) * WIDTH * SCALE, canvas.rng.uniform(18, 26)
    canvas.draw.ellipse((x - 15, y - 15, x + 15, y + 15), fill=(240, 236, 205))


def clouds(canvas: Canvas) -> None:
    """Draw a few white clouds."""
    for _ in range(3):
        x, y = canvas.rng.uniform(0, WIDTH * SCALE), canvas.rng.uniform(10, canvas.horizon * 0.55)
        for dx, dy, r in ((-22, 3, 10), (-8, -2, 14), (8, 0, 12), (22, 4, 9)):
            canvas.oval((248, 249, 252), x + dx - r * 1.3, y + dy - r * 0.8, x + dx + r * 1.3, y + dy + r * 0.8)


def _surf(canvas: Canvas) -> None:
    """The sea between sky and sand, with a white edge."""
    wide, top, deep = WIDTH * SCALE, canvas.horizon, 34
    phase = canvas.rng.uniform(0, 6)
    edge: list[Point] = [(x, top + deep + 5 * math.sin(x / 30 + phase)) for x in range(0, wide + 8, 8)]
    canvas.polygon((250, 250, 245), [(0, top), *((x, y + 5) for x, y in edge), (wide, top)])
    canvas.polygon((36, 150, 190), [(0, top), *edge, (wide, top)])


def _mountains(canvas: Canvas) -> None:
    """Grey peaks with snow, the far shore, and a green shore in front."""
    wide, base, rng = WIDTH * SCALE, canvas.horizon, canvas.rng
    for x in rng.permutation(np.linspace(20, wide - 20, 4)) + rng.uniform(-20, 20, 4):
        peak, half = base - rng.uniform(50, 84), rng.uniform(62, 90)
        grey = int(rng.integers(96, 136))
        canvas.polygon((grey, grey, grey + 12), [(x - half, base), (x, peak), (x + half, base)])
        canvas.polygon((grey - 26, grey - 26, grey - 8), [(x, peak), (x + half, base), (x + half * 0.2, base)])
        low = peak + 18
        share = 18 / (base - peak)
        cap = [
            (x, peak),
            (x + half * share, low),
            (x + 3, low - 6),
            (x - 4, low + 3),
            (x - half * share, low),
        ]
        canvas.polygon((245, 247, 250), cap)
    canvas.box((52, 84, 58), 0, base - 5, wide, base + 1)
    tall = HEIGHT * SCALE
    canvas.oval((96, 134, 72), -90, tall * SHORE - 8, wide + 90, tall * 1.6)


def _flowers(canvas: Canvas) -> None:
    for _ in range(90):
        y = canvas.rng.uniform(canvas.horizon + 6, HEIGHT * SCALE)
        x, r = canvas.rng.uniform(0, WIDTH * SCALE), 1.2 + 2.0 * (y - canvas.horizon) / (HEIGHT * SCALE)
        colour = ((250, 240, 90), (245, 245, 250), (235, 120, 170))[int(canvas.rng.integers(3))]
        canvas.oval(colour, x - r, y - r, x + r, y + r)


def _trunks(canvas: Canvas) -> None:
    """Dark foliage behind trunks."""
    wide, rng, base = WIDTH * SCALE, canvas.rng, canvas.horizon
    for _ in range(150):
        x, y, r = rng.uniform(0, wide), rng.uniform(-10, base * 0.8), rng.uniform(8, 20)
        green = int(rng.integers(38, 84))
        canvas.oval((green // 2, green, green // 2), x - r, y - r * 0.8, x + r, y + r * 0.8)
    for x in np.arange(8, wide, 34) + rng.uniform(-10, 10, 10)[: len(range(8, wide, 34))]:
        half, foot = rng.uniform(3, 6), base + rng.uniform(-2, 16)
        canvas.box((74, 52, 34), x - half, base * 0.2, x + half, foot)


def _houses(canvas: Canvas) -> None:
    """A row of grey house fronts."""
    x = -canvas.rng.uniform(0, 30)
    while x < WIDTH * SCALE:
        broad, grey = canvas.rng.uniform(44, 70), int(canvas.rng.integers(120, 180))
        top = canvas.horizon - canvas.rng.uniform(70, 120)
        canvas.box((grey, grey - 4, grey - 10), x, top, x + broad - 2, canvas.horizon + 2)
        for wx in np.arange(x + 7, x + broad - 12, 14):
            for wy in np.arange(top + 8, canvas.horizon - 16, 20):
                canvas.box((70, 80, 96), wx, wy, wx + 7, wy + 11)
        x += broad


def _towers(canvas: Canvas) -> None:
    """Dark towers with lit windows."""
    x = -canvas.rng.uniform(0, 30)
    while x < WIDTH * SCALE:
        broad, top = canvas.rng.uniform(34, 58), canvas.horizon - canvas.rng.uniform(50, 120)
        canvas.box((26, 28, 46), x, top, x + broad - 2, canvas.horizon + 2)
        for wx in np.arange(x + 5, x + broad - 8, 9):
            for wy in np.arange(top + 6, canvas.horizon - 8, 11):
                if canvas.rng.random() < 0.6:
                    canvas.box((250, 214, 110), wx, wy, wx + 4, wy + 5)
        x += broad


BACKDROPS = {
    "beach": Backdrop(((96, 176, 236), (190, 226, 246)), ((236, 212, 160), (222, 190, 132)), 0.42, _grain, _surf),
    "sea": Backdrop(((130, 190, 232), (206, 228, 240)), ((28, 92, 152), (16, 66, 122)), 0.46, _waves),
    "lake": Backdrop(((120, 160, 214), (214, 226, 240)), ((40, 104, 112), (28, 84, 96)), 0.50, _ripples, _mountains),
    "meadow": Backdrop(((110, 184, 244), (204, 230, 250)), ((124, 190, 72), (78, 150, 40)), 0.44, _blades, _flowers),
    "forest": Backdrop(((60, 92, 62), (92, 124, 80)), ((70, 82, 42), (52, 58, 30)), 0.58, _blades, _trunks),
    "desert": Backdrop(((240, 196, 136), (252, 226, 178)), ((226, 144, 72), (204, 116, 50)), 0.44, _dunes),
    "snow": Backdrop(((178, 190, 206), (222, 228, 236)), ((236, 240, 248), (222, 230, 244)), 0.44, _drifts),
    "street": Backdrop(((186, 206, 224), (220, 226, 232)), ((142, 138, 136), (118, 114, 114)), 0.58, _paving, _houses),
    "city": Backdrop(((14, 16, 44), (48, 38, 84)), ((34, 34, 50), (46, 44, 58)), 0.66, _wet, _towers),
    "field": Backdrop(((116, 170, 224), (236, 222, 190)), ((232, 192, 84), (206, 156, 46)), 0.46, _furrows),
}
