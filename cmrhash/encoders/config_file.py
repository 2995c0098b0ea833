"""The config.json and the weights' header of a model's directory, read without torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from cmrhash.encoders import processors
from cmrhash.encoders.sentence import PARTS
from cmrhash.errors import EncoderError

AGAIN = "give the directory of a model as transformers saves it"


def check_folder(folder: Path, kind: str) -> None:
    """Raise EncoderError for a directory whose files show at once that it cannot be used.

    kind: noun of the model for messages, "text model" or one that takes photos.
    """
    if not (folder / "config.json").is_file():
        return  # other layouts, which their own readers know
    config = check_config(folder)
    if kind != "text model":  # text models of older caches may name code, which is never run
        refuse_code(config, folder)
        processors.read_settings(folder)
    for path in sorted(folder.glob("model*.safetensors")):
        try:
            with safe_open(path, "numpy"):
                pass
        except (OSError, SafetensorError) as error:
            raise EncoderError(f"cannot load the {kind} ({error})", folder, f"give a directory with {PARTS}") from None


def check_config(folder: Path) -> dict[str, Any]:
    """Content of config.json; refuses settings that could make transformers run code other than its own."""
    path = folder / "config.json"
    try:
        config = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise EncoderError("no config.json", folder, AGAIN) from None
    except (OSError, ValueError) as error:
        raise EncoderError(f"no readable config.json ({error})", folder, AGAIN) from None
    if not isinstance(config, dict):
        raise EncoderError("config.json is not a JSON object", folder, AGAIN)
    odd = [key for key in config if key.startswith("_attn_implementation")]
    if odd:
        raise EncoderError(f"config.json sets {odd[0]}", path, "remove that field: it can load foreign code")
    return config


def refuse_code(config: Mapping[str, Any], folder: Path) -> None:
    """Raise EncoderError if a config.json names code that computes the features."""
    if "auto_map" in config:
        what = "names code to be run (auto_map), which cmrhash never does"
        fix = "give a model that transformers knows, for example BERT, CLIP, SigLIP or MetaCLIP 2"
        raise EncoderError(what, folder / "config.json", fix)
