"""Captions of the sample's scenes, in English and in German, made by grammar.

A caption is a few clauses, each closed by ";", as IAPR TC-12's descriptions are. The phrasing is drawn, words
have synonyms, and now and then a thing goes unmentioned, so that a caption is no mere list of labels. The two
languages are drawn apart: neither is the other's translation.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from cmrhash.data.sample.plan import SKY_THINGS, Scene, Thing


@dataclass(frozen=True)
class _Noun:
    """A German noun: gender (m, f, n), singular, plural, dative plural."""

    gender: str
    one: str
    many: str
    to_many: str


# thing -> nouns (singular, plural), what it is doing
_EN: dict[str, tuple[tuple[tuple[str, str], ...], str]] = {
    "sun": ((("sun", "suns"),), "shining"),
    "balloon": ((("balloon", "balloons"), ("hot-air balloon", "hot-air balloons")), "floating"),
    "birds": ((("flock of birds", "flocks of birds"),), "flying"),
    "house": ((("house", "houses"), ("cottage", "cottages")), "standing"),
    "tree": ((("tree", "trees"), ("leafy tree", "leafy trees")), "standing"),
    "fir": ((("fir", "firs"), ("fir tree", "fir trees")), "standing"),
    "palm": ((("palm tree", "palm trees"), ("palm", "palms")), "standing"),
    "boat": ((("sailing boat", "sailing boats"), ("yacht", "yachts")), "drifting"),
    "car": ((("car", "cars"),), "parked"),
    "bus": ((("bus", "buses"), ("city bus", "city buses")), "waiting"),
    "dog": ((("dog", "dogs"),), "standing"),
    "horse": ((("horse", "horses"),), "standing"),
    "tent": ((("tent", "tents"),), "standing"),
    "cactus": ((("cactus", "cacti"),), "standing"),
    "snowman": ((("snowman", "snowmen"),), "standing"),
    "woman": ((("woman in a {} dress", ""), ("tourist in a {} dress", "")), "walking"),
}
# thing -> nouns, verb (singular, plural)
_DE: dict[str, tuple[tuple[_Noun, ...], tuple[str, str]]] = {
    "sun": ((_Noun("f", "Sonne", "Sonnen", "Sonnen"),), ("scheint", "scheinen")),
    "balloon": (
        (
            _Noun("m", "Heißluftballon", "Heißluftballons", "Heißluftballons"),
            _Noun("m", "Ballon", "Ballons", "Ballons"),
        ),
        ("schwebt", "schweben"),
    ),
    "birds": ((_Noun("m", "Vogelschwarm", "Vogelschwärme", "Vogelschwärmen"),), ("fliegt", "fliegen")),
    "house": (
        (_Noun("n", "Haus", "Häuser", "Häusern"), _Noun("n", "Häuschen", "Häuschen", "Häuschen")),
        ("steht", "stehen"),
    ),
    "tree": (
        (_Noun("m", "Baum", "Bäume", "Bäumen"), _Noun("m", "Laubbaum", "Laubbäume", "Laubbäumen")),
        ("steht", "stehen"),
    ),
    "fir": (
        (_Noun("f", "Tanne", "Tannen", "Tannen"), _Noun("m", "Tannenbaum", "Tannenbäume", "Tannenbäumen")),
        ("steht", "stehen"),
    ),
    "palm": ((_Noun("f", "Palme", "Palmen", "Palmen"),), ("steht", "stehen")),
    "boat": (
        (_Noun("n", "Segelboot", "Segelboote", "Segelbooten"), _Noun("f", "Jacht", "Jachten", "Jachten")),
        ("treibt", "treiben"),
    ),
    "car": (
        (_Noun("n", "Auto", "Autos", "Autos"), _Noun("m", "Wagen", "Wagen", "Wagen")),
        ("parkt", "parken"),
    ),
    "bus": (
        (_Noun("m", "Bus", "Busse", "Bussen"), _Noun("m", "Linienbus", "Linienbusse", "Linienbussen")),
        ("wartet", "warten"),
    ),
    "dog": ((_Noun("m", "Hund", "Hunde", "Hunden"),), ("steht", "stehen")),
    "horse": ((_Noun("n", "Pferd", "Pferde", "Pferden"),), ("steht", "stehen")),
    "tent": ((_Noun("n", "Zelt", "Zelte", "Zelten"),), ("steht", "stehen")),
    "cactus": ((_Noun("m", "Kaktus", "Kakteen", "Kakteen"),), ("steht", "stehen")),
    "snowman": ((_Noun("m", "Schneemann", "Schneemänner", "Schneemännern"),), ("steht", "stehen")),
    "woman": (
        (
            _Noun("f", "Frau in einem {}en Kleid", "", ""),
            _Noun("f", "Touristin in einem {}en Kleid", "", ""),
        ),
        ("geht", "gehen"),
    ),
}
_DE_COLOURS = {
    "yellow": "gelb",
    "colourful": "bunt",
    "large": "groß",
    "red": "rot",
    "white": "weiß",
    "green": "grün",
    "dark green": "dunkelgrün",
    "blue": "blau",
    "black": "schwarz",
    "brown": "braun",
    "orange": "orangefarben",
}
_EN_SCENES: dict[str, tuple[str, ...]] = {
    "beach": ("a sandy beach at the sea", "a bright beach", "a wide sandy beach"),
    "sea": ("the open sea", "a blue sea full of waves", "a wavy ocean"),
    "lake": ("a mountain lake", "a lake in front of grey mountains", "a calm lake in the mountains"),
    "meadow": ("a green meadow", "a meadow full of flowers", "a flowering meadow"),
    "forest": ("a dense forest", "a dark forest", "a clearing in the forest"),
    "desert": ("a desert full of dunes", "an orange desert", "a sandy desert"),
    "snow": ("a snowy landscape", "a field covered in snow", "a white winter landscape"),
    "street": ("a street in front of grey houses", "a grey street in a town", "a paved street"),
    "city": ("a city full of lit windows", "the skyline of a city", "a city of high buildings"),
    "field": ("a yellow wheat field", "a field of ripe wheat", "a golden field of grain"),
}
_DE_SCENES: dict[str, tuple[str, ...]] = {
    "beach": ("ein Sandstrand am Meer", "ein heller Strand", "ein breiter Sandstrand"),
    "sea": ("das offene Meer", "ein blaues Meer voller Wellen", "ein bewegtes Meer"),
    "lake": ("ein Bergsee", "ein See vor grauen Bergen", "ein ruhiger See in den Bergen"),
    "meadow": ("eine grüne Wiese", "eine Wiese voller Blumen", "eine blühende Wiese"),
    "forest": ("ein dichter Wald", "ein dunkler Wald", "eine Lichtung im Wald"),
    "desert": ("eine Wüste voller Dünen", "eine orangefarbene Wüste", "eine sandige Wüste"),
    "snow": ("eine verschneite Landschaft", "ein schneebedecktes Feld", "eine weiße Winterlandschaft"),
    "street": (
        "eine Straße vor grauen Häusern",
        "eine graue Straße in einer Stadt",
        "eine gepflasterte Straße",
    ),
    "city": (
        "eine Stadt voller heller Fenster",
        "die Silhouette einer Stadt",
        "eine Stadt voller Hochhäuser",
    ),
    "field": ("ein gelbes Weizenfeld", "ein reifes Weizenfeld", "ein goldenes Getreidefeld"),
}
_EN_NIGHT = ("at night", "by night")
_DE_NIGHT = ("bei Nacht", "in der Nacht")
_EN_MOON = ("a bright moon in the night sky", "a dark night sky with stars", "it is night")
_DE_MOON = ("ein heller Mond am Nachthimmel", "ein dunkler Nachthimmel mit Sternen", "es ist Nacht")
_EN_CLOUDS = ("a bright sky with white clouds in the background", "white clouds in the sky")
_DE_CLOUDS = ("ein heller Himmel mit weißen Wolken im Hintergrund", "weiße Wolken am Himmel")
# column -> on the ground, in the sky
_EN_WHERE = {
    "left": (("on the left", "on the left side"), ("at the top left", "in the sky on the left")),
    "middle": (("in the middle", "in the centre"), ("in the middle of the sky", "in the sky")),
    "right": (("on the right", "on the right side"), ("at the top right", "in the sky on the right")),
}
_DE_WHERE = {
    "left": (("links", "auf der linken Seite"), ("oben links", "links am Himmel")),
    "middle": (("in der Mitte", "in der Bildmitte"), ("oben in der Mitte", "am Himmel")),
    "right": (("rechts", "auf der rechten Seite"), ("oben rechts", "rechts am Himmel")),
}
_ENDINGS = {  # of an adjective after "ein", by case and gender
    "nominative": {"m": "er", "f": "e", "n": "es"},
    "accusative": {"m": "en", "f": "e", "n": "es"},
    "dative": {"m": "en", "f": "en", "n": "en"},
}
_ARTICLES = {
    "nominative": {"m": "ein", "f": "eine", "n": "ein"},
    "accusative": {"m": "einen", "f": "eine", "n": "ein"},
    "dative": {"m": "einem", "f": "einer", "n": "einem"},
}
_MENTION_THING, _MENTION_NIGHT, _MENTION_SCENE = 0.88, 0.85, 0.92


def english(scene: Scene, rng: random.Random) -> str:
    """An English caption of the scene."""
    return _caption(scene, rng, _ENGLISH)


def german(scene: Scene, rng: random.Random) -> str:
    """A German caption of the scene."""
    return _caption(scene, rng, _GERMAN)


def _en_noun(thing: Thing, rng: random.Random) -> str:
    """Number, colour and noun: "a red house", "two red houses"."""
    one, many = rng.choice(_EN[thing.kind][0])
    if "{}" in one:
        return "a " + one.format(thing.colour)
    if thing.number == 2:
        return f"two {thing.colour} {many}"
    return f"{'an' if thing.colour[0] in 'aeiou' else 'a'} {thing.colour} {one}"


def _en_clause(thing: Thing, rng: random.Random) -> str:
    noun, where = _en_noun(thing, rng), rng.choice(_EN_WHERE[thing.column][thing.kind in SKY_THINGS])
    be = "is" if thing.number == 1 else "are"
    doing = _EN[thing.kind][1]
    return rng.choice((f"{noun} {where}", f"{where} there {be} {noun}", f"{noun} {be} {doing} {where}"))


def _de_noun(thing: Thing, case: str, rng: random.Random) -> str:
    """Article or number, adjective and noun in that case: "ein rotes Haus", "zwei roten Häusern"."""
    noun, colour = rng.choice(_DE[thing.kind][0]), _DE_COLOURS[thing.colour]
    article = _ARTICLES[case][noun.gender]
    if "{}" in noun.one:
        return f"{article} {noun.one.format(colour)}"
    if thing.number == 1:
        return f"{article} {colour}{_ENDINGS[case][noun.gender]} {noun.one}"
    return f"zwei {colour}en {noun.to_many}" if case == "dative" else f"zwei {colour}e {noun.many}"


def _de_clause(thing: Thing, rng: random.Random) -> str:
    where = rng.choice(_DE_WHERE[thing.column][thing.kind in SKY_THINGS])
    plural = thing.number - 1
    subject, verb, be = (
        _de_noun(thing, "nominative", rng),
        _DE[thing.kind][1][plural],
        ("ist", "sind")[plural],
    )
    forms = (
        f"{subject} {where}",
        f"{where} {verb} {subject}",
        f"{where} {be} {subject} zu sehen",
        f"{where} sieht man {_de_noun(thing, 'accusative', rng)}",
    )
    return rng.choice(forms)


@dataclass(frozen=True)
class _Language:
    """What the plan of a caption needs of a language; ``noun`` is in the case that ``with_`` asks for."""

    scenes: dict[str, tuple[str, ...]]
    night: tuple[str, ...]
    moon: tuple[str, ...]
    clouds: tuple[str, ...]
    with_: str
    and_: str
    noun: Callable[[Thing, random.Random], str]
    clause: Callable[[Thing, random.Random], str]


def _de_dative(thing: Thing, rng: random.Random) -> str:
    return _de_noun(thing, "dative", rng)


_ENGLISH = _Language(_EN_SCENES, _EN_NIGHT, _EN_MOON, _EN_CLOUDS, " with ", " and ", _en_noun, _en_clause)
_GERMAN = _Language(_DE_SCENES, _DE_NIGHT, _DE_MOON, _DE_CLOUDS, " mit ", " und ", _de_dative, _de_clause)


def _caption(scene: Scene, rng: random.Random, words: _Language) -> str:
    """The setting, then the things it does not have "with" it, then clouds; each but some of the time."""
    told = [thing for thing in scene.things if rng.random() < _MENTION_THING]
    rng.shuffle(told)
    clauses: list[str] = []
    if rng.random() < _MENTION_SCENE or not told:
        setting = rng.choice(words.scenes[scene.kind])
        night = scene.night and rng.random() < _MENTION_NIGHT
        as_clause = rng.random() < 0.5
        if night and not as_clause:
            setting += " " + rng.choice(words.night)
        if told and rng.random() < 0.35:
            setting += words.with_ + words.and_.join(words.noun(thing, rng) for thing in told[:2])
            told = told[2:]
        clauses += [setting, rng.choice(words.moon)] if night and as_clause else [setting]
    clauses += [words.clause(thing, rng) for thing in told]
    if scene.clouds and rng.random() < 0.7:
        clauses.append(rng.choice(words.clouds))
    return "; ".join(clauses) + ";"
