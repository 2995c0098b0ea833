"""Trained heads x cached features -> codes and Faiss indexes in the run folder.

``codes.h5`` holds, for each view, ``<view>.packed`` (M, ceil(bits/8)) uint8, ``<view>.embedding`` (M, bits) float32,
``<view>.item`` (M,) int64 for every valid row, and ``<view>.database`` (n,) int64: the rows that lie in
``<view>.faiss``, in its order: of each database item the first caption.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cmrhash import runs
from cmrhash.cache import read_manifest, read_sealed, write_sealed
from cmrhash.codes import Codes, pack
from cmrhash.data.dataset import ImageTextDataset
from cmrhash.errors import DamagedError, StaleError
from cmrhash.files import sha256
from cmrhash.index import BinaryIndex
from cmrhash.recipe import refuse_difference
from cmrhash.views import View, open_view

if TYPE_CHECKING:
    from torch.nn import ModuleDict


@dataclass(frozen=True)
class Encoded:
    """One view of a run. embedding: (M, bits) float32. database: (n,) rows in the index, in its order."""

    codes: Codes
    embedding: NDArray[np.float32]
    database: NDArray[np.int64]
    index: BinaryIndex

    def first_rows(self, items: NDArray[np.int64]) -> NDArray[np.int64]:
        """The first row (caption) of each of the items; they must all be there."""
        rows = np.searchsorted(self.codes.item, items, side="left")
        return rows.astype(np.int64)


def encode(run: runs.Run, dataset: ImageTextDataset, folder: Path) -> None:
    """Write ``codes.h5`` and the indexes of a run. Raises StaleError if the features are not those of the training."""
    import torch

    heads = load_heads(run)
    arrays: dict[str, NDArray[Any]] = {}
    digests = {}
    for name in heads:
        view = _open_trained(run, dataset, folder, name)
        x = torch.from_numpy(view.features.x[view.rows])
        embedding = heads[name].embed(x).numpy()  # type: ignore[operator]
        item = view.features.item[view.rows].astype(np.int64)
        packed = pack(embedding)
        database = view.start[[r for r in np.flatnonzero(view.has) if "database" in dataset.items[r].splits]]
        index_path = run.folder / f"{name}.faiss"
        BinaryIndex.build(np.ascontiguousarray(packed[database]), run.bits).save(index_path)
        digests[index_path.name] = sha256(index_path)
        parts = {
            "packed": packed,
            "embedding": embedding,
            "item": item,
            "database": database.astype(np.int64),
        }
        arrays |= {f"{name}.{part}": array for part, array in parts.items()}
    write_sealed(run.folder / runs.CODES, arrays, {"kind": "codes", "recipe": _recipe(run), "indexes": digests})


def has_codes(run: runs.Run) -> bool:
    """True if ``codes.h5`` and its indexes are there and of these heads; False if they have to be made.

    Raises DamagedError for a file that does not match its digest.
    """
    path = run.folder / runs.CODES
    if not path.exists():
        return False
    manifest = read_manifest(path)
    if manifest["recipe"] != _recipe(run):
        return False
    return all((run.folder / name).exists() for name in manifest["indexes"])


def read_codes(run: runs.Run) -> dict[str, Encoded]:
    """The views of a run, checked against their digests. Never imports torch."""
    path = run.folder / runs.CODES
    manifest, arrays = read_sealed(path)
    views = {}
    for index_name, digest in manifest["indexes"].items():
        index_path = run.folder / index_name
        if sha256(index_path) != digest:
            raise DamagedError("does not match its sha256", index_path, "delete it; eval makes it again")
        name = index_name.removesuffix(".faiss")
        part = {key: arrays[f"{name}.{key}"] for key in ("packed", "embedding", "item", "database")}
        codes = Codes(part["packed"], run.bits, part["item"])
        views[name] = Encoded(codes, part["embedding"], part["database"], BinaryIndex.load(index_path, run.bits))
    return views


def load_heads(run: runs.Run) -> ModuleDict:
    """The trained heads of a run, in eval mode on the CPU, by view name."""
    import safetensors.torch
    import torch

    from cmrhash.heads import Head

    dims = {name: made["dim"] for name, made in run.config["features"].items()}
    heads = torch.nn.ModuleDict({name: Head(dim, run.bits, **run.config["head"]) for name, dim in dims.items()})
    heads.load_state_dict(safetensors.torch.load_file(run.file(runs.HEADS)))
    return heads.eval()


def refuse_new_features(run: runs.Run, folder: Path) -> None:
    """Raise StaleError if the cache holds other features than the run was trained on: its codes are of the past."""
    for made in run.config["features"].values():
        path = folder / made["file"]
        if path.exists() and read_manifest(path)["payload_sha256"] != made["sha256"]:
            raise StaleError(f"{path.name} was extracted again since this run was trained", run.folder, "train again")


def _open_trained(run: runs.Run, dataset: ImageTextDataset, folder: Path, name: str) -> View:
    """The view by the very feature file that the heads were trained on."""
    made = run.config["features"][name]
    encoder = made["file"].removeprefix(name + "-").removesuffix(".h5")
    view = open_view(folder, dataset, name, encoder)
    try:
        refuse_difference({"features": made["sha256"]}, {"features": view.features.sha256}, run.folder, "run")
    except StaleError as error:
        raise StaleError(str(error), None, "the features were extracted again: train again") from None
    return view


def _recipe(run: runs.Run) -> dict[str, Any]:
    """What the codes depend on."""
    features = {name: made["sha256"] for name, made in run.config["features"].items()}
    return {
        "heads": run.config["files"][runs.HEADS],
        "items": run.config["items_sha256"],
        "features": features,
    }
