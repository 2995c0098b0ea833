"""Image encoders: any torchvision classifier, cut before its last linear layer (the penultimate features)."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.parse import urlparse

import numpy as np
import torch
import torchvision
from numpy.typing import NDArray

from cmrhash.config import RANDOM
from cmrhash.device import choose_dtype
from cmrhash.encoders.pixels import Crop
from cmrhash.encoders.weights import check_name_digest as check_digest
from cmrhash.encoders.weights import read_state, state_digest
from cmrhash.errors import EncoderError


@dataclass
class ImageEncoder:
    """Pixels -> features. name: for file names; dim: features an image; recipe: all that changes the numbers."""

    name: str
    dim: int
    recipe: dict[str, Any]
    crop: Crop
    module: torch.nn.Module
    device: torch.device
    dtype: torch.dtype

    @torch.inference_mode()
    def encode(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """(B, S, S, 3) uint8 RGB -> (B, D) float32."""
        out: NDArray[np.float32] = self.forward(torch.from_numpy(pixels)).cpu().numpy()  # (B, D)
        return out

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """(B, S, S, 3) uint8 RGB -> (B, D) float32 on the device, with a gradient for the module's parameters.
        Normalised on the device: uint8 travels four times lighter.
        """
        batch = pixels.to(self.device, non_blocking=True).permute(0, 3, 1, 2)
        mean, std = (torch.tensor(v, device=self.device).view(1, 3, 1, 1) for v in (self.crop.mean, self.crop.std))
        batch = ((batch.float() / 255 - mean) / std).contiguous(memory_format=torch.channels_last)
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            features = self.module(batch)
        features = getattr(features, "logits", features)  # GoogLeNet and Inception in training: others beside them
        return features.float().flatten(1)  # type: ignore[no-any-return]


def load(
    model: str = "resnet18",
    weights: str = "default",
    *,
    device: torch.device | None = None,
    dtype: str = "auto",
    seed: int = 0,
    offline: bool = False,
) -> ImageEncoder:
    """A torchvision classifier as an encoder.

    weights: "default" (IMAGENET1K_V1 where there is one), the name of a weights enum entry, a file (.pth, .pt,
    .safetensors), or "random" (untrained, drawn from ``seed``).
    Raises EncoderError for an unknown model, weights that cannot be had, or that do not fit the model.
    """
    device = device or torch.device("cpu")
    entries = _entries(model)
    untrained = weights == RANDOM
    with torch.random.fork_rng(devices=[]), _quiet():
        torch.manual_seed(seed)
        module = torchvision.models.get_model(model, weights=None)
    entry = _entry(entries, weights)
    if not untrained:
        path = Path(weights) if weights not in (e.name for e in entries) and weights != "default" else None
        if hasattr(module, "transform_input"):  # GoogLeNet, Inception: trained on another normalisation
            module.transform_input = True
        _load_state(module, read_state(path or _fetch(entry, offline)), model, path or entry.url)
    dim = _cut_head(module, model)
    module.eval()
    compute = choose_dtype(dtype, device, untrained)
    crop = _crop(entry)
    recipe: dict[str, Any] = {
        "encoder": model,
        "weights": RANDOM if untrained else "trained",
        "weights_sha256": state_digest(module),
        "layer": "penultimate",
        "crop": crop.recipe(),
        "dtype": str(compute).removeprefix("torch."),
    }
    if untrained:
        recipe["weights_seed"] = seed
    module = module.to(device=device, memory_format=torch.channels_last)
    return ImageEncoder(model + "-random" * untrained, dim, recipe, crop, module, device, compute)


def _entries(model: str) -> list[Any]:
    """The weights that torchvision knows for a classifier of that name."""
    names = list(torchvision.models.list_models(module=torchvision.models))
    if model not in names:
        near = ", ".join(get_close_matches(model, names, 3)) or "resnet18, vgg16, efficientnet_b0"
        raise EncoderError(f"unknown image model '{model}'", None, f"did you mean {near}?")
    return list(torchvision.models.get_model_weights(model))


def _entry(entries: list[Any], weights: str) -> Any:
    """The enum entry that is asked for, or that a file or random weights borrow their transforms from."""
    by_name = {e.name: e for e in entries}
    if weights in by_name:
        return by_name[weights]
    if weights in ("default", RANDOM) or Path(weights).exists():
        return by_name.get("IMAGENET1K_V1", entries[0])
    known = ", ".join(by_name)
    raise EncoderError(f"no weights '{weights}'", None, f"give default, {known}, random, or a file that exists")


def _crop(entry: Any) -> Crop:
    preset = entry.transforms()
    name = preset.interpolation.name
    return Crop(preset.resize_size[0], preset.crop_size[0], name, tuple(preset.mean), tuple(preset.std))


def _fetch(entry: Any, offline: bool) -> Path:
    """The file of an enum entry: from torch's own cache, else from the network."""
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    path = folder / Path(urlparse(entry.url).path).name
    if path.exists():
        return path  # read_state checks the digest in its name
    host = urlparse(entry.url).hostname
    fix = f"pass --image-weights FILE ({path.name}), or copy that file to {folder}, or use random for a dry run"
    if offline:
        raise EncoderError(f"{entry} is not in the local cache and offline mode is on", folder, fix)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with _timeout(10):
            torch.hub.download_url_to_file(entry.url, str(path), progress=False)
        check_digest(path)
    except (URLError, OSError) as error:
        raise EncoderError(f"{entry} is not in {folder} and {host} cannot be reached ({error})", None, fix) from None
    return path


def _load_state(module: torch.nn.Module, state: dict[str, torch.Tensor], model: str, where: Any) -> None:
    """Load all but the classifier's last layer, which is cut off anyway and may have any number of classes."""
    head = _last_linear(module, model)
    own = {name: t for name, t in module.state_dict().items() if not name.startswith(head + ".")}
    given = {name: t for name, t in state.items() if not name.startswith(head + ".")}
    # files from before 2018 lack BatchNorm's counters, which no forward pass in eval mode reads
    missing = [n for n in own if n not in given and not n.endswith("num_batches_tracked")]
    wrong = [n for n in own if n in given and given[n].shape != own[n].shape]
    extra = [n for n in given if n not in own]
    for kind, names in (("lacks", missing), ("has another shape for", wrong), ("has unknown", extra)):
        if names:
            what = f"the file {kind} {len(names)} of {model}'s tensors ({', '.join(names[:3])})"
            raise EncoderError(what, where, "give the weights of this --image-model")
    if not all(torch.isfinite(t).all() for t in given.values() if t.is_floating_point()):
        raise EncoderError("the weights hold NaN or infinity", where, "fetch the file again")
    module.load_state_dict(given, strict=False)


def _last_linear(module: torch.nn.Module, model: str) -> str:
    names: list[str] = [name for name, part in module.named_modules() if isinstance(part, torch.nn.Linear)]
    if not names:
        raise EncoderError(f"{model} has no last linear layer to cut", None, "choose another --image-model")
    return names[-1]


def _cut_head(module: torch.nn.Module, model: str) -> int:
    """Replace the last linear layer by the identity; returns the number of features that it took."""
    name: str = _last_linear(module, model)
    dim: int = module.get_submodule(name).in_features  # type: ignore[assignment]
    module.set_submodule(name, torch.nn.Identity())
    return dim


@contextlib.contextmanager
def _timeout(seconds: float) -> Iterator[None]:
    """A bound on every socket operation, which the download itself does not set."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the notices that some torchvision constructors print about their own initialisation."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
