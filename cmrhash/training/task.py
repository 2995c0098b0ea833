"""Training task: features on the device, training items and validation probes."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cmrhash.compute.device import choose_device
from cmrhash.config import ACROSS, QUERY_LANGUAGE, TrainConfig
from cmrhash.data.items import ImageTextDataset, with_relevance
from cmrhash.data.view import View
from cmrhash.errors import DataError, UsageError
from cmrhash.features.dataset import ExtractedDataset
from cmrhash.features.leaks import near_duplicates
from cmrhash.features.views import ViewFeatures, relevance_between, scored_rows
from cmrhash.retrieval.relevance import Relevance
from cmrhash.training import runs
from cmrhash.training.methods import get_method
from cmrhash.training.noise import with_noise

MOST_PAIRS = 500_000_000  # val queries x database items that a direction is judged on: a second of CPU time
FEWEST = 500  # val queries, however large the database


@dataclass
class Task:
    """Inputs of a training, on the device.

    dataset: under the relevance rule of the training. x: view -> (M, D) float32 features of its valid rows. train:
    items with features in every view. partial: items that lack a view, one group for each set of views. probes:
    searches that select the epoch, None without val items. by_image: text views without features, which get the head of
    the images, and what their texts will be encoded by.
    """

    dataset: ImageTextDataset
    langs: list[str]
    views: dict[View, ViewFeatures]
    x: dict[View, Tensor]
    train: Group
    partial: list[Group]
    probes: Probes | None
    device: torch.device
    by_image: dict[View, runs.TrainedOn] = field(default_factory=dict)

    def first_scaled(self, heads: torch.nn.ModuleDict) -> dict[str, Tensor]:
        """Features of the train items' photos and first captions, standardised by the heads, (n, D) by view."""
        rows = {view: torch.from_numpy(of.start[self.train.items]).to(self.device) for view, of in self.views.items()}
        return {view.short: heads[view].scaled(self.x[view][at]) for view, at in rows.items()}  # type: ignore[operator]


@dataclass(frozen=True)
class Group:
    """Items to train on that have the same views. items: (n,) int64; labels: (n, classes) float32, None by pairs."""

    views: tuple[View, ...]
    items: NDArray[np.int64]
    labels: Tensor | None

    def __len__(self) -> int:
        return len(self.items)

    @property
    def name(self) -> str:
        """The views, joined by "+"."""
        return "+".join(view.short for view in self.views)


@dataclass(frozen=True)
class Means:
    """Mean standardised features of items in a view: an item's captions count as one. Computed where they are read.

    head: standardises; x: (M, D) features of the view's valid rows; items: (n,) int64, all with rows in the view.
    """

    head: torch.nn.Module
    x: Tensor
    view: ViewFeatures
    items: NDArray[np.int64]

    @property
    def shape(self) -> tuple[int, int]:
        """(n, D)."""
        return len(self.items), self.x.shape[1]

    def __getitem__(self, rows: slice) -> NDArray[np.float64]:
        """Means of some items, (b, D)."""
        items = self.items[rows]
        at = torch.from_numpy(self.view.rows_of(items)).to(self.x.device)
        scaled = self.head.scaled(self.x[at]).double().cpu().numpy()  # type: ignore[operator]
        count = self.view.count[items]
        means: NDArray[np.float64] = np.add.reduceat(scaled, np.cumsum(count) - count, axis=0) / count[:, None]
        return means


@dataclass(frozen=True)
class Probe:
    """A validation search. queries: (Q,) rows of view ``source``; database: (N,) rows of ``sought``.

    within: whether the database is the queries' items, of which each query leaves out its own.
    """

    source: View
    queries: NDArray[np.int64]
    sought: View
    database: NDArray[np.int64]
    relevance: Relevance
    within: bool


Groups = dict[tuple[View, ...], NDArray[np.int64]]  # views -> items that have these alone, the complete ones first
Rows = dict[View, NDArray[np.int64]]  # view -> (M,) item of each row, ascending
Probes = dict[str, dict[str, Probe]]  # language -> direction


def run_languages(config: TrainConfig, data: ExtractedDataset) -> tuple[list[str], list[str]]:
    """Languages of the run of this config, and those that it would have if none were asked for.

    A method that needs no captions takes queries to photos alone in any language. Raises UsageError for others.
    """
    if get_method(config.method).rotate is None or not data.no_captions:
        return data.languages(config.langs), data.languages()
    if wrong := [lang for lang in config.langs if not re.fullmatch(r"[A-Za-z0-9_-]+", lang)]:
        raise UsageError(f"'{wrong[0]}' is no language", data.folder, "give a tag such as en", option="langs")
    return sorted({lang.lower() for lang in config.langs}) or [QUERY_LANGUAGE], [QUERY_LANGUAGE]


