"""Plan of the sample's scenes: kinds of scene, kinds of thing, their combinations and labels.

Labels are the kind of scene, "night", and the kinds of things. The weights make about a quarter of all pairs of scenes
share a label: enough to learn from, and few enough that random search scores low.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

COLUMNS = ("left", "middle", "right")
NIGHT = "night"
SKY_THINGS = frozenset({"sun", "balloon", "birds"})

# kind of scene -> probability of night, and thing -> weight
SCENES: dict[str, tuple[float, dict[str, float]]] = {
    "beach": (0.08, {"palm": 5, "boat": 4, "woman": 3, "sun": 3, "dog": 1}),
    "sea": (0.10, {"boat": 7, "sun": 3, "birds": 4}),
    "lake": (0.08, {"fir": 4, "boat": 4, "tent": 2, "house": 2, "birds": 1}),
    "meadow": (0.0, {"tree": 4, "horse": 5, "house": 3, "balloon": 2, "dog": 1}),
    "forest": (0.10, {"fir": 5, "tent": 4, "dog": 2, "woman": 1}),
    "desert": (0.12, {"cactus": 6, "sun": 4, "tent": 1, "palm": 1, "car": 1}),
    "snow": (0.15, {"snowman": 6, "fir": 4, "house": 2, "dog": 1}),
    "street": (0.0, {"car": 5, "bus": 5, "tree": 2, "woman": 2, "dog": 1}),
    "city": (1.0, {"car": 4, "bus": 5, "balloon": 1}),
    "field": (0.0, {"tree": 3, "balloon": 4, "house": 2, "horse": 2, "birds": 2}),
}

# thing -> its usual colour, then an occasional one
COLOURS: dict[str, tuple[str, ...]] = {
    "sun": ("yellow",),
    "balloon": ("colourful",),
    "birds": ("large",),
    "house": ("red", "white"),
    "tree": ("green",),
    "fir": ("dark green",),
    "palm": ("green",),
    "boat": ("white", "red"),
    "car": ("yellow", "red"),
    "bus": ("blue",),
    "dog": ("black", "brown"),
    "horse": ("brown", "white"),
    "tent": ("orange", "blue"),
    "cactus": ("green",),
    "snowman": ("white",),
    "woman": ("red",),
}
IN_PAIRS = frozenset({"house", "tree", "fir", "palm", "boat", "car", "dog", "horse", "tent", "cactus", "balloon"})
CLASSES = (*SCENES, NIGHT, *COLOURS)


@dataclass(frozen=True)
class Thing:
    """One or two things of a kind in one column of the image."""

    kind: str
    colour: str
    number: int
    column: str


@dataclass(frozen=True)
class Scene:
    """A scene, from which image, captions and labels of one item are made."""

    kind: str
    night: bool
    clouds: bool
    things: tuple[Thing, ...]

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of its labels, in the order of ``CLASSES``."""
        has = {self.kind, *(thing.kind for thing in self.things)} | ({NIGHT} if self.night else set())
        return tuple(name for name in CLASSES if name in has)


def compose(seed: int, count: int) -> tuple[Scene, ...]:
    """Scenes of a sample; kinds take turns, so that all of them occur."""
    rng = random.Random(f"scenes/{seed}")
    kinds = list(SCENES)
    order = [kinds[i % len(kinds)] for i in range(count)]
    rng.shuffle(order)
    return tuple(_scene(kind, rng) for kind in order)


def _scene(kind: str, rng: random.Random) -> Scene:
    chance_of_night, weights = SCENES[kind]
    night = rng.random() < chance_of_night
    choice = {thing: weight for thing, weight in weights.items() if not (night and thing == "sun")}
    columns = rng.sample(COLUMNS, rng.choice((1, 2, 2, 3)))
    things: list[Thing] = []
    for column in columns:
        if not choice:
            break
        (name,) = rng.choices(list(choice), list(choice.values()))
        del choice[name]
        colour = COLOURS[name][-1 if rng.random() < 0.2 else 0]
        things.append(Thing(name, colour, 2 if name in IN_PAIRS and rng.random() < 0.25 else 1, column))
    return Scene(kind, night, not night and rng.random() < 0.4, tuple(things))
