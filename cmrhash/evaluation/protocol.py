"""Evaluation protocol in words: every choice that affects a figure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields
from functools import partial
from typing import Any

from cmrhash.config import READY, EvalConfig, TrainConfig
from cmrhash.data.items import RELEVANCE, ImageTextDataset
from cmrhash.data.view import View
from cmrhash.evaluation.seen import in_words
from cmrhash.features.dataset import ExtractedDataset
from cmrhash.features.leaks import leaks
from cmrhash.retrieval.ranking import ASYMMETRIC, RERANK, Rank
from cmrhash.training.runs import VAL, WITHIN_VAL, Run, TrainedOn

UNTOLD = (
    "method",
    "bits",
    "seed",
    "langs",
    "relevance",
    "device",
    "checkpoint_seconds",
)  # never listed as settings
FEW = 50  # queries, below which figures are noise
FEW_VAL = 25  # val items, likewise: each is a query in both directions and in every language
EPOCH = {
    VAL: "chosen on val, never on query",
    WITHIN_VAL: "chosen on val, never on query; val items searched the other val items, because the queries' "
    "database holds no train item",
}
CAPTIONS = {
    "labels": "first of each item",
    "pairs": "all: each is a query, or lies in the database; a hit is any of the item's own",
}
PAIRS_METRIC = "R@k is hit@k, the share of queries with a hit in the top k; MedR: median rank of the first hit; "


def protocol_of(
    config: EvalConfig, data: ExtractedDataset, found: Sequence[Run], rows: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """Describe how the figures were computed, as entries of key and text."""
    dataset = data.dataset
    heads = {row[key] for row in rows for key in ("head_lang", "database_head_lang") if row.get(key)}
    shown = {View.IMAGE, *map(View.text, heads)}
    used = {name: _used(name, found) for name in sorted(shown)}
    untrained = list(dict.fromkeys(view for run in found for view in run.untrained_views if view in shown))
    return {
        "dataset": dataset.name,
        "queries": f"{dataset.count('query')} query items; those without a relevant item are left out",
        "database": f"{dataset.count('database')} database items, {dataset.count('train')} train items",
        "leaks": str(leaks(data) or ""),
        "seen": _by_run(found, partial(in_words, rows)),
        "captions": CAPTIONS[dataset.relevance],
        "relevance": RELEVANCE[dataset.relevance],
        "metric": (PAIRS_METRIC if dataset.relevance == "pairs" else "") + _metric(config),
        **_order(config),
        "epoch": _by_run(found, lambda run: EPOCH.get(run.outcome.chosen_on, run.outcome.chosen_on)),
        **({"few val items": doubt} if (doubt := _by_run(found, partial(few_val, dataset))) else {}),
        "split": dataset.split,
        **({"label noise": noise} if (noise := _by_run(found, _noise)) else {}),
        "encoders": {name: words for name, words in used.items() if words},
        "untrained_encoders": untrained,
        "map_real" if dataset.relevance == "labels" else "real-valued": "cosine of the embeddings, whole database",
        "trained_langs": "; ".join(sorted({"+".join(run.langs) for run in found})),
        "seeds": sorted({run.seed for run in found}),
        **({"trained_by": words} if (words := _by_run(found, partial(_trained_by, dataset))) else {}),
        **_extras(rows, found),
        **({"roles": roles} if (roles := _roles(found)) else {}),
        **({"since the training": since} if (since := _by_run(found, partial(_since, dataset))) else {}),
    }


def _by_run(found: Sequence[Run], words_of: Callable[[Run], str | None]) -> str:
    """Text that holds for all runs, or each text with the runs it holds for."""
    which: dict[str, list[str]] = {}
    for run in found:
        if words := words_of(run):
            which.setdefault(words, []).append(run.name)
    if len(which) == 1:
        return next(iter(which))
    return "; ".join(f"{words} ({', '.join(names)})" for words, names in which.items())


def few_val(dataset: ImageTextDataset, run: Run) -> str:
    """Doubt about an epoch that too few val items chose; "" for enough of them, and where nothing was chosen."""
    count = dataset.count("val")
    chosen = run.outcome.epochs > 1 and run.outcome.chosen_on in EPOCH
    return f"only {count} val items chose the epoch, nearly by chance" if chosen and count < FEW_VAL else ""


def _trained_by(dataset: ImageTextDataset, run: Run) -> str:
    """Relevance of a training, "" if it is that of the scoring."""
    hidden = "; labels were hidden, also from the choice of the epoch" if run.relevance == "pairs" else ""
    return f"{run.relevance}{hidden}" if run.relevance != dataset.relevance else ""


def _roles(found: Sequence[Run]) -> str:
    """Methods that hash queries and database items differently, "" for none."""
    methods = ", ".join(sorted({run.method for run in found if run.has_two_roles}))
    return f"queries and database items have heads of their own ({methods})" if methods else ""


def _noise(run: Run) -> str:
    """Label noise of a training, "" for none."""
    rate = run.settings.get("noise", 0)
    return (
        f"{rate:.0%} of the train items: one label removed, a wrong one added, drawn by the run's seed" if rate else ""
    )


def _since(dataset: ImageTextDataset, run: Run) -> str:
    """How the items changed since a training, with its number of training items; "" if they did not."""
    changes = "" if run.is_applied else run.since(dataset)
    return f"{changes}; trained on {run.train_items} items" if changes else ""


def _used(view: View, found: Sequence[Run]) -> str:
    """Encoder of a view, or the encoders where runs differ."""
    return _by_run(found, lambda run: _encoder(view, run.features[view]) if view in run.features else None)


def _extras(rows: Sequence[dict[str, Any]], found: Sequence[Run]) -> dict[str, str]:
    """Entries for special cases: changed settings, borrowed languages, t2t and i2i."""
    extras = {}
    unusual = {run.name: changed_settings(run) for run in found}
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


def changed_settings(run: Run) -> dict[str, Any]:
    """Settings that differ from the defaults, except those in the run's folder name."""
    made, defaults = run.settings, TrainConfig()
    names = [field.name for field in fields(TrainConfig) if field.name not in UNTOLD and field.name in made]
    return {name: made[name] for name in names if made[name] != getattr(defaults, name)}


def _encoder(view: View, made: TrainedOn) -> str:
    """Encoder name, architecture, kind of weights and start of their sha256."""
    what = "ready-made features" if made.weights == READY else f"({made.encoder}), {made.weights} weights"
    digest = f" {made.weights_sha256[:12]}" if made.weights_sha256 else ""
    return f"{view.encoder_of(made.file)} {what}{digest}"


def _order(config: EvalConfig) -> dict[str, str]:
    """How results are ordered, if not by Hamming distance, and what happens to ties."""
    rank, words = Rank.parse(config.rank), {}
    if rank.kind == ASYMMETRIC:
        words["ranking"] = "asymmetric: cosine of the real-valued query and the codes, whole database"
    elif rank.kind == RERANK:
        words["ranking"] = (
            f"rerank: the nearest {rank.candidates(1)} codes and all at the distance of the last one by cosine of the "
            "embeddings, then the others by Hamming distance"
        )
    tied = "score, or distance beyond them" if rank.kind == RERANK else "score" if words else "Hamming distance"
    order = "expected value over random order" if config.ties == "expected" else f"{config.ties} order"
    return {**words, "ties": f"{order} within equal {tied}"}


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
