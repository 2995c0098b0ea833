"""Cached features -> trained heads: one image head and one text head a language, in one Hamming space.

All features lie on the device; an epoch is a permutation. Every epoch draws its random numbers from (seed, epoch)
alone, so a run that was killed goes on from its checkpoint to the same bits.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray
from torch import Tensor

from cmrhash.checks import check_train
from cmrhash.compute.device import threads_for
from cmrhash.compute.memory import memory_kept
from cmrhash.config import Progress, TrainConfig
from cmrhash.data.changes import digests
from cmrhash.data.items import with_relevance
from cmrhash.data.view import View
from cmrhash.errors import DataError, DivergedError, StaleError
from cmrhash.features.dataset import ExtractedDataset
from cmrhash.retrieval import codes, index, metrics
from cmrhash.storage.files import locked, new_folder, sha256, write_bytes
from cmrhash.storage.recipes import refuse_difference
from cmrhash.storage.staged import settle, staged
from cmrhash.training import kernel_codes, one_space, runs
from cmrhash.training.adamw import AdamW
from cmrhash.training.auxiliary import Shapes
from cmrhash.training.best import chosen
from cmrhash.training.checkpoint import TrainingState, forget
from cmrhash.training.heads import KernelHead
from cmrhash.training.loggers import Logger, Silence, figures
from cmrhash.training.memory import Memory
from cmrhash.training.methods import Batch, Method, Terms, build_head, get_method, total
from cmrhash.training.methods.method import Views
from cmrhash.training.recipe import batch_size, comparable, head_shape, recipe_of
from cmrhash.training.schedule import groups_of, seeded, set_rates
from cmrhash.training.task import Group, Means, Probes, Task, asked_rows, prepare, run_folder

log = logging.getLogger(__name__)

RIDGES = (1e-3, 1e-2, 1e-1, 1.0, 10.0)  # of a closed form, on features of unit variance; chosen on val
NAN_STEPS = 3  # non-finite losses in a row before training stops

CodesOf = Callable[[View, NDArray[np.int64]], NDArray[np.uint8]]


def train(
    config: TrainConfig,
    data: ExtractedDataset,
    out: Path,
    encoders: tuple[str, ...] = (),
    overwrite: bool = False,
    progress: Progress = lambda *_: None,
    logger: Logger | None = None,
) -> tuple[runs.Run, bool]:
    """Train one run, or find it done.

    data: the extracted data set; out: the folder of all runs; logger: takes the figures of each epoch that is trained
    now. Returns the run and whether it was trained now. Raises UsageError, DataError, or StaleError if the folder holds
    a run of another recipe; an interrupted run is saved and resumed next time.
    """
    check_train(config)
    config = replace(config, method=chosen(config.method, data, config.relevance).method)
    method = get_method(config.method, with_relevance(data.dataset, config.relevance).relevance)
    target = run_folder(config, data, out)
    with new_folder(target), locked(target / runs.CONFIG):
        settle(target)
        task = (one_space.prepare if method.rotate else prepare)(config, data, encoders)
        recipe = recipe_of(config, task, method)
        if (target / runs.CONFIG).exists() and not overwrite:
            return _trained_before(target, recipe, task, method), False
        log.info("%s: training on %d items", target, len(task.train))
        logger = logger or Silence()
        logger.start(target.name, recipe)
        if not method.partial and not method.rotate:
            task.partial = []
        closed = _rotate if method.rotate else _by_kernels if method.kernel else _fit if method.fit else None
        if closed:
            state = closed(config, method, task, partial(progress, f"{config.method} {config.bits} bits"))
            for entry in state.history:
                logger.log(entry["epoch"] + 1, figures(entry))
        else:
            state = _train(config, method, task, recipe, target, overwrite, progress, logger)
        run = _finish(state, recipe, target, task)
        logger.finish(figures(state.history[state.best_epoch]))
        return run, True


def _trained_before(target: Path, recipe: dict[str, Any], task: Task, method: Method) -> runs.Run:
    """The run of a folder; raises StaleError for a run of other items or of another recipe."""
    run = runs.open_run(target)
    if run.items_sha256 != task.dataset.sha256:
        what = "the collection changed since this run was trained; the run stays valid"
        fix = "use it as it is (`search`, `evaluate`), or train on the present items with `overwrite=True`"
        raise StaleError(what, target, fix)
    refuse_difference(comparable(run.record, method), comparable(recipe, method), target, "run")
    run.file(runs.HEADS)
    log.info("%s: already trained", target)
    return run


# ---------------------------------------------------------------------------------------------- the loop


def _train(
    config: TrainConfig,
    method: Method,
    task: Task,
    recipe: dict[str, Any],
    target: Path,
    overwrite: bool,
    progress: Progress,
    logger: Logger,
) -> TrainingState:
    state = fresh(config, method, task)
    state.resume(target, recipe, overwrite)
    what = f"{config.method} {config.bits} bits"
    saved = time.monotonic()
    progress(what, state.epoch, config.epochs, state.note())
    try:
        with threads_for(task.device, batch_size(config.batch, len(task.train))), memory_kept():
            while state.epoch < config.epochs:
                entry = one_epoch(config, method, task, state)
                state.finish_epoch(entry | _judge(task, state.averaged))
                progress(what, state.epoch, config.epochs, state.note())
                logger.log(state.epoch, figures(state.history[-1]))
                if time.monotonic() - saved > config.checkpoint_seconds:
                    state.save(target, recipe)
                    saved = time.monotonic()
    except KeyboardInterrupt:
        state.save(target, recipe)
        raise
    return state


def _finish(state: TrainingState, recipe: dict[str, Any], target: Path, task: Task) -> runs.Run:
    """Write the run in one step, in the place of the one that was there with its metrics."""
    trained = np.unique(np.concatenate([group.items for group in (task.train, *task.partial)]))
    with staged(target, runs.CONFIG, [runs.METRICS]) as aside:
        write_bytes(aside / runs.HEADS, safetensors.torch.save(state.best))
        runs.write_lines(aside / runs.HISTORY, state.history)
        write_bytes(aside / runs.DIGESTS, digests(task.dataset, trained))
        files = {name: sha256(aside / name) for name in (runs.HEADS, runs.HISTORY, runs.DIGESTS)}
        record = runs.write_record(aside, {**recipe, **state.result(), "trained": len(trained), "files": files})
    run = runs.Run.read(target, record)
    forget(target)
    log.info("%s: trained, %s", target, state.note() or "without val items")
    return run


def _fit(config: TrainConfig, method: Method, task: Task, told: Progress) -> TrainingState:
    """A closed form: one "epoch" for every ridge, the best on val is kept."""
    assert method.fit is not None
    state = fresh(replace(config, hidden=0), method, task)
    means = {name: Means(state.heads[name], task.x[name], of, task.train.items) for name, of in task.views.items()}
    given = (task.train.labels.cpu().numpy(),) if method.labels and task.train.labels is not None else ()
    told(0, len(RIDGES), f"closed form for {len(RIDGES)} ridges")
    fitted = method.fit(means, config.bits, RIDGES, *given)
    for epoch, (ridge, heads) in enumerate(zip(RIDGES, fitted, strict=True)):
        for view_name, weight in heads.items():
            state.heads[view_name].set_linear(torch.from_numpy(weight))  # type: ignore[operator]
        state.finish_epoch({"epoch": epoch, "ridge": ridge, "skipped": 0} | _judge(task, state.heads))
        told(epoch + 1, len(RIDGES), f"ridge {ridge:g}{': ' if state.note() else ''}{state.note()}")
    return state


def _rotate(config: TrainConfig, method: Method, task: Task, told: Progress) -> TrainingState:
    """A closed form of images alone: one "epoch"."""
    state = fresh(replace(config, hidden=0), method, task)
    told(0, 2, "a rotation of the features")
    one_space.fit(config, method, task, state.heads)
    told(1, 2, "val mAP")
    state.finish_epoch({"epoch": 0, "skipped": 0} | _judge(task, state.heads))
    told(2, 2, state.note())
    return state


def _by_kernels(config: TrainConfig, method: Method, task: Task, told: Progress) -> TrainingState:
    """A closed form around a short training of codes: one "epoch"."""
    state = fresh(config, method, task)
    with seeded(config.seed, task.device):
        labels = method.targets(task.first_scaled(state.heads)) if method.targets else task.train.labels
        assert labels is not None  # get_method refuses such a data set
        stages = kernel_codes.Stages(task.views, told)
        found = kernel_codes.fit(task, state, labels, stages, method.symmetric)
    stages.show(kernel_codes.VAL)
    state.finish_epoch({"epoch": 0, **found, "skipped": 0} | _judge(task, state.heads))
    state.best = state.heads.state_dict()  # not a copy: they do not change any more
    stages.finish(state.note())
    return state


def fresh(config: TrainConfig, method: Method, task: Task) -> TrainingState:
    """Fresh heads, drawn from the seed, that know the statistics of the training features; then the method's parts."""
    dims = {name: x.shape[1] for name, x in task.x.items()}
    classes = len(task.dataset.classes) if task.train.labels is not None else 0
    shapes = Shapes(config.bits, classes, {name.short: dim for name, dim in dims.items()}, len(task.train))
    with seeded(config.seed, task.device):
        heads = make_heads(config, method, dims, task)
        parts = torch.nn.ModuleDict(method.parts(shapes) if method.parts else {})
    if config.memory and "memory" in method.settings:
        views = [view.short for view in dims]
        parts["earlier"] = Memory(views, config.bits, min(config.memory, len(task.train)))
    for name, view in task.views.items():
        items = np.concatenate([group.items for group in (task.train, *task.partial) if name in group.views])
        rows = torch.from_numpy(view.rows_of(items))
        heads[name].standardise(task.x[name][rows.to(task.device)].cpu())  # type: ignore[operator]
    heads.to(task.device)
    parts.to(task.device)
    if method.start:
        with seeded(config.seed, task.device):
            method.start(parts, task.first_scaled(heads))
    optimizer = AdamW(groups_of(config, heads, parts), lr=config.lr, weight_decay=config.weight_decay)
    return TrainingState(heads, parts, optimizer, keeps=not method.kernel, ema=config.ema)


