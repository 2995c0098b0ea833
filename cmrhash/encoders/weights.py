"""Weights on disk -> tensors, without code execution and with digests. Shared by image and text encoders."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import torch

from cmrhash.errors import EncoderError


def state_digest(model: torch.nn.Module) -> str:
    """sha256 over the names, types and bytes of all parameters and buffers: what the numbers really depend on."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def check_name_digest(path: Path) -> None:
    """A file called NAME-<8 or more hex digits>.EXT must have a sha256 that begins so (torch checks downloads only)."""
    match = re.search(r"-([0-9a-f]{8,64})\.\w+$", path.name)
    if not match:
        return
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if not found.startswith(match[1]):
        size = path.stat().st_size
        what = f"expected sha256 {match[1]}..., found {found[:8]}... ({size:,} bytes): truncated or another file"
        raise EncoderError(what, path, "delete it and fetch it again")


def read_state(path: Path) -> dict[str, torch.Tensor]:
    """A state dict from .safetensors, or from a torch file by ``weights_only`` (no code in it is run).

    Raises EncoderError if the file is missing, cut short or holds something else.
    """
    if not path.is_file():
        raise EncoderError("no such weights file", path, "check the path")
    check_name_digest(path)
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # zip, pickle and tensor layers each raise their own
        reason = str(error).split("\n")[0][:120]
        raise EncoderError(f"not a readable weights file ({reason})", path, "truncated? fetch it again") from None
    for key in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    entries = state.items() if isinstance(state, dict) else [(None, None)]
    if not all(isinstance(name, str) and isinstance(tensor, torch.Tensor) for name, tensor in entries):
        raise EncoderError("holds no state dict", path, "save model.state_dict() to it")
    return {name.removeprefix("module."): tensor for name, tensor in state.items()}
