"""Changes of a data set since its extraction: what is new, gone or different, and the splits of what is left."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cmrhash.data.additions import named, settled, without
from cmrhash.data.description import LATER, ids_of
from cmrhash.data.items import ImageTextDataset, Item
from cmrhash.data.manifest import ABOUT, entry, items_digest, load, read_about
from cmrhash.errors import StaleError
from cmrhash.storage.recipes import refuse_difference

NO_ITEMS = np.empty(0, np.int64)


@dataclass(frozen=True)
class Changes:
    """Ids of new, gone and changed items, and the number of items that are as before."""

    new: tuple[str, ...] = ()
    gone: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    same: int = 0

    def __bool__(self) -> bool:
        return bool(self.new or self.gone or self.changed)

    def __str__(self) -> str:
        kinds = {"new": self.new, "gone": self.gone, "changed": self.changed}
        counts = [f"{len(ids)} {kind}{_named(ids)}" for kind, ids in kinds.items() if ids]
        return ", ".join([*counts, f"{self.same} as before"])


def digests(dataset: ImageTextDataset, first: NDArray[np.int64]) -> bytes:
    """16 bytes per item: the digest of its id, then that of its photo's path, captions and labels.

    first: (n,) items that come first, in ascending order; then the others in theirs.
    """
    order = [*first.tolist(), *np.setdiff1d(np.arange(len(dataset.items)), first).tolist()]
    items = [dataset.items[at] for at in order]
    return b"".join(_short(item.id) + _short(_content(dataset, item)) for item in items)


def known_ids(before: bytes, dataset: ImageTextDataset) -> NDArray[np.bool_]:
    """Whether each item was there before, by its id, (items,) bool. before: ``digests`` or the first of them."""
    then = {before[at : at + 8] for at in range(0, len(before), 16)}
    return np.array([_short(item.id) in then for item in dataset.items], np.bool_)


def changed_since(before: bytes, dataset: ImageTextDataset) -> str:
    """How many items were added, removed or changed, in words; "" for none. before: their ``digests`` then."""
    then, now = (
        {raw[at : at + 8]: raw[at + 8 : at + 16] for at in range(0, len(raw), 16)}
        for raw in (before, digests(dataset, NO_ITEMS))
    )
    both = then.keys() & now.keys()
    counts = {
        "added": len(now) - len(both),
        "removed": len(then) - len(both),
        "changed": sum(then[ident] != now[ident] for ident in both),
    }
    return ", ".join(f"{count} {kind}" for kind, count in counts.items() if count)


def _content(dataset: ImageTextDataset, item: Item) -> str:
    return repr((item.image, sorted(item.texts.items()), sorted(dataset.classes[label] for label in item.labels)))


def _short(text: str) -> bytes:
    return hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=8).digest()


def renewed(
    dataset: ImageTextDataset, folder: Path, overwrite: bool = False, added: str | None = None
) -> tuple[ImageTextDataset, Changes]:
    """Compare a data set with what was extracted of it; return it with the stored splits, and its changes.

    folder: of the data set in the cache, which stays as it is. Without a stored data set, or with ``overwrite``, the
    data set is returned as it is. added: see ``additions.settled``. Drawn and chosen splits stay with their items; new
    items join the database alone, or, where the queries are the database, no split. Raises StaleError for another
    choice, seed or relevance, if most items are gone, if all queries are, if items have lost their photos, or if items
    that ``add`` brought would go.
    """
    if not (folder / ABOUT).exists():
        return dataset, Changes()
    dataset = settled(dataset, folder, added, overwrite)
    if overwrite:
        return dataset, Changes()
    about = read_about(folder)
    _refuse_other_choice(dataset, about, folder)
    for field in ("split_seed", "relevance"):
        made, asked = {field: about.get(field)}, {field: getattr(dataset, field)}
        refuse_difference(made, asked, folder, f"data set '{dataset.name}'")
    if about.get("classes") == list(dataset.classes) and items_digest(dataset) == about["items_sha256"]:
        later = ids_of(dataset.items, about.get(LATER, ()))
        return replace(dataset, added=about.get("added", 0), later=later), Changes(same=len(dataset.items))
    stored = load(folder)
    before = {item.id: item for item in stored.items}
    there = {item.id for item in dataset.items}
    new = tuple(item.id for item in dataset.items if item.id not in before)
    gone = tuple(ident for ident in before if ident not in there)
    if 2 * len(gone) > len(before):
        _refuse(f"{len(gone)} of {len(before)} extracted items are gone{_named(gone)}", folder)
    lost = [item.id for item in dataset.items if item.id in before and before[item.id].image and not item.image]
    if lost and not dataset.ready:
        what = f"the photos of {len(lost)} items were there at the extraction and are gone{_named(lost)}"
        raise StaleError(what, folder, "put them back, or extract without them with `overwrite=True`")
    merged = _joined(replace(dataset, items=_with_splits(dataset, stored, before)), without(stored, gone), new)
    if stored.count("query") and not merged.count("query"):
        _refuse("all query items are gone", folder)
    changed = tuple(
        item.id for item in merged.items if item.id in before and entry(stored, before[item.id]) != entry(merged, item)
    )
    return merged, Changes(new, gone, changed, len(merged.items) - len(new) - len(changed))


def _with_splits(dataset: ImageTextDataset, stored: ImageTextDataset, before: dict[str, Item]) -> tuple[Item, ...]:
    """Items with the stored splits, as far as these were drawn or chosen."""
    if stored.split_seed is None:
        return dataset.items
    searched = stored.relevance == "labels" or not (stored.count("query") or stored.count("train"))
    rest = frozenset({"database"} if searched else ())

    def of(item: Item) -> frozenset[str]:
        old = before[item.id].splits if item.id in before else rest
        if _stays(stored):
            return old
        own = _without_val(item.splits)  # val alone was drawn, the other splits are the data set's own
        return old if item.id in before and _without_val(old) == own else own

    return tuple(replace(item, splits=of(item)) for item in dataset.items)


def _joined(dataset: ImageTextDataset, left: ImageTextDataset, new: Sequence[str]) -> ImageTextDataset:
    """The data set with the record of the items that came after the roles were drawn. left: stored items that stay."""
    drawn = left.split_seed is not None and _stays(left)
    later = frozenset(new) if drawn else frozenset[str]()
    before = left.added if drawn else len(left.later)
    return replace(dataset, added=before + len(later), later=left.later | later)


def _stays(stored: ImageTextDataset) -> bool:
    """Whether all drawn splits stay, not val alone."""
    return bool(stored.chosen) or not stored.val_drawn


def _refuse_other_choice(dataset: ImageTextDataset, about: Mapping[str, Any], folder: Path) -> None:
    """Raise StaleError if other query or train items, or another protocol, were chosen at the extraction."""
    if (chosen := str(about.get("chosen", ""))) != dataset.chosen:
        seed, val_drawn = about.get("split_seed"), bool(about.get("val_drawn"))
        made = replace(dataset, chosen=chosen, split_seed=seed, val_drawn=val_drawn)
        what = f"data set '{dataset.name}' was made with splits = {made.split}, but this call has {dataset.split}"
        raise StaleError(what, folder, "use the same settings, `overwrite=True`, or another `name`")


def _without_val(splits: frozenset[str]) -> frozenset[str]:
    return splits - {"val"} | {"train"} if "val" in splits else splits


def _refuse(what: str, folder: Path) -> None:
    raise StaleError(what, folder, "for another data set, use another `name`; `overwrite=True` replaces this one")


def _named(ids: Sequence[str]) -> str:
    """The first ids, in brackets."""
    return f" {named(ids)}" if ids else ""
