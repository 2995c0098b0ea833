"""cmrhash search: a sentence, a photo or an item -> the nearest items of the database."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cmrhash.config import SearchConfig
from cmrhash.data.view import View
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
    titled,
)

if TYPE_CHECKING:
    from cmrhash.search.hasher import Hasher
    from cmrhash.search.judge import Judged
    from cmrhash.search.results import Hit

D = SearchConfig
PHOTOS = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")


def search(
    query: Annotated[str | None, typer.Argument(help="A sentence, or the path of a photo.")] = None,
    item: Annotated[str | None, typer.Option("--id", help="Item of the data set to use as the query instead.")] = None,
    by: Annotated[
        str, typer.Option(help="With --id: query by the item's image, or text for its first caption.")
    ] = D.by,
    lang: Annotated[
        str | None,
        typer.Option(
            help="Language of the sentence and of the captions in the results; default: detected from the sentence "
            "(an error if unclear); for a photo, the first language."
        ),
    ] = D.lang,
    to: Annotated[
        str | None, typer.Option(help="Kind of results: image, text or both; default: the other modality.")
    ] = D.to,
    k: Annotated[int, typer.Option("--k", help="Number of results.")] = D.k,
    rank: Rank = D.rank,
    among: Among = D.among,
    store: Annotated[
        str | None,
        typer.Option(help="URL of a store to search in, see cmrhash index.", envvar="CMRHASH_STORE"),
    ] = D.store,
    probes: Annotated[
        int | None,
        typer.Option(help="Lists or candidates to examine in the store's approximate index; 0: exact search."),
    ] = D.probes,
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
    html: Annotated[
        Path | None, typer.Option("--html", help="Also write the results with their photos to this HTML file.")
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Find images by a sentence, captions by a photo, or either by an item of the data set.

    cmrhash search "Vier Motorradfahrer auf einem Feldweg" --lang de

    cmrhash search photo.jpg --lang en --k 5

    cmrhash search --id 17 --by text --to image --html found.html

    cmrhash search "a black dog in the snow" --store postgresql://me@host/photos
    """
    models = tuple(text_model or ())
    config = SearchConfig(
        lang=lang,
        to=to,
        by=by,
        k=k,
        image_weights=image_weights,
        text_models=models,
        device=device,
        offline=offline,
        store=store,
        probes=probes,
        among=among,
        rank=rank,
    )
    from cmrhash.errors import UsageError

    if (query is None) == (item is None):
        raise UsageError(
            "no query" if query is None else "both a query and --id", None, "give one of a sentence, a photo, or --id"
        )
    choice = RunChoice(run=run, bits=bits, method=method, relevance=relevance, dataset=dataset, cache=cache, runs=runs)
    with closing(_open(choice, config)) as hasher:
        sentence = query if query is not None and _photo(query) is None else None
        config = replace(config, lang=hasher.understood(lang, sentence))
        hits = _find(hasher, config, query, item)
        if html:
            _write_sheet(html, hasher, config, query, item, hits)
            note(f"wrote {html}", quiet)
        judged = _judge(hasher, item, hits)
    note_left_out(hasher, quiet)
    if sentence is not None or any(hit.modality == "text" for hit in hits):
        _note_borrowed(hasher, str(config.lang), quiet)
    if as_json:
        results = [each.as_json() for each in judged]
        asked = query or {"id": item, "by": by}
        print_json({"query": asked, "lang": config.lang, "run": str(hasher.run.folder), "results": results})
        return
    note(f"run: {hasher.run.folder}, {hasher.scope}", quiet)
    _print(hasher, judged, item is not None)


def _note_borrowed(hasher: Hasher, lang: str, quiet: bool) -> None:
    """Warn about a query language that the training did not include."""
    head = hasher.head_of(View.text(lang)).short
    if head != lang:
        note(f"warning: the run was not trained on {lang}; its {head} head is used", quiet)


def _open(choice: RunChoice, config: SearchConfig) -> Hasher:
    return open_hasher(
        choice,
        device=config.device,
        image_weights=config.image_weights,
        text_models=config.text_models,
        offline=config.offline,
        store=config.store,
        probes=config.probes,
        among=config.among,
        rank=config.rank,
    )


def _find(hasher: Hasher, config: SearchConfig, query: str | None, item: str | None) -> list[Hit]:
    if item is not None:
        return hasher.search_item(item, by=config.by, lang=config.lang, to=config.to, k=config.k)
    assert query is not None
    return hasher.search(_photo(query) or query, lang=config.lang, to=config.to, k=config.k)


def _judge(hasher: Hasher, item: str | None, hits: Sequence[Hit]) -> list[Judged]:
    """Results with their relevance to the query item, if the query is an item."""
    from cmrhash.search.judge import judge

    return judge(hasher.dataset, hasher.item(item) if item is not None else None, hits)


def _photo(query: str) -> Path | None:
    """Path of a photo given as the query, None for a sentence."""
    path = Path(query)
    named = path.suffix.lower() in PHOTOS or path.is_file() or ("/" in query and path.exists())
    return path if named else None


def _write_sheet(
    path: Path, hasher: Hasher, config: SearchConfig, query: str | None, item: str | None, hits: Sequence[Hit]
) -> None:
    from cmrhash.show.answers import Question, found
    from cmrhash.show.html.results import sheet
    from cmrhash.storage.files import write_bytes

    photo = _photo(query) if query is not None else None
    question = Question(None if photo else query, None, item, config.by, config.lang, config.to, config.k)
    write_bytes(path, sheet(hasher, found(hasher, question, hits, photo)).encode())


def _print(hasher: Hasher, found: Sequence[Judged], by_item: bool) -> None:
    """by_item: the query is an item of the data set, so that relevance is known."""
    hits = [each.hit for each in found]
    caption = f"caption ({hits[0].lang})" if hits else "caption"
    columns = [
        "rank",
        "score",
        "distance",
        "id",
        "found",
        *(["relevant"] if by_item else []),
        caption,
        "labels",
        "image",
    ]
    rows = [
        [
            *(str(h.rank), f"{h.score:.3f}", str(h.distance), h.id, h.modality),
            *([_verdict(each)] if by_item else []),
            *(h.caption or "", _shortened(h.labels), h.image or ""),
        ]
        for each, h in zip(found, hits, strict=True)
    ]
    what = f"{hasher.dataset.name}: nearest by {hasher.run.method}, {hasher.run.bits} bits"
    title = titled(what, {"untrained_encoders": hasher.run.untrained_views})
    where = f"images below {hasher.dataset.root}" if any(h.image for h in hits) else ""
    print_table(title, columns, rows, where, folded=caption)


def _verdict(judged: Judged) -> str:
    return "itself" if judged.itself else {True: "yes", False: "no", None: "-"}[judged.relevant]


def _shortened(labels: Sequence[str]) -> str:
    """The first three labels; --json has all."""
    return ", ".join(labels[:3]) + (", ..." if labels[3:] else "")
