"""Splits that the user chooses: a published protocol, or query and train items by number, place or list.

    200                200 items, drawn from the seed
    first:200          the first 200 items in the order of the data set
    last:200           the last 200
    FILE               a text file with an id or a row number (from 0) per line, or .npy: row numbers, ids or a mask

Numbers, first and last count complete items (all rows of feature files); the train items are counted
among those that are not query.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from cmrhash.config import FEATURES_DATASET, ExtractConfig
from cmrhash.data import published
from cmrhash.data.items import (
    TRAIN_SHARE,
    ImageTextDataset,
    carve_val,
    complete_rows,
    with_roles,
)
from cmrhash.data.parsing import read_lines
from cmrhash.data.view import View
from cmrhash.errors import DataError, UsageError

FORMS = "give a number, first:N, last:N or a file"
_NUMBER = re.compile(r"(?:(first|last):)?([0-9]{1,9})")


@dataclass(frozen=True)
class Asked:
    """An option of the user: a place ("first", "last", or "" for drawn) with a number, or a file."""

    option: str
    place: str
    number: int
    file: Path | None

    @property
    def drawn(self) -> bool:
        """Whether the items are drawn from the seed."""
        return not self.place and self.file is None

    @property
    def words(self) -> str:
        """The option as text; a file by its name and the start of its sha256."""
        value = f"{self.place}:{self.number}" if self.place else str(self.number)
        if self.file:
            value = f"{self.file.name} ({hashlib.sha256(self.file.read_bytes()).hexdigest()[:8]})"
        return f"{self.option.removesuffix('_items')} {value}"


def check(config: ExtractConfig) -> tuple[Asked | None, Asked | None]:
    """The chosen query and train items of a config; raises UsageError for a form or combination without meaning."""
    asked = _asked("query_items", config.query_items), _asked("train_items", config.train_items)
    if config.protocol is not None:
        published.check_protocol(config.protocol)
        for one in asked:
            if one and (one.place or one.file):
                what = f"protocol '{config.protocol}' chooses the items itself"
                raise UsageError(what, None, "give a number only, or leave `protocol` out", option=one.option)
    return asked


def _asked(option: str, value: str | None) -> Asked | None:
    if value is None:
        return None
    if match := _NUMBER.fullmatch(text := str(value)):
        if int(match[2]) < 1:
            raise UsageError(f"'{text}' names no item", None, "give a number from 1", option=option)
        return Asked(option, match[1] or "", int(match[2]), None)
    if not (file := Path(text).expanduser()).is_file():
        raise UsageError(f"'{text}' is neither a number of items nor a file", None, FORMS, option=option)
    return Asked(option, "", 0, file)


def with_splits(dataset: ImageTextDataset, config: ExtractConfig) -> ImageTextDataset:
    """The data set with the splits that a config asks for: chosen, its own, or drawn.

    Query items replace all splits of the data set; train items alone keep its queries. Val is drawn from train.
    Raises UsageError or DataError for items that are not there, too few, repeated, or both query and train.
    """
    query, train = check(config)
    if config.protocol is not None:
        numbers = query.number if query else None, train.number if train else None
        dataset, split = published.split(dataset, config.protocol, numbers, config.seed)
        parts = {"query": split.query.tolist(), "train": split.train.tolist(), "database": split.database.tolist()}
        return _given(dataset, parts, config.seed, split.words, val_only=True)
    if query is None and train is None:
        return with_roles(dataset, config.seed)
    rng, among, alone = random.Random(config.seed), _usable(dataset), _searched_alone(dataset)
    queries = _rows(query, dataset, among, rng) if query else _with(with_roles(dataset, config.seed), "query")
    taken = set(queries)
    left = [row for row in among if row not in taken]
    if train:
        trains = _rows(train, dataset, left, rng)
        if both := taken.intersection(trains):
            what = f"item '{dataset.items[min(both)].id}' is both query and train"
            raise UsageError(what, dataset.root, "give every item to one of them", option="train_items")
    else:
        trains = left if alone else rng.sample(left, min(round(TRAIN_SHARE * len(among)), len(left)))
    database = queries if alone else [row for row in range(len(dataset.items)) if row not in taken]
    words = ", ".join(one.words for one in (query, train) if one)
    brings = any(item.splits for item in dataset.items)
    drawn = [query.drawn if query else not brings, train.drawn if train else not alone]
    return _given(
        dataset, {"query": queries, "train": trains, "database": database}, config.seed, words, not any(drawn)
    )


def _with(dataset: ImageTextDataset, role: str) -> list[int]:
    return [row for row, item in enumerate(dataset.items) if role in item.splits]


def _usable(dataset: ImageTextDataset) -> list[int]:
    """Rows that numbers count: complete items, all rows of feature files."""
    return list(range(len(dataset.items))) if dataset.name == FEATURES_DATASET else complete_rows(dataset)


def _searched_alone(dataset: ImageTextDataset) -> bool:
    """Whether the queries are the whole database: by pairs, by class, or in the data set's own splits."""
    own = [item.splits for item in dataset.items if "query" in item.splits]
    by_own = bool(own) and all("database" in splits for splits in own)
    return dataset.relevance == "pairs" or dataset.protocol == "per-class" or by_own


