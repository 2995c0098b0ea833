"""Places of the models that a config names, checked before torch is imported."""

from __future__ import annotations

import re
from pathlib import Path

from cmrhash.config import ExtractConfig
from cmrhash.encoders import hub, packages
from cmrhash.errors import EncoderError

WEIGHTS = (".pth", ".pt", ".safetensors", ".bin", ".ckpt")  # endings of files of weights
WORDS = (".txt", ".vec", ".gz", ".bin", ".ftz")  # endings of files of word vectors


def check_places(config: ExtractConfig) -> None:
    """Raise EncoderError for a path without a model or weights, UsageError for a library that is not installed."""
    weights = Path(config.image_weights or "default").expanduser()
    if (weights.suffix in WEIGHTS or len(weights.parts) > 1) and not weights.is_file():
        raise EncoderError("no such weights file", weights, "check the path", option="image_weights")
    texts = [re.sub(r"^[A-Za-z0-9_-]+=", "", option) for option in config.text_models]
    models = [(config.image_model, "vision model"), (config.model or "", "both")]
    kinds = {"vision model": "image model", "both": "dual encoder"}
    for model, given in [*models, *((text, "text model") for text in texts)]:
        if packages.is_named(model):
            packages.find(model)
            packages.refuse_single(model, given)
        elif given != "text model" or (path := Path(model).expanduser()).suffix not in WORDS:
            hub.refuse_lost(model, "text model" if given == "text model" else "vision model")
            if (folder := Path(model).expanduser()).is_dir():
                from cmrhash.encoders.config_file import check_folder  # its imports take a tenth of a second

                check_folder(folder, kinds.get(given, given))
        elif not path.exists():
            raise EncoderError("no such file of word vectors", path, "check the path")
