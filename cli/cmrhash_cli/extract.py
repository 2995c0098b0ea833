"""cmrhash extract: images and captions -> feature files."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cmrhash.checks import check_extract, check_finetune
from cmrhash.config import (
    DATASETS,
    MAX_IMAGE_BATCH,
    MAX_IMAGE_SIZE,
    MIN_IMAGE_SIZE,
    PROTOCOLS,
    SAMPLE_DATASET,
    TRAINED_SHARE,
    ExtractConfig,
    FinetuneConfig,
    TrainConfig,
)
from cmrhash.encoders.places import check_places
from cmrhash.errors import UsageError
from cmrhash.training.names import BEST, check_methods
from cmrhash_cli.extract_report import show
from cmrhash_cli.given import given
from cmrhash_cli.groups import TUNING
from cmrhash_cli.output import (
    CACHE,
    Cache,
    Debug,
    Device,
    Json,
    Overwrite,
    Quiet,
    filled,
    not_empty,
    note,
    progress_bars,
)
from cmrhash_cli.presets import Config
from cmrhash_cli.typed import command_line

if TYPE_CHECKING:
    from cmrhash.features.extract import Extraction

D, T = ExtractConfig, FinetuneConfig


def _number_or_file(text: str) -> int | Path:
    """The value of --vocabulary."""
    if not re.fullmatch(r"[-+]?\d+", str(text)):
        return not_empty(text)
    if int(text) < 1:
        raise UsageError(f"{text} is out of range", None, "give a whole number from 1, or a file", option="vocabulary")
    return int(text)


def extract(
    ctx: typer.Context,
    path: Annotated[
        Path | None,
        typer.Argument(
            parser=not_empty,
            help="Folder, table, tar or feature file to read; its layout is recognised from its files.",
        ),
    ] = None,
    dataset: Annotated[
        str, typer.Option(help=f"One of {', '.join(DATASETS)}; default: the layout of PATH, without PATH the sample.")
    ] = D.dataset,
    root: Annotated[
        Path | None,
        typer.Option(parser=not_empty, help="Folder of the data set, or the file of a table or tar."),
    ] = D.root,
    images: Annotated[
        Path | None, typer.Option(help="Folder of the photos that the lists of mat-lists name; default: --root.")
    ] = D.images,
    name: Annotated[
        str | None, typer.Option(help="Folder name in the cache; default: the name of the data set.")
    ] = D.name,
    cache: Cache = CACHE,
    lang: Annotated[list[str] | None, typer.Option(help="Language to extract (repeatable); default: all.")] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="Directory or id of a CLIP, SigLIP, ..., or open_clip:ARCH/PRETRAINED: its towers encode the photos "
            "and the texts."
        ),
    ] = D.model,
    image_model: Annotated[
        str,
        typer.Option(
            help="Any torchvision classifier, fasterrcnn_* for region features, directory or id of a vision model "
            "or dual encoder of transformers, timm:NAME, or open_clip:ARCH/PRETRAINED."
        ),
    ] = D.image_model,
    image_weights: Annotated[
        str | None,
        typer.Option(help="default, the name of a weights enum, a file, or random (the default for the sample)."),
    ] = D.image_weights,
    image_size: Annotated[
        int | None,
        typer.Option(
            min=MIN_IMAGE_SIZE, max=MAX_IMAGE_SIZE, help="Side of a prepared photo; default: the model's own."
        ),
    ] = D.image_size,
    image_layers: Annotated[
        str | None,
        typer.Option(
            help="Layers of a torchvision or timm network whose averaged feature maps are the features, as in "
            "layer3+layer4; default: penultimate."
        ),
    ] = D.image_layers,
    mirror: Annotated[
        bool, typer.Option("--mirror", help="Average the features of a photo and of its mirror image.")
    ] = D.mirror,
    text_model: Annotated[
        list[str] | None,
        typer.Option(
            help="[LANG=]MODEL: directory or id of a BERT-like model or dual encoder, open_clip:ARCH/PRETRAINED, bow, "
            "word2vec, a file of word vectors, random (the default for the sample), or own for features supplied with "
            "the data set (repeatable)."
        ),
    ] = None,
    layer: Annotated[
        str | None,
        typer.Option(
            help="Layer of a transformers tower: projection, pooled, cls or mean; default: projection, else pooled."
        ),
    ] = D.layer,
    pooling: Annotated[
        str | None,
        typer.Option(
            help="How tokens become one vector: mean, cls, max, mean_sqrt_len, weightedmean or lasttoken, or several "
            "joined by +; default: that of modules.json, else mean. For word vectors mean (default), sum, tf-idf, "
            "or sequence (one by one, for a head that is an LSTM)."
        ),
    ] = D.pooling,
    prompt: Annotated[
        str | None,
        typer.Option(help="Name of a prompt of a sentence-transformers directory; default: its default prompt."),
    ] = D.prompt,
    vocabulary: Annotated[
        Path,
        typer.Option(
            parser=_number_or_file,
            help="Bag of words: its size (the most frequent words), or a file of its words, one per line.",
        ),
    ] = D.vocabulary,  # type: ignore[assignment]
    max_length: Annotated[int, typer.Option(min=3, help="Maximum length of a caption, in word pieces.")] = D.max_length,
    image_batch: Annotated[
        int, typer.Option(min=1, max=MAX_IMAGE_BATCH, help="Batch size of the image encoder.")
    ] = D.image_batch,
    device: Device = D.device,
    dtype: Annotated[
        str, typer.Option(help="Number type of the encoders: auto, float32, bfloat16 or float16.")
    ] = D.dtype,
    runtime: Annotated[
        str,
        typer.Option(
            help="Runtime of the encoders: torch, onnx (ONNX Runtime, on the CPU), or auto: that of existing features, "
            "otherwise the faster one by measurement."
        ),
    ] = D.runtime,
    store_dtype: Annotated[
        str, typer.Option(help="Number type of stored features: float32, or float16 with scales in half the space.")
    ] = D.store_dtype,
    seed: Annotated[
        int, typer.Option(min=0, help="Random seed of missing splits, untrained encoders and fine-tuning.")
    ] = D.seed,
    follow_links: Annotated[
        bool, typer.Option("--follow-links", help="Follow symbolic links that lead out of the data set's folder.")
    ] = D.follow_links,
    protocol: Annotated[
        str | None,
        typer.Option(help=f"Published split: {', '.join(PROTOCOLS)}; --query N and --train N change its numbers."),
    ] = D.protocol,
    query_items: Annotated[
        str | None,
        typer.Option(
            "--query", help="Query items: N (drawn from --seed), first:N, last:N, or a file of ids or row numbers."
        ),
    ] = D.query_items,
    train_items: Annotated[str | None, typer.Option("--train", help="Train items, in the same way.")] = D.train_items,
    features: Annotated[
        list[Path] | None,
        typer.Option(
            help="File of precomputed features to use instead of an encoder: .mat, .h5, .npz, .npy or .safetensors "
            "(repeatable)."
        ),
    ] = None,
    maps: Annotated[
        list[str] | None,
        typer.Option(
            "--map",
            help="ROLE[.PART]=[FILE:]ARRAY: role of an array in these files; or, for a table, image=, text.LANG=, "
            "labels=, split= or id=COLUMN (repeatable).",
        ),
    ] = None,
    labels: Annotated[
        list[str] | None,
        typer.Option(help="COLUMN[,COLUMN...]: the columns of a table that are the labels (repeatable)."),
    ] = None,
    labels_from: Annotated[
        str | None, typer.Option(help="folder: the name of the folder in which a photo lies is its label.")
    ] = D.labels_from,
    ids: Annotated[
        Path | None, typer.Option(help="Ids of the rows of feature files: one per line, or an array of strings.")
    ] = D.ids,
    captions: Annotated[
        list[str] | None,
        typer.Option(
            help="[LANG=]FILE: captions of the rows of feature files, to show or to encode: one or several lines per "
            "row, or an array of strings (repeatable)."
        ),
    ] = None,
    added: Annotated[
        str | None,
        typer.Option(
            help="keep or drop: items that cmrhash add brought and the data set lacks; default: stop if there are any."
        ),
    ] = D.added,
    shard: Annotated[
        str | None, typer.Option(help="I/N: process the I-th of N parts; the last process to finish merges them.")
    ] = D.shard,
    max_bad: Annotated[float, typer.Option(min=0, max=1, help="Share of unreadable items to accept.")] = D.max_bad,
    offline: Annotated[bool, typer.Option("--offline", help="Never download weights.")] = D.offline,
    finetune: Annotated[
        bool, typer.Option("--finetune", help="Fine-tune the encoders on this data set first.")
    ] = False,
    method: Annotated[
        str, typer.Option(help="Training method, as in cmrhash train; not a closed-form one.")
    ] = T.method,
    bits: Annotated[int, typer.Option(help="Code length of the temporary hash heads.")] = T.bits,
    epochs: Annotated[int, typer.Option(help="Passes over the training items.")] = T.epochs,
    batch: Annotated[int, typer.Option(help="Batch size (items per step).")] = T.batch,
    lr: Annotated[float, typer.Option(help="Peak learning rate of the hash heads.")] = T.lr,
    image_lr: Annotated[
        float | None,
        typer.Option(
            help=f"Peak learning rate of the image encoder; 0 freezes it; default: --lr, "
            f"times {TRAINED_SHARE} for pretrained weights."
        ),
    ] = T.image_lr,
    text_lr: Annotated[float | None, typer.Option(help="The same for the text encoders.")] = T.text_lr,
    unfreeze: Annotated[
        int | None,
        typer.Option(
            help="Train only the last N blocks of each encoder (stages of a ResNet, layers of a "
            "transformer) and what follows them; default: all."
        ),
    ] = T.unfreeze,
    weight_decay: Annotated[float, typer.Option(help="Weight decay of AdamW.")] = T.weight_decay,
    margin: Annotated[
        float | None,
        typer.Option(
            help=f"Margin of triplet, contrastive, acmr and the like, as a share of the bits; default: "
            f"{TrainConfig.margin}."
        ),
    ] = T.margin,
    clip: Annotated[float, typer.Option(help="Maximum L2 norm of the gradients.")] = T.clip,
    overwrite: Overwrite = D.overwrite,
    config_file: Config = None,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Extract features of images and captions into the cache.

    cmrhash extract

    cmrhash extract PHOTOS --image-weights resnet18.pth --text-model MODEL_DIR

    cmrhash extract --dataset iaprtc12 --root IAPR

    cmrhash extract --dataset manifest --root DIR --image-weights resnet18.pth --text-model MODEL_DIR

    cmrhash extract DIR/captions.csv --map image=filename --map text.de=caption_de

    cmrhash extract TARS --name mine

    cmrhash extract --dataset fashion --root FASHION --labels articleType,baseColour

    cmrhash extract PHOTOS --model CLIP_DIR

    cmrhash extract --dataset iaprtc12 --root IAPR --text-model bow --text-model de=cc.de.300.vec.gz

    cmrhash extract --dataset features --features mirflickr.mat

    cmrhash extract --finetune
    """
    if model is not None and "image_model" in given(ctx):
        what = f"'{model}' is the model of photos and texts, and '{image_model}' is named too"
        raise UsageError(what, None, "leave one of them out", option="model")
    tuned_by = [option for option in given(ctx) if option in TUNING]
    if tuned_by and not finetune:
        what = f"`{tuned_by[0]}` is used only with `finetune=True`"
        raise UsageError(what, None, f"add `finetune`, or leave out `{tuned_by[0]}`")
    tune = filled(FinetuneConfig, ctx.params)
    check_finetune(tune)  # before anything heavy is imported
    check_methods(tune.method)
    lists = {"langs": lang, "text_models": text_model, "features": features, "maps": maps}
    lists |= {"labels": labels, "captions": captions}
    settings = {**ctx.params, **{name: tuple(values or ()) for name, values in lists.items()}}
    if path is not None:
        settings |= _recognised(ctx, path, quiet)
    config = filled(ExtractConfig, settings)
    check_extract(config)
    check_places(config)
    silent = quiet or os.environ.get("RANK", "0") != "0"
    if dataset == SAMPLE_DATASET and root and root.is_dir() and not any(root.iterdir()):
        note(f"{root} is empty: the built-in sample is written there (for other data, use --dataset)", silent)
    note(f"reading {config.root or config.dataset} ...", silent)
    from cmrhash.compute import processes
    from cmrhash.features.extract import extract as run
    from cmrhash.features.extract import refuse_bad

    with progress_bars(quiet or processes.rank() > 0) as progress:
        if finetune:
            from cmrhash.training.finetune.extract import extract_tuned

            report: Extraction = extract_tuned(config, tune, progress)
        else:
            report = run(config, progress)
    if processes.rank():
        return  # one process speaks for all
    show(report, as_json, quiet)
    refuse_bad(report, max_bad)
    _note_next(report, cache, quiet)


