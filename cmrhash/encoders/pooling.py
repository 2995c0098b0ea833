"""Token vectors to one vector per text: the poolings, and the layers that sentence-transformers puts behind them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cmrhash.encoders.sentence import ACTIVATIONS


def pool(hidden: Tensor, mask: Tensor, pooling: str, skip: int = 0) -> Tensor:
    """Token vectors (B, T, D) float32 with their mask (B, T) of 0 and 1 -> (B, D x modes).

    skip: tokens at the start that do not count, a prompt's. Source: Pooling.py of sentence-transformers; as there, the
    weights of "weightedmean" count from the first token of the text with its prompt.
    """
    place = torch.arange(1, hidden.shape[1] + 1, device=hidden.device)  # (T,)
    mask = mask * (place > skip) if skip else mask
    share = mask.unsqueeze(-1).float()  # (B, T, 1)
    parts: list[Tensor] = []
    for mode in pooling.split("+"):
        if mode == "max":
            parts.append(hidden.masked_fill(share == 0, -torch.inf).amax(1))
        elif mode in ("cls", "lasttoken"):
            at = (mask if mode == "cls" else mask * place).int().argmax(1).view(-1, 1, 1)  # (B, 1, 1)
            kept = hidden if mode == "cls" else hidden * share
            parts.append(kept.gather(1, at.expand(-1, 1, hidden.shape[2])).squeeze(1))
        else:
            weight = share * place.view(1, -1, 1) if mode == "weightedmean" else share
            total = weight.sum(1).clamp(min=1)
            parts.append((hidden * weight).sum(1) / (total.sqrt() if mode == "mean_sqrt_len" else total))
    return parts[0] if len(parts) == 1 else torch.cat(parts, 1)


class Dense(nn.Module):
    """A linear layer with its activation: (B, in) -> (B, out)."""

    def __init__(self, inputs: int, outputs: int, bias: bool, activation: str) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, outputs, bias=bias)
        assert activation in ACTIVATIONS  # nothing is imported by another name out of a file
        self.activation: nn.Module = getattr(nn, activation)()

    def forward(self, x: Tensor) -> Tensor:
        """Apply both."""
        y: Tensor = self.activation(self.linear(x))
        return y

    @property
    def label(self) -> str:
        """Name in the recipe."""
        return f"Dense {type(self.activation).__name__}"


class Normalize(nn.Module):
    """L2 normalisation of each row; zeros stay zeros."""

    label = "Normalize"

    def forward(self, x: Tensor) -> Tensor:
        """(B, D) -> (B, D)."""
        return nn.functional.normalize(x, dim=-1)


class Truncate(nn.Module):
    """The first features of each row (``truncate_dim``)."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size, self.label = size, f"Truncate {size}"

    def forward(self, x: Tensor) -> Tensor:
        """(B, D) -> (B, size)."""
        return x[:, : self.size]
