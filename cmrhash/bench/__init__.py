"""How fast cmrhash is against what a user would otherwise write, and against what the machine can do at best.

Machines are shared and noisy, seconds differ; the ratio of two ways that were timed in turns, in one run and on one
thread, travels. Each path builds its own input; the naive way and ours must come to the same result.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path as File
from typing import Any

import numpy as np

from cmrhash.config import Progress
from cmrhash.errors import UsageError, did_you_mean

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

REPEATS = 3  # of each way, in turns; the best counts
PEAK, RESET = File("/proc/self/status"), File("/proc/self/clear_refs")

Way = Callable[[], Any]  # returns a number, one for each piece of the work, or None where tests compare the results


@dataclass(frozen=True)
class Case:
    """The two ways of doing a piece of work, ready to run. naive may do the first ``share`` of it only, where all of
    it would take minutes. limit: what the machine needs at least for it. tolerance: relative, of the results' means.
    """

    naive: Way
    ours: Way
    limit: Way | None = None
    share: float = 1.0
    tolerance: float = 1e-3


@dataclass(frozen=True)
class Path:
    """A hot path. what: in words, with sizes; limit: what its limit is; target: the ratio that we promise."""

    what: str
    limit: str
    target: float
    case: Callable[[], AbstractContextManager[Case]]


def bench(names: tuple[str, ...] = (), progress: Progress = lambda *_: None) -> dict[str, Any]:
    """Time the named paths (all by default).

    Returns {"machine": {...}, "rows": [{"path", "what", "naive_s", "ours_s", "ratio", "target", "limit",
    "limit_share", "peak_mb"}]}: CPU seconds of one thread, the limit's share of ours (1: nothing to gain; None: not
    measured), and how much memory ours takes at most beyond what was there. Raises UsageError for an unknown path.
    """
    from cmrhash.bench import encoding, retrieval, start, storage, training

    paths = {**retrieval.PATHS, **storage.PATHS, **encoding.PATHS, **training.PATHS, **start.PATHS}
    for name in names:
        if name not in paths:
            fix = f"{did_you_mean(name, paths)} choose one of {', '.join(paths)}"
            raise UsageError(f"unknown path '{name}'", None, fix, option="path")
    rows = []
    for at, name in enumerate(names or paths):
        progress(name, at, len(names or paths))
        with paths[name].case() as case:
            rows.append({"path": name, **_row(name, paths[name], case)})
    progress("done", len(rows), len(rows))
    return {"machine": _machine(), "rows": rows}


def _row(name: str, path: Path, case: Case) -> dict[str, Any]:
    ways = {"naive": case.naive, "ours": case.ours, **({"limit": case.limit} if case.limit else {})}
    times: dict[str, list[float]] = {way: [] for way in ways}
    results: dict[str, Any] = {}
    peak = None
    for _ in range(REPEATS):
        for way, function in ways.items():
            before = _resident() if way == "ours" else None
            start = _cpu()
            results[way] = function()
            times[way].append(_cpu() - start)
            if before is not None:
                peak = max(peak or 0.0, _peak() - before)
    if results["naive"] is not None:
        expected, found = (np.ravel(results[way])[: np.size(results["naive"])].mean() for way in ("naive", "ours"))
        if not np.isclose(found, expected, rtol=case.tolerance):
            raise AssertionError(f"{name}: naive way {expected}, ours {found}")
    best = {way: min(values) for way, values in times.items()}
    naive = best["naive"] / case.share
    return {
        "what": path.what,
        "naive_s": naive,
        "ours_s": best["ours"],
        "ratio": naive / best["ours"],
        "target": path.target,
        "limit": path.limit,
        "limit_share": best["limit"] / best["ours"] if case.limit else None,
        "peak_mb": peak,
    }


def _cpu() -> float:
    """CPU seconds of this process and of the children that it has waited for; by the clock where nobody counts them."""
    if resource is None:
        return time.perf_counter()
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def _resident() -> float | None:
    """MB in memory now, after which the peak is counted anew; None where the system does not tell."""
    try:
        RESET.write_text("5", encoding="utf-8")
        return _status("VmRSS")
    except (OSError, KeyError):
        return None


def _peak() -> float:
    return _status("VmHWM")


def _status(field: str) -> float:
    lines = dict(line.split(":", 1) for line in PEAK.read_text(encoding="utf-8").splitlines() if ":" in line)
    return int(lines[field].split()[0]) / 1024


def _machine() -> dict[str, Any]:
    return {"processor": _processor(), "python": platform.python_version(), "threads": 1}


def _processor() -> str:
    try:
        lines = File("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.machine()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def pieces(total: int, size: int) -> Iterator[slice]:
    """0 ... total in slices of a size."""
    return (slice(first, min(first + size, total)) for first in range(0, total, size))
