"""Learning rates of a step, and random numbers that depend on a seed alone."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from cmrhash.config import SCHEDULES, TrainConfig
from cmrhash.data.view import View


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


def groups_of(config: TrainConfig, heads: nn.ModuleDict, parts: nn.ModuleDict) -> list[dict[str, Any]]:
    """Parameter groups with their "share" of the learning rate ``lr``: one per head, then one of the parts."""
    rates = {name: config.image_lr if name == View.IMAGE else config.text_lr for name in heads}
    shares = {name: 1.0 if rate is None else rate / config.lr for name, rate in rates.items()}
    groups: list[dict[str, Any]] = [{"params": list(heads[name].parameters()), "share": shares[name]} for name in heads]
    return [*groups, {"params": list(parts.parameters()), "share": 1.0}]


def set_rates(config: TrainConfig, groups: list[dict[str, Any]], step: int, steps: int, peak: float) -> None:
    """Set the learning rates of a step. peak: of the schedule, for a share of 1."""
    rate = one_cycle(step, steps, peak) if config.schedule == SCHEDULES[0] else peak
    for group in groups:
        group["lr"] = group["share"] * rate


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Draw from ``seed`` inside, and leave the caller's random numbers as they were."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
