"""The encoder of a feature file, for a collection that grows: what the file has is never encoded again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cmrhash.config import TORCH
from cmrhash.encoders.pixels import Preparation, crop_of
from cmrhash.features import outcome
from cmrhash.features.file import FeatureHeader, open_features

if TYPE_CHECKING:
    import torch

OF_FILE = ("kind", "lang", "code", "items")  # fields of a feature recipe that extraction adds


@dataclass
class StoredEncoder:
    """Encoder of a feature file, with the attributes that extraction reads.

    encoder: the opened encoder of new rows, None if there are none. sources: id -> digest of the photo that the file
    has features of, so that the photo is not read again.
    """

    header: FeatureHeader
    encoder: Any = None
    sources: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    source: str = ""
    module: None = None
    token_budget: int = 0

    @classmethod
    def of(cls, header: FeatureHeader, encoder: Any = None) -> StoredEncoder:
        """The encoder of a feature file. encoder: opened for what is new."""
        return cls(header, encoder, _sources(header) if header.view.is_image else {})

    @property
    def name(self) -> str:
        """Name in file names."""
        return self.header.encoder

    @property
    def dim(self) -> int:
        """Features per row."""
        return self.header.dim

    @property
    def recipe(self) -> dict[str, Any]:
        """All settings that change the features, and their number type on disk."""
        return {key: value for key, value in self.header.recipe.items() if key not in OF_FILE}

    @cached_property
    def crop(self) -> Preparation:
        """How photos are prepared."""
        return crop_of(self.header.recipe["crop"], self.header.path)

    @property
    def device(self) -> torch.device | None:
        """Device of the opened encoder."""
        return getattr(self.encoder, "device", None)

    def encode(self, batch: Any) -> NDArray[np.float32]:
        """Features (B, D) of new images or texts."""
        x: NDArray[np.float32] = self.encoder.encode(batch)
        return x

    def unknown_share(self, captions: Sequence[str]) -> float:
        """0: known since the extraction."""
        return 0.0

    def made_with(self) -> dict[str, Any]:
        """Versions and device of the first extraction, and those of the last addition."""
        made = dict(self.header.made_with)
        if self.encoder is not None:
            made["added_with"] = outcome.made_with(self.device, self.recipe.get("runtime", TORCH))
        return made


def _sources(header: FeatureHeader) -> dict[str, bytes]:
    with open_features(header.path, header) as (_, arrays):
        source, ends, blob = arrays["source"][...], arrays["id_ends"][...].tolist(), bytes(arrays["ids"][...])
    ids = [blob[start:end].decode() for start, end in zip([0, *ends], ends, strict=False)]
    return {ident: row.tobytes() for ident, row in zip(ids, source, strict=True)}
