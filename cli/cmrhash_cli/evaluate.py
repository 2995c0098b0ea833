"""cmrhash eval: codes -> distances -> mAP, with the protocol."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cmrhash.config import EvalConfig
from cmrhash_cli.output import (
    CACHE,
    RUNS,
    Cache,
    Dataset,
    Debug,
    Json,
    Quiet,
    Runs,
    note,
    print_json,
    print_table,
)

if TYPE_CHECKING:
    from cmrhash.evaluate import Evaluation

D = EvalConfig


def evaluate(
    dataset: Dataset = None,
    bits: Annotated[list[int] | None, typer.Option(help="Code length (repeatable); default: all trained.")] = None,
    lang: Annotated[list[str] | None, typer.Option(help="Language (repeatable); default: all trained.")] = None,
    method: Annotated[list[str] | None, typer.Option(help="Method (repeatable); default: all trained.")] = None,
    seed: Annotated[list[int] | None, typer.Option(help="Seed (repeatable); default: all trained.")] = None,
    map_at: Annotated[int | None, typer.Option(help="k of mAP@k; default: the whole database.")] = D.map_at,
    map_at_rule: Annotated[
        str, typer.Option(help="What AP@k divides by: min (relevant or k), R (all relevant), hits, or first.")
    ] = D.map_at_rule,
    ties: Annotated[str, typer.Option(help="Order at equal distance: expected, optimistic or pessimistic.")] = D.ties,
    at: Annotated[list[int] | None, typer.Option(help="k of P@k, R@k, hit@k, nDCG@k (repeatable).")] = None,
    trec: Annotated[
        Path | None, typer.Option(help="Write TREC run and qrels files into this folder, ties in index order.")
    ] = None,
    cache: Cache = CACHE,
    runs: Runs = RUNS,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Score trained runs: tie-aware mAP in both directions, with chance and protocol.

    cmrhash eval --lang de

    cmrhash eval --bits 32 --map-at 50 --map-at-rule hits --json
    """
    config = EvalConfig(
        tuple(bits or ()),
        tuple(lang or ()),
        tuple(method or ()),
        tuple(seed or ()),
        map_at,
        map_at_rule,
        ties,
        tuple(at or D.at),
    )
    from cmrhash.data.manifest import open_extracted
    from cmrhash.evaluate import evaluate as run
    from cmrhash.evaluate import write_trec

    data, folder = open_extracted(cache, dataset)
    result = run(config, data, folder, runs)
    if as_json:
        print_json(result.as_json())
    else:
        _print(result, tuple(dict.fromkeys(at or ())))
    if trec:
        for path in write_trec(config, data, runs, trec):
            note(f"wrote {path}", quiet)


def _print(result: Evaluation, at: tuple[int, ...]) -> None:
    protocol = result.protocol
    by_run: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in result.rows:
        key = (row["method"], row["bits"], row["seed"], row["lang"])
        by_run.setdefault(key, {})[row["direction"]] = row
    whole = result.map_at is None  # chance and the real-valued mAP are of the whole ranking: not beside mAP@k
    columns = ["method", "bits", "seed", "lang", "i2t", "t2i"]
    columns += ["chance", "real i2t", "real t2i", "i2t by tie order"] if whole else []
    columns += [f"P@{k} {direction}" for k in at for direction in ("i2t", "t2i")]
    title = f"{protocol['dataset']}: {protocol['metric'].split(',')[0]}"
    if protocol["untrained_encoders"]:
        title += " -- UNTRAINED ENCODERS"
    lines = [f"{key}: {value}" for key, value in protocol.items() if isinstance(value, str) and key != "dataset"]
    lines += [f"{view}: {encoder}" for view, encoder in protocol["encoders"].items()]
    first = result.rows[0]
    lines.append(f"scored: {first['queries']} queries, {first['queries_without_relevant']} without a relevant item")
    print_table(title, columns, [_cells(key, rows, at, whole) for key, rows in by_run.items()], "\n".join(lines))


def _cells(key: tuple[Any, ...], rows: dict[str, Any], at: tuple[int, ...], whole: bool) -> list[str]:
    """A line of the table: both directions of a run and language."""
    method, bits, seed, lang = key
    i2t, t2i = rows["i2t"], rows["t2i"]
    figures = [i2t["map"], t2i["map"]] + ([i2t["chance"], i2t["map_real"], t2i["map_real"]] if whole else [])
    ties = f"{i2t['map_pessimistic']:.3f}-{i2t['map_optimistic']:.3f}"
    precision = [row["precision_at"][str(k)] for k in at for row in (i2t, t2i)]
    return [
        method + (" (collapsed)" if i2t["collapsed"] else ""),
        str(bits),
        str(seed),
        lang,
        *(f"{value:.3f}" for value in figures),
        *([ties] if whole else []),
        *(f"{value:.3f}" for value in precision),
    ]
