"""How fast cmrhash is against what a user would otherwise write: both ways in one run, one thread, as ratios.

Machines are shared and noisy, seconds differ; the ratio of two ways that were timed side by side travels.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cmrhash.errors import UsageError

REPEATS = 3  # of each way, in turns; the best counts


@dataclass(frozen=True)
class Path:
    """A hot path. what: in words, with sizes. target: the ratio that we promise. pair: () -> (naive, ours), two
    functions without arguments that return the same number."""

    what: str
    target: float
    pair: Callable[[], tuple[Callable[[], float], Callable[[], float]]]


def bench(names: tuple[str, ...] = (), progress: Callable[[str, int, int], None] = lambda *_: None) -> dict[str, Any]:
    """Time the named paths (all by default). Returns {"machine": {...}, "rows": [{"path", "naive_s", "ours_s", ...}]}.

    Raises UsageError for an unknown path.
    """
    for name in names:
        if name not in PATHS:
            near = ", ".join(get_close_matches(name, PATHS, 1)) or next(iter(PATHS))
            raise UsageError(f"unknown path '{name}'", None, f"did you mean {near}? there are {', '.join(PATHS)}")
    rows = []
    for at, name in enumerate(names or PATHS):
        progress(name, at, len(names or PATHS))
        rows.append(_row(name, PATHS[name]))
    return {
        "machine": {"processor": platform.machine(), "python": platform.python_version(), "threads": 1},
        "rows": rows,
    }


def _row(name: str, path: Path) -> dict[str, Any]:
    naive, ours = path.pair()
    times: dict[str, list[float]] = {"naive": [], "ours": []}
    for _ in range(REPEATS):
        for way, function in (("naive", naive), ("ours", ours)):
            start = time.process_time()
            result = function()
            times[way].append(time.process_time() - start)
            if way == "naive":
                expected = result
        if not np.isclose(result, expected, rtol=1e-3):
            raise AssertionError(f"{name}: naive way {expected}, ours {result}")
    best = {way: min(values) for way, values in times.items()}
    return {
        "path": name,
        "what": path.what,
        "naive_s": best["naive"],
        "ours_s": best["ours"],
        "ratio": best["naive"] / best["ours"],
        "target": path.target,
    }


def _evaluation() -> tuple[Callable[[], float], Callable[[], float]]:
    """mAP of 2,000 queries over 18,000 items, random 32-bit codes, 255 labels of which an item has about 4."""
    from cmrhash.codes import pack
    from cmrhash.index import rank_histogram
    from cmrhash.metrics import average_precision, items_relevant, mean_over_valid
    from cmrhash.relevance import Relevance

    queries, items, bits, classes = 2000, 18000, 32, 255
    rng = np.random.default_rng(0)
    often = 1 / np.arange(1, classes + 1)
    labels = [
        np.unique(rng.choice(classes, rng.integers(1, 8), p=often / often.sum())).tolist()
        for _ in range(queries + items)
    ]
    codes = rng.choice(np.array([-1, 1], np.int8), (queries + items, bits))
    onehot = np.zeros((queries + items, classes), np.float32)
    for row, own in enumerate(labels):
        onehot[row, own] = 1
    packed = pack(codes.astype(np.float32))

    def naive() -> float:
        return _sort_loop(codes[:queries], codes[queries:], onehot[:queries], onehot[queries:])

    def ours() -> float:
        relevance = Relevance.by_labels(labels[:queries], labels[queries:], classes)
        hist = rank_histogram(packed[:queries], packed[queries:], bits, relevance, threads=1)
        return mean_over_valid(average_precision(*items_relevant(hist)))[0]

    return naive, ours


def _sort_loop(q: NDArray[Any], d: NDArray[Any], q_labels: NDArray[Any], d_labels: NDArray[Any]) -> float:
    """What most published code does: for every query a distance to all, a sort, a running precision."""
    ranks = np.arange(1, len(d) + 1)
    total = 0.0
    for code, own in zip(q, q_labels, strict=True):
        order = np.argsort((code != d).sum(1))
        relevant = (d_labels[order] @ own) > 0
        total += float((np.cumsum(relevant) / ranks)[relevant].sum() / relevant.sum())
    return total / len(q)


def _triplet_step(size: int) -> tuple[Callable[[], float], Callable[[], float]]:
    """Value and gradient of the four triplet terms of a batch, 32 bits, a third of the pairs relevant."""
    import torch

    from cmrhash.losses import four_triplets, squared_distances

    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    u, v = ((torch.rand(size, 32, generator=generator) * 2 - 1).requires_grad_() for _ in range(2))
    relevant = torch.rand(size, size, generator=generator) < 0.18
    relevant = relevant | relevant.T | torch.eye(size, dtype=torch.bool)
    triplets = relevant[:, :, None] & ~relevant[:, None, :]  # (B, B, B) at [a, p, n]

    def naive() -> float:
        terms = []
        for a, b in ((u, u), (u, v), (v, u), (v, v)):
            distance = squared_distances(a, b)
            hinge = (distance[:, :, None] - distance[:, None, :] + 8).clamp_min(0)
            terms.append((hinge * triplets).sum() / triplets.sum())
        return _gradient_norm(sum(terms[1:], terms[0]))

    def ours() -> float:
        return _gradient_norm(four_triplets(u, [v], relevant, 8).loss.sum())

    def _gradient_norm(loss: torch.Tensor) -> float:
        gradients = torch.autograd.grad(loss, (u, v))
        return float(loss.detach() + torch.cat(gradients).norm())

    return naive, ours


PATHS = {
    "evaluation": Path("mAP, 2,000 x 18,000 codes of 32 bits, 255 labels", 50, _evaluation),
    "triplet-128": Path("four triplet terms with gradient, batch 128", 10, lambda: _triplet_step(128)),
    "triplet-256": Path("four triplet terms with gradient, batch 256", 20, lambda: _triplet_step(256)),
}
