"""A trained run -> mAP and its companions, each with the protocol that it was measured under.

What is scored is what lies in the Faiss index: of every database item the first caption, or all captions where
relevance is by pairs. No torch in here: a run whose codes exist is scored in the time that NumPy and Faiss need.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cmrhash.config import CUTS, READY, EvalConfig, TrainConfig
from cmrhash.data.items import RELEVANCE, ImageTextDataset, with_relevance
from cmrhash.errors import DataError, UsageError
from cmrhash.evaluation import saved_scores
from cmrhash.evaluation.run_codes import (
    Encoded,
    Views,
    borrowed_views,
    current,
    encode,
    has_codes,
    refuse_language,
)
from cmrhash.evaluation.searches import DIRECTIONS, Search, Sides, language_of, searches, sides
from cmrhash.retrieval import metrics
from cmrhash.retrieval.index import rank_histogram
from cmrhash.retrieval.relevance import Relevance
from cmrhash.training import runs

UNTOLD = ("method", "bits", "seed", "langs", "relevance", "device", "checkpoint_seconds")  # no setting of their own
EPOCH = {"val": "chosen on val, never on query"}
TIES = ("expected", "optimistic", "pessimistic")
CAPTIONS = {
    "labels": "first of each item",
    "pairs": "all: each is a query, or lies in the database; a hit is any of the item's own",
}
PAIRS_METRIC = "R@k is hit@k, the share of queries with a hit in the top k; MedR: median rank of the first hit; "
REAL_BLOCK = 1 << 19  # similarities that are sorted at a time: what stays in a core's cache


@dataclass
class Evaluation:
    """protocol: how every number was made, in words. rows: one a run and search. map_at: the cut."""

    protocol: dict[str, Any]
    rows: list[dict[str, Any]]
    map_at: int | None = None

    def as_json(self) -> dict[str, Any]:
        """What ``--json`` prints."""
        return {"protocol": self.protocol, "rows": self.rows}

    def in_words(self) -> list[str]:
        """The protocol for people, a line a point."""
        points = {**self.protocol, **self.protocol["encoders"]}
        del points["encoders"]
        words = {key: ", ".join(map(str, value)) if isinstance(value, list) else value for key, value in points.items()}
        return [f"{key}: {value}" for key, value in words.items() if value]


def evaluate(config: EvalConfig, dataset: ImageTextDataset, folder: Path, out: Path) -> Evaluation:
    """Score every fitting run of the data set. folder: its cache; out: the folder of all runs.

    Codes that are missing or stale are made first (this needs torch). Raises UsageError for runs, languages or
    rules that do not exist, DataError if no query has a relevant item.
    """
    dataset = with_relevance(dataset, config.relevance)
    _check(config, dataset)
    wanted = (config.bits, config.methods, config.seeds)
    return score(config, runs.find_runs(out, dataset.name, dataset.relevance, *wanted), dataset, folder)


def score(config: EvalConfig, found: Sequence[runs.Run], dataset: ImageTextDataset, folder: Path) -> Evaluation:
    """Score these runs, which were trained by the relevance that the data set has here; as ``evaluate`` does.

    What was scored before, of the same codes in the same way, is taken from the run's folder. Runs of the past, of
    other items or features, are left out and named, unless there are no others: then StaleError is raised.
    """
    asked, found = found, current(found, dataset, folder)
    refuse_languages(found, dataset, folder, config.langs)
    rows: list[dict[str, Any]] = []
    known: dict[bytes, Relevance] = {}  # the same for all runs that score the same items
    for run in found:
        if not has_codes(run, dataset, folder):
            encode(run, dataset, folder)
        rows += _of_run(config, dataset, run, known)
    if not rows:
        fix = "choose other directions"
        raise UsageError("nothing to score: no item has two captions of a language", folder, fix)
    protocol = _protocol(config, dataset, found, rows)
    if past := [run.folder.name for run in asked if run not in found]:
        protocol["left out"] = f"{', '.join(past)}: trained on other items or features than the cache holds"
    return Evaluation(protocol, rows, config.map_at)


def refuse_languages(found: Sequence[runs.Run], dataset: ImageTextDataset, folder: Path, asked: Sequence[str]) -> None:
    """Raise UsageError for an asked language that none of the runs can score, with the reason."""
    spoken = {lang for run in found for lang in run.langs}
    spoken |= {language_of(view) for run in found for view in borrowed_views(run, dataset, folder)}
    for lang in asked:
        if lang not in spoken:
            refuse_language(found[0], dataset, folder, lang)


def _of_run(
    config: EvalConfig, dataset: ImageTextDataset, run: runs.Run, known: dict[bytes, Relevance]
) -> list[dict[str, Any]]:
    """A row a search: those that are kept, and those that are scored now and kept from now on."""
    views = Views(run)
    of = {"codes": views.sha256, "items": dataset.sha256}
    cuts = list(config.at or CUTS[dataset.relevance])
    asked = {"ties": config.ties, "map_at": config.map_at, "map_at_rule": config.map_at_rule, "at": cuts}
    kept = saved_scores.kept(run, of, asked)
    wanted = {
        (search.direction, search.lang, search.database_lang): search
        for search in searches(dataset, views, config.directions, config.langs)
    }
    new = {
        key: {**_who(run, views, search), **_score(config, dataset, sides(dataset, views, search), search, known)}
        for key, search in wanted.items()
        if key not in kept
    }
    kept |= new
    if new:
        rows = list(kept.values())
        saved_scores.keep(run, of, asked, _protocol(config, dataset, [run], rows), rows)
    return [kept[key] for key in wanted]


def _score(
    config: EvalConfig, dataset: ImageTextDataset, both: Sides, search: Search, known: dict[bytes, Relevance]
) -> dict[str, Any]:
    if both.key not in known:
        known[both.key] = both.relevance(dataset)
    relevance = known[both.key]
    packed = np.ascontiguousarray(both.source.codes.packed[both.rows])
    hist = rank_histogram(packed, both.sought.index.packed, both.source.codes.bits, relevance)
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
        fix = "check labels and splits: a query needs a relevant item in the database"
        raise DataError("no query has a relevant item in the database", f"{search.source} {search.direction}", fix)
    cuts = config.at or CUTS[dataset.relevance]
    return {
        "map": maps[config.ties][0],
        **{f"map_{order}": mean for order, (mean, _) in maps.items()},
        "chance": metrics.mean_over_valid(metrics.relevant_share(items, relevant))[0],
        "queries": counted,
        "queries_without_relevant": len(both.rows) - counted,
        "database": len(both.database),
        **_at(cuts, hist, *by_ties[config.ties]),
        **_first_found(cuts, *by_ties[config.ties]),
        **{f"{name}_chance": value for name, value in _first_found(cuts, *metrics.one_group(items, relevant)).items()},
        **_real(cuts, both, relevance),
        **_by_radius(items, relevant),
    }


def _at(cuts: Sequence[int], hist: NDArray[np.int32], items: NDArray[Any], relevant: NDArray[Any]) -> dict[str, Any]:
    """P@k, R@k and nDCG@k (gain = shared labels; over random tie order), for each cut."""
    named: dict[str, Callable[[int], NDArray[np.float64]]] = {
        "precision_at": lambda k: metrics.precision_at(items, relevant, k),
        "recall_at": lambda k: metrics.recall_at(items, relevant, k),
        "ndcg_at": lambda k: metrics.ndcg_at(hist, k),
    }
    return {name: {str(k): metrics.mean_over_valid(function(k))[0] for k in cuts} for name, function in named.items()}


def _first_found(cuts: Sequence[int], items: NDArray[Any], relevant: NDArray[Any]) -> dict[str, Any]:
    """What depends on the nearest relevant item: hit@k (the R@k of image-caption work) and the median rank."""
    hits = {str(k): metrics.mean_over_valid(metrics.hit_at(items, relevant, k))[0] for k in cuts}
    return {"hit_at": hits, "median_rank": metrics.median_rank(items, relevant)}


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


def _real(cuts: Sequence[int], both: Sides, relevance: Relevance) -> dict[str, Any]:
    """The real-valued embeddings by cosine, over the whole database: what binarisation is measured against."""
    ends = (both.source.embedding[both.rows], both.sought.embedding[both.sought.database])
    q, d = (x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12) for x in ends)
    block = max(1, REAL_BLOCK // max(len(d), 1))

    def some(first: int) -> tuple[NDArray[Any], ...]:
        last = min(first + block, len(q))
        similarity, gains = q[first:last] @ d.T, relevance.gains(first, last, 0, len(d))
        return metrics.average_precision_real(similarity, gains), *metrics.nearest_relevant_real(similarity, gains)

    with ThreadPoolExecutor() as pool:
        parts = list(pool.map(some, range(0, len(q), block)))
    ap, items, relevant = (np.concatenate(part) for part in zip(*parts, strict=True))
    found = {f"{name}_real": value for name, value in _first_found(cuts, items, relevant).items()}
    return {"map_real": metrics.mean_over_valid(ap)[0], **found}


def _who(run: runs.Run, views: Mapping[str, Encoded], search: Search) -> dict[str, Any]:
    """Whose row it is. head_lang: the language whose head made the codes of the texts."""
    heads = [language_of(views[view].head) for view in (search.source, search.sought) if view != "image"]
    return {
        "dataset": run.config["dataset"],
        "method": run.method,
        "bits": run.bits,
        "seed": run.seed,
        "lang": search.lang,
        "direction": search.direction,
        "head_lang": heads[0] if heads else None,
        **({"database_lang": search.database_lang, "database_head_lang": heads[1]} if heads[1:] else {}),
        "trained_langs": list(run.langs),
        "encoders": {name: encoder_of(name, made) for name, made in run.config["features"].items()},
        "relevance": run.relevance,
        "collapsed": bool(run.config.get("collapsed", False)),
        "run": str(run.folder),
    }


def _protocol(
    config: EvalConfig, dataset: ImageTextDataset, found: Sequence[runs.Run], rows: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """How the numbers were made."""
    heads = {row[key] for row in rows for key in ("head_lang", "database_head_lang") if row.get(key)}
    shown = {"image", *(f"text-{lang}" for lang in heads)}
    used = {name: _used(name, found) for name in sorted(shown)}
    made = [(name, of) for run in found for name, of in run.config["features"].items() if name in shown]
    untrained = list(dict.fromkeys(name for name, of in made if of["weights"] == "random"))
    return {
        "dataset": dataset.name,
        "queries": f"{dataset.count('query')} query items; those without a relevant item are left out",
        "database": f"{dataset.count('database')} database items, {dataset.count('train')} train items",
        "captions": CAPTIONS[dataset.relevance],
        "relevance": RELEVANCE[dataset.relevance],
        "metric": (PAIRS_METRIC if dataset.relevance == "pairs" else "") + _metric(config),
        "ties": {"expected": "expected value over random order within equal Hamming distance"}.get(
            config.ties, f"{config.ties} order within equal Hamming distance"
        ),
        "epoch": _by_run(found, lambda run: EPOCH.get(run.config["chosen_on"], run.config["chosen_on"])),
        "split": dataset.split,
        "encoders": {name: words for name, words in used.items() if words},
        "untrained_encoders": untrained,
        "map_real" if dataset.relevance == "labels" else "real-valued": "cosine of the embeddings, whole database",
        "trained_langs": "; ".join(sorted({"+".join(run.langs) for run in found})),
        "seeds": sorted({run.seed for run in found}),
        **_extras(rows, found),
    }


def _by_run(found: Sequence[runs.Run], words_of: Callable[[runs.Run], str | None]) -> str:
    """What is true of the runs; where that differs, of which ones it is."""
    which: dict[str, list[str]] = {}
    for run in found:
        if words := words_of(run):
            which.setdefault(words, []).append(run.folder.name)
    if len(which) == 1:
        return next(iter(which))
    return "; ".join(f"{words} ({', '.join(names)})" for words, names in which.items())


def _used(view: str, found: Sequence[runs.Run]) -> str:
    """The encoder of a view, or the encoders that the runs have."""
    of = {run.folder: run.config["features"].get(view) for run in found}
    return _by_run(found, lambda run: _encoder(view, made) if (made := of[run.folder]) else None)


def _extras(rows: Sequence[dict[str, Any]], found: Sequence[runs.Run]) -> dict[str, str]:
    """What needs a word only where it occurs."""
    extras = {}
    unusual = {run.folder.name: changed_settings(run) for run in found}
    if any(unusual.values()):
        each = (f"{name}: {', '.join(f'{k} {v}' for k, v in own.items())}" for name, own in unusual.items() if own)
        extras["settings other than the default"] = "; ".join(each)
    ends = {
        (row[f"{end}lang"], row[f"{end}head_lang"]) for row in rows for end in ("", "database_") if f"{end}lang" in row
    }
    borrowed = sorted((lang, head) for lang, head in ends if lang != head)
    if borrowed:
        what = ", ".join(f"{lang} by the head of {head}" for lang, head in borrowed)
        extras["untrained languages"] = f"{what}, through the same text encoder"
    if {"t2t", "i2i"} & {row["direction"] for row in rows}:
        extras["within a view"] = "the query itself is left out of the database"
    return extras


def encoder_of(view: str, made: Mapping[str, Any]) -> str:
    """Name of the encoder of a feature file."""
    return str(made["file"]).removeprefix(view + "-").removesuffix(".h5")


def changed_settings(run: runs.Run) -> dict[str, Any]:
    """Settings of a training that are not the default, but for those that its folder is named by."""
    made, defaults = run.config["train"], TrainConfig()
    names = [field.name for field in fields(TrainConfig) if field.name not in UNTOLD and field.name in made]
    return {name: made[name] for name in names if made[name] != getattr(defaults, name)}


def _encoder(view: str, made: dict[str, Any]) -> str:
    """Name of the feature file's encoder, architecture, and the weights by the start of their sha256."""
    name = encoder_of(view, made)
    digest = made.get("weights_sha256", "")
    what = "ready-made features" if made["weights"] == READY else f"({made['encoder']}), {made['weights']} weights"
    return f"{name} {what}" + (f" {digest[:12]}" if digest else "")


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


def _check(config: EvalConfig, dataset: ImageTextDataset) -> None:
    if config.ties not in TIES:
        raise UsageError(f"--ties {config.ties}", None, f"choose one of {', '.join(TIES)}")
    if config.map_at_rule not in metrics.RULES:
        raise UsageError(f"--map-at-rule {config.map_at_rule}", None, f"choose one of {', '.join(metrics.RULES)}")
    if config.map_at is None and config.map_at_rule != EvalConfig.map_at_rule:
        raise UsageError(f"--map-at-rule {config.map_at_rule} without --map-at", None, "give --map-at K, too")
    for direction in config.directions:
        if direction not in DIRECTIONS:
            near = difflib.get_close_matches(direction, DIRECTIONS, 1)
            hint = f"did you mean {near[0]}? " if near else ""
            raise UsageError(f"--direction {direction}", None, f"{hint}choose out of {', '.join(DIRECTIONS)}")
    if "i2i" in config.directions and dataset.relevance == "pairs":
        raise UsageError("--direction i2i by pairs: an item has one image", None, "ask for i2i by --relevance labels")
    for k in (*config.at, *([] if config.map_at is None else [config.map_at])):
        if k < 1:
            raise UsageError(f"a cut at {k}", None, "give a whole number from 1")
