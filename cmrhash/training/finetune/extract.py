"""Fine-tune the encoders on the data set, then extract features with them.

Tuned encoders are kept in ``cache/<dataset>/tuned/``, their features beside those of the original encoders.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace

from cmrhash.compute import processes
from cmrhash.config import ExtractConfig, FinetuneConfig, Progress
from cmrhash.data.manifest import ABOUT, keep
from cmrhash.encoders.image import ImageEncoder
from cmrhash.encoders.pixels import Letterbox
from cmrhash.encoders.text import TextEncoder
from cmrhash.errors import UsageError
from cmrhash.features.extract import Extraction, Opened, extract, open_encoders, recipes
from cmrhash.features.replaced import replaced, replacing
from cmrhash.training import runs
from cmrhash.training.finetune.loop import finetune, tuning_method
from cmrhash.training.finetune.tuned import Tuned


@dataclass
class TunedExtraction(Extraction):
    """An extraction with tuned encoders, and its fine-tuning."""

    tuned: Tuned


def extract_tuned(config: ExtractConfig, tune: FinetuneConfig, progress: Progress = lambda *_: None) -> TunedExtraction:
    """Fine-tune the encoders, or reuse a finished fine-tuning, then extract features.

    Several processes share every step of the fine-tuning, then each extracts its shard. Raises as ``extract`` and
    ``finetune`` do.
    """
    tuning_method(tune)  # refused before anything is read or written
    if config.shard:
        fix = "tune in one call, then give `image_weights` and `text_models` of the tuned encoders"
        raise UsageError("fine-tuning has no shards", None, fix, option="shard")
    with processes.group(processes.device_of(config.device)):
        with processes.first():
            opened = open_encoders(config, progress=progress)
        _tunable(opened)  # refused before anything is written
        if not (config.overwrite and replacing(config, opened.dataset)):
            return _extract_tuned(config, tune, opened, progress)
        made_of = {**recipes(opened, config), "finetune": asdict(replace(tune, checkpoint_seconds=0))}
        unchanged = [opened]

        def work(beside: ExtractConfig) -> TunedExtraction:
            fresh = unchanged.pop() if unchanged else open_encoders(config, progress=progress)
            return _extract_tuned(beside, tune, fresh, progress)

        done = replaced(config, opened.dataset, made_of, work, lambda done: (f"{runs.TUNED}/{done.tuned.folder.name}",))
        place = config.cache / opened.dataset.name / runs.TUNED / done.tuned.folder.name
        return replace(done, tuned=replace(done.tuned, folder=place))


def _extract_tuned(config: ExtractConfig, tune: FinetuneConfig, opened: Opened, progress: Progress) -> TunedExtraction:
    """Fine-tune and extract into the folder of the cache."""
    image, texts = _tunable(opened)
    folder = config.cache / opened.dataset.name
    if not (folder / ABOUT).exists():
        keep(opened.dataset, folder)
    tuned = finetune(tune, opened.dataset, image, texts, folder, config.dtype, config.overwrite, progress)
    image, texts = tuned.apply(image, texts)
    done = extract(config, progress, replace(opened, image=image, texts=dict(texts)))
    return TunedExtraction(**vars(done), tuned=tuned)


def _tunable(opened: Opened) -> tuple[ImageEncoder, dict[str, TextEncoder]]:
    """Image and text encoders that have weights to tune; raises UsageError for others."""
    if not isinstance(opened.image, ImageEncoder) or isinstance(opened.image.crop, Letterbox):
        what = "fine-tuning needs a classifier, or a model of transformers, timm or open_clip"
        raise UsageError(what, None, "choose another model", option="image_model")
    tunable = {lang: encoder for lang, encoder in opened.texts.items() if isinstance(encoder, TextEncoder)}
    for lang in opened.langs:
        if lang not in tunable:
            fix = f'give a BERT-like model with `text_models=("{lang}=DIR",)`'
            raise UsageError(f"fine-tuning has no network to tune for the '{lang}' texts", None, fix)
    return opened.image, tunable
