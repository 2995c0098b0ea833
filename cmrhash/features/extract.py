"""Data set x encoders -> the feature cache.

``cache/<dataset>/`` gets ``items.jsonl`` and ``dataset.json`` (the items with their roles), ``image-<encoder>.h5``,
``text-<lang>-<encoder>.h5`` and ``quarantine.jsonl`` (what could not be used, and why). Every item of the data set is
accounted for: items = ok + quarantined, for the images and for each language. Views that the data set brings ready-made
features of need no encoder.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cmrhash.checks import check_extract
from cmrhash.compute import processes
from cmrhash.config import RANDOM, SAMPLE_DATASET, ExtractConfig, Progress
from cmrhash.data.catalog import finished, read_dataset, undone_if_refused
from cmrhash.data.changes import Changes, renewed
from cmrhash.data.cleaning import known_language
from cmrhash.data.items import ImageTextDataset
from cmrhash.data.manifest import QUARANTINE, keep
from cmrhash.data.splits import refuse_empty
from cmrhash.data.view import View
from cmrhash.encoders import hub, names, packages
from cmrhash.encoders.own import Encoder, OwnEncoder
from cmrhash.errors import CmrhashError, DataError, StaleError, UsageError
from cmrhash.features import shards
from cmrhash.features.captions import captions_of, changing_fields, extract_texts, text_recipe
from cmrhash.features.images import extract_images, image_recipe
from cmrhash.features.outcome import Extracted, FeaturePart
from cmrhash.features.precomputed import extract_ready, ready_recipe
from cmrhash.features.replaced import replaced, replacing
from cmrhash.features.runtime import Runtimes
from cmrhash.features.shards import OF_ITEMS, Shard, refuse_other_recipe
from cmrhash.features.text_models import encoders_of, loading, models_of, unused
from cmrhash.storage.files import below, locked, write_bytes

if TYPE_CHECKING:
    from cmrhash.features.captions import CaptionEncoder
    from cmrhash.features.images import PhotoEncoder


@dataclass(frozen=True)
class Opened:
    """A data set, and the encoders of its views; None, or no entry, for ready-made features.

    langs: the languages to extract; image: the image encoder, also None if no item names a photo; texts: language ->
    text encoder; changes: what changed since the data set was extracted before.
    """

    dataset: ImageTextDataset
    langs: list[str]
    image: PhotoEncoder | None
    texts: dict[str, CaptionEncoder]
    changes: Changes = field(default_factory=Changes)

    @property
    def names(self) -> dict[View, str]:
        """Names of the encoders, or of ready-made features, in file names."""
        encoders = {View.IMAGE: self.image, **{View.text(lang): encoder for lang, encoder in self.texts.items()}}
        names = {view: own.name for view, own in self.dataset.ready.items()}
        return names | {view: encoder.name for view, encoder in encoders.items() if encoder is not None}

    def changed(self, change: Callable[[View, Any], Any]) -> Opened:
        """The same with other encoders: change gives the encoder of a view in place of its present one."""
        image = None if self.image is None else change(View.IMAGE, self.image)
        texts = {lang: change(View.text(lang), encoder) for lang, encoder in self.texts.items()}
        return replace(self, image=image, texts=texts)


@dataclass
class Extraction:
    """What ``extract`` did. untrained: some encoder has random weights; shard: what fell to this process; half: the
    half precision that dtype "auto" came to for an encoder, else ""; changes: what changed since the last extraction;
    onnx: views whose encoders ONNX Runtime computes, by their short names.
    """

    dataset: ImageTextDataset
    folder: Path
    files: list[Extracted]
    untrained: bool
    unknown_words: dict[str, float]  # language -> share of words or word pieces outside the vocabulary
    shard: Shard
    half: str
    changes: Changes
    onnx: tuple[str, ...]


def extract(config: ExtractConfig, progress: Progress = lambda *_: None, opened: Opened | None = None) -> Extraction:
    """Read the data set, encode what is not in the cache yet, and say what became of every item.

    opened: the data set and encoders to use, as ``open_encoders`` gives them; None: those that the config names.

    A second call with the same recipe finds everything there; after a kill it goes on where it was. Of a data set that
    has changed since, only what is new or changed is encoded. A file of another recipe is refused with StaleError
    unless ``overwrite``. Of several processes each does a shard of every file; rank 0 reports, the others report no
    files.
    """
    check_extract(config)
    _shard(config)
    with processes.group(processes.device_of(config.device) if processes.world() > 1 else None):
        opened = opened or open_encoders(config, progress=progress)
        for view, name in opened.names.items():
            below(config.cache, opened.dataset.name, view.feature_file(name))
        if not replacing(config, opened.dataset):
            return _extract(config, progress, opened)
        made_of = recipes(opened, config)
        return replaced(config, opened.dataset, made_of, lambda beside: _extract(beside, progress, opened))


def _extract(config: ExtractConfig, progress: Progress, opened: Opened) -> Extraction:
    """Extract into the folder of the cache."""
    shard, meet = _shard(config), processes.meeting()
    dataset = opened.dataset
    folder = config.cache / dataset.name
    opened = _on_runtimes(opened, runtimes := Runtimes(config, folder))
    if not config.overwrite:
        _refuse_other_recipes(opened, folder, config)
    with processes.first():
        opened = opened.changed(runtimes.ready)
    keep(dataset, folder)
    encoded = _encode(opened, folder, config, shard, _labelled(progress, shard))
    meet()
    files = [] if processes.rank() else [one.finish(progress) for one in encoded]
    if processes.world() > 1 and any(file.missing for file in files):
        raise CmrhashError(
            "shards of other processes are missing", folder, "start all processes with the same cache folder"
        )
    _write_quarantine(folder, [file for file in files if not file.missing])
    meet()
    used = [encoder.recipe for encoder in (opened.image, *opened.texts.values()) if encoder]
    untrained = any(recipe["weights"] == RANDOM for recipe in used)
    halves = {recipe.get("dtype", "float32") for recipe in used} - {"float32"} if config.dtype == "auto" else set()
    unknown = {lang: one.unknown_share(captions_of(dataset, lang)[1][:1000]) for lang, one in opened.texts.items()}
    onnx = tuple(view.short for view in runtimes.chosen)
    return Extraction(dataset, folder, files, untrained, unknown, shard, "".join(halves), opened.changes, onnx)


def _shard(config: ExtractConfig) -> Shard:
    """What falls to this process: by ``shard``, or its rank among those that torchrun has started."""
    shard = shards.parse(config.shard)
    if processes.world() == 1:
        return shard
    if config.shard:
        raise UsageError("torchrun gives each process its own shard", None, "leave out `shard`", option="shard")
    return Shard(processes.rank() + 1, processes.world())


def _labelled(progress: Progress, shard: Shard) -> Progress:
    """Says of which shard the figures are, if there are several."""
    return progress if shard.of == 1 else lambda what, *figures: progress(f"{what} of shard {shard}", *figures)


def _encode(opened: Opened, folder: Path, config: ExtractConfig, shard: Shard, progress: Progress) -> list[FeaturePart]:
    """This process's part of every feature file."""
    dataset = opened.dataset

    def images() -> list[FeaturePart]:
        if opened.image is not None:
            return [extract_images(dataset, opened.image, folder, config, shard, progress)]
        ready = [View.IMAGE] if View.IMAGE in dataset.ready else []
        return [extract_ready(dataset, view, folder, config, shard, progress) for view in ready]

    def texts() -> list[FeaturePart]:
        return [
            extract_texts(dataset, lang, opened.texts[lang], folder, config, shard, progress, bool(opened.changes))
            if lang in opened.texts
            else extract_ready(dataset, View.text(lang), folder, config, shard, progress)
            for lang in opened.langs
        ]

    devices = [getattr(encoder, "device", None) for encoder in (opened.image, *opened.texts.values())]
    if all(device is None or device.type == "cpu" for device in devices):
        return [*images(), *texts()]
    # the GPU waits for image decoders most of the time: captions go through it meanwhile
    with ThreadPoolExecutor(1) as pool:
        later = pool.submit(texts)
        return [*images(), *later.result()]


