"""Data set x encoders -> the feature cache.

``cache/<dataset>/`` gets ``items.jsonl`` and ``dataset.json`` (the items with their roles), ``image-<encoder>.h5``,
``text-<lang>-<encoder>.h5`` and ``quarantine.jsonl`` (what could not be used, and why). Every item of the data set is
accounted for: items = ok + quarantined, for the images and for each language.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import re
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cmrhash.cache import Features, FeatureWriter, read_features, source_digest
from cmrhash.config import RANDOM, SAMPLE_DATASET, TEXT_MODELS, ExtractConfig
from cmrhash.data import read_dataset
from cmrhash.data.dataset import ImageTextDataset, resolve_image
from cmrhash.data.manifest import keep
from cmrhash.device import choose_device
from cmrhash.encoders import image as image_encoders
from cmrhash.encoders import text as text_encoders
from cmrhash.encoders.image import ImageEncoder
from cmrhash.encoders.pixels import BadImage, decode, read_bytes
from cmrhash.encoders.text import TextEncoder
from cmrhash.errors import DataError, StaleError, UsageError
from cmrhash.files import write_bytes
from cmrhash.recipe import canonical, refuse_difference

IMAGE_BLOCK = 256  # images a commit: what a kill can cost, against one fsync
TEXT_BLOCK = 1024  # captions a commit; sorted by length inside a block
DECODERS = min(16, (os.cpu_count() or 1) + 1)  # threads; Pillow frees the interpreter lock
QUARANTINE = "quarantine.jsonl"
CODE = 1  # raised when a change of this package changes the features of an unchanged recipe

Progress = Callable[[str, int, int], None]  # (what, done, total)


@dataclass
class Extracted:
    """One feature file as ``extract`` leaves it.

    stage: "image" or the language. items = ok + quarantined. bad: how many of these are broken files or features
    rather than parts that the data set does not have.
    """

    path: Path
    stage: str
    items: int
    rows: int
    ok: int
    seconds: float
    fresh: bool  # False: it was there already
    quarantine: list[dict[str, str]] = field(default_factory=list)

    @property
    def bad(self) -> int:
        """Broken, as opposed to missing."""
        return sum(entry["code"] not in ("no-image", "no-text") for entry in self.quarantine)


@dataclass
class Report:
    """What ``extract`` did. ``untrained``: some encoder has random weights."""

    dataset: ImageTextDataset
    folder: Path
    files: list[Extracted]
    untrained: bool
    unknown_words: dict[str, float]  # language -> share of word pieces outside the vocabulary


def extract(config: ExtractConfig, progress: Progress = lambda *_: None) -> Report:
    """Read the data set, encode what is not in the cache yet, and say what became of every item.

    A second call with the same recipe finds everything there; after a kill it goes on where it was. A file of
    another recipe, or of photos that have changed since, is refused with StaleError unless ``overwrite``.
    """
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

    def images() -> Extracted:
        return _extract_images(dataset, image_encoder, folder, config, progress)

    def texts() -> list[Extracted]:
        return [_extract_texts(dataset, lang, encoders[lang], folder, config, progress) for lang in langs]

    if device.type == "cpu":
        files = [images(), *texts()]
    else:  # the GPU waits for image decoders most of the time: captions go through it meanwhile
        with ThreadPoolExecutor(1) as pool:
            later = pool.submit(texts)
            files = [images(), *later.result()]
    _write_quarantine(folder, files)
    recipes = [image_encoder.recipe, *(encoder.recipe for encoder in encoders.values())]
    untrained = any(recipe["weights"] == RANDOM for recipe in recipes)
    unknown = {lang: encoders[lang].unknown_share(_captions(dataset, lang)[1][:1000]) for lang in langs}
    return Report(dataset, folder, files, untrained, unknown)


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


# ---------------------------------------------------------------------------------------------- images


def _extract_images(
    dataset: ImageTextDataset, encoder: ImageEncoder, folder: Path, config: ExtractConfig, progress: Progress
) -> Extracted:
    start, rows = time.monotonic(), len(dataset.items)
    path = folder / f"image-{encoder.name}.h5"
    recipe = {"kind": "image", "code": CODE, "items": _ids_digest(dataset), **encoder.recipe}
    files = [resolve_image(dataset.root, item.image) if item.image else None for item in dataset.items]
    with ThreadPoolExecutor(DECODERS) as pool:
        there = _still_good(path, recipe, config.overwrite)
        fresh = there is None
        if there is not None:
            _refuse_changed(there.source, pool.map(_file_digest, files), dataset, path, there.item)
        else:
            item = np.arange(rows, dtype=np.int32)
            ids = tuple(i.id for i in dataset.items)
            with FeatureWriter(path, item, ids, encoder.dim, recipe, IMAGE_BLOCK, config.overwrite) as writer:
                for block in sorted(writer.done):  # a photo that changed since is encoded again
                    now = np.stack(list(pool.map(_file_digest, files[writer.slice(block)])))
                    if not np.array_equal(writer.committed("source", block), now):
                        writer.done.remove(block)
                _encode_blocks(writer, files, encoder, config.image_batch, pool, progress)
                writer.seal(_made_with(encoder.device, batch=config.image_batch))
            there = read_features(path)
        quarantine = [
            {"id": dataset.items[row].id, "stage": "image", **_diagnose(files[row])}
            for row in np.flatnonzero(~there.valid)
        ]
    ok = int(there.valid.sum())
    return Extracted(path, "image", rows, rows, ok, time.monotonic() - start, fresh, quarantine)


def _encode_blocks(
    writer: FeatureWriter,
    files: list[Path | None],
    encoder: ImageEncoder,
    batch: int,
    pool: ThreadPoolExecutor,
    progress: Progress,
) -> None:
    """Encode the blocks that are missing, while the images of the next block are decoded."""
    size = encoder.crop.size
    done = sum(writer.slice(b).stop - writer.slice(b).start for b in writer.done)
    progress("images", done, writer.rows)
    for block, loaded in _ahead(pool, encoder, files, writer):
        count = len(loaded)
        # a bad image is a black one here, so that its neighbours meet the same batch as in a clean run
        pixels = np.zeros((-(-count // batch) * batch, size, size, 3), np.uint8)  # (B', S, S, 3)
        source = np.zeros((count, 16), np.uint8)
        valid = np.zeros(count, bool)
        for row, future in enumerate(loaded):
            source[row], image = future.result()
            if image is not None:
                pixels[row], valid[row] = image, True
        x = np.empty((count, encoder.dim), np.float32)
        for first in range(0, count, batch):
            last = min(first + batch, count)
            x[first:last] = encoder.encode(pixels[first : first + batch])[: last - first]
            progress("images", done + last, writer.rows)
        done += count
        valid &= np.isfinite(x).all(1)
        x[~valid] = 0
        writer.commit(block, x, valid, source)


Loaded = tuple[NDArray[np.uint8], NDArray[np.uint8] | None]  # digest of the file, pixels


def _ahead(
    pool: ThreadPoolExecutor, encoder: ImageEncoder, files: list[Path | None], writer: FeatureWriter
) -> Iterator[tuple[int, list[Future[Loaded]]]]:
    """The missing blocks in order, each with the next one's images already being decoded."""

    def submit(block: int) -> list[Future[Loaded]]:
        return [pool.submit(_load_image, path, encoder) for path in files[writer.slice(block)]]

    todo = [block for block in range(writer.blocks) if block not in writer.done]
    waiting = submit(todo[0]) if todo else []
    try:
        for at, block in enumerate(todo):
            current, waiting = waiting, submit(todo[at + 1]) if at + 1 < len(todo) else []
            yield block, current
    finally:
        for future in waiting:
            future.cancel()


