"""Images x an encoder -> one feature file, with the next block's files being decoded meanwhile."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cmrhash.config import TORCH, ExtractConfig, Progress
from cmrhash.data.items import ImageTextDataset, ids_digest
from cmrhash.data.photo_files import PhotoFile, find_photo
from cmrhash.data.view import View
from cmrhash.encoders.pixels import BadImage, decode
from cmrhash.features.file import FeatureWriter, source_digest
from cmrhash.features.outcome import CODE, FeaturePart, made_with, storage_of
from cmrhash.features.photos import bytes_of
from cmrhash.features.shards import Shard, Target
from cmrhash.features.stored import StoredEncoder

if TYPE_CHECKING:
    from cmrhash.encoders.image import ImageEncoder
    from cmrhash.encoders.own import OwnEncoder

    PhotoEncoder = ImageEncoder | OwnEncoder | StoredEncoder

IMAGE_BLOCK = 256  # images a commit: what a kill can cost, against one fsync
LARGE = 640  # side in pixels above which an eighth of these is a commit: three blocks at a time lie in memory
DECODERS = min(16, (os.cpu_count() or 1) + 1)  # threads; Pillow frees the interpreter lock


def extract_images(
    dataset: ImageTextDataset,
    encoder: PhotoEncoder,
    folder: Path,
    config: ExtractConfig,
    shard: Shard,
    progress: Progress,
) -> FeaturePart:
    """Write ``image-<encoder>.h5``, or find it there; one row an item, zeros and not valid where no image is usable."""
    start = time.monotonic()
    path = folder / View.IMAGE.feature_file(encoder.name)
    recipe = image_recipe(dataset, encoder, config)
    item, ids = np.arange(len(dataset.items), dtype=np.int32), tuple(i.id for i in dataset.items)
    commit = max(1, IMAGE_BLOCK // 8) if encoder.crop.size > LARGE else IMAGE_BLOCK

    known = encoder.sources if isinstance(encoder, StoredEncoder) else {}

    def photo(row: int) -> PhotoFile | None:
        image = dataset.items[row].image
        return find_photo(dataset.root, image) if image else None

    def files(rows: slice) -> list[Place]:
        return [known.get(ids[row]) or photo(row) for row in range(len(ids))[rows]]

    def now(rows: slice) -> NDArray[np.uint8]:
        return np.stack(list(pool.map(photo_digest, files(rows))))

    with ThreadPoolExecutor(DECODERS) as pool:
        target = Target(path, item, ids, encoder.dim, recipe, commit, shard, config.overwrite, now)
        fresh = not target.found()
        if fresh:
            if target.outdated:
                places = zip(ids, files(slice(None)), strict=True)
                target.refuse_gone(i for i, place in places if isinstance(place, PhotoFile) and not place.path.exists())
            with target.writer() as writer:
                loaded = _ahead(pool, encoder, lambda block: files(target.rows_of(block)), writer, target)
                _encode_blocks(writer, loaded, encoder, config.image_batch, target, progress)
                target.seal(writer, _made_with(encoder, config.image_batch))
    seconds = time.monotonic() - start
    return FeaturePart(target, View.IMAGE, seconds, fresh, lambda n: _diagnose(photo(n)))


def _made_with(encoder: PhotoEncoder, batch: int) -> dict[str, Any]:
    if isinstance(encoder, StoredEncoder):
        return encoder.made_with()
    return made_with(encoder.device, encoder.recipe.get("runtime", TORCH), batch=batch, source=encoder.source)


def image_recipe(dataset: ImageTextDataset, encoder: PhotoEncoder, config: ExtractConfig) -> dict[str, Any]:
    """All that determines the features of the photos, besides the photos."""
    of_data = {"kind": View.IMAGE.kind, "code": CODE, "items": ids_digest(dataset), **storage_of(config)}
    return {**of_data, **encoder.recipe}


def _encode_blocks(
    writer: FeatureWriter,
    blocks: Iterator[Block],
    encoder: PhotoEncoder,
    batch: int,
    target: Target,
    progress: Progress,
) -> None:
    """Encode the blocks that are missing, while the images of the next block are decoded.

    Rows whose photos the outdated file of the target knows are copied from there.
    """
    size = encoder.crop.size
    done = sum(writer.slice(b).stop - writer.slice(b).start for b in writer.done)
    progress("images", done, writer.rows)
    for block, loaded in blocks:
        source = np.stack([future.result()[0] for future in loaded])
        x, valid, known = target.reuse(source)
        todo = np.flatnonzero(~known)
        # a bad image is a black one here, so that its neighbours meet the same batch as in a clean run
        pixels = np.zeros((-(-len(todo) // batch) * batch, size, size, 3), np.uint8)  # (B', S, S, 3)
        for place, row in enumerate(todo):
            image = loaded[row].result()[1]
            if image is not None:
                pixels[place], valid[row] = image, True
        for first in range(0, len(todo), batch):
            rows = todo[first : first + batch]
            if valid[rows].any():
                x[rows] = encoder.encode(pixels[first : first + batch])[: len(rows)]
            progress("images", done + int(rows[-1]) + 1, writer.rows)
        done += len(loaded)
        if known.any():
            progress("images", done, writer.rows)
        valid &= np.isfinite(x).all(1)
        x[~valid] = 0
        writer.commit(block, x, valid, source)


Place = PhotoFile | bytes | None  # of a photo, or the digest of one that was encoded before
Loaded = tuple[NDArray[np.uint8], NDArray[np.uint8] | None]  # digest of the file, pixels
Block = tuple[int, list[Future[Loaded]]]  # its number, its images


def _ahead(
    pool: ThreadPoolExecutor,
    encoder: PhotoEncoder,
    files: Callable[[int], list[Place]],
    writer: FeatureWriter,
    target: Target,
) -> Iterator[Block]:
    """The missing blocks in order, each with the next one's images already being decoded."""

    def submit(block: int) -> list[Future[Loaded]]:
        return [pool.submit(load_image, photo, encoder, target.known) for photo in files(block)]

    todo = [block for block in range(writer.blocks) if block not in writer.done]
    waiting = submit(todo[0]) if todo else []
    try:
        for at, block in enumerate(todo):
            current, waiting = waiting, submit(todo[at + 1]) if at + 1 < len(todo) else []
            yield block, current
    finally:
        for future in waiting:
            future.cancel()


