"""Benchmarks of cmrhash against naive code and machine limits. It may import every room but maintenance.

Seconds differ between shared, noisy machines. The ratio of two ways that alternate in one process on one thread is
comparable. Each path builds its own input, and both ways must give the same result.
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

REPEATS = 3  # runs of each way, alternating; the fastest counts
PEAK, RESET = File("/proc/self/status"), File("/proc/self/clear_refs")

Way = Callable[[], Any]  # returns a number, numbers per piece of work, or None if tests compare the results


@dataclass(frozen=True)
class Case:
    """Two ways to do the same work, ready to run.

    naive: may do only the first ``share`` of the work if all of it would take minutes.
    limit: the least work that the machine must do for it.
    tolerance: relative difference allowed between the means of the results.
    """

    naive: Way
    ours: Way
    limit: Way | None = None
    share: float = 1.0
    tolerance: float = 1e-3


@dataclass(frozen=True)
class Path:
    """A hot path to measure.

    what: description with sizes; limit: description of the limit; target: promised ratio of naive to ours.
    """

    what: str
    limit: str
    target: float
    case: Callable[[], AbstractContextManager[Case]]


def bench(names: tuple[str, ...] = (), progress: Progress = lambda *_: None) -> dict[str, Any]:
    """Time the named paths (all by default).

    Returns {"machine": {...}, "rows": [{"path", "what", "naive_s", "ours_s", "ratio", "target", "limit",
    "limit_share", "peak_mb"}]}. Times are CPU seconds of one thread. limit_share is the limit's time as a share of ours
    (1: optimal; None: not measured); peak_mb is the memory that ours adds at its peak. Raises UsageError for an unknown
    path.
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
    """CPU seconds of this process and its finished children; wall-clock seconds on Windows."""
    if resource is None:
        return time.perf_counter()
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def _resident() -> float | None:
    """Resident memory in MB, after a reset of the peak; None where the system does not report it."""
    try:
        RESET.write_text("5", encoding="utf-8")
        return _status("VmRSS")
    except (OSError, KeyError):
        return None


def _peak() -> float:
    """Peak of the resident memory in MB since the last reset."""
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
    """Slices of ``size`` that cover 0 to ``total``."""
    return (slice(first, min(first + size, total)) for first in range(0, total, size))
