"""Closed forms for one space of images and texts: fit on images alone, with or without captions.

An encoder with an image and a text tower says in its recipes which ``space`` its features lie in. One linear map then
serves both, each centred by its own mean. Photos without captions get text heads, too: copies of the image head, which
centre by the mean of the images, since no other is known. The mean of the texts lies elsewhere, across a gap that is
nearly orthogonal to the directions in which images differ (Zhang et al., ICLR 2023): ITQ, which keeps the foremost of
these directions, drops most of the gap; a random rotation keeps it.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from cmrhash.config import TrainConfig
from cmrhash.data.items import ImageTextDataset
from cmrhash.data.view import View
from cmrhash.errors import DataError, UsageError
from cmrhash.features.dataset import ExtractedDataset
from cmrhash.features.views import ViewFeatures
from cmrhash.training.methods import Method
from cmrhash.training.runs import TrainedOn
from cmrhash.training.task import Group, Task, open_views, run_languages, val_probes


def prepare(config: TrainConfig, data: ExtractedDataset, encoders: tuple[str, ...] = ()) -> Task:
    """Read the feature files; choose the images to fit on, and the texts that their mean is taken of.

    Raises UsageError if a language's features are not in the space of the image features, DataError for fewer than two
    images.
    """
    langs, _ = run_languages(config, data)
    described = [] if data.no_captions else langs
    dataset, device, views, x = open_views(config, data, described, encoders)
    space, name = views[View.IMAGE].header.recipe.get("space"), views[View.IMAGE].header.encoder
    _refuse_other_space(config.method, views)
    groups = [Group((view,), _to_fit(dataset, of), None) for view, of in views.items()]
    if len(groups[0]) < 2:
        raise DataError(f"{len(groups[0])} images to fit {config.method} on", data.folder, "add photos")
    probes = val_probes(dataset, described, {view: of.items for view, of in views.items()}) if described else None
    task = Task(dataset, described, views, x, groups[0], groups[1:], probes, device)
    if not described and space:
        task.langs = langs
        made = TrainedOn.of(views[View.IMAGE].header)
        for view in map(View.text, langs):
            task.by_image[view] = replace(made, file=view.feature_file(name), sha256="", weights_sha256="")
    return task


def fit(config: TrainConfig, method: Method, task: Task, heads: torch.nn.ModuleDict) -> None:
    """Make every (linear) head centre the features of its view, then map them as the images are mapped."""
    assert method.rotate is not None
    for head in heads.values():
        head.std.fill_(1)  # type: ignore[operator]
    rows = torch.from_numpy(task.views[View.IMAGE].rows_of(task.train.items)).to(task.device)
    centred = heads[View.IMAGE].scaled(task.x[View.IMAGE][rows]).cpu().numpy()  # type: ignore[operator]
    weight = torch.from_numpy(method.rotate(centred, config.bits, config.seed))
    for head in heads.values():
        head.set_linear(weight)  # type: ignore[operator]
    for view in task.by_image:
        heads[view] = copy.deepcopy(heads[View.IMAGE])


def _refuse_other_space(method: str, views: Mapping[View, ViewFeatures]) -> None:
    """Raise UsageError for text features that are not in the space of the image features."""
    image = views[View.IMAGE].header
    for view, of in views.items():
        shared = image.recipe.get("space") and image.recipe["space"] == of.header.recipe.get("space")
        if not (view.is_image or shared):
            what = f"{method} needs images and texts in one space, which {image.encoder} (image) and "
            what += f"{of.header.encoder} ({view.short}) do not share"
            fix = 'use `method="cca"`, or `extract` both with one dual encoder'
            raise UsageError(what, image.path.parent, fix, option="method")


def _to_fit(dataset: ImageTextDataset, view: ViewFeatures) -> NDArray[np.int64]:
    """Train items that have the view, (n,) int64; all that have it if fewer than two are train items."""
    train = np.array(["train" in item.splits for item in dataset.items])
    chosen = np.flatnonzero(train & view.has)
    return chosen if len(chosen) > 1 else np.flatnonzero(view.has)
