"""Image encoders of the library timm: networks without a classifier, with the preparation that timm's settings say."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from cmrhash.config import RANDOM
from cmrhash.encoders import hub, packages
from cmrhash.encoders.config_file import refuse_too_large
from cmrhash.encoders.feature_maps import PENULTIMATE
from cmrhash.encoders.pixels import MAX_SIDE, Crop, Squash, odd_colours
from cmrhash.encoders.weights import load_state, read_state, refuse_broken
from cmrhash.errors import EncoderError, did_you_mean, some_of

FILES = ("model.safetensors", "pytorch_model.bin")  # of a model on the hub, the first that is there
DEFAULT = "default"  # weights of timm's own hub


def network(model: str, weights: str, offline: bool) -> tuple[Any, int, Crop | Squash, dict[str, Any], str]:
    """Network without a classifier, number of its features, crop, part of the recipe, and source of the weights.

    model: "timm:NAME"; weights: "default" (of timm's hub), a file, or "random". Raises UsageError without timm,
    EncoderError for an unknown name, for weights that do not fit, and for another preparation of photos.
    """
    name = model.removeprefix(packages.TIMM)
    timm = packages.load(model)
    config = _config(timm, name)
    if weights == RANDOM:
        module, source = timm.create_model(name, pretrained=False, num_classes=0), RANDOM
    elif weights == DEFAULT:
        module, source = _pretrained(timm, name, config, offline), DEFAULT
    else:
        path = Path(weights).expanduser()
        state = read_state(path)
        module, source = timm.create_model(name, pretrained=False, num_classes=0), str(path.resolve())
        heads = [config.classifier] if isinstance(config.classifier, str) else list(config.classifier or [])
        kept = {key: x for key, x in state.items() if not key.startswith(tuple(f"{head}." for head in heads))}
        # some networks keep a layer in the classifier's place
        inside = {key: x for key, x in state.items() if key in module.state_dict()}
        load_state(module, kept | inside, model, path)
    crop = preparation(timm, module.eval(), model)
    with torch.inference_mode():
        features = module(torch.zeros(1, 3, crop.size, crop.size))
    if not isinstance(features, torch.Tensor) or features.ndim != 2:
        raise EncoderError(f"{model} gives no vector per photo", None, "choose another model", option="image_model")
    return module, features.shape[1], crop, {"layer": PENULTIMATE}, source


def _config(timm: Any, name: str) -> Any:
    """timm's settings of the weights of a name; raises EncoderError for an unknown name or tag."""
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        near = did_you_mean(architecture, timm.list_models()) or "see timm.list_models()"
        raise EncoderError(f"timm has no model '{architecture}'", None, near, option="image_model")
    known = [one.partition(".")[2] for one in timm.list_pretrained(f"{architecture}.*")]
    if tag and tag not in known:
        fix = f"choose one of {some_of(known)}" if known else "leave the tag out, and give `image_weights`"
        raise EncoderError(f"timm has no weights '{tag}' of {architecture}", None, fix, option="image_model")
    return timm.get_pretrained_cfg(name)


def _pretrained(timm: Any, name: str, config: Any, offline: bool) -> Any:
    """The network with the weights that timm names on the hub, by timm's own loader."""
    fix = 'give `image_weights="FILE"`, or try `image_weights="random"`'
    if not config.hf_hub_id:
        raise EncoderError(f"timm names no weights of {name} on the hub", None, fix)
    names = FILES if config.hf_hub_filename is None else (config.hf_hub_filename,)
    repository, _, revision = config.hf_hub_id.partition("@")
    path = hub.locate_file(repository, names, offline, "timm model", fix, revision or None)
    refuse_too_large([path], path)
    try:
        module = timm.create_model(name, pretrained=True, pretrained_cfg_overlay={"file": path, "custom_load": False})
    except Exception as error:  # each layer of the libraries raises its own types
        reason = " ".join(str(error).split())[:160]
        raise EncoderError(f"timm cannot load {name} ({reason})", path, "get the file again") from None
    module.reset_classifier(0)
    refuse_broken(module, path)
    return module


def preparation(timm: Any, module: Any, model: str) -> Crop | Squash:
    """The preparation that timm makes for a network; raises EncoderError for one that is no crop or squash."""
    config = timm.data.resolve_model_data_config(module)
    (channels, size, width), how = config["input_size"], config["interpolation"].upper()
    resize, mode = math.floor(size / config["crop_pct"]), config["crop_mode"]
    margin = (resize - size) / 2
    mean, std = (tuple(map(float, config[name])) for name in ("mean", "std"))
    colours = odd_colours(mean, std)
    odd = {
        f"{channels} channels": channels != 3,
        f"{size} x {width} pixels": size != width,
        f"the interpolation '{how.lower()}'": how not in Image.Resampling.__members__,
        f"the crop mode '{mode}'": mode not in ("center", "squash"),
        f"a square of {size} pixels out of {resize}": not 0 < size <= resize <= MAX_SIDE,
        f"a margin of {margin} pixels": mode == "squash" and round(margin) != math.floor(margin),
        colours: bool(colours),
    }
    if what := [name for name, is_so in odd.items() if is_so]:
        fix = "choose a model whose photos are resized to one square"
        raise EncoderError(f"photos for {model} cannot be prepared ({what[0]})", None, fix, option="image_model")
    kind = Squash if mode == "squash" else Crop
    return kind(resize, size, how, mean, std)
