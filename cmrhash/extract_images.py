"""Images x an encoder -> one feature file, with the next block's files being decoded meanwhile."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cmrhash.cache import FeatureWriter, read_features, source_digest
from cmrhash.config import ExtractConfig
from cmrhash.data.dataset import ImageTextDataset, ids_digest, resolve_image
from cmrhash.encoders.image import ImageEncoder
from cmrhash.encoders.pixels import BadImage, decode, read_bytes
from cmrhash.extracted import CODE, Extracted, Progress, made_with, refuse_changed, still_good

IMAGE_BLOCK = 256  # images a commit: what a kill can cost, against one fsync
LARGE = 640  # side in pixels above which an eighth of these is a commit: three blocks at a time lie in memory
DECODERS = min(16, (os.cpu_count() or 1) + 1)  # threads; Pillow frees the interpreter lock


def extract_images(
    dataset: ImageTextDataset, encoder: ImageEncoder, folder: Path, config: ExtractConfig, progress: Progress
) -> Extracted:
    """Write ``image-<encoder>.h5``, or find it there; one row an item, zeros and not valid where no image is usable."""
    start, rows = time.monotonic(), len(dataset.items)
    path = folder / f"image-{encoder.name}.h5"
    recipe = {"kind": "image", "code": CODE, "items": ids_digest(dataset), **encoder.recipe}
    files = [resolve_image(dataset.root, item.image) if item.image else None for item in dataset.items]
    with ThreadPoolExecutor(DECODERS) as pool:
        there = still_good(path, recipe, config.overwrite)
        fresh = there is None
        if there is not None:
            refuse_changed(there.source, pool.map(file_digest, files), dataset, path, there.item)
        else:
            item = np.arange(rows, dtype=np.int32)
            ids = tuple(i.id for i in dataset.items)
            commit = max(1, IMAGE_BLOCK // 8) if encoder.crop.size > LARGE else IMAGE_BLOCK
            with FeatureWriter(path, item, ids, encoder.dim, recipe, commit, config.overwrite) as writer:
                for block in sorted(writer.done):  # a photo that changed since is encoded again
                    now = np.stack(list(pool.map(file_digest, files[writer.slice(block)])))
                    if not np.array_equal(writer.committed("source", block), now):
                        writer.done.remove(block)
                _encode_blocks(writer, files, encoder, config.image_batch, pool, progress)
                writer.seal(made_with(encoder.device, batch=config.image_batch, source=encoder.source))
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
        return [pool.submit(load_image, path, encoder) for path in files[writer.slice(block)]]

    todo = [block for block in range(writer.blocks) if block not in writer.done]
    waiting = submit(todo[0]) if todo else []
    try:
        for at, block in enumerate(todo):
            current, waiting = waiting, submit(todo[at + 1]) if at + 1 < len(todo) else []
            yield block, current
    finally:
        for future in waiting:
            future.cancel()


def load_image(path: Path | None, encoder: ImageEncoder) -> Loaded:
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


def file_digest(path: Path | None) -> NDArray[np.uint8]:
    """(16,) uint8 digest of a file's bytes; zeros without a file or if it cannot be read."""
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
