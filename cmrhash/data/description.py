"""The description of a stored data set, ``dataset.json``, with the types of its fields."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cmrhash.data.items import ImageTextDataset, Item
from cmrhash.storage import records

LATER, BROUGHT = "later", "brought"  # ranges of rows, as fields of ImageTextDataset


@dataclass(frozen=True)
class Description:
    """Fields of the description, as those of ``ImageTextDataset``; those with a default may be missing.

    root: folder of the photos; follow_links: its links are followed; also: folders elsewhere with added photos. later,
    brought: half-open ranges of rows. items_sha256, blocks_sha256: digests of the two files of items.
    """

    name: str
    root: str
    relevance: str
    classes: tuple[str, ...]
    split_seed: int | None
    val_drawn: bool
    found: Mapping[str, int]
    items_sha256: str
    blocks_sha256: str | None = None
    added: int = 0
    later: tuple[tuple[int, ...], ...] = ()
    brought: tuple[tuple[int, ...], ...] = ()
    chosen: str = ""
    follow_links: bool = False
    also: tuple[str, ...] = ()


def check(about: Mapping[str, Any]) -> None:
    """Raise ValueError or KeyError for a field that is missing, of another type or out of range."""
    read: Description = records.read(Description, about)
    if read.added < 0:
        raise ValueError(f"'added' is {read.added}")
    for each in (*read.later, *read.brought):
        if len(each) != 2 or not 0 <= each[0] < each[1]:
            raise ValueError(f"rows {list(each)}")


def joined(dataset: ImageTextDataset) -> dict[str, list[list[int]]]:
    """Rows of the items that joined the data set, as half-open ranges; kinds without any are left out."""
    found = {}
    for kind, ids in ((LATER, dataset.later), (BROUGHT, dataset.brought)):
        rows = [row for row, item in enumerate(dataset.items) if item.id in ids] if ids else []
        starts = [n for n, row in enumerate(rows) if not n or row != rows[n - 1] + 1]
        stops = [*starts[1:], len(rows)]
        if rows:
            found[kind] = [[rows[start], rows[stop - 1] + 1] for start, stop in zip(starts, stops, strict=True)]
    return found


def ids_of(items: Sequence[Item], ranges: Iterable[Sequence[int]]) -> frozenset[str]:
    """Ids in the ranges of rows that ``joined`` gives."""
    return frozenset(item.id for start, stop in ranges for item in items[start:stop])
