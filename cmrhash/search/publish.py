"""Publish a run's codes to a store, one collection per view.

A collection is named DATASET-RUN-VIEW, such as ``shop-tie-ap-64-image``. Its keys are the items' ids; where relevance
is by pairs, and all captions can be found, ``ID#0``, ``ID#1``, ... Its meta records the heads and the items, so that
codes of another training or of other items are never mistaken for these.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np

from cmrhash.config import BATCH_ROWS, CACHE, Progress
from cmrhash.data.items import ImageTextDataset
from cmrhash.data.view import View
from cmrhash.errors import StaleError, UsageError
from cmrhash.evaluation.run_codes import ViewCodes
from cmrhash.search.stores import Batch, CodeStore, Collection, IncrementalStore
from cmrhash.storage.recipes import first_difference
from cmrhash.training import runs
from cmrhash.training.runs import Run


def deploy(
    run: Run,
    dataset: ImageTextDataset,
    views: Mapping[View, ViewCodes],
    store: CodeStore,
    approximate: bool | None = None,
    progress: Progress = lambda *_: None,
    among: str = "all",
    embeddings: bool = False,
) -> list[Collection]:
    """Publish every view of a run to a store, replacing the run's earlier collections.

    among: items that the views' indexes cover, one of ``run_codes.AMONG``; approximate, embeddings: as in
    ``CodeStore.replace``.
    """
    made = []
    for view, codes in views.items():
        name = collection_of(run, view)
        batches = _batches(name, keys_of(run, dataset, codes), codes, progress)
        made.append(store.replace(name, run.bits, batches, meta_of(run, dataset, view, among), approximate, embeddings))
        progress(f"{name}: index", 1, 1)
    return made


Published = Mapping[View, dict[str, bytes]]  # of a run: view -> key -> code


def published(run: Run, dataset: ImageTextDataset, views: Mapping[View, ViewCodes]) -> Published:
    """Codes of a run by the keys that a store has for them."""
    return {
        view: dict(zip(keys_of(run, dataset, codes), map(bytes, codes.codes.packed[codes.database]), strict=True))
        for view, codes in views.items()
    }


def update(
    run: Run,
    dataset: ImageTextDataset,
    views: Mapping[View, ViewCodes],
    store: IncrementalStore,
    before: Published,
    among: str,
) -> list[Collection]:
    """Change the codes that differ from those of ``before``, which the store has, one transaction per view."""
    made = []
    for view, now in published(run, dataset, views).items():
        name, then = collection_of(run, view), before[view]
        gone = [key for key, code in then.items() if now.get(key) != code]
        new = {key: code for key, code in now.items() if then.get(key) != code}
        packed = np.frombuffer(b"".join(new.values()), np.uint8).reshape(len(new), -(-run.bits // 8))
        keys, rows = keys_of(run, dataset, views[view]), views[view].database
        embedding = views[view].embedding[rows[[key in new for key in keys]]]
        made.append(store.update(name, gone, [(list(new), packed, embedding)], meta_of(run, dataset, view, among)))
    return made


def collection_of(run: Run, view: View) -> str:
    """Name of a view's collection in a store."""
    return f"{run.dataset}-{run.folder.resolve().name}-{view}"


def meta_of(run: Run, dataset: ImageTextDataset, view: View, among: str) -> dict[str, str]:
    """Meta of a view's collection: view, heads, items and covered items."""
    heads = run.files[runs.HEADS]
    return {"view": view, "heads_sha256": heads, "items_sha256": dataset.sha256, "among": among}


def keys_of(run: Run, dataset: ImageTextDataset, view: ViewCodes) -> list[str]:
    """Keys of the rows in a view's index, in index order."""
    ids = [dataset.items[at].id for at in view.codes.item[view.database].tolist()]
    if run.relevance != "pairs":
        return ids
    return [f"{ident}#{n}" for ident, n in zip(ids, view.ordinal[view.database].tolist(), strict=True)]


def scope_of(run: Run, views: Iterable[View], store: CodeStore) -> str:
    """Items that a store holds of a run: "database" or "all"; "all" if it holds none."""
    names, there = [collection_of(run, view) for view in views], store.names()
    found = [store.about(name) for name in names if name in there]
    return str(found[0].meta.get("among", "database")) if found else "all"


def index_call(store: CodeStore, cache: Path, run: Run | None = None, dataset: str | None = None) -> str:
    """The call that stores the codes of a run, or of a data set's best run, for messages."""
    given = {"run": run and run.folder, "dataset": dataset, "store": store.url, "cache": cache}
    named = (f'`{name}="{value}"`' for name, value in given.items() if value not in (None, CACHE))
    return " ".join(["`index`", *named])


def refuse_other_codes(
    run: Run, dataset: ImageTextDataset, view: View, store: CodeStore, among: str, cache: Path
) -> None:
    """Raise an error unless a store holds this run's codes of a view and of these items.

    UsageError if there is no such collection, StaleError if it was made by another run or covers other items. A
    collection whose meta lacks ``among`` covers the database. cache: that of the data set, for the messages.
    """
    call = index_call(store, cache, run)
    try:
        about = store.about(collection_of(run, view))
    except UsageError as error:
        raise UsageError(error.what, error.where, f"create it with {call}") from None
    made = {"bits": about.bits, "among": "database", **about.meta}
    difference = first_difference(made, {"bits": run.bits, **meta_of(run, dataset, view, among)})
    if difference:
        field, found, wanted = difference
        what = f"collection '{about.name}' was made with {field} = {found}, but {run.folder} has {wanted}"
        fix = f"store this run with {call}"
        if field == "items_sha256":
            what, fix = (
                f"collection '{about.name}' was stored before the items changed",
                f"store this run again with {call}",
            )
        if field == "among":
            what = f'collection "{about.name}" was made with `among="{found}"`, but this call has `among="{wanted}"`'
            fix = f'use `among="{found}"`, or {fix} `among="{wanted}"`'
        raise StaleError(what, store.url, fix)


def _batches(name: str, keys: list[str], view: ViewCodes, progress: Progress) -> Iterator[Batch]:
    progress(name, 0, len(keys))
    for start in range(0, len(keys), BATCH_ROWS):
        rows = view.database[start : start + BATCH_ROWS]
        yield keys[start : start + BATCH_ROWS], view.codes.packed[rows], view.embedding[rows]
        progress(name, start + len(rows), len(keys))
    progress(f"{name}: index", 0, 1, "the store, which builds its index")
