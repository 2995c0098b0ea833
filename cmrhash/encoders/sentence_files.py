"""Files of sentence-transformers for an encoder, as ``sentence.read`` and that package read them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import safetensors.torch
from torch import Tensor, nn

from cmrhash.encoders.pooling import Dense, Truncate
from cmrhash.encoders.sentence import BEHIND, FLAGS, MODULES, PROMPTS, SETTINGS, WEIGHTS

if TYPE_CHECKING:
    from cmrhash.encoders.text import TextEncoder

PACKAGE = "sentence_transformers.models"  # dotted path of its modules, which every version of it reads


def split(state: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """State of a transformer with its layers -> file -> tensors; ``joined`` is the inverse."""
    parts: dict[str, dict[str, Tensor]] = {WEIGHTS: {}}
    for name, tensor in state.items():
        layer = re.fullmatch(rf"{BEHIND}\.(\d+)\.(.+)", name)
        file, name = (f"{int(layer[1]) + 2}_Dense/{WEIGHTS}", layer[2]) if layer else (WEIGHTS, name)
        parts.setdefault(file, {})[name] = tensor.detach().cpu().contiguous().clone()
    return parts


def joined(parts: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Tensors by file -> state of a transformer with its layers."""
    start = {file: f"{BEHIND}.{int(file.partition('_')[0]) - 2}." if "/" in file else "" for file in parts}
    return {start[file] + name: tensor for file, part in parts.items() for name, tensor in part.items()}


def contents(encoder: TextEncoder, state: Mapping[str, Tensor]) -> dict[str, bytes]:
    """File -> content of an encoder's directory with that state; without transformers' config and tokenizer."""
    plain = {file: safetensors.torch.save(part, {"format": "pt"}) for file, part in split(state).items()}
    if not encoder.is_sentence:
        return plain
    config: Any = encoder.module.config
    files = _configs(encoder.recipe, list(encoder.layers), config.hidden_size)
    return plain | {file: json.dumps(content, indent=2, ensure_ascii=False).encode() for file, content in files.items()}


def _configs(recipe: Mapping[str, Any], steps: Sequence[nn.Module], width: int) -> dict[str, Any]:
    """File -> JSON of an encoder with that recipe. width: of a token vector."""
    truncate = [step.size for step in steps if isinstance(step, Truncate)]
    steps = [step for step in steps if not isinstance(step, Truncate)]
    kinds = ["Transformer", "Pooling", *(type(step).__name__ for step in steps)]
    places = ["", *(f"{n}_{kind}" for n, kind in enumerate(kinds) if n)]
    modules = [
        {"idx": n, "name": str(n), "path": place, "type": f"{PACKAGE}.{kind}"}
        for n, (kind, place) in enumerate(zip(kinds, places, strict=True))
    ]
    modes = recipe["pooling"].split("+")
    pooling: dict[str, Any] = {flag: mode in modes for flag, mode in FLAGS.items()}
    if modes != [mode for mode in FLAGS.values() if mode in modes]:  # an order that only version 6 can write
        pooling = {"pooling_mode": [mode.replace("_len", "_len_tokens") for mode in modes]}
    files: dict[str, Any] = {MODULES: modules, SETTINGS[0]: {"max_seq_length": recipe["max_length"]}}
    files[f"{places[1]}/config.json"] = {
        "word_embedding_dimension": width,
        **pooling,
        "include_prompt": recipe.get("include_prompt", True),
    }
    for place, step in zip(places[2:], steps, strict=True):
        if isinstance(step, Dense):
            linear, activation = step.linear, type(step.activation)
            sizes = {"in_features": linear.in_features, "out_features": linear.out_features}
            more = {"bias": linear.bias is not None, "activation_function": f"torch.nn.{activation.__name__}"}
            files[f"{place}/config.json"] = {**sizes, **more}
    prompt = {"prompts": {"own": recipe["prompt"]}, "default_prompt_name": "own"} if "prompt" in recipe else {}
    files[PROMPTS] = {**prompt, **({"truncate_dim": truncate[0]} if truncate else {})}
    return files
