"""Fine-tuning loop: training as in train.py, with the encoders unfrozen.

The heads are discarded; the encoders of the epoch with the best val mAP are kept. Every epoch draws its random numbers
from (seed, epoch) alone, so an interrupted run resumes from its checkpoint, on a CPU with identical bits. Only whole
epochs are saved; an interrupted epoch is repeated.

Several processes (see compute/processes.py) share each step: each runs the encoders on its part of the batch, then all
ranks gather the features and apply heads and loss to the whole batch. Without dropout the result equals that of one
process up to the order of sums; with dropout each rank draws its own masks over the same order of items. Rank 0 writes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from cmrhash.checks import check_finetune
from cmrhash.compute import distributed, processes
from cmrhash.compute.device import choose_dtype, send
from cmrhash.config import RANDOM, TRAINED_SHARE, FinetuneConfig, Progress, TrainConfig
from cmrhash.data.items import ImageTextDataset
from cmrhash.data.manifest import items_digest
from cmrhash.data.view import View
from cmrhash.encoders.image import ImageEncoder
from cmrhash.encoders.text import TextEncoder
from cmrhash.errors import CmrhashError, PeerError, UsageError, some_of
from cmrhash.features.images import DECODERS
from cmrhash.features.outcome import CODE
from cmrhash.features.views import ordinals
from cmrhash.retrieval import codes
from cmrhash.storage.files import below, locked, new_folder
from cmrhash.storage.recipes import canonical, refuse_difference
from cmrhash.training import runs
from cmrhash.training.auxiliary import Shapes
from cmrhash.training.checkpoint import TrainingState, forget
from cmrhash.training.finetune import tuned
from cmrhash.training.finetune.blocks import train_last
from cmrhash.training.finetune.heads import heads, in_one_space
from cmrhash.training.finetune.task import Photos, TuneTask, choose, open_task
from cmrhash.training.finetune.tuned import Tuned
from cmrhash.training.methods import Batch, Method, Terms, get_method, method_names, total
from cmrhash.training.recipe import batch_size
from cmrhash.training.schedule import one_cycle, seeded
from cmrhash.training.settings import refuse_unread
from cmrhash.training.train import NAN_STEPS, judge, summary

LOOK = 16  # steps between checks of the gradients, each of which waits for the device
JUDGE_BATCH = 64  # items per forward pass
FLOAT16_SCALE = 2.0**12  # loss scale at the start of an epoch, against underflow
RANK_SEED = 10_007  # between the dropout seeds of two ranks, more than there are epochs


def finetune(
    config: FinetuneConfig,
    dataset: ImageTextDataset,
    image: ImageEncoder,
    texts: dict[str, TextEncoder],
    folder: Path,
    dtype: str = "auto",
    overwrite: bool = False,
    progress: Progress = lambda *_: None,
) -> Tuned:
    """Tune encoders on a data set, or return the finished fine-tuning.

    folder: the data set's cache; dtype: on a GPU, see choose_dtype. Languages that share an encoder train it together.
    The given modules are changed: take the encoders from ``Tuned.apply``. Raises UsageError, DataError, or StaleError
    if the same image encoder was tuned by another recipe; an interrupted fine-tuning is saved and resumes next time.
    """
    method = tuning_method(config, dataset.relevance)
    target = below(folder, runs.TUNED, image.name)
    lock = nullcontext() if processes.rank() else locked(target / runs.CONFIG)
    with new_folder(target), lock, processes.group(image.device), ThreadPoolExecutor(DECODERS) as pool:
        choice = choose(dataset, list(texts))
        photos = Photos(dataset, np.union1d(choice.train, choice.judges), image, pool)
        recipe = _recipe(config, dataset, image, texts, photos.digest(), method)
        done = None if overwrite else tuned.find(target)
        processes.agree("recipe and cache", canonical({"done": done is not None, **recipe}))
        if done:
            if tuned.TOGETHER not in done.recipe:  # of a version whose views had heads of their own
                recipe.pop(tuned.TOGETHER, None)
            refuse_difference(done.recipe, recipe, target, "fine-tuning")
            return done
        # a CPU trains in full precision, whatever dtype it extracts in
        compute = torch.float32 if image.device.type == "cpu" else choose_dtype(dtype, image.device, untrained=False)
        shared = {id(encoder): replace(encoder, dtype=compute) for encoder in texts.values()}
        wide = {lang: shared[id(encoder)] for lang, encoder in texts.items()}
        task = open_task(choice, replace(image, dtype=compute), wide, photos, progress)
        state = Tuner(config, method, task, compute).run(target, recipe, overwrite, progress)
        with processes.first():
            return _written(target, recipe, state, image, wide)


def _written(
    target: Path, recipe: dict[str, Any], state: TrainingState, image: ImageEncoder, texts: dict[str, TextEncoder]
) -> Tuned:
    """Write the encoders that have a learning rate on rank 0; read them on other ranks."""
    if processes.rank():
        found = tuned.find(target)
        assert found is not None
        return replace(found, fresh=True)
    rates = recipe["rates"]
    kept = {lang: encoder for lang, encoder in texts.items() if rates[View.text(lang)]}
    result = tuned.write(target, recipe, state, image if rates[View.IMAGE] else None, kept)
    forget(target)
    return result


def tuning_method(config: FinetuneConfig, relevance: str = "labels") -> Method:
    """Method whose losses tune the encoders.

    Raises UsageError for a method without losses or the labels it needs, and for settings out of range or not read.
    """
    check_finetune(config)
    method = get_method(config.method, relevance)
    if method.terms is None or method.memory:
        fix = f"choose one of {some_of(method_names(lambda each: bool(each.terms) and not each.memory))}"
        raise UsageError(f"'{config.method}' has no loss that tunes encoders", None, fix, option="method")
    refuse_unread((config.method,), () if config.margin is None else ("margin",), TrainConfig(), relevance)
    return method


class Tuner:
    """Fine-tuning loop; heads and each encoder are parameter groups with their own learning rates."""

    def __init__(self, config: FinetuneConfig, method: Method, task: TuneTask, compute: torch.dtype) -> None:
        self.config, self.method, self.task, self.compute = config, method, task, compute
        self.device = task.image.device
        self.encoders = task.encoders()
        self.draws = torch.default_generator  # for draws that must be equal on all ranks
        size, _ = self._steps()
        if size < processes.world():
            fix = f"use `batch={processes.world()}` or more and 4 times as many train items, or start fewer processes"
            raise UsageError(f"{size} items per step are too few for {processes.world()} processes", None, fix)
        dims = {View.IMAGE: task.image.dim, **{View.text(lang): encoder.dim for lang, encoder in task.texts.items()}}
        classes = len(task.dataset.classes) if task.labels is not None else 0
        shapes = Shapes(config.bits, classes, {view.short: dim for view, dim in dims.items()})
        rates = _rates(config, task.image, task.texts)
        together = in_one_space(task.image, task.texts, rates)
        with seeded(config.seed, self.device):
            self.heads = heads(dims, config.bits, together).to(self.device)
            parts = nn.ModuleDict(method.parts(shapes) if method.parts else {}).to(self.device)
        modules = nn.ModuleDict({view: encoder.module for view, encoder in self.encoders.items()})
        self.model = nn.ModuleDict({"heads": self.heads, "encoders": modules})
        self.frozen = [view for view in self.encoders if not rates[view]]
        groups = [{"params": [*self.heads.parameters(), *parts.parameters()], "peak": config.lr}]
        for view, encoder in self.encoders.items():
            module = encoder.module
            train_last(module, config.unfreeze) if view not in self.frozen else module.requires_grad_(False)
            if self._learns_statistics(view):
                distributed.over_all_ranks(module, self.device)
            if view not in self.frozen:
                groups.append({"params": list(module.parameters()), "peak": rates[view]})
        # fused: a tensor on the device, not Python, decides whether to skip a step
        optimizer = torch.optim.AdamW(groups, lr=config.lr, weight_decay=config.weight_decay, fused=True)
        self.state = TrainingState(self.model, parts, optimizer, keeps=not processes.rank())

    def run(self, target: Path, recipe: dict[str, Any], overwrite: bool, progress: Progress) -> TrainingState:
        """Run all epochs from the last checkpoint on; save a checkpoint if interrupted."""
        state, config = self.state, self.config
        with processes.first():
            state.resume(target, recipe, overwrite and not processes.rank())
        processes.agree(f"checkpoint in {target}", str(state.epoch).encode())
        distributed.same_start(self.model)
        distributed.same_start(state.parts)
        saved = time.monotonic()
        try:
            while state.epoch < config.epochs:
                entry = self._epoch(progress)
                state.finish_epoch(entry | self._judge())
                if time.monotonic() - saved > config.checkpoint_seconds and state.epoch < config.epochs:
                    self._save(target, recipe)
                    saved = time.monotonic()
        except (KeyboardInterrupt, PeerError):
            self._save(target, recipe)
            raise
        self._show(progress, state.epoch)
        return state

    def _save(self, target: Path, recipe: dict[str, Any]) -> None:
        if not processes.rank():
            self.state.save(target, recipe)

    def _epoch(self, progress: Progress) -> dict[str, Any]:
        """Run one pass over the training items; returns its history entry without validation scores."""
        config, task, state = self.config, self.task, self.state
        size, steps = self._steps()
        seen: list[Terms] = []
        norms: list[Tensor] = []
        scaler = self._scaler()
        self._set_modes()
        seed, own = config.seed * 1_000_003 + state.epoch + 1, processes.part(size)
        with seeded(seed, self.device):
            self.draws = _draws(seed)
            batches = list(torch.split(torch.randperm(len(task.train), generator=self.draws), size))[:steps]
            pixels = task.photos.batches([task.train[batch[own].numpy()] for batch in batches])
            for step, (batch, images) in enumerate(zip(batches, pixels, strict=True)):
                for group in state.optimizer.param_groups:
                    peak = group["peak"] * math.sqrt(size / config.batch)
                    group["lr"] = one_cycle(state.epoch * steps + step, config.epochs * steps, peak)
                terms, norm = self._step(step, batch, images, scaler)
                seen.append(Terms(*({name: v.detach() for name, v in part.items()} for part in terms)))
                norms.append(norm)
                if len(norms) % LOOK == 0:
                    _finite(norms)
                self._show(progress, state.epoch, step + 1)
        good = [terms for terms, finite in zip(seen, _finite(norms), strict=True) if finite]
        return {"epoch": state.epoch, **summary(good), "skipped": steps - len(good), "processes": processes.world()}

    def _step(
        self, step: int, batch: Tensor, images: NDArray[np.uint8], scaler: torch.amp.GradScaler
    ) -> tuple[Terms, Tensor]:
        """Take one optimizer step, skipped if a gradient is not finite.

        Returns the loss terms and the gradients' L2 norm before clipping, which is not finite for a skipped step.
        """
        learning = [m for m in self.model.modules() if isinstance(m, _BatchNorm) and m.training]
        for m in learning:
            m.momentum = 1 / (step + 1)  # running statistics: the mean over the epoch's batches
        statistics = [s for m in learning for s in (m.running_mean, m.running_var) if s is not None]
        before = [s.clone() for s in statistics]
        terms = self._terms(batch, images)
        self.state.optimizer.zero_grad(set_to_none=True)
        scaler.scale(total(terms)).backward()  # type: ignore[no-untyped-call]
        whole = (*self.heads.parameters(), *self.state.parts.parameters())
        distributed.sum_gradients(self.model["encoders"].parameters(), whole)
        scaler.unscale_(self.state.optimizer)
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip)
        scaler.step(self.state.optimizer)
        scaler.update()
        for now, old in zip(statistics, before, strict=True):  # an infinity would stay for ever
            now.copy_(torch.where(torch.isfinite(norm), now, old))
        return terms, norm

    def _terms(self, batch: Tensor, images: NDArray[np.uint8]) -> Terms:
        """Loss terms of a batch, of which this rank runs the encoders on its part.

        images: (own items, S, S, 3) uint8. An item with several captions contributes a random one per language.
        """
        task = self.task
        items = task.train[batch.numpy()]
        own, rows = processes.part(len(items)), processes.counts(len(items))
        assert self.method.terms is not None
        encoded = {View.IMAGE: task.image.forward(torch.from_numpy(images))}  # view -> (own items, D)
        for lang, encoder in task.texts.items():
            captions = [task.pieces[lang][item] for item in items.tolist()]
            counts = torch.tensor([len(c) for c in captions])
            pick = (torch.rand(len(items), generator=self.draws) * counts).long().tolist()
            encoded[View.text(lang)] = encoder.forward([c[p] for c, p in zip(captions, pick, strict=True)][own])
        views, features = {}, {}
        for view, part in encoded.items():
            x = distributed.gather(part, rows)  # (B, D)
            scaled = self.heads[view].get_submodule("scale")(x)
            views[view.short] = self.heads[view].get_submodule("head")(scaled)  # (B, K)
            features[view.short] = scaled.detach()  # a reconstruction target has no gradient
        relevant = torch.eye(len(items), dtype=torch.bool, device=self.device)
        y = None
        if task.labels is not None:
            y = task.labels[send(batch, self.device)]  # (B, classes)
            relevant |= y @ y.T > 0.5
        config, parts, done = self.config, self.state.parts, self.state.epoch / self.config.epochs
        margin = (config.margin or TrainConfig.margin) * config.bits
        return self.method.terms(views, Batch(relevant, config.bits, margin, y, features, parts, progress=done))

    @torch.inference_mode()
    def _judge(self) -> dict[str, Any]:
        """Validation scores as of ``train.judge``, on the items that ``choose`` selected."""
        self.model.eval()
        return {} if self.task.probes is None else judge(self.task.probes, self._codes_of, self.config.bits)

    def _codes_of(self, view: View, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Hash rows of a view; each rank takes its share of the batches that one process would form."""
        task, of = self.task, self.task.rows[view]
        items = of[rows]
        batches = [slice(at, at + JUDGE_BATCH) for at in range(0, len(items), JUDGE_BATCH)]
        sizes = [
            sum(len(items[batch]) for batch in batches[processes.part(len(batches), r)])
            for r in range(processes.world())
        ]
        own = batches[processes.part(len(batches))]
        if view.lang is None:
            pixels = task.photos.batches([items[batch] for batch in own])
            parts = [task.image.forward(torch.from_numpy(images)) for images in pixels]
        else:
            which = ordinals(of)[rows]  # position among the item's captions
            pieces = [task.pieces[view.lang][item][at] for item, at in zip(items.tolist(), which.tolist(), strict=True)]
            parts = [task.texts[view.lang].forward(pieces[batch]) for batch in own]
        none = torch.empty(0, (task.image if view.lang is None else task.texts[view.lang]).dim, device=self.device)
        return codes.pack(self.heads[view](processes.gather(torch.cat([none, *parts]), sizes)).cpu().numpy())

    def _set_modes(self) -> None:
        """Set training mode, except for BatchNorm of pretrained encoders.

        Its statistics of a million photos are better than those of a small batch, and the features are extracted with
        them. Untrained encoders have none and learn badly without: they learn theirs during the epochs.
        """
        self.model.train()
        for view, encoder in self.encoders.items():
            if view in self.frozen:
                encoder.module.eval()
            elif not self._learns_statistics(view):
                for part in encoder.module.modules():
                    if isinstance(part, _BatchNorm):
                        part.eval()

    def _learns_statistics(self, view: View) -> bool:
        return view not in self.frozen and self.encoders[view].recipe["weights"] == RANDOM

    def _steps(self) -> tuple[int, int]:
        """Items per step, steps per epoch."""
        size = batch_size(self.config.batch, len(self.task.train))
        return size, len(self.task.train) // size

    def _scaler(self) -> torch.amp.GradScaler:
        """Gradient scaler that skips steps with a gradient that is not finite, without waiting for the device.

        It scales float16 losses only. Every epoch has its own scaler, so that no state has to be saved.
        """
        half = self.compute == torch.float16
        return torch.amp.GradScaler(
            self.device.type, init_scale=FLOAT16_SCALE if half else 1.0, growth_interval=200 if half else 10**9
        )

    def _show(self, progress: Progress, epoch: int, step: int = 0) -> None:
        _, steps = self._steps()
        epochs = self.config.epochs
        note = f"epoch {min(epoch + 1, epochs)} of {epochs} {self.state.note()}"
        progress("fine-tuning", epoch * steps + step, epochs * steps, note.strip())


