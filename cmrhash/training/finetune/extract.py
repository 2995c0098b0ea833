"""Fine-tune the encoders on the data set, then extract features with them.

Tuned encoders are kept in ``cache/<dataset>/tuned/``, their features beside those of the original encoders.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cmrhash.compute import processes
from cmrhash.config import ExtractConfig, FinetuneConfig, Progress
from cmrhash.data.manifest import keep
from cmrhash.data.view import View
from cmrhash.encoders.image import ImageEncoder
from cmrhash.encoders.pixels import Letterbox
from cmrhash.encoders.text import TextEncoder
from cmrhash.errors import UsageError
from cmrhash.features.extract import Extraction, Opened, extract, open_encoders
from cmrhash.training.finetune.loop import finetune, tuning_method
from cmrhash.training.finetune.tuned import SUFFIX, Tuned


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
    device = processes.device_of(config.device)
    with processes.group(device):
        with processes.first():
            opened = open_encoders(config, progress=progress)
        image, texts = _tunable(opened)
        folder = config.cache / opened.dataset.name
        keep(opened.dataset, folder)
        tuned = finetune(tune, opened.dataset, image, texts, folder, config.dtype, config.overwrite, progress)
        image, texts = tuned.apply(image, texts)
        if tuned.fresh and config.overwrite and not processes.rank():
            encoders = {View.IMAGE: image.name, **{View.text(lang): texts[lang].name for lang in opened.langs}}
            tuned_ones = {view: name for view, name in encoders.items() if name.endswith(SUFFIX)}
            _remove(folder, [view.feature_file(name) for view, name in tuned_ones.items()])
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


def _remove(folder: Path, names: Sequence[str]) -> None:
    """Remove features of the replaced fine-tuning.

    Otherwise a call that resumes this one would stop with StaleError.
    """
    for name in names:
        for path in (folder / name, folder / f"{name}.part"):
            path.unlink(missing_ok=True)
