"""Result files: codes or embeddings that another program searched with, read as searches.

A file holds vectors of queries and of the database, for images and for texts, and the labels of both (``q_img q_txt
r_img r_txt q_l r_l`` in files of DCMH and later code; arrays of other names by ``maps``). Without labels it holds
images and their own texts, k texts of each image side by side, and relevance is by pairs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cmrhash.data.matrices.array import Array
from cmrhash.data.matrices.arrays import list_arrays
from cmrhash.data.matrices.labels import read_labels
from cmrhash.data.matrices.roles import LABELS, advice, by_view, choose, in_words
from cmrhash.data.matrices.rows import Table, block, several
from cmrhash.data.view import View
from cmrhash.errors import DataError, UsageError
from cmrhash.retrieval.codes import pack
from cmrhash.retrieval.relevance import Relevance

Vectors = NDArray[np.float32]
Views = Mapping[str, Mapping[str, Array]]  # what -> part -> array


@dataclass(frozen=True)
class FileSearch:
    """One direction of a result file: vectors of queries (Q, bits) and database (N, bits), and their relevance."""

    direction: str
    lang: str
    query: Vectors
    database: Vectors
    relevance: Relevance

    @property
    def bits(self) -> int:
        """Bits of a code, one per column."""
        return int(self.query.shape[1])

    @property
    def values(self) -> set[float]:
        """The different values, at most four of each side."""
        return {value for x in (self.query, self.database) for value in np.unique(x)[:4].tolist()}

    @property
    def binary(self) -> bool:
        """Whether the vectors are codes: of 0 and 1, or of -1 and 1 (0 among them is sign(0))."""
        return self.values <= {-1.0, 0.0, 1.0}

    @property
    def zeros(self) -> int:
        """Number of zeros among codes of -1 and 1."""
        if not self.binary or -1.0 not in self.values:
            return 0
        return sum(int(np.count_nonzero(x == 0)) for x in (self.query, self.database))

    @property
    def packed(self) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Packed codes of queries and database; a value that is not negative is a 1, of 0 and 1 only the 1."""
        shift = 0.5 if self.values <= {0.0, 1.0} else 0.0
        return pack(self.query - shift), pack(self.database - shift)


def read_searches(files: Sequence[Path], maps: Sequence[str] = ()) -> tuple[list[FileSearch], int | None]:
    """Both directions for each language of result files, and the number of classes, None without labels.

    maps: roles of arrays, as for ready-made features. Raises UsageError for arrays without a known role, DataError for
    arrays that do not fit together.
    """
    arrays = [array for file in files for array in list_arrays(file)]
    views = by_view(choose(arrays, maps, also=(LABELS,)))
    texts = [view for view in views if isinstance(view, View) and not view.is_image]
    for view in (View.IMAGE, *(texts or [View.text("en")])):
        if view not in views:
            _unknown((view, ""), arrays)
    if LABELS in views:
        both = {part: _table(views, part, arrays) for part in ("query", "database")}
        labels = np.concatenate([table.pop(LABELS) for table in both.values()])
        classes, own = read_labels(labels, views[LABELS])
        at = len(both["query"][View.IMAGE])
        relevance = Relevance.by_labels(own[:at], own[at:], len(classes))
        ends = [{view: _vectors(x, views[view][part]) for view, x in table.items()} for part, table in both.items()]
        searches = [
            FileSearch(direction, lang_of(text), ends[0][asks], ends[1][sought], relevance)
            for text in texts
            for direction, asks, sought in (("i2t", View.IMAGE, text), ("t2i", text, View.IMAGE))
        ]
    else:
        searches, classes = _by_pairs(views, texts, arrays), ()
    for search in searches:
        if search.bits != search.database.shape[1]:
            what = f"{search.direction}: queries have {search.bits} columns, the database {search.database.shape[1]}"
            raise DataError(what, files[0], "choose other arrays with `maps`")
    return searches, len(classes) if LABELS in views else None


def _by_pairs(views: Views, texts: Sequence[str], arrays: Sequence[Array]) -> list[FileSearch]:
    """Searches among images and their own texts: of the queries if the files have parts, else of all items."""
    part = "query" if "query" in views[View.IMAGE] else ""
    found: Counter[str] = Counter()
    table = _table(views, part, arrays, found)
    images = _vectors(table[View.IMAGE], views[View.IMAGE][part])
    searches = []
    for text in texts:
        times = found[several(text)] or 1
        vectors = _vectors(table[text].reshape(len(images) * times, -1), views[text][part])
        item = np.arange(len(images))
        of = np.repeat(item, times)
        searches.append(FileSearch("i2t", lang_of(text), images, vectors, Relevance.by_pairs(item, of)))
        searches.append(FileSearch("t2i", lang_of(text), vectors, images, Relevance.by_pairs(of, item)))
    return searches


def lang_of(text: str) -> str:
    """Language of a view of texts."""
    return str(View(text).lang)


def _table(views: Views, part: str, arrays: Sequence[Array], found: Counter[str] | None = None) -> Table:
    """Arrays of the queries, of the database or, as part "", of all items; a row per item."""
    for what in views:
        if part not in views[what]:
            _unknown((what, part), arrays)
    return block({what: views[what][part] for what in views}, Counter() if found is None else found)


def _unknown(slot: tuple[str, str], arrays: Sequence[Array]) -> None:
    role = in_words(slot)
    raise UsageError(f"no array has a name known for {role}", arrays[0].file, advice(arrays, role))


def _vectors(x: NDArray[Any], array: Array) -> Vectors:
    """Numbers as float32; raises DataError for anything but finite ones."""
    if x.dtype.kind not in "biuf" or not np.isfinite(x).all():
        raise DataError(f"{array} has values that are not finite numbers", array.file, "choose another with `maps`")
    return np.ascontiguousarray(x, np.float32)
