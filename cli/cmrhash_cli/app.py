"""The command line's application, to which ``main`` adds the commands."""

from __future__ import annotations

import typer

app = typer.Typer(
    help="Cross-modal hashing: find images by text and texts by image through compact binary codes.\n\n"
    "The three main steps: cmrhash extract, cmrhash train --bits 32, cmrhash eval --lang de.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
