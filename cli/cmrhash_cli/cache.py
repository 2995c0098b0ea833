"""cmrhash cache ls, verify, prune: contents of the cache and the runs."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cmrhash.config import PruneConfig, VerifyConfig
from cmrhash.maintenance.states import PLAIN, VARIED
from cmrhash_cli.output import (
    CACHE,
    RUNS,
    Cache,
    Debug,
    Json,
    Quiet,
    Runs,
    note,
    print_json,
    print_line,
    print_table,
    progress_bars,
    size_of,
)
from cmrhash_cli.typed import as_typed

if TYPE_CHECKING:
    from cmrhash.maintenance.inventory import Entry
    from cmrhash.maintenance.prune import Doomed
    from cmrhash.maintenance.verify import Checked

V, P = VerifyConfig, PruneConfig
One = Annotated[str | None, typer.Option("--dataset", help="Only this data set; default: all.")]


def ls(
    dataset: One = None,
    cache: Cache = CACHE,
    runs: Runs = RUNS,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """List feature files and runs with size and state, without reading their data.

    cmrhash cache ls

    cmrhash cache ls --dataset iaprtc12 --json
    """
    from cmrhash.maintenance.inventory import survey

    found = survey(cache, runs, dataset)
    own, trained = ([entry for entry in found if (entry.kind == "run") is wanted] for wanted in (False, True))
    if as_json:
        print_json({"files": [_as_json(entry) for entry in own], "runs": [_as_json(entry) for entry in trained]})
        return
    if own:
        columns = ["data set", "file", "view", "rows", "ok", "size", "state"]
        print_table(
            f"features in {cache}", columns, [_file_cells(entry, cache) for entry in own], folded="state", keys=2
        )
    if trained:
        columns = ["run", "val mAP", "bits", "size", "state"]
        print_table(f"runs in {runs}", columns, [_run_cells(entry, runs) for entry in trained], folded="state")
    if not found:
        note(f"no files in {cache} or {runs}: run cmrhash extract first", quiet)
    for line in dict.fromkeys(_advice(entry) for entry in found if entry.fix):
        print_line(line)


def verify(
    dataset: One = None,
    sources: Annotated[bool, typer.Option(help="Also compare photos and captions with the features.")] = V.sources,
    cache: Cache = CACHE,
    runs: Runs = RUNS,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Check the digests of all files, and the features against their photos and captions.

    Exit code: 6 if a file is damaged, 4 if one is out of date, 0 if all are intact.

    cmrhash cache verify

    cmrhash cache verify --dataset flickr --no-sources
    """
    from cmrhash.maintenance.verify import exit_code
    from cmrhash.maintenance.verify import verify as run

    start, found, last = time.monotonic(), [], []
    with progress_bars(quiet) as progress:
        for checked in run(VerifyConfig(sources=sources), cache, runs, dataset, progress):
            found.append(checked)
            if checked.status != "whole" or checked.words not in PLAIN:
                last.append(_line(checked))  # problems are printed last
            elif not as_json:
                print_line(_line(checked))
    counts = _counts(found)
    size, seconds = sum(one.bytes for one in found), time.monotonic() - start
    if as_json:
        files = [{"file": str(o.path), "status": o.status, "state": o.words, "fix": as_typed(o.fix)} for o in found]
        print_json({**counts, "bytes": size, "seconds": round(seconds, 3), "files": files})
    else:
        print_line(*last)
        words = ", ".join(f"{count} {status}" for status, count in counts.items())
        print(f"{len(found)} files checked, {size_of(size)} in {seconds:.1f} s: {words}")
    raise typer.Exit(exit_code(found))


def prune(
    dataset: One = None,
    unfinished: Annotated[
        bool, typer.Option("--unfinished", help="Also unfinished extractions and trainings that could be resumed.")
    ] = P.unfinished,
    gone: Annotated[
        bool, typer.Option("--gone", help="Also runs whose features are deleted (extracting again would restore them).")
    ] = P.gone,
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="Delete the files; without it they are only listed.")
    ] = P.yes,
    cache: Cache = CACHE,
    runs: Runs = RUNS,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """List files that are safe to delete; --yes deletes them.

    cmrhash cache prune

    cmrhash cache prune --unfinished --yes
    """
    from cmrhash.maintenance.prune import delete, plan

    config = PruneConfig(unfinished=unfinished, gone=gone, yes=yes)
    found = plan(config, cache, runs, dataset)
    done = list(delete(found, cache, runs)) if config.yes else [(one, "") for one in found]
    freed = sum(one.bytes for one, left in done if not left)
    if as_json:
        print_json({"deleted": yes, "bytes": freed, "things": [_doomed_as_json(one, left) for one, left in done]})
        return
    rows = [[one.what, f"kept: {left}" if left else one.why, size_of(one.bytes)] for one, left in done]
    if rows:
        print_table("deleted" if yes else "would be deleted", ["what", "why", "size"], rows, folded="why")
        ending = "freed" if yes else "would be freed: to delete, run cmrhash cache prune --yes"
        print(f"{size_of(freed)} {ending}")
    else:
        note("nothing to delete", quiet)


# ---------------------------------------------------------------------------------------------- lines and cells


def _file_cells(entry: Entry, cache: Path) -> list[str]:
    facts = entry.facts
    name = str(entry.path.relative_to(cache / entry.dataset))
    numbers = [str(facts[key]) if facts.get(key) is not None else "-" for key in ("rows", "ok")]
    return [entry.dataset, name, facts.get("view", entry.kind), *numbers, size_of(entry.bytes), _state(entry)]


def _run_cells(entry: Entry, runs: Path) -> list[str]:
    facts = entry.facts
    score = facts.get("val_map")
    numbers = ["-" if score is None else f"{score:.3f}", str(facts.get("bits", "-"))]
    return [str(entry.path.relative_to(runs)), *numbers, size_of(entry.bytes), _state(entry)]


def _state(entry: Entry) -> str:
    """State of an entry; the cause of a damaged file is printed below the table."""
    return entry.state if entry.state in VARIED else entry.words


def _advice(entry: Entry) -> str:
    fix = as_typed(entry.fix)
    return f"{entry.path}: {entry.words}: {fix}" if entry.state in VARIED else f"{entry.state}: {fix}"


def _line(checked: Checked) -> str:
    status = "DAMAGED" if checked.status == "damaged" else checked.status
    words = f": {checked.words}" if checked.words and checked.words not in PLAIN else ""
    return f"{status:10} {checked.path}{words}" + (f": {as_typed(checked.fix)}" if checked.fix else "")


def _counts(found: Sequence[Checked]) -> dict[str, int]:
    """Number of files of each status; whole, stale and damaged are always listed."""
    counts = dict.fromkeys(("whole", "stale", "damaged"), 0)
    for one in found:
        counts[one.status] = counts.get(one.status, 0) + 1
    return counts


def _as_json(entry: Entry) -> dict[str, Any]:
    own = {"dataset": entry.dataset, "path": str(entry.path), "kind": entry.kind, "status": entry.status}
    return {**own, "state": entry.words, "fix": as_typed(entry.fix), "bytes": entry.bytes, **entry.facts}


def _doomed_as_json(one: Doomed, left: str) -> dict[str, Any]:
    return {"what": one.what, "why": one.why, "left": left, "bytes": one.bytes, "files": list(map(str, one.files))}
