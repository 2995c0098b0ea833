"""cmrhash env: description of the system, for bug reports."""

from __future__ import annotations

from cmrhash_cli.output import CACHE, RUNS, Cache, Debug, Json, Runs, print_json, print_line


def env(cache: Cache = CACHE, runs: Runs = RUNS, as_json: Json = False, debug: Debug = False) -> None:
    """Describe the system for a bug report: versions, machine, devices, folders.

    cmrhash env

    cmrhash env --json
    """
    from cmrhash.maintenance.environment import as_markdown, describe

    found = describe(cache, runs)
    if as_json:
        print_json(found)
    else:
        print_line(as_markdown(found))
