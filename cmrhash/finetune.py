"""Fine-tuning: what train.py does, with the encoders unfrozen. The heads are thrown away; the encoders of the epoch
that is best on val are kept, and their features are extracted and trained on as any others.

Every epoch draws its random numbers from (seed, epoch) alone, so a run that was killed goes on from its checkpoint,
on a CPU to the same bits. Only whole epochs are saved: the one that was under way is done again.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections import OrderedDict
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from cmrhash import codes, runs, tuned
from cmrhash.checkpoint import State, forget
from cmrhash.config import RANDOM, TRAINED_SHARE, FinetuneConfig, TrainConfig, check_finetune
from cmrhash.data.dataset import ImageTextDataset
from cmrhash.data.manifest import dump
from cmrhash.device import choose_dtype
from cmrhash.encoders.image import ImageEncoder
from cmrhash.encoders.text import TextEncoder
from cmrhash.errors import CmrhashError, UsageError
from cmrhash.extract_images import DECODERS
from cmrhash.extracted import CODE, Progress
from cmrhash.files import locked
from cmrhash.finetune_task import Photos, TuneTask, choose, open_task
from cmrhash.heads import Head
from cmrhash.methods import METHODS, Batch, Method, Terms, get_method, total
from cmrhash.parts import Shapes
from cmrhash.recipe import refuse_difference
from cmrhash.train import NAN_STEPS, batch_size, judge, one_cycle, seeded, short, summary
from cmrhash.tuned import Tuned

LOOK = 16  # steps between two looks at the gradients, each of which waits for the device
JUDGE_BATCH = 64  # items a forward pass
FLOAT16_SCALE = 2.0**12  # of the loss at the start of an epoch, against underflow


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
    """Tune encoders on a data set, or find it done. folder: the data set's cache; dtype: on a GPU, see choose_dtype.

    Languages that share an encoder train it together. The given modules are changed on the way: take the encoders
    from ``Tuned.apply``. Raises UsageError, DataError, or StaleError if the same image encoder was tuned by another
    recipe; an interrupted fine-tuning is saved and goes on next time.
    """
    method = tuning_method(config, dataset.relevance)
    target = folder / runs.TUNED / image.name
    target.mkdir(parents=True, exist_ok=True)
    with locked(target / runs.CONFIG), ThreadPoolExecutor(DECODERS) as pool:
        choice = choose(dataset, list(texts))
        photos = Photos(dataset, np.union1d(choice.train, choice.judges), image, pool)
        recipe = _recipe(config, dataset, image, texts, photos.digest(), method)
        done = None if overwrite else tuned.find(target)
        if done:
            refuse_difference(done.config["recipe"], recipe, target, "fine-tuning")
            return done
        # a CPU trains in full precision, whatever it encodes in
        compute = torch.float32 if image.device.type == "cpu" else choose_dtype(dtype, image.device, untrained=False)
        shared = {id(encoder): replace(encoder, dtype=compute) for encoder in texts.values()}
        wide = {lang: shared[id(encoder)] for lang, encoder in texts.items()}
        task = open_task(choice, replace(image, dtype=compute), wide, photos, progress)
        state = Tuner(config, method, task, compute).run(target, recipe, overwrite, progress)
        rates = recipe["rates"]
        kept = {lang: encoder for lang, encoder in wide.items() if rates[f"text-{lang}"]}
        result = tuned.write(target, recipe, state, image if rates["image"] else None, kept)
        forget(target)
        return result


def tuning_method(config: FinetuneConfig, relevance: str = "labels") -> Method:
    """The method whose losses tune the encoders; UsageError for one without, or that the data set has no labels for,
    and for numbers that cannot be used.
    """
    check_finetune(config)
    method = get_method(config.method, relevance)
    if method.terms is None:
        usable = ", ".join(name for name, each in METHODS.items() if each.terms)
        raise UsageError(f"--method {config.method} has no loss to tune encoders with", None, f"choose one of {usable}")
    return method


class Tuner:
    """The loop, and what it holds: the model (``heads`` and ``encoders`` by view) and the optimizer with a group and a
    rate for the heads and for each encoder.
    """

    def __init__(self, config: FinetuneConfig, method: Method, task: TuneTask, compute: torch.dtype) -> None:
        self.config, self.method, self.task, self.compute = config, method, task, compute
        self.device = task.image.device
        self.encoders = task.encoders()
        dims = {"image": task.image.dim, **{f"text-{lang}": encoder.dim for lang, encoder in task.texts.items()}}
        classes = len(task.dataset.classes) if task.labels is not None else 0
        shapes = Shapes(config.bits, classes, {short(view): dim for view, dim in dims.items()})
        with seeded(config.seed, self.device):
            self.heads = nn.ModuleDict({view: _head(dim, config.bits) for view, dim in dims.items()}).to(self.device)
            parts = nn.ModuleDict(method.parts(shapes) if method.parts else {}).to(self.device)
        modules = nn.ModuleDict({view: encoder.module for view, encoder in self.encoders.items()})
        self.model = nn.ModuleDict({"heads": self.heads, "encoders": modules})
        rates = _rates(config, task.image, task.texts)
        self.frozen = [view for view in self.encoders if not rates[view]]
        groups = [{"params": [*self.heads.parameters(), *parts.parameters()], "peak": config.lr}]
        for view, module in modules.items():
            module.requires_grad_(view not in self.frozen)
            if view not in self.frozen:
                groups.append({"params": list(module.parameters()), "peak": rates[view]})
        # fused: it is told by a tensor on the device, not by Python, to leave a step out
        optimizer = torch.optim.AdamW(groups, lr=config.lr, weight_decay=config.weight_decay, fused=True)
        self.state = State(self.model, parts, optimizer)

    def run(self, target: Path, recipe: dict[str, Any], overwrite: bool, progress: Progress) -> State:
        """All epochs, from the last checkpoint on; interrupted, it leaves a checkpoint."""
        state, config = self.state, self.config
        state.resume(target, recipe, overwrite)
        saved = time.monotonic()
        try:
            while state.epoch < config.epochs:
                entry = self._epoch(progress)
                state.finish_epoch(entry | self._judge())
                if time.monotonic() - saved > config.checkpoint_seconds and state.epoch < config.epochs:
                    state.save(target, recipe)
                    saved = time.monotonic()
        except KeyboardInterrupt:
            state.save(target, recipe)
            raise
        self._show(progress, state.epoch)
        return state

    def _epoch(self, progress: Progress) -> dict[str, Any]:
        """One pass over the train items; returns its line of the history, without the judgement."""
        config, task, state = self.config, self.task, self.state
        size, steps = self._steps()
        seen: list[Terms] = []
        norms: list[Tensor] = []
        scaler = self._scaler()
        self._set_modes()
        with seeded(config.seed * 1_000_003 + state.epoch + 1, self.device):
            batches = list(torch.split(torch.randperm(len(task.train)), size))[:steps]
            pixels = task.photos.batches([task.train[batch.numpy()] for batch in batches])
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
        return {"epoch": state.epoch, **summary(good), "skipped": steps - len(good)}

    def _step(
        self, step: int, batch: Tensor, images: NDArray[np.uint8], scaler: torch.amp.GradScaler
    ) -> tuple[Terms, Tensor]:
        """One step of the optimizer, left out where a gradient is not finite. Returns the loss terms and the
        gradients' L2 norm before clipping, which tells so.
        """
        learning = [m for m in self.model.modules() if isinstance(m, _BatchNorm) and m.training]
        for module in learning:  # the mean over the epoch's batches, however few they are
            module.momentum = 1 / (step + 1)
        statistics = [s for m in learning for s in (m.running_mean, m.running_var) if s is not None]
        before = [s.clone() for s in statistics]
        terms = self._terms(batch, images)
        self.state.optimizer.zero_grad(set_to_none=True)
        scaler.scale(total(terms)).backward()  # type: ignore[no-untyped-call]
        scaler.unscale_(self.state.optimizer)
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip)
        scaler.step(self.state.optimizer)
        scaler.update()
        for now, old in zip(statistics, before, strict=True):  # one infinity would stay in them for ever
            now.copy_(torch.where(torch.isfinite(norm), now, old))
        return terms, norm

    def _terms(self, batch: Tensor, images: NDArray[np.uint8]) -> Terms:
        """The loss terms of a batch; an item with several captions brings a random one of each language."""
        task = self.task
        items = task.train[batch.numpy()]
        assert self.method.terms is not None
        encoded = {"image": task.image.forward(torch.from_numpy(images))}  # view -> (B, D)
        for lang, encoder in task.texts.items():
            captions = [task.pieces[lang][item] for item in items.tolist()]
            pick = (torch.rand(len(items)) * torch.tensor([len(c) for c in captions])).long().tolist()
            encoded[f"text-{lang}"] = encoder.forward([c[p] for c, p in zip(captions, pick, strict=True)])
        views, features = {}, {}
        for view, x in encoded.items():
            scaled = self.heads[view].get_submodule("scale")(x)
            views[short(view)] = self.heads[view].get_submodule("head")(scaled)  # (B, K)
            features[short(view)] = scaled.detach()  # a target to reconstruct, not a way to make it easier
        relevant = torch.eye(len(items), dtype=torch.bool, device=self.device)
        y = None
        if task.labels is not None:
            y = task.labels[batch.to(self.device)]  # (B, classes)
            relevant |= y @ y.T > 0.5
        margin = TrainConfig.margin * self.config.bits
        return self.method.terms(views, Batch(relevant, self.config.bits, margin, y, features, self.state.parts))

    @torch.inference_mode()
    def _judge(self) -> dict[str, Any]:
        """As train.judge, on the items that ``finetune_task.choose`` took for it."""
        if self.task.probes is None:
            return {}
        self.model.eval()
        return judge(self.task.probes, self._codes_of, self.config.bits)

    def _codes_of(self, view: str, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        task, of = self.task, self.task.rows[view]
        items = of[rows]
        if view == "image":
            batches = [items[at : at + JUDGE_BATCH] for at in range(0, len(items), JUDGE_BATCH)]
            parts = [task.image.forward(torch.from_numpy(images)) for images in task.photos.batches(batches)]
        else:
            lang = view.removeprefix("text-")
            which = rows - np.searchsorted(of, items)  # of the item's captions
            pieces = [task.pieces[lang][item][at] for item, at in zip(items.tolist(), which.tolist(), strict=True)]
            batched = [pieces[at : at + JUDGE_BATCH] for at in range(0, len(pieces), JUDGE_BATCH)]
            parts = [task.texts[lang].forward(batch) for batch in batched]
        return codes.pack(self.heads[view](torch.cat(parts)).cpu().numpy())

    def _set_modes(self) -> None:
        """Training mode, but for the BatchNorm of trained weights: its statistics, of a million photos, are better than
        those of a small batch, and the features are extracted with them. Untrained ones have none, and learn badly
        without: theirs are learned on the way.
        """
        self.model.train()
        for view, encoder in self.encoders.items():
            if view in self.frozen:
                encoder.module.eval()
            elif encoder.recipe["weights"] != RANDOM:
                for part in encoder.module.modules():
                    if isinstance(part, _BatchNorm):
                        part.eval()

    def _steps(self) -> tuple[int, int]:
        """Items a step, steps an epoch."""
        size = batch_size(self.config.batch, len(self.task.train))
        return size, len(self.task.train) // size

    def _scaler(self) -> torch.amp.GradScaler:
        """It leaves out steps with a gradient that is not finite, without waiting for the device. The loss is scaled
        for float16 alone; anew every epoch, so that no state of it has to be saved.
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


