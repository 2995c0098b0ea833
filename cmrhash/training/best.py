"""Method ``best``: the one that was best on val for this kind of data, as docs/results.md shows."""

from __future__ import annotations

from typing import NamedTuple

from cmrhash.data.items import with_relevance
from cmrhash.features.dataset import ExtractedDataset
from cmrhash.training.names import BEST

EXACT = 20_000  # train items up to which kernel ridge regression is exact


class Choice(NamedTuple):
    """A method, and why it was chosen; "" for one that the caller named."""

    method: str
    why: str


def chosen(method: str, data: ExtractedDataset, relevance: str | None = None) -> Choice:
    """The method of that name; for "best" the one for this kind of data. relevance: as in TrainConfig."""
    if method != BEST:
        return Choice(method, "")
    if data.no_captions:
        return Choice("itq", "photos without captions")
    dataset = with_relevance(data.dataset, relevance)
    if dataset.relevance == "pairs":
        return Choice("supcon", "relevance by pairs")
    labels = [len(item.labels) for item in dataset.items if item.labels and "train" in item.splits]
    kind = "exclusive classes" if max(labels, default=0) == 1 else "several labels an item"
    if len(labels) > EXACT:
        return Choice("tie-ap", f"{kind}, {len(labels)} train items, more than {EXACT} for an exact krr-ap")
    return Choice("krr-ap", kind)