def _load_image(path: Path | None, encoder: ImageEncoder) -> Loaded:
    """A file's digest and pixels; zeros without a file, no pixels if it is bad."""
    if path is None:
        return np.zeros(16, np.uint8), None
    try:
        content = read_bytes(path)
    except BadImage:
        return np.zeros(16, np.uint8), None
    try:
        return source_digest(content), encoder.crop(decode(content))
    except BadImage:
        return source_digest(content), None


def _file_digest(path: Path | None) -> NDArray[np.uint8]:
    try:
        return source_digest(read_bytes(path)) if path else np.zeros(16, np.uint8)
    except BadImage:
        return np.zeros(16, np.uint8)


def _diagnose(path: Path | None) -> dict[str, str]:
    """Why an image was not usable; looked at again, so that a resumed run knows the same reasons."""
    if path is None:
        return {"code": "no-image", "path": "", "reason": "the data set names no image"}
    try:
        decode(read_bytes(path))
    except BadImage as bad:
        return {"code": bad.code, "path": str(path), "reason": str(bad)}
    return {
        "code": "non-finite",
        "path": str(path),
        "reason": "its features were not finite, or it changed since",
    }


# ---------------------------------------------------------------------------------------------- captions


def _extract_texts(
    dataset: ImageTextDataset,
    lang: str,
    encoder: TextEncoder,
    folder: Path,
    config: ExtractConfig,
    progress: Progress,
) -> Extracted:
    start, what = time.monotonic(), f"{lang} texts"
    path = folder / f"text-{lang}-{encoder.name}.h5"
    recipe = {"kind": "text", "lang": lang, "code": CODE, "items": _ids_digest(dataset), **encoder.recipe}
    item, captions = _captions(dataset, lang)
    now = [source_digest(caption.encode()) for caption in captions]
    there = _still_good(path, recipe, config.overwrite)
    fresh = there is None
    if there is not None:
        _refuse_changed(there.source, iter(now), dataset, path, item)
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
            writer.seal(_made_with(encoder.device, token_budget=encoder.token_budget))
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


