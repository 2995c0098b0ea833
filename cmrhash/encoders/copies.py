"""Copies of encoders with given tensors: a file of weights, or a directory that opens as the encoder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from cmrhash.encoders import open_clip_files, sentence_files, tower
from cmrhash.encoders.image import ImageEncoder
from cmrhash.encoders.open_clip_towers import OpenClipTower
from cmrhash.encoders.regions import Regions
from cmrhash.encoders.text import TextEncoder
from cmrhash.storage.files import make_folder, write_bytes

WRAPPERS = (tower.Tower, OpenClipTower, Regions)


def network_of(module: Any) -> Any:
    """The network whose tensors a copy holds: that of a tower or of regions, or the module itself."""
    return module.network if isinstance(module, WRAPPERS) else module


def is_folder(encoder: ImageEncoder | TextEncoder) -> bool:
    """Whether a copy of an encoder is a directory."""
    return isinstance(encoder, TextEncoder) or isinstance(encoder.module, (tower.Tower, OpenClipTower))


def write(encoder: ImageEncoder | TextEncoder, state: Mapping[str, Tensor], path: Path) -> None:
    """Write a copy of an encoder. state: tensors of ``network_of`` its module."""
    state = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}
    module: Any = encoder.module
    if isinstance(module, OpenClipTower):
        open_clip_files.save(encoder, state, path)
    elif isinstance(encoder, TextEncoder):
        make_folder(path)
        module.config.save_pretrained(path)
        encoder.tokenizer.save_pretrained(path)
        for name, content in sentence_files.contents(encoder, state).items():
            write_bytes(path / name, content)
    elif isinstance(module, tower.Tower):
        tower.save(module, dict(state), path)
    else:
        write_bytes(path, safetensors.torch.save(dict(state), {"format": "pt"}))
