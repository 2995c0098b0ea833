"""Features of a network out of layers of the user's choice, and photos of another size than it was trained on."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from cmrhash.errors import EncoderError, did_you_mean

PENULTIMATE = "penultimate"  # what a network without its last layer gives


def choose(network: nn.Module, layer: str, model: str) -> None:
    """Let a network return the features of its layers, one after the other.

    layer: names of modules joined by "+"; a feature map (B, C, H, W) becomes its average (B, C), PENULTIMATE is the
    network's own output. Names of tensors stay the same. Raises EncoderError for a name that no module has.
    """
    names = layer.split("+")
    known = [PENULTIMATE, *(name for name, _ in network.named_modules() if name)]
    for number, name in enumerate(names):
        if name not in known or name in names[:number]:
            near = "" if name in known else did_you_mean(name, known)
            parts = [name for name, part in network.named_children() if [*part.parameters()]]
            what = f"has no layer '{name}'" if name not in known else f"is asked for the layer '{name}' twice"
            fix = f"{near} choose modules of it, such as {', '.join([PENULTIMATE, *parts[-4:]])}".strip()
            raise EncoderError(f"{model} {what}", None, fix, option="image_layers")
    seen: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        return lambda module, inputs, output: seen.__setitem__(name, output)

    def joined(module: nn.Module, inputs: Any, output: Any) -> Tensor:
        seen[PENULTIMATE] = getattr(output, "logits", output)
        vectors = [_vector(seen[name], name, model) for name in names]
        seen.clear()
        return torch.cat(vectors, 1)

    for name in names:
        if name != PENULTIMATE:
            network.get_submodule(name).register_forward_hook(keep(name))
    network.register_forward_hook(joined)


def _vector(features: Any, name: str, model: str) -> Tensor:
    """(B, C) float32: the average of a feature map (B, C, S, S), or features that are vectors."""
    shape = tuple(getattr(features, "shape", ()))
    if len(shape) == 2:
        return features.float()  # type: ignore[no-any-return]
    if len(shape) != 4 or shape[2] != shape[3]:  # channels last, tokens, several tensors
        what = f"the layer '{name}' of {model} gives no feature map per photo"
        raise EncoderError(what, None, "choose another layer", option="image_layers")
    return features.float().mean((2, 3))  # type: ignore[no-any-return]


def width_of(network: nn.Module, size: int, model: str) -> int:
    """Number of features of a photo of ``size`` x ``size`` pixels; EncoderError if the network does not take it.

    A network on the device "meta" computes shapes only.
    """
    device = next(network.parameters()).device
    try:
        with torch.inference_mode():
            features: Tensor = network(torch.zeros(1, 3, size, size, device=device))
        features = getattr(features, "logits", features).flatten(1)
    except EncoderError:
        raise
    except Exception as error:  # networks raise their own types
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        what = f"{model} does not take photos of {size} pixels ({reason})"
        raise EncoderError(what, None, "leave it out, or choose another size", option="image_size") from None
    return int(features.shape[1])
