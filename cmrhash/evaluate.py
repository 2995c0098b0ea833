"""A trained run -> mAP and its companions, each with the protocol that it was measured under.

What is scored is what lies in the Faiss index: the codes of every database item (its first caption on the text side).
No torch in here: a run whose codes exist is scored in the time that NumPy and Faiss need.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cmrhash import metrics, runs
from cmrhash.config import EvalConfig
from cmrhash.data.dataset import RELEVANCE, ImageTextDataset
from cmrhash.encode import Encoded, encode, has_codes, read_codes, refuse_new_features
from cmrhash.errors import DataError, StaleError, UsageError
from cmrhash.files import write_bytes
from cmrhash.index import rank_histogram
from cmrhash.relevance import Relevance
from cmrhash.views import relevance_between

DIRECTIONS = ("i2t", "t2i")
TIES = ("expected", "optimistic", "pessimistic")
REAL_BLOCK = 1 << 19  # similarities that are sorted at a time: what stays in a core's cache


@dataclass
class Evaluation:
    """protocol: how every number was made, in words. rows: one a run, language and direction. map_at: the cut."""

    protocol: dict[str, Any]
    rows: list[dict[str, Any]]
    map_at: int | None = None

    def as_json(self) -> dict[str, Any]:
        """What ``--json`` prints."""
        return {"protocol": self.protocol, "rows": self.rows}


def evaluate(config: EvalConfig, dataset: ImageTextDataset, folder: Path, out: Path) -> Evaluation:
    """Score every fitting run of the data set. folder: its cache; out: the folder of all runs.

    Codes that are missing or stale are made first (this needs torch). Raises UsageError for runs, languages or
    rules that do not exist, DataError if no query has a relevant item.
    """
    _check(config)
    found = runs.find_runs(out, dataset.name, config.bits, config.methods, config.seeds)
    spoken = {lang for run in found for lang in run.langs}
    unknown = [lang for lang in config.langs if lang not in spoken]
    if unknown:
        raise UsageError(f"no run has language '{unknown[0]}'", out, f"there are {', '.join(sorted(spoken))}")
    rows: list[dict[str, Any]] = []
    known: dict[bytes, Relevance] = {}  # the same for all runs that score the same items
    for run in found:
        if run.config["items_sha256"] != dataset.sha256:
            raise StaleError("trained on other items or splits than the cache holds", run.folder, "train again")
        refuse_new_features(run, folder)
        if not has_codes(run):
            encode(run, dataset, folder)
        views = read_codes(run)
        mine = [
            {**_who(run, lang, direction), **_score(config, dataset, views, lang, direction, known)}
            for lang in run.langs
            if not config.langs or lang in config.langs
            for direction in DIRECTIONS
        ]
        rows += mine
        report = Evaluation(_protocol(config, dataset, [run]), mine).as_json()
        write_bytes(run.folder / runs.METRICS, json.dumps(report, indent=1).encode())
    return Evaluation(_protocol(config, dataset, found), rows, config.map_at)


@dataclass(frozen=True)
class Sides:
    """Who asks and what is searched. rows: (Q,) rows of ``source``, one a query item; database: (N,) the item of
    each row in the index of ``sought``."""

    source: Encoded
    rows: NDArray[np.int64]
    sought: Encoded
    database: NDArray[np.int64]


def sides(dataset: ImageTextDataset, views: dict[str, Encoded], lang: str, direction: str) -> Sides:
    """The query and database sides of a direction: "i2t" or "t2i"."""
    names = {"i2t": ("image", f"text-{lang}"), "t2i": (f"text-{lang}", "image")}[direction]
    source, sought = (views[name] for name in names)
    is_query = np.array(["query" in item.splits for item in dataset.items])
    there = np.unique(source.codes.item)
    queries = there[is_query[there]]
    return Sides(source, source.first_rows(queries), sought, sought.codes.item[sought.database])


def _score(
    config: EvalConfig,
    dataset: ImageTextDataset,
    views: dict[str, Encoded],
    lang: str,
    direction: str,
    known: dict[bytes, Relevance],
) -> dict[str, Any]:
    both = sides(dataset, views, lang, direction)
    source, rows, sought, database = both.source, both.rows, both.sought, both.database
    queries = source.codes.item[rows]
    key = hashlib.sha256(queries.tobytes() + b"|" + database.tobytes()).digest()
    if key not in known:
        known[key] = relevance_between(dataset, queries, database)
    relevance = known[key]
    packed = np.ascontiguousarray(source.codes.packed[rows])
    hist = rank_histogram(packed, sought.index.packed, source.codes.bits, relevance)
    items, relevant = metrics.items_relevant(hist)
    by_ties = {"expected": (items, relevant)}
    by_ties["optimistic"] = metrics.split_ties(items, relevant, "optimistic")
    by_ties["pessimistic"] = metrics.split_ties(items, relevant, "pessimistic")
    maps = {
        order: metrics.mean_over_valid(metrics.average_precision(*counts, config.map_at, config.map_at_rule))
        for order, counts in by_ties.items()
    }
    counted = maps["expected"][1]
    if not counted:
        fix = "check labels and splits: a query needs a database item that shares a label"
        raise DataError("no query has a relevant item in the database", f"{lang} {direction}", fix)
    real = _map_real(source.embedding[rows], sought.embedding[sought.database], relevance)
    return {
        "map": maps[config.ties][0],
        "map_expected": maps["expected"][0],
        "map_optimistic": maps["optimistic"][0],
        "map_pessimistic": maps["pessimistic"][0],
        "map_real": real,
        "chance": metrics.mean_over_valid(metrics.relevant_share(items, relevant))[0],
        "queries": counted,
        "queries_without_relevant": len(queries) - counted,
        "database": len(database),
        **_at(config.at, hist, *by_ties[config.ties]),
        **_by_radius(items, relevant),
    }


def _at(cuts: Sequence[int], hist: NDArray[np.int32], items: NDArray[Any], relevant: NDArray[Any]) -> dict[str, Any]:
    """P@k, R@k, hit@k and nDCG@k (gain = shared labels; over random tie order), for each cut."""
    named: dict[str, Callable[[int], NDArray[np.float64]]] = {
        "precision_at": lambda k: metrics.precision_at(items, relevant, k),
        "recall_at": lambda k: metrics.recall_at(items, relevant, k),
        "hit_at": lambda k: metrics.hit_at(items, relevant, k),
        "ndcg_at": lambda k: metrics.ndcg_at(hist, k),
    }
    return {name: {str(k): metrics.mean_over_valid(function(k))[0] for k in cuts} for name, function in named.items()}


def _by_radius(items: NDArray[Any], relevant: NDArray[Any]) -> dict[str, Any]:
    """Precision within Hamming radius 2 (an empty ball counts 0), and the precision-recall curve by radius."""
    within, empty = metrics.precision_within(items, relevant, 2)
    precision, recall = metrics.pr_curve(items, relevant)
    return {
        "precision_radius2": metrics.mean_over_valid(within)[0],
        "empty_balls_radius2": empty,
        "pr_by_radius": {"precision": _listed(precision), "recall": _listed(recall)},
    }


def _listed(values: NDArray[np.float64]) -> list[float | None]:
    """JSON knows no NaN: a radius at which no query found anything is null."""
    return [None if np.isnan(v) else round(float(v), 6) for v in values]


def _map_real(queries: NDArray[np.float32], database: NDArray[np.float32], relevance: Relevance) -> float:
    """mAP of the real-valued embeddings by cosine, over the whole database: what binarisation is measured against."""
    q, d = (x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12) for x in (queries, database))
    block = max(1, REAL_BLOCK // max(len(d), 1))

    def some(first: int) -> NDArray[np.float64]:
        last = min(first + block, len(q))
        return metrics.average_precision_real(q[first:last] @ d.T, relevance.gains(first, last, 0, len(d)))

    with ThreadPoolExecutor() as pool:
        return metrics.mean_over_valid(np.concatenate(list(pool.map(some, range(0, len(q), block)))))[0]


def _who(run: runs.Run, lang: str, direction: str) -> dict[str, Any]:
    return {
        "dataset": run.config["dataset"],
        "method": run.method,
        "bits": run.bits,
        "seed": run.seed,
        "lang": lang,
        "direction": direction,
        "collapsed": bool(run.config.get("collapsed", False)),
        "run": str(run.folder),
    }


def _protocol(config: EvalConfig, dataset: ImageTextDataset, found: Sequence[runs.Run]) -> dict[str, Any]:
    """How the numbers were made."""
    shown = {"image", *(f"text-{lang}" for run in found for lang in config.langs or run.langs)}
    used = {n: made for run in found for n, made in run.config["features"].items() if n in shown}
    untrained = [name for name, made in used.items() if made["weights"] == "random"]
    return {
        "dataset": dataset.name,
        "queries": f"{dataset.count('query')} query items, first caption; those without a relevant item are left out",
        "database": f"{dataset.count('database')} database items, {dataset.count('train')} train items, first caption",
        "relevance": RELEVANCE[dataset.relevance],
        "metric": _metric(config),
        "ties": {"expected": "expected value over random order within equal Hamming distance"}.get(
            config.ties, f"{config.ties} order within equal Hamming distance"
        ),
        "epoch": "chosen on val, never on query",
        "split": dataset.split,
        "encoders": {name: _encoder(name, made) for name, made in sorted(used.items())},
        "untrained_encoders": untrained,
        "map_real": "cosine of the real-valued embeddings, whole database",
        "seeds": sorted({run.seed for run in found}),
    }


def _encoder(view: str, made: dict[str, Any]) -> str:
    """Name of the feature file's encoder, architecture, and the weights by the start of their sha256."""
    name = made["file"].removeprefix(view + "-").removesuffix(".h5")
    digest = made.get("weights_sha256", "")
    return f"{name} ({made['encoder']}), {made['weights']} weights" + (f" {digest[:12]}" if digest else "")


