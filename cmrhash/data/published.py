"""Published splits, by the name of their family of papers.

    dcmh    a permutation of all items: the first are query, the next train (Jiang & Li 2017, as in torchcmh)
    clip    the same with one seed for all data sets (DCHMT, DSPH and other CLIP-based methods, as in QinLab's code)
    unsup   drawn class by class (DJSRH, Su et al. 2019); the published code has no seed
    ucch    the last items of the file are query, all others train (UCCH, Hu et al. 2023, on precomputed features)

In all four, every item but the queries is in the database, and the train items are part of it. None has a val part:
cmrhash carves it out of train, whereas the published code chooses the epoch by the queries.

In feature files, and where a data set has as many items as the authors' file, all rows count. In others those items
count that have a label and, except for ``clip``, a text (MIRFlickr-25K: one of its common tags), even if their photo is
missing, in the order of the reader. ``clip`` orders MIRFlickr-25K by the number as a string, and COCO train before val,
as the code that makes its files does. Of NUS-WIDE, ``dcmh`` and ``clip`` keep 21 concepts, the others 10.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cmrhash.config import FEATURES_DATASET, PROTOCOLS
from cmrhash.data.items import ImageTextDataset, Item
from cmrhash.data.readers.mirflickr import with_common_tag
from cmrhash.data.view import languages_of
from cmrhash.errors import DataError, UsageError, did_you_mean

Rows = NDArray[np.intp]


@dataclass(frozen=True)
class Sizes:
    """Numbers of query and train items, and the seed of the permutation.

    train: None means all but the queries. seed: None means that of the user. first: how many shares the first class has
    in a draw by class.
    """

    query: int | None
    train: int | None = None
    seed: int | None = None
    first: int = 1


@dataclass(frozen=True)
class Split:
    """Rows of the query, train and database items, each (n,), and how they came about, in words."""

    query: Rows
    train: Rows
    database: Rows
    words: str


PUBLISHED: dict[str, dict[str, Sizes]] = {
    "dcmh": {
        "mirflickr": Sizes(2000, 10_000, 6),
        "nuswide": Sizes(2100, 10_500, 7),
        "coco": Sizes(5000, 10_000, 8),
        "iaprtc12": Sizes(2000, 10_000, 8),
    },
    "unsup": {"mirflickr": Sizes(2000, 5000, first=2), "nuswide": Sizes(2000, 5000), "wikipedia": Sizes(None)},
    "clip": dict.fromkeys(("mirflickr", "nuswide", "coco"), Sizes(5000, 10_000, 1814)),
    "ucch": {"mirflickr": Sizes(2000), "nuswide": Sizes(2100), "coco": Sizes(5000), "iaprtc12": Sizes(2000)},
}
CLIP_SEED = 1814
# Rows of a published file or list -> its data set
ROWS = {
    **dict.fromkeys((20_015, 24_581), "mirflickr"),
    **dict.fromkeys((186_577, 190_421, 195_834), "nuswide"),
    122_218: "coco",
    20_000: "iaprtc12",
}
SAME = {"iaprtc12-lists": "iaprtc12"}
TOP_10 = ("animal", "buildings", "clouds", "grass", "lake", "person", "plants", "sky", "water", "window")
TOP_21 = tuple(
    sorted(
        (
            *TOP_10,
            *("beach", "flowers", "mountain", "ocean", "reflection", "road", "rocks", "snow", "sunset", "tree"),
            "vehicle",
        )
    )
)
CONCEPTS = {"dcmh": TOP_21, "clip": TOP_21, "unsup": TOP_10, "ucch": TOP_10}


def split(
    dataset: ImageTextDataset, protocol: str, numbers: tuple[int | None, int | None], seed: int
) -> tuple[ImageTextDataset, Split]:
    """The split of a protocol, and the data set with the classes that the protocol keeps.

    numbers: of query and train items; None: the published one. Raises UsageError if the protocol does not fit the data
    set, DataError if there are fewer items than it takes.
    """
    if not dataset.classes:
        what = f"protocol '{protocol}' scores by labels, but data set '{dataset.name}' has none"
        raise UsageError(what, dataset.root, "choose the items with `query_items` and `train_items`", option="protocol")
    reader = SAME.get(dataset.name, dataset.name)
    known = reader if reader in PUBLISHED[protocol] else ROWS.get(len(dataset.items), "")
    sizes = _sizes(dataset, protocol, known, *numbers)
    dataset = replace(dataset, relevance="labels")
    if dataset.name == "nuswide":
        dataset = _restricted(dataset, CONCEPTS[protocol])
    if sizes.query is None:
        return dataset, _own_lists(dataset, protocol)
    rows = _rows(dataset, protocol, whole=bool(known) and known != reader)
    if sizes.query + max(sizes.train or 0, 1) > len(rows):
        what = f"protocol '{protocol}' takes {sizes.query} query and {sizes.train or 'other'} train items"
        fix = "give smaller numbers with `query_items` and `train_items`"
        raise DataError(f"{what}, but only {len(rows)} items can be either", dataset.root, fix)
    at = sizes.query
    if protocol == "ucch":
        words = f"protocol ucch (the last {at} items are query, all others train)"
        return dataset, Split(rows[-at:], rows[:-at], rows[:-at], words)
    assert sizes.train is not None
    used = seed if sizes.seed is None else sizes.seed
    if protocol == "unsup":
        chosen, learnt = _by_class(dataset.items, rows, len(dataset.classes), sizes, np.random.RandomState(used))
        how = f"drawn by class from seed {used}"
    else:
        rows = rows[np.random.RandomState(used).permutation(len(rows))]
        chosen, learnt, how = rows[:at], rows[at : at + sizes.train], f"permutation of seed {used}"
    words = f"protocol {protocol} ({len(chosen)} query and {len(learnt)} train items, {how})"
    return dataset, Split(chosen, learnt, np.setdiff1d(rows, chosen), words)


def _sizes(dataset: ImageTextDataset, protocol: str, known: str, query: int | None, train: int | None) -> Sizes:
    """The numbers of a protocol for a data set. Raises UsageError if they are neither published nor given."""
    sizes = PUBLISHED[protocol].get(known, Sizes(0, 0, CLIP_SEED if protocol == "clip" else None))
    everything = protocol == "ucch" or sizes.query is None
    if train is not None and everything:
        what = f"protocol '{protocol}' trains on all items but the queries"
        raise UsageError(what, None, "leave `train_items` out, or leave `protocol` out", option="train_items")
    if query is not None and sizes.query is None:
        what = f"protocol '{protocol}' takes the data set's own lists"
        raise UsageError(what, None, "leave `query_items` out, or leave `protocol` out", option="query_items")
    if not known and (query is None or (train is None and not everything)):
        what = (
            f"protocol '{protocol}' has no published numbers for data set '{dataset.name}' ({len(dataset.items)} items)"
        )
        both = "`query_items=N`" if everything else "`query_items=N` and `train_items=N`"
        fix = f"give {both}; published are {', '.join(PUBLISHED[protocol])}"
        raise UsageError(what, dataset.root, fix, option="protocol")
    given: dict[str, Any] = {"query": query, "train": train}
    sizes = replace(sizes, **{name: number for name, number in given.items() if number is not None})
    return replace(sizes, train=None) if everything else sizes


def _restricted(dataset: ImageTextDataset, classes: Sequence[str]) -> ImageTextDataset:
    """The data set with these classes only; raises DataError if one is missing."""
    if missing := [name for name in classes if name not in dataset.classes]:
        raise DataError(f"no labels of concept '{missing[0]}'", dataset.root, "unpack the labels of all concepts")
    place = {dataset.classes.index(name): n for n, name in enumerate(classes)}
    kept = {old: tuple(place[n] for n in old if n in place) for old in {item.labels for item in dataset.items}}
    items = tuple(replace(item, labels=tuple(sorted(kept[item.labels]))) for item in dataset.items)
    return replace(dataset, items=items, classes=tuple(classes))


def _rows(dataset: ImageTextDataset, protocol: str, whole: bool) -> Rows:
    """Rows of the items that a protocol counts, in its order.

    whole: every row counts, because the data set has as many as the authors' file.
    """
    items = dataset.items
    if whole or dataset.name == FEATURES_DATASET:
        return np.arange(len(items))
    every = protocol == "clip" or bool(languages_of(dataset.ready))
    text = [every or bool(item.texts) for item in items]
    if dataset.name == "mirflickr" and protocol != "clip":
        text = with_common_tag(dataset)
    rows = [row for row, item in enumerate(items) if item.labels and text[row]]
    if protocol == "clip" and dataset.name == "mirflickr":
        rows.sort(key=lambda row: items[row].id)
    if protocol == "clip" and dataset.name == "coco":
        rows.sort(key=lambda row: ((items[row].image or "").startswith("val"), row))
    return np.array(rows, np.intp)


def _by_class(
    items: Sequence[Item], rows: Rows, classes: int, sizes: Sizes, rng: np.random.RandomState
) -> tuple[Rows, Rows]:
    """Query and train rows, drawn in equal shares from each class in turn; what train lacks is drawn from the rest."""
    assert sizes.query is not None
    assert sizes.train is not None
    of_class: list[list[int]] = [[] for _ in range(classes)]
    for row in rows.tolist():
        for label in items[row].labels:
            of_class[label].append(row)
    free = np.ones(len(items), bool)
    parts: tuple[list[Rows], list[Rows]] = ([], [])
    for label, own in enumerate(of_class):
        drawn = np.array(own, np.intp)[rng.permutation(len(own))]
        drawn = drawn[free[drawn]]
        for part, number in zip(parts, (sizes.query, sizes.train), strict=True):
            share = number // (classes - 1 + sizes.first)
            taken = drawn[: share if label else number - (classes - 1) * share]
            drawn = drawn[len(taken) :]
            free[taken] = False
            part.append(taken)
    query, train = (np.concatenate(part) for part in parts)
    if len(train) < sizes.train:
        rest = rows[free[rows]]
        rest = rest[rng.permutation(len(rest))]
        train = np.concatenate([train, rest[: sizes.train - len(train)]])
    return query, train


def _own_lists(dataset: ImageTextDataset, protocol: str) -> Split:
    """The data set's own test items as queries; its other items are train and database."""
    query = np.array(["query" in item.splits for item in dataset.items])
    others = np.flatnonzero(~query & np.array([bool(item.splits) for item in dataset.items]))
    return Split(np.flatnonzero(query), others, others, f"protocol {protocol} (the data set's own lists)")


def check_protocol(protocol: str) -> None:
    """Raise UsageError for an unknown protocol."""
    if protocol not in PROTOCOLS:
        fix = f"{did_you_mean(protocol, PROTOCOLS)} choose one of {', '.join(PROTOCOLS)}"
        raise UsageError(f"unknown protocol '{protocol}'", None, fix, option="protocol")
