"""cmrhash index: codes of a trained run -> a vector store."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from cmrhash.config import STORES, IndexConfig
from cmrhash_cli.chosen import (
    Among,
    ImageWeights,
    Offline,
    OneLength,
    OneMethod,
    OneRun,
    RunChoice,
    TextModel,
    by_language,
    note_run,
    open_hasher,
)
from cmrhash_cli.output import (
    CACHE,
    RUNS,
    Cache,
    Dataset,
    Debug,
    Device,
    Json,
    Quiet,
    Relevance,
    Runs,
    note,
    print_json,
    print_table,
    progress_bars,
)
from cmrhash_cli.presets import Config
from cmrhash_cli.typed import command_line

D = IndexConfig


def index(
    collection: Annotated[
        str | None,
        typer.Argument(
            metavar="[COLLECTION]",
            help="With --with: folder or table of a collection, or the name of one in the cache.",
        ),
    ] = None,
    with_run: Annotated[
        str | None,
        typer.Option(
            "--with",
            help="Trained run (folder) or exported run (folder or hub id) whose encoders and heads hash COLLECTION, "
            "which needs no captions.",
        ),
    ] = D.with_run,
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
    embeddings: Annotated[
        bool,
        typer.Option(
            "--embeddings",
            help="Keep the embeddings beside the codes, for whoever searches in the store itself (PostgreSQL only).",
        ),
    ] = D.embeddings,
    among: Among = D.among,
    run: OneRun = None,
    bits: OneLength = None,
    method: OneMethod = None,
    relevance: Relevance = None,
    dataset: Dataset = None,
    image_weights: ImageWeights = D.image_weights,
    text_model: TextModel = None,
    offline: Offline = D.offline,
    device: Device = D.device,
    cache: Cache = CACHE,
    runs: Runs = RUNS,
    config_file: Config = None,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Copy the codes of a trained run into a store, one collection per view (image, each text language).

    With --with, hash another collection by a trained or exported run first, so that its photos can be searched by text.

    cmrhash index holiday --with runs/flickr/tie-ap-32

    cmrhash index --store faiss:/srv/codes --dataset shop

    cmrhash index --store postgresql://me@host/photos --run runs/shop/tie-ap-64
    """
    from cmrhash.errors import UsageError

    if with_run is None and (collection is not None or store is None):
        what = "no --store" if collection is None else f"'{collection}' is given without --with"
        raise UsageError(what, None, f"give {STORES}" if collection is None else "add --with RUN, or leave it out")
    if with_run is not None:
        chosen = {"run": run, "bits": bits, "method": method, "relevance": relevance}
        if odd := [name for name, value in chosen.items() if value is not None]:
            raise UsageError(f"`{odd[0]}` chooses among a collection's own runs", None, "leave it out beside --with")
        where = {"device": device, "offline": offline, "image_weights": image_weights}
        where["text_models"] = by_language(text_model or ())
        run = _apply(with_run, collection or dataset, cache, runs, where, as_json, quiet)
    if store is None:
        return
    from cmrhash.search.publish import deploy
    from cmrhash.search.stores import open_store

    choice = RunChoice(run=run, bits=bits, method=method, relevance=relevance, dataset=dataset, cache=cache, runs=runs)
    with closing(open_store(store)) as target:
        hasher, rule = open_hasher(choice, among=among)
        with progress_bars(quiet) as progress:
            made = deploy(
                hasher.run, hasher.dataset, hasher.views, target, approximate, progress, hasher.among, embeddings
            )
    if as_json:
        collections = [asdict(collection) for collection in made]
        print_json({"store": target.url, "run": str(hasher.run.folder), "collections": collections})
        return
    note_run(hasher, rule, quiet)
    rows = [[one.name, str(one.bits), f"{one.rows:,}"] for one in made]
    print_table(str(hasher.run.folder), ["collection", "bits", "codes"], rows, f"in {target.url}")
    following = command_line("search QUERY", store=target.url, run=hasher.run.folder, cache=cache)
    note(f"next: {following}", quiet)


def _apply(
    source: str,
    collection: str | None,
    cache: Path,
    runs: Path,
    where: Mapping[str, Any],
    as_json: bool,
    quiet: bool,
) -> Path:
    """Hash a collection by another run; return the folder of the run that this makes."""
    from cmrhash.features.dataset import ExtractedDataset
    from cmrhash.search.apply import apply
    from cmrhash.search.hasher import Hasher

    found = collection or ExtractedDataset.open(cache)
    with progress_bars(quiet) as progress:
        run, data = apply(source, found, cache=cache, out=runs, progress=progress, **where)
    hasher = Hasher.open(run, data)
    codes = {str(view): len(codes.codes) for view, codes in hasher.views.items()}
    if as_json:
        print_json({"run": str(run.folder), "dataset": data.name, "codes": codes, "langs": list(hasher.langs)})
        return run.folder
    rows = [[view, f"{count:,}"] for view, count in codes.items()]
    print_table(f"{data.name}, {run.bits} bits", ["view", "codes"], rows, f"in {run.folder}")
    lang = hasher.langs[0] if len(hasher.langs) > 1 else None
    note(f"next: {command_line('search QUERY', run=run.folder, lang=lang, cache=cache)}", quiet)
    return run.folder
