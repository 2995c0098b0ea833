"""cmrhash index: codes of a trained run -> a vector store."""

from __future__ import annotations

from contextlib import closing
from dataclasses import asdict
from typing import Annotated

import typer

from cmrhash.config import STORES, IndexConfig
from cmrhash_cli.chosen import Among, OneLength, OneMethod, OneRun, RunChoice, open_hasher
from cmrhash_cli.output import (
    CACHE,
    RUNS,
    Cache,
    Dataset,
    Debug,
    Json,
    Quiet,
    Relevance,
    Runs,
    note,
    print_json,
    print_table,
    progress_bars,
)
from cmrhash_cli.typed import command_line

D = IndexConfig


def index(
    store: Annotated[
        str | None,
        typer.Option(
            help=f"Store to write: {STORES}.",
            envvar="CMRHASH_STORE",
        ),
    ] = D.store,
    approximate: Annotated[
        bool | None,
        typer.Option(
            "--approximate/--exact",
            help="Index approximately (faster, less exact); default: only for Faiss folders with millions of codes.",
        ),
    ] = D.approximate,
    among: Among = D.among,
    run: OneRun = None,
    bits: OneLength = None,
    method: OneMethod = None,
    relevance: Relevance = None,
    dataset: Dataset = None,
    cache: Cache = CACHE,
    runs: Runs = RUNS,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Copy the codes of a trained run into a store, one collection per view (image, each text language).

    cmrhash index --store faiss:/srv/codes

    cmrhash index --store postgresql://me@host/photos --run runs/shop/tie-ap-64
    """
    from cmrhash.errors import UsageError

    if store is None:
        raise UsageError("no --store", None, f"give {STORES}")
    from cmrhash.search.publish import deploy
    from cmrhash.search.stores import open_store

    choice = RunChoice(run=run, bits=bits, method=method, relevance=relevance, dataset=dataset, cache=cache, runs=runs)
    with closing(open_store(store)) as target:
        hasher = open_hasher(choice, among=among)
        with progress_bars(quiet) as progress:
            made = deploy(hasher.run, hasher.dataset, hasher.views, target, approximate, progress, among)
    if as_json:
        collections = [asdict(collection) for collection in made]
        print_json({"store": target.url, "run": str(hasher.run.folder), "collections": collections})
        return
    rows = [[one.name, str(one.bits), f"{one.rows:,}"] for one in made]
    print_table(str(hasher.run.folder), ["collection", "bits", "codes"], rows, f"in {target.url}")
    following = command_line("search QUERY", store=target.url, run=hasher.run.folder, among=among)
    note(f"next: {following}", quiet)
