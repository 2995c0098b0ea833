"""Names of the metrics of ``compare``, which the command line checks before it imports torch."""

from __future__ import annotations

from cmrhash.errors import UsageError, did_you_mean

METRICS = {"map": None, "r@1": "1", "r@5": "5", "r@10": "10"}  # metric -> k of hit@k, usually called R@k; None: mAP


def check_metric(name: str) -> None:
    """Raise UsageError for a metric that ``compare`` does not have."""
    if name not in METRICS:
        fix = f"{did_you_mean(name, METRICS)} choose one of {', '.join(METRICS)}"
        raise UsageError(f"unknown metric '{name}'", None, fix, option="metric")
