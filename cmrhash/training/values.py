"""Values of settings to try, as text: "lr=0.001,0.002" (each), "epochs=30" (fixed), "dropout=0.1..0.5" (drawn)."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any, NamedTuple

from cmrhash.config import TrainConfig
from cmrhash.errors import UsageError, did_you_mean, some_of
from cmrhash.training.names import CHOSEN

KINDS = {field.name: str(field.type).split(" ")[0] for field in fields(TrainConfig)}
DIGITS = 3  # significant digits of a drawn number
DECADE = 10  # a range whose end is so many times its start is drawn on a logarithmic scale
ATTEMPTS = 1000  # drawings per setting that is wanted, most of them alike where few are possible
Setting = dict[str, Any]


class Range(NamedTuple):
    """Numbers from low to high. whole: integers only."""

    low: float
    high: float
    whole: bool

    def draw(self, rng: random.Random) -> float:
        """A number, evenly on a linear or, over DECADE and more, on a logarithmic scale."""
        if self.low > 0 and self.high >= DECADE * self.low:
            value = math.exp(rng.uniform(math.log(self.low), math.log(self.high)))
        else:
            value = rng.uniform(self.low, self.high)
        return round(value) if self.whole else min(self.high, max(self.low, float(f"{value:.{DIGITS}g}")))


def settings_of(values: Sequence[str], samples: int | None) -> list[Setting]:
    """Settings to try: all combinations, or so many that are drawn; the first N of 2 N are those of N.

    values: one text per setting, as in the module's docstring. Raises UsageError for text that names no setting or no
    value of it, for a range without ``samples``, and for fewer than two settings.
    """
    found: dict[str, list[Any] | Range] = {}
    for text in values:
        name, value = _parsed(text)
        if name in found:
            raise UsageError(
                f"`{name}` is given twice", None, f"give all its values at once: {name}=A,B", option="values"
            )
        found[name] = value
    if samples is not None and samples < 1:
        raise UsageError(f"{samples} is out of range", None, "give a whole number from 1", option="samples")
    ranges = [name for name, value in found.items() if isinstance(value, Range)]
    if ranges and samples is None:
        fix = f"add `samples=20`, or list values: {ranges[0]}=A,B"
        raise UsageError(f"{ranges[0]} is a range, from which values are drawn", None, fix, option="values")
    settings = _combined(found) if not ranges else None
    if samples is not None and (settings is None or len(settings) > samples):
        settings = _drawn(found, samples)
    if settings is None or len(settings) < 2:
        fix = "give a setting several values, such as lr=0.001,0.002"
        raise UsageError("there is nothing to choose from", None, fix, option="values")
    return settings


def _combined(values: Mapping[str, Any]) -> list[Setting]:
    return [dict(zip(values, each, strict=True)) for each in itertools.product(*values.values())]


def _drawn(values: Mapping[str, list[Any] | Range], samples: int) -> list[Setting]:
    """Different settings, each value drawn on its own."""
    rng, settings = random.Random(0), list[Setting]()
    for _ in range(ATTEMPTS * samples):
        one = {name: of.draw(rng) if isinstance(of, Range) else rng.choice(of) for name, of in values.items()}
        if one not in settings:
            settings.append(one)
        if len(settings) == samples:
            break
    return settings


def _parsed(text: str) -> tuple[str, list[Any] | Range]:
    """Name and values of a setting."""
    name, given, value = text.partition("=")
    name = name.strip().replace("-", "_")
    if not given or name not in CHOSEN:
        fix = f"{did_you_mean(name, CHOSEN)} settings: {some_of(sorted(CHOSEN))}"
        what = f"'{name}' is no setting of a training" if given else f"'{text}' gives no values (NAME=VALUE,VALUE)"
        raise UsageError(what, None, fix if given else "write such as lr=0.001,0.002", option="values")
    low, dots, high = value.partition("..")
    if not dots:
        return name, list(dict.fromkeys(_typed(name, one.strip()) for one in value.split(",")))
    ends = [_typed(name, end.strip()) for end in (low, high)]
    if not all(type(end) in (int, float) for end in ends) or not -math.inf < ends[0] < ends[1] < math.inf:
        fix = "give two numbers, the smaller one first, such as dropout=0.1..0.5"
        raise UsageError(f"{name}={value} is no range", None, fix, option="values")
    return name, Range(ends[0], ends[1], KINDS[name] == "int")


def _typed(name: str, value: str) -> Any:
    """A value of the setting's type."""
    kind = KINDS[name]
    if kind == "str":
        return value
    if kind == "bool" and value.lower() in ("true", "false"):
        return value.lower() == "true"
    try:
        return {"int": int, "float": float}[kind](value)
    except (KeyError, ValueError):
        named = {"int": "a whole number", "float": "a number", "bool": "true or false"}[kind]
        raise UsageError(f"{name}='{value}'", None, f"give {named}", option="values") from None
