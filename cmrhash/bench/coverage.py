"""Coverage of the intervals of ``compare --against``, by simulation on the queries of two runs.

``python -m cmrhash.bench.coverage RUN RUN SEARCH``, with a search such as i2t.en: the differences of AP between the
runs are the population, whose mean is known. Samples of queries are drawn from it; the share of their 95 % intervals
that contain the mean is the coverage. With the mean taken off, the share of p below .05 is that of false alarms.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cmrhash.evaluation.significance import LEVEL, differences

SIZES = (50, 100, 200, 400, 800)  # queries per sample
TRIALS = 1000  # samples of each size
DRAWS = 2000  # resamples per interval


class Coverage(NamedTuple):
    """Shares of the samples of a size: intervals that contain the true difference, and false alarms without one."""

    queries: int
    covered: float
    alarms: float


def coverage(apart: NDArray[np.float64], queries: int, trials: int = TRIALS, draws: int = DRAWS) -> Coverage:
    """Draw samples of queries and test each. apart: (Q,) differences of two methods, the population."""
    rng, true = np.random.default_rng(0), float(apart.mean())
    covered = alarms = 0
    for trial in range(trials):
        sample = apart[rng.integers(len(apart), size=queries)]
        found = differences({"a": np.zeros(queries), "b": sample}, "a", trial, draws)["b"]
        covered += found.low <= true <= found.high
        alarms += differences({"a": np.zeros(queries), "b": sample - true}, "a", trial, draws)["b"].p < LEVEL
    return Coverage(queries, covered / trials, alarms / trials)


def apart_of(runs: Sequence[str], search: str) -> NDArray[np.float64]:
    """Differences of AP between two runs, (Q,), of the queries that count in both."""
    values = []
    for run in runs:
        with np.load(Path(run) / "queries-labels.npz") as found:
            values.append(found[f"{search}.ap"])
    apart: NDArray[np.float64] = values[1] - values[0]
    return apart[~np.isnan(apart)]


def main() -> None:
    """Print a line per size of samples."""
    one, other, search = sys.argv[1:]
    apart = apart_of((one, other), search)
    print(f"{len(apart)} queries, mean difference {apart.mean():.4f}, sd {apart.std():.4f}")
    for size in SIZES:
        found = coverage(apart, size)
        error = np.sqrt(found.covered * (1 - found.covered) / TRIALS)
        print(
            f"{size} queries: covered {found.covered:.3f} +- {error:.3f}, false alarms {found.alarms:.3f}", flush=True
        )


if __name__ == "__main__":
    main()
