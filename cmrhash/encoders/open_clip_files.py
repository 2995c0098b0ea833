"""Directories of open_clip: those that open_clip saves, and copies of one tower alone.

open_clip_config.json   model_cfg and preprocess_cfg as open_clip writes them; of a copy also its tower, with the
                        smallest other tower in its place, and the name of its architecture
model.safetensors       weights; in open_clip's own directories open_clip_model.safetensors
tokenizer.json, ...     of a text tower whose tokenizer is of transformers
config.json             of a text tower of transformers
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from cmrhash.encoders.config_file import check_config, refuse_code
from cmrhash.errors import EncoderError
from cmrhash.storage.files import make_folder, write_bytes

IMAGE, TEXT = "image", "text"
CONFIG, WEIGHTS = "open_clip_config.json", "model.safetensors"
FOLDER = "directory"  # architecture of a directory that does not name its own
SMALL = {
    IMAGE: {"image_size": 8, "patch_size": 8, "width": 8, "head_width": 8, "layers": 1},
    TEXT: {"context_length": 4, "vocab_size": 8, "width": 8, "heads": 1, "layers": 1},
}
PREPARATION = {"size", "mean", "std", "interpolation", "resize_mode"}
PARTS = {IMAGE: "vision_cfg", TEXT: "text_cfg"}
HERE = "."  # in place of a model of the hub whose files are in the directory
OF_TRANSFORMERS = "hf_model_name"  # field of a text tower that is a model of transformers


def folder_of(place: str) -> Path | None:
    """The directory of open_clip that a place names; None: it names ARCH/PRETRAINED.

    Raises EncoderError for a path that is neither.
    """
    path = Path(place).expanduser()
    if (path / CONFIG).is_file():
        return path
    if path.is_dir() or place.startswith((".", "/", "~")):
        fix = f"give ARCH/PRETRAINED, or a directory with {CONFIG}"
        raise EncoderError(f"'{place}' is not a directory of open_clip", None, fix)
    return None


def read(folder: Path) -> dict[str, Any]:
    """Content of a directory's open_clip_config.json; raises EncoderError if it is not readable."""
    path = folder / CONFIG
    try:
        content = json.loads(path.read_bytes())
        config = content["model_cfg"]
        if not all(isinstance(part, dict) for part in (config, *(config[name] for name in PARTS.values()))):
            raise TypeError("model_cfg is no model")
        if "tower" in content and (lacking := PREPARATION - set(content["preprocess_cfg"])):
            raise TypeError(f"preprocess_cfg lacks {min(lacking)}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise EncoderError(f"not a config of open_clip ({error})", path, "get the directory again") from None
    return dict(content)


def network(library: Any, folder: Path, content: Mapping[str, Any]) -> Any:
    """The network of a copy without its weights. library: open_clip."""
    config = deepcopy(content["model_cfg"])
    image, words = (config[part] for part in PARTS.values())
    image["timm_model_pretrained"] = False
    custom = config.pop("custom_text", False)
    if OF_TRANSFORMERS in words:
        refuse_code(check_config(folder), folder)
        words |= {OF_TRANSFORMERS: str(folder), "hf_model_pretrained": False}
        custom = True
    kinds = (library.CoCa if "multimodal_cfg" in config else library.CustomTextCLIP) if custom else library.CLIP
    made = kinds(**config)
    made.visual.preprocess_cfg = content["preprocess_cfg"]
    return made


def alone(config: Mapping[str, Any], side: str) -> dict[str, Any]:
    """The model_cfg of a network whose other tower is the smallest one."""
    other = TEXT if side == IMAGE else IMAGE
    custom = bool(config.get("custom_text")) or OF_TRANSFORMERS in config[PARTS[TEXT]]
    own = dict(config[PARTS[side]])
    own |= {field: HERE for field in (OF_TRANSFORMERS, "hf_tokenizer_name") if own.get(field)}
    return {**config, PARTS[side]: own, PARTS[other]: SMALL[other], **({"custom_text": True} if custom else {})}


def save(encoder: Any, state: Mapping[str, Tensor], folder: Path) -> None:
    """Write a tower as a directory. encoder: with an OpenClipTower; state: tensors of its network."""
    make_folder(folder)
    tower = encoder.module
    inner = getattr(encoder.tokenizer, "tokenizer", None) if tower.side == TEXT else None
    if inner is not None:
        inner.save_pretrained(folder)
    if tower.side == TEXT and OF_TRANSFORMERS in tower.settings["model_cfg"][PARTS[TEXT]]:
        tower.network.text.config.save_pretrained(folder)
    write_bytes(folder / WEIGHTS, safetensors.torch.save(dict(state), {"format": "pt"}))
    write_bytes(folder / CONFIG, json.dumps(tower.settings, indent=2).encode())