def _recognised(ctx: typer.Context, path: Path, quiet: bool) -> dict[str, Any]:
    """Settings for the data set in PATH, by the files in it unless --dataset names its layout."""
    from cmrhash.data.items import root_of
    from cmrhash.data.recognise import recognise

    if ctx.params["root"] is not None:
        raise UsageError("PATH and `root` name the data set twice", None, "leave one of them out")
    if ctx.get_parameter_source("dataset").name != "DEFAULT":  # type: ignore[union-attr]
        return {"root": path}
    layout = recognise(root_of(path, ctx.params["follow_links"]))
    note(f"{path}: recognised as {layout.dataset} by {layout.sign} (another layout: --dataset NAME)", quiet)
    found = {"dataset": layout.dataset, "root": layout.root, "name": ctx.params["name"] or layout.name}
    return found | ({"features": layout.features} if layout.features else {})


def _note_next(report: Extraction, cache: Path, quiet: bool) -> None:
    """Note the next command, or the shards that are still missing."""
    from cmrhash.features.file import read_header

    waiting = [file for file in report.files if file.missing]
    for file in waiting:
        missing = ", ".join(f"{number}/{report.shard.of}" for number in file.missing)
        note(f"{file.path.name.partition('.shard-')[0]} waits for shard {missing}", quiet)
    if waiting:
        note(f"shard {report.shard} is done; the process that finishes last merges the shards", quiet)
    elif not report.dataset.languages and any("space" in read_header(file.path).recipe for file in report.files):
        few = min(read_header(report.files[0].path).dim, report.files[0].ok - 1)
        bits = None if few >= 32 else max(few // 8 * 8, 1)  # itq makes no more bits than there are directions
        following = command_line("train", dataset=report.dataset.name, method="itq", bits=bits, cache=cache)
        note(f"next: {following}", quiet)
    elif not report.dataset.languages:
        following = command_line("index", collection=report.dataset.name, with_run="RUN", cache=cache)
        alone = command_line("train", dataset=report.dataset.name, method="itq", cache=cache)
        note(f"next: {following} (a trained or exported run), or {alone} (photos by photos only)", quiet)
    else:
        method = BEST if report.dataset.relevance == "pairs" else None  # the default looks for labels
        named = {"dataset": report.dataset.name, "method": method, "bits": 32}
        following = command_line("train", **named, encoder=_choice(report), cache=cache)
        if report.changes:
            note(f"to train on the present items: {following} --overwrite", quiet)
        else:
            note(f"next: {following}", quiet)


def _choice(report: Extraction) -> list[str]:
    """Names of this call's encoders, for views that have files of several encoders."""
    chosen = []
    for file in report.files:
        view = file.view
        if len(list(file.path.parent.glob(view.feature_file("*")))) > 1:
            chosen.append(f"{view.short}={view.encoder_of(file.path.name)}")
    return chosen
