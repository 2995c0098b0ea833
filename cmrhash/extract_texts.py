"""Captions of one language x an encoder -> one feature file; beside it what a word encoder has learned."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cmrhash.cache import FeatureWriter, read_features, read_sealed, source_digest, write_sealed
from cmrhash.config import ExtractConfig
from cmrhash.data.dataset import ImageTextDataset, ids_digest
from cmrhash.encoders.text import TextEncoder
from cmrhash.encoders.words import WordEncoder, rebuild
from cmrhash.errors import DataError
from cmrhash.extracted import CODE, Extracted, Progress, made_with, refuse_changed, still_good
from cmrhash.recipe import refuse_difference
from cmrhash.sealed import read_manifest

TEXT_BLOCK = 1024  # captions a commit; sorted by length inside a block

CaptionEncoder = TextEncoder | WordEncoder


def extract_texts(
    dataset: ImageTextDataset,
    lang: str,
    encoder: CaptionEncoder,
    folder: Path,
    config: ExtractConfig,
    progress: Progress,
) -> Extracted:
    """Write ``text-<lang>-<encoder>.h5``, or find it there; one row a caption, those of an item side by side."""
    start, what = time.monotonic(), f"{lang} texts"
    path = folder / f"text-{lang}-{encoder.name}.h5"
    recipe = {"kind": "text", "lang": lang, "code": CODE, "items": ids_digest(dataset), **encoder.recipe}
    item, captions = captions_of(dataset, lang)
    now = [source_digest(caption.encode()) for caption in captions]
    there = still_good(path, recipe, config.overwrite)
    fresh = there is None
    if there is not None:
        refuse_changed(there.source, iter(now), dataset, path, item)
        if not words_path(path).exists():
            _store_words(path, encoder, recipe)
    else:
        ids = tuple(i.id for i in dataset.items)
        with FeatureWriter(path, item, ids, encoder.dim, recipe, TEXT_BLOCK, config.overwrite) as writer:
            for block in range(writer.blocks):
                rows = writer.slice(block)
                if block in writer.done and np.array_equal(writer.committed("source", block), np.stack(now[rows])):
                    continue
                progress(what, rows.start, writer.rows)
                x = encoder.encode(captions[rows])
                valid = np.asarray(np.isfinite(x).all(1))
                x[~valid] = 0
                writer.commit(block, x, valid, np.stack(now[rows]))
                progress(what, rows.stop, writer.rows)
            _store_words(path, encoder, recipe)
            writer.seal(_made_with(encoder))
        there = read_features(path)
    good = set(there.item[there.valid].tolist())
    quarantine = [
        {"id": i.id, "stage": lang, "code": code, "path": "", "reason": reason}
        for row, i in enumerate(dataset.items)
        if row not in good
        for code, reason in [_text_reason(lang, lang in i.texts)]
    ]
    items = len(dataset.items)
    return Extracted(path, lang, items, len(captions), len(good), time.monotonic() - start, fresh, quarantine)


def words_path(path: Path) -> Path:
    """Where the words of a feature file ``text-<lang>-<encoder>.h5`` are: ``words-<lang>-<encoder>.h5``."""
    return path.with_name("words-" + path.name.removeprefix("text-"))


def load_words(path: Path) -> WordEncoder:
    """The word encoder that made a feature file, as it was, for captions that come later.

    Raises StaleError if the words beside it are those of another one, DataError if it was made by no word encoder.
    """
    recipe = read_manifest(path)["recipe"]
    if not words_path(path).exists():
        raise DataError("no words are kept for this feature file", path, "run cmrhash extract again")
    manifest, arrays = read_sealed(words_path(path))
    refuse_difference(manifest["recipe"], recipe, words_path(path), "word file")
    own = {field: value for field, value in recipe.items() if field not in ("kind", "lang", "code", "items")}
    return rebuild(path.stem.removeprefix(f"text-{recipe['lang']}-"), own, arrays)


def _store_words(path: Path, encoder: CaptionEncoder, recipe: Mapping[str, Any]) -> None:
    if isinstance(encoder, WordEncoder):
        write_sealed(words_path(path), encoder.arrays(), {"kind": "words", "recipe": dict(recipe)})


def _made_with(encoder: CaptionEncoder) -> dict[str, Any]:
    if isinstance(encoder, WordEncoder):
        return made_with(torch.device("cpu"))
    return made_with(encoder.device, token_budget=encoder.token_budget, source=encoder.source)


def captions_of(dataset: ImageTextDataset, lang: str) -> tuple[NDArray[np.int32], list[str]]:
    """Every caption in that language: (N,) int32 item of each, and the N captions."""
    rows = [(n, text) for n, item in enumerate(dataset.items) for text in item.texts.get(lang, ())]
    return np.array([n for n, _ in rows], np.int32), [text for _, text in rows]


def _text_reason(lang: str, has_text: bool) -> tuple[str, str]:
    return ("non-finite", "its features were not finite") if has_text else ("no-text", f"no {lang} caption")