# ---------------------------------------------------------------------------------------------- encoders


def open_encoders(
    config: ExtractConfig,
    dataset: ImageTextDataset | None = None,
    image_encoder: Encoder[Any] | None = None,
    text_encoder: Encoder[Any] | Mapping[str, Encoder[Any]] | None = None,
    progress: Progress = lambda *_: None,
) -> Opened:
    """Read the data set, and load the encoders that the config names, or train them (word2vec).

    dataset: the data set itself, in place of the one that the config names. image_encoder, text_encoder: encoders of
    the user's own, in place of those that the config names; a mapping gives one per language.
    """
    check_extract(config)
    config = _both_towers(config)
    if dataset is not None:
        return _opened(config, finished(dataset, config), image_encoder, text_encoder, progress)
    with undone_if_refused(config):
        return _opened(config, read_dataset(config), image_encoder, text_encoder, progress)


def _opened(
    config: ExtractConfig,
    dataset: ImageTextDataset,
    image_encoder: Encoder[Any] | None,
    text_encoder: Encoder[Any] | Mapping[str, Encoder[Any]] | None,
    progress: Progress,
) -> Opened:
    """The data set with its encoders; see ``open_encoders``."""
    folder = below(config.cache, dataset.name)
    dataset, changes = renewed(dataset, folder, config.overwrite, config.added)
    if changes and (config.shard or processes.world() > 1):
        raise StaleError(f"the data set changed ({changes})", folder, "extract the changes in one process")
    refuse_empty(dataset)
    langs = _languages(dataset, config.langs)
    given = text_encoder if isinstance(text_encoder, Mapping) else dict.fromkeys(langs, text_encoder)
    own = {known_language(lang, langs): OwnEncoder(each, "text") for lang, each in given.items() if each is not None}
    own = {lang: encoder for lang, encoder in own.items() if lang in langs}
    models = models_of(config, langs, dataset.ready, own)
    dataset = replace(dataset, notes=(*dataset.notes, *unused(config, models)))
    _refuse_unread_image_model(config, dataset)
    photos = View.IMAGE not in dataset.ready and any(item.image for item in dataset.items)
    if photos and image_encoder is None:
        names.check_image_model(config.image_model)
    names.check_image_options(config, _lacking(dataset, photos, image_encoder is not None))
    for model in dict.fromkeys(models.values()):
        names.check_text_model(model, config.pooling, config.offline)
    image: PhotoEncoder | None = _image_encoder(config, image_encoder, progress) if photos else None
    if photos and not langs and config.image_model in config.text_models:  # both towers of a dual encoder
        encoders_of(config, dataset, {"": config.image_model})  # refuses one that cannot read sentences later
    texts = {**encoders_of(config, dataset, models, progress), **own}
    used = [encoder.recipe.get("layer") for encoder in (image, *texts.values()) if encoder]
    if config.layer is not None and config.layer not in used:
        fix = "leave it out, or give a transformers model, for example with `model`"
        raise UsageError(f"no encoder has the layer '{config.layer}'", None, fix, option="layer")
    return Opened(dataset, langs, image, texts, changes)


