"""Hash heads in NumPy, for queries without torch: ``heads.Head`` in eval mode, out of the file of a run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
from numpy.typing import NDArray
from safetensors.numpy import load_file

from cmrhash.data.view import View

Arrays = dict[str, NDArray[np.float32]]


@dataclass(frozen=True)
class NumpyHead:
    """Standardise, then linear layers with ReLU between them, then tanh if bounded.

    mean, std (D,); layers: (weight (out, in), bias (out,)) of each.
    """

    mean: NDArray[np.float32]
    std: NDArray[np.float32]
    layers: tuple[tuple[NDArray[np.float32], NDArray[np.float32]], ...]
    bounded: bool

    def embed(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """(N, D) features -> (N, bits) float32 embeddings."""
        x = (x - self.mean) / self.std
        for at, (weight, bias) in enumerate(self.layers):
            x = (np.maximum(x, 0) if at else x) @ weight.T + bias
        return np.tanh(x) if self.bounded else x


def read_heads(path: Path, views: Iterable[View], shape: Mapping[str, Any]) -> dict[View, NumpyHead]:
    """Heads of a safetensors file by view; {} where they need torch: networks of the user's own, unreadable files.

    shape: keywords of ``heads.Head`` that the run records. The caller has checked the file's digest.
    """
    if not set(shape) <= {"hidden", "bounded"}:
        return {}
    names = ("layers.1", "layers.4") if shape.get("hidden", 1024) else ("layers.1",)
    wanted = {"mean", "std", *(f"{name}.{part}" for name in names for part in ("weight", "bias"))}
    try:
        tensors = load_file(path)
    except (safetensors.SafetensorError, OSError):
        return {}
    heads = {}
    for view in views:
        own = {name.removeprefix(f"{view}."): t for name, t in tensors.items() if name.startswith(f"{view}.")}
        if own.keys() != wanted or any(tensor.dtype != np.float32 for tensor in own.values()):
            return {}
        layers = tuple((own[f"{name}.weight"], own[f"{name}.bias"]) for name in names)
        heads[view] = NumpyHead(own["mean"], own["std"], layers, bool(shape.get("bounded", True)))
    return heads
