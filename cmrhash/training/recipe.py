"""Recipe of a run: all that decides its result, for its record and to compare it with what is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from cmrhash.config import TrainConfig
from cmrhash.errors import UsageError
from cmrhash.training import kernel_codes, runs
from cmrhash.training.methods import Method
from cmrhash.training.names import NAMING
from cmrhash.training.task import Task

COMPARED = ("dataset", "relevance", "split_seed", "items_sha256", "langs", "train", "partial", "features")
UNCOMPARED = ("langs", "relevance")  # as they were asked for; compared as what they came to
MIN_STEPS = 4  # the batch is halved until an epoch has as many


def recipe_of(config: TrainConfig, task: Task, method: Method) -> dict[str, Any]:
    """All that decides the result, for the run's config; where the work is done and saved is left out."""
    read = {*NAMING, *method.settings} - {*UNCOMPARED}
    settings = {k: v for k, v in asdict(config).items() if k in read}
    features = {name: asdict(runs.TrainedOn.of(view.header)) for name, view in task.views.items()}
    features |= {name: asdict(made) for name, made in task.by_image.items()}
    return {
        "dataset": task.dataset.name,
        "relevance": task.dataset.relevance,
        "split_seed": task.dataset.split_seed,
        "items_sha256": task.dataset.sha256,
        "langs": task.langs,
        "train": settings,
        "train_items": len(task.train),
        **({"partial": {group.name: len(group) for group in task.partial}} if method.partial and task.partial else {}),
        "batch": batch_size(config.batch, len(task.train)),
        "source": method.source,
        "head": head_shape(config, method, task),
        "features": features,
        "made_as": {name: view.header.made_as for name, view in task.views.items()},
    }


def comparable(record: Mapping[str, Any], method: Method) -> dict[str, Any]:
    """The part of a run's config that must be the same for it to be the run that is asked for."""
    read = {*NAMING, *method.settings} - {*UNCOMPARED}
    settings = {k: v for k, v in runs.completed(record)["train"].items() if k in read}
    return {key: record.get(key) for key in COMPARED} | {"train": settings}


def head_shape(config: TrainConfig, method: Method, task: Task) -> dict[str, Any]:
    """What the run's record says of its heads. Raises UsageError for a method that cannot read sequences of words."""
    made = {name: view.header.recipe.get("positions") for name, view in task.views.items()}
    words = {str(name): count for name, count in made.items() if count}
    if words and (method.terms is None or method.heads):
        what = f"method '{config.method}' reads one vector per text, and {min(words)} has sequences of words"
        raise UsageError(
            what, None, "choose a method with epochs and heads of cmrhash, or extract with another pooling"
        )
    if method.kernel:
        shape = kernel_codes.shape_of(task, bool(method.targets), method.symmetric)
        return {"hidden": 0, "bounded": False, **shape}
    if method.heads:
        return {"hidden": 0, "bounded": False, "network": method.name}
    if method.terms is None:
        return {"hidden": 0, "bounded": False}
    return {"hidden": config.hidden, "bounded": True, **({"words": words} if words else {})}


def batch_size(wanted: int, items: int) -> int:
    """The wanted batch, halved until an epoch over the items has MIN_STEPS steps; 2 at least."""
    while wanted > 2 and items // wanted < MIN_STEPS:
        wanted //= 2
    return max(2, wanted)
