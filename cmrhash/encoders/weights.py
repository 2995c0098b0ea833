"""Weight files -> tensors, without running code and with digests."""

from __future__ import annotations

import contextlib
import hashlib
import re
import socket
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from threading import Lock
from typing import Any
from urllib.error import URLError
from urllib.parse import urlparse

import torch

from cmrhash.config import RANDOM
from cmrhash.encoders.config_file import refuse_too_large
from cmrhash.errors import EncoderError

# Layers that torchvision renamed after publishing files: DenseNet, ViT and two of Faster R-CNN.
OLD_NAMES = (
    (r"(denselayer\d+\.(?:norm|conv))\.([12]\.)", r"\1\2"),
    (r"(encoder_layer_\d+\.mlp)\.linear_1\.", r"\1.0."),
    (r"(encoder_layer_\d+\.mlp)\.linear_2\.", r"\1.3."),
    (r"(fpn\.(?:inner|layer)_blocks\.\d+)\.(weight|bias)$", r"\1.0.\2"),
    (r"(rpn\.head\.conv)\.(weight|bias)$", r"\1.0.0.\2"),
)

_DRAWING = Lock()  # the random numbers of torch belong to the whole process


@contextlib.contextmanager
def drawn(seed: int) -> Iterator[None]:
    """Draw weights from a seed, one thread at a time, and leave the caller's random numbers as they were."""
    with _DRAWING, torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def state_digest(model: torch.nn.Module) -> str:
    """sha256 over names, types and bytes of all parameters and buffers."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def check_name_digest(path: Path) -> None:
    """Check that the sha256 of NAME-<8 or more hex digits>.EXT begins with those digits.

    Torch checks it for downloads only. Raises EncoderError if it differs.
    """
    match = re.search(r"-([0-9a-f]{8,64})\.\w+$", path.name)
    if not match:
        return
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if not found.startswith(match[1]):
        size = path.stat().st_size
        what = f"expected sha256 {match[1]}..., found {found[:8]}... ({size:,} bytes): truncated or not the right file"
        raise EncoderError(what, path, "delete it and get it again")


def read_state(path: Path) -> dict[str, torch.Tensor]:
    """Read a state dict from .safetensors, or from a torch file with ``weights_only``.

    No code in the file is run. Raises EncoderError if the file is missing, truncated or has other content.
    """
    if not path.is_file():
        raise EncoderError("no such weights file", path, "check the path")
    refuse_too_large([path], path)
    check_name_digest(path)
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # zip, pickle and tensor layers each raise their own types
        reason = str(error).split("\n")[0][:120]
        raise EncoderError(
            f"not a readable weights file ({reason})", path, "it may be truncated: get it again"
        ) from None
    for key in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    entries = state.items() if isinstance(state, dict) else [(None, None)]
    if not all(isinstance(name, str) and isinstance(tensor, torch.Tensor) for name, tensor in entries):
        raise EncoderError("the file holds no state dict", path, "save model.state_dict() to it")
    return {name.removeprefix("module."): tensor for name, tensor in state.items()}


def refuse_broken(module: torch.nn.Module, where: Path) -> None:
    """Raise EncoderError for parameters that are not finite."""
    if not all(torch.isfinite(p).all() for p in module.parameters()):
        raise EncoderError("the weights contain NaN or infinity", where, "get the file again")


def find_entry(entries: list[Any], weights: str) -> Any:
    """The weights entry of that name; None for a network without entries.

    For "default", random weights or a file it is the default entry, which provides the transforms. Raises EncoderError
    for an unknown name.
    """
    by_name = {e.name: e for e in entries}
    if weights in by_name:
        return by_name[weights]
    if weights == RANDOM or Path(weights).exists() or (entries and weights == "default"):
        return by_name.get("IMAGENET1K_V1", entries[0] if entries else None)
    known = ", ".join(["default", *by_name, RANDOM] if entries else [RANDOM])
    raise EncoderError(
        f"unknown weights '{weights}'",
        None,
        f"give {known}, or an existing file",
        option="image_weights",
    )


def fetch(entry: Any, offline: bool) -> Path:
    """File of a weights entry, from torch's cache or downloaded. Raises EncoderError."""
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    path = folder / Path(urlparse(entry.url).path).name
    if path.exists():
        return path  # read_state checks the digest in its name
    host = urlparse(entry.url).hostname
    fix = f'give `image_weights="FILE"` ({path.name}), copy that file to {folder}, or try `image_weights="random"`'
    if offline:
        raise EncoderError(f"{entry} is not in the local cache, and offline mode is on", folder, fix)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with _timeout(10):
            torch.hub.download_url_to_file(entry.url, str(path), progress=False)
        check_name_digest(path)
    except (URLError, OSError) as error:
        raise EncoderError(f"{entry} is not in {folder}, and {host} cannot be reached ({error})", None, fix) from None
    return path


def load_state(
    module: torch.nn.Module, state: dict[str, torch.Tensor], model: str, where: Any, head: str | None = None
) -> None:
    """Load a state dict into a module, which it must fit.

    head: layer whose tensors may differ, because the caller removes it.
    model, where: names for messages.
    Raises EncoderError that names the first tensors that are missing, of another shape or unknown.
    """
    cut = f"{head}." if head else ()
    state = {_today(name): tensor for name, tensor in state.items()}
    own = {name: t for name, t in module.state_dict().items() if not name.startswith(cut)}
    given = {name: t for name, t in state.items() if not name.startswith(cut)}
    # files from before 2018 lack BatchNorm's counters, which eval mode does not use
    missing = [n for n in own if n not in given and not n.endswith("num_batches_tracked")]
    wrong = [n for n in own if n in given and given[n].shape != own[n].shape]
    extra = [n for n in given if n not in own]
    for kind, names in (("lacks", missing), ("has another shape for", wrong), ("has unknown", extra)):
        if names:
            what = f"the file {kind} {len(names)} of {model}'s tensors ({', '.join(names[:3])})"
            raise EncoderError(what, where, "give the weights of this `image_model`")
    if not all(torch.isfinite(t).all() for t in given.values() if t.is_floating_point()):
        raise EncoderError("the weights contain NaN or infinity", where, "get the file again")
    current: Any = OrderedDict(given)
    current._metadata = module.state_dict()._metadata  # type: ignore[attr-defined]  # MNASNet needs its version
    module.load_state_dict(current, strict=False)


def _today(name: str) -> str:
    """Current torchvision name of a tensor."""
    for old, new in OLD_NAMES:
        name = re.sub(old, new, name)
    return name


@contextlib.contextmanager
def _timeout(seconds: float) -> Iterator[None]:
    """Limit every socket operation, because the download sets no timeout."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
