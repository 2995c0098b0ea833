"""Encoders of other libraries, named by a prefix, and the extras of cmrhash that install them."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cmrhash.errors import EncoderError, UsageError

TIMM, OPEN_CLIP = "timm:", "open_clip:"  # before the name of a model


def is_named(model: str) -> bool:
    """Whether a model is named as one of another library."""
    return model.startswith((TIMM, OPEN_CLIP))


def names_file(source: str) -> bool:
    """Whether a source of open_clip is a directory of this machine, or has a file of it as its PRETRAINED."""
    place = source.removeprefix(OPEN_CLIP)
    return source != place and ("/" in place.partition("/")[2] or Path(place).is_absolute())


def is_open_clip(recipe: Mapping[str, Any]) -> bool:
    """Whether a recipe is that of a tower of open_clip."""
    return str(recipe.get("encoder", "")).startswith(OPEN_CLIP)


def source_of(recipe: Mapping[str, Any], place: str) -> str:
    """The model in a place as it is opened: a directory of open_clip has its prefix."""
    return place if is_named(place) or not is_open_clip(recipe) else OPEN_CLIP + place


def find(model: str) -> str:
    """Name of the package that a model needs, and of its extra; raises UsageError if it is not installed."""
    package = model.partition(":")[0]
    if importlib.util.find_spec(package) is None:
        extra = package.replace("_", "-")  # names of extras are written so; pip before 23.3 knows no other form
        raise UsageError(f"'{model}' needs the package {package}", None, f'pip install "cmrhash[{extra}]"')
    return package


def load(model: str) -> Any:
    """Import the package that a model needs; raises UsageError as ``find`` does."""
    return importlib.import_module(find(model))


def refuse_single(model: str, given: str) -> None:
    """Raise EncoderError for a model of timm that is given as a text model, or as the model of both.

    given: "text model", "both", or anything else for an image model.
    """
    if model.startswith(TIMM) and given in ("text model", "both"):
        what = "is no dual encoder" if given == "both" else "is an image model, given as a text model"
        raise EncoderError(f"'{model}' {what}", None, "give it as `image_model`, and a text model beside it")
