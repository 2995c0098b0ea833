"""Values of each query, kept beside the codes that they were computed from: ``queries-<relevance>.npz`` of a run.

``ids`` (n,) are the ids of the query items. Each search, as "i2t.de" or "t2t.de.en", has ``SEARCH.item`` (Q,) int32,
the place of each query in ``ids``, and float64 (Q,) values: ``SEARCH.ap`` and ``SEARCH.hit@1``, ``@5``, ``@10``,
expected over random order of ties in the whole database, NaN for a query without a relevant item. ``about`` is JSON
text with digests of codes and items; values of other codes or items are not used. The comment of the zip file is a
sha256 of all bytes before it.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cmrhash.data.items import ImageTextDataset
from cmrhash.evaluation.metric_names import METRICS
from cmrhash.evaluation.searches import Search
from cmrhash.retrieval import metrics
from cmrhash.storage.files import write_bytes
from cmrhash.training import runs

VERSION = 1  # increase it when the same codes would have other values
DIGEST = 64  # bytes of the zip file's comment, the digest of all before it
Values = Mapping[str, NDArray[Any]]  # item, ap, hit@1, hit@5, hit@10: (Q,) each


def field_of(metric: str) -> str:
    """Name of the values of a metric of ``compare``."""
    cut = METRICS[metric]
    return "ap" if cut is None else f"hit@{cut}"


def values_of(queries: NDArray[np.int64], items: NDArray[Any], relevant: NDArray[Any]) -> Values:
    """Values of the queries of a search.

    queries: (Q,) their items; items, relevant: (Q, D) counts by distance, as ``metrics.items_relevant`` gives them.
    """
    hits = {f"hit@{cut}": metrics.hit_at(items, relevant, int(cut)) for cut in METRICS.values() if cut}
    return {"item": queries, "ap": metrics.average_precision(items, relevant), **hits}


def name_of(search: Search) -> str:
    """Name of a search in the file."""
    return ".".join(part for part in (search.direction, search.lang, search.database_lang) if part)


def kept(run: runs.Run, of: Mapping[str, str], dataset: ImageTextDataset, wanted: Iterable[str]) -> dict[str, Values]:
    """Kept values of the wanted searches, by their names; those of other codes or items are left out.

    of: digests of codes and items; dataset: with the relevance of the scoring.
    """
    arrays, places = _read(run, of, dataset), _places(dataset)
    there = [name for name in wanted if f"{name}.item" in arrays]
    return {
        name: {part: arrays[f"{name}.{part}"] for part in map(field_of, METRICS)}
        | {"item": places[arrays[f"{name}.item"]]}
        for name in there
    }


def keep(run: runs.Run, of: Mapping[str, str], dataset: ImageTextDataset, new: Mapping[str, Values]) -> None:
    """Add values of searches, by their names, to those that are kept of the same codes and items."""
    arrays, places = _read(run, of, dataset), _places(dataset)
    arrays |= {"about": np.array(json.dumps(_about(of))), "ids": np.array([dataset.items[at].id for at in places])}
    for name, own in new.items():
        item = np.searchsorted(places, own["item"]).astype(np.int32)
        arrays |= {f"{name}.{part}": values for part, values in {**own, "item": item}.items()}
    file = io.BytesIO()
    np.savez_compressed(file, **dict(sorted(arrays.items())))  # type: ignore[arg-type]
    with zipfile.ZipFile(file, "a") as archive:
        archive.comment = b"0" * DIGEST
    raw = file.getvalue()[:-DIGEST]
    write_bytes(run.folder / _file(dataset), raw + _digest(raw))


def _read(run: runs.Run, of: Mapping[str, str], dataset: ImageTextDataset) -> dict[str, NDArray[Any]]:
    """Arrays that are kept of these codes and items; none if the file is missing, damaged or of others."""
    try:
        raw = (run.folder / _file(dataset)).read_bytes()
    except OSError:
        return {}
    if _digest(raw[:-DIGEST]) != raw[-DIGEST:]:
        return {}
    with np.load(io.BytesIO(raw)) as found:
        return {name: found[name] for name in found.files} if json.loads(str(found["about"])) == _about(of) else {}


def _digest(raw: bytes) -> bytes:
    """SHA-256 of a file without its comment, in hexadecimal digits."""
    return hashlib.sha256(raw).hexdigest().encode()


def _file(dataset: ImageTextDataset) -> str:
    return f"queries-{dataset.relevance}.npz"


def _about(of: Mapping[str, str]) -> dict[str, Any]:
    return {"version": VERSION, **of}


def _places(dataset: ImageTextDataset) -> NDArray[np.int64]:
    """Query items of the data set, (n,)."""
    return np.flatnonzero(["query" in item.splits for item in dataset.items])