def run_folder(config: TrainConfig, data: ExtractedDataset, out: Path) -> Path:
    """Folder of the run of this config.

    Its name has languages and relevance only where they differ from the data set's.
    """
    langs, every = run_languages(config, data)
    own, relevance = data.dataset.relevance, with_relevance(data.dataset, config.relevance).relevance
    part, other = langs if langs != every else (), relevance if relevance != own else ""
    way = get_method(config.method).direction(config)
    return runs.folder_of(out, data.name, config.method, config.bits, config.seed, part, other, way or "")


def prepare(config: TrainConfig, data: ExtractedDataset, encoders: tuple[str, ...] = ()) -> Task:
    """Read the feature files; choose training items and validation probes.

    Raises UsageError for an encoder of a view that is not trained.
    """
    langs = data.languages(config.langs)
    dataset, device, views, x = open_views(config, data, langs, encoders)
    rows = {name: view.items for name, view in views.items()}
    train = train_items(dataset, rows, data.folder)
    groups = {tuple(rows): train, **partial_items(dataset, rows)}
    if config.drop_near_duplicates:
        groups = _without(groups, near_duplicates(data), data.folder)
    labels = labels_of(dataset, np.concatenate([*groups.values()]), device)
    if config.noise:
        if labels is None:
            raise UsageError("pair relevance has no labels", None, "leave it out", option="noise")
        labels = with_noise(labels, config.noise, config.seed)
    ends = np.cumsum([len(items) for items in groups.values()])[:-1].tolist()
    parts = [None] * len(groups) if labels is None else labels.tensor_split(ends)
    complete, *partial = [Group(*group, own) for group, own in zip(groups.items(), parts, strict=True)]
    way = get_method(config.method).direction(config)
    probes = val_probes(dataset, langs, rows, ways=(way,) if way else ACROSS)
    return Task(dataset, langs, views, x, complete, partial, probes, device)


def _without(groups: Groups, left_out: NDArray[np.bool_], where: Path) -> Groups:
    """The items of each group but those left out, (items,) bool; raises DataError if few complete items are left."""
    kept = {views: items[~left_out[items]] for views, items in groups.items()}
    complete, *partial = kept
    if len(kept[complete]) < 2:
        what = f"{len(kept[complete])} items to train on without the photos of queries"
        raise DataError(what, where, "leave out `drop_near_duplicates`")
    return {views: kept[views] for views in (complete, *(few for few in partial if len(kept[few]) > 1))}


def open_views(
    config: TrainConfig, data: ExtractedDataset, langs: list[str], encoders: tuple[str, ...]
) -> tuple[ImageTextDataset, torch.device, dict[View, ViewFeatures], dict[View, Tensor]]:
    """The data set under the relevance of the training, the device, and the features of images and languages on it."""
    dataset = with_relevance(data.dataset, config.relevance)
    device = choose_device(config.device)
    names = [View.IMAGE, *map(View.text, langs)]
    chosen = data.chosen(names, encoders)
    views = {name: data.features(name, chosen.get(name)) for name in names}
    x = {name: torch.from_numpy(view.x).to(device) for name, view in views.items()}
    return dataset, device, views, x


def train_items(dataset: ImageTextDataset, rows: Rows, where: Path) -> NDArray[np.int64]:
    """Items to train on, (n,) int64: role train, with features in every view.

    By labels an item also needs a label: without one its relevance is unknown. Raises DataError that names ``where`` if
    there are fewer than two.
    """
    every = np.arange(len(dataset.items))
    has: dict[str, NDArray[np.bool_]] = {view: np.isin(every, item) for view, item in rows.items()}
    if dataset.relevance == "labels":
        has["label"] = np.array([bool(item.labels) for item in dataset.items])
    role = _role(dataset, "train")
    train = np.flatnonzero(np.all(list(has.values()), axis=0) & role)
    if len(train) < 2:
        own = role.any() or dataset.split_seed is None or dataset.val_drawn  # only complete items draw a role
        asked = role if own else np.ones_like(role)
        lacks = {view: int((asked & ~there).sum()) for view, there in has.items()}
        lacking = ", ".join(f"{n} have no usable {view}" for view, n in lacks.items() if n)
        which = f" (of {asked.sum()} {'train ' if own else ''}items {lacking})" if lacking else ""
        fix = "give items the split 'train', or leave all splits out to have them drawn"
        fix = "complete them, then run `extract` with `overwrite=True`" if lacking else fix
        raise DataError(f"{len(train)} items to train on{which}", where, fix)
    return train


