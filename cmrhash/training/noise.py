"""Label noise for experiments: wrong labels of train items, drawn from a seed."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

DRAW = 1  # keeps the draw apart from others of the same seed


def with_noise(labels: Tensor, rate: float, seed: int) -> Tensor:
    """Labels (n, classes) of 0 and 1 in which a share of the items has one label removed and a wrong one added.

    rate: share of items, of which n * rate, rounded down, are drawn. Every item keeps its number of labels, unless it
    has none or all. Source: NRCH, Wang et al. (ACM MM 2024), noise/generate.py of its code.
    """
    rng = np.random.default_rng((seed, DRAW))
    noisy: NDArray[np.float32] = labels.cpu().numpy().copy()
    for row in np.sort(rng.choice(len(noisy), int(len(noisy) * rate), replace=False)).tolist():
        own, others = np.flatnonzero(noisy[row]), np.flatnonzero(noisy[row] == 0)
        for places, value in ((own, 0), (others, 1)):
            if len(places):
                noisy[row, rng.choice(places)] = value
    return torch.from_numpy(noisy).to(labels.device)
