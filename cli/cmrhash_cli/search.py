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
from cmrhash.errors import UsageError
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
from cmrhash_cli.presets import Config
from cmrhash_cli.queries import Asked, answers, print_lines

if TYPE_CHECKING:
    from cmrhash.search.hasher import Hasher
    from cmrhash.search.judge import Judged
    from cmrhash.search.results import Hit

D = SearchConfig


def search(
    query: Annotated[str | None, typer.Argument(help="A sentence, or the path of a photo.")] = None,
    item: Annotated[str | None, typer.Option("--id", help="Item of the data set to use as the query instead.")] = None,
    by: Annotated[
        str, typer.Option(help="With --id and --like: use the item's image, or text for its first caption.")
    ] = D.by,
    photo: Annotated[Path | None, typer.Option("--photo", help="Photo to search by beside the sentence.")] = None,
    like: Annotated[
        list[str] | None, typer.Option("--like", help="Item that the results are like (repeatable).")
    ] = None,
    unlike: Annotated[
        list[str] | None, typer.Option("--unlike", help="Item that the results are not like (repeatable).")
    ] = None,
    queries: Annotated[
        Path | None,
        typer.Option("--queries", help="File with a sentence or photo path per line; prints a JSON line for each."),
    ] = None,
    lang: Annotated[
        str | None,
        typer.Option(
            help="Language of the sentence and of the captions in the results; default: detected from the sentence "
            "(an error if unclear); for a photo, the one with most captions."
        ),
    ] = D.lang,
    to: Annotated[
        str | None, typer.Option(help="Kind of results: image, text or both; default: the other modality.")
    ] = D.to,
    k: Annotated[
        int | None, typer.Option("--k", "-k", help="Number of results; default: 10, with --radius all.")
    ] = D.k,
    radius: Annotated[
        int | None, typer.Option("--radius", help="Only results whose codes differ in at most so many bits.")
    ] = D.radius,
    where: Annotated[
        list[str] | None,
        typer.Option(
            "--where",
            help="Only items that meet the condition: FIELD=VALUE, FIELD!=VALUE, or several with and, or, not; fields: "
            "id, image, label, split, lang; * is a wildcard (repeatable: all must hold).",
        ),
    ] = None,
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
    config_file: Config = None,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Find images by a sentence, captions by a photo, or either by an item of the data set.

    cmrhash search "Vier Motorradfahrer auf einem Feldweg" --lang de

    cmrhash search photo.jpg --lang en --k 5

    cmrhash search --id 17 --by text --to image --html found.html

    cmrhash search "in the snow" --like 17 --unlike 33 --where label=dog

    cmrhash search --queries sentences.txt --lang en --k 5

    cmrhash search "a black dog in the snow" --store postgresql://me@host/photos
    """
    config = SearchConfig(
        lang=lang,
        to=to,
        by=by,
        k=k,
        image_weights=image_weights,
        text_models=tuple(text_model or ()),
        device=device,
        offline=offline,
        store=store,
        probes=probes,
        among=among,
        rank=rank,
        radius=radius,
        where=tuple(where or ()),
    )
    choice = RunChoice(run=run, bits=bits, method=method, relevance=relevance, dataset=dataset, cache=cache, runs=runs)
    if queries is not None:
        if query is not None or photo or item is not None or like or unlike or html:
            raise UsageError("another query, or --html, beside --queries", None, "leave it out")
        _answer(choice, config, queries, quiet)
        return
    asked = Asked.of(query, photo, item, like or (), unlike or ())
    hasher, rule = _open(choice, config)
    with closing(hasher):
        config = replace(config, lang=hasher.understood(lang, asked.text))
        hits = asked.find(hasher, config)
        if html:
            _write_sheet(html, hasher, config, asked, hits)
            note(f"wrote {html}", quiet)
        judged = _judge(hasher, item, hits)
        doubt = hasher.doubt(asked.text, str(config.lang)) if asked.text is not None else None
    note_left_out(hasher, quiet)
    if doubt:
        note(f"warning: {doubt}", quiet)
    _note_direction(hasher, "t" if asked.text is not None or (item is not None and by == "text") else "i", hits, quiet)
    if asked.text is not None or any(hit.modality == "text" for hit in hits):
        _note_borrowed(hasher, str(config.lang), quiet)
    if lang is None and asked.text is None:
        _note_captions(hasher, str(config.lang), hits, quiet or as_json)
    if as_json:
        results = [each.as_json() for each in judged]
        found = {"query": asked.as_json(by), "lang": config.lang, "run": str(hasher.run.folder), "results": results}
        print_json(found)
        return
    note_run(hasher, rule, quiet)
    if not hits:
        note("no results" if radius is None else f"no results within {radius} bits", quiet)
    _print(hasher, judged, item is not None)
    _note_photos(asked, to, hits, quiet)


def _note_photos(asked: Asked, to: str | None, hits: Sequence[Hit], quiet: bool) -> None:
    """Note how a photo finds photos if it found captions, which it does by default."""
    if hits and asked == Asked(photo=asked.photo) and to is None and all(hit.modality == "text" for hit in hits):
        note("captions for a photo; --to image finds similar photos", quiet)


def _note_borrowed(hasher: Hasher, lang: str, quiet: bool) -> None:
    """Warn about a query language that the training did not include."""
    head = hasher.head_of(View.text(lang)).short
    if head != lang:
        note(f"warning: the run was not trained on {lang}; its {head} head is used", quiet)


def _note_captions(hasher: Hasher, lang: str, hits: Sequence[Hit], quiet: bool) -> None:
    """Note which language's captions a query without words found, if there are others."""
    others = [other for other in hasher.langs if other != lang]
    if others and any(hit.modality == "text" for hit in hits):
        note(f"captions in {lang}: --lang chooses another ({', '.join(others)})", quiet)


def _note_direction(hasher: Hasher, source: str, hits: Sequence[Hit], quiet: bool) -> None:
    """Warn about a search in a direction that was not trained. source: "t" for a query text, "i" for a photo."""
    trained = hasher.run.direction
    if trained and any(f"{source}2{hit.modality[0]}" != trained for hit in hits):
        note(f"warning: {hasher.run.folder.name} was trained for {trained} only", quiet)


def _answer(choice: RunChoice, config: SearchConfig, queries: Path, quiet: bool) -> None:
    """Print the results of a file of queries as lines of JSON."""
    hasher, rule = _open(choice, config)
    with closing(hasher):
        print_lines(answers(hasher, config, queries))
        note_run(hasher, rule, quiet or not rule)  # the lines of JSON do not name it
        note_left_out(hasher, quiet)


def _open(choice: RunChoice, config: SearchConfig) -> tuple[Hasher, str]:
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


def _judge(hasher: Hasher, item: str | None, hits: Sequence[Hit]) -> list[Judged]:
    """Results with their relevance to the query item, if the query is an item."""
    from cmrhash.search.judge import judge

    return judge(hasher.dataset, hasher.item(item) if item is not None else None, hits)


def _write_sheet(path: Path, hasher: Hasher, config: SearchConfig, asked: Asked, hits: Sequence[Hit]) -> None:
    from cmrhash.show.answers import Question, found
    from cmrhash.show.html.results import sheet
    from cmrhash.storage.files import write_bytes

    text = str(asked) if asked.is_blend else asked.text
    question = Question(text, None, asked.item, config.by, config.lang, config.to)
    write_bytes(path, sheet(hasher, found(hasher, question, hits, asked.photo)).encode())


def _print(hasher: Hasher, found: Sequence[Judged], by_item: bool) -> None:
    """by_item: the query is an item of the data set, so that relevance is known."""
    hits = [each.hit for each in found]
    caption = f"caption ({hits[0].lang})" if hits else "caption"
    cells: dict[str, list[str]] = {
        "rank": [str(hit.rank) for hit in hits],
        "score": [f"{hit.score:.3f}" for hit in hits],
        "distance": [str(hit.distance) for hit in hits],
        "id": [hit.id for hit in hits],
        "found": [hit.modality for hit in hits],
        **({"relevant": [_verdict(each) for each in found]} if by_item else {}),
        caption: [hit.caption or "" for hit in hits],
        "labels": [_shortened(hit.labels) for hit in hits],
        "image": [hit.image or "" for hit in hits],
    }
    if hits and not hasher.dataset.languages:  # photos alone
        del cells[caption]
    if hits and not hasher.dataset.classes:
        del cells["labels"]
    below = [name for name in ("labels", "image") if name in cells and caption in cells]
    rows = list(zip(*cells.values(), strict=True))
    what = f"{hasher.dataset.name}: nearest by {hasher.run.method}, {hasher.run.bits} bits"
    title = titled(what, {"untrained_encoders": hasher.run.untrained_views})
    lines = [hasher.order] if hits else []
    if any(hit.image for hit in hits):
        lines.append(f"images below {hasher.dataset.root}")
    print_table(title, list(cells), rows, "\n".join(lines), folded=caption, below=below)


def _verdict(judged: Judged) -> str:
    return "itself" if judged.itself else {True: "yes", False: "no", None: "-"}[judged.relevant]


def _shortened(labels: Sequence[str]) -> str:
    """The first three labels; --json has all."""
    return ", ".join(labels[:3]) + (", ..." if labels[3:] else "")