def partial_items(dataset: ImageTextDataset, rows: Rows) -> dict[tuple[View, ...], NDArray[np.int64]]:
    """Train items that lack a view, by the views that they have: at least two of each.

    By labels, one view is enough, for the terms within it, and an item needs a label; by pairs it takes two.
    """
    by_labels = dataset.relevance == "labels"
    has = np.stack([np.isin(np.arange(len(dataset.items)), item) for item in rows.values()])  # (views, items)
    usable = _role(dataset, "train") & ~has.all(0) & (has.sum(0) >= (1 if by_labels else 2))
    if by_labels:
        usable &= np.array([bool(item.labels) for item in dataset.items])
    found: dict[tuple[View, ...], list[int]] = {}
    for item in np.flatnonzero(usable).tolist():
        found.setdefault(tuple(view for view, there in zip(rows, has[:, item], strict=True) if there), []).append(item)
    return {views: np.array(items) for views, items in sorted(found.items()) if len(items) > 1}


def labels_of(dataset: ImageTextDataset, items: NDArray[np.int64], device: torch.device) -> Tensor | None:
    """Labels of items as 0 and 1, (n, classes) float32; None for relevance by pairs."""
    if dataset.relevance != "labels":
        return None
    own = [dataset.items[item].labels for item in items.tolist()]
    labels = np.zeros((len(items), len(dataset.classes)), np.float32)
    labels[np.repeat(np.arange(len(items)), [*map(len, own)]), [*chain.from_iterable(own)]] = 1
    return torch.from_numpy(labels).to(device)


def val_probes(
    dataset: ImageTextDataset,
    langs: list[str],
    rows: Rows,
    at_most: int | None = None,
    ways: Sequence[str] = ACROSS,
) -> Probes | None:
    """Validation searches by language and direction, out of ``ways``; None without val items.

    Val items are the queries. The database is the data set's without val and query items; by pairs, the val items.
    Where all database items are queries (Pascal Sentence), no search at test time finds a train item: val items then
    search the other val items or, if no two of them share a label, the train items. at_most: number of queries, and of
    database items, to take evenly from the data set. Beyond MOST_PAIRS, fewer queries search the whole database.
    """
    probes: Probes = {}
    known: dict[bytes, Relevance] = {}  # shared by searches between the same items
    val, query = _role(dataset, "val"), _role(dataset, "query")
    searched = _role(dataset, "database") & ~val & ~query
    unseen = dataset.relevance == "labels" and not searched.any()
    if not searched.any():
        searched = _role(dataset, "train")
    for lang in langs:
        both = (View.IMAGE, View.text(lang))
        has = np.all([np.isin(np.arange(len(val)), rows[name]) for name in both], axis=0)
        queries, database = _evenly(np.flatnonzero(has & val), at_most), np.flatnonzero(has & searched)
        within = unseen and _share_a_label(dataset, queries)
        alone = within or dataset.relevance == "pairs"
        database = queries if alone else _evenly(database, at_most)
        queries = queries if alone else _evenly(queries, max(FEWEST, MOST_PAIRS // max(len(database), 1)))
        if not len(queries) or not len(database):
            return None
        query_rows = {name: scored_rows(dataset, rows[name], queries) for name in both}
        database_rows = {name: scored_rows(dataset, rows[name], database) for name in both}
        probes[lang] = {}
        for direction in ways:
            a, b = both if direction == "i2t" else both[::-1]
            query_items, database_items = rows[a][query_rows[a]], rows[b][database_rows[b]]
            key = query_items.tobytes() + b"|" + database_items.tobytes()
            if key not in known:
                itself = np.arange(len(query_items)) if within else None
                known[key] = relevance_between(dataset, query_items, database_items, itself)
            probes[lang][direction] = Probe(a, query_rows[a], b, database_rows[b], known[key], within)
    return probes


def asked_rows(probes: Probes, view: View) -> NDArray[np.int64]:
    """Rows of a view that the probes use, ascending."""
    every = [probe for by_direction in probes.values() for probe in by_direction.values()]
    parts = [probe.queries for probe in every if probe.source == view]
    parts += [probe.database for probe in every if probe.sought == view]
    return np.unique(np.concatenate(parts))


def _role(dataset: ImageTextDataset, role: str) -> NDArray[np.bool_]:
    return np.array([role in item.splits for item in dataset.items])


def _share_a_label(dataset: ImageTextDataset, items: NDArray[np.int64]) -> bool:
    """Whether any two of the items share a label."""
    counts = Counter(label for item in items.tolist() for label in set(dataset.items[item].labels))
    return max(counts.values(), default=0) > 1


def _evenly(items: NDArray[np.int64], at_most: int | None) -> NDArray[np.int64]:
    if at_most is None or len(items) <= at_most:
        return items
    return items[np.arange(at_most) * len(items) // at_most]