def one_epoch(config: TrainConfig, method: Method, task: Task, state: TrainingState) -> dict[str, Any]:
    """One pass over the train items; returns its line of the history, without the judgement."""
    items = len(task.train)
    size = batch_size(config.batch, items)
    steps = items // size
    peak = config.lr * math.sqrt(size / config.batch)  # a smaller batch is noisier: Adam's square-root rule
    seen: list[Terms] = []
    bad_in_a_row = 0
    state.heads.train()
    with seeded(config.seed * 1_000_003 + state.epoch + 1, task.device):
        order = torch.randperm(items)
        partial = [(group, _chunks(len(group), steps, config.batch)) for group in task.partial]
        for step in range(steps):
            chosen = order[step * size : (step + 1) * size]
            terms = _terms(config, method, task, state, task.train, chosen)
            for lacking, rows in partial:
                if step in rows:
                    more = _terms(config, method, task, state, lacking, rows[step])
                    terms = _added(terms, more, lacking, len(rows[step]) / size)
            loss = total(terms)
            if not torch.isfinite(loss):
                bad_in_a_row += 1
                _stop_after(bad_in_a_row, [task.dataset.items[task.train.items[row]].id for row in chosen[:5]])
                continue
            bad_in_a_row = 0
            set_rates(config, state.optimizer.param_groups, state.epoch * steps + step, config.epochs * steps, peak)
            state.optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            state.step()
            seen.append(Terms(*({name: v.detach() for name, v in part.items()} for part in terms)))
    if not all(torch.isfinite(weight).all() for weight in state.heads.parameters()):  # a gradient can be NaN alone
        raise DivergedError(f"weights are not finite after epoch {state.epoch + 1}", None, "lower `lr`")
    return {"epoch": state.epoch, **summary(seen), "skipped": steps - len(seen)}


