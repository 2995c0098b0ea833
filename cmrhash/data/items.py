"""Data model: items with an image, captions by language, labels and roles.

An item's roles (``splits``) are a subset of train, val, query and database. It is a set, because in most protocols of
the field the training items are also part of the database. No query item is a train or val item.
"""

from __future__ import annotations

import hashlib
import os
import random
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cmrhash.data.cleaning import is_printable
from cmrhash.data.view import View, languages_of
from cmrhash.errors import DataError, UsageError, did_you_mean
from cmrhash.storage.recipes import canonical

ROLES = ("train", "val", "query", "database")
FOLLOW = "use `follow_links=True`, or copy the files below the root"
RELEVANCE = {"labels": "shares at least one label", "pairs": "the item's own counterpart"}

# Protocol of IAPR TC-12 as shares, so that smaller copies keep its proportions:
# 20,000 items -> 2,000 query, 18,000 database, 10,000 of these train, 500 of these val.
QUERY_SHARE, TRAIN_SHARE, VAL_SHARE = 0.10, 0.50, 0.05
# Protocol of Pascal Sentence: 10 of the 50 items of every class are test, the others train.
TEST_SHARE = 0.20


@dataclass(frozen=True, slots=True)  # slots: a million items must fit into memory
class Item:
    """One photo with its captions.

    id: unique in the data set. image: path below the root with "/" between folders; None if missing.
    texts: language -> captions (normalised, never empty). labels: indices into ``ImageTextDataset.classes``.
    splits: roles of the item, a subset of ``ROLES``.
    """

    id: str
    image: str | None
    texts: Mapping[str, tuple[str, ...]]
    labels: tuple[int, ...]
    splits: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Ready:
    """Precomputed features of a view, used instead of an encoder.

    name: replaces the encoder's name in file names. source: description of file and arrays for the user.
    x: (rows, D) real numbers of any dtype; rows that are not finite as float32 count as broken.
    item: (rows,) int32, item of each row, ascending; None means a row per item.
    sha256: of the rows that these were chosen from, empty for all.
    """

    name: str
    source: str
    x: NDArray[Any]
    item: NDArray[np.int32] | None = None
    sha256: str = ""


@dataclass(frozen=True)
class ImageTextDataset:
    """A named list of items in a fixed order.

    relevance: "labels" (items that share a label are relevant to each other) or "pairs" (only an item's own counterpart
    is relevant).
    found: what the reader found and missed: description -> count, for the user.
    split_seed: seed from which the roles were drawn; None if the data set has its own.
    val_drawn: only val was drawn from that seed, out of train items that were given.
    chosen: how the user chose query or train items, in words; empty: the data set's own, or drawn.
    added: number of items that came after the roles were drawn; later: their ids, as far as they were recorded.
    brought: ids of the items that ``add`` brought, which the data set's own files need not have.
    sha256: digest of the items as stored in the cache; empty until they are stored.
    protocol: how ``with_roles`` draws missing roles: "database" (shares of IAPR TC-12, train is part of the database)
    or "per-class" (a share of every class is test, which is both queries and database).
    paired: made by ``by_pairs`` of a data set with relevance by labels; its roles may be others than those of labels.
    ready: precomputed features by view, read with the data set. They go into feature files and are not stored with the
    items.
    notes: lines for the user on what the reader left aside; not stored either.
    """

    name: str
    root: Path
    items: tuple[Item, ...]
    classes: tuple[str, ...]
    relevance: str = "labels"
    found: Mapping[str, int] = field(default_factory=dict)
    split_seed: int | None = None
    sha256: str = ""
    protocol: str = "database"
    val_drawn: bool = False
    added: int = 0
    later: frozenset[str] = frozenset()
    brought: frozenset[str] = frozenset()
    chosen: str = ""
    paired: bool = False
    ready: Mapping[View, Ready] = field(default_factory=dict, compare=False)
    notes: tuple[str, ...] = field(default=(), compare=False)

    def __repr__(self) -> str:
        about = f"{len(self.items)} items, {len(self.classes)} classes, {', '.join(self.languages) or 'no captions'}"
        return f"ImageTextDataset({self.name!r}, {about}, in {str(self.root)!r})"

    @property
    def split(self) -> str:
        """Origin of the roles, as text."""
        given = self.chosen or "the data set's own"
        if self.split_seed is None:
            return given
        words = f"drawn from seed {self.split_seed}"
        if self.val_drawn or self.chosen:
            words = f"{given}; {'val' if self.val_drawn else 'the rest'} {words}"
        return words + (f"; {self.added} items added since" if self.added else "")

    @property
    def languages(self) -> tuple[str, ...]:
        """Languages of all captions and precomputed features, sorted."""
        ready = languages_of(self.ready)
        return tuple(sorted({*ready} | {lang for item in self.items for lang in item.texts}))

    @property
    def can_be_scored(self) -> bool:
        """Whether items have labels or captions, which make others relevant to them."""
        return self.relevance == "labels" or bool(self.languages)

    def count(self, role: str) -> int:
        """Number of items with that role."""
        return sum(role in item.splits for item in self.items)