def _both_towers(config: ExtractConfig) -> ExtractConfig:
    """The config with ``model`` as its image and its text model; UsageError if it names another one for either."""
    if config.model is None:
        return config
    named = [option for option in config.text_models if not re.match(r"[A-Za-z0-9_-]+=", option)]
    if config.image_model != ExtractConfig.image_model or named:
        other = named[0] if named else config.image_model
        what = f"'{config.model}' is the model of photos and texts, and '{other}' is named too"
        raise UsageError(what, None, "leave one of them out", option="model")
    packages.refuse_single(config.model, "both")
    if not packages.is_named(config.model):
        from cmrhash.encoders import tower

        tower.refuse_single(config.model, config.offline)
    return replace(config, model=None, image_model=config.model, text_models=(config.model, *config.text_models))


def _on_runtimes(opened: Opened, runtimes: Runtimes) -> Opened:
    """The encoders as they will run, which their recipes name."""
    items = opened.dataset.items

    def choose(view: View, encoder: Any) -> Any:
        rows = len(items) if view.is_image else sum(len(item.texts.get(str(view.lang), ())) for item in items)
        return runtimes.choose(view, encoder, rows)

    return opened.changed(choose)


def _refuse_other_recipes(opened: Opened, folder: Path, config: ExtractConfig) -> None:
    """Raise StaleError for a feature file of another encoder, before anything is written."""
    encoders: list[tuple[View, Any, tuple[str, ...]]] = []
    if opened.image is not None:
        encoders.append((View.IMAGE, opened.image, OF_ITEMS))
    encoders += [(View.text(lang), encoder, changing_fields(encoder)) for lang, encoder in opened.texts.items()]
    made_of = recipes(opened, config)
    for view, encoder, changing in encoders:
        if (path := folder / view.feature_file(encoder.name)).exists():
            refuse_other_recipe(path, made_of[view], changing)


