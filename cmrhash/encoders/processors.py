"""Preparation of photos as the file of a transformers image processor describes it; never guessed."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from PIL import Image

from cmrhash.encoders.pixels import MAX_SIDE, Crop, Squash, odd_colours
from cmrhash.errors import EncoderError

FILES = ("preprocessor_config.json", "processor_config.json")  # the second has a block "image_processor"
# Processors whose arithmetic is resize, centre crop, rescale and normalise, by the start of their class names.
KNOWN = (
    "CLIP",
    "ChineseCLIP",
    "Siglip",
    "Blip",
    "Bit",
    "ViT",
    "DINOv3ViT",
    "DeiT",
    "Beit",
    "ConvNext",
    "EfficientNet",
)
WARPED = 384  # pixels: from this side on ConvNext resizes without a crop


def read_settings(folder: Path) -> dict[str, Any]:
    """The settings in the processor file of a directory; raises EncoderError if there is none."""
    fix = f"give a directory with {FILES[0]}: sizes and colours of the photos are not guessed"
    for name in FILES:
        path = folder / name
        if not path.is_file():
            continue
        try:
            content = json.loads(path.read_bytes())
            settings = content if name == FILES[0] else content.get("image_processor")
        except (OSError, ValueError, AttributeError) as error:
            raise EncoderError(f"not a readable file ({error})", path, fix) from None
        if isinstance(settings, dict):
            if "auto_map" in settings:
                raise EncoderError("names code to be run (auto_map)", path, "give a model that transformers knows")
            return settings
        if name == FILES[0]:
            raise EncoderError("not a JSON object", path, fix)
    raise EncoderError(f"no {FILES[0]}", folder, fix)


def preparation(folder: Path) -> Crop | Squash:
    """The preparation that the processor of a directory makes, equal to it within one grey level.

    Raises EncoderError without a processor file, and for a processor that does anything else.
    """
    read_settings(folder)
    import transformers

    auto: Any = transformers.AutoImageProcessor
    try:
        processor = auto.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # each layer of the library raises its own types
        reason = " ".join(str(error).split())[:160]
        raise EncoderError(f"cannot open the image processor ({reason})", folder, "get its files again") from None
    name = re.sub(r"(ImageProcessor|FeatureExtractor).*", "", type(processor).__name__)
    try:
        if name not in KNOWN:
            raise ValueError("its class is not known here")
        warps, resize, size = _geometry(processor, name)
        if not 0 < size <= resize <= MAX_SIDE:
            raise ValueError(f"a square of {size} pixels out of {resize}")
        mean, std = _colours(processor)
        if odd := odd_colours(mean, std):
            raise ValueError(odd)
        how = Image.Resampling(int(processor.resample)).name
    except (AttributeError, TypeError, ValueError, KeyError, ZeroDivisionError, OverflowError) as error:
        what = f"photos for {type(processor).__name__} cannot be prepared ({error})"
        raise EncoderError(what, folder, "choose a model whose photos are resized to one square") from None
    return Squash(resize, size, how, mean, std) if warps else Crop(resize, size, how, mean, std, down=True)


def _geometry(processor: Any, name: str) -> tuple[bool, int, int]:
    """Whether photos are squashed, side to resize to, side of the square; raises ValueError for anything else."""
    for flag in ("do_pad", "do_thumbnail", "do_align_long_axis", "do_crop_margin", "do_image_splitting"):
        if getattr(processor, flag, None):
            raise ValueError(flag)
    if not processor.do_resize:
        raise ValueError("do_resize is false")
    size = _sides(processor.size)
    crops = bool(getattr(processor, "do_center_crop", None))
    if set(size) == {"shortest_edge"}:
        short = size["shortest_edge"]
        if name == "ConvNext" and not crops:
            return (False, int(short / processor.crop_pct), short) if short < WARPED else (True, short, short)
        if not crops:
            raise ValueError("a shortest edge without a crop")
        return False, short, _square(_sides(processor.crop_size))
    side = _square(size)
    return True, side, _square(_sides(processor.crop_size)) if crops else side


def _sides(size: Any) -> dict[str, int]:
    """The fields of a size that are set, as a dictionary."""
    fields = dict(size) if isinstance(size, dict) else {k: v for k, v in vars(size).items() if not k.startswith("_")}
    return {name: int(value) for name, value in fields.items() if value is not None}


def _square(size: dict[str, int]) -> int:
    if set(size) != {"height", "width"} or size["height"] != size["width"]:
        raise ValueError(f"a size of {size}")
    return size["height"]


def _colours(processor: Any) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of channels from 0 to 1 that give what the processor gives."""
    factor = 255 * float(processor.rescale_factor) if processor.do_rescale else 255.0
    offset = 1.0 if getattr(processor, "rescale_offset", False) else 0.0
    if getattr(processor, "include_top", False):
        raise ValueError("include_top")
    normal = bool(processor.do_normalize)
    mean, std = (list(processor.image_mean), list(processor.image_std)) if normal else ([0.0] * 3, [1.0] * 3)
    if not len(mean) == len(std) == 3:
        raise ValueError(f"{len(mean)} channels")
    exact = factor == 1 and not offset
    centre = tuple(float(value) if exact else (float(value) + offset) / factor for value in mean)
    return centre, tuple(float(value) if exact else float(value) / factor for value in std)
