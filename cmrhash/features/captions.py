"""Captions of one language x an encoder -> one feature file; beside it what a word encoder has learned."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cmrhash.config import RANDOM, TORCH, ExtractConfig, Progress
from cmrhash.data.items import ImageTextDataset, ids_digest
from cmrhash.data.view import View, words_file
from cmrhash.encoders.bag_and_vectors import WordEncoder, rebuild
from cmrhash.encoders.own import OwnEncoder
from cmrhash.errors import DataError
from cmrhash.features.file import FeatureWriter, read_header, source_digest
from cmrhash.features.outcome import CODE, OF_DATA, FeaturePart, made_with, storage_of
from cmrhash.features.shards import OF_CORPUS, OF_ITEMS, Shard, Target
from cmrhash.features.stored import StoredEncoder
from cmrhash.storage.files import locked
from cmrhash.storage.hdf5 import read_sealed, write_sealed
from cmrhash.storage.recipes import refuse_difference

if TYPE_CHECKING:
    from cmrhash.encoders.text import TextEncoder

    CaptionEncoder = TextEncoder | WordEncoder | OwnEncoder | StoredEncoder

TEXT_BLOCK = 1024  # captions a commit; sorted by length inside a block
PIECE = 128  # captions a call of an encoder without batches of its own, after which the progress moves


def extract_texts(
    dataset: ImageTextDataset,
    lang: str,
    encoder: CaptionEncoder,
    folder: Path,
    config: ExtractConfig,
    shard: Shard,
    progress: Progress,
    changed: bool = False,
) -> FeaturePart:
    """Write ``text-<lang>-<encoder>.h5``, or find it there; one row a caption, those of an item side by side.

    changed: the data set has changed, and with it the captions that an encoder may learn from.
    """
    start = time.monotonic()
    view = View.text(lang)
    path = folder / view.feature_file(encoder.name)
    recipe = text_recipe(dataset, lang, encoder, config)
    item, captions = captions_of(dataset, lang)

    def now(rows: slice) -> NDArray[np.uint8]:
        return _digests(captions[rows])

    def store_words() -> None:
        if isinstance(encoder, WordEncoder):
            with locked(words_path(path), wait=True):
                write_sealed(words_path(path), encoder.arrays(), {"kind": "words", "recipe": recipe})

    ids = tuple(i.id for i in dataset.items)
    changing = changing_fields(encoder)
    target = Target(path, item, ids, encoder.dim, recipe, TEXT_BLOCK, shard, config.overwrite, now, changing)
    target.outdated = changed and changing == OF_CORPUS
    fresh = not target.found()
    if fresh:
        with target.writer() as writer:
            _encode_blocks(writer, target, encoder, captions, partial(progress, f"{lang} texts"))
            if shard.of == 1:
                store_words()
            target.seal(writer, _made_with(encoder))
    elif target.whole and not words_path(path).exists():
        store_words()

    def reason(n: int) -> dict[str, str]:
        code, words = _text_reason(lang, lang in dataset.items[n].texts)
        return {"code": code, "path": "", "reason": words}

    return FeaturePart(target, view, time.monotonic() - start, fresh, reason, store_words)


def _digests(captions: list[str]) -> NDArray[np.uint8]:
    return np.stack([source_digest(caption.encode()) for caption in captions])


def _encode_blocks(
    writer: FeatureWriter, target: Target, encoder: CaptionEncoder, captions: list[str], progress: Progress
) -> None:
    """Encode the blocks that are missing; rows whose captions the outdated file knows are copied from there."""
    for block in range(writer.blocks):
        if block in writer.done:
            continue
        rows = target.rows_of(block)
        done = rows.start - target.rows.start
        progress(done, writer.rows)
        source = _digests(captions[rows])
        x, valid, known = target.reuse(source)
        todo = np.flatnonzero(~known)
        for some, features in _batches_of(encoder, [captions[rows.start + row] for row in todo]):
            progress(done + int(known.sum()), writer.rows)
            x[todo[some]], known[todo[some]] = features, True
        valid[todo] = np.isfinite(x[todo]).all(1)
        x[~valid] = 0
        writer.commit(block, x, valid, source)
        progress(rows.stop - target.rows.start, writer.rows)


def _batches_of(
    encoder: CaptionEncoder, captions: list[str]
) -> Iterator[tuple[list[int] | slice, NDArray[np.float32]]]:
    """Features of captions as they are ready: rows and their features."""
    own = encoder.encoder if isinstance(encoder, StoredEncoder) else encoder
    if hasattr(own, "encode_batches"):
        yield from own.encode_batches(captions)
        return
    for start in range(0, len(captions), PIECE):
        some = slice(start, start + PIECE)
        yield some, encoder.encode(captions[some])


def text_recipe(dataset: ImageTextDataset, lang: str, encoder: CaptionEncoder, config: ExtractConfig) -> dict[str, Any]:
    """All that determines the features of a language."""
    of_data = {"kind": "text", "lang": lang, "code": CODE, "items": ids_digest(dataset), **storage_of(config)}
    return {**of_data, **encoder.recipe}


def changing_fields(encoder: CaptionEncoder) -> tuple[str, ...]:
    """Fields of the recipe that change with the items: more of them if the encoder learns from the captions."""
    learns = isinstance(encoder, WordEncoder) or encoder.recipe["weights"] == RANDOM
    return OF_CORPUS if learns else OF_ITEMS


def words_path(path: Path) -> Path:
    """Where the words of a feature file ``text-<lang>-<encoder>.h5`` are: ``words-<lang>-<encoder>.h5``."""
    return path.with_name(words_file(path.name))


def load_words(path: Path) -> WordEncoder:
    """The word encoder that made a feature file, as it was, for captions that come later.

    Raises StaleError if the words beside it are those of another one, DataError if it was made by no word encoder.
    """
    header = read_header(path)
    if not words_path(path).exists():
        raise DataError("the words of this feature file are missing", path, "run `extract` again")
    manifest, arrays = read_sealed(words_path(path))
    refuse_difference(manifest["recipe"], header.recipe, words_path(path), "word file")
    own = {field: value for field, value in header.recipe.items() if field not in OF_DATA}
    return rebuild(header.encoder, own, arrays)


def _made_with(encoder: CaptionEncoder) -> dict[str, Any]:
    if isinstance(encoder, StoredEncoder):
        return encoder.made_with()
    if isinstance(encoder, (WordEncoder, OwnEncoder)):
        return made_with()
    runtime = encoder.recipe.get("runtime", TORCH)
    return made_with(encoder.device, runtime, token_budget=encoder.token_budget, source=encoder.source)


def captions_of(dataset: ImageTextDataset, lang: str) -> tuple[NDArray[np.int32], list[str]]:
    """Every caption in that language: (N,) int32 item of each, and the N captions."""
    counts = [len(item.texts.get(lang, ())) for item in dataset.items]
    captions = [text for item in dataset.items for text in item.texts.get(lang, ())]
    return np.repeat(np.arange(len(counts), dtype=np.int32), counts), captions


def _text_reason(lang: str, has_text: bool) -> tuple[str, str]:
    return ("non-finite", "its features were not finite") if has_text else ("no-text", f"no {lang} caption")
