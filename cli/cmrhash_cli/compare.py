"""cmrhash compare: one table over methods, code lengths, languages and seeds."""

from __future__ import annotations

from typing import Annotated

import typer

from cmrhash.config import CompareConfig, TrainConfig
from cmrhash_cli.output import (
    CACHE,
    RUNS,
    Cache,
    Dataset,
    Debug,
    Device,
    Json,
    Quiet,
    Runs,
    note,
    print_json,
    print_table,
    progress_bars,
)

D = CompareConfig


def compare(
    dataset: Dataset = None,
    method: Annotated[list[str] | None, typer.Option(help="Method (repeatable); default: triplet.")] = None,
    bits: Annotated[list[int] | None, typer.Option(help="Code length (repeatable); default: 16, 32, 48, 64.")] = None,
    lang: Annotated[list[str] | None, typer.Option(help="Language to show (repeatable); default: all.")] = None,
    seeds: Annotated[int, typer.Option(help="Seeds a cell, from 0.")] = D.seeds,
    cache: Cache = CACHE,
    runs: Runs = RUNS,
    device: Device = TrainConfig.device,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Train what is missing, score all, print the table and write it beside the runs.

    cmrhash compare --method triplet --method tie-ap --bits 32 --bits 64 --seeds 3
    """
    from cmrhash.data.manifest import open_extracted

    data, folder = open_extracted(cache, dataset)
    from cmrhash.compare import compare as run
    from cmrhash.compare import table

    grid = CompareConfig(tuple(method or D.methods), tuple(bits or D.bits), tuple(lang or ()), seeds)
    with progress_bars(quiet) as progress:
        result = run(grid, TrainConfig(device=device), data, folder, runs, progress)
    if as_json:
        print_json(result.as_json())
    else:
        columns, cells = table(result.rows)
        protocol = result.protocol
        title = f"{data.name}: {protocol['metric']}, mean +- sd over seeds (* = collapsed)"
        if protocol["untrained_encoders"]:
            title += " -- UNTRAINED ENCODERS"
        lines = [f"{key}: {value}" for key, value in protocol.items() if isinstance(value, str) and key != "dataset"]
        print_table(title, columns, cells, "\n".join(lines) + f"\nto make a cell again: {result.rows[0]['command']}")
    note(f"written: {runs / data.name}/compare.md, .csv, .json", quiet)
