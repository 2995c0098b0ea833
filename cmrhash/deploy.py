"""The database codes of a run in a store, where others search them: one collection a view.

A collection is called DATASET-RUN-VIEW, such as ``shop-tie-ap-64-image``. Its keys are the items' ids; where all
captions of an item can be found, relevance being by pairs, ``ID#0``, ``ID#1``, ... Its meta says which heads made it,
so that codes of another training are never taken for those of this one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np

from cmrhash import runs
from cmrhash.config import BATCH_ROWS
from cmrhash.data.dataset import ImageTextDataset
from cmrhash.encode import Encoded
from cmrhash.errors import StaleError
from cmrhash.recipe import first_difference
from cmrhash.stores import Batch, CodeStore, Collection

Progress = Callable[..., None]  # (what, done, total)


def deploy(
    run: runs.Run,
    dataset: ImageTextDataset,
    views: Mapping[str, Encoded],
    store: CodeStore,
    approximate: bool | None = None,
    progress: Progress = lambda *_: None,
) -> list[Collection]:
    """Put every view of a run into a store, in place of what the store had of that run."""
    made = []
    for view, encoded in views.items():
        name = collection_of(run, view)
        batches = _batches(name, keys_of(run, dataset, encoded), encoded, progress)
        made.append(store.replace(name, run.bits, batches, meta_of(run, view), approximate))
    return made


def collection_of(run: runs.Run, view: str) -> str:
    """What the codes of a view are called in a store."""
    return f"{run.config['dataset']}-{run.folder.resolve().name}-{view}"


def meta_of(run: runs.Run, view: str) -> dict[str, str]:
    """What the codes of a view were made from."""
    heads, items = run.config["files"][runs.HEADS], run.config["items_sha256"]
    return {"view": view, "heads_sha256": heads, "items_sha256": items}


def keys_of(run: runs.Run, dataset: ImageTextDataset, encoded: Encoded) -> list[str]:
    """The keys of a view's database rows, in their order."""
    item = encoded.codes.item
    ids = [dataset.items[at].id for at in item[encoded.database].tolist()]
    if run.relevance != "pairs":
        return ids
    nth = np.arange(len(item)) - np.searchsorted(item, item)  # of the item's rows, which lie side by side
    return [f"{ident}#{n}" for ident, n in zip(ids, nth[encoded.database].tolist(), strict=True)]


def refuse_other_codes(run: runs.Run, view: str, store: CodeStore) -> None:
    """Raise UsageError if a store has nothing of a view, StaleError if what it has was not made by this very run."""
    about = store.about(collection_of(run, view))
    fix = "put this run there with cmrhash index"
    difference = first_difference({"bits": about.bits, **about.meta}, {"bits": run.bits, **meta_of(run, view)})
    if difference:
        field, found, wanted = difference
        what = f"collection '{about.name}' was made with {field} = {found}, {run.folder} has {wanted}"
        raise StaleError(what, store.url, fix)


def _batches(name: str, keys: list[str], encoded: Encoded, progress: Progress) -> Iterator[Batch]:
    progress(name, 0, len(keys))
    for start in range(0, len(keys), BATCH_ROWS):
        rows = encoded.database[start : start + BATCH_ROWS]
        yield keys[start : start + BATCH_ROWS], encoded.codes.packed[rows]
        progress(name, start + len(rows), len(keys))
