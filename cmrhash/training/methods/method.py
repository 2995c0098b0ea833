"""What a method is: loss terms of a batch, or a closed form, with its source."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cmrhash.config import TrainConfig
from cmrhash.training.auxiliary import Parts, Shapes
from cmrhash.training.row_blocks import Matrix

Views = dict[str, Tensor]  # "image" first, then each language -> embeddings (B, K)


@dataclass(frozen=True)
class Batch:
    """What a loss is told of a batch of B items. relevant: (B, B) bool, True on the diagonal; bits: K; margin: on
    squared L2 distances of embeddings in [-1, 1]^K; labels: (B, classes) float32 of 0 and 1, None for relevance by
    pairs; features: standardised input features (B, D) by view; parts: what the method trains beside the heads; rows:
    (B,) int64 positions among all train items, None where these are not at hand, as in fine-tuning; progress: share of
    the epochs that are done; memory: embeddings (C, K) of items of earlier steps by view, to which the items of the
    batch are relevant as ``remembered``, (B, C) bool, says; direction: "i2t" or "t2i", the only one to train, None for
    both."""

    relevant: Tensor
    bits: int
    margin: float
    labels: Tensor | None = None
    features: Views = field(default_factory=dict)
    parts: nn.ModuleDict = field(default_factory=nn.ModuleDict)
    rows: Tensor | None = None
    progress: float = 0.0
    memory: Views = field(default_factory=dict)
    remembered: Tensor | None = None
    direction: str | None = None


class Terms(NamedTuple):
    """loss: named scalars whose sum is minimised. counts: named numbers that the history adds up over an epoch."""

    loss: dict[str, Tensor]
    counts: dict[str, Tensor]


# Fields of TrainConfig: of the training loop, and of the heads of cmrhash.
LOOP = ("epochs", "batch", "lr", "image_lr", "text_lr", "schedule", "weight_decay", "ema", "first_caption")
HEADS = ("hidden", "dropout", "input_dropout")
ToTerms = Callable[[Views, Batch], Terms]
Pairwise = Callable[[Tensor, Tensor, Batch], Tensor]


@dataclass(frozen=True)
class Method:
    """A way of training the heads.

    terms: (views, batch) -> Terms, None for a closed form. source: paper or code, for the run's record.
    fit: (standardised features (n, D) by view, bits, ridges) -> linear heads (D, K) by view for each ridge, of a closed
    form; one that learns from labels is given them last, (n, classes) of 0 and 1.
    rotate: (centred features (n, D) of images alone, bits, seed) -> one linear head (D, K), of a closed form for images
    and texts of one space.
    kernel: a closed form with kernel heads, see ``kernel_codes``; queries and database items are hashed differently,
    unless symmetric.
    parts: shapes -> modules that are trained beside the heads. start: (parts, standardised features (n, D) of all train
    items by view, first captions) -> None, called once before the first step, also of a resumed training.
    targets: standardised features as in ``start`` -> pseudo-labels (n, classes), of a method with kernel heads.
    memory: its parts know every train item, by ``Batch.rows``.
    labels: learns from labels, not from relevance alone.
    draws: its result depends on the seed; see ``seeds``.
    reproduction: only for comparison with published results (an ablation, another sampler), not for new work.
    partial: its terms are defined for any views, so that items that lack a view train the others.
    reads: fields of TrainConfig that its terms read beside those of its kind: "margin", "memory", "direction", "noise"
    if they read relevance.
    name: of a method of the user's own, which ``train`` registers; heads: (D features, K bits) -> a module that maps
    standardised features (B, D) to embeddings (B, K), in place of the usual head.
    """

    terms: ToTerms | None
    source: str
    fit: Callable[..., Iterator[dict[str, Matrix]]] | None = None
    rotate: Callable[[NDArray[np.floating], int, int], Matrix] | None = None
    kernel: bool = False
    symmetric: bool = False
    parts: Callable[[Shapes], Parts] | None = None
    start: Callable[[nn.ModuleDict, Views], None] | None = None
    targets: Callable[[Views], Tensor] | None = None
    memory: bool = False
    labels: bool = False
    draws: bool = True
    reproduction: bool = False
    partial: bool = False
    reads: tuple[str, ...] = ()
    name: str = ""
    heads: Callable[[int, int], nn.Module] | None = None

    @property
    def settings(self) -> frozenset[str]:
        """Fields of TrainConfig that change its result, beside those that name a run. A method of the user's own counts
        as reading the margin and relevance."""
        own = (*self.reads, *(("margin", "memory", "noise") if self.name else ("noise",) if self.labels else ()))
        loop = () if self.terms is None else LOOP if self.heads else (*LOOP, *HEADS)
        data = () if self.rotate else ("drop_near_duplicates",)
        return frozenset((*loop, *own, *data))

    def seeds(self, config: TrainConfig, count: int) -> range:
        """The first ``count`` seeds, or seed 0 alone if all give the same result; label noise is drawn from a seed."""
        noisy = config.noise > 0 and "noise" in self.settings
        return range(count if self.draws or noisy else min(count, 1))

    def direction(self, config: TrainConfig) -> str | None:
        """The only search direction that it trains, None for both."""
        return config.direction if "direction" in self.settings else None

    def __repr__(self) -> str:
        kind = "closed form" if self.terms is None else "losses"
        return f"Method({self.name or self.source!r}, {kind})"


def total(terms: Terms) -> Tensor:
    """The sum that is minimised."""
    return torch.stack(list(terms.loss.values())).sum()
