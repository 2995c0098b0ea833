"""Leaks between train and query items: the same photo, nearly the same photo, the same caption.

A query that the training has seen in another item is easier than a new one. Photos are compared by the digest of their
bytes and by the cosine of their features, captions word for word by their digest.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from cmrhash.config import RANDOM
from cmrhash.data.items import ImageTextDataset
from cmrhash.data.view import View
from cmrhash.errors import CmrhashError
from cmrhash.features.dataset import ExtractedDataset
from cmrhash.features.file import FeatureHeader
from cmrhash.features.views import ViewFeatures
from cmrhash.storage.files import read_json, write_json
from cmrhash.storage.recipes import fingerprint

FILE = "leaks.json"  # of the last look, beside the features
VERSION = 3  # increase it when the same files would have other figures
NEAR = 0.9  # cosine of photos that are nearly the same
MOST_PAIRS = 4 * 10**8  # pairs of photos that are compared; beyond, evenly spaced queries
BLOCK = 1 << 24  # cosines that are held at a time
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Leaks:
    """Queries that share something with train items.

    photos, captions: number of query photos and query captions whose bytes or words were compared, none of ready-made
    features; compared: query photos whose cosines were looked at; same_photos, near_photos, same_captions: those with
    the bytes, a cosine above NEAR, or the words of a train item; encoder: of the cosines.
    """

    photos: int
    captions: int
    compared: int
    same_photos: int
    near_photos: int
    same_captions: int
    encoder: str

    def __str__(self) -> str:
        parts = []
        if self.photos:
            parts.append(f"{self.same_photos} of {self.photos} query photos are train photos, byte for byte")
        if self.compared:
            who, whom = ("", "one") if self.photos else (" query photos", "a train photo")
            near = f"{self.near_photos} of {self.compared}{who} have a cosine above {NEAR:g} to {whom}"
            parts.append(f"{near} ({self.encoder})")
        if self.captions:
            parts.append(f"{self.same_captions} of {self.captions} query captions are train captions, word for word")
        return ", ".join(parts)


def leaks(data: ExtractedDataset) -> Leaks | None:
    """Look for leaks, or take what the last look at the same files found; None without train or query items.

    The first image features by name are compared, unless their encoder is untrained: then all photos are near. Errors
    of feature files are not raised: what cannot be read is not compared.
    """
    query, train = (_with_role(data.dataset, role) for role in ("query", "train"))
    if not query.any() or not train.any():
        return None
    views = data.present()
    made = {"version": VERSION, "items": data.dataset.sha256}
    made |= {header.path.name: header.sha256 for headers in views.values() for header in headers}
    key, path = fingerprint(made), data.folder / FILE
    with contextlib.suppress(CmrhashError, OSError, KeyError, TypeError, ValueError):
        found = read_json(path, "")
        if found["of"] == key:
            return Leaks(**found["leaks"])
    found_now = _look(data, [headers[0] for headers in views.values()], query, train)
    with contextlib.suppress(OSError, CmrhashError):  # of a cache that can only be read
        write_json(path, {"of": key, "leaks": asdict(found_now)})
    return found_now


def _look(data: ExtractedDataset, headers: Sequence[FeatureHeader], query: Mask, train: Mask) -> Leaks:
    figures = {"photos": 0, "captions": 0, "compared": 0, "same_photos": 0, "near_photos": 0, "same_captions": 0}
    encoder = ""
    for header in headers:
        with contextlib.suppress(CmrhashError, OSError):
            view = data.features(header.view, header.encoder)
            asked, known = (np.flatnonzero(of[view.items]) for of in (query, train))  # rows
            same, sources = int(_same(view, asked, known).sum()), 0 if header.is_ready_made else len(asked)
            if not header.view.is_image:
                figures["captions"] += sources
                figures["same_captions"] += same
                continue
            compared = _evenly(asked, max(1, MOST_PAIRS // max(len(known), 1)))
            compared = compared[: len(compared) * _is_trained(header)]
            near = int((_nearest(view, compared, known) > NEAR).sum()) if len(known) else 0
            encoder = header.encoder
            figures |= {"photos": sources, "same_photos": same, "compared": len(compared), "near_photos": near}
    return Leaks(**figures, encoder=encoder)


def near_duplicates(data: ExtractedDataset) -> Mask:
    """Train items whose photo is a query's, byte for byte or by a cosine above NEAR, (items,) bool."""
    query, train = (_with_role(data.dataset, role) for role in ("query", "train"))
    leaking = np.zeros(len(data.dataset.items), np.bool_)
    for header in data.present().get(View.IMAGE, [])[:1]:
        view = data.features(View.IMAGE, header.encoder)
        asked, known = (np.flatnonzero(of[view.items]) for of in (query, train))
        if len(asked) and len(known):
            leaking[view.items[known[_same(view, known, asked)]]] = True
            if _is_trained(header):
                leaking[view.items[known[_nearest(view, known, asked) > NEAR]]] = True
    return leaking


def _is_trained(header: FeatureHeader) -> bool:
    return header.recipe.get("weights") != RANDOM


def _same(view: ViewFeatures, rows: NDArray[np.int64], among: NDArray[np.int64]) -> Mask:
    """Whether each of the rows has the source of one of the others, (len(rows),) bool; ready-made rows have none."""
    if view.header.is_ready_made:
        return np.zeros(len(rows), np.bool_)
    source = np.ascontiguousarray(view.features.source[view.rows]).view("V16")[:, 0]
    return np.isin(source[rows], source[among])


def _nearest(view: ViewFeatures, rows: NDArray[np.int64], among: NDArray[np.int64]) -> NDArray[np.float32]:
    """Highest cosine of each of the rows to the others, (len(rows),)."""
    x, others = (_unit(view.features.x[view.rows[of]]) for of in (rows, among))
    step = max(1, BLOCK // max(len(others), 1))
    highest = [(x[first : first + step] @ others.T).max(axis=1) for first in range(0, len(x), step)]
    return np.concatenate(highest) if highest else np.empty(0, np.float32)


def _unit(x: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.asarray(x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12), np.float32)


def _evenly(rows: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    """At most so many of the rows, evenly spaced."""
    return rows if len(rows) <= most else rows[np.linspace(0, len(rows) - 1, most).astype(np.int64)]


def _with_role(dataset: ImageTextDataset, role: str) -> Mask:
    return np.array([role in item.splits for item in dataset.items], np.bool_)
