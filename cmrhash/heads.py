"""Hash heads: features of one modality -> embeddings in the common Hamming space. nn.Modules only."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Head(nn.Module):
    """Standardise, then a hidden layer (or none), then K units with tanh (or, for closed forms, as they are).

    The statistics of the training features are part of the head, so that it can be applied to raw features anywhere.
    dim: D features; bits: K; hidden: width of the hidden layer, 0 for a linear head; dropouts: shares.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        dim: int,
        bits: int,
        hidden: int = 1024,
        dropout: float = 0.2,
        input_dropout: float = 0.1,
        bounded: bool = True,
    ):
        super().__init__()
        self.bounded = bounded
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("std", torch.ones(dim))
        layers: list[nn.Module] = [nn.Dropout(input_dropout)]
        if hidden:
            layers += [nn.Linear(dim, hidden), nn.ReLU(), nn.Dropout(dropout)]
        layers += [nn.Linear(hidden or dim, bits)]
        self.layers = nn.Sequential(*layers)

    def standardise(self, x: Tensor) -> None:
        """Learn mean and standard deviation from the training features x (N, D); constant features stay as they are.

        Constant by a feature's own measure: those of an untrained MobileNet or EfficientNet are 1e-9 to 1e-13.
        """
        self.mean.copy_(x.mean(0))
        std = x.std(0, correction=0)
        self.std.copy_(torch.where(std > 1e-6 * self.mean.abs(), std, torch.ones_like(std)))

    def forward(self, x: Tensor) -> Tensor:
        """(B, D) raw features -> (B, K) embeddings, in [-1, 1] if bounded; the sign is the code."""
        embedding: Tensor = self.layers((x - self.mean) / self.std)
        return torch.tanh(embedding) if self.bounded else embedding

    def set_linear(self, weight: Tensor) -> None:
        """Make the (linear) head project standardised features by weight (D, K)."""
        last = self.layers[-1]
        assert isinstance(last, nn.Linear)
        with torch.no_grad():
            last.weight.copy_(weight.T)
            last.bias.zero_()

    @torch.inference_mode()
    def embed(self, x: Tensor, batch: int = 8192) -> Tensor:
        """(N, D) -> (N, K) without dropout and gradient, a batch at a time."""
        training = self.training
        self.eval()
        out = torch.cat([self(part) for part in torch.split(x, batch)]) if len(x) else x.new_empty(0, self.bits)
        self.train(training)
        return out

    @property
    def bits(self) -> int:
        """K, the code length."""
        last = self.layers[-1]
        assert isinstance(last, nn.Linear)
        return last.out_features
