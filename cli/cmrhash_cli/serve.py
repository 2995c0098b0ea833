"""cmrhash serve: a web page that searches the database of a run."""

from __future__ import annotations

from contextlib import closing
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
    Rank,
    RunChoice,
    TextModel,
    note_left_out,
    note_run,
    open_hasher,
)
from cmrhash_cli.output import CACHE, RUNS, Cache, Dataset, Debug, Device, Quiet, Relevance, Runs, note
from cmrhash_cli.presets import Config

D = ServeConfig


def serve(
    host: Annotated[str, typer.Option(help="Address to listen on; any but 127.0.0.1 needs --i-know.")] = D.host,
    port: Annotated[int, typer.Option(help="Port to listen on; 0: any free one.")] = D.port,
    i_know: Annotated[
        bool,
        typer.Option("--i-know", help="Allow access from the network, through an address with a random token."),
    ] = D.i_know,
    public_url: Annotated[
        str | None,
        typer.Option(help="Address under which a proxy offers the page, such as https://example.org/photos."),
    ] = D.public_url,
    k: Annotated[int, typer.Option("--k", "-k", help="Number of results shown at first.")] = D.k,
    rank: Rank = D.rank,
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
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Serve a web page that searches by sentence, photo or item. Stop it with Ctrl-C.

    cmrhash serve

    cmrhash serve --run runs/sample/triplet-32 --port 8080
    """
    config = ServeConfig(
        host=host,
        port=port,
        i_know=i_know,
        public_url=public_url,
        k=k,
        image_weights=image_weights,
        text_models=tuple(text_model or ()),
        device=device,
        offline=offline,
        among=among,
        rank=rank,
    )
    from cmrhash.errors import UsageError

    if rank == "features":
        what = "the page takes sentences, too, which have no features of photos"
        raise UsageError(what, None, "choose hamming, asymmetric, rerank or rerank:N", option="rank")
    try:
        import python_multipart  # noqa: F401  # FastAPI asks for it when it sees a form

        from cmrhash.show.server.server import open_address
        from cmrhash.show.server.server import serve as listen
    except ImportError as missing:
        what = f"cmrhash serve needs {missing.name}, which is not installed"
        raise UsageError(what, None, 'pip install "cmrhash[serve]"') from None
    opened = open_address(config)  # a port that is taken is reported before the run is opened
    with closing(opened.listening):
        hasher, rule = open_hasher(
            RunChoice(run=run, bits=bits, method=method, relevance=relevance, dataset=dataset, cache=cache, runs=runs),
            device=config.device,
            image_weights=config.image_weights,
            text_models=config.text_models,
            offline=config.offline,
            among=config.among,
            rank=config.rank,
        )
        note_run(hasher, rule, quiet, "; stop with Ctrl-C")
        note_left_out(hasher, quiet)
        try:
            listen(hasher, config, note, opened)  # the address is shown even with --quiet
        except KeyboardInterrupt:
            note("stopped", quiet)
