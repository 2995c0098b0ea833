"""cmrhash extract: images and captions -> feature cache."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cmrhash.config import DATASETS, ExtractConfig
from cmrhash_cli.output import (
    CACHE,
    Cache,
    Debug,
    Device,
    Json,
    Overwrite,
    Quiet,
    note,
    print_json,
    print_table,
    progress_bars,
)

if TYPE_CHECKING:
    from cmrhash.extract import Report

D = ExtractConfig
ROLES = ("query", "database", "train", "val")
MANY_UNKNOWN = 0.05  # share of unknown words or word pieces from which text model and language hardly match


def extract(
    dataset: Annotated[str, typer.Option(help=f"One of {', '.join(DATASETS)}.")] = D.dataset,
    root: Annotated[Path | None, typer.Option(help="The data set's folder.")] = D.root,
    name: Annotated[
        str | None, typer.Option(help="Name of its folder in the cache; default: the data set's.")
    ] = D.name,
    cache: Cache = CACHE,
    lang: Annotated[list[str] | None, typer.Option(help="Language to extract (repeatable); default: all.")] = None,
    image_model: Annotated[
        str, typer.Option(help="Any torchvision classifier, or fasterrcnn_* for regions.")
    ] = D.image_model,
    image_weights: Annotated[
        str | None,
        typer.Option(help="default, a weights enum's name, a file, or random (the sample's default)."),
    ] = D.image_weights,
    text_model: Annotated[
        list[str] | None,
        typer.Option(
            help="[LANG=]MODEL: directory or id of a BERT-like model, bow, word2vec, a file of word vectors, random "
            "(the sample's default), or own: features that the data set brings along; repeatable."
        ),
    ] = None,
    pooling: Annotated[
        str | None,
        typer.Option(help="Tokens to one vector: mean (default) or cls; of word vectors: mean, sum or tf-idf."),
    ] = D.pooling,
    vocabulary: Annotated[
        int, typer.Option(min=1, help="Words of a bag of words: the most frequent ones.")
    ] = D.vocabulary,
    max_length: Annotated[int, typer.Option(min=3, help="Word pieces a caption at most.")] = D.max_length,
    image_batch: Annotated[int, typer.Option(min=1, help="Images a forward pass.")] = D.image_batch,
    device: Device = D.device,
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = D.dtype,
    seed: Annotated[int, typer.Option(min=0, help="Draws missing splits and untrained encoders.")] = D.seed,
    features: Annotated[
        list[Path] | None,
        typer.Option(help="Ready-made features in place of an encoder: .mat, .h5, .npz or .npy (repeatable)."),
    ] = None,
    maps: Annotated[
        list[str] | None,
        typer.Option("--map", help="ROLE[.PART]=[FILE:]ARRAY: which array of these files is what (repeatable)."),
    ] = None,
    max_bad: Annotated[float, typer.Option(min=0, max=1, help="Share of broken items to accept.")] = D.max_bad,
    offline: Annotated[bool, typer.Option("--offline", help="Never ask the network.")] = D.offline,
    overwrite: Overwrite = D.overwrite,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Encode images and captions once, into the feature cache.

    cmrhash extract

    cmrhash extract --dataset iaprtc12 --root IAPR

    cmrhash extract --dataset manifest --root DIR --image-weights resnet18.pth --text-model MODEL_DIR

    cmrhash extract --dataset iaprtc12 --root IAPR --text-model bow --text-model de=cc.de.300.vec.gz

    cmrhash extract --dataset features --features mirflickr.mat
    """
    config = ExtractConfig(
        dataset,
        root,
        name,
        cache,
        tuple(lang or ()),
        image_model,
        image_weights,
        tuple(text_model or ()),
        pooling,
        vocabulary,
        max_length,
        image_batch,
        device,
        dtype,
        seed,
        tuple(features or ()),
        tuple(maps or ()),
        max_bad,
        offline,
        overwrite,
    )
    note("loading encoders ...", quiet)
    from cmrhash.extract import extract as run
    from cmrhash.extract import refuse_bad

    with progress_bars(quiet) as progress:
        report = run(config, progress)
    _show(report, as_json, quiet)
    refuse_bad(report, max_bad)
    note(f"next: cmrhash train --dataset {report.dataset.name} --bits 32", quiet)


def _show(report: Report, as_json: bool, quiet: bool) -> None:
    if as_json:
        print_json(_as_json(report))
    else:
        rows = [
            [
                file.path.name,
                str(file.rows),
                str(file.items),
                str(file.ok),
                str(len(file.quarantine)),
                f"{file.seconds:.1f} s" if file.fresh else "was there",
            ]
            for file in report.files
        ]
        columns = ["file", "rows", "items", "ok", "quarantined", "time"]
        print_table(f"{report.dataset.name} in {report.folder}", columns, rows)
    for line in _notes(report):
        note(line, quiet)


def _as_json(report: Report) -> dict[str, Any]:
    data = report.dataset
    return {
        "dataset": data.name,
        "items": len(data.items),
        "classes": len(data.classes),
        "found": dict(data.found),
        "splits": {role: data.count(role) for role in ROLES},
        "untrained_encoders": report.untrained,
        "unknown_words": report.unknown_words,
        "files": [
            {
                "file": str(file.path),
                "items": file.items,
                "rows": file.rows,
                "ok": file.ok,
                "quarantined": len(file.quarantine),
                "seconds": round(file.seconds, 3),
                "fresh": file.fresh,
            }
            for file in report.files
        ],
    }


def _notes(report: Report) -> Iterator[str]:
    """What a person should know: what was found and missed, the splits, doubts about the encoders."""
    data = report.dataset
    yield "found: " + ", ".join(f"{count} {what}" for what, count in data.found.items())
    yield "splits: " + ", ".join(f"{data.count(role)} {role}" for role in ROLES) + f" ({data.split})"
    if report.untrained:
        yield "note: untrained encoders; figures made with them show the wiring, not the method"
    for lang, share in report.unknown_words.items():
        if share > MANY_UNKNOWN:
            yield f"warning: {share:.0%} of the {lang} words are unknown to its text model"
    if any(file.quarantine for file in report.files):
        yield f"quarantined items and reasons: {report.folder / 'quarantine.jsonl'}"
