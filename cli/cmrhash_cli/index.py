"""cmrhash index: the codes of a trained run -> a store, where others search them."""

from __future__ import annotations

import shlex
from contextlib import closing
from dataclasses import asdict
from typing import Annotated

import typer

from cmrhash.config import IndexConfig, SearchConfig
from cmrhash_cli.chosen import Among, OneLength, OneMethod, OneRun, chosen_run
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

D = IndexConfig


def index(
    store: Annotated[
        str | None,
        typer.Option(
            help="Where to: faiss:DIR, postgresql://USER@HOST/DATABASE, milvus+http://HOST:PORT or milvus:FILE.",
            envvar="CMRHASH_STORE",
        ),
    ] = D.store,
    approximate: Annotated[
        bool | None,
        typer.Option(
            "--approximate/--exact",
            help="With an index that finds most of the nearest, and sooner; default: only for a folder of millions.",
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
    """Put the codes of a trained run into a store, each of its views as one collection.

    cmrhash index --store faiss:/srv/codes

    cmrhash index --store postgresql://me@host/photos --run runs/shop/tie-ap-64
    """
    from cmrhash.errors import UsageError

    if store is None:
        raise UsageError("no --store", None, "give faiss:DIR, postgresql://..., milvus+http://... or milvus:FILE")
    from cmrhash.search.hasher import Hasher
    from cmrhash.search.publish import deploy
    from cmrhash.search.stores import open_store

    with closing(open_store(store)) as target:
        hasher = Hasher.open(*chosen_run(run, bits, method, relevance, dataset, cache, runs), among=among)
        with progress_bars(quiet) as progress:
            made = deploy(hasher.run, hasher.dataset, hasher.views, target, approximate, progress, among)
    if as_json:
        collections = [asdict(collection) for collection in made]
        print_json({"store": target.url, "run": str(hasher.run.folder), "collections": collections})
        return
    rows = [[one.name, str(one.bits), f"{one.rows:,}"] for one in made]
    print_table(str(hasher.run.folder), ["collection", "bits", "codes"], rows, f"in {target.url}")
    again = f"--store {shlex.quote(target.url)} --run {shlex.quote(str(hasher.run.folder))}"
    again += f" --among {among}" if among != SearchConfig.among else ""
    note(f"next: cmrhash search QUERY {again}", quiet)