# ---------------------------------------------------------------------------------------------- helpers


def _rates(config: FinetuneConfig, image: ImageEncoder, texts: Mapping[str, TextEncoder]) -> dict[View, float]:
    """Peak learning rate by view."""

    def rate(asked: float | None, encoder: ImageEncoder | TextEncoder) -> float:
        usual = config.lr * (1.0 if encoder.recipe["weights"] == RANDOM else TRAINED_SHARE)
        return usual if asked is None else asked

    by_lang = {View.text(lang): rate(config.text_lr, encoder) for lang, encoder in texts.items()}
    return {View.IMAGE: rate(config.image_lr, image), **by_lang}


def _draws(seed: int) -> torch.Generator:
    """Generator of item order and captions, equal on all ranks; one process draws dropout from it too."""
    if processes.world() == 1:
        return torch.default_generator
    torch.manual_seed(seed + RANK_SEED * (processes.rank() + 1))
    return torch.Generator().manual_seed(seed)


def _finite(norms: list[Tensor]) -> list[bool]:
    """Which steps of an epoch were taken; raises CmrhashError if NAN_STEPS in a row were skipped."""
    finite: list[bool] = torch.isfinite(torch.stack(norms)).tolist()
    for at in range(len(finite) - NAN_STEPS + 1):
        if not any(finite[at : at + NAN_STEPS]):
            what = f"gradients were not finite in {NAN_STEPS} steps in a row (from step {at + 1} of the epoch)"
            raise CmrhashError(what, None, "lower `lr`, `image_lr` or `text_lr`")
    return finite


def _recipe(
    config: FinetuneConfig,
    dataset: ImageTextDataset,
    image: ImageEncoder,
    texts: Mapping[str, TextEncoder],
    photos: str,
    method: Method,
) -> dict[str, Any]:
    """All that decides the result, without device and dtype."""
    rates = _rates(config, image, texts)
    together = in_one_space(image, texts, rates)
    left_out = {"checkpoint_seconds", *(["unfreeze"] if config.unfreeze is None else [])}
    encoders = {View.IMAGE: image.recipe, **{View.text(lang): encoder.recipe for lang, encoder in texts.items()}}
    return {
        "code": CODE,
        "dataset": dataset.name,
        "relevance": dataset.relevance,
        "items_sha256": items_digest(dataset),
        "photos_sha256": photos,
        "langs": list(texts),
        "finetune": {k: v for k, v in asdict(config).items() if k not in left_out},
        "rates": rates,
        **({tuned.TOGETHER: list(together)} if together else {}),
        "source": method.source,
        "encoders": {view: {k: v for k, v in made.items() if k != "dtype"} for view, made in encoders.items()},
    }
