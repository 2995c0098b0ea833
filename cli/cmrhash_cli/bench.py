"""cmrhash bench: our way against the naive one, as ratios."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from cmrhash_cli.output import Debug, Json, Quiet, print_json, print_table, progress_bars


def bench(
    path: Annotated[list[str] | None, typer.Option(help="Hot path (repeatable); default: all.")] = None,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Time the hot paths against what one would otherwise write, in one run and one thread.

    cmrhash bench --path evaluation
    """
    for library in ("OMP", "OPENBLAS", "MKL"):  # read when NumPy and torch are imported: both ways get one thread
        os.environ[f"{library}_NUM_THREADS"] = "1"
    from cmrhash.bench import bench as run

    with progress_bars(quiet) as progress:
        result = run(tuple(path or ()), progress)
    if as_json:
        print_json(result)
        return
    rows = [
        [r["path"], r["what"], f"{r['naive_s']:.3f}", f"{r['ours_s']:.4f}", f"{r['ratio']:.0f}", f"{r['target']:.0f}"]
        for r in result["rows"]
    ]
    caption = "CPU seconds, best of 3 in turns, one thread; seconds differ by machine, ratios travel"
    print_table("naive way / cmrhash", ["path", "what", "naive s", "ours s", "ratio", "at least"], rows, caption)