def _stop_after(bad_in_a_row: int, ids: list[str]) -> None:
    if bad_in_a_row == NAN_STEPS:
        what = f"the loss was not finite in {NAN_STEPS} steps in a row (batch: {', '.join(ids)}, ...)"
        raise DivergedError(what, None, "lower `lr`, or check the features")


def summary(seen: list[Terms]) -> dict[str, Any]:
    """Mean loss by term over the steps of an epoch, and the sums of what was counted."""
    if not seen:
        raise DivergedError("every step of an epoch had a non-finite loss", None, "lower `lr`")
    names = dict.fromkeys(name for t in seen for name in t.loss)  # not every batch has terms of items that lack a view
    terms = {name: float(torch.stack([t.loss[name] for t in seen if name in t.loss]).double().mean()) for name in names}
    counts: dict[str, float] = {name: int(torch.stack([t.counts[name] for t in seen]).sum()) for name in seen[0].counts}
    if counts.get("valid_triplets") == 0:
        fix = 'batches are too small, or labels do not differ: add train items, or try `method="tie-ap"`'
        raise DataError("an epoch has no valid triplet", None, fix)
    if "active_triplets" in counts:
        counts["active_share"] = counts["active_triplets"] / counts["valid_triplets"]
    return {"loss": sum(terms.values()), "terms": terms, **counts}


