"""cmrhash train: features -> hash heads, codes and indexes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cmrhash.checks import check_train
from cmrhash.config import ACROSS, GRID, TrainConfig
from cmrhash.training.loggers import TENSORBOARD, check_logger, logger_of
from cmrhash.training.names import METHODS, REPRODUCTION, aligned, check_methods
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
    Json,
    Noise,
    OneDirection,
    Overwrite,
    Quiet,
    Relevance,
    Runs,
    note,
    print_json,
    print_table,
    progress_bars,
)
from cmrhash_cli.presets import Config, FromRun
from cmrhash_cli.typed import command_line

if TYPE_CHECKING:
    from cmrhash.data.items import ImageTextDataset
    from cmrhash.features.dataset import ExtractedDataset
    from cmrhash.training.runs import Run

D = TrainConfig
PAIRS_ADVICE = (
    "relevance is pairs, and triplet looks for counterparts: for results that mean the same use --method krr-cluster, "
    "for both --method jdsh"
)


def train(
    ctx: typer.Context,
    dataset: Dataset = None,
    bits: Annotated[list[int] | None, typer.Option(help=f"Code length (repeatable); default: {D.bits}.")] = None,
    lang: Annotated[list[str] | None, typer.Option(help="Language to train (repeatable); default: all.")] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(
            help=f"Training method (repeatable); default: {D.method}. One of {', '.join((*METHODS, *REPRODUCTION))}, "
            "or best, which chooses by the kind of data and says which and why. "
            "An option that none of the chosen methods reads is refused."
        ),
    ] = None,
    alignment: Annotated[
        str | None,
        typer.Option(help="How --method acmr aligns images and texts: adversarial, mmd, coral, correlation or none."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Random seed of weights, batches, captions and dropout.")] = D.seed,
    relevance: Relevance = D.relevance,
    epochs: Annotated[int, typer.Option(help="Passes over the training items.")] = D.epochs,
    batch: Annotated[int, typer.Option(help="Batch size (items per step).")] = D.batch,
    lr: Annotated[float, typer.Option(help="Learning rate; the peak of a one-cycle schedule.")] = D.lr,
    image_lr: Annotated[
        float | None, typer.Option(help="Learning rate of the image head; 0 leaves it untrained; default: --lr.")
    ] = D.image_lr,
    text_lr: Annotated[float | None, typer.Option(help="The same for the text heads.")] = D.text_lr,
    schedule: Annotated[
        str,
        typer.Option(
            help="one-cycle, or constant: the same rate in every step. The papers' Adam is --schedule constant "
            "--weight-decay 0 --lr 1e-4."
        ),
    ] = D.schedule,
    weight_decay: Annotated[float, typer.Option(help="Weight decay of AdamW; 0: Adam.")] = D.weight_decay,
    ema: Annotated[
        float,
        typer.Option(
            help="Moving average of the weights: the share that it keeps each step, such as .97; 0: the last weights."
        ),
    ] = D.ema,
    hidden: Annotated[int, typer.Option(help="Width of the hidden layer; 0: a linear head.")] = D.hidden,
    dropout: Annotated[float, typer.Option(help="Dropout rate of the hidden units.")] = D.dropout,
    input_dropout: Annotated[float, typer.Option(help="Dropout rate of the features.")] = D.input_dropout,
    first_caption: Annotated[
        float, typer.Option(help="Share of steps that use an item's first caption; the others use a random one.")
    ] = D.first_caption,
    margin: Annotated[float, typer.Option(help="Triplet margin as a share of the bits.")] = D.margin,
    memory: Annotated[
        int,
        typer.Option(
            help="Items of earlier steps with which pairwise losses (tie-ap, supcon, logistic, cmpm, contrastive) "
            "compare a batch, too; 0: none."
        ),
    ] = D.memory,
    drop_near_duplicates: DropNear = D.drop_near_duplicates,
    noise: Noise = D.noise,
    direction: OneDirection = D.direction,
    log: Annotated[
        str | None,
        typer.Option(
            help="tensorboard or tensorboard:DIR writes the figures of each epoch for TensorBoard; "
            "default of DIR: tensorboard in the data set's runs."
        ),
    ] = None,
    encoder: Encoder = None,
    cache: Cache = CACHE,
    runs: Runs = RUNS,
    device: Device = D.device,
    overwrite: Overwrite = False,
    config_file: Config = None,
    from_run: FromRun = None,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Train hash heads for images and for the texts of each language.

    cmrhash train --bits 32

    cmrhash train --method best --bits 16 --bits 32 --bits 48 --bits 64

    cmrhash train --method triplet --method tie-ap

    cmrhash train --method acmr --alignment mmd
    """
    methods = aligned(method or [D.method], alignment)
    config = TrainConfig(
        method=methods[0],
        seed=seed,
        langs=tuple(lang or ()),
        relevance=relevance,
        epochs=epochs,
        batch=batch,
        lr=lr,
        image_lr=image_lr,
        text_lr=text_lr,
        schedule=schedule,
        weight_decay=weight_decay,
        ema=ema,
        hidden=hidden,
        dropout=dropout,
        input_dropout=input_dropout,
        first_caption=first_caption,
        margin=margin,
        memory=memory,
        drop_near_duplicates=drop_near_duplicates,
        noise=noise,
        direction=direction,
        device=device,
    )
    lengths = list(dict.fromkeys(bits or [D.bits]))
    check_methods(*methods, best=True)  # before anything heavy is imported
    for length in lengths:
        check_train(replace(config, bits=length))
    check_logger(log)
    from cmrhash.features.dataset import ExtractedDataset

    data = ExtractedDataset.open(cache, dataset)
    data.check_choice(config.langs, relevance, encoder or ())
    methods = named(methods, data, relevance, quiet)
    check_given(ctx, methods, config, data, quiet)
    configs = [replace(config, method=name, bits=length) for name, length in product(methods, lengths)]
    finished = _train_each(configs, data, runs, tuple(encoder or ()), overwrite, log, quiet)
    _show(finished, data.dataset, as_json, quiet)
    other = None if relevance == data.dataset.relevance else relevance
    place: dict[str, Any] = {"dataset": data.name, "relevance": other, "cache": cache, "runs": runs}
    _next(finished[0][0], data, place, quiet)
    if finished[0][0].relevance == "pairs":
        _advise(method, data.dataset.classes, {**place, "relevance": None}, quiet)


