"""cmrhash eval: codes -> distances -> metrics, with the protocol."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cmrhash.config import CUTS, EvalConfig
from cmrhash.errors import UsageError
from cmrhash.training.names import check_methods
from cmrhash_cli.output import (
    CACHE,
    RUNS,
    Bits,
    Cache,
    Dataset,
    Debug,
    Json,
    Quiet,
    Relevance,
    Runs,
    ShownLang,
    TrainedBy,
    note,
    print_json,
    print_table,
    titled,
)
from cmrhash_cli.presets import Config

if TYPE_CHECKING:
    from cmrhash.evaluation.evaluate import Evaluation

D = EvalConfig
SIDES = ("seen", "unseen")
Row = dict[str, Any]


def evaluate(
    dataset: Dataset = None,
    bits: Bits = None,
    lang: ShownLang = None,
    method: Annotated[list[str] | None, typer.Option(help="Method (repeatable); default: all trained.")] = None,
    seed: Annotated[list[int] | None, typer.Option(help="Seed (repeatable); default: all trained.")] = None,
    relevance: Relevance = D.relevance,
    trained_by: TrainedBy = D.trained_by,
    direction: Annotated[
        list[str] | None,
        typer.Option(help="Search direction: i2t, t2i, t2t or i2i (repeatable); default: i2t and t2i."),
    ] = None,
    map_at: Annotated[int | None, typer.Option(help="Cutoff k of mAP@k; default: the whole database.")] = D.map_at,
    map_at_rule: Annotated[
        str, typer.Option(help="Divisor of AP@k: min (of relevant items and k), R (relevant items), hits, or first.")
    ] = D.map_at_rule,
    ties: Annotated[
        str, typer.Option(help="Order of items at equal distance: expected, optimistic or pessimistic.")
    ] = D.ties,
    rank: Annotated[
        str, typer.Option(help="Order of results: hamming, asymmetric, or rerank:N (the N nearest codes by embedding).")
    ] = D.rank,
    at: Annotated[
        list[int] | None,
        typer.Option(
            help="Cutoff k of P@k, R@k, hit@k, nDCG@k (repeatable); default: 1, 5, 10, and 50 with relevance labels."
        ),
    ] = None,
    trec: Annotated[Path | None, typer.Option(help="Folder for TREC run and qrels files, ties in index order.")] = None,
    cache: Cache = CACHE,
    runs: Runs = RUNS,
    config_file: Config = None,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Evaluate trained runs: tie-aware mAP in both directions, or R@k and median rank with relevance pairs.

    cmrhash eval --lang de

    cmrhash eval --bits 32 --map-at 50 --map-at-rule hits --json

    cmrhash eval --relevance pairs --direction i2t --direction t2i --direction t2t
    """
    config = EvalConfig(
        bits=tuple(bits or ()),
        langs=tuple(lang or ()),
        methods=tuple(method or ()),
        seeds=tuple(seed or ()),
        relevance=relevance,
        trained_by=trained_by,
        directions=tuple(direction or D.directions),
        map_at=map_at,
        map_at_rule=map_at_rule,
        ties=ties,
        rank=rank,
        at=tuple(at or ()),
    )
    from cmrhash.evaluation.evaluate import evaluate as run
    from cmrhash.evaluation.protocol import FEW
    from cmrhash.evaluation.trec import write_trec
    from cmrhash.features.dataset import ExtractedDataset

    if trec and any(path.exists() and not path.is_dir() for path in (trec, *trec.parents)):
        raise UsageError("a file, and no folder", trec, "name another folder", option="trec")
    data = ExtractedDataset.open(cache, dataset)
    try:
        result = run(config, data, runs)
    except UsageError:
        check_methods(*config.methods)
        raise
    if as_json:
        print_json(result.as_json())
    else:
        _print(result, tuple(dict.fromkeys(at or ())))
    fewest = min(row["queries"] for row in result.rows)
    if fewest < FEW:
        note(f"warning: only {fewest} queries: each changes a figure by up to {1 / fewest:.2f}", quiet)
    if trec:
        for path in write_trec(config, data, runs, trec):
            note(f"wrote {path}", quiet)


def _print(result: Evaluation, at: tuple[int, ...]) -> None:
    """Print a table of i2t and t2i, a row per run and language; then one of t2t and i2i, a row per search."""
    rows, metric = result.rows, result.protocol["metric"].split(",")[0]
    pairs = rows[0]["relevance"] == "pairs"
    figures = _PairFigures(at, result.map_at) if pairs else _LabelFigures(at, result.map_at)
    across = [row for row in rows if row["direction"] in ("i2t", "t2i")]
    within = [row for row in rows if row["direction"] in ("t2t", "i2i")]
    title = f"{result.protocol['dataset']}: {'R@k (hit@k) and median rank' if pairs else metric}"
    lines = "\n".join([*result.in_words(), *_scored(rows)])
    several = {
        key for key in ("trained_langs", "encoders") if len({json.dumps(row[key], sort_keys=True) for row in rows}) > 1
    }
    if across:
        by_run: dict[tuple[str, str | None], list[Row]] = {}
        for row in across:
            by_run.setdefault((row["run"], row["lang"]), []).append(row)
        ways = list(dict.fromkeys(tuple(row["direction"] for row in own) for own in by_run.values()))
        for some in ways:  # a table for each set of directions
            alike = [own for own in by_run.values() if tuple(row["direction"] for row in own) == some]
            cells = [line for own in alike for line in figures.lines(_who(own[0], several), own)]
            columns = ["method", "bits", "seed", "lang", *figures.columns(some)]
            print_table(
                titled(title, result.protocol), columns, cells, "" if within or some != ways[-1] else lines, keys=4
            )
    if within:
        columns = ["method", "bits", "seed", "query", "database", *figures.columns([""])]
        cells = [line for row in within for line in figures.lines(_who(row, several), [row])]
        print_table(
            titled(f"{title}, texts by texts, images by images", result.protocol), columns, cells, lines, keys=5
        )