if TYPE_CHECKING:
    _Path = Path
else:
    _Path = type(Path())  # Path itself has no usable subclasses before Python 3.12


class WideRoot(_Path):
    """Folder of a data set that also has photos elsewhere, whose items have absolute paths.

    also: folders below which such paths must be.
    """

    also: tuple[Path, ...] = ()


class LinkedRoot(WideRoot):
    """Folder of a data set below which symbolic links may lead anywhere, as ``follow_links`` wants."""


def root_of(root: Path, follow_links: bool, also: Iterable[Path] = ()) -> Path:
    """The folder of a data set, as a LinkedRoot if links are followed. also: other folders with photos."""
    also = tuple(also)
    if not (follow_links or also):
        return root
    made = LinkedRoot(root) if follow_links else WideRoot(root)
    made.also = also
    return made


def also_of(root: Path) -> tuple[Path, ...]:
    """The other folders of a data set with photos."""
    return root.also if isinstance(root, WideRoot) else ()


def resolve_image(root: Path, image: str) -> Path:
    """Path of an item's image file, which must be below ``root`` after links are followed.

    Raises DataError for absolute paths outside the root's other folders, for ".." and, unless the root is a LinkedRoot,
    for links that leave the root. A link to itself passes; reading it later counts as one broken photo.
    """
    path = root / PurePosixPath(image)
    if folder := next((folder for folder in also_of(root) if path.is_relative_to(folder)), None):
        below = path.relative_to(folder).as_posix()
        return resolve_image(root_of(folder, isinstance(root, LinkedRoot)), below)
    escapes = PurePosixPath(image).is_absolute() or ".." in PurePosixPath(image).parts or "\\" in image
    how, fix = "", "use paths below the root"
    try:
        followed = escapes or isinstance(root, LinkedRoot)
        if not followed and not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(root)):
            escapes, how, fix = True, " by a symbolic link", FOLLOW
    except (OSError, ValueError):  # not a valid file name
        escapes = True
    if escapes:
        raise DataError(f"image path {image!r} leaves the data set's folder{how}", root, fix)
    return path


class ImagesBelow:
    """``resolve_image`` for many images of a root, while their folders stay as they are.

    Each folder is resolved once; an image is resolved only if it is a link or its path is unusual.
    """

    def __init__(self, root: Path) -> None:
        self.root, self._real = root, Path(os.path.realpath(root))
        self._folders: dict[str, str] = {}  # folder below the root -> its path without links, "" if that is elsewhere

    def check(self, image: str) -> str:
        """The path of the image below the root, as text. Raises DataError as ``resolve_image`` does."""
        folder, _, name = image.rpartition("/")
        usual = name not in ("", ".", "..") and image[0] != "/" and "\\" not in image and "\0" not in image
        real = self._folders.get(folder) if usual else None
        if not real or os.path.islink(f"{real}/{name}"):
            resolve_image(self.root, image)
        if usual and real is None:
            real = os.path.realpath(self.root / folder)
            self._folders[folder] = real if Path(real).is_relative_to(self._real) else ""
        return f"{self.root}/{image}"


