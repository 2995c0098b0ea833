"""Image encoders: classifiers of torchvision and timm without their last layer, Faster R-CNNs, and towers.

A classifier gives its penultimate features, a Faster R-CNN the mean of its region features, a tower of transformers or
open_clip those of a layer.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from numpy.typing import NDArray

from cmrhash.compute.device import choose_dtype, send
from cmrhash.config import RANDOM
from cmrhash.encoders import feature_maps, hub, packages, regions
from cmrhash.encoders.feature_maps import PENULTIMATE
from cmrhash.encoders.pixels import Crop, Letterbox, Preparation
from cmrhash.encoders.weights import drawn, fetch, find_entry, load_state, read_state, state_digest
from cmrhash.errors import EncoderError, did_you_mean

# Modules of networks that are no classifiers: models() lists their names, network(model, state, where) makes one.
OTHERS = (regions,)


@dataclass
class ImageEncoder:
    """Pixels -> features.

    name: used in file names; dim: features per image; recipe: all settings that change the features;
    source: value of ``weights`` with which `load` returns the same encoder; mirror: features are the mean of those of a
    photo and of its mirror image.
    """

    name: str
    dim: int
    recipe: dict[str, Any]
    source: str
    crop: Preparation
    module: torch.nn.Module
    device: torch.device
    dtype: torch.dtype
    memory_format: torch.memory_format = torch.channels_last
    mirror: bool = False

    def __repr__(self) -> str:
        return f"ImageEncoder({self.name!r}, {self.dim} features, {self.device.type})"

    @torch.inference_mode()
    def encode(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """(B, S, S, 3) uint8 RGB -> (B, D) float32."""
        out: NDArray[np.float32] = self.forward(torch.from_numpy(pixels)).cpu().numpy()
        return out

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """(B, S, S, 3) uint8 RGB -> (B, D) float32 on the device, differentiable.

        Pixels are normalised on the device, because uint8 is four times smaller to copy.
        """
        batch = send(pixels, self.device).permute(0, 3, 1, 2)
        mean, std = (send(torch.tensor(v), self.device).view(1, 3, 1, 1) for v in (self.crop.mean, self.crop.std))
        batch = ((batch.float() / 255 - mean) / std).contiguous(memory_format=self.memory_format)
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            return self.features(batch)

    def features(self, batch: torch.Tensor) -> torch.Tensor:
        """(B, 3, S, S) float32, normalised -> (B, D) float32; features of length 1 keep it."""
        features = self._once(batch)
        if not self.mirror:
            return features
        mean = (features + self._once(batch.flip(3))) / 2
        return torch.nn.functional.normalize(mean, dim=1) if self.recipe.get("normalised") else mean

    def _once(self, batch: torch.Tensor) -> torch.Tensor:
        features = self.module(batch)
        features = getattr(features, "logits", features)  # GoogLeNet and Inception return a tuple in training
        return features.float().flatten(1)  # type: ignore[no-any-return]


def load(
    model: str = "resnet18",
    weights: str = "default",
    *,
    device: torch.device | None = None,
    dtype: str = "auto",
    seed: int = 0,
    offline: bool = False,
    layer: str | None = None,
    layers: str | None = None,
    size: int | None = None,
    mirror: bool = False,
) -> ImageEncoder:
    """A classifier of torchvision or timm, a network of ``OTHERS`` or a tower, as an encoder.

    model: a name, "timm:NAME", "open_clip:ARCH/PRETRAINED", or the directory or hub id of a transformers model; the
    last two bring their weights.
    layer: of such a model, out of LAYERS; None: its projection, else its pooled output, else its class token.
    layers: of a classifier, as ``feature_maps.choose`` takes them; None: the penultimate one.
    size: side of a prepared photo, pixels; None: that of the model. mirror: as in ``ImageEncoder``.
    weights: "default" (IMAGENET1K_V1 if available; of timm those of its hub), the name of a torchvision weights entry,
    a file (.pth, .pt, .safetensors), or "random" (untrained, drawn from ``seed``).
    Raises EncoderError for an unknown model, for weights that are unavailable or do not fit the model, and for layers
    or a size that it does not have or take.
    """
    device = device or torch.device("cpu")
    if model.startswith(packages.OPEN_CLIP):
        from cmrhash.encoders import open_clip_towers

        encoder = open_clip_towers.image_encoder(model, weights, layer, device, dtype, offline)
    elif hub.names_folder(model) and not packages.is_named(model) and model not in torchvision.models.list_models():
        encoder = _tower(model, weights, layer, device, dtype, offline)
    else:
        encoder = _network(model, weights, layers, size, device, dtype, seed, offline)
    if size is not None and size != encoder.crop.size:
        encoder = _resized(encoder, size, model)
    return replace(encoder, mirror=True, recipe={**encoder.recipe, "mirror": True}) if mirror else encoder


def _network(
    model: str,
    weights: str,
    layers: str | None,
    size: int | None,
    device: torch.device,
    dtype: str,
    seed: int,
    offline: bool,
) -> ImageEncoder:
    """A classifier of torchvision or timm, or a network of ``OTHERS``."""
    untrained = weights == RANDOM
    crop: Preparation
    with drawn(seed), _quiet():
        if model.startswith(packages.TIMM):
            from cmrhash.encoders import timm_models

            module, dim, crop, part, source = timm_models.network(model, weights, offline)
        else:
            _refuse_unfit(model, layers, size)
            module, dim, crop, part, source = _of_torchvision(model, weights, offline)
    module.eval()
    if layers not in (None, PENULTIMATE):
        feature_maps.choose(module, layers, model)
        dim, part = feature_maps.width_of(module, crop.size, model), {"layer": layers}
    compute = choose_dtype(dtype, device, untrained)
    recipe: dict[str, Any] = {
        "encoder": model,
        "weights": RANDOM if untrained else "trained",
        "weights_sha256": state_digest(module),
        **part,
        "crop": crop.recipe(),
        "dtype": str(compute).removeprefix("torch."),
    }
    if untrained:
        recipe["weights_seed"] = seed
    module = module.to(device=device, memory_format=torch.channels_last)
    name = model.replace(":", "-") + "-random" * untrained
    return ImageEncoder(name, dim, recipe, source, crop, module, device, compute)


def _refuse_unfit(model: str, layers: str | None, size: int | None) -> None:
    """Raise EncoderError for layers or a size that a classifier of torchvision does not have or take.

    Computes shapes alone, before any weights are read.
    """
    if (layers is None and size is None) or model not in torchvision.models.list_models(module=torchvision.models):
        return
    with torch.device("meta"):
        empty = torchvision.models.get_model(model, weights=None).eval()
    if layers not in (None, PENULTIMATE):
        feature_maps.choose(empty, layers, model)
    feature_maps.width_of(empty, size or 224, model)


def _resized(encoder: ImageEncoder, size: int, model: str) -> ImageEncoder:
    """The encoder for photos of another size, of which the same share is cut off."""
    if isinstance(encoder.crop, Letterbox):
        raise EncoderError(f"{model} has photos of one size", None, "leave it out", option="image_size")
    if feature_maps.width_of(encoder.module, size, model) != encoder.dim:
        what = f"{model} gives other features of photos of {size} pixels"
        raise EncoderError(what, None, "leave it out", option="image_size")
    crop = replace(encoder.crop, resize=round(encoder.crop.resize * size / encoder.crop.size), size=size)
    return replace(encoder, crop=crop, recipe={**encoder.recipe, "crop": crop.recipe()})


def _tower(
    model: str, weights: str, layer: str | None, device: torch.device, dtype: str, offline: bool
) -> ImageEncoder:
    """The image tower of a transformers model."""
    from cmrhash.encoders import tower

    if weights != "default":
        fix = "leave it out: the directory of a transformers model has them"
        raise EncoderError(f"weights '{weights}' do not go with {model}", None, fix, option="image_weights")
    folder = tower.locate(model, offline)
    module, crop, recipe = tower.image_tower(folder, layer)
    name, source = hub.name_and_source(model, folder)
    compute = choose_dtype(dtype, device, False)
    recipe |= {"crop": crop.recipe(), "dtype": str(compute).removeprefix("torch.")}
    contiguous = torch.contiguous_format
    return ImageEncoder(name, module.dim, recipe, source, crop, module.to(device), device, compute, contiguous)


def _of_torchvision(model: str, weights: str, offline: bool) -> tuple[Any, int, Preparation, dict[str, Any], str]:
    """Network, number of its features, crop, part of the recipe, and source of the weights."""
    entries = _entries(model)
    entry = find_entry(entries, weights)
    state, where, source = (None, None, RANDOM) if weights == RANDOM else _trained(entries, entry, weights, offline)
    if other := next((each for each in OTHERS if model in each.models()), None):
        return *other.network(model, state, where), source
    module, dim = _classifier(model, state, where)
    return module, dim, _crop(entry), {"layer": PENULTIMATE}, source


def _trained(
    entries: list[Any], entry: Any, weights: str, offline: bool
) -> tuple[dict[str, torch.Tensor] | None, Any, str]:
    """Tensors of a file or of a weights entry, where they come from, and the source that names them."""
    path = Path(weights) if weights not in (e.name for e in entries) and weights != "default" else None
    state = read_state(path or fetch(entry, offline))
    return state, path or entry.url, str(path.resolve()) if path else entry.name


def _entries(model: str) -> list[Any]:
    """Weights entries of torchvision for a model; none if the network is not of torchvision."""
    names = torchvision.models.list_models(module=torchvision.models)
    names += [name for other in OTHERS for name in other.models()]
    if model not in names:
        fix = did_you_mean(model, names) or f"for example resnet18, vgg16, efficientnet_b0 or {names[-1]}"
        raise EncoderError(f"unknown image model '{model}'", None, fix, option="image_model")
    known = torchvision.models.list_models()
    return list(torchvision.models.get_model_weights(model)) if model in known else []


def _crop(entry: Any) -> Crop:
    preset = entry.transforms()
    name = preset.interpolation.name
    return Crop(preset.resize_size[0], preset.crop_size[0], name, tuple(preset.mean), tuple(preset.std))


def _classifier(model: str, state: dict[str, torch.Tensor] | None, where: Any) -> tuple[Any, int]:
    """A classifier whose last linear layer is the identity, and the number of its features.

    SqueezeNet, which ends in a convolution, gives the mean of what that convolution reads.
    """
    module: Any = torchvision.models.get_model(model, weights=None)
    names: list[str] = [name for name, part in module.named_modules() if isinstance(part, torch.nn.Linear)]
    head = names[-1] if names else "classifier"
    if state is not None:
        if hasattr(module, "transform_input"):  # GoogLeNet, Inception: trained with another normalisation
            module.transform_input = True
        load_state(module, state, model, where, head)  # the head may have any number of classes
    if not names:
        convolution = next(part for part in module.classifier if isinstance(part, torch.nn.Conv2d))
        module.classifier = torch.nn.AdaptiveAvgPool2d(1)
        return module, convolution.in_channels
    dim: int = module.get_submodule(head).in_features
    module.set_submodule(head, torch.nn.Identity())
    return module, dim


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppress the warnings of some torchvision constructors about initialisation."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
