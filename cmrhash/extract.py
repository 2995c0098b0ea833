"""Data set x encoders -> the feature cache.

``cache/<dataset>/`` gets ``items.jsonl`` and ``dataset.json`` (the items with their roles), ``image-<encoder>.h5``,
``text-<lang>-<encoder>.h5`` and ``quarantine.jsonl`` (what could not be used, and why). Every item of the data set is
accounted for: items = ok + quarantined, for the images and for each language. Views that the data set brings ready-made
features of need no encoder. Encoders that are tuned first are kept in ``tuned/``, and their features beside those of
the encoders as they were.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch

from cmrhash import ranks
from cmrhash.config import OWN, RANDOM, SAMPLE_DATASET, TEXT_MODELS, ExtractConfig, FinetuneConfig
from cmrhash.data.dataset import ImageTextDataset
from cmrhash.data.manifest import QUARANTINE, keep
from cmrhash.data.readers import read_dataset
from cmrhash.encoders import image as image_encoders
from cmrhash.encoders import text as text_encoders
from cmrhash.encoders import words
from cmrhash.encoders.image import ImageEncoder
from cmrhash.encoders.pixels import Crop
from cmrhash.encoders.text import TextEncoder
from cmrhash.errors import CmrhashError, DataError, UsageError
from cmrhash.extraction import shards
from cmrhash.extraction.extracted import Encoded, Extracted, Progress
from cmrhash.extraction.images import extract_images
from cmrhash.extraction.ready import extract_ready
from cmrhash.extraction.shards import Shard
from cmrhash.extraction.texts import CaptionEncoder, captions_of, extract_texts
from cmrhash.files import locked, write_bytes
from cmrhash.finetune import finetune, tuning_method
from cmrhash.tuned import SUFFIX, Tuned

# data set, languages, the image encoder and those of the languages, but of views with ready-made features
Opened = tuple[ImageTextDataset, list[str], ImageEncoder | None, dict[str, CaptionEncoder]]


@dataclass
class Report:
    """What ``extract`` did. untrained: some encoder has random weights; shard: what fell to this process; tuned: the
    fine-tuning, if asked for; half: the half precision that dtype "auto" came to for an encoder, else "".
    """

    dataset: ImageTextDataset
    folder: Path
    files: list[Extracted]
    untrained: bool
    unknown_words: dict[str, float]  # language -> share of words or word pieces outside the vocabulary
    shard: Shard
    tuned: Tuned | None
    half: str


def extract(config: ExtractConfig, progress: Progress = lambda *_: None, tune: FinetuneConfig | None = None) -> Report:
    """Read the data set, encode what is not in the cache yet, and say what became of every item. tune: train the
    encoders on it first, and extract with what becomes of them.

    A second call with the same recipe finds everything there; after a kill it goes on where it was. A file of
    another recipe, or of photos that have changed since, is refused with StaleError unless ``overwrite``. Of several
    processes each does a shard of every file, as it does of a fine-tuning; rank 0 reports, the others report no files.
    """
    if tune is not None:
        tuning_method(tune)  # refused before anything is read or written
    shard, device = _shard(config, tune), ranks.device_of(config.device)
    with ranks.group(device):
        meet = ranks.meeting()
        tuned, opened = (None, _open(config, device)) if tune is None else _open_tuned(config, device, tune, progress)
        dataset, _, image_encoder, encoders = opened
        folder = config.cache / dataset.name
        encoded = _encode(opened, folder, config, shard, device, _labelled(progress, shard))
        meet()
        files = [] if ranks.rank() else [one.finish(progress) for one in encoded]
        if ranks.world() > 1 and any(file.missing for file in files):
            raise CmrhashError("shards of other processes are not there", folder, "all need the same cache folder")
        _write_quarantine(folder, [file for file in files if not file.missing])
        meet()
    used = [encoder.recipe for encoder in (image_encoder, *encoders.values()) if encoder]
    untrained = any(recipe["weights"] == RANDOM for recipe in used)
    halves = {recipe.get("dtype", "float32") for recipe in used} - {"float32"} if config.dtype == "auto" else set()
    unknown = {lang: one.unknown_share(captions_of(dataset, lang)[1][:1000]) for lang, one in encoders.items()}
    return Report(dataset, folder, files, untrained, unknown, shard, tuned, "".join(halves))


def _shard(config: ExtractConfig, tune: FinetuneConfig | None) -> Shard:
    """What falls to this process: by --shard, or its rank among those that torchrun has started."""
    shard = shards.parse(config.shard)
    if ranks.world() == 1 and tune is None:
        return shard
    if config.shard and tune:
        fix = "tune in one call, then give --image-weights and --text-model of the tuned encoders"
        raise UsageError("--shard with --finetune", None, fix)
    if config.shard and ranks.world() > 1:
        raise UsageError("--shard under torchrun", None, "leave it out: each process does its own shard")
    return Shard(ranks.rank() + 1, ranks.world())


def _labelled(progress: Progress, shard: Shard) -> Progress:
    """Says of which shard the figures are, if there are several."""
    return progress if shard.of == 1 else lambda what, *figures: progress(f"{what} of shard {shard}", *figures)


def _encode(
    opened: Opened, folder: Path, config: ExtractConfig, shard: Shard, device: torch.device, progress: Progress
) -> list[Encoded]:
    """This process's part of every feature file."""
    dataset, langs, image_encoder, encoders = opened

    def images() -> Encoded:
        if image_encoder is None:
            return extract_ready(dataset, "image", folder, config, shard, progress)
        return extract_images(dataset, image_encoder, folder, config, shard, progress)

    def texts() -> list[Encoded]:
        return [
            extract_texts(dataset, lang, encoders[lang], folder, config, shard, progress)
            if lang in encoders
            else extract_ready(dataset, f"text-{lang}", folder, config, shard, progress)
            for lang in langs
        ]

    if device.type == "cpu":
        return [images(), *texts()]
    # the GPU waits for image decoders most of the time: captions go through it meanwhile
    with ThreadPoolExecutor(1) as pool:
        later = pool.submit(texts)
        return [images(), *later.result()]


