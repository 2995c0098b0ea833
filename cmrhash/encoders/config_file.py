"""The config.json and the weights' header of a model's directory, read without torch."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from tokenizers import Tokenizer

from cmrhash.encoders import processors
from cmrhash.encoders.sentence import PARTS
from cmrhash.errors import EncoderError

ONE_MODEL = "get config.json and the weights of one model"
AGAIN = "give the directory of a model as transformers saves it"
BOTH = "give a directory with both of the same model"
SHARE = 0.9  # of a model's vocabulary that its tokenizer has at least


def check_folder(folder: Path, kind: str) -> None:
    """Raise EncoderError for a directory whose files show at once that it cannot be used.

    kind: noun of the model for messages, "text model", "image model" or "dual encoder".
    """
    for path in sorted(folder.iterdir()):
        if path.exists() and not (path.is_file() or path.is_dir()):  # a pipe or a device has no end
            raise EncoderError("not a regular file", path, AGAIN)
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
    check_sizes(folder)
    if kind != "image model":
        _refuse_other_tokenizer(config.get("text_config", config), folder)


def check_config(folder: Path) -> dict[str, Any]:
    """Content of config.json; refuses settings that could make transformers run code other than its own."""
    path = folder / "config.json"
    try:
        config = json.loads(path.read_bytes())
    except FileNotFoundError:
        fix = f"{AGAIN}; before the name of a model of open_clip write open_clip:"
        raise EncoderError("no config.json", folder, fix) from None
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


def check_sizes(folder: Path) -> None:
    """Raise EncoderError for weights that do not fit into memory, and for settings that the weights cannot fill."""
    refuse_too_large(folder.glob("model*.safetensors"), folder)
    tensors = numbers = 0
    for path in folder.glob("model*.safetensors"):
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            tensors += file.read(min(length, path.stat().st_size)).count(b"data_offsets")
        numbers += path.stat().st_size
    for name, value in _sizes(check_config(folder)):
        if value < 1 and name in ("hidden_size", "image_size", "patch_size"):
            raise EncoderError(f"config.json says {name} {value}", folder, ONE_MODEL)
        most, unit = (tensors, "tensors") if "layer" in name else (numbers, "bytes")
        if numbers and value > most:
            what = f"config.json says {name} {value}, but the weights have {most} {unit}"
            raise EncoderError(what, folder, ONE_MODEL)


def _sizes(config: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    """Names and values of the settings, also of towers, that decide how large the model is."""
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from _sizes(value)
        elif isinstance(value, int) and re.search(r"layers|_size$|_dim$|^d_|^n_|^dim$|position_embeddings|heads", name):
            yield name, value


def refuse_too_large(files: Iterable[Path], where: Path) -> None:
    """Raise EncoderError for files of weights that do not fit into the memory of this machine."""
    if not hasattr(os, "sysconf"):
        return
    size = sum(path.stat().st_size for path in files)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if size > memory:
        what = f"the weights have {size / 1e9:.0f} GB, this machine has {memory / 1e9:.0f} GB of memory"
        raise EncoderError(what, where, "choose a smaller model")


def _refuse_other_tokenizer(config: Any, folder: Path) -> None:
    """Raise EncoderError for a tokenizer.json with much fewer word pieces than the model, or with more."""
    size = config.get("vocab_size") if isinstance(config, Mapping) else None
    if not isinstance(size, int) or not (folder / "tokenizer.json").is_file():
        return
    try:
        own = Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab_size()
    except Exception as error:  # of the library's own type
        raise EncoderError(f"no readable tokenizer.json ({error})", folder, f"give a directory with {PARTS}") from None
    if not SHARE * size <= own <= size:
        raise EncoderError(f"tokenizer ({own} word pieces) and model ({size}) do not match", folder, BOTH)