# ---------------------------------------------------------------------------------------------- small parts


def _head(dim: int, bits: int) -> nn.Module:
    """A linear head behind a BatchNorm, which follows the features as they move. Linear, so that it is the encoder
    that has to learn.
    """
    head = Head(dim, bits, hidden=0, dropout=0.0, input_dropout=0.0)
    return nn.Sequential(OrderedDict(scale=nn.BatchNorm1d(dim, affine=False), head=head))


def _rates(config: FinetuneConfig, image: ImageEncoder, texts: Mapping[str, TextEncoder]) -> dict[str, float]:
    """Peak of the learning rate by view."""

    def rate(asked: float | None, encoder: ImageEncoder | TextEncoder) -> float:
        usual = config.lr * (1.0 if encoder.recipe["weights"] == RANDOM else TRAINED_SHARE)
        return usual if asked is None else asked

    by_lang = {f"text-{lang}": rate(config.text_lr, encoder) for lang, encoder in texts.items()}
    return {"image": rate(config.image_lr, image), **by_lang}


def _finite(norms: list[Tensor]) -> list[bool]:
    """Which steps of an epoch were done; raises CmrhashError if NAN_STEPS in a row were not."""
    finite: list[bool] = torch.isfinite(torch.stack(norms)).tolist()
    for at in range(len(finite) - NAN_STEPS + 1):
        if not any(finite[at : at + NAN_STEPS]):
            what = f"gradients were not finite in {NAN_STEPS} steps in a row (from step {at + 1} of the epoch)"
            raise CmrhashError(what, None, "lower --lr, --image-lr or --text-lr")
    return finite


def _recipe(
    config: FinetuneConfig,
    dataset: ImageTextDataset,
    image: ImageEncoder,
    texts: Mapping[str, TextEncoder],
    photos: str,
    method: Method,
) -> dict[str, Any]:
    """All that decides the result; where and in which number type the work is done is left out."""
    encoders = {"image": image.recipe, **{f"text-{lang}": encoder.recipe for lang, encoder in texts.items()}}
    return {
        "code": CODE,
        "dataset": dataset.name,
        "relevance": dataset.relevance,
        "items_sha256": hashlib.sha256(dump(dataset)).hexdigest(),
        "photos_sha256": photos,
        "langs": list(texts),
        "finetune": {k: v for k, v in asdict(config).items() if k != "checkpoint_seconds"},
        "rates": _rates(config, image, texts),
        "source": method.source,
        "encoders": {view: {k: v for k, v in made.items() if k != "dtype"} for view, made in encoders.items()},
    }
