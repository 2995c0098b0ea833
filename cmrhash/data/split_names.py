"""Splits by the names of files, as "train-00000.tar", "val/0.tar" or "test-00000-of-00002.parquet"."""

from __future__ import annotations

import re
from collections.abc import Sequence

_SPLIT = re.compile(r"(?:^|[/_.-])(train|validation|valid|val|dev|test)(?=[^a-z])", re.IGNORECASE)


def splits_of(paths: Sequence[str]) -> list[str]:
    """The split of each file: "train", "val" or "test"; all "" unless every path names one and train and test occur.

    Validation without test counts as test.

    >>> splits_of(["train-0.tar", "val-0.tar"])
    ['train', 'test']
    """
    found = [match[1].lower() if (match := _SPLIT.search(path)) else "" for path in paths]
    splits = [split if split in ("", "train", "test") else "val" for split in found]
    if "test" not in splits:
        splits = ["test" if split == "val" else split for split in splits]
    return splits if all(splits) and {"train", "test"} <= set(splits) else [""] * len(splits)


def roles_of(split: str, by_labels: bool) -> frozenset[str]:
    """Roles of an item of a split ("train", "val", "query", "database" or "").

    By labels, train and val items are also in the database; otherwise the queries are their own database.
    """
    also = split in (("train", "val") if by_labels else ("query",))
    return frozenset({split, "database"} if also else {split} - {""})
