"""Seen and unseen database items: those that the heads of a run were trained on, and all others.

Items without a label are neither where relevance is by labels: no query can find them. Most of them are train items
that no training could use, so that they would weigh on the unseen side alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cmrhash.data.changes import known_ids
from cmrhash.data.items import ImageTextDataset
from cmrhash.evaluation.run_codes import RunCodes
from cmrhash.training import runs

SIDES = UNSEEN, SEEN = ("unseen", "seen")  # names of the kinds 0 and 1
NEITHER = 2
NOTHING = "no query has a relevant item among them"
PAIRS = "by pairs a query finds nothing but its own item, which no training saw"


def kinds(dataset: ImageTextDataset, views: RunCodes) -> NDArray[np.uint8]:
    """Kind of each item for a run, (items,): position in SIDES, or NEITHER."""
    kind = trained_items(dataset, views).astype(np.uint8)
    if dataset.relevance == "labels":
        kind[[not item.labels for item in dataset.items]] = NEITHER
    return kind


def trained_items(dataset: ImageTextDataset, views: RunCodes) -> NDArray[np.bool_]:
    """Whether the heads of a run were trained on each item, (items,) bool.

    Validation items, items that came later and all items of an applied run were not. For runs that recorded only how
    many items they were trained on, splits, labels and codes of the items tell.
    """
    run = views.run
    if run.is_applied:
        return np.zeros(len(dataset.items), np.bool_)
    if run.trained is not None:
        return known_ids(run.file(runs.DIGESTS).read_bytes()[: 16 * run.trained], dataset)
    trained = np.array(["train" in item.splits for item in dataset.items], np.bool_)
    if dataset.relevance == "labels":
        trained &= np.array([bool(item.labels) for item in dataset.items], np.bool_)
    if runs.DIGESTS in run.files:
        trained &= known_ids(run.file(runs.DIGESTS).read_bytes(), dataset)
    names = [view for view in views if view in run.features]
    has = np.stack([np.isin(np.arange(len(trained)), views[view].codes.item) for view in names])  # (views, items)
    used = has.all(axis=0)
    for group in run.record.get("partial", {}):
        members = np.array([view.short in group.split("+") for view in names])
        used |= (has == members[:, None]).all(axis=0)
    return trained & used


def figures(
    mean: Mapping[str, float], kind: NDArray[np.uint8], items: NDArray[np.int64], relevance: str
) -> dict[str, Any]:
    """Figures by seen and unseen items for the row of a search.

    mean: "map", "chance" and, with items of several kinds, both again as "map_seen", "map_unseen", ...; kind: as
    ``kinds``; items: (N,) item of each database row. A figure that does not exist is None, and "map_<side>_missing"
    says why.
    """
    row: dict[str, Any] = {}
    count = np.bincount(kind[np.unique(items)], minlength=NEITHER + 1)
    for at, side in enumerate(SIDES):
        number = int(count[at])
        found = {name: mean.get(f"{name}_{side}", mean[name]) if number else np.nan for name in ("map", "chance")}
        row[f"items_{side}"] = number
        row |= {f"{name}_{side}": None if np.isnan(value) else value for name, value in found.items()}
        if np.isnan(found["map"]):
            none = PAIRS if relevance == "pairs" else NOTHING
            row[f"map_{side}_missing"] = none if number else f"no database item is {side}"
    return row


def by_side(row: Mapping[str, Any]) -> tuple[float | None, float | None]:
    """MAP by seen and by unseen items, of a row of ``evaluate`` or of ``compare``."""
    seen, unseen = (row.get(f"map_{side}", row.get(side)) for side in (SEEN, UNSEEN))
    return seen, unseen


def in_words(rows: Sequence[Mapping[str, Any]], run: runs.Run) -> str:
    """Protocol entry of a run, from its rows: numbers of seen and unseen database items."""
    own = [row for row in rows if row["run"] == str(run.folder)]
    if not own:
        return ""
    most = max(own, key=lambda row: row["items_seen"] + row["items_unseen"])
    seen, unseen = most["items_seen"], most["items_unseen"]
    words = f"{seen} train items" if seen else "no database item was trained on"
    words += f"; unseen: {unseen} items that the heads were not trained on (val items count as unseen)"
    if own[0]["relevance"] == "pairs":
        return f"{words}; {PAIRS}"
    without = most["database"] - seen - unseen
    return f"{words}; {without} items without a label are neither" if without else words
