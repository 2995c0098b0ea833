"""Hash heads: modules that map features of one modality to embeddings in the common Hamming space."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

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

    def ask(self, scaled: Tensor) -> Tensor:
        """Embed standardised features as queries (B, K): here as database items are embedded."""
        return self.project(scaled)

    @torch.inference_mode()
    def embed(self, x: Tensor, batch: int = 8192, query: bool = False) -> Tensor:
        """(N, D) -> (N, K) without dropout and gradient, a batch at a time. query: as queries, not as items."""
        training = self.training
        self.eval()
        embedded = self.ask if query else self.project
        parts = [embedded(self.scaled(part)) for part in torch.split(x, batch)]
        self.train(training)
        return torch.cat(parts) if parts else x.new_empty(0, self.bits)


class KernelHead(Head):
    """Kernel expansions over stored training features: one for database items, two for queries.

    With similarities k (B, n) of standardised features to the n support rows, a database item is embedded as
    k W2 + b1, a query as tanh(k W0 + b0) + k W1 + b1. All is stored as buffers, n (D + 3 K) numbers in the main.
    dim: D features; bits: K; rows: n.
    """

    width: Tensor
    support: Tensor
    weights: Tensor
    biases: Tensor

    def __init__(self, dim: int, bits: int, rows: int):
        super().__init__(dim, bits, bounded=False, network=nn.Identity())
        self.register_buffer("width", torch.ones(()))
        self.register_buffer("support", torch.zeros(rows, dim))
        self.register_buffer("weights", torch.zeros(3, rows, bits))  # of queries, in tanh and beside; of items
        self.register_buffer("biases", torch.zeros(2, bits))

    def project(self, scaled: Tensor) -> Tensor:
        """(B, D) standardised features -> (B, K) embeddings as database items."""
        return torch.cat([k @ self.weights[2] for k in self._similarities(scaled)]) + self.biases[1]

    def ask(self, scaled: Tensor) -> Tensor:
        """(B, D) standardised features -> (B, K) embeddings as queries."""
        w, b = self.weights, self.biases
        return torch.cat([torch.tanh(k @ w[0] + b[0]) + k @ w[1] for k in self._similarities(scaled)]) + b[1]

    def _similarities(self, scaled: Tensor) -> Iterator[Tensor]:
        """Similarities to the support rows (b, n), some rows at a time."""
        for part in torch.split(scaled, max(1, SIMILARITIES // len(self.support))):
            yield rbf(part, self.support, float(self.width))


def rbf(x: Tensor, y: Tensor, width: float) -> Tensor:
    """Gaussian kernel exp(-width |x - y|^2 / D) of rows x (B, D) and y (C, D), (B, C).

    >>> rbf(torch.zeros(1, 2), torch.tensor([[0.0, 0.0], [1.0, 1.0]]), 1.0)
    tensor([[1.0000, 0.3679]])
    """
    squares = torch.addmm(y.pow(2).sum(1), x, y.T, alpha=-2).add_(x.pow(2).sum(1, keepdim=True))
    return squares.clamp_min_(0).mul_(-width / x.shape[1]).exp_()
