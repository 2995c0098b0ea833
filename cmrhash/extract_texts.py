"""Captions of one language x an encoder -> one feature file."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cmrhash.cache import FeatureWriter, read_features, source_digest
from cmrhash.config import ExtractConfig
from cmrhash.data.dataset import ImageTextDataset
from cmrhash.encoders.text import TextEncoder
from cmrhash.extracted import CODE, Extracted, Progress, ids_digest, made_with, refuse_changed, still_good

TEXT_BLOCK = 1024  # captions a commit; sorted by length inside a block


def extract_texts(
    dataset: ImageTextDataset,
    lang: str,
    encoder: TextEncoder,
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
            writer.seal(made_with(encoder.device, token_budget=encoder.token_budget))
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


def captions_of(dataset: ImageTextDataset, lang: str) -> tuple[NDArray[np.int32], list[str]]:
    """Every caption in that language: (N,) int32 item of each, and the N captions."""
    rows = [(n, text) for n, item in enumerate(dataset.items) for text in item.texts.get(lang, ())]
    return np.array([n for n, _ in rows], np.int32), [text for _, text in rows]


def _text_reason(lang: str, has_text: bool) -> tuple[str, str]:
    return ("non-finite", "its features were not finite") if has_text else ("no-text", f"no {lang} caption")