def ids_digest(dataset: ImageTextDataset) -> str:
    """sha256 of the ids in order."""
    return hashlib.sha256(canonical({"ids": [item.id for item in dataset.items]})).hexdigest()


def check(dataset: ImageTextDataset) -> ImageTextDataset:
    """Return the data set if it satisfies the data model; otherwise raise DataError."""
    if not dataset.items:
        raise DataError("the data set has no items", dataset.root, "check `root` and the layout of its files")
    ids = [item.id for item in dataset.items]
    if len(set(ids)) < len(ids):
        doubles = [i for i, n in Counter(ids).items() if n > 1]
        _refuse("ids are repeated", doubles, dataset.root, "give every item its own id")
    if not (is_printable("".join(ids)) and all(map(str.strip, ids))):
        unnamed = [ascii(i) for i in ids if not (i.strip() and is_printable(i))]
        _refuse("ids that are empty or cannot be printed", unnamed, dataset.root, "give every item a printable id")
    known = range(len(dataset.classes))
    if any(label not in known for label in set(chain.from_iterable(item.labels for item in dataset.items))):
        unknown = [i.id for i in dataset.items if any(label not in known for label in i.labels)]
        _refuse("items with a label outside the list of classes", unknown, dataset.root, "fix the labels")
    _check_splits(dataset)
    return dataset


def _check_splits(dataset: ImageTextDataset) -> None:
    """Raise DataError for items with unknown roles, or with roles that exclude each other."""
    distinct = {frozenset(item.splits) for item in dataset.items}  # a million items have few
    train, val = ({s for s in distinct if role in s} for role in ("train", "val"))
    queries = {s for s in distinct if "query" in s}
    for what, wrong, fix in (
        (f"items with a split other than {', '.join(ROLES)}", {s for s in distinct if s - {*ROLES}}, "fix the splits"),
        ("query items are also train or val items", queries & (train | val), "keep queries out of training"),
        ("items are both train and val items", train & val, "keep validation items out of training"),
    ):
        _refuse(what, [i.id for i in dataset.items if i.splits in wrong] if wrong else [], dataset.root, fix)


def _refuse(what: str, ids: list[str], where: Path, fix: str) -> None:
    """Raise DataError that lists the first offending ids, if there are any."""
    if ids:
        raise DataError(f"{what} ({len(ids)}: {', '.join(ids[:5])}{', ...' if len(ids) > 5 else ''})", where, fix)


def with_roles(dataset: ImageTextDataset, seed: int) -> ImageTextDataset:
    """Draw missing roles: all of them, or val out of train.

    Roles are drawn from ``seed`` over the complete items (with image, captions and, for relevance by labels, a label);
    the others only join the database. If no item is complete, all are the database. With relevance "pairs" the queries
    are also the database, as on Flickr30k. The same holds for protocol "per-class", which makes ``TEST_SHARE`` of every
    class test and the others train.
    """
    rng = random.Random(seed)
    brings = any(item.splits for item in dataset.items)
    if not brings and not complete_rows(dataset):
        roles = [frozenset({"database"})] * len(dataset.items)
    elif not brings:
        roles = _draw_per_class(dataset, rng) if dataset.protocol == "per-class" else _draw(dataset, rng)
    elif dataset.count("train") and not dataset.count("val"):
        roles = [item.splits for item in dataset.items]
        carve_val(roles, rng)
    else:
        return dataset
    same = {r: r for r in roles}  # share one object between equal roles to save memory
    items = tuple(replace(item, splits=same[r]) for item, r in zip(dataset.items, roles, strict=True))
    return replace(dataset, items=items, split_seed=seed, val_drawn=brings)


