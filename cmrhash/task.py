"""What a training works on: features on the device, the items to learn from, and the val probe that judges."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cmrhash import runs
from cmrhash.config import TrainConfig
from cmrhash.data.dataset import ROLES, ImageTextDataset, with_relevance
from cmrhash.device import choose_device
from cmrhash.errors import DataError, UsageError
from cmrhash.relevance import Relevance
from cmrhash.views import View, chosen_encoders, languages_of, open_view, relevance_between, scored_rows


@dataclass
class Task:
    """All that a training needs, on the device. x: name -> features of the view's valid rows (M, D) float32.

    dataset: under the relevance that is trained by. train: (n,) int64 items; labels: (n, classes) float32 of these,
    None for relevance by pairs. probe: by language and direction what an epoch is judged by; None without val items.
    """

    dataset: ImageTextDataset
    langs: list[str]
    views: dict[str, View]
    x: dict[str, Tensor]
    train: NDArray[np.int64]
    labels: Tensor | None
    probe: dict[str, dict[str, Probe]] | None
    device: torch.device


@dataclass(frozen=True)
class Probe:
    """A search by val items. queries: (Q,) rows of the view ``source``; database: (N,) rows of the view ``sought``."""

    source: str
    queries: NDArray[np.int64]
    sought: str
    database: NDArray[np.int64]
    relevance: Relevance


def run_folder(config: TrainConfig, dataset: ImageTextDataset, folder: Path, out: Path) -> Path:
    """Where the run of this config lives, by what it does not share with the plain run of the data set."""
    langs, every = languages_of(folder, dataset, config.langs), languages_of(folder, dataset)
    relevance = with_relevance(dataset, config.relevance).relevance
    part, other = langs if langs != every else (), relevance if relevance != dataset.relevance else ""
    return runs.folder_of(out, dataset.name, config.method, config.bits, config.seed, part, other)


def prepare(config: TrainConfig, dataset: ImageTextDataset, folder: Path, encoders: tuple[str, ...] = ()) -> Task:
    """Read the feature files and choose the items: those that are there in every view, and for relevance by labels
    have one (an item without a label says nothing about who is relevant to it).
    """
    dataset = with_relevance(dataset, config.relevance)
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
) -> dict[str, dict[str, Probe]] | None:
    """Val items as queries, the database without val and query as their database; by pairs they are it themselves."""
    probe: dict[str, dict[str, Probe]] = {}
    known: dict[bytes, Relevance] = {}  # by labels both directions share it, and so do languages that all items have
    searched = roles["database"] & ~roles["val"] & ~roles["query"]
    if not searched.any():  # the test items are their own database, as on Pascal Sentence: they must not choose
        searched = roles["train"]
    for lang in langs:
        both = ("image", f"text-{lang}")
        has = np.all([views[name].has for name in both], axis=0)
        queries = np.flatnonzero(has & roles["val"])
        database = queries if dataset.relevance == "pairs" else np.flatnonzero(has & searched)
        if not len(queries) or not len(database):
            return None
        item = {name: views[name].features.item[views[name].rows].astype(np.int64) for name in both}
        asks = {name: scored_rows(dataset, item[name], queries) for name in both}
        lies = {name: scored_rows(dataset, item[name], database) for name in both}
        probe[lang] = {}
        for direction, (a, b) in {"i2t": both, "t2i": both[::-1]}.items():
            asking, lying = item[a][asks[a]], item[b][lies[b]]
            key = asking.tobytes() + b"|" + lying.tobytes()
            if key not in known:
                known[key] = relevance_between(dataset, asking, lying)
            probe[lang][direction] = Probe(a, asks[a], b, lies[b], known[key])
    return probe
