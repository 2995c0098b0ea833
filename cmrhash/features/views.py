"""The views of a data set: the feature files of its images and of each language, found and laid over the items.

A view is "image" or "text-<lang>". This is where training, encoding and evaluation agree on which row of a file
stands for which item.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cmrhash.config import READY
from cmrhash.data.items import ImageTextDataset
from cmrhash.errors import StaleError, UsageError
from cmrhash.features.file import Features, read_features, source_digest
from cmrhash.retrieval.relevance import Relevance
from cmrhash.storage.sealed import read_manifest


@dataclass(frozen=True)
class View:
    """A feature file over the items of its data set.

    first: (items,) int64, the first valid row of each item, -1 without any; count: (items,) int64, how many valid
    rows it has (captions); rows: (M,) int64, all valid rows, those of an item side by side.
    """

    name: str
    path: Path
    features: Features
    rows: NDArray[np.int64]
    first: NDArray[np.int64]
    start: NDArray[np.int64]  # (items,) where an item's rows begin in ``rows``
    count: NDArray[np.int64]

    @property
    def has(self) -> NDArray[np.bool_]:
        """(items,) bool: the item can be used in this view."""
        return self.count > 0


def open_view(folder: Path, dataset: ImageTextDataset, name: str, encoder: str | None = None) -> View:
    """The view of that name; ``encoder`` says which feature file if there are several.

    Raises UsageError if there is none or no single one, StaleError if it is of other items.
    """
    path = _find(folder, name, encoder)
    features = read_features(path)
    ids = tuple(item.id for item in dataset.items)
    if features.ids != ids:
        raise StaleError("feature file of other items than items.jsonl", path, "run cmrhash extract --overwrite")
    if name != "image" and features.recipe["weights"] != READY:  # ready-made features are of no caption
        texts = [text for item in dataset.items for text in item.texts.get(name.removeprefix("text-"), ())]
        if features.source.tobytes() != b"".join(source_digest(text.encode()).tobytes() for text in texts):
            raise StaleError("captions changed since they were encoded", path, "run cmrhash extract --overwrite")
    rows = np.flatnonzero(features.valid)
    rows = rows[np.argsort(features.item[rows], kind="stable")]
    start = np.searchsorted(features.item[rows], np.arange(len(ids)), side="left")
    count = np.searchsorted(features.item[rows], np.arange(len(ids)), side="right") - start
    first = np.full(len(ids), -1, np.int64)
    first[count > 0] = rows[start[count > 0]]
    return View(name, path, features, rows, first, start, count)


def languages_of(folder: Path, dataset: ImageTextDataset, asked: Sequence[str] = ()) -> list[str]:
    """The asked languages, or all that are extracted; raises UsageError for one that is not.

    A language is there by the data set's captions, or by ready-made features alone.
    """
    made = [read_manifest(path)["recipe"] for path in folder.glob("text-*.h5")]
    there = sorted({own["lang"] for own in made if own["lang"] in dataset.languages or own["weights"] == READY})
    unknown = [lang for lang in asked if lang not in there]
    if unknown or not there:
        wish = f"no features for language '{unknown[0]}'" if unknown else "no text features"
        raise UsageError(
            f"{wish} (there: {', '.join(there) or 'none'})", folder, "run cmrhash extract --lang ... first"
        )
    return [lang for lang in there if not asked or lang in asked]


def chosen_encoders(options: Sequence[str]) -> dict[str, str]:
    """ "VIEW=ENCODER" options, VIEW being "image" or a language, as a dict by view name."""
    chosen = {}
    for option in options:
        view, _, encoder = option.partition("=")
        if not encoder:
            raise UsageError(f"--encoder {option}", None, "write image=NAME or LANG=NAME")
        chosen[view if view == "image" else f"text-{view}"] = encoder
    return chosen


def relevance_between(
    dataset: ImageTextDataset,
    queries: NDArray[np.int64],
    database: NDArray[np.int64],
    exclude: NDArray[np.int64] | None = None,
) -> Relevance:
    """Who is relevant to whom, between the items of two lists of rows, by the data set's rule.

    exclude: (Q,) the database row that is the query itself, -1 for none.
    """
    if dataset.relevance == "pairs":
        return Relevance.by_pairs(queries, database, exclude)
    labels = [[dataset.items[row].labels for row in rows] for rows in (queries, database)]
    return Relevance.by_labels(labels[0], labels[1], len(dataset.classes), exclude)


def scored_rows(
    dataset: ImageTextDataset, item: NDArray[np.integer[Any]], items: NDArray[np.int64]
) -> NDArray[np.int64]:
    """The rows of a view that stand for the items when they are scored: by labels the first caption, by pairs all.

    item: (M,) the item of each row, ascending; items that have no row are left out.
    """
    rows = np.flatnonzero(np.isin(item, items))
    if dataset.relevance == "pairs" or not len(rows):
        return rows
    return rows[np.diff(item[rows], prepend=-1) > 0]


def _find(folder: Path, name: str, encoder: str | None) -> Path:
    there = feature_files(folder, name)
    names = [path.name.removeprefix(name + "-").removesuffix(".h5") for path in there]
    if encoder is not None:
        there = [path for path, found in zip(there, names, strict=True) if found == encoder]
    if len(there) == 1:
        return there[0]
    if not there:
        wish = f"no {name} features" + (f" by '{encoder}'" if encoder else "")
        near = get_close_matches(encoder or "", names, 1)
        hint = f"did you mean {near[0]}? else " if near else ""
        raise UsageError(f"{wish} (there: {', '.join(names) or 'none'})", folder, f"{hint}run cmrhash extract first")
    raise UsageError(f"{name} features by {', '.join(names)}", folder, f"choose, such as with {_a_choice(folder)}")


def _a_choice(folder: Path) -> str:
    """Options that choose one encoder for every view that has several, the last of each."""
    langs = sorted({read_manifest(path)["recipe"]["lang"] for path in folder.glob("text-*.h5")})
    several = {view: feature_files(folder, view) for view in ("image", *(f"text-{lang}" for lang in langs))}
    return " ".join(
        f"--encoder {view.removeprefix('text-')}={paths[-1].stem.removeprefix(view + '-')}"
        for view, paths in several.items()
        if len(paths) > 1
    )


def feature_files(folder: Path, name: str) -> list[Path]:
    """Feature files of a view, by any encoder; "text-pt" must not find those of "text-pt-BR"."""
    lang = name.removeprefix("text-") if name != "image" else None
    paths = sorted(folder.glob(f"{name}-*.h5"))
    return [path for path in paths if read_manifest(path)["recipe"].get("lang") == lang]
