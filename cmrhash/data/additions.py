"""Items that join or leave an extracted collection, and what an extraction does about those that ``add`` brought."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from cmrhash.config import DROP
from cmrhash.data.description import BROUGHT
from cmrhash.data.items import ImageTextDataset, Item, LinkedRoot, also_of, check, root_of
from cmrhash.data.manifest import load, read_about
from cmrhash.errors import CmrhashError, DataError, StaleError

NAMED = 5  # ids in a message
BY_HAND = "to replace an item, remove it and add it again"


def merged(
    stored: ImageTextDataset, more: ImageTextDataset
) -> tuple[ImageTextDataset, tuple[str, ...], tuple[str, ...]]:
    """The collection with the new items at its end; their ids, and those that it had already.

    Raises DataError for an id that the collection has with another content.
    """
    classes = (*stored.classes, *(name for name in more.classes if name not in stored.classes))
    if list(stored.classes) == sorted(stored.classes):
        classes = tuple(sorted(classes))
    before = {item.id: item for item in _numbered(stored, classes)}
    after = _numbered(more, classes)
    same = tuple(item.id for item in after if item.id in before and _content(item) == _content(before[item.id]))
    new = [item for item in after if item.id not in before]
    if other := sorted({item.id for item in after} - {*same, *(item.id for item in new)}):
        what = f"'{stored.name}' has {len(other)} of these ids with other content {named(other)}"
        raise DataError(what, more.root, f"give new ids, or put text before them with `prefix`; {BY_HAND}")
    ids = frozenset(item.id for item in new)
    later = ids if stored.split_seed is not None else frozenset()
    also = dict.fromkeys([*also_of(stored.root), *also_of(more.root)])
    dataset = replace(
        stored,
        items=(*before.values(), *new),
        classes=classes,
        root=root_of(stored.root, isinstance(stored.root, LinkedRoot), also),
        added=stored.added + len(later),
        later=stored.later | later,
        brought=stored.brought | ids,
    )
    return check(dataset), tuple(item.id for item in new), same


def without(dataset: ImageTextDataset, gone: Collection[str]) -> ImageTextDataset:
    """The collection without these items."""
    left = tuple(item for item in dataset.items if item.id not in gone)
    later, brought = dataset.later.difference(gone), dataset.brought.difference(gone)
    added = dataset.added - len(dataset.later) + len(later)
    return replace(dataset, items=left, added=added, later=later, brought=brought)


def settled(dataset: ImageTextDataset, folder: Path, added: str | None, overwrite: bool) -> ImageTextDataset:
    """A data set as read, with or without the items that ``add`` brought to its extraction in this folder.

    added: KEEP puts those that the data set lacks at its end, DROP leaves them out, None raises StaleError if there are
    any. overwrite: the folder may be damaged; then there are none.
    """
    try:
        stored = load(folder) if added != DROP and BROUGHT in read_about(folder) else None
    except CmrhashError:
        if not overwrite:
            raise
        return dataset
    return dataset if stored is None else _kept(dataset, stored, folder, added)


def _kept(dataset: ImageTextDataset, stored: ImageTextDataset, folder: Path, added: str | None) -> ImageTextDataset:
    there = {item.id for item in dataset.items}
    lost = tuple(item for item in stored.items if item.id in stored.brought and item.id not in there)
    if not lost:
        return dataset
    if added is None:
        ids = named(item.id for item in lost)
        what = f"{len(lost)} items that `add` brought {ids} would go, because {dataset.root} does not have them"
        raise StaleError(what, folder, 'keep them with `added="keep"`, or take them out with `added="drop"`')
    kept = merged(dataset, replace(stored, items=lost))[0]
    return replace(kept, notes=(*dataset.notes, f"kept {len(lost)} items that `add` brought"))


def named(ids: Iterable[str]) -> str:
    """The first ids, in brackets."""
    some = list(ids)
    return f"({', '.join(some[:NAMED])}{', ...' if len(some) > NAMED else ''})"


def _numbered(dataset: ImageTextDataset, classes: Sequence[str]) -> list[Item]:
    """Items with their labels as numbers of these classes."""
    place = {name: n for n, name in enumerate(classes)}
    at = [place[name] for name in dataset.classes]
    if at == list(range(len(at))):
        return list(dataset.items)
    return [replace(item, labels=tuple(sorted(at[label] for label in item.labels))) for item in dataset.items]


def _content(item: Item) -> tuple[Any, ...]:
    return item.image, dict(item.texts), item.labels
