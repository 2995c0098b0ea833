"""cmrhash sweep: many settings of a training, of which val items choose the best."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from cmrhash.checks import check_train
from cmrhash.config import SweepConfig, TrainConfig
from cmrhash.training.names import check_methods
from cmrhash.training.values import settings_of
from cmrhash_cli.given import named
from cmrhash_cli.output import (
    CACHE,
    RUNS,
    Cache,
    Dataset,
    Debug,
    Device,
    Encoder,
    Jobs,
    Json,
    Quiet,
    Relevance,
    Runs,
    note,
    print_json,
    print_table,
    progress_bars,
)
from cmrhash_cli.presets import Config

D, T = SweepConfig, TrainConfig


def sweep(
    dataset: Dataset = None,
    method: Annotated[str, typer.Option(help="Training method, or best.")] = T.method,
    bits: Annotated[int, typer.Option(help="Code length.")] = T.bits,
    values: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="NAME=VALUE fixes an option of train, NAME=VALUE,VALUE,... tries each value, NAME=LOW..HIGH draws "
            "numbers, on a logarithmic scale if HIGH is at least 10 times LOW (repeatable).",
        ),
    ] = None,
    samples: Annotated[
        int | None, typer.Option(help="Number of settings to draw at random; default: all combinations.")
    ] = D.samples,
    seeds: Annotated[int, typer.Option(help="Number of seeds per setting, counted from 0.")] = D.seeds,
    lang: Annotated[list[str] | None, typer.Option(help="Language to train (repeatable); default: all.")] = None,
    relevance: Relevance = T.relevance,
    jobs: Jobs = D.jobs,
    encoder: Encoder = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the runs and the table; default: sweep in the data set's runs.")
    ] = D.out,
    cache: Cache = CACHE,
    runs: Runs = RUNS,
    device: Device = T.device,
    config_file: Config = None,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Train many settings, and say which is best on the val items and which command trains it.

    cmrhash sweep --method tie-ap --set lr=0.001,0.002 --set dropout=0.2,0.4

    cmrhash sweep --method tie-ap --set lr=0.0005..0.01 --set ema=0,0.97 --samples 5
    """
    check_methods(method, best=True)  # before anything heavy is imported
    config = TrainConfig(method=method, bits=bits, langs=tuple(lang or ()), relevance=relevance, device=device)
    grid = SweepConfig(values=tuple(values or ()), samples=samples, seeds=seeds, jobs=jobs, out=out)
    for setting in settings_of(grid.values, samples):
        check_train(replace(config, **setting))
    from cmrhash.features.dataset import ExtractedDataset

    data = ExtractedDataset.open(cache, dataset)
    data.check_choice(config.langs, relevance, encoder or ())
    config = replace(config, method=named([method], data, relevance, quiet)[0])
    from cmrhash.evaluation.sweep import sweep as run
    from cmrhash.evaluation.sweep import table

    with progress_bars(quiet) as progress:
        result = run(grid, config, data, runs, tuple(encoder or ()), progress)
    if as_json:
        print_json(result.as_json())
    else:
        columns, cells = table(result)
        title, words = f"{data.name}: mean val mAP (* = collapsed), best first", "\n".join(result.in_words())
        print_table(title, columns, cells, words, keys=columns.index("val mAP"))
    for row in result.rows:
        if row["failed"]:
            note(f"failed: {row['failed']}", quiet)
    note(f"written: {grid.out or runs / data.name / 'sweep'}/sweep.md, .csv, .json", quiet)
