"""Options that choose a run, and the run they choose."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cmrhash.data.view import by_language as by_language
from cmrhash_cli.output import note
from cmrhash_cli.typed import command_line

if TYPE_CHECKING:
    from cmrhash.features.dataset import ExtractedDataset
    from cmrhash.search.hasher import Hasher
    from cmrhash.training.runs import Run

OneRun = Annotated[
    Path | None,
    typer.Option(
        "--run", help="Folder of a trained run; default: the one of best validation mAP, else the one trained last."
    ),
]
OneLength = Annotated[int | None, typer.Option("--bits", help="Code length of the run; default: any.")]
OneMethod = Annotated[str | None, typer.Option("--method", help="Method of the run; default: any.")]
ImageWeights = Annotated[
    str | None, typer.Option("--image-weights", help="New location of the image encoder's weights, if they moved.")
]
TextModel = Annotated[
    list[str] | None,
    typer.Option("--text-model", help="[LANG=]DIR: new location of a text encoder, if it moved (repeatable)."),
]
Among = Annotated[
    str | None,
    typer.Option(
        "--among",
        help="Items to cover: all that have codes, or database (those that eval scores); default: all, with --store "
        "those that the store holds.",
    ),
]
Rank = Annotated[
    str | None,
    typer.Option(
        "--rank",
        help="Order of results: hamming, asymmetric, rerank, rerank:N (the N nearest codes by embedding), or features "
        "(photos by a photo); default: rerank.",
    ),
]
Offline = Annotated[bool, typer.Option("--offline", help="Never download weights.")]


@dataclass(frozen=True, kw_only=True)
class RunChoice:
    """Options that choose a run: its folder, or else what the run with the best validation mAP is chosen from."""

    run: Path | None
    bits: int | None
    method: str | None
    relevance: str | None
    dataset: str | None
    cache: Path
    runs: Path


def open_hasher(choice: RunChoice, *, text_models: Sequence[str] = (), **settings: Any) -> tuple[Hasher, str]:
    """Open the chosen run for search; also returns the rule that chose it. settings: those of ``Hasher.open``."""
    from cmrhash.search.hasher import Hasher

    run, data, rule = _chosen(choice)
    if (lost := data.lost_photos()) is not None:
        added = lost if lost != data.dataset.root else None
        following = command_line("relocate", root="DIR", dataset=data.name, former=added, cache=choice.cache)
        note(f"photos are not in {lost}: {following} says where they are")
    return Hasher.open(run, data, text_models=by_language(text_models), **settings), rule


def _chosen(choice: RunChoice) -> tuple[Run, ExtractedDataset, str]:
    """The chosen run, its extracted data set, and the rule that chose it; see ``_rule``."""
    from cmrhash.features.dataset import ExtractedDataset
    from cmrhash.training.runs import best_run, current, find_runs, open_run

    chosen = open_run(choice.run) if choice.run else None
    data = ExtractedDataset.open(choice.cache, chosen.dataset if chosen else choice.dataset)
    if chosen is not None:
        return chosen, data, ""
    wanted = ([choice.bits] if choice.bits else [], [choice.method] if choice.method else [])
    found = current(find_runs(choice.runs, data.name, choice.relevance or data.dataset.relevance, *wanted), data)
    chosen = best_run(found)
    return chosen, data, _rule(chosen, found)


def _rule(chosen: Run, found: Sequence[Run]) -> str:
    """Why this one of several runs, and how to choose another; "" for one run."""
    from cmrhash.training.runs import finished

    if len(found) == 1:
        return ""
    last = max(found, key=finished)
    if chosen.outcome.val_map_mean is None:
        rule = "the one trained last"
    else:
        rule = "the best on validation" + (f" (trained last: {last.name})" if last != chosen else "")
    if len({(run.direction, len(run.langs)) for run in found}) > 1:
        rule += " among those of most languages and directions"
    return f"; of {len(found)} runs {rule}: --run selects another"


def note_run(hasher: Hasher, rule: str, quiet: bool, more: str = "") -> None:
    """Note which run is used, and the rule that chose it."""
    note(f"run: {hasher.run.folder}, {hasher.scope}{rule}{more}", quiet)


def note_left_out(hasher: Hasher, quiet: bool) -> None:
    """Note it if the search covers less than half of the items."""
    if 2 * hasher.searched < hasher.encoded:
        note(f"{hasher.scope} of {hasher.encoded} are searched: --among all searches all of them", quiet)