def _rows(asked: Asked, dataset: ImageTextDataset, among: Sequence[int], rng: random.Random) -> list[int]:
    """Rows that an option names."""
    if asked.file:
        return _listed(asked.file, dataset, asked.option)
    if asked.number > len(among):
        kind = "items" if dataset.name == FEATURES_DATASET else "complete items"
        what = f"{asked.number} items of {len(among)} {kind}"
        raise UsageError(what, dataset.root, "give a smaller number", option=asked.option)
    if asked.place == "first":
        return list(among[: asked.number])
    return list(among[-asked.number :]) if asked.place == "last" else rng.sample(among, asked.number)


def _listed(file: Path, dataset: ImageTextDataset, option: str) -> list[int]:
    """Rows of the items in a file: all its entries are ids, or all are row numbers."""
    count = len(dataset.items)
    entries = (
        _array(file, count) if file.suffix.lower() == ".npy" else [s for s in map(str.strip, read_lines(file)) if s]
    )
    if not entries:
        raise DataError("the file names no item", file, "write an id or a row number per line")
    of_id = {item.id: row for row, item in enumerate(dataset.items)}
    by_id = isinstance(entries[0], str) and all(entry in of_id for entry in entries)
    rows = [of_id[str(entry)] if by_id else _row(entry, count) for entry in entries]
    if -1 in rows:
        known = sum(entry in of_id for entry in entries)
        at = next(n for n, entry in enumerate(entries) if (entry not in of_id if known else rows[n] < 0))
        what = f"entry {at + 1} of `{option}`, '{str(entries[at])[:40]}', is no item"
        raise DataError(what, file, f"write ids of the data set, or row numbers from 0 to {count - 1}")
    if len(set(rows)) < len(rows):
        double = Counter(rows).most_common(1)[0][0]
        raise DataError(f"item '{dataset.items[double].id}' is repeated", file, "name every item once")
    return rows


def _array(file: Path, count: int) -> list[int | str]:
    """Entries of a .npy file: row numbers or ids; those of a mask are its row numbers."""
    try:
        array = np.load(file, allow_pickle=False).reshape(-1)
    except (OSError, ValueError, EOFError, AttributeError) as error:
        raise DataError(f"not an array ({str(error)[:80]})", file, "save row numbers with numpy.save") from None
    if array.dtype == bool and len(array) == count:
        array = np.flatnonzero(array)
    if array.dtype.kind not in "iuU":
        what = f"an array of {array.dtype} with {len(array)} entries"
        raise DataError(what, file, f"give whole numbers, ids, or a mask of {count} items")
    entries: list[int | str] = array.tolist()
    return entries


def _row(entry: int | str, count: int) -> int:
    """Row number of an entry; -1 for none."""
    if isinstance(entry, str) and not re.fullmatch("[0-9]{1,18}", entry):
        return -1
    return int(entry) if 0 <= int(entry) < count else -1


def _given(
    dataset: ImageTextDataset, parts: dict[str, Collection[int]], seed: int, words: str, val_only: bool
) -> ImageTextDataset:
    """The data set with these roles, val carved out of train. val_only: nothing else was drawn from the seed."""
    roles: list[set[str]] = [set() for _ in dataset.items]
    for role, rows in parts.items():
        for row in rows:
            roles[row].add(role)
    frozen = [frozenset(role) for role in roles]
    carve_val(frozen, random.Random(seed))
    same = {role: role for role in frozen}  # share one object between equal roles to save memory
    items = tuple(replace(item, splits=same[role]) for item, role in zip(dataset.items, frozen, strict=True))
    return replace(dataset, items=items, split_seed=seed, val_drawn=val_only, chosen=words)


def refuse_empty(dataset: ImageTextDataset) -> ImageTextDataset:
    """Return the data set if it can be trained and evaluated, has one view only, or is a database by its own splits.

    Raises DataError for a data set of photos and captions without query items, with fewer than two train items, or, by
    labels, without database items.
    """
    image = View.IMAGE in dataset.ready or any(item.image for item in dataset.items)
    searched = dataset.split_seed is None and all(item.splits == {"database"} for item in dataset.items)
    if not image or not dataset.languages or searched:
        return dataset
    counts = {role: dataset.count(role) for role in ("query", "train", "database")}
    needs = {"query": 1, "train": 2, "database": int(dataset.relevance == "labels")}
    lacks = [f"{n} {role} item{'s' * (n != 1)}" for role, n in counts.items() if n < needs[role]]
    if not lacks:
        return dataset
    label = " and label" if dataset.relevance == "labels" else ""
    complete = f"{len(complete_rows(dataset))} of {len(dataset.items)} items have photo, caption{label}"
    drawn = dataset.split_seed is not None and not dataset.val_drawn
    fix = "add items or complete them" if drawn else "give other splits, or leave them out to have them drawn"
    what = f"{' and '.join(lacks)} ({dataset.split}; {complete})"
    raise DataError(what, dataset.root, f"{fix}; or choose items with `query_items` and `train_items`")
