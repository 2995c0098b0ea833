"""Benchmarks of a training step: batch, heads, four triplet terms, gradient, optimiser."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path as File
from typing import Any

import h5py
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, Dataset

from cmrhash.bench import Case, Path
from cmrhash.config import TrainConfig
from cmrhash.data.items import ImageTextDataset, Item
from cmrhash.data.view import View
from cmrhash.features.dataset import ExtractedDataset
from cmrhash.features.file import FeatureWriter, source_digest
from cmrhash.training.methods import get_method
from cmrhash.training.recipe import MIN_STEPS
from cmrhash.training.task import prepare
from cmrhash.training.train import fresh, one_epoch

IMAGE, TEXT = View.IMAGE, View.text("en")
DIMS = {IMAGE: 512, TEXT: 768}
CLASSES, BITS, MARGIN = 255, 32, 0.25
WHOLE = 256  # largest batch whose (B, B, B) tensor fits into memory; larger ones are computed in parts
PART = 16  # anchors per part

Chosen = tuple[Tensor, Tensor, Tensor]  # image features, text features, labels of a batch


@contextmanager
def _step(batch: int, steps: int, anchors: float = 1.0) -> Iterator[Case]:
    """One epoch of MIN_STEPS steps.

    steps: number of steps of the naive way; anchors: share of each batch whose triplets the naive way counts.
    """
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        dataset, features = _write(File(folder), batch * MIN_STEPS)
        config = TrainConfig(bits=BITS, batch=batch, margin=MARGIN, device="cpu")
        task = prepare(config, ExtractedDataset(dataset, File(folder)))
        method = get_method(config.method, dataset.relevance)
        state = fresh(config, method, task)
        assert task.train.labels is not None
        loader = DataLoader(_Rows(File(folder), task.train.labels), batch, shuffle=True)

        def naive() -> None:
            heads = nn.ModuleDict({view: _head(dim) for view, dim in DIMS.items()})
            optimizer = torch.optim.Adam(heads.parameters())
            for image, text, labels in islice(loader, steps):
                u, v = heads[IMAGE](image), heads[TEXT](text)
                loss = _triplets(u, v, labels @ labels.T > 0, round(anchors * batch))
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()

        def limit() -> None:
            for first in range(0, batch * MIN_STEPS, batch):
                out = [state.heads[view](x[first : first + batch]) for view, x in features.items()]
                state.optimizer.zero_grad()
                torch.stack(out).square().sum().backward()  # type: ignore[no-untyped-call]
                state.optimizer.step()

        yield Case(naive, lambda: one_epoch(config, method, task, state), limit, steps / MIN_STEPS * anchors)


def _write(folder: File, count: int) -> tuple[ImageTextDataset, dict[View, Tensor]]:
    """Random features, all for training, as cmrhash feature files and as a plain HDF5 file."""
    rng = np.random.default_rng(0)
    often = 1 / np.arange(1, CLASSES + 1)
    labels = [np.unique(rng.choice(CLASSES, n, p=often / often.sum())) for n in rng.integers(1, 8, count)]
    items = tuple(
        Item(str(n), f"{n}.jpg", {"en": (str(n),)}, tuple(own.tolist()), frozenset({"train"}))
        for n, own in enumerate(labels)
    )
    dataset = ImageTextDataset("bench", folder, items, tuple(map(str, range(CLASSES))), "labels")
    features = {view: rng.standard_normal((count, dim), np.float32) for view, dim in DIMS.items()}
    for view, x in features.items():
        path, recipe = folder / view.feature_file("bench"), {"kind": view.kind, "encoder": "bench", "weights": "random"}
        recipe |= {} if view.lang is None else {"lang": view.lang}
        source = np.stack([source_digest(str(n).encode()) for n in range(count)])
        with FeatureWriter(path, np.arange(count, dtype=np.int32), _ids(items), x.shape[1], recipe, count) as writer:
            writer.commit(0, x, np.ones(count, bool), source)
            writer.seal({})
    with h5py.File(folder / "naive.h5", "w") as file:
        for view, x in features.items():
            file[view] = x
    return dataset, {view: torch.from_numpy(x) for view, x in features.items()}


def _ids(items: tuple[Item, ...]) -> tuple[str, ...]:
    return tuple(item.id for item in items)


# ---------------------------------------------------------------------------------------------- the naive way


class _Rows(Dataset[Chosen]):
    """Features read from the file item by item, like common PyTorch data sets."""

    def __init__(self, folder: File, labels: Tensor) -> None:
        self.file = h5py.File(folder / "naive.h5", "r")
        self.labels = labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, row: int) -> Chosen:
        image, text = (torch.from_numpy(_row(self.file, view, row)) for view in DIMS)
        return image, text, self.labels[row]


def _row(file: Any, view: str, row: int) -> NDArray[np.float32]:
    x: NDArray[np.float32] = file[view][row]
    return x


def _head(dim: int) -> nn.Module:
    hidden = TrainConfig.hidden
    layers = [nn.Dropout(0.1), nn.Linear(dim, hidden), nn.ReLU(), nn.Dropout(0.2), nn.Linear(hidden, BITS), nn.Tanh()]
    return nn.Sequential(*layers)


def _triplets(u: Tensor, v: Tensor, relevant: Tensor, anchors: int) -> Tensor:
    """The four terms over all triplets of the first anchors."""
    part = len(u) if len(u) <= WHOLE else PART
    loss = u.new_zeros(())
    for a, b in ((u, u), (u, v), (v, u), (v, v)):
        for first in range(0, anchors, part):
            rows = slice(first, min(first + part, anchors))
            call = (a[rows], b, relevant[rows])
            loss = loss + (_hinge(*call) if part == len(u) else checkpoint(_hinge, *call, use_reentrant=False))
    return loss


def _hinge(a: Tensor, b: Tensor, relevant: Tensor) -> Tensor:
    distance = ((a[:, None] - b[None]) ** 2).sum(2)  # (A, B)
    hinge = (distance[:, :, None] - distance[:, None, :] + MARGIN * BITS).clamp_min(0)  # (A, B, B)
    triplets = relevant[:, :, None] & ~relevant[:, None, :]
    return (hinge * triplets).sum() / triplets.sum().clamp_min(1)


def _path(batch: int, target: float, case: Any) -> Path:
    how = "the (B, B, B) tensor" if batch <= WHOLE else "triplets in parts"
    what = f"training step, batch {batch}, 2 heads of {TrainConfig.hidden} units; against rows of HDF5 and {how}"
    return Path(what, "forward, backward and optimiser of the heads alone", target, case)


PATHS = {
    "train-128": _path(128, 19, lambda: _step(128, MIN_STEPS)),
    "train-256": _path(256, 50, lambda: _step(256, 2)),
    "train-512": _path(512, 60, lambda: _step(512, 1)),
    "train-1024": _path(1024, 60, lambda: _step(1024, 1, 1 / 16)),
}
