"""Options that were given on the command line, for methods that do not read all of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import typer

from cmrhash.config import TrainConfig
from cmrhash_cli.output import note
from cmrhash_cli.typed import as_typed

if TYPE_CHECKING:
    from cmrhash.features.dataset import ExtractedDataset


def given(ctx: typer.Context) -> list[str]:
    """Names of the options that the user gave, whatever their values."""
    return [name for name in ctx.params if ctx.get_parameter_source(name).name != "DEFAULT"]  # type: ignore[union-attr]


def named(methods: Sequence[str], data: ExtractedDataset, relevance: str | None, quiet: bool) -> list[str]:
    """The methods, once each, with the one that "best" stands for; notes which and why."""
    from cmrhash.training.best import chosen

    choices = [chosen(method, data, relevance) for method in methods]
    for choice in choices:
        if choice.why:
            note(f"best: {choice.method} ({choice.why})", quiet)
    return list(dict.fromkeys(choice.method for choice in choices))


def check_given(
    ctx: typer.Context, methods: Sequence[str], config: TrainConfig, data: ExtractedDataset, quiet: bool
) -> None:
    """Raise UsageError for an option that none of the methods reads; note the methods that do not read one."""
    from cmrhash.data.items import with_relevance
    from cmrhash.training.settings import refuse_unread

    relevance = with_relevance(data.dataset, config.relevance).relevance
    for name, lacking in refuse_unread(methods, given(ctx), config, relevance).items():
        note(as_typed(f"`{name}` does not apply to {', '.join(lacking)}"), quiet)