def _metric(config: EvalConfig) -> str:
    if config.map_at is None:
        return "mAP over the whole database"
    divisor = {
        "min": "divided by min(relevant, k)",
        "R": "divided by all relevant",
        "hits": "divided by the relevant found in the top k",
        "first": "over the first min(relevant, k) relevant items, at any rank",
    }[config.map_at_rule]
    return f"mAP@{config.map_at}, {divisor} (rule {config.map_at_rule})"


def _check(config: EvalConfig) -> None:
    if config.ties not in TIES:
        raise UsageError(f"--ties {config.ties}", None, f"choose one of {', '.join(TIES)}")
    if config.map_at_rule not in metrics.RULES:
        raise UsageError(f"--map-at-rule {config.map_at_rule}", None, f"choose one of {', '.join(metrics.RULES)}")
    for k in (*config.at, *([] if config.map_at is None else [config.map_at])):
        if k < 1:
            raise UsageError(f"a cut at {k}", None, "give a whole number from 1")


def write_trec(config: EvalConfig, dataset: ImageTextDataset, out: Path, target: Path) -> list[Path]:
    """Write a run and a qrels file in TREC's text format for every run, language and direction, for other judges.

    Ties stand in index order; the score is N - rank, because trec_eval orders equal scores by a rule of its own.
    """
    target.mkdir(parents=True, exist_ok=True)
    ids = np.array([item.id.replace(" ", "_") for item in dataset.items])
    written = []
    for run in runs.find_runs(out, dataset.name, config.bits, config.methods, config.seeds):
        views = read_codes(run)
        for lang in [lang for lang in run.langs if not config.langs or lang in config.langs]:
            for direction in DIRECTIONS:
                stem = target / f"{run.folder.name}.{lang}.{direction}"
                ranked, judged = (stem.with_name(stem.name + end) for end in (".run", ".qrels"))
                _write_trec(ranked, judged, sides(dataset, views, lang, direction), dataset, ids)
                written += [ranked, judged]
    return written


def _write_trec(ranked: Path, judged: Path, both: Sides, dataset: ImageTextDataset, ids: NDArray[np.str_]) -> None:
    queries = both.source.codes.item[both.rows]
    relevance = relevance_between(dataset, queries, both.database)
    found = ids[both.database]
    count = len(found)
    with ranked.open("w", encoding="utf-8") as run_file, judged.open("w", encoding="utf-8") as qrels_file:
        for at, row in enumerate(both.rows):
            query = ids[queries[at]]
            _, order = both.sought.index.search(both.source.codes.packed[row : row + 1], count)
            run_file.writelines(
                f"{query} Q0 {found[d]} {rank} {count - rank} cmrhash\n" for rank, d in enumerate(order[0], 1)
            )
            gains = relevance.gains(at, at + 1, 0, count)[0]
            qrels_file.writelines(f"{query} 0 {found[d]} {gains[d]}\n" for d in np.flatnonzero(gains))