def _captions(dataset: ImageTextDataset, lang: str) -> tuple[NDArray[np.int32], list[str]]:
    """Every caption in that language: (N,) int32 item of each, and the N captions."""
    rows = [(n, text) for n, item in enumerate(dataset.items) for text in item.texts.get(lang, ())]
    return np.array([n for n, _ in rows], np.int32), [text for _, text in rows]


def _text_reason(lang: str, has_text: bool) -> tuple[str, str]:
    return ("non-finite", "its features were not finite") if has_text else ("no-text", f"no {lang} caption")


# ---------------------------------------------------------------------------------------------- shared


def _still_good(path: Path, recipe: dict[str, Any], overwrite: bool) -> Features | None:
    """The finished file if it is there and of this recipe; None if it has to be made."""
    if overwrite or not path.exists():
        return None
    features = read_features(path)
    refuse_difference(features.recipe, recipe, path, "feature file")
    return features


def _refuse_changed(
    before: NDArray[np.uint8],
    now: Iterator[NDArray[np.uint8]],
    dataset: ImageTextDataset,
    path: Path,
    item: NDArray[np.int32],
) -> None:
    """Raise StaleError if a photo or caption is not the one that its features were made from."""
    current = np.stack(list(now)) if len(before) else before
    changed = np.flatnonzero((current != before).any(1))
    if len(changed):
        names = ", ".join(dataset.items[row].id for row in item[changed[:3]])
        what = f"{len(changed)} files or captions changed since they were encoded ({names})"
        raise StaleError(what, path, "use --overwrite to encode anew")


def _ids_digest(dataset: ImageTextDataset) -> str:
    return hashlib.sha256(canonical({"ids": [item.id for item in dataset.items]})).hexdigest()


def _made_with(device: torch.device, **more: Any) -> dict[str, Any]:
    """Versions and device: told in the file, never compared, since they change nothing but last digits."""
    versions = {p: importlib.metadata.version(p) for p in ("cmrhash", "torch", "torchvision", "transformers", "pillow")}
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {**versions, "device": f"{device.type} {name}", **more}


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
