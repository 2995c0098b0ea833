"""Layers of ``sentence.Layout`` as torch modules, with their weights."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from torch import nn

from cmrhash.encoders.pooling import Dense, Normalize, Truncate
from cmrhash.encoders.sentence import AGAIN, Layout, read_dense, refuse_other_values
from cmrhash.encoders.weights import read_state
from cmrhash.errors import EncoderError


def layers(layout: Layout, width: int) -> nn.Sequential:
    """Layers behind the pooling with their weights. width: features that the pooling gives."""
    found: list[nn.Module] = []
    for kind, place in layout.layers:
        path = layout.folder / place
        found.append(_dense(path, width) if kind == "Dense" else Normalize())
        if kind == "Normalize" and (path / "config.json").is_file():
            refuse_other_values(path / "config.json")
        width = width_of(found[-1:], width)
    if layout.truncate:
        found.append(Truncate(layout.truncate))
    return nn.Sequential(*found)


def width_of(steps: Iterable[nn.Module], width: int) -> int:
    """Features that layers give for that many."""
    for step in steps:
        width = step.linear.out_features if isinstance(step, Dense) else width
        width = min(step.size, width) if isinstance(step, Truncate) else width
    return width


def _dense(folder: Path, width: int) -> Dense:
    of = read_dense(folder, width)
    dense = Dense(of.inputs, of.outputs, of.bias, of.activation)
    state, own = read_state(of.weights), dense.state_dict()
    if {name: t.shape for name, t in state.items()} != {name: t.shape for name, t in own.items()}:
        raise EncoderError("the weights have other names or shapes than config.json says", of.weights, AGAIN)
    if not all(torch.isfinite(tensor).all() for tensor in state.values()):
        raise EncoderError("the weights contain NaN or infinity", of.weights, "get the file again")
    dense.load_state_dict(state)
    return dense
