"""The encoders that made feature files, opened again, so that a query is encoded as the database was.

Each kind is imported where one is opened: a sentence does without torchvision, a photo without transformers, and a few
sentences without torch (``light_text_encoder``). device: a name, as in ``ExtractConfig``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cmrhash.config import CUSTOM, LAYERS, RANDOM
from cmrhash.data.items import ImageTextDataset
from cmrhash.encoders.pixels import crop_of
from cmrhash.errors import EncoderError, UsageError
from cmrhash.features.file import FeatureHeader, read_header
from cmrhash.storage.recipes import first_difference

if TYPE_CHECKING:
    from cmrhash.encoders.image import ImageEncoder
    from cmrhash.encoders.numpy_text import NumpyTextEncoder
    from cmrhash.encoders.own import Encoder, OwnEncoder
    from cmrhash.encoders.text import TextEncoder
    from cmrhash.features.captions import CaptionEncoder
    from cmrhash.features.images import PhotoEncoder

OF_SENTENCE = ("modules", "prompt", "include_prompt")  # of directories of sentence-transformers
# what has to agree
SAME = ("encoder", "weights_sha256", "layer", "tokenizer_sha256", "pooling", "max_length", "crop", *OF_SENTENCE)


def image_encoder(
    path: Path,
    device: str,
    weights: str | None = None,
    offline: bool = False,
    own: Encoder[Any] | None = None,
) -> PhotoEncoder:
    """The image encoder of a feature file ``image-<encoder>.h5``. weights: where its weights are now, if they moved.

    own: the encoder of the user's own that made the file.

    Raises EncoderError if they cannot be found or are other ones, UsageError for ready-made features.
    """
    header = made_by(path)
    if own is not None or header.weights == CUSTOM:
        return _own(header, own)
    source = weights or _source(header, '`image_weights="FILE"`')
    return image_from(header.recipe, source, path, device, offline)


def text_encoder(
    path: Path,
    dataset: ImageTextDataset,
    device: str,
    model: str | None = None,
    offline: bool = False,
    own: Encoder[Any] | None = None,
) -> CaptionEncoder:
    """The text encoder of a feature file ``text-<lang>-<encoder>.h5``. model: where it is now, if it moved.

    Raises as ``image_encoder`` does. An untrained one learns its vocabulary on the train captions once more.
    """
    from cmrhash.features.captions import captions_of, load_words, words_path

    header = made_by(path)
    lang = str(header.view.lang)
    if own is not None or header.weights == CUSTOM:
        return _own(header, own)
    if words_path(path).exists():
        return load_words(path)
    source = model or _source(header, f'`text_models=("{lang}=DIR",)`')
    corpus: list[str] = []
    if source == RANDOM:
        item, captions = captions_of(dataset, lang)
        corpus = [text for n, text in zip(item, captions, strict=True) if "train" in dataset.items[n].splits]
    return text_from(header.recipe, source, path, device, offline, corpus)


def text_of_space(
    path: Path,
    device: str,
    model: str | None = None,
    offline: bool = False,
    own: Encoder[Any] | None = None,
) -> CaptionEncoder:
    """The text encoder whose texts lie in the space of an image feature file. model: where it is now, if it moved.

    Raises EncoderError if it cannot be found, is not given (``own``), or its texts lie elsewhere.
    """
    header = made_by(path)
    opened: CaptionEncoder
    if own is not None or header.weights == CUSTOM:
        from cmrhash.encoders.own import OwnEncoder

        if own is None:
            raise _not_given(header, "text")
        opened = OwnEncoder(own, "text")
    else:
        from cmrhash.compute.device import choose_device
        from cmrhash.encoders import packages, text

        source = packages.source_of(header.recipe, model or _source(header, '`text_models=("DIR",)`'))
        opened = text.load(source, device=choose_device(device), dtype=header.recipe["dtype"], offline=offline)
    if opened.recipe.get("space") != header.recipe["space"]:
        what = f"the texts of {opened.source or opened.name} do not lie in the space of these images"
        raise EncoderError(what, path, "give the model that encoded the images")
    return opened


def image_from(recipe: Mapping[str, Any], source: str, made: Path, device: str, offline: bool = False) -> ImageEncoder:
    """The image encoder of a recipe. source: its weights; made: what was made with it, for the message.

    A photo is prepared as the recipe says, whatever torchvision has for such weights: files of weights do not know.
    Raises EncoderError if they cannot be found or are other ones.
    """
    from cmrhash.compute.device import choose_device
    from cmrhash.encoders import image, packages

    source = packages.source_of(recipe, source)
    of_tower = recipe.get("layer") in LAYERS
    encoder = image.load(
        source if of_tower else recipe["encoder"],
        "default" if of_tower else source,
        layer=recipe["layer"] if of_tower else None,
        layers=None if of_tower or "regions" in recipe else recipe.get("layer"),
        mirror=recipe.get("mirror", False),
        device=choose_device(device),
        dtype=recipe["dtype"],
        seed=recipe.get("weights_seed", 0),
        offline=offline,
    )
    encoder.crop = crop_of(recipe["crop"], made)
    encoder.recipe["crop"] = encoder.crop.recipe()
    _refuse_other(recipe, encoder.recipe, made, source)
    return encoder


def text_from(
    recipe: Mapping[str, Any],
    source: str,
    made: Path,
    device: str,
    offline: bool = False,
    corpus: Sequence[str] = (),
) -> TextEncoder:
    """The text encoder of a recipe, likewise. corpus: what an untrained one learns its vocabulary on."""
    from cmrhash.encoders import hub, packages

    source = packages.source_of(recipe, source)
    if not packages.is_named(source):
        hub.refuse_lost(source, "text model")  # before torch is imported
    from cmrhash.compute.device import choose_device
    from cmrhash.encoders import text

    encoder = text.load(
        source,
        pooling=recipe.get("pooling"),  # a tower has a layer instead
        layer=recipe.get("layer"),
        max_length=recipe["max_length"],
        device=choose_device(device),
        dtype=recipe["dtype"],
        seed=recipe.get("weights_seed", 0),
        offline=offline,
        corpus=corpus,
        made=recipe,
    )
    _refuse_other(recipe, encoder.recipe, made, source)
    return encoder


def light_text_encoder(path: Path, device: str, model: str | None = None) -> NumpyTextEncoder | None:
    """The text encoder of a feature file without torch; None where it needs torch, and for words and encoders of the
    user's own, which ``text_encoder`` opens without torch.
    """
    from cmrhash.features.captions import words_path

    header = read_header(path)
    source = model or header.source
    if header.weights == CUSTOM or header.is_ready_made or not source or words_path(path).exists():
        return None
    return light_text_from(header.recipe, _inside(path.parent, header.recipe, source), device)


def light_text_from(recipe: Mapping[str, Any], source: str, device: str) -> NumpyTextEncoder | None:
    """The text encoder of a recipe without torch, likewise; it computes on the CPU alone."""
    from cmrhash.encoders.numpy_text import open_like

    return open_like(recipe, source) if device in ("auto", "cpu") else None


def _own(header: FeatureHeader, encoder: Encoder[Any] | None) -> OwnEncoder:
    """The user's own encoder behind a feature file; raises EncoderError if it is not given, or is another one."""
    from cmrhash.encoders.own import OwnEncoder

    if encoder is None:
        raise _not_given(header, header.view.kind)
    opened = OwnEncoder(encoder, header.view.kind)
    _refuse_other(header.recipe, opened.recipe, header.path, opened.name)
    return opened


