"""A trained run -> mAP and its companions, each with the protocol that it was measured under.

What is scored is what lies in the Faiss index: of every database item the first caption, or all captions where
relevance is by pairs. No torch in here: a run whose codes exist is scored in the time that NumPy and Faiss need.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cmrhash.config import CUTS, EvalConfig
from cmrhash.data.cleaning import known_language
from cmrhash.data.items import ImageTextDataset
from cmrhash.data.view import View, languages_of
from cmrhash.errors import UsageError, did_you_mean
from cmrhash.evaluation import per_query, saved_scores
from cmrhash.evaluation.protocol import protocol_of
from cmrhash.evaluation.run_codes import (
    RunCodes,
    ViewCodes,
    among_database,
    borrowed_views,
    codes_of,
    refuse_language,
)
from cmrhash.evaluation.scoring import score as score_search
from cmrhash.evaluation.searches import DIRECTIONS, Search, searches, sides
from cmrhash.evaluation.seen import by_side, kinds
from cmrhash.features.dataset import ExtractedDataset
from cmrhash.retrieval import metrics
from cmrhash.retrieval.ranking import FEATURES, Rank
from cmrhash.retrieval.relevance import Relevance
from cmrhash.training import runs

log = logging.getLogger(__name__)

NONE = np.empty(0, np.uint8)
TIES = ("expected", "optimistic", "pessimistic")


@dataclass
class Evaluation:
    """protocol: how every number was made, in words. rows: one a run and search. map_at: the cut."""

    protocol: dict[str, Any]
    rows: list[dict[str, Any]]
    map_at: int | None = None

    def as_json(self) -> dict[str, Any]:
        """What ``--json`` prints."""
        return {"protocol": self.protocol, "rows": self.rows}

    def __repr__(self) -> str:
        return f"Evaluation({self.protocol['dataset']!r}, {len(self.rows)} rows)"

    def __str__(self) -> str:
        """The main figures of each row as a table, then the protocol."""
        cells = [["method", "bits", "seed", "lang", "direction", "mAP", "seen", "unseen", "chance"]]
        for row in self.rows:
            values = row.get("map", row.get("mean")), *by_side(row), row["chance"]
            figures = ("-" if value is None else f"{value:.3f}" for value in values)
            which = (row.get(key, "") for key in ("method", "bits", "seed", "lang", "direction"))
            cells.append([*("" if value is None else str(value) for value in which), *figures])
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = ["  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in cells]
        return "\n".join([*lines, "", *self.in_words()])

    def in_words(self) -> list[str]:
        """The protocol for people, a line a point."""
        points = {**self.protocol, **self.protocol["encoders"]}
        del points["encoders"]
        words = {key: ", ".join(map(str, value)) if isinstance(value, list) else value for key, value in points.items()}
        return [f"{key}: {value}" for key, value in words.items() if value]


def evaluate(config: EvalConfig, data: ExtractedDataset, out: Path) -> Evaluation:
    """Score every fitting run of the data set. out: the folder of all runs.

    Codes that are missing or stale are made first (this needs torch). Raises UsageError for runs, languages or
    rules that do not exist, DataError if no query has a relevant item.
    """
    trained_by = data.with_relevance(config.trained_by or config.relevance).dataset.relevance
    data = data.with_relevance(config.relevance)
    check_eval(config, data.dataset)
    wanted = (config.bits, config.methods, config.seeds)
    return score(config, runs.find_runs(out, data.name, trained_by, *wanted), data)


def score(config: EvalConfig, found: Sequence[runs.Run], data: ExtractedDataset) -> Evaluation:
    """Score these runs by the relevance that the data set has here; as ``evaluate`` does.

    What was scored before, of the same codes in the same way, is taken from the run's folder. Runs whose
    heads do not fit the features are left out and named, unless there are no others: then StaleError is raised.
    """
    asked, found, dataset = found, runs.current(found, data), data.dataset
    refuse_languages(found, data, config.langs)
    rows: list[dict[str, Any]] = []
    known: dict[bytes, Relevance] = {}  # the same for all runs that score the same items
    for run in found:
        rows += _of_run(config, data, codes_of(run, data), known)
    if not rows:
        what = "no item has two captions of a language" if dataset.languages else "no item has a caption"
        fix = "choose other directions, or another data set"
        if all(run.direction for run in found):
            what = f"the runs were trained for {' and '.join(sorted({str(run.direction) for run in found}))} only"
        if not dataset.languages and dataset.relevance == "labels":
            fix = '`evaluate` with `directions=("i2i",)` scores photos by photos'
        elif not dataset.languages and not dataset.classes:
            what = "the photos have neither captions nor labels"
            fix = "`search` and `serve` show what the run finds; for figures, `extract` them with captions or labels"
        raise UsageError(f"nothing to score: {what}", data.folder, fix)
    protocol = protocol_of(config, data, found, rows)
    if past := [run.name for run in asked if run not in found]:
        protocol["left out"] = f"{', '.join(past)}: their heads do not fit the features in the cache"
    return Evaluation(protocol, rows, config.map_at)


def refuse_languages(found: Sequence[runs.Run], data: ExtractedDataset, asked: Sequence[str]) -> None:
    """Raise UsageError for an asked language that none of the runs can score, with the reason."""
    spoken = {lang for run in found for lang in run.langs}
    spoken |= {lang for run in found for lang in languages_of(borrowed_views(run, data))}
    for lang in asked:
        if known_language(lang, spoken) not in spoken:
            refuse_language(found[0], data, lang)


def _of_run(
    config: EvalConfig, data: ExtractedDataset, views: RunCodes, known: dict[bytes, Relevance]
) -> list[dict[str, Any]]:
    """A row a search: those that are kept, and those that are scored now and kept from now on."""
    run, dataset = views.run, data.dataset
    of = saved_scores.scored(views, dataset)
    cuts = list(config.at or CUTS[dataset.relevance])
    asked = {"ties": config.ties, "map_at": config.map_at, "map_at_rule": config.map_at_rule, "at": cuts}
    if str(Rank.parse(config.rank)) != EvalConfig.rank:
        asked[saved_scores.RANK] = str(Rank.parse(config.rank))
    if run.relevance != dataset.relevance:
        asked[saved_scores.RELEVANCE] = dataset.relevance
    kept = saved_scores.kept(run, of, asked)
    ends = among_database(dataset, views)
    wanted = {
        (search.direction, search.lang, search.database_lang): search
        for search in searches(dataset, ends, run.scored(config.directions), config.langs)
    }
    missing = {key: search for key, search in wanted.items() if key not in kept}
    kind = kinds(dataset, views) if missing else NONE
    each: dict[str, per_query.Values] = {}
    new = {
        key: {**_who(run, dataset, ends, search), **_score(config, dataset, ends, search, known, kind, each)}
        for key, search in missing.items()
    }
    log.info("%s: %d figures scored now, %d from %s", run.folder, len(new), len(wanted) - len(new), runs.METRICS)
    kept |= new
    if new:
        rows = list(kept.values())
        saved_scores.keep(run, of, asked, protocol_of(config, data, [run], rows), rows)
    if each:
        per_query.keep(run, of, dataset, each)
    return [kept[key] for key in wanted]


def _score(
    config: EvalConfig,
    dataset: ImageTextDataset,
    views: Mapping[View, ViewCodes],
    search: Search,
    known: dict[bytes, Relevance],
    kind: NDArray[np.uint8],
    each: dict[str, per_query.Values],
) -> dict[str, Any]:
    """Figures of a search. each: takes the values of its queries, by its name."""
    both = sides(dataset, views, search)
    if both.key not in known:
        known[both.key] = both.relevance(dataset)

    def take(items: NDArray[Any], relevant: NDArray[Any]) -> None:
        each[per_query.name_of(search)] = per_query.values_of(both.queries, items, relevant)

    return score_search(config, dataset, both, search, known[both.key], kind, take)


def _who(run: runs.Run, dataset: ImageTextDataset, views: Mapping[View, ViewCodes], search: Search) -> dict[str, Any]:
    """Whose row it is. head_lang: the language whose head made the codes of the texts."""
    heads = [lang for view in (search.source, search.sought) if (lang := views[view].head.lang)]
    return {
        "dataset": run.dataset,
        "method": run.method,
        "bits": run.bits,
        "seed": run.seed,
        "lang": search.lang,
        "direction": search.direction,
        "head_lang": heads[0] if heads else None,
        **({"database_lang": search.database_lang, "database_head_lang": heads[1]} if heads[1:] else {}),
        "trained_langs": list(run.langs),
        **({"trained_direction": run.direction} if run.direction else {}),
        "encoders": {view: view.encoder_of(of.file) for view, of in run.features.items()},
        "relevance": dataset.relevance,
        **({"trained_by": run.relevance} if run.relevance != dataset.relevance else {}),
        "collapsed": run.outcome.collapsed,
        "run": str(run.folder),
    }


def check_eval(config: EvalConfig, dataset: ImageTextDataset) -> None:
    """Raise UsageError for settings that cannot be used together, or not on this data set."""
    if config.ties not in TIES:
        raise UsageError(f"unknown order '{config.ties}'", None, f"choose one of {', '.join(TIES)}", option="ties")
    if config.map_at_rule not in metrics.RULES:
        fix = f"{did_you_mean(config.map_at_rule, metrics.RULES)} choose one of {', '.join(metrics.RULES)}"
        raise UsageError(f"unknown rule '{config.map_at_rule}'", None, fix, option="map_at_rule")
    if config.map_at is None and config.map_at_rule != EvalConfig.map_at_rule:
        raise UsageError("used only with `map_at`", None, "add `map_at=K`", option="map_at_rule")
    if Rank.parse(config.rank).kind == FEATURES:
        what = "`features` orders photos by a photo without codes, and codes are what is scored"
        raise UsageError(what, None, "choose hamming, asymmetric, rerank or rerank:N", option="rank")
    for direction in config.directions:
        if direction not in DIRECTIONS:
            fix = f"{did_you_mean(direction, DIRECTIONS)} choose of {', '.join(DIRECTIONS)}"
            raise UsageError(f"unknown direction '{direction}'", None, fix, option="directions")
    if "i2i" in config.directions and dataset.relevance == "pairs":
        what = "i2i needs labels: with relevance pairs each item has one image"
        fix = 'use `relevance="labels"`' if dataset.classes else "leave it out: the data set has no labels"
        raise UsageError(what, None, fix, option="directions")
    for k in (*config.at, *([] if config.map_at is None else [config.map_at])):
        if k < 1:
            raise UsageError(f"a cutoff of {k} is out of range", None, "give a whole number from 1")
