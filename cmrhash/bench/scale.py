"""Cost and quality of a training on a synthetic collection of any size.

    python -m cmrhash.bench.scale 100000 krr-ap

Each item has one to three of 40 labels. Its photo features and text features of 128 numbers are the sums of its labels'
directions, with noise; its caption has words of its labels, some of them left out, among other words. QUERIES items are
queries, as many are database items that are not trained on, and all others are train and database items.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cmrhash.bench import _cpu, _peak, _resident
from cmrhash.config import EvalConfig, TrainConfig
from cmrhash.data.items import ImageTextDataset, Item
from cmrhash.data.view import View
from cmrhash.evaluation.evaluate import evaluate
from cmrhash.features.dataset import ExtractedDataset
from cmrhash.features.file import FeatureWriter, source_digest
from cmrhash.training.train import train

CLASSES, DIM, QUERIES = 40, 128, 1_000
NOISE = {View.IMAGE: 3.0, View.text("en"): 2.0}  # standard deviation, of directions with variance 1
FILLERS, WORDS = 2_000, 8  # other words, and how many of them a caption has
PART = 50_000  # items written at a time


@dataclass(frozen=True)
class Measured:
    """CPU seconds and peak memory of a training, and mAP by direction: of all, seen and unseen database items."""

    items: int
    method: str
    cpu_s: float
    peak_mb: float | None
    scores: dict[str, dict[str, float]]


def measure(count: int, method: str, bits: int = 32, **settings: Any) -> Measured:
    """Draw a collection of so many items, train one run on it and score it. settings: fields of TrainConfig."""
    with tempfile.TemporaryDirectory() as folder:
        data = collection(Path(folder), count)
        before, start = _resident(), _cpu()
        config = TrainConfig(method=method, bits=bits, device="cpu", **settings)
        train(config, data, Path(folder) / "runs")
        seconds, peak = _cpu() - start, None if before is None else _peak()
        rows = evaluate(EvalConfig(), data, Path(folder) / "runs").rows
        keys = ("map", "map_seen", "map_unseen")
        scores = {row["direction"]: {key: round(row[key], 4) for key in keys if row.get(key)} for row in rows}
        return Measured(count, method, seconds, peak, scores)


def collection(folder: Path, count: int) -> ExtractedDataset:
    """Draw the collection and write its features below a folder."""
    rng = np.random.default_rng(0)
    labels = [np.unique(rng.integers(0, CLASSES, 1 + n % 3)) for n in range(count)]
    dataset = ImageTextDataset("scale", folder, _items(rng, labels), tuple(f"c{n}" for n in range(CLASSES)), "labels")
    of = np.zeros((count, CLASSES), np.float32)
    for row, own in enumerate(labels):
        of[row, own] = 1
    for view, noise in NOISE.items():
        _write(folder, dataset, view, of @ rng.standard_normal((CLASSES, DIM), np.float32), noise, rng)
    return ExtractedDataset(dataset, folder)


def _items(rng: np.random.Generator, labels: list[NDArray[np.int64]]) -> tuple[Item, ...]:
    items = []
    for n, own in enumerate(labels):
        said = [f"word{label}" for label in own.tolist() if rng.random() < 0.7]
        said += [f"other{word}" for word in rng.integers(0, FILLERS, WORDS).tolist()]
        roles = {"query"} if n < QUERIES else {"database"} if n < 2 * QUERIES else {"train", "database"}
        items.append(Item(str(n), f"{n}.jpg", {"en": (" ".join(said),)}, tuple(own.tolist()), frozenset(roles)))
    return tuple(items)


def _write(
    folder: Path, dataset: ImageTextDataset, view: View, x: NDArray[np.float32], noise: float, rng: np.random.Generator
) -> None:
    """Write the features of a view, with noise."""
    count = len(x)
    recipe = {"kind": view.kind, "encoder": "scale", "weights": "random", **({"lang": view.lang} if view.lang else {})}
    ids = tuple(item.id for item in dataset.items)
    sources = ids if view.lang is None else [item.texts[view.lang][0] for item in dataset.items]
    rows = np.arange(count, dtype=np.int32)
    with FeatureWriter(folder / view.feature_file("scale"), rows, ids, DIM, recipe, PART) as writer:
        for at in range(0, count, PART):
            part = x[at : at + PART] + noise * rng.standard_normal((len(x[at : at + PART]), DIM), np.float32)
            source = np.stack([source_digest(name.encode()) for name in sources[at : at + PART]])
            writer.commit(at // PART, part, np.ones(len(part), bool), source)
        writer.seal({})


def main() -> None:
    """Measure one training and print it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("items", type=int)
    parser.add_argument("method")
    asked = parser.parse_args()
    print(json.dumps(vars(measure(asked.items, asked.method))))


if __name__ == "__main__":
    main()
