"""What a training works on: features on the device, the items to learn from, and the val probe that judges."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cmrhash.config import TrainConfig
from cmrhash.data.dataset import ROLES, ImageTextDataset
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
    by_labels = dataset.relevance == "labels"
    whole = np.all([view.has for view in views.values()], axis=0)
    roles = {role: np.array([role in item.splits for item in dataset.items]) for role in ROLES}
    labelled = np.array([bool(item.labels) or not by_labels for item in dataset.items])
    rows = np.flatnonzero(whole & labelled & roles["train"])
    if len(rows) < 2:
        fix = "give items the split 'train', or leave all splits out to have them drawn"
        raise DataError(f"{len(rows)} items to train on", folder, fix)
    labels = None
    if by_labels:
        labels = torch.zeros(len(rows), len(dataset.classes), device=device)
        for at, row in enumerate(rows):
            labels[at, list(dataset.items[row].labels)] = 1
    probe = _probe(dataset, langs, views, roles)
    return Task(dataset, langs, views, x, rows, labels, probe, device)


def _probe(
    dataset: ImageTextDataset, langs: list[str], views: dict[str, View], roles: dict[str, NDArray[np.bool_]]
) -> Probe | None:
    probe = Probe({}, {}, {})
    by_labels = dataset.relevance == "labels"
    searched = roles["database"] & ~roles["val"] & ~roles["query"]
    if not searched.any():  # the test items are their own database, as on Pascal Sentence: they must not choose
        searched = roles["train"]
    for lang in langs:
        has = views["image"].has & views[f"text-{lang}"].has
        queries = np.flatnonzero(has & roles["val"])
        database = np.flatnonzero(has & searched) if by_labels else queries
        if not len(queries) or not len(database):
            return None
        probe.queries[lang], probe.database[lang] = queries, database
        probe.relevance[lang] = relevance_between(dataset, queries, database)
    return probe