def load_image(
    photo: Place, encoder: PhotoEncoder, known: Callable[[NDArray[np.uint8]], bool] = lambda _: False
) -> Loaded:
    """A photo's digest and pixels; zeros without a photo, no pixels if it is bad or its digest is known."""
    if isinstance(photo, bytes):
        return np.frombuffer(photo, np.uint8), None
    if photo is None:
        return np.zeros(16, np.uint8), None
    try:
        content = bytes_of(photo)
    except BadImage:
        return np.zeros(16, np.uint8), None
    digest = source_digest(content)
    if known(digest):
        return digest, None
    try:
        return digest, encoder.crop(decode(content))
    except BadImage:
        return digest, None


def photo_digest(photo: Place) -> NDArray[np.uint8]:
    """(16,) uint8 digest of a photo's bytes; zeros without a photo or if it cannot be read."""
    if isinstance(photo, bytes):
        return np.frombuffer(photo, np.uint8)
    try:
        return source_digest(bytes_of(photo)) if photo else np.zeros(16, np.uint8)
    except BadImage:
        return np.zeros(16, np.uint8)


def _diagnose(photo: PhotoFile | None) -> dict[str, str]:
    """Why an image was not usable; looked at again, so that a resumed run knows the same reasons."""
    if photo is None:
        return {"code": "no-image", "path": "", "reason": "the data set names no image"}
    try:
        decode(bytes_of(photo))
    except BadImage as bad:
        return {"code": bad.code, "path": str(photo), "reason": str(bad)}
    return {
        "code": "non-finite",
        "path": str(photo),
        "reason": "its features were not finite, or it changed since",
    }
