"""cmrhash add, remove and relocate: changes of a collection that has features, runs and stores already."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cmrhash.config import STORES, GrowConfig
from cmrhash.errors import UsageError
from cmrhash_cli.chosen import ImageWeights, Offline, TextModel
from cmrhash_cli.output import (
    CACHE,
    RUNS,
    Cache,
    Dataset,
    Debug,
    Device,
    Json,
    Quiet,
    Runs,
    not_empty,
    note,
    print_json,
    print_table,
    progress_bars,
)
from cmrhash_cli.typed import as_typed

if TYPE_CHECKING:
    from cmrhash.search.grow import Grown

D = GrowConfig
NAMED = 5  # ids in a note
Store = Annotated[
    list[str] | None,
    typer.Option(help=f"Store to bring up to date, of {STORES} (repeatable); it has collections of the runs already."),
]


def add(
    path: Annotated[
        Path,
        typer.Argument(
            parser=not_empty, help="Folder, table, tar or manifest of the new items; its layout is recognised."
        ),
    ],
    dataset: Dataset = None,
    prefix: Annotated[str, typer.Option(help="Text to put before the ids of the new items.")] = D.prefix,
    store: Store = None,
    image_weights: ImageWeights = D.image_weights,
    text_model: TextModel = None,
    offline: Offline = D.offline,
    device: Device = D.device,
    cache: Cache = CACHE,
    runs: Runs = RUNS,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Add photos to a collection: only they are encoded, and runs, codes and stores are brought up to date.

    cmrhash add PHOTOS --dataset shop

    cmrhash add PHOTOS --dataset shop --prefix summer/ --store faiss:/srv/codes
    """
    config = GrowConfig(
        stores=tuple(store or ()),
        prefix=prefix,
        image_weights=image_weights,
        text_models=tuple(text_model or ()),
        device=device,
        offline=offline,
    )
    note(f"reading {path}; only new items are encoded ...", quiet)
    from cmrhash.search import grow

    with progress_bars(quiet) as progress:
        grown = grow.add(path, dataset, config, cache, runs, progress)
    _show(grown, as_json, quiet)


def remove(
    ids: Annotated[list[str] | None, typer.Argument(metavar="[ID]...", help="Ids of the items to remove.")] = None,
    from_file: Annotated[
        Path | None, typer.Option("--from", parser=not_empty, help="File of ids to remove, one per line.")
    ] = None,
    dataset: Dataset = None,
    store: Store = None,
    device: Device = D.device,
    cache: Cache = CACHE,
    runs: Runs = RUNS,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Remove items from a collection: from its features, codes and stores. The photos themselves stay.

    cmrhash remove i7 i8 --dataset shop

    cmrhash remove --from sold.txt --dataset shop
    """
    gone = [*(ids or ()), *(_lines(from_file) if from_file else ())]
    if not gone:
        raise UsageError("no id is given", from_file, "give ids, or a file of ids with `from_file`")
    config = GrowConfig(stores=tuple(store or ()), device=device)
    note(f"removing {len(set(gone))} item{'s' * (len(set(gone)) > 1)}; the others keep their features ...", quiet)
    from cmrhash.search import grow

    with progress_bars(quiet) as progress:
        grown = grow.remove(gone, dataset, config, cache, runs, progress)
    _show(grown, as_json, quiet)


def relocate(
    root: Annotated[Path, typer.Argument(parser=not_empty, help="Folder in which the photos are now.")],
    dataset: Dataset = None,
    former: Annotated[
        Path | None,
        typer.Option(
            "--from",
            parser=not_empty,
            help="Folder of added photos that moved; default: the collection's own folder moved.",
        ),
    ] = None,
    cache: Cache = CACHE,
    runs: Runs = RUNS,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Tell a collection where its photos are now, after their folder was moved or renamed.

    cmrhash relocate moved --dataset shop
    """
    from cmrhash.search import grow

    grown = grow.relocate(dataset, root, former, GrowConfig(), cache, runs)
    _show(grown, as_json, quiet)


def _lines(path: Path) -> list[str]:
    """Ids of a file, one per line; raises UsageError for a file that cannot be read."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError("cannot read the ids", path, "give a text file with an id per line") from error
    return [line.strip() for line in lines if line.strip()]


def _some(ids: Sequence[str]) -> str:
    """The first ids."""
    return ", ".join(ids[:NAMED]) + (", ..." if len(ids) > NAMED else "")


def _show(grown: Grown, as_json: bool, quiet: bool) -> None:
    """Print what changed: a table or JSON on stdout, notes on stderr."""
    dataset, changes = grown.data.dataset, grown.changes
    counts = {"added": len(changes.new), "removed": len(changes.gone), "there": len(grown.there)}
    collections = {one.name: one.rows for one in grown.collections}
    if as_json:
        about = {"dataset": dataset.name, **counts, "items": len(dataset.items), "root": str(dataset.root)}
        about |= {"runs": [run.name for run in grown.runs], "left_out": grown.left_out, "collections": collections}
        print_json({**about, "unusable": grown.bad})
        return
    rows = [[file.path.name, str(file.rows), str(file.ok)] for file in grown.files]
    rows += [[str(run.folder), "codes", "up to date"] for run in grown.runs]
    rows += [[name, f"{count:,}", "in the store"] for name, count in collections.items()]
    if rows:
        print_table(f"{dataset.name}: {len(dataset.items):,} items", ["file", "rows", "ok"], rows)
    moves = {"added": changes.new, "removed": changes.gone, "with a new path": changes.changed}
    words = ", ".join(f"{len(ids)} {what} ({_some(ids)})" for what, ids in moves.items() if ids)
    note(words or f"no item added or removed; the collection's photos are looked up in {dataset.root}", quiet)
    if grown.there:
        note(f"{len(grown.there)} items are in the collection already, with the same content", quiet)
    if grown.bad:
        bad, where = _some([entry["id"] for entry in grown.bad]), grown.data.folder / "quarantine.jsonl"
        note(f"warning: {len(grown.bad)} of them could not be used ({bad}): {where}", quiet)
    for run, why in grown.left_out.items():
        note(as_typed(f"{run} is not brought up to date: {why}"), quiet)
