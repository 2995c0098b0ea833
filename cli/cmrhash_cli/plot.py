"""cmrhash plot: trained runs -> plots as PNG, SVG or PDF."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cmrhash.config import PLOTS, PlotConfig
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
    note,
    print_json,
    print_line,
    progress_bars,
)
from cmrhash_cli.presets import Config
from cmrhash_cli.typed import as_typed

D = PlotConfig
OF_ONE = {"distances", "tsne", "training"}


def plot(
    kinds: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KIND]...", help=f"{', '.join(PLOTS)}; default: all that the runs allow."),
    ] = None,
    dataset: Dataset = None,
    bits: Bits = None,
    lang: ShownLang = None,
    method: Annotated[list[str] | None, typer.Option(help="Method (repeatable); default: all trained.")] = None,
    seed: Annotated[list[int] | None, typer.Option(help="Seed (repeatable); default: all trained.")] = None,
    relevance: Relevance = D.relevance,
    formats: Annotated[
        list[str] | None, typer.Option("--format", help="File format: png, svg or pdf (repeatable); default: png, svg.")
    ] = None,
    size: Annotated[
        str | None,
        typer.Option(help="Width: column, page or centimetres, for a paper; default: that of the panels."),
    ] = D.size,
    title: Annotated[bool, typer.Option(help="Title and protocol in the figure; a paper has them in its caption.")] = (
        D.title
    ),
    items: Annotated[int, typer.Option(help="Maximum number of query items in a t-SNE map.")] = D.items,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the plots; default: plots, in the data set's folder of runs.")
    ] = D.out,
    cache: Cache = CACHE,
    runs: Runs = RUNS,
    config_file: Config = None,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Plot trained runs: precision and recall, first N results, mAP by bits, seen and unseen items, t-SNE map, ...

    cmrhash plot

    cmrhash plot bits pr --lang en --out figures --format svg

    cmrhash plot bits topn --format pdf --size column --no-title

    cmrhash plot tsne --method triplet --bits 32 --seed 0
    """
    config = PlotConfig(
        kinds=tuple(kinds or ()),
        bits=tuple(bits or ()),
        methods=tuple(method or ()),
        seeds=tuple(seed or ()),
        langs=tuple(lang or ()),
        relevance=relevance,
        formats=tuple(formats or D.formats),
        size=size,
        title=title,
        items=items,
        out=out,
    )
    from cmrhash.features.dataset import ExtractedDataset
    from cmrhash.show.figures import draw

    data = ExtractedDataset.open(cache, dataset)
    with progress_bars(quiet) as progress:
        drawn = draw(config, data, runs, progress)
    for kind, why in drawn.skipped.items():
        note(f"no {kind}: {as_typed(why)}", quiet)
    alone = [kind for kind in PLOTS if kind in OF_ONE and kind in (kinds or PLOTS) and kind not in drawn.skipped]
    if drawn.of > 1 and set(kinds or PLOTS) - OF_ONE:
        note(f"drawn: {drawn.runs}; choose with --method, --bits, --seed", quiet)
    if drawn.of > 1 and alone:
        note(f"{', '.join(alone)}: of {drawn.run}, the run with the best validation mAP of {drawn.of}", quiet)
    if as_json:
        print_json({"dataset": data.name, **drawn.as_json()})
    else:
        print_line(*drawn.files)
