"""cmrhash compare: one table of methods, code lengths, languages and seeds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cmrhash.checks import check_train
from cmrhash.config import CompareConfig, TrainConfig
from cmrhash.evaluation.metric_names import check_metric
from cmrhash.training.names import check_methods
from cmrhash_cli.given import check_given, named
from cmrhash_cli.output import (
    CACHE,
    RUNS,
    Cache,
    Dataset,
    Debug,
    Device,
    DropNear,
    Encoder,
    Jobs,
    Json,
    Noise,
    OneDirection,
    Quiet,
    Relevance,
    Runs,
    ShownLang,
    TrainedBy,
    note,
    print_json,
    print_table,
    progress_bars,
    titled,
)
from cmrhash_cli.presets import Config

D, T = CompareConfig, TrainConfig


def compare(
    ctx: typer.Context,
    dataset: Dataset = None,
    method: Annotated[list[str] | None, typer.Option(help="Method (repeatable); default: triplet.")] = None,
    bits: Annotated[list[int] | None, typer.Option(help="Code length (repeatable); default: 16, 32, 48, 64.")] = None,
    lang: ShownLang = None,
    train_lang: Annotated[list[str] | None, typer.Option(help="Language to train (repeatable); default: all.")] = None,
    seeds: Annotated[int, typer.Option(help="Number of seeds per cell, counted from 0.")] = D.seeds,
    metric: Annotated[
        str | None,
        typer.Option(help="Metric of the cells: map, r@1, r@5 or r@10; default: map, or r@1 with relevance pairs."),
    ] = D.metric,
    against: Annotated[
        str | None, typer.Option(help="Method that the others are tested against, for significance.")
    ] = D.against,
    format: Annotated[
        str, typer.Option("--format", help="Printed table: text, or latex (booktabs), which is also written as .tex.")
    ] = D.format,
    relevance: Relevance = T.relevance,
    epochs: Annotated[
        int,
        typer.Option(help="Passes over the training items; refused if none of the methods has epochs."),
    ] = T.epochs,
    jobs: Jobs = D.jobs,
    drop_near_duplicates: DropNear = T.drop_near_duplicates,
    noise: Noise = T.noise,
    direction: OneDirection = T.direction,
    trained_by: TrainedBy = D.trained_by,
    encoder: Encoder = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the table; default: the data set's folder of runs, where cmrhash report finds it."
        ),
    ] = D.out,
    cache: Cache = CACHE,
    runs: Runs = RUNS,
    device: Device = T.device,
    config_file: Config = None,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Train the missing runs, evaluate all, then print and write the table.

    cmrhash compare --method triplet --method tie-ap --bits 32 --bits 64 --seeds 3

    cmrhash compare --method cca --method tie-ap --bits 16 --bits 32 --against cca --format latex

    cmrhash compare --method ucch --method jdsh --bits 32 --trained-by pairs

    cmrhash compare --method supcon --method tie-ap --relevance pairs --train-lang en --lang en
    """
    check_methods(*(method or D.methods), best=True)  # before anything heavy is imported
    config = TrainConfig(
        langs=tuple(train_lang or ()),
        relevance=relevance,
        epochs=epochs,
        drop_near_duplicates=drop_near_duplicates,
        noise=noise,
        direction=direction,
        device=device,
    )
    check_train(config)
    if metric is not None:
        check_metric(metric)
    from cmrhash.features.dataset import ExtractedDataset

    data = ExtractedDataset.open(cache, dataset)
    data.check_choice(train_lang or (), relevance, encoder or ())
    data.check_choice((), trained_by, ())
    from cmrhash.evaluation.compare import compare as run
    from cmrhash.evaluation.compare import table

    grid = CompareConfig(
        methods=tuple(named(method or D.methods, data, trained_by or relevance, quiet)),
        bits=tuple(bits or D.bits),
        langs=tuple(lang or ()),
        seeds=seeds,
        metric=metric,
        against=against,
        format=format,
        jobs=jobs,
        trained_by=trained_by,
        out=out,
    )
    target = out or runs / data.name
    before = (target / "compare.json").exists()
    check_given(ctx, grid.methods, config, data, quiet)
    with progress_bars(quiet) as progress:
        result = run(grid, config, data, runs, tuple(encoder or ()), progress)
    if as_json:
        print_json(result.as_json())
    elif format == "latex":
        print((target / "compare.tex").read_text(encoding="utf-8"), end="")
    else:
        columns, cells = table(result.rows)
        title = f"{data.name}: {result.protocol['metric']}, mean +- sd over seeds (* = collapsed)"
        again = f"command of the first cell: {result.rows[0]['command']}"
        print_table(titled(title, result.protocol), columns, cells, "\n".join([*result.in_words(), again]), keys=3)
    tex = ", .tex" if format == "latex" else ""
    note(f"{'replaced' if before else 'written'}: {target}/compare.md, .csv, .json{tex}", quiet)