def _who(row: Row, several: set[str]) -> list[str]:
    """Cells that name a row. several: those of "trained_langs" and "encoders" in which the runs differ."""
    method = row["method"]
    method += f" ({'+'.join(row['trained_langs'])})" if "trained_langs" in several else ""
    method += f" [{', '.join(dict.fromkeys(row['encoders'].values()))}]" if "encoders" in several else ""
    method += f" ({row['trained_direction']} only)" if "trained_direction" in row else ""
    method += " (collapsed)" if row["collapsed"] else ""
    ends = [_lang(row["lang"], row["head_lang"])]
    if row["direction"] == "t2t":
        ends.append(_lang(row["database_lang"], row["database_head_lang"]))
    return [method, str(row["bits"]), str(row["seed"]), *(ends if row["lang"] else ["image", "image"])]


def _lang(lang: str, head: str) -> str:
    return lang if lang == head else f"{lang} (by {head})"


class _LabelFigures:
    """mAP, chance and the real-valued mAP, a row per run and language; then mAP by seen and unseen items."""

    def __init__(self, at: tuple[int, ...], map_at: int | None) -> None:
        self.at = at
        self.whole = map_at is None  # chance and the real-valued mAP are of the whole ranking: not beside mAP@k

    def columns(self, directions: Sequence[str]) -> list[str]:
        names = [direction or "mAP" for direction in directions]
        if self.whole:
            names += ["chance", *(f"real {d}".strip() for d in directions), f"{directions[0]} by tie order".strip()]
        return [*names, *(f"P@{k} {direction}".strip() for k in self.at for direction in directions)]

    def lines(self, who: list[str], rows: Sequence[Row]) -> Iterator[list[str]]:
        figures, shown = [row["map"] for row in rows], len(rows)
        ties = f"{rows[0]['map_pessimistic']:.3f}-{rows[0]['map_optimistic']:.3f}"
        more = [f"{row['precision_at'][str(k)]:.3f}" for k in self.at for row in rows]
        if self.whole:
            figures += [rows[0]["chance"], *(row["map_real"] for row in rows)]
            more.insert(0, ties)
        yield [*who, *(f"{value:.3f}" for value in figures), *more]
        if any(row[f"map_{side}"] is None for row in rows for side in SIDES):
            return  # the protocol says that all database items are of one kind
        for side in SIDES:
            own = [row[f"map_{side}"] for row in rows] + [rows[0][f"chance_{side}"]] * self.whole
            rest = [""] * (len(figures) - shown - self.whole + len(more))
            yield [f"  {side}", *who[1:], *(f"{value:.3f}" for value in own), *rest]


class _PairFigures:
    """R@k and median rank: a row each for codes, real values and random order."""

    def __init__(self, at: tuple[int, ...], map_at: int | None) -> None:
        self.at, self.map_at = at or CUTS["pairs"], map_at

    def columns(self, directions: Sequence[str]) -> list[str]:
        names = [*(f"R@{k}" for k in self.at), "MedR", *([f"mAP@{self.map_at}"] if self.map_at else [])]
        return [f"{direction} {name}".strip() for direction in directions for name in names]

    def lines(self, who: list[str], rows: Sequence[Row]) -> Iterator[list[str]]:
        for which, name in (("", who[0]), ("_real", "  real-valued"), ("_chance", "  chance")):
            cells = []
            for row in rows:
                cells += [f"{row['hit_at' + which][str(k)]:.3f}" for k in self.at]
                cells.append(f"{row['median_rank' + which]:.1f}")
                if self.map_at:
                    cells.append("-" if which else f"{row['map']:.3f}")
            yield [name, *who[1:], *cells]


def _scored(rows: Sequence[Row]) -> list[str]:
    """Number of scored queries, one line for all searches that agree."""
    counts: dict[tuple[int, int, int], list[str]] = {}
    for row in rows:
        langs = [lang for lang in (row["lang"], row.get("database_lang")) if lang]
        key = (row["queries"], row["queries_without_relevant"], row["database"])
        counts.setdefault(key, []).append(" ".join([row["direction"], "-".join(langs)]).strip())
    return [
        f"scored ({', '.join(dict.fromkeys(of))}): {queries} queries in {database}, {without} without a relevant item"
        for (queries, without, database), of in counts.items()
    ]
