"""Text models of an extraction: one per language, by the options; those that encode nothing; their encoders."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from cmrhash.compute import processes
from cmrhash.config import OWN, RANDOM, SAMPLE_DATASET, TEXT_MODELS, ExtractConfig, Progress
from cmrhash.data.cleaning import known_language
from cmrhash.data.items import ImageTextDataset
from cmrhash.data.view import View
from cmrhash.encoders import bag_and_vectors
from cmrhash.errors import UsageError
from cmrhash.features.captions import captions_of

if TYPE_CHECKING:
    from cmrhash.features.captions import CaptionEncoder

_LEAVE_OUT = "leave it out, or encode the captions with"


def models_of(
    config: ExtractConfig, langs: list[str], ready: Collection[str] = (), own: Collection[str] = ()
) -> dict[str, str]:
    """Language -> model, from "[LANG=]MODEL" options, the sample's untrained one, or the built-in table.

    ready: the views that have ready-made features, own: the languages that have an encoder object, and so no model.
    """
    given: dict[str, str] = {}
    for option in config.text_models:
        match = re.fullmatch(r"([A-Za-z0-9_-]+)=(.+)", option)
        lang, model = match.groups() if match else ("", option)
        if not model:
            raise UsageError("no model is given", None, "give [LANG=]MODEL, or leave it out", option="text_models")
        lang = known_language(lang, langs)
        if match and lang not in langs:
            what = f"'{option}' names an unknown language"
            raise UsageError(what, None, f"the languages are {', '.join(langs)}", option="text_models")
        if match and model != OWN and (View.text(lang) in ready or lang in own):
            what, way = f"'{option}' is not needed, the {lang} texts have ready-made features", f"text.{lang}="
            raise UsageError(what, None, f'{_LEAVE_OUT} `maps=("{way}",)`', option="text_models")
        given[lang] = model
    encoded = [lang for lang in langs if View.text(lang) not in ready and lang not in own]
    if given.get("", OWN) != OWN and langs and not encoded:
        what = f"'{given['']}' is not needed, the texts have ready-made features"
        raise UsageError(what, None, f'{_LEAVE_OUT} `maps=("text=",)`', option="text_models")
    default = given.get("", RANDOM if config.dataset == SAMPLE_DATASET else None)
    models = {lang: given.get(lang, default or TEXT_MODELS.get(lang, "")) for lang in encoded}
    missing = [lang for lang, model in models.items() if not model]
    if missing:
        fix = f'give `text_models=("{missing[0]}=DIR",)`'
        raise UsageError(f"no text model for language '{missing[0]}'", None, fix)
    if lost := [lang for lang, model in models.items() if model == OWN]:
        raise UsageError(f"the data set has no {lost[0]} features of its own", None, "give a text model")
    return models


def unused(config: ExtractConfig, models: Mapping[str, str]) -> list[str]:
    """A line for each given text model that encodes no caption. models: those that do, by language."""
    given = [option for option in config.text_models if option != config.image_model]  # not the towers of `model`
    read = {option: option.partition("=")[2] if re.match(r"[A-Za-z0-9_-]+=", option) else option for option in given}
    why = "every language has another text model" if models else "the photos have no captions to encode"
    idle = [option for option, model in read.items() if model != OWN and model not in models.values()]
    return [f'`text_models=("{option}",)` is not used: {why}' for option in idle]


@contextmanager
def loading(model: str, views: Iterable[str], progress: Progress) -> Iterator[None]:
    """Show which encoder is being loaded. views: what it encodes."""
    what = f"loading {'an untrained encoder' if model == RANDOM else model} for {', '.join(views)}"
    progress(what, 0, 1)
    yield
    progress(what, 1, 1)


def encoders_of(
    config: ExtractConfig, dataset: ImageTextDataset, models: dict[str, str], progress: Progress = lambda *_: None
) -> dict[str, CaptionEncoder]:
    """One encoder a language; languages with the same trained transformer share it, and a file is read once."""
    if isinstance(config.vocabulary, Path) and bag_and_vectors.BOW not in models.values():
        fix = 'add `text_models=("bow",)`'
        raise UsageError(f"no text model is bow, which uses the words of {config.vocabulary}", None, fix)
    if config.prompt is not None and all(bag_and_vectors.takes(model) for model in models.values()):
        fix = "leave it out, or give a directory of sentence-transformers with `text_models`"
        raise UsageError("no text model has prompts", None, fix, option="prompt")
    train = {
        lang: [text for item in dataset.items if "train" in item.splits for text in item.texts.get(lang, ())]
        for lang in models
    }
    made: dict[str, CaptionEncoder] = {}
    for model in dict.fromkeys(models.values()):
        langs = [lang for lang in models if models[lang] == model]
        if bag_and_vectors.takes(model):
            captions = {lang: captions_of(dataset, lang)[1] for lang in langs}
            made |= bag_and_vectors.load(
                model,
                train,
                captions,
                vocabulary=config.vocabulary,
                pooling=config.pooling,
                seed=config.seed,
                progress=progress,
            )
            continue
        from cmrhash.encoders import text as text_encoders

        for shared in [[lang] for lang in langs] if model == RANDOM else [langs]:
            with loading(model, shared, progress):
                encoder = text_encoders.load(
                    model,
                    pooling=config.pooling,
                    prompt=config.prompt,
                    max_length=config.max_length,
                    device=processes.device_of(config.device),
                    dtype=config.dtype,
                    seed=config.seed,
                    offline=config.offline,
                    corpus=train[shared[0]] if model == RANDOM else (),
                    layer=config.layer,
                )
            made |= dict.fromkeys(shared, encoder)
    return made
