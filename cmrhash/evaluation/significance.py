"""Significance of a difference between methods: paired bootstrap over queries, Holm's correction per column.

Values of a query are averaged over the seeds first, so that a difference is that of the means in the table. Resampled
queries are the same for all methods (Efron & Tibshirani, An Introduction to the Bootstrap, 1993; Smucker, Allan &
Carterette, CIKM 2007; Holm, Scandinavian Journal of Statistics 1979).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cmrhash.config import EvalConfig
from cmrhash.data.items import ImageTextDataset
from cmrhash.data.view import View
from cmrhash.evaluation import per_query, saved_scores
from cmrhash.evaluation.run_codes import ViewCodes, among_database, codes_of
from cmrhash.evaluation.searches import Search, searches, sides
from cmrhash.features.dataset import ExtractedDataset
from cmrhash.retrieval import metrics
from cmrhash.retrieval.index import rank_histogram
from cmrhash.training import runs

Floats = NDArray[np.float64]
Column = tuple[int, str | None, str]  # bits, language, direction
DRAWS = 10_000
LEVEL = 0.05
BLOCK = 1 << 21  # resampled queries that are held at a time


class Difference(NamedTuple):
    """Mean difference from the baseline with its 95 % interval, and its p before and after Holm's correction."""

    mean: float
    low: float
    high: float
    p: float
    p_holm: float

    @property
    def is_significant(self) -> bool:
        """Whether the corrected p is below .05."""
        return self.p_holm < LEVEL


def differences(values: Mapping[str, Floats], against: str, seed: int = 0, draws: int = DRAWS) -> dict[str, Difference]:
    """Compare each method with a baseline, queries paired.

    values: method -> (Q,) value of each query, NaN for queries that do not count; against: the baseline among them.
    Returns a Difference for every other method.
    """
    names = [name for name in values if name != against]
    apart = np.stack([values[name] - values[against] for name in names])  # (M, Q)
    apart = apart[:, ~np.isnan(apart).any(axis=0)]
    queries = apart.shape[1]
    rng, step = np.random.default_rng(seed), max(1, BLOCK // queries)
    blocks = (rng.integers(queries, size=(min(step, draws - first), queries)) for first in range(0, draws, step))
    means = np.concatenate(
        [np.stack([own[rows].mean(axis=1) for own in apart]) for rows in blocks], axis=1
    )  # (M, draws)
    low, high = np.quantile(means, (LEVEL / 2, 1 - LEVEL / 2), axis=1)
    fewer = np.minimum((means <= 0).sum(axis=1), (means >= 0).sum(axis=1))
    p = np.minimum(1.0, 2 * (1 + fewer) / (1 + draws))
    figures = zip(apart.mean(axis=1), low, high, p, holm(p), strict=True)
    return {name: Difference(*map(float, own)) for name, own in zip(names, figures, strict=True)}


def holm(p: Floats) -> Floats:
    """Correct the p of several comparisons (M,) so that all of them hold together.

    >>> holm(np.array([0.01, 0.04, 0.03]))
    array([0.03, 0.06, 0.06])
    """
    order = np.argsort(p, kind="stable")
    corrected = np.empty(len(p))
    corrected[order] = np.maximum.accumulate(np.minimum(1.0, p[order] * np.arange(len(p), 0, -1)))
    return corrected


def query_values(
    found: Sequence[runs.Run], data: ExtractedDataset, langs: Sequence[str], metric: str
) -> dict[Column, dict[str, Floats]]:
    """Value of each query by column and method, the mean over the seeds: (Q,) AP, or R@k of 0 to 1.

    found: runs of the data set; langs: languages to score, empty for all; metric: a name of METRICS. Values
    that ``eval`` or an earlier call kept in the run's folder are taken from there.
    """
    part, dataset = per_query.field_of(metric), data.dataset
    of: dict[Column, dict[str, list[Floats]]] = {}
    for run in found:
        views = codes_of(run, data)
        wanted = searches(dataset, views, run.scored(EvalConfig.directions), langs)
        digests, names = saved_scores.scored(views, dataset), [per_query.name_of(search) for search in wanted]
        each = per_query.kept(run, digests, dataset, names)
        if missing := [search for search in wanted if per_query.name_of(search) not in each]:
            each |= (new := _values(dataset, among_database(dataset, views), missing))
            per_query.keep(run, digests, dataset, new)
        for search, name in zip(wanted, names, strict=True):
            column = run.bits, search.lang, search.direction
            of.setdefault(column, {}).setdefault(run.method, []).append(each[name][part])
    return {column: {method: np.mean(own, axis=0) for method, own in methods.items()} for column, methods in of.items()}


def _values(
    dataset: ImageTextDataset, views: Mapping[View, ViewCodes], wanted: Sequence[Search]
) -> dict[str, per_query.Values]:
    """Values of the queries of these searches, by their names, where an earlier version scored the run."""
    found = {}
    for search in wanted:
        both = sides(dataset, views, search)
        packed = np.ascontiguousarray(both.source.asked_packed[both.rows])
        hist = rank_histogram(packed, both.sought.index.packed, both.source.codes.bits, both.relevance(dataset))
        found[per_query.name_of(search)] = per_query.values_of(both.queries, *metrics.items_relevant(hist))
    return found


def columns_of(of: Mapping[Column, Mapping[str, Floats]], against: str) -> dict[tuple[Any, ...], Difference]:
    """Difference of every cell but the baseline's, by (method, bits, language, direction)."""
    return {
        (method, *column): difference
        for column, methods in of.items()
        if against in methods and len(methods) > 1
        for method, difference in differences(methods, against).items()
    }
