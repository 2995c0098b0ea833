"""Temporary hash heads of a fine-tuning: one per view, or one for all views whose encoders share a space.

Heads of their own move the towers of a dual encoder apart: each is fitted to its head, not to the other tower. One
head, behind the mean of each view alone, keeps them together, so that the tuned towers have a common space again.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from cmrhash.data.view import View
from cmrhash.encoders.image import ImageEncoder
from cmrhash.encoders.text import TextEncoder
from cmrhash.training.heads import Head


def in_one_space(
    image: ImageEncoder, texts: Mapping[str, TextEncoder], rates: Mapping[View, float]
) -> tuple[View, ...]:
    """Views whose encoders share the space of the image encoder and are all tuned; none if it is alone in it."""
    recipes: dict[View, Any] = {View.IMAGE: image.recipe, **{View.text(lang): texts[lang].recipe for lang in texts}}
    space = image.recipe.get("space")
    views = [view for view, recipe in recipes.items() if space and recipe.get("space") == space and rates[view]]
    return tuple(views) if View.IMAGE in views and len(views) > 1 else ()


def heads(dims: Mapping[View, int], bits: int, together: tuple[View, ...] = ()) -> nn.ModuleDict:
    """Linear heads by view, so that the encoders have to learn. together: views with one head."""
    made = nn.ModuleDict()
    shared = _linear(dims[View.IMAGE], bits) if together else None
    for view, dim in dims.items():
        if shared is not None and view in together:
            made[view] = nn.Sequential(OrderedDict(scale=Centring(dim), head=shared))
        else:
            scale = nn.BatchNorm1d(dim, affine=False)  # follows the features
            made[view] = nn.Sequential(OrderedDict(scale=scale, head=_linear(dim, bits)))
    return made


class Centring(nn.BatchNorm1d):
    """Features of a view minus their mean, by one factor, so that their directions stay those of the other views."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim, eps=1e-8, affine=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, D) -> (B, D) of mean 0, and of variance 1 in the mean over the features."""
        assert self.running_mean is not None
        assert self.running_var is not None
        mean, var = self.running_mean, self.running_var
        if self.training:
            mean, var = x.mean(0), x.var(0, correction=0)
            with torch.no_grad():
                for running, now in ((self.running_mean, mean), (self.running_var, var)):
                    running.lerp_(now, self.momentum or 0.0)
        return (x - mean) * torch.rsqrt(var.mean() + self.eps)


def _linear(dim: int, bits: int) -> Head:
    return Head(dim, bits, hidden=0, dropout=0.0, input_dropout=0.0)
