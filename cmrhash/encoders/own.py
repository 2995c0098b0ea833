"""Encoders of the user's own: any object with ``encode``, ``dim`` and ``recipe``, as the features room uses them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from cmrhash.config import CUSTOM
from cmrhash.encoders.pixels import Crop
from cmrhash.errors import EncoderError
from cmrhash.storage.recipes import fingerprint

if TYPE_CHECKING:
    import torch

SIZE = 224  # pixels of a side, of an image encoder without ``size``
Batch = TypeVar("Batch", contravariant=True)


class Encoder(Protocol[Batch]):
    """An encoder of images or of texts.

    dim: D features. recipe: JSON values that change whenever the features would change (weights, version, ...); they
    decide whether cached features are current. An image and a text encoder whose features lie in one space say so by
    the same ``space`` in their recipes. An image encoder may have ``size``, the side of its input in pixels (224), and
    any encoder ``name``, which names its feature file.
    """

    dim: int
    recipe: Mapping[str, Any]

    def encode(self, batch: Batch) -> NDArray[Any]:
        """Images (B, S, S, 3) uint8 RGB, or a list of B texts -> (B, D) features."""


@dataclass
class OwnEncoder:
    """An encoder object of the user's own, checked, with the attributes that extraction and search read."""

    encoder: Encoder[Any]
    kind: str  # "image" or "text"
    name: str = field(init=False)
    dim: int = field(init=False)
    recipe: dict[str, Any] = field(init=False)
    crop: Crop = field(init=False)
    source: str = ""
    module: None = None
    device: torch.device | None = None  # not known

    def __post_init__(self) -> None:
        if lacking := [name for name in ("encode", "dim", "recipe") if not hasattr(self.encoder, name)]:
            what = f"the {self.kind} encoder ({type(self.encoder).__name__}) has no {lacking[0]}"
            raise EncoderError(what, None, "give an object with encode(batch), dim and recipe")
        self.name = str(getattr(self.encoder, "name", type(self.encoder).__name__.lower()))
        self.dim = int(self.encoder.dim)
        recipe = dict(self.encoder.recipe)
        try:
            digest = fingerprint(recipe)
        except (TypeError, ValueError) as error:
            raise EncoderError(f"the recipe of '{self.name}' is not JSON ({error})", None, "use plain values") from None
        side = int(getattr(self.encoder, "size", SIZE))
        self.crop = Crop(side, side, "BILINEAR", (0.0,) * 3, (1.0,) * 3)
        self.recipe = {"encoder": self.name, "weights": CUSTOM, "weights_sha256": digest, "own": recipe}
        self.recipe |= {"space": str(recipe["space"])} if recipe.get("space") else {}
        if self.kind == "image":
            self.recipe["crop"] = self.crop.recipe()

    def __repr__(self) -> str:
        return f"OwnEncoder({self.name!r}, {self.dim} features)"

    def encode(self, batch: NDArray[np.uint8] | Sequence[str]) -> NDArray[np.float32]:
        """(B, S, S, 3) uint8 RGB or B texts -> (B, D) float32; raises EncoderError for another shape."""
        x = np.asarray(self.encoder.encode(batch if self.kind == "image" else list(batch)), np.float32)
        if x.shape != (len(batch), self.dim):
            what = f"encode() of '{self.name}' returned shape {x.shape}, expected {(len(batch), self.dim)}"
            raise EncoderError(what, None, "return one row of `dim` features per image or text")
        return x

    def unknown_share(self, captions: Sequence[str]) -> float:
        """0: the vocabulary of such an encoder is not known."""
        return 0.0