def _chunks(count: int, steps: int, most: int) -> dict[int, Tensor]:
    """Rows of a group of ``count`` items for each step, drawn at random: equal shares of 2 to ``most``."""
    order, size = torch.randperm(count), min(max(2, -(-count // steps)), most)
    return {step: order[step * size : (step + 1) * size] for step in range(min(steps, count // size))}


def _added(terms: Terms, more: Terms, group: Group, weight: float) -> Terms:
    """The terms of a batch with those of a smaller one of items that lack a view."""
    loss = {f"{name} of {group.name} alone": min(1.0, weight) * value for name, value in more.loss.items()}
    return Terms(
        {**terms.loss, **loss}, {name: value + more.counts.get(name, 0) for name, value in terms.counts.items()}
    )


def _terms(
    config: TrainConfig, method: Method, task: Task, state: TrainingState, group: Group, chosen: Tensor
) -> Terms:
    """The loss terms of a batch of a group; an item with several captions brings one of each language."""
    items = group.items[chosen.numpy()]
    assert method.terms is not None
    views, features = {}, {}
    for name in group.views:
        view = task.views[name]
        pick = (torch.rand(len(items)).numpy() * view.count[items]).astype(np.int64)  # (B,) which caption
        if group.labels is not None:  # by pairs all captions are scored alike
            pick[torch.rand(len(items)).numpy() < config.first_caption] = 0
        x = task.x[name][torch.from_numpy(view.start[items] + pick).to(task.device)]  # (B, D)
        features[name.short] = state.heads[name].scaled(x)  # type: ignore[operator]
        views[name.short] = state.heads[name].project(features[name.short])  # type: ignore[operator]  # (B, K)
    relevant = torch.eye(len(items), dtype=torch.bool, device=task.device)
    y = None
    if group.labels is not None:
        y = group.labels[chosen.to(task.device)]  # (B, classes)
        relevant |= y @ y.T > 0.5
    rows = chosen.to(task.device) if group is task.train else None
    margin, progress = config.margin * config.bits, state.epoch / config.epochs
    way = method.direction(config)
    batch = Batch(relevant, config.bits, margin, y, features, state.parts, rows, progress, direction=way)
    return method.terms(views, batch if rows is None else _with_memory(batch, views, group.labels))


def _with_memory(batch: Batch, views: Views, labels: Tensor | None) -> Batch:
    """The batch with the items of earlier steps, if the training remembers some; it then remembers the batch.

    labels: of all train items; None for relevance by pairs, where no other item is relevant.
    """
    if "earlier" not in batch.parts:
        return batch
    memory: Any = batch.parts["earlier"]
    assert batch.rows is not None
    others, embeddings = memory.recall(batch.rows)
    relevant = batch.relevant.new_zeros(len(batch.rows), len(others))
    if labels is not None:
        relevant = labels[batch.rows] @ labels[others].T > 0.5
    memory.remember(batch.rows, views)
    return replace(batch, memory=embeddings, remembered=relevant)


def _judge(task: Task, heads: torch.nn.ModuleDict) -> dict[str, Any]:
    if task.probes is None:
        return {}

    head = heads[View.IMAGE]
    kernels = isinstance(head, KernelHead)  # the only ones that read captions
    captions = {view: of.captions(task.dataset) if kernels else None for view, of in task.views.items()}

    def codes_of(view: View, rows: NDArray[np.int64], query: bool = False) -> NDArray[np.uint8]:
        x = task.x[view][torch.from_numpy(rows).to(task.device)]
        said = captions[view]
        texts = None if said is None else [said[row] for row in rows.tolist()]
        return codes.pack(heads[view].embed(x, query=query, captions=texts).cpu().numpy())  # type: ignore[operator]

    queries_of = (lambda view, rows: codes_of(view, rows, True)) if kernels else None
    return judge(task.probes, codes_of, head.bits, queries_of)  # type: ignore[arg-type]


def judge(probes: Probes, codes_of: CodesOf, bits: int, queries_of: CodesOf | None = None) -> dict[str, Any]:
    """Tie-aware mAP of val queries by language and direction, and the collapse watch over the database's codes.

    codes_of: (view, rows) -> their codes, packed as by codes.pack; asked once a view, for the rows that are needed.
    queries_of: likewise the codes of queries, if they differ.
    """
    views = [View.IMAGE, *map(View.text, probes)]
    rows = {view: asked_rows(probes, view) for view in views}
    packed = {view: codes_of(view, rows[view]) for view in views}
    asked = {view: queries_of(view, rows[view]) for view in views} if queries_of else packed
    scores: dict[str, dict[str, float]] = {}
    watch: dict[str, dict[str, Any]] = {}
    for lang, by_direction in probes.items():
        for direction, probe in by_direction.items():
            q = asked[probe.source][np.searchsorted(rows[probe.source], probe.queries)]
            d = packed[probe.sought][np.searchsorted(rows[probe.sought], probe.database)]
            hist = index.rank_histogram(q, d, bits, probe.relevance)
            mean, count = metrics.mean_over_valid(metrics.average_precision(*metrics.items_relevant(hist)))
            if not count:
                raise DataError("no validation query has a relevant item", None, "check the labels of val items")
            scores.setdefault(lang, {})[direction] = mean
            if len(d) > 1:
                watch[probe.sought] = asdict(codes.collapse(d, bits))
    mean = float(np.mean([value for by in scores.values() for value in by.values()]))
    collapsed = any(view["collapsed"] for view in watch.values())
    within = any(probe.within for by_direction in probes.values() for probe in by_direction.values())
    chosen_on = runs.WITHIN_VAL if within else runs.VAL
    return {"val_map": scores, "val_map_mean": mean, "chosen_on": chosen_on, "collapse": watch, "collapsed": collapsed}


# ---------------------------------------------------------------------------------------------- small parts


def make_heads(config: TrainConfig, method: Method, dims: Mapping[View, int], task: Task) -> torch.nn.ModuleDict:
    """One head per view, by name. dims: features of each."""
    dropouts = {} if method.heads else {"dropout": config.dropout, "input_dropout": config.input_dropout}
    shape = {**head_shape(config, method, task), **dropouts}
    return torch.nn.ModuleDict({name: build_head(dim, config.bits, shape, name) for name, dim in dims.items()})