def with_relevance(dataset: ImageTextDataset, asked: str | None) -> ImageTextDataset:
    """The data set with the relevance ``asked``; None: its own.

    A data set of relevance "pairs" may have labels, too. Raises UsageError for an unknown relevance, and for "labels"
    without labels.
    """
    asked = dataset.relevance if asked is None else asked
    if asked not in RELEVANCE:
        fix = f"{did_you_mean(asked, RELEVANCE)} choose one of {', '.join(RELEVANCE)}"
        raise UsageError(f"unknown relevance '{asked}'", None, fix, option="relevance")
    if asked == "pairs":
        return by_pairs(dataset)
    if dataset.relevance != "labels" and (dataset.paired or not dataset.classes):
        raise UsageError(
            f"data set '{dataset.name}' has no labels", None, 'leave out `relevance`, or use `relevance="pairs"`'
        )
    return dataset if dataset.relevance == "labels" else replace(dataset, relevance="labels")


def by_pairs(dataset: ImageTextDataset) -> ImageTextDataset:
    """The data set for instance retrieval: an item is relevant only to itself.

    Unless all query items are in the database already, they become the database, as in the protocol of Flickr30k, where
    test items are searched among each other. ``sha256`` remains that of the stored items.
    """
    paired = replace(dataset, relevance="pairs", paired=dataset.paired or dataset.relevance == "labels")
    if all("database" in item.splits for item in dataset.items if "query" in item.splits):
        return paired
    items = tuple(
        replace(item, splits=item.splits - {"database"} | ({"database"} if "query" in item.splits else set()))
        for item in dataset.items
    )
    return replace(paired, items=items)


def complete_rows(dataset: ImageTextDataset) -> list[int]:
    """Rows of the items with image, text and, for relevance by labels, a label.

    Precomputed features count as image or text.
    """
    by_labels = dataset.relevance == "labels"
    image, text = View.IMAGE in dataset.ready, bool(languages_of(dataset.ready))
    return [
        row
        for row, item in enumerate(dataset.items)
        if (image or item.image) and (text or item.texts) and (item.labels or not by_labels)
    ]


def _draw(dataset: ImageTextDataset, rng: random.Random) -> list[frozenset[str]]:
    """Roles by protocol "database", in the order of the items."""
    by_labels = dataset.relevance == "labels"
    complete = complete_rows(dataset)
    rng.shuffle(complete)
    queries, trains = round(QUERY_SHARE * len(complete)), round(TRAIN_SHARE * len(complete))
    if not by_labels:
        trains = len(complete) - queries
    rest = frozenset({"database"}) if by_labels else frozenset[str]()
    roles = [rest] * len(dataset.items)
    query = frozenset({"query"}) if by_labels else frozenset({"query", "database"})
    for row in complete[:queries]:
        roles[row] = query
    train = rest | {"train"}
    for row in complete[queries : queries + trains]:
        roles[row] = train
    carve_val(roles, rng)
    return roles


def _draw_per_class(dataset: ImageTextDataset, rng: random.Random) -> list[frozenset[str]]:
    """Roles by protocol "per-class": test items are queries and, together, the database.

    An item belongs to the class of its first label. Incomplete items get no role: they would be the only database items
    that are not test items.
    """
    rows_of: dict[int, list[int]] = {}
    for row in complete_rows(dataset):
        rows_of.setdefault(dataset.items[row].labels[0], []).append(row)
    roles = [frozenset[str]()] * len(dataset.items)
    for _, rows in sorted(rows_of.items()):
        rng.shuffle(rows)
        tests = round(TEST_SHARE * len(rows))
        for at, row in enumerate(rows):
            roles[row] = frozenset({"query", "database"}) if at < tests else frozenset({"train"})
    carve_val(roles, rng)
    return roles


def carve_val(roles: list[frozenset[str]], rng: random.Random) -> None:
    """Turn VAL_SHARE of the train rows into val, in place; at least one of two rows."""
    train = [row for row, r in enumerate(roles) if "train" in r]
    count = max(round(VAL_SHARE * len(train)), int(len(train) > 1))
    for row in rng.sample(train, count):
        roles[row] = roles[row] - {"train"} | {"val"}


def common_missing(items: Iterable[Item], languages: Iterable[str]) -> dict[str, int]:
    """Number of items without a label or a caption per language, if above 0."""
    items = list(items)
    missing = {f"items without {lang} text": sum(lang not in i.texts for i in items) for lang in languages}
    missing["items without a label"] = sum(not i.labels for i in items)
    return {what: n for what, n in missing.items() if n}