def _train_each(
    configs: Sequence[TrainConfig],
    data: ExtractedDataset,
    runs: Path,
    encoders: tuple[str, ...],
    overwrite: bool,
    log: str | None,
    quiet: bool,
) -> list[tuple[Run, bool]]:
    """Train by each config and hash all items: the runs, and whether each was trained now."""
    from cmrhash.evaluation.forecast import Forecast
    from cmrhash.evaluation.run_codes import codes_of
    from cmrhash.training.train import train as run_one

    finished: list[tuple[Run, bool]] = []
    forecast = Forecast(one.method for one in configs)
    with progress_bars(quiet) as progress:

        def count() -> None:
            if len(configs) > 1:
                progress(GRID, len(finished), len(configs), str(forecast))

        def told(what: str, done: int, total: int, remark: str = "") -> None:
            forecast.show("run", one.method, done / total)
            count()
            progress(what, done, total, remark)

        for one in configs:
            logger = logger_of(log, runs / data.name / TENSORBOARD)
            run, fresh = run_one(one, data, runs, encoders, overwrite, told, logger)
            codes_of(run, data)
            finished.append((run, fresh))
            forecast.finish("run", one.method)
            count()
    return finished


def _next(run: Run, data: ExtractedDataset, place: dict[str, Any], quiet: bool) -> None:
    """Note the command to type next. place: options that name the data set and the folders."""
    query = "SENTENCE" if run.langs else "PHOTO"
    following = command_line("search", query=query, **place) if data.no_captions else command_line("eval", **place)
    note(f"next: {following}", quiet)