def recipes(opened: Opened, config: ExtractConfig) -> dict[str, dict[str, Any]]:
    """All that determines the features of each view, besides photos and captions."""
    dataset, made_of = opened.dataset, dict[str, dict[str, Any]]()
    for view in (View.IMAGE, *map(View.text, opened.langs)):
        if view in dataset.ready:
            made_of[view] = ready_recipe(dataset, view, config)
    if opened.image is not None:
        made_of[View.IMAGE] = image_recipe(dataset, opened.image, config)
    for lang, encoder in opened.texts.items():
        made_of[View.text(lang)] = text_recipe(dataset, lang, encoder, config)
    return made_of


def _languages(dataset: ImageTextDataset, asked: Sequence[str]) -> list[str]:
    asked = [known_language(lang, dataset.languages) for lang in asked]
    unknown = [lang for lang in asked if lang not in dataset.languages]
    if unknown:
        has = ", ".join(dataset.languages) or "none"
        raise UsageError(f"the data set has no language '{unknown[0]}'", dataset.root, f"it has {has}")
    if not dataset.languages and View.IMAGE not in dataset.ready and not any(item.image for item in dataset.items):
        raise DataError("no item has a photo or a caption", dataset.root, "check `root` and the layout of its files")
    return list(dict.fromkeys(asked)) or list(dataset.languages)


def _refuse_unread_image_model(config: ExtractConfig, dataset: ImageTextDataset) -> None:
    """Raise UsageError for an image model, or its weights, where the images have ready-made features."""
    if View.IMAGE in dataset.ready:
        for option in ("image_model", "image_weights"):
            if (value := getattr(config, option)) != getattr(ExtractConfig, option):
                what = f"'{value}' is not needed, the images have ready-made features"
                raise UsageError(
                    what, None, 'leave it out, or encode the photos with `maps=("image=",)`', option=option
                )


def _lacking(dataset: ImageTextDataset, photos: bool, own: bool) -> str:
    """Why no encoder of cmrhash prepares the photos; "" if one does."""
    if photos:
        return "an encoder of your own prepares the photos" if own else ""
    return "the images have ready-made features" if View.IMAGE in dataset.ready else "no item names a photo"


def _image_encoder(config: ExtractConfig, own: Encoder[Any] | None, progress: Progress) -> PhotoEncoder:
    if own is not None:
        return OwnEncoder(own, "image")
    from cmrhash.encoders import image as image_encoders

    drawn = config.dataset == SAMPLE_DATASET and not hub.names_folder(config.image_model)
    default = RANDOM if drawn else "default"
    with loading(config.image_model, ["images"], progress):
        return image_encoders.load(
            config.image_model,
            default if config.image_weights is None else config.image_weights,
            device=processes.device_of(config.device),
            dtype=config.dtype,
            seed=config.seed,
            offline=config.offline,
            layer=config.layer,
            layers=config.image_layers,
            size=config.image_size,
            mirror=config.mirror,
        )


# ---------------------------------------------------------------------------------------------- what was bad


def _write_quarantine(folder: Path, files: list[Extracted]) -> None:
    """Write the reasons of this call; those of languages that it did not touch stay."""
    if not files:
        return
    path = folder / QUARANTINE
    with locked(path, wait=True):
        before = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        entries = [
            entry for entry in map(json.loads, before) if entry["stage"] not in {file.view.short for file in files}
        ]
        entries += [entry for file in files for entry in file.quarantine]
        lines = (json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries)
        write_bytes(path, (line.encode(errors="backslashreplace") for line in lines))


def refuse_bad(report: Extraction, max_bad: float) -> None:
    """Raise DataError if more of the images, or of a language's captions, are broken than is accepted."""
    for file in report.files:
        if file.broken > max_bad * file.items:
            what = f"{file.broken} of {file.items} items could not be used, more than `max_bad={max_bad:g}`"
            fix = f"the other items are kept; see {report.folder / QUARANTINE} for the reasons"
            raise DataError(what, file.path, fix)
