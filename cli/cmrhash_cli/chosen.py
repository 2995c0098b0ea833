"""Which run a command works with: options declared once, and the run that they mean."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cmrhash_cli.output import note

if TYPE_CHECKING:
    from cmrhash.features.dataset import ExtractedDataset
    from cmrhash.search.hasher import Hasher
    from cmrhash.training.runs import Run

OneRun = Annotated[Path | None, typer.Option("--run", help="Folder of a trained run; default: the best one on val.")]
OneLength = Annotated[int | None, typer.Option("--bits", help="Code length of the run; default: any.")]
OneMethod = Annotated[str | None, typer.Option("--method", help="Method of the run; default: any.")]
ImageWeights = Annotated[
    str | None, typer.Option("--image-weights", help="Where the image encoder's weights are now, if they moved.")
]
TextModel = Annotated[
    list[str] | None,
    typer.Option("--text-model", help="[LANG=]DIR: where a text encoder is now, if it moved (repeatable)."),
]
Among = Annotated[
    str, typer.Option("--among", help="Which items: those of the database, as eval scores, or all that have codes.")
]
Offline = Annotated[bool, typer.Option("--offline", help="Never ask the network for weights.")]


def chosen_run(
    run: Path | None,
    bits: int | None,
    method: str | None,
    relevance: str | None,
    dataset: str | None,
    cache: Path,
    runs: Path,
) -> tuple[Run, ExtractedDataset]:
    """The run that is asked for, or else the one that is best on val; its data set, and where that lies."""
    from cmrhash.features.dataset import ExtractedDataset
    from cmrhash.training.runs import best_run, current, find_runs, open_run

    chosen = open_run(run) if run else None
    data = ExtractedDataset.open(cache, chosen.dataset if chosen else dataset)
    if chosen is None:
        wanted = ([bits] if bits else [], [method] if method else [])
        chosen = best_run(current(find_runs(runs, data.name, relevance or data.dataset.relevance, *wanted), data))
    return chosen, data


def note_left_out(hasher: Hasher, quiet: bool) -> None:
    """Say so where most items are not searched."""
    if 2 * hasher.searched < hasher.encoded:
        note(f"{hasher.scope} of {hasher.encoded}: --among all searches all of them", quiet)


def by_language(options: Sequence[str]) -> dict[str, str]:
    """ "[LANG=]DIR" options -> {LANG: DIR}, "" for all languages."""
    parts = [re.fullmatch(r"(?:([A-Za-z0-9_-]+)=)?(.+)", option, re.S) for option in options]
    return {match[1] or "": match[2] for match in parts if match}