def _advise(asked: list[str] | None, classes: Sequence[str], place: dict[str, Any], quiet: bool) -> None:
    """Name the methods for pair relevance, and the command that scores the run by labels.

    asked: methods that the user chose; place: as for ``_next``.
    """
    if asked is None:
        note(PAIRS_ADVICE, quiet)
    if classes:
        command = command_line("eval", trained_by="pairs", **place)
        note(f"by labels, which the training did not see: {command}", quiet)


def _show(finished: list[tuple[Run, bool]], dataset: ImageTextDataset, as_json: bool, quiet: bool) -> None:
    from cmrhash.training.methods import get_method

    if as_json:
        print_json([_as_json(run, fresh) for run, fresh in finished])
    else:
        langs = finished[0][0].langs if any(run.outcome.val_map for run, _ in finished) else ()
        rows = []
        for run, fresh in finished:
            maps, outcome = run.outcome.val_map, run.outcome
            cells = [_figure(maps.get(lang, {}).get(d)) for lang in langs for d in ACROSS]
            closed = get_method(run.method).terms is None  # has no epochs
            epoch = "-" if closed else f"{outcome.best_epoch + 1} of {outcome.epochs}"
            rows.append([str(run.folder), str(run.bits), epoch, *cells, "trained" if fresh else "reused"])
        columns = ["run", "bits", "epoch", *(f"{lang} {d}" for lang in langs for d in ACROSS), "state"]
        print_table("validation mAP of the chosen epoch (tie-aware)" if langs else "trained runs", columns, rows)
    if partial := finished[0][0].record.get("partial"):
        groups = ", ".join(f"{count} with {views} alone" for views, count in partial.items())
        note(f"items that lack a view train the terms of the others: {groups}", quiet)
    for run, _ in finished:
        for line in _warnings(run, dataset):
            note(f"warning: {run.folder.name}: {line}", quiet)


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _as_json(run: Run, fresh: bool) -> dict[str, Any]:
    from cmrhash.training.runs import HISTORY

    history = [json.loads(line) for line in (run.folder / HISTORY).read_text(encoding="utf-8").splitlines()]
    keys = (
        "dataset",
        "relevance",
        "langs",
        "train",
        "train_items",
        "partial",
        "batch",
        "best_epoch",
        "chosen_on",
        "collapsed",
        "collapse",
    )
    return {
        "folder": str(run.folder),
        "trained": fresh,
        **{key: run.record[key] for key in keys if key in run.record},
        "val_map": [entry.get("val_map") for entry in history],
        "history": history,
    }


def _warnings(run: Run, dataset: ImageTextDataset) -> list[str]:
    """Warnings about this training."""
    from cmrhash.evaluation.protocol import few_val
    from cmrhash.training.runs import VAL, WITHIN_VAL

    outcome = run.outcome
    lines = [doubt] if (doubt := few_val(dataset, run)) else []
    for name, watch in outcome.collapse.items():
        if watch["collapsed"]:
            lines.append(
                f"the codes of {name} have collapsed ({watch['constant_bits']:.0%} constant bits, "
                f"{watch['distinct']:.1%} distinct codes): try a smaller --margin or --lr, or another method"
            )
    if not outcome.collapsed and outcome.collapsed_epochs:
        lines.append(f"the codes had collapsed in {outcome.collapsed_epochs} other epochs than the chosen one")
    if outcome.skipped_steps:
        lines.append(f"{outcome.skipped_steps} steps with a non-finite loss were skipped")
    if outcome.chosen_on not in (VAL, WITHIN_VAL) and outcome.epochs > 1:
        lines.append("no validation items: the last epoch was used")
    return lines
