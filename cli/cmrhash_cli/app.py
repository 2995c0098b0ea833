"""The command line's application, to which ``main`` adds the commands."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import typer

from cmrhash.config import at_home

Command = Callable[..., Any]


class App(typer.Typer):
    """A Typer application whose paths may begin with ``~``, which shells leave as it is in --option=~/x."""

    def command(self, *args: Any, **options: Any) -> Callable[[Command], Command]:  # type: ignore[override]
        """Add a command."""
        add = super().command(*args, **options)
        return lambda run: add(_with_home(run))


def _with_home(run: Command) -> Command:
    @wraps(run)
    def command(*args: Any, **options: Any) -> Any:
        return run(*args, **{name: _at_home(value) for name, value in options.items()})

    return command


def _at_home(value: Any) -> Any:
    if isinstance(value, list):
        return [_at_home(each) for each in value]
    return at_home(value) if isinstance(value, Path) else value


app = App(
    help="Cross-modal hashing: find images by text and texts by image through compact binary codes.\n\n"
    "The main steps: cmrhash extract, cmrhash train --bits 32, cmrhash eval, cmrhash search SENTENCE.",
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
