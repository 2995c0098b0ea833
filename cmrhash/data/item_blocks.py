"""Items in blocks of columns: a copy of ``items.jsonl`` that is read three times as fast.

The first line is the sha256 of ``items.jsonl``; each other line is a JSON list of BLOCK items: ids, image paths,
labels, splits, captions by language. Labels and splits are a list of the distinct ones and the number of each item's.
Captions are one list and the number of each item's, which is None if every item has one.
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import json
import sys
from collections.abc import Hashable, Iterable, Iterator, Sequence
from itertools import islice, starmap
from pathlib import Path
from typing import IO, Any

from cmrhash.data.cleaning import check_language
from cmrhash.data.items import ROLES, ImageTextDataset, Item

BLOCK = 4096  # items per line


def dump(dataset: ImageTextDataset, items_sha256: str) -> Iterator[bytes]:
    """Lines of the file; equal items give equal bytes."""
    yield _first_line(items_sha256)
    encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
    items = iter(dataset.items)
    while block := list(islice(items, BLOCK)):
        labels, label_of = _distinct([tuple(item.labels) for item in block])
        splits, split_of = _distinct([frozenset(item.splits) for item in block])
        row = [
            [item.id for item in block],
            [item.image for item in block],
            [[[dataset.classes[label] for label in one] for one in labels], label_of],
            [[[role for role in ROLES if role in one] for one in splits], split_of],
            {lang: _captions(block, lang) for lang in sorted({lang for item in block for lang in item.texts})},
        ]
        yield (encode(row) + "\n").encode(errors="backslashreplace")  # a lone surrogate becomes its JSON escape


def _distinct(values: Sequence[Hashable]) -> tuple[list[Any], list[int]]:
    """Distinct values in order of appearance, and the number of each value among them."""
    number = {value: n for n, value in enumerate(dict.fromkeys(values))}
    return list(number), [number[value] for value in values]


def _captions(block: Sequence[Item], lang: str) -> tuple[list[str], list[int] | None]:
    texts = [item.texts.get(lang, ()) for item in block]
    counts = [len(own) for own in texts]
    return [text for own in texts for text in own], None if set(counts) == {1} else counts


def _first_line(items_sha256: object) -> bytes:
    return f"{items_sha256}\n".encode()


@contextlib.contextmanager
def open_blocks(path: Path, sha256: object, items_sha256: object) -> Iterator[IO[bytes] | None]:
    """Yield the lines of blocks, or None if the file is missing, changed, or a copy of another ``items.jsonl``."""
    try:
        lines = path.open("rb") if path.is_file() else None  # opening a pipe would block
    except OSError:
        lines = None
    with lines or contextlib.nullcontext():
        same = lines and hashlib.file_digest(lines, "sha256").hexdigest() == sha256 and lines.seek(0) == 0
        yield lines if lines and same and lines.readline(100) == _first_line(items_sha256) else None


def load(lines: Iterable[bytes], classes: Sequence[str]) -> tuple[Item, ...]:
    """Items from the lines that ``dump`` wrote; only the types of values are checked.

    Equal labels and splits share one object. Raises KeyError, TypeError, ValueError and others for lines that ``dump``
    never writes.
    """
    number = {label: n for n, label in enumerate(classes)}
    same: dict[Any, Any] = {}
    items: list[Item] = []
    for line in lines:
        ids, images, (labels, label_of), (splits, split_of), texts = json.loads(line.decode())
        label_table = [tuple([number[label] for label in one]) for one in labels]
        label_table = [same.setdefault(one, one) for one in label_table]
        split_table = [same.setdefault(one, one) for one in map(frozenset, splits)]
        "".join(ids), "".join([image for image in images if image is not None])  # TypeError if one is no string
        columns = ids, images, _texts(texts, len(ids)), _chosen(label_table, label_of), _chosen(split_table, split_of)
        items.extend(starmap(Item, zip(*columns, strict=True)))
    return tuple(items)


def _chosen(table: list[Any], numbers: list[int]) -> list[Any]:
    """Values by their numbers. Raises IndexError for a number below 0, too."""
    if min(numbers) < 0:
        raise IndexError("a number below 0")
    return [table[n] for n in numbers]


def _texts(columns: dict[str, tuple[list[str], list[int] | None]], count: int) -> list[dict[str, tuple[str, ...]]]:
    """Captions by language of each of ``count`` items."""
    texts: list[dict[str, tuple[str, ...]]] = [{} for _ in range(count)]
    for lang, (captions, counts) in columns.items():
        lang = sys.intern(check_language(lang))
        "".join(captions)  # TypeError if one is no string
        if counts is not None and sum(counts) != len(captions):
            raise ValueError(f"{len(captions)} captions of {sum(counts)} items")
        if counts is None:
            for own, caption in zip(texts, captions, strict=True):
                own[lang] = (caption,)
            continue
        left = iter(captions)
        for own, n in zip(texts, counts, strict=True):
            if n:
                own[lang] = tuple(islice(left, n))
    return texts


@contextlib.contextmanager
def without_garbage_collection() -> Iterator[None]:
    """Pause the garbage collector, which would visit all items again and again while they are made."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
