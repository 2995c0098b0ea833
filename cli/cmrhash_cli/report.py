"""cmrhash report: a run or a comparison -> one HTML file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cmrhash.config import ReportConfig
from cmrhash_cli.output import (
    CACHE,
    RUNS,
    Cache,
    Dataset,
    Debug,
    Json,
    Quiet,
    Runs,
    ShownLang,
    note,
    print_json,
    print_line,
    progress_bars,
)
from cmrhash_cli.presets import Config

D = ReportConfig


def report(
    run: Annotated[
        Path | None, typer.Option(help="Folder of a run; default: the table of cmrhash compare, or else the best run.")
    ] = D.run,
    dataset: Dataset = None,
    lang: ShownLang = None,
    examples: Annotated[
        int, typer.Option(help="Number of queries shown from each of the best, median and worst.")
    ] = D.examples,
    top: Annotated[int, typer.Option(help="Number of results shown per query.")] = D.top,
    thumbnail: Annotated[int, typer.Option(help="Longer side of a photo in pixels.")] = D.thumbnail,
    out: Annotated[
        Path | None, typer.Option(help="File to write; default: report.html in the folder of the run or comparison.")
    ] = D.out,
    cache: Cache = CACHE,
    runs: Runs = RUNS,
    config_file: Config = None,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Write one self-contained HTML file: tables, examples, plots, protocol, commands to reproduce it.

    cmrhash report --run runs/sample/triplet-32

    cmrhash report --dataset flickr --lang en --out flickr.html
    """
    config = ReportConfig(run=run, langs=tuple(lang or ()), examples=examples, top=top, thumbnail=thumbnail, out=out)
    from cmrhash.features.dataset import ExtractedDataset
    from cmrhash.show.report import report as write
    from cmrhash.training.runs import open_run

    name = open_run(run).dataset if run else dataset
    with progress_bars(quiet) as progress:
        made = write(config, ExtractedDataset.open(cache, name), runs, progress)
    if made.missing:
        note(f"{made.missing} photos are missing or unreadable: shown without them", quiet)
    if as_json:
        print_json(made.as_json())
    else:
        print_line(made.file)
    count = f"{len(made.runs)} run{'s' if made.runs[1:] else ''}"
    note(f"{made.size / 1e6:.1f} MB, {count}, {made.photos} photos", quiet)
