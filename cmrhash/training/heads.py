"""Hash heads: modules that map features of one modality to embeddings in the common Hamming space."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cmrhash.training.gaussian import rbf
from cmrhash.training.nearby import Nearby
from cmrhash.training.terms import Vocabulary

SIMILARITIES = 1 << 24  # to support rows, computed at a time: 64 MiB


class Dropout(nn.Module):
    """Set a share of the units to zero in training and scale the others, as nn.Dropout does.

    On a CPU most of nn.Dropout's time goes into one random number a unit. A byte is enough: eight units share one
    64-bit draw, and the share is the nearest 256th (.2 becomes 51/256). 2.3 times as fast on 512 x 1024 units.
    """

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def forward(self, x: Tensor) -> Tensor:
        """(B, D) -> (B, D)."""
        dropped = min(round(256 * self.share), 255)
        if not self.training or not dropped:
            return x
        if x.device.type != "cpu":
            return nn.functional.dropout(x, self.share)
        draws = torch.empty(-(-x.numel() // 8), dtype=torch.int64).random_(-(2**63), None)  # all 64 bits
        bytes_ = draws.view(torch.uint8)[: x.numel()].view(x.shape)  # (B, D)
        return torch.where(bytes_ >= dropped, x * (256 / (256 - dropped)), 0.0)


class Head(nn.Module):
    """Standardise, then a hidden layer (or none), then K units with tanh (or, for closed forms, as they are).

    The statistics of the training features are part of the head, so that it can be applied to raw features anywhere.
    network: a module (B, D) -> (B, K) of the caller's own, in place of these layers.
    dim: D features; bits: K; hidden: width of the hidden layer, 0 for a linear head; dropouts: shares.
    """

    mean: Tensor
    std: Tensor
    layers: nn.Module

    def __init__(
        self,
        dim: int,
        bits: int,
        hidden: int = 1024,
        dropout: float = 0.2,
        input_dropout: float = 0.1,
        bounded: bool = True,
        network: nn.Module | None = None,
    ):
        super().__init__()
        self.bounded, self.bits = bounded, bits
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("std", torch.ones(dim))
        if network is not None:
            self.layers = network
            return
        layers: list[nn.Module] = [Dropout(input_dropout)]
        if hidden:
            layers += [nn.Linear(dim, hidden), nn.ReLU(), Dropout(dropout)]
        layers += [nn.Linear(hidden or dim, bits)]
        self.layers = nn.Sequential(*layers)

    def standardise(self, x: Tensor) -> None:
        """Learn mean and standard deviation from the training features x (N, D); constant features stay as they are.

        Constant by a feature's own measure: those of an untrained MobileNet or EfficientNet are 1e-9 to 1e-13.
        """
        self.mean.copy_(x.mean(0))
        std = x.std(0, correction=0)
        self.std.copy_(torch.where(std > 1e-6 * self.mean.abs(), std, torch.ones_like(std)))

    def scaled(self, x: Tensor) -> Tensor:
        """(B, D) raw features -> (B, D) standardised ones, mean 0 and variance 1 over the training features."""
        return (x - self.mean) / self.std

    def forward(self, x: Tensor) -> Tensor:
        """(B, D) raw features -> (B, K) embeddings, in [-1, 1] if bounded; the sign is the code."""
        return self.project(self.scaled(x))

    def project(self, scaled: Tensor) -> Tensor:
        """(B, D) standardised features -> (B, K) embeddings."""
        embedding: Tensor = self.layers(scaled)
        return torch.tanh(embedding) if self.bounded else embedding

    def set_linear(self, weight: Tensor) -> None:
        """Make the (linear) head project standardised features by weight (D, K)."""
        assert isinstance(self.layers, nn.Sequential)
        last = self.layers[-1]
        assert isinstance(last, nn.Linear)
        with torch.no_grad():
            last.weight.copy_(weight.T)
            last.bias.zero_()

    @torch.inference_mode()
    def embed(self, x: Tensor, batch: int = 8192, query: bool = False, captions: Sequence[str] | None = None) -> Tensor:
        """(N, D) -> (N, K) without dropout and gradient, a batch at a time.

        query: as queries, not as database items; captions: N texts that the features are of, None where they are not
        known. Both change nothing but the embeddings of a ``KernelHead``.
        """
        training = self.training
        self.eval()
        parts = []
        for at in range(0, len(x), batch):
            said = None if captions is None else captions[at : at + batch]
            parts.append(self.placed(self.scaled(x[at : at + batch]), query, said))
        self.train(training)
        return torch.cat(parts) if parts else x.new_empty(0, self.bits)

    def placed(self, scaled: Tensor, query: bool, captions: Sequence[str] | None) -> Tensor:
        """(B, D) standardised features -> (B, K), as ``embed``."""
        return self.project(scaled)

    def by_role(self, x: Tensor) -> tuple[Tensor, ...]:
        """(B, D) raw features -> (B, K) embeddings as queries and, if these differ, as database items; for graphs."""
        return (self(x),)


class KernelHead(Head):
    """Kernel expansions over stored training features: one for database items, two for queries.

    With similarities k (B, n) of standardised features to the n support rows, and tf-idf vectors t (B, V) of captions,
    a database item is embedded as k W2 + t T2 + b1, a query as tanh(k W0 + t T0 + b0) + k W1 + t T1 + b1. All is stored
    as buffers, n (D + 3 K) + 3 V K numbers in the main. T sums up the similarities to the support's captions, which are
    not stored. dim: D features; bits: K; rows: n. A head of photos has no terms. near: items whose correction
    (``Nearby``) a database item gets, too, where the support rows are only some of the train items; 0: none.

    Features keep their direction, and get a length within the range of those of the support rows, which all have the
    same (in older runs about the same). Far out k would vanish, and the biases alone would make the code: texts
    much shorter than the training texts have long features.
    """

    width: Tensor
    support: Tensor
    weights: Tensor
    biases: Tensor
    terms: Tensor
    idf: Tensor
    term_weights: Tensor

    def __init__(self, dim: int, bits: int, rows: int, near: int = 0):
        super().__init__(dim, bits, bounded=False, network=nn.Identity())
        self.nearby = Nearby(dim, bits, near) if near else None
        self.register_buffer("width", torch.ones(()))
        self.register_buffer("support", torch.zeros(rows, dim))
        self.register_buffer("weights", torch.zeros(3, rows, bits))  # of queries, in tanh and beside; of items
        self.register_buffer("biases", torch.zeros(2, bits))
        self.register_buffer("terms", torch.zeros(0, dtype=torch.uint8))  # see ``terms.Vocabulary.encoded``
        self.register_buffer("idf", torch.zeros(0))
        self.register_buffer("term_weights", torch.zeros(3, 0, bits))  # (3, V, K)
        self.vocabulary = Vocabulary([], self.idf)

    def learn(self, vocabulary: Vocabulary) -> None:
        """Take over the terms of captions; their weights are 0."""
        self.vocabulary = vocabulary
        self.terms, self.idf = vocabulary.encoded.to(self.width.device), vocabulary.idf.to(self.width.device)
        self.term_weights = self.weights.new_zeros(3, len(vocabulary), self.bits)

    def project(self, scaled: Tensor) -> Tensor:
        """(B, D) standardised features -> (B, K) embeddings as database items, without captions."""
        return self.placed(scaled, False, None)

    def placed(self, scaled: Tensor, query: bool, captions: Sequence[str] | None) -> Tensor:
        """(B, D) standardised features -> (B, K), as ``embed``."""
        scaled = self._in_range(scaled)
        if not query:
            (items,) = self._expanded([2], scaled, captions)
            return items + self.biases[1] + (self.nearby(scaled) if self.nearby else 0)
        inner, beside = self._expanded([0, 1], scaled, captions)
        return torch.tanh(inner + self.biases[0]) + beside + self.biases[1]

    def by_role(self, x: Tensor) -> tuple[Tensor, ...]:
        """(B, D) raw features without captions -> (B, K) embeddings as queries, and as database items."""
        scaled = self._in_range(self.scaled(x))
        similar = rbf(scaled, self.support, self.width)
        inner, beside, items = torch.split(similar @ torch.cat([*self.weights], 1), self.bits, 1)
        items = items + self.biases[1] + (self.nearby.in_graph(scaled) if self.nearby else 0)
        return torch.tanh(inner + self.biases[0]) + beside + self.biases[1], items

    def _in_range(self, scaled: Tensor) -> Tensor:
        """Rows (B, D) whose lengths are those of support rows."""
        lengths: Tensor = self.support.norm(dim=1)
        own: Tensor = scaled.norm(dim=1, keepdim=True).clamp_min(1e-12)
        return scaled * (own.clamp(lengths.min(), lengths.max()) / own)

    def _expanded(self, which: list[int], scaled: Tensor, captions: Sequence[str] | None) -> tuple[Tensor, ...]:
        """The expansions of those numbers, each (B, K)."""
        weights = torch.cat([self.weights[at] for at in which], 1)
        found = torch.cat([k @ weights for k in self._similarities(scaled)])
        if captions is not None and len(self.vocabulary):
            vectors = self.vocabulary.vectors(captions).to(found.device)
            found += torch.sparse.mm(vectors, torch.cat([self.term_weights[at] for at in which], 1))
        return torch.split(found, self.bits, 1)

    def _load_from_state_dict(self, state: dict[str, Any], prefix: str, *rest: Any) -> None:
        """Take terms of any number, none of a state that was saved before heads had them."""
        terms = self.terms[:0], self.idf[:0], self.term_weights[:, :0]
        for name, none in zip(("terms", "idf", "term_weights"), terms, strict=True):
            setattr(self, name, torch.empty_like(state.setdefault(prefix + name, none), device=none.device))
        super()._load_from_state_dict(state, prefix, *rest)
        try:
            self.vocabulary = Vocabulary.decode(self.terms, self.idf)
        except ValueError as error:
            rest[-1].append(str(error))

    def _similarities(self, scaled: Tensor) -> Iterator[Tensor]:
        """Similarities to the support rows (b, n), some rows at a time."""
        for part in torch.split(scaled, max(1, SIMILARITIES // len(self.support))):
            yield rbf(part, self.support, self.width)
