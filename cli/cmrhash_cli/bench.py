"""cmrhash bench: speed of cmrhash relative to naive code."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from cmrhash_cli.output import Debug, Json, Quiet, print_json, print_table, progress_bars

CAPTION = "CPU seconds of one thread, best of 3 alternating runs; compare ratios, not seconds, across machines"


def bench(
    path: Annotated[list[str] | None, typer.Option(help="Code path to time (repeatable); default: all.")] = None,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Time the main code paths on one thread, against naive code and against the limit of the machine.

    cmrhash bench --path evaluation-32 --path search
    """
    for library in ("OMP", "OPENBLAS", "MKL"):  # read when NumPy and torch are imported
        os.environ[f"{library}_NUM_THREADS"] = "1"
    from cmrhash.bench import bench as run

    with progress_bars(quiet) as progress:
        result = run(tuple(path or ()), progress)
    if as_json:
        print_json(result)
        return
    rows = [
        [
            r["path"],
            f"{r['naive_s']:.3f}",
            f"{r['ours_s']:.4f}",
            f"{r['ratio']:.1f}",
            f"{r['target']:g}",
            "" if r["limit_share"] is None else f"{100 * r['limit_share']:.0f} %",
            "" if r["peak_mb"] is None else f"{r['peak_mb']:.0f}",
        ]
        for r in result["rows"]
    ]
    columns = ["path", "naive s", "ours s", "ratio", "at least", "of the limit", "peak MB"]
    notes = [f"{r['path']}: {r['what']}; limit: {r['limit']}" for r in result["rows"]]
    print_table(f"naive way / cmrhash ({result['machine']['processor']})", columns, rows, "\n".join([*notes, CAPTION]))
