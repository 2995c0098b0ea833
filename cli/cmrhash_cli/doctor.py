"""cmrhash doctor: check of the installation."""

from __future__ import annotations

from dataclasses import asdict

import typer

from cmrhash_cli.output import (
    CACHE,
    RUNS,
    Cache,
    Debug,
    Json,
    Quiet,
    Runs,
    print_json,
    print_line,
    print_table,
    progress_bars,
)

WIDTH = 100  # characters of a line in a pipe, to be read there as well


def doctor(
    cache: Cache = CACHE, runs: Runs = RUNS, as_json: Json = False, quiet: Quiet = False, debug: Debug = False
) -> None:
    """Check the installation: packages, extras, GPU, weights, folders; say what is missing for what.

    Exit code: 1 if cmrhash cannot work, 0 otherwise, whatever optional parts are missing. Nothing is downloaded.

    cmrhash doctor

    cmrhash doctor --json
    """
    from cmrhash.maintenance.doctor import ABSENT, FAILED, examine, passes

    with progress_bars(quiet) as progress:
        found = examine(cache, runs, lambda what, done, total: progress("checks", done, total, what))
    if as_json:
        print_json({"passes": passes(found), "checks": [asdict(one) for one in found]})
    else:
        rows = [[one.state, one.part, one.found, one.fix] for one in found]
        columns = ["state", "part", "found", "to do"]
        print_table("installation", columns, rows, folded="found", below=["to do"], keys=2, piped=WIDTH)
        failed, absent = (sum(one.state == state for one in found) for state in (FAILED, ABSENT))
        print_line(f"{failed} failed, {absent} optional parts missing" if failed or absent else "nothing is missing")
    raise typer.Exit(0 if passes(found) else 1)
