"""Trained heads x cached features -> codes and Faiss indexes in the run folder.

``codes.h5`` holds, for each view, ``<view>.packed`` (M, ceil(bits/8)) uint8, ``<view>.embedding`` (M, bits) float32,
``<view>.item`` (M,) int64 for every valid row, and ``<view>.database`` (n,) int64: the rows that lie in
``<view>.faiss``, in its order: of each database item the first caption, or all of them where relevance is by pairs.

A text head also encodes the other languages whose texts went through its own text encoder: views that the run has
borrowed, so that training on one language can be scored on another.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cmrhash.data.items import ImageTextDataset, with_relevance
from cmrhash.errors import DamagedError, StaleError, UsageError
from cmrhash.features.views import View, feature_files, open_view, scored_rows
from cmrhash.retrieval.codes import Codes, pack
from cmrhash.retrieval.index import BinaryIndex
from cmrhash.storage.files import checked, locked, sha256
from cmrhash.storage.hdf5 import read_sealed, write_sealed
from cmrhash.storage.recipes import first_difference, refuse_difference
from cmrhash.storage.sealed import read_manifest
from cmrhash.training import runs

if TYPE_CHECKING:
    from torch.nn import ModuleDict

AMONG = ("database", "all")  # what can be searched


@dataclass(frozen=True)
class Encoded:
    """One view of a run. embedding: (M, bits) float32. database: (n,) rows in the index, in its order.

    head: the view whose head made them, another one for a borrowed language.
    """

    codes: Codes
    embedding: NDArray[np.float32]
    database: NDArray[np.int64]
    index: BinaryIndex
    head: str


def encode(run: runs.Run, dataset: ImageTextDataset, folder: Path) -> None:
    """Write ``codes.h5`` and the indexes of a run. Raises StaleError if the features are not those of the training, and
    LockedError if another process does the same.
    """
    with locked(run.folder / runs.CODES):
        _encode(run, dataset, folder)


def _encode(run: runs.Run, dataset: ImageTextDataset, folder: Path) -> None:
    import torch

    dataset = with_relevance(dataset, run.relevance)
    heads = load_heads(run)
    borrowed = borrowed_views(run, dataset, folder)
    in_database = np.flatnonzero(["database" in item.splits for item in dataset.items])
    arrays: dict[str, NDArray[Any]] = {}
    digests = {}
    for name in [*heads, *borrowed]:
        made = borrowed.get(name) or {"head": name, **run.config["features"][name]}
        view = _open_made(run, dataset, folder, name, made)
        x = torch.from_numpy(view.features.x[view.rows])
        embedding = heads[made["head"]].embed(x).numpy()  # type: ignore[operator]
        item = view.features.item[view.rows].astype(np.int64)
        packed = pack(embedding)
        database = scored_rows(dataset, item, in_database)
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
    write_sealed(
        run.folder / runs.CODES, arrays, {"kind": "codes", "recipe": run.codes_recipe(borrowed), "indexes": digests}
    )


def has_codes(run: runs.Run, dataset: ImageTextDataset, folder: Path) -> bool:
    """True if ``codes.h5`` and its indexes are there, of these heads and of every language that can be borrowed now;
    False if they have to be made. Codes outlive the features that they were made from.

    Raises DamagedError for a file that does not match its digest.
    """
    path = run.folder / runs.CODES
    if not path.exists():
        return False
    manifest = read_manifest(path)
    if manifest["recipe"] != run.codes_recipe(borrowed_views(run, dataset, folder)):
        return False
    return all((run.folder / name).exists() for name in manifest["indexes"])


def read_codes(run: runs.Run) -> dict[str, Encoded]:
    """The views of a run, checked against their digests. Never imports torch."""
    path = run.folder / runs.CODES
    manifest, arrays = read_sealed(path)
    borrowed = manifest["recipe"]["borrowed"]
    views = {}
    for index_name, digest in manifest["indexes"].items():
        index_path = checked(run.folder, index_name, digest, "delete it; eval makes it again")
        name = index_name.removesuffix(".faiss")
        parts = [f"{name}.{key}" for key in ("packed", "embedding", "item", "database")]
        if lacking := [part for part in parts if part not in arrays]:
            raise DamagedError(f"'{lacking[0]}' is not there", path, "delete it; eval makes it again")
        packed, embedding, item, database = (arrays[part] for part in parts)
        codes = Codes(packed, run.bits, item)
        index, head = BinaryIndex.load(index_path, run.bits), borrowed.get(name, {"head": name})["head"]
        views[name] = Encoded(codes, embedding, database, index, head)
    return views


def among_all(dataset: ImageTextDataset, views: Mapping[str, Encoded]) -> dict[str, Encoded]:
    """The views with the codes of every item in their index, to be searched: scores are of the database alone."""
    every = np.arange(len(dataset.items))
    wide = {}
    for name, view in views.items():
        rows = scored_rows(dataset, view.codes.item, every)
        index = BinaryIndex.build(np.ascontiguousarray(view.codes.packed[rows]), view.codes.bits)
        wide[name] = replace(view, database=rows, index=index)
    return wide


class Views(Mapping[str, Encoded]):
    """The views of a run by name, read and checked when the first of them is looked at."""

    def __init__(self, run: runs.Run) -> None:
        manifest = read_manifest(run.folder / runs.CODES)
        self.run, self.sha256 = run, str(manifest["payload_sha256"])
        self._names = [name.removesuffix(".faiss") for name in manifest["indexes"]]

    @cached_property
    def _read(self) -> dict[str, Encoded]:
        return read_codes(self.run)

    def __getitem__(self, name: str) -> Encoded:
        return self._read[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def load_heads(run: runs.Run) -> ModuleDict:
    """The trained heads of a run, in eval mode on the CPU, by view name."""
    import torch

    from cmrhash.training.checkpoint import fill, read_tensors
    from cmrhash.training.heads import Head

    dims = {name: made["dim"] for name, made in run.config["features"].items()}
    heads = torch.nn.ModuleDict({name: Head(dim, run.bits, **run.config["head"]) for name, dim in dims.items()})
    path = run.file(runs.HEADS)
    fill(heads, read_tensors(path, runs.ANEW), path, runs.ANEW)
    return heads.eval()


def current(found: Sequence[runs.Run], dataset: ImageTextDataset, folder: Path) -> list[runs.Run]:
    """Those of the items and features that the cache holds now. Raises the StaleError of the first one if none is."""
    there, stale = [], []
    for run in found:
        try:
            refuse_stale(run, dataset, folder)
            there.append(run)
        except StaleError as error:
            stale.append(error)
    if not there and stale:
        raise stale[0]
    return there


def refuse_stale(run: runs.Run, dataset: ImageTextDataset, folder: Path) -> None:
    """Raise StaleError for a run of other items, splits or features than the cache holds: its codes are of the past."""
    if run.config["items_sha256"] != dataset.sha256:
        what = "trained on other items or splits than the cache holds"
        raise StaleError(what, run.folder, "train again; cmrhash cache prune deletes what is of the past")
    for made in run.config["features"].values():
        path = folder / made["file"]
        if path.exists() and read_manifest(path)["payload_sha256"] != made["sha256"]:
            raise StaleError(f"{path.name} was extracted again since this run was trained", run.folder, "train again")


def borrowed_views(run: runs.Run, dataset: ImageTextDataset, folder: Path) -> dict[str, dict[str, str]]:
    """Views of languages without a head whose texts were encoded exactly as those of a trained language.

    name -> "head" (the first trained language that fits), "file" and "sha256" of the features. Once all features of
    the run are gone, those views that its codes hold.
    """
    codes = run.folder / runs.CODES
    if codes.exists() and not any((folder / of["file"]).exists() for of in run.config["features"].values()):
        recorded: dict[str, dict[str, str]] = read_manifest(codes)["recipe"].get("borrowed", {})
        return recorded
    borrowed = {}
    for lang in dataset.languages:
        fitting = [] if lang in run.langs else [of for of in _others(run, folder, lang) if not of["difference"]]
        if fitting:
            borrowed[f"text-{lang}"] = {key: fitting[0][key] for key in ("head", "file", "sha256")}
    return borrowed


def refuse_language(run: runs.Run, dataset: ImageTextDataset, folder: Path, lang: str) -> None:
    """Raise UsageError that says why the run cannot score a language: no features, or by another text encoder."""
    others = _others(run, folder, lang)
    if not others:
        there = ", ".join(lang for lang in dataset.languages if feature_files(folder, f"text-{lang}"))
        raise UsageError(
            f"no features for language '{lang}' (there: {there})", folder, "run cmrhash extract --lang ..."
        )
    field, found, wanted = others[0]["difference"]
    what = f"{run.folder.name} cannot score '{lang}': its texts were encoded with {field} = {found}"
    what += f", those of {others[0]['head']} with {wanted}"
    raise UsageError(what, folder / others[0]["file"], f"train with --lang {lang}, or extract both by one --text-model")


def _others(run: runs.Run, folder: Path, lang: str) -> list[dict[str, Any]]:
    """Every feature file of a language beside every trained one, with the first difference of their recipes."""
    pairs = []
    for trained in run.langs:
        mine = folder / run.config["features"][f"text-{trained}"]["file"]
        for path in feature_files(folder, f"text-{lang}") if mine.exists() else []:
            asked, made = ({**read_manifest(file)["recipe"], "lang": ""} for file in (mine, path))
            pair = {"head": f"text-{trained}", "file": path.name, "sha256": read_manifest(path)["payload_sha256"]}
            pairs.append({**pair, "difference": first_difference(made, asked)})
    return pairs


def _open_made(run: runs.Run, dataset: ImageTextDataset, folder: Path, name: str, made: Mapping[str, Any]) -> View:
    """The view by the very feature file that the run was made with."""
    encoder = made["file"].removeprefix(name + "-").removesuffix(".h5")
    view = open_view(folder, dataset, name, encoder)
    try:
        refuse_difference({"features": made["sha256"]}, {"features": view.features.sha256}, run.folder, "run")
    except StaleError as error:
        raise StaleError(error.what, error.where, "the features were extracted again: train again") from None
    return view
