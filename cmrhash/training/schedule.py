"""Learning rate of a step, and random numbers that depend on a seed alone."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def one_cycle(step: int, steps: int, peak: float) -> float:
    """The learning rate of a step: up from peak/25 over 30 % of the way, down to almost 0, both by half a cosine
    (Smith & Topin 2018, as torch's OneCycleLR has it). A function of the step, so that a resumed run needs no state.
    """
    rise = max(0.3 * steps - 1, 1e-9)
    if step <= rise:
        low, high, share = peak / 25, peak, step / rise
    else:
        low, high, share = peak, peak / 25e4, (step - rise) / max(steps - 1 - rise, 1e-9)
    return high + (low - high) * (1 + math.cos(math.pi * min(share, 1))) / 2


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Draw from ``seed`` inside, and leave the caller's random numbers as they were."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
