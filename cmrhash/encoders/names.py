"""Names of encoders, checked before torch is imported: a misspelt one is refused in a tenth of a second."""

from __future__ import annotations

import re
from functools import cache
from importlib.machinery import PathFinder
from pathlib import Path

from cmrhash.config import RANDOM, ExtractConfig
from cmrhash.encoders import bag_and_vectors, hub, packages, sentence
from cmrhash.errors import EncoderError, UsageError, did_you_mean

MODEL = re.compile(r'^@register_model\((?:name="(\w+)")?\)\n(?:[@ )].*\n)*def (\w+)', re.M)


def check_image_model(model: str) -> None:
    """Raise EncoderError for an image model that neither is a folder, an id or of another library nor of torchvision.

    Names that only torch can tell pass.
    """
    if hub.names_folder(model) or packages.is_named(model):
        return
    if (known := torchvision_models()) and model not in known:
        fix = did_you_mean(model, known) or f"for example resnet18, vgg16, efficientnet_b0 or {known[-1]}"
        raise EncoderError(f"unknown image model '{model}'", None, fix, option="image_model")


def check_image_options(config: ExtractConfig, lacking: str = "") -> None:
    """Raise UsageError for an image size, layers or a mirror image that the image model cannot have.

    lacking: why there is no image model, for the message.
    """
    model = config.image_model
    regions = model.startswith("fasterrcnn_")
    of_open_clip = model.startswith(packages.OPEN_CLIP)
    tower = of_open_clip or (hub.names_folder(model) and not packages.is_named(model))
    refused = {
        "image_size": lacking or ("has photos of one size" if regions or of_open_clip else ""),
        "image_layers": lacking or ("has regions" if regions else "is a tower, which has a `layer`" if tower else ""),
        "mirror": lacking or ("has regions" if regions else ""),
    }
    for option, why in refused.items():
        if getattr(config, option) and why:
            what = why if why == lacking else f"{model} {why}"
            raise UsageError(what, None, "leave it out", option=option)


def check_text_model(model: str, pooling: str | None, offline: bool) -> None:
    """Raise EncoderError for a transformer that cannot be found, UsageError for a pooling that it does not have."""
    if bag_and_vectors.takes(model) or packages.is_named(model):
        return
    if pooling is not None:
        sentence.check_pooling(pooling)
    if model != RANDOM:
        sentence.locate(model, offline)


@cache
def torchvision_models() -> list[str]:
    """Names of torchvision's classifiers and Faster R-CNNs, read out of its sources; none where there are no sources.

    An import of torchvision takes seconds.
    """
    spec = PathFinder.find_spec("torchvision")
    folder = Path(spec.origin).parent / "models" if spec and spec.origin else Path()
    found = [(name, path) for path in [*folder.glob("*.py"), *folder.glob("detection/*.py")] for name in _names(path)]
    return [name for name, path in found if path.parent == folder or name.startswith("fasterrcnn_")]


def _names(path: Path) -> list[str]:
    try:
        return [named or function for named, function in MODEL.findall(path.read_text(encoding="utf-8"))]
    except (OSError, ValueError):
        return []
