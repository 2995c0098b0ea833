"""cmrhash serve: a page in the browser to search a run's database with."""

from __future__ import annotations

from typing import Annotated

import typer

from cmrhash.config import ServeConfig
from cmrhash_cli.chosen import (
    Among,
    ImageWeights,
    Offline,
    OneLength,
    OneMethod,
    OneRun,
    TextModel,
    by_language,
    chosen_run,
    note_left_out,
)
from cmrhash_cli.output import CACHE, RUNS, Cache, Dataset, Debug, Device, Quiet, Relevance, Runs, note

D = ServeConfig


def serve(
    host: Annotated[str, typer.Option(help="Address to listen on; others than 127.0.0.1 need --i-know.")] = D.host,
    port: Annotated[int, typer.Option(help="Port to listen on; 0: any free one.")] = D.port,
    i_know: Annotated[
        bool,
        typer.Option("--i-know", help="Let others on the network reach the page, by an address with a random token."),
    ] = D.i_know,
    k: Annotated[int, typer.Option("--k", help="How many results to show at first.")] = D.k,
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
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Search in the browser, by sentences, photos and items, and see what is found. Ctrl-C ends it.

    cmrhash serve

    cmrhash serve --run runs/sample/triplet-32 --port 8080
    """
    config = ServeConfig(host, port, i_know, k, image_weights, tuple(text_model or ()), device, offline, among)
    from cmrhash.errors import UsageError
    from cmrhash.search.hasher import Hasher

    try:
        import python_multipart  # noqa: F401  # FastAPI asks for it when it sees a form

        from cmrhash.show.server.server import serve as listen
    except ImportError as missing:
        what = f"cmrhash serve needs {missing.name}, which is not installed"
        raise UsageError(what, None, 'pip install "cmrhash[serve]"') from None
    hasher = Hasher.open(
        *chosen_run(run, bits, method, relevance, dataset, cache, runs),
        device=config.device,
        image_weights=config.image_weights,
        text_models=by_language(config.text_models),
        offline=config.offline,
        among=config.among,
    )
    note(f"run: {hasher.run.folder}, {hasher.scope}; Ctrl-C ends it", quiet)
    note_left_out(hasher, quiet)
    try:
        listen(hasher, config, note)  # the address is no mere note: --quiet or not
    except KeyboardInterrupt:
        note("stopped", quiet)
