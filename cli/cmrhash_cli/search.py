"""cmrhash search: a sentence, a photo or an item -> what lies near it in the database."""

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
    TextModel,
    by_language,
    chosen_run,
    note_left_out,
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
    from cmrhash.features.dataset import ExtractedDataset
    from cmrhash.search.hasher import Hasher, Hit
    from cmrhash.search.judge import Judged
    from cmrhash.training.runs import Run

D = SearchConfig
PHOTOS = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")


def search(
    query: Annotated[str | None, typer.Argument(help="A sentence, or the path of a photo.")] = None,
    item: Annotated[str | None, typer.Option("--id", help="Ask by an item of the data set instead.")] = None,
    by: Annotated[str, typer.Option(help="With --id: image, or text for its first caption.")] = D.by,
    lang: Annotated[
        str | None,
        typer.Option(
            help="Language of the sentence and of found captions; default: told by its words (refused where they do "
            "not tell); of captions that a photo finds: the first language."
        ),
    ] = D.lang,
    to: Annotated[str | None, typer.Option(help="image, text or both; default: the other modality.")] = D.to,
    k: Annotated[int, typer.Option("--k", help="How many to show.")] = D.k,
    among: Among = D.among,
    store: Annotated[
        str | None,
        typer.Option(help="Search in the store of this URL, see cmrhash index.", envvar="CMRHASH_STORE"),
    ] = D.store,
    probes: Annotated[
        int | None,
        typer.Option(help="Lists or candidates of the store's approximate index to look at; 0: search exactly."),
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
        Path | None, typer.Option("--html", help="Also write the results with their photos to this file, to look at.")
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
    config = SearchConfig(lang, to, by, k, image_weights, models, device, offline, store, probes, among)
    from cmrhash.errors import UsageError

    if (query is None) == (item is None):
        raise UsageError(
            "nothing to look for" if query is None else "a query and --id", None, "give a sentence, a photo, or --id"
        )
    with closing(_open(config, *chosen_run(run, bits, method, relevance, dataset, cache, runs))) as hasher:
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
    """A language that the training did not see is answered, but not without a word."""
    head = hasher.head_of(View.text(lang)).short
    if head != lang:
        note(f"warning: {lang} goes through the head of {head}, which saw no {lang} in its training", quiet)


def _open(config: SearchConfig, run: Run, data: ExtractedDataset) -> Hasher:
    from cmrhash.search.hasher import Hasher

    return Hasher.open(
        run,
        data,
        device=config.device,
        image_weights=config.image_weights,
        text_models=by_language(config.text_models),
        offline=config.offline,
        store=config.store,
        probes=config.probes,
        among=config.among,
    )


def _find(hasher: Hasher, config: SearchConfig, query: str | None, item: str | None) -> list[Hit]:
    if item is not None:
        return hasher.search_item(item, by=config.by, lang=config.lang, to=config.to, k=config.k)
    assert query is not None
    return hasher.search(_photo(query) or query, lang=config.lang, to=config.to, k=config.k)


def _judge(hasher: Hasher, item: str | None, hits: Sequence[Hit]) -> list[Judged]:
    """Whether each is relevant to the item that was asked by."""
    from cmrhash.search.judge import judge

    return judge(hasher.dataset, hasher.item(item) if item is not None else None, hits)


def _photo(query: str) -> Path | None:
    """The file that a query means, None for a sentence."""
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
    """by_item: an item was asked by, so that it is known who is relevant."""
    hits = [each.hit for each in found]
    caption = f"caption ({hits[0].lang})" if hits else "caption"
    columns = ["rank", "distance", "id", "found", *(["relevant"] if by_item else []), caption, "labels", "image"]
    rows = [
        [
            *(str(h.rank), str(h.distance), h.id, h.modality),
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
    """The first three; --json has all."""
    return ", ".join(labels[:3]) + (", ..." if labels[3:] else "")