# ---------------------------------------------------------------------------------------------- encoders


def _open(config: ExtractConfig, device: torch.device) -> Opened:
    """The data set, which the cache now knows, and the encoders that are asked for."""
    dataset = read_dataset(config)
    langs = _languages(dataset, config.langs)
    models = _text_models(config, langs, dataset.ready)
    image_encoder = None if "image" in dataset.ready else _image_encoder(config, device)
    encoders = _text_encoders(config, dataset, models, device)
    return keep(dataset, config.cache / dataset.name, config.overwrite), langs, image_encoder, encoders


def _open_tuned(
    config: ExtractConfig, device: torch.device, tune: FinetuneConfig, progress: Progress
) -> tuple[Tuned, Opened]:
    """Likewise, and the encoders are tuned, by all processes that there are."""
    with ranks.first():
        dataset, langs, image_encoder, encoders = _open(config, device)
    folder = config.cache / dataset.name
    image, texts = _tunable(image_encoder, encoders, langs)
    tuned = finetune(tune, dataset, image, texts, folder, config.dtype, config.overwrite, progress)
    image, texts = tuned.apply(image, texts)
    if tuned.fresh and config.overwrite and not ranks.rank():
        names = [f"image-{image.name}", *(f"text-{lang}-{texts[lang].name}" for lang in langs)]
        _remove(folder, [name for name in names if name.endswith(SUFFIX)])
    return tuned, (dataset, langs, image, dict(texts))


def _languages(dataset: ImageTextDataset, asked: Sequence[str]) -> list[str]:
    unknown = [lang for lang in asked if lang not in dataset.languages]
    if unknown:
        has = ", ".join(dataset.languages) or "none"
        raise UsageError(f"the data set has no language '{unknown[0]}'", dataset.root, f"it has {has}")
    if not dataset.languages:
        raise DataError("no item has a caption", dataset.root, "check --root and the layout it should have")
    return list(dict.fromkeys(asked)) or list(dataset.languages)


def _image_encoder(config: ExtractConfig, device: torch.device) -> ImageEncoder:
    default = RANDOM if config.dataset == SAMPLE_DATASET else "default"
    return image_encoders.load(
        config.image_model,
        default if config.image_weights is None else config.image_weights,
        device=device,
        dtype=config.dtype,
        seed=config.seed,
        offline=config.offline,
    )