def _not_given(header: FeatureHeader, kind: str) -> EncoderError:
    what = f"made by '{header.encoder}', an encoder of your own"
    return EncoderError(what, header.path, f"open the run in Python with `{kind}_encoder=...`")


def made_by(path: Path) -> FeatureHeader:
    """Read the header of a feature file; UsageError for ready-made features, which no encoder makes of a query."""
    header = read_header(path)
    if header.is_ready_made:
        what = "these features are ready-made: no encoder can make the features of a query"
        raise UsageError(what, path, "search by an item of the data set (`item=ID`), or run `extract` with an encoder")
    return header


def _source(header: FeatureHeader, option: str) -> str:
    """Where the weights are, as far as the file knows; tuned ones lie below its own folder."""
    if not header.source:
        raise EncoderError("the location of the encoder's weights is unknown", header.path, f"give {option}")
    return _inside(header.path.parent, header.recipe, header.source)


def _inside(folder: Path, recipe: Mapping[str, Any], source: str) -> str:
    return str(folder / source) if recipe.get("tuned") and (folder / source).exists() else source


def _refuse_other(made: Mapping[str, Any], found: Mapping[str, Any], path: Path, source: str) -> None:
    """A text encoder's name of its architecture may differ: one that was untrained is of a known kind once saved."""
    saved = made["weights"] != found["weights"]
    fields = [field for field in SAME if field in made and not (field == "encoder" and saved)]
    difference = first_difference({f: made[f] for f in fields}, {f: found.get(f) for f in fields})
    if difference:
        field, was, now = difference
        what = f"{path.name} was made with {field} = {was}, but {source} has {now}"
        raise EncoderError(what, path, "give the encoder that made the features, or run `extract` again")
