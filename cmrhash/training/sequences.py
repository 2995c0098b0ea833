"""Hash head of texts as sequences of word vectors: an LSTM, as systems with a text encoder of their own have it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cmrhash.training.heads import Dropout, Head


class LastState(nn.Module):
    """An LSTM (Hochreiter & Schmidhuber, Neural Computation 1997) over T words; its state after the last word.

    words: T; dim: D numbers per word; hidden: units of the LSTM.
    """

    def __init__(self, words: int, dim: int, hidden: int) -> None:
        super().__init__()
        self.words = words
        self.lstm = nn.LSTM(dim, hidden, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T * D), places behind the last word 0 -> (B, hidden); a text without a word: the state after one 0."""
        steps = x.reshape(len(x), self.words, -1)  # (B, T, D)
        count = (steps != 0).any(2).sum(1).clamp(min=1)  # (B,)
        states, _ = self.lstm(steps)  # (B, T, hidden)
        last: Tensor = states[torch.arange(len(x), device=x.device), count - 1]
        return last


class SequenceHead(Head):
    """An LSTM of a quarter of the hidden units over the words, then K units with tanh.

    words: T; dim: T * D features; bits: K; hidden: as that of ``Head``; dropouts: shares.
    """

    def __init__(
        self,
        dim: int,
        bits: int,
        words: int,
        hidden: int = 1024,
        dropout: float = 0.2,
        input_dropout: float = 0.1,
        bounded: bool = True,
    ) -> None:
        units = max(1, hidden // 4)
        states = LastState(words, dim // words, units)
        layers = nn.Sequential(states, Dropout(dropout), nn.Linear(units, bits))
        super().__init__(dim, bits, bounded=bounded, network=layers)

    def standardise(self, x: Tensor) -> None:
        """Learn one scale of all numbers of the words in the training features x (N, T * D); what is 0 stays 0."""
        numbers = x[x != 0]
        self.std.fill_(float(numbers.square().mean().sqrt()) if len(numbers) else 1.0)
