"""Embeddings of items of earlier steps, with which pairwise losses compare a batch, too.

Wang et al., Cross-Batch Memory (CVPR 2020); with as many as there are train items, the code buffer of MITH (MM 2023).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn


class Memory(nn.Module):
    """The last N items of the steps before, each once, with its latest embeddings.

    views: names; all is stored as buffers, so that checkpoints have it.
    """

    rows: Tensor
    end: Tensor

    def __init__(self, views: Sequence[str], bits: int, size: int) -> None:
        super().__init__()
        self.views = tuple(views)
        self.register_buffer("rows", torch.full((size,), -1))  # positions among the train items; -1: none
        self.register_buffer("end", torch.zeros((), dtype=torch.int64))  # place of the next item
        for view in self.views:
            self.register_buffer(f"of_{view}", torch.zeros(size, bits))

    def recall(self, rows: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Remembered items that are not of the batch's rows (B,): their rows (C,) and embeddings (C, K) by view."""
        kept = (self.rows >= 0) & ~torch.isin(self.rows, rows)
        return self.rows[kept], {view: self.get_buffer(f"of_{view}")[kept] for view in self.views}

    @torch.no_grad()
    def remember(self, rows: Tensor, views: Mapping[str, Tensor]) -> None:
        """Put a batch's embeddings (B, K) in the place of the oldest; its items are forgotten elsewhere."""
        rows = rows[-len(self.rows) :]
        self.rows[torch.isin(self.rows, rows)] = -1
        places = (self.end + torch.arange(len(rows), device=rows.device)) % len(self.rows)
        self.rows[places] = rows
        for view in self.views:
            self.get_buffer(f"of_{view}")[places] = views[view].detach()[-len(rows) :]
        self.end.copy_((self.end + len(rows)) % len(self.rows))
