"""Data set x encoders -> the feature cache.

``cache/<dataset>/`` gets ``items.jsonl`` and ``dataset.json`` (the items with their roles), ``image-<encoder>.h5``,
``text-<lang>-<encoder>.h5`` and ``quarantine.jsonl`` (what could not be used, and why). Every item of the data set is
accounted for: items = ok + quarantined, for the images and for each language. Encoders that are tuned first are kept in
``tuned/``, and their features beside those of the encoders as they were.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch

from cmrhash.config import RANDOM, SAMPLE_DATASET, TEXT_MODELS, ExtractConfig, FinetuneConfig
from cmrhash.data import read_dataset
from cmrhash.data.dataset import ImageTextDataset
from cmrhash.data.manifest import keep
from cmrhash.device import choose_device
from cmrhash.encoders import image as image_encoders
from cmrhash.encoders import text as text_encoders
from cmrhash.encoders.text import TextEncoder
from cmrhash.errors import DataError, UsageError
from cmrhash.extract_images import extract_images
from cmrhash.extract_texts import captions_of, extract_texts
from cmrhash.extracted import Extracted, Progress
from cmrhash.files import write_bytes
from cmrhash.finetune import finetune, tuning_method
from cmrhash.tuned import SUFFIX, Tuned

QUARANTINE = "quarantine.jsonl"


@dataclass
class Report:
    """What ``extract`` did. untrained: some encoder has random weights; tuned: the fine-tuning, if asked for."""

    dataset: ImageTextDataset
    folder: Path
    files: list[Extracted]
    untrained: bool
    unknown_words: dict[str, float]  # language -> share of word pieces outside the vocabulary
    tuned: Tuned | None = None


def extract(config: ExtractConfig, progress: Progress = lambda *_: None, tune: FinetuneConfig | None = None) -> Report:
    """Read the data set, encode what is not in the cache yet, and say what became of every item. tune: train the
    encoders on it first, and extract with what becomes of them.

    A second call with the same recipe finds everything there; after a kill it goes on where it was. A file of
    another recipe, or of photos that have changed since, is refused with StaleError unless ``overwrite``.
    """
    if tune is not None:
        tuning_method(tune)  # refused before anything is read or written
    dataset = read_dataset(config)
    folder = config.cache / dataset.name
    langs = _languages(dataset, config.langs)
    models = _text_models(config, langs)
    device = choose_device(config.device)
    image_encoder = image_encoders.load(
        config.image_model,
        config.image_weights or (RANDOM if config.dataset == SAMPLE_DATASET else "default"),
        device=device,
        dtype=config.dtype,
        seed=config.seed,
        offline=config.offline,
    )
    encoders = _text_encoders(config, dataset, models, device)
    dataset = keep(dataset, folder, config.overwrite)
    tuned = None
    if tune is not None:
        tuned = finetune(tune, dataset, image_encoder, encoders, folder, config.dtype, config.overwrite, progress)
        image_encoder, encoders = tuned.apply(image_encoder, encoders)
        if tuned.fresh and config.overwrite:
            names = [f"image-{image_encoder.name}", *(f"text-{lang}-{encoders[lang].name}" for lang in langs)]
            _remove(folder, [name for name in names if name.endswith(SUFFIX)])

    def images() -> Extracted:
        return extract_images(dataset, image_encoder, folder, config, progress)

    def texts() -> list[Extracted]:
        return [extract_texts(dataset, lang, encoders[lang], folder, config, progress) for lang in langs]

    if device.type == "cpu":
        files = [images(), *texts()]
    else:  # the GPU waits for image decoders most of the time: captions go through it meanwhile
        with ThreadPoolExecutor(1) as pool:
            later = pool.submit(texts)
            files = [images(), *later.result()]
    _write_quarantine(folder, files)
    recipes = [image_encoder.recipe, *(encoder.recipe for encoder in encoders.values())]
    untrained = any(recipe["weights"] == RANDOM for recipe in recipes)
    unknown = {lang: encoders[lang].unknown_share(captions_of(dataset, lang)[1][:1000]) for lang in langs}
    return Report(dataset, folder, files, untrained, unknown, tuned)


# ---------------------------------------------------------------------------------------------- encoders


def _languages(dataset: ImageTextDataset, asked: Sequence[str]) -> list[str]:
    unknown = [lang for lang in asked if lang not in dataset.languages]
    if unknown:
        has = ", ".join(dataset.languages) or "none"
        raise UsageError(f"the data set has no language '{unknown[0]}'", dataset.root, f"it has {has}")
    if not dataset.languages:
        raise DataError("no item has a caption", dataset.root, "check --root and the layout it should have")
    return list(dict.fromkeys(asked)) or list(dataset.languages)


def _text_models(config: ExtractConfig, langs: list[str]) -> dict[str, str]:
    """Language -> model, from "[LANG=]MODEL" options, the sample's untrained one, or the built-in table."""
    given: dict[str, str] = {}
    for option in config.text_models:
        match = re.fullmatch(r"([A-Za-z0-9_-]+)=(.+)", option)
        lang, model = match.groups() if match else ("", option)
        if match and lang not in langs:
            raise UsageError(f"--text-model {option}", None, f"the languages are {', '.join(langs)}")
        given[lang] = model
    default = given.get("", RANDOM if config.dataset == SAMPLE_DATASET else None)
    models = {lang: given.get(lang, default or TEXT_MODELS.get(lang, "")) for lang in langs}
    missing = [lang for lang, model in models.items() if not model]
    if missing:
        raise UsageError(f"no text model for language '{missing[0]}'", None, f"give --text-model {missing[0]}=DIR")
    return models


def _text_encoders(
    config: ExtractConfig, dataset: ImageTextDataset, models: dict[str, str], device: torch.device
) -> dict[str, TextEncoder]:
    """One encoder a language; languages with the same trained model share it."""
    loaded: dict[str, TextEncoder] = {}
    for lang, model in models.items():
        same = [other for other in loaded if models[other] == model != RANDOM]
        train = [t for item in dataset.items if "train" in item.splits for t in item.texts.get(lang, ())]
        loaded[lang] = (
            loaded[same[0]]
            if same
            else text_encoders.load(
                model,
                pooling=config.pooling,
                max_length=config.max_length,
                device=device,
                dtype=config.dtype,
                seed=config.seed,
                offline=config.offline,
                corpus=train if model == RANDOM else (),
            )
        )
    return loaded


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
    path = folder / QUARANTINE
    before = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    entries = [entry for entry in map(json.loads, before) if entry["stage"] not in {file.stage for file in files}]
    entries += [entry for file in files for entry in file.quarantine]
    lines = [json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries]
    write_bytes(path, "".join(lines).encode(errors="backslashreplace"))


def refuse_bad(report: Report, max_bad: float) -> None:
    """Raise DataError if more of the images, or of a language's captions, are broken than is accepted."""
    for file in report.files:
        if file.bad > max_bad * file.items:
            what = f"{file.bad} of {file.items} items could not be used, more than --max-bad {max_bad:g}"
            fix = f"what is good is kept; see {report.folder / QUARANTINE}"
            raise DataError(what, file.path, fix)
