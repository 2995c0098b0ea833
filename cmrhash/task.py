"""What a training works on: features on the device, the items to learn from, and the val probe that judges."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cmrhash.config import TrainConfig
from cmrhash.data.dataset import ImageTextDataset
from cmrhash.device import choose_device
from cmrhash.errors import DataError, UsageError
from cmrhash.relevance import Relevance
from cmrhash.views import View, chosen_encoders, languages_of, open_view, relevance_between


@dataclass
class Task:
    """All that a training needs, on the device. views: name -> features of its valid rows (M, D) float32.

    train: (n,) int64 items; labels: (n, classes) float32 of these, None for relevance by pairs.
    """

    dataset: ImageTextDataset
    langs: list[str]
    views: dict[str, View]
    x: dict[str, Tensor]
    train: NDArray[np.int64]
    labels: Tensor | None
    probe: Probe | None
    device: torch.device


@dataclass
class Probe:
    """What an epoch is judged by: val items as queries, the database without val and query as their database."""

    queries: dict[str, NDArray[np.int64]]  # language -> items that have an image and a caption
    database: dict[str, NDArray[np.int64]]
    relevance: dict[str, Relevance]


def prepare(config: TrainConfig, dataset: ImageTextDataset, folder: Path, encoders: tuple[str, ...] = ()) -> Task:
    """Read the feature files and choose the items: those that are there in every view, and for relevance by labels
    have one (an item without a label says nothing about who is relevant to it).
    """
    device = choose_device(config.device)
    langs = languages_of(folder, dataset, config.langs)
    chosen = chosen_encoders(encoders)
    names = ["image", *(f"text-{lang}" for lang in langs)]
    unknown = [name for name in chosen if name not in names]
    if unknown:
        raise UsageError(f"--encoder for '{unknown[0]}', which is not trained", None, f"trained: {', '.join(names)}")
    views = {name: open_view(folder, dataset, name, chosen.get(name)) for name in names}
    x = {name: torch.from_numpy(view.features.x[view.rows]).to(device) for name, view in views.items()}
    has = {name: view.has for name, view in views.items()}
    rows = train_items(dataset, has, folder)
    labels = labels_of(dataset, rows, device)
    probe = val_probe(dataset, langs, has)
    return Task(dataset, langs, views, x, rows, labels, probe, device)


Has = dict[str, NDArray[np.bool_]]  # view -> (items,) bool: the item can be used in it


def train_items(dataset: ImageTextDataset, has: Has, where: Path) -> NDArray[np.int64]:
    """(n,) items to learn from: of role train, there in every view, and for relevance by labels with a label.

    Raises DataError that names ``where`` if there are fewer than two.
    """
    labelled = np.array([bool(item.labels) or dataset.relevance != "labels" for item in dataset.items])
    rows = np.flatnonzero(np.all([*has.values()], axis=0) & labelled & _role(dataset, "train"))
    if len(rows) < 2:
        fix = "give items the split 'train', or leave all splits out to have them drawn"
        raise DataError(f"{len(rows)} items to train on", where, fix)
    return rows


def labels_of(dataset: ImageTextDataset, rows: NDArray[np.int64], device: torch.device) -> Tensor | None:
    """(n, classes) float32 of 0 and 1; None for relevance by pairs."""
    if dataset.relevance != "labels":
        return None
    labels = torch.zeros(len(rows), len(dataset.classes))
    for at, row in enumerate(rows):
        labels[at, list(dataset.items[row].labels)] = 1
    return labels.to(device)


def val_probe(dataset: ImageTextDataset, langs: list[str], has: Has, at_most: int | None = None) -> Probe | None:
    """The probe of items that can be used, None without any; at_most: queries, and database items, that it takes,
    evenly over the data set.
    """
    probe = Probe({}, {}, {})
    val, query = _role(dataset, "val"), _role(dataset, "query")
    searched = _role(dataset, "database") & ~val & ~query
    if not searched.any():  # the test items are their own database, as on Pascal Sentence: they must not choose
        searched = _role(dataset, "train")
    for lang in langs:
        usable = has["image"] & has[f"text-{lang}"]
        queries = _evenly(np.flatnonzero(usable & val), at_most)
        database = _evenly(np.flatnonzero(usable & searched), at_most) if dataset.relevance == "labels" else queries
        if not len(queries) or not len(database):
            return None
        probe.queries[lang], probe.database[lang] = queries, database
        probe.relevance[lang] = relevance_between(dataset, queries, database)
    return probe


def _role(dataset: ImageTextDataset, role: str) -> NDArray[np.bool_]:
    return np.array([role in item.splits for item in dataset.items])


def _evenly(items: NDArray[np.int64], at_most: int | None) -> NDArray[np.int64]:
    if at_most is None or len(items) <= at_most:
        return items
    return items[np.arange(at_most) * len(items) // at_most]