def _text_models(config: ExtractConfig, langs: list[str], ready: Collection[str] = ()) -> dict[str, str]:
    """Language -> model, from "[LANG=]MODEL" options, the sample's untrained one, or the built-in table.

    ready: the views that have ready-made features, and so no model.
    """
    given: dict[str, str] = {}
    for option in config.text_models:
        match = re.fullmatch(r"([A-Za-z0-9_-]+)=(.+)", option)
        lang, model = match.groups() if match else ("", option)
        if not model:
            raise UsageError("--text-model without a model", None, "give [LANG=]MODEL, or leave it out")
        if match and lang not in langs:
            raise UsageError(f"--text-model {option}", None, f"the languages are {', '.join(langs)}")
        if match and model != OWN and f"text-{lang}" in ready:
            raise UsageError(f"--text-model {option}", None, f"the {lang} texts have ready-made features: leave it out")
        given[lang] = model
    default = given.get("", RANDOM if config.dataset == SAMPLE_DATASET else None)
    encoded = [lang for lang in langs if f"text-{lang}" not in ready]
    models = {lang: given.get(lang, default or TEXT_MODELS.get(lang, "")) for lang in encoded}
    missing = [lang for lang, model in models.items() if not model]
    if missing:
        raise UsageError(f"no text model for language '{missing[0]}'", None, f"give --text-model {missing[0]}=DIR")
    if lost := [lang for lang, model in models.items() if model == OWN]:
        raise UsageError(f"the data set brings no {lost[0]} features of its own", None, "give a text model")
    return models


def _text_encoders(
    config: ExtractConfig, dataset: ImageTextDataset, models: dict[str, str], device: torch.device
) -> dict[str, CaptionEncoder]:
    """One encoder a language; languages with the same trained transformer share it, and a file is read once."""
    train = {
        lang: [text for item in dataset.items if "train" in item.splits for text in item.texts.get(lang, ())]
        for lang in models
    }
    made: dict[str, CaptionEncoder] = {}
    for model in dict.fromkeys(models.values()):
        langs = [lang for lang in models if models[lang] == model]
        if words.takes(model):
            captions = {lang: captions_of(dataset, lang)[1] for lang in langs}
            made |= words.load(
                model, train, captions, vocabulary=config.vocabulary, pooling=config.pooling, seed=config.seed
            )
            continue
        for shared in [[lang] for lang in langs] if model == RANDOM else [langs]:
            encoder = text_encoders.load(
                model,
                pooling=config.pooling,
                max_length=config.max_length,
                device=device,
                dtype=config.dtype,
                seed=config.seed,
                offline=config.offline,
                corpus=train[shared[0]] if model == RANDOM else (),
            )
            made |= dict.fromkeys(shared, encoder)
    return made


def _tunable(
    image: ImageEncoder | None, texts: dict[str, CaptionEncoder], langs: list[str]
) -> tuple[ImageEncoder, dict[str, TextEncoder]]:
    """The encoders, all of them networks with weights to tune; UsageError names one that is not."""
    if image is None or not isinstance(image.crop, Crop):
        raise UsageError("--finetune needs a classifier as image encoder", None, "choose another --image-model")
    tunable = {lang: encoder for lang, encoder in texts.items() if isinstance(encoder, TextEncoder)}
    for lang in langs:
        if lang not in tunable:
            fix = f"give --text-model {lang}=DIR of a BERT-like model"
            raise UsageError(f"--finetune has nothing to tune in the text features of '{lang}'", None, fix)
    return image, tunable


def _remove(folder: Path, names: Sequence[str]) -> None:
    """Features of the fine-tuning that was replaced: were they still there when this call is cut short, the next one
    could only refuse them, and not go on.
    """
    for name in names:
        for path in (folder / f"{name}.h5", folder / f"{name}.h5.part"):
            path.unlink(missing_ok=True)


# ---------------------------------------------------------------------------------------------- what was bad


def _write_quarantine(folder: Path, files: list[Extracted]) -> None:
    """Write the reasons of this call; those of languages that it did not touch stay."""
    if not files:
        return
    path = folder / QUARANTINE
    with locked(path, wait=True):
        before = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        entries = [entry for entry in map(json.loads, before) if entry["stage"] not in {file.stage for file in files}]
        entries += [entry for file in files for entry in file.quarantine]
        lines = (json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries)
        write_bytes(path, (line.encode(errors="backslashreplace") for line in lines))


def refuse_bad(report: Report, max_bad: float) -> None:
    """Raise DataError if more of the images, or of a language's captions, are broken than is accepted."""
    for file in report.files:
        if file.bad > max_bad * file.items:
            what = f"{file.bad} of {file.items} items could not be used, more than --max-bad {max_bad:g}"
            fix = f"what is good is kept; see {report.folder / QUARANTINE}"
            raise DataError(what, file.path, fix)
