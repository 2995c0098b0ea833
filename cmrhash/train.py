"""Cached features -> trained heads: one image head and one text head a language, in one Hamming space.

All features lie on the device; an epoch is a permutation. Every epoch draws its random numbers from (seed, epoch)
alone, so a run that was killed goes on from its checkpoint to the same bits.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray
from torch import Tensor

from cmrhash import codes, index, metrics, runs
from cmrhash.cache import locked, refuse_difference
from cmrhash.config import TrainConfig, require_bits, require_positive
from cmrhash.data.dataset import ImageTextDataset
from cmrhash.data.manifest import dump
from cmrhash.encoders.weights import choose_device
from cmrhash.errors import CmrhashError, DamagedError, DataError, UsageError
from cmrhash.heads import Head
from cmrhash.methods import Method, get_method, total
from cmrhash.relevance import Relevance
from cmrhash.views import View, chosen_encoders, languages_of, open_view, relevance_between

CHECKPOINT = "checkpoint.json"  # names the tensors' file and its sha256; gone once the run is finished
NAN_STEPS = 3  # non-finite losses in a row before training stops
MIN_STEPS = 4  # the batch is halved until an epoch has as many

Progress = Callable[[str, int, int, str], None]  # (what, done, total, note)


@dataclass
class Task:
    """All that a training needs, on the device. views: name -> features of its valid rows (M, D) float32.

    train: (n,) int64 items; labels: (n, classes) float32 of these, None for relevance by pairs.
    """

    dataset: ImageTextDataset
    langs: list[str]
    views: dict[str, View]
    x: dict[str, Tensor]
    train: NDArray[np.int64]
    labels: Tensor | None
    probe: Probe | None
    device: torch.device


@dataclass
class Probe:
    """What an epoch is judged by: val items as queries, the rest of the database as their database."""

    queries: dict[str, NDArray[np.int64]]  # language -> items that have an image and a caption
    database: dict[str, NDArray[np.int64]]
    relevance: dict[str, Relevance]


def train(
    config: TrainConfig,
    dataset: ImageTextDataset,
    folder: Path,
    out: Path,
    encoders: tuple[str, ...] = (),
    overwrite: bool = False,
    progress: Progress = lambda *_: None,
) -> tuple[runs.Run, bool]:
    """Train one run, or find it done. folder: the data set's cache; out: the folder of all runs.

    Returns the run and whether it was trained now. Raises UsageError, DataError, or StaleError if the folder holds
    a run of another recipe; an interrupted run is saved and goes on next time.
    """
    _check(config)
    method = get_method(config.method)
    target = runs.folder_of(out, dataset.name, config.method, config.bits, config.seed)
    target.mkdir(parents=True, exist_ok=True)
    with locked(target / runs.CONFIG):
        task = prepare(config, dataset, folder, encoders)
        recipe = _recipe(config, task, method)
        if (target / runs.CONFIG).exists() and not overwrite:
            run = runs.open_run(target)
            refuse_difference(_comparable(run.config), _comparable(recipe), target, "run")
            run.file(runs.HEADS)
            return run, False
        return _train(config, method, task, recipe, target, overwrite, progress), True


def prepare(config: TrainConfig, dataset: ImageTextDataset, folder: Path, encoders: tuple[str, ...] = ()) -> Task:
    """Read the feature files and choose the items: those that are there in every view, and for relevance by labels
    have one (an item without a label says nothing about who is relevant to it).
    """
    device = choose_device(config.device)
    langs = languages_of(folder, dataset, config.langs)
    chosen = chosen_encoders(encoders)
    names = ["image", *(f"text-{lang}" for lang in langs)]
    unknown = [name for name in chosen if name not in names]
    if unknown:
        raise UsageError(f"--encoder for '{unknown[0]}', which is not trained", None, f"trained: {', '.join(names)}")
    views = {name: open_view(folder, dataset, name, chosen.get(name)) for name in names}
    x = {name: torch.from_numpy(view.features.x[view.rows]).to(device) for name, view in views.items()}
    by_labels = dataset.relevance == "labels"
    whole = np.all([view.has for view in views.values()], axis=0)
    roles = {role: np.array([role in item.splits for item in dataset.items]) for role in ("train", "val", "database")}
    labelled = np.array([bool(item.labels) or not by_labels for item in dataset.items])
    rows = np.flatnonzero(whole & labelled & roles["train"])
    if len(rows) < 2:
        fix = "give items the split 'train', or leave all splits out to have them drawn"
        raise DataError(f"{len(rows)} items to train on", folder, fix)
    labels = None
    if by_labels:
        labels = torch.zeros(len(rows), len(dataset.classes), device=device)
        for at, row in enumerate(rows):
            labels[at, list(dataset.items[row].labels)] = 1
    probe = _probe(dataset, langs, views, roles)
    return Task(dataset, langs, views, x, rows, labels, probe, device)


def _probe(
    dataset: ImageTextDataset, langs: list[str], views: dict[str, View], roles: dict[str, NDArray[np.bool_]]
) -> Probe | None:
    probe = Probe({}, {}, {})
    by_labels = dataset.relevance == "labels"
    for lang in langs:
        has = views["image"].has & views[f"text-{lang}"].has
        queries = np.flatnonzero(has & roles["val"])
        database = np.flatnonzero(has & roles["database"] & ~roles["val"]) if by_labels else queries
        if not len(queries) or not len(database):
            return None
        probe.queries[lang], probe.database[lang] = queries, database
        probe.relevance[lang] = relevance_between(dataset, queries, database)
    return probe


# ---------------------------------------------------------------------------------------------- the loop


def _train(
    config: TrainConfig,
    method: Method,
    task: Task,
    recipe: dict[str, Any],
    target: Path,
    overwrite: bool,
    progress: Progress,
) -> runs.Run:
    state = State.new(config, task)
    if overwrite:
        _forget(target)
    else:
        state.resume(target, recipe)
    what = f"{config.method} {config.bits} bits"
    clock = _Clock(config.checkpoint_seconds)
    progress(what, state.epoch, config.epochs, state.note())
    try:
        while state.epoch < config.epochs:
            entry = _epoch(config, method, task, state)
            state.finish_epoch(task, entry)
            progress(what, state.epoch, config.epochs, state.note())
            if clock.rings():
                state.save(target, recipe)
    except KeyboardInterrupt:
        state.save(target, recipe)
        raise
    (target / runs.HEADS).unlink(missing_ok=True)
    runs.write_bytes(target / runs.HEADS, safetensors.torch.save(state.best))
    runs.write_lines(target / runs.HISTORY, state.history)
    files = {name: runs.sha256(target / name) for name in (runs.HEADS, runs.HISTORY)}
    run = runs.write_config(target, {**recipe, **state.result(), "files": files})
    _forget(target)
    return run


class State:
    """What changes while training: heads, optimizer, epoch, the best epoch so far, history."""

    def __init__(self, heads: torch.nn.ModuleDict, optimizer: torch.optim.Optimizer, seed: int) -> None:
        self.heads, self.optimizer, self.seed = heads, optimizer, seed
        self.epoch = 0
        self.best_epoch, self.best_map = -1, -math.inf
        self.best: dict[str, Tensor] = {}
        self.history: list[dict[str, Any]] = []
        self._snapshot = self._tensors()

    @classmethod
    def new(cls, config: TrainConfig, task: Task) -> State:
        """Fresh heads, drawn from the seed, that know the statistics of the training features."""
        with seeded(config.seed, task.device):
            heads = make_heads(config, {name: x.shape[1] for name, x in task.x.items()})
        for name, view in task.views.items():
            rows = np.concatenate([np.arange(view.start[i], view.start[i] + view.count[i]) for i in task.train])
            heads[name].standardise(task.x[name][torch.from_numpy(rows).to(task.device)].cpu())  # type: ignore[operator]
        heads.to(task.device)
        optimizer = torch.optim.AdamW(heads.parameters(), lr=config.lr, weight_decay=config.weight_decay)
        return cls(heads, optimizer, config.seed)

    def finish_epoch(self, task: Task, entry: dict[str, Any]) -> None:
        """Judge the epoch on val, remember it, and note where a restart would go on."""
        entry |= _judge(task, self.heads)
        score = entry.get("val_map_mean", float(self.epoch))  # without val items the last epoch counts
        self.history.append(entry)
        if score > self.best_map or not self.best:
            self.best_map, self.best_epoch = score, self.epoch
            self.best = {name: t.detach().cpu().clone() for name, t in self.heads.state_dict().items()}
        self.epoch += 1
        self._snapshot = self._tensors()

    def note(self) -> str:
        """One line on how it goes."""
        if not self.history or "val_map_mean" not in self.history[-1]:
            return ""
        return f"val mAP {self.history[-1]['val_map_mean']:.3f}, best {self.best_map:.3f}"

    def result(self) -> dict[str, Any]:
        """For the run's config: the chosen epoch and the state of its codes."""
        best = self.history[self.best_epoch]
        keys = ("val_map", "val_map_mean", "collapse", "collapsed")
        return {
            "best_epoch": self.best_epoch,
            "chosen_on": "val" if "val_map" in best else "last epoch (no val items)",
            "skipped_steps": sum(entry["skipped"] for entry in self.history),
            **{key: best[key] for key in keys if key in best},
        }

    def _tensors(self) -> dict[str, Tensor]:
        """A copy of heads and optimizer as they are at the end of an epoch."""
        tensors = {f"heads.{name}": t for name, t in self.heads.state_dict().items()}
        for at, slots in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{at}.{slot}": t for slot, t in slots.items()}
        return {name: t.detach().cpu().clone() for name, t in tensors.items()}

    def save(self, target: Path, recipe: dict[str, Any]) -> None:
        """Write the end of the last whole epoch; the JSON that names the tensors' file comes last, in one move."""
        if not self.epoch:
            return
        tensors = self._snapshot | {f"best.{name}": t for name, t in self.best.items()}
        path = target / f"checkpoint-{self.epoch}.safetensors"
        runs.write_bytes(path, safetensors.torch.save(tensors))
        about = {
            "recipe": recipe,
            "file": path.name,
            "sha256": runs.sha256(path),
            "epoch": self.epoch,
            "best_epoch": self.best_epoch,
            "best_map": self.best_map,
            "history": self.history,
        }
        runs.write_bytes(target / CHECKPOINT, json.dumps(about).encode())
        for old in target.glob("checkpoint-*.safetensors"):
            if old != path:
                old.unlink()

    def resume(self, target: Path, recipe: dict[str, Any]) -> None:
        """Go on from a checkpoint of the same recipe, if there is one."""
        path = target / CHECKPOINT
        if not path.exists():
            return
        try:
            about = json.loads(path.read_bytes())
            tensors_path = target / about["file"]
            intact = runs.sha256(tensors_path) == about["sha256"]
        except (ValueError, KeyError, OSError):
            intact = False
        if not intact:
            raise DamagedError("unfinished run is damaged", path, "start anew with --overwrite")
        refuse_difference(about["recipe"], json.loads(json.dumps(recipe)), target, "unfinished run")
        tensors = safetensors.torch.load_file(tensors_path)
        parts = {key: {n.removeprefix(key): t for n, t in tensors.items() if n.startswith(key)} for key in _PARTS}
        self.heads.load_state_dict(parts["heads."])
        slots: dict[int, dict[str, Tensor]] = {}
        for name, tensor in parts["optimizer."].items():
            at, slot = name.split(".")
            slots.setdefault(int(at), {})[slot] = tensor
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": slots, "param_groups": groups})
        self.best = parts["best."]
        self.epoch, self.best_epoch, self.best_map = about["epoch"], about["best_epoch"], about["best_map"]
        self.history = about["history"]
        self._snapshot = self._tensors()


COMPARED = ("dataset", "relevance", "split_seed", "items_sha256", "langs", "train", "features")
_PARTS = ("heads.", "optimizer.", "best.")


def _epoch(config: TrainConfig, method: Method, task: Task, state: State) -> dict[str, Any]:
    """One pass over the train items; returns its line of the history, without the judgement."""
    items = len(task.train)
    size = batch_size(config.batch, items)
    steps = items // size
    sums = torch.zeros(1 + 3 * len(task.langs), dtype=torch.float64)
    valid, active = torch.zeros_like(sums), torch.zeros_like(sums)
    skipped = nan_row = 0
    state.heads.train()
    with seeded(state.seed * 1_000_003 + state.epoch + 1, task.device):
        order = torch.randperm(items)
        for step in range(steps):
            rate = one_cycle(state.epoch * steps + step, config.epochs * steps, config.lr)
            chosen = order[step * size : (step + 1) * size]
            terms = _terms(config, method, task, state.heads, chosen)
            loss = total(terms, len(task.langs))
            if not torch.isfinite(loss):
                skipped, nan_row = skipped + 1, nan_row + 1
                if nan_row == NAN_STEPS:
                    ids = ", ".join(task.dataset.items[task.train[i]].id for i in chosen[:5])
                    what = f"the loss was not finite in {NAN_STEPS} steps in a row (batch: {ids}, ...)"
                    raise CmrhashError(what, None, "lower --lr, or check the features with cmrhash extract")
                continue
            nan_row = 0
            for group in state.optimizer.param_groups:
                group["lr"] = rate
            state.optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            state.optimizer.step()
            sums += terms.loss.detach().double().cpu()
            valid += terms.valid.double().cpu()
            active += terms.active.double().cpu()
    if not valid.all():
        fix = "check the labels: every item is relevant to all others, or to none"
        raise DataError("an epoch without a single valid triplet", None, fix)
    done = max(steps - skipped, 1)
    mean = (sums / done).tolist()
    names = ["i2i", *(f"{term}.{lang}" for lang in task.langs for term in ("i2t", "t2i", "t2t"))]
    return {
        "epoch": state.epoch,
        "loss": mean[0] + sum(mean[1:]) / len(task.langs),
        "terms": dict(zip(names, mean, strict=True)),
        "valid_triplets": int(valid.sum()),
        "active_share": float(active.sum() / valid.sum()),
        "skipped": skipped,
    }


def _terms(config: TrainConfig, method: Method, task: Task, heads: torch.nn.ModuleDict, chosen: Tensor) -> Any:
    """The loss terms of a batch; an item with several captions brings a random one of each language."""
    items = task.train[chosen.numpy()]
    embedded = {}
    for name, view in task.views.items():
        pick = (torch.rand(len(items)).numpy() * view.count[items]).astype(np.int64)  # (B,) which caption
        rows = torch.from_numpy(view.start[items] + pick).to(task.device)
        embedded[name] = heads[name](task.x[name][rows])  # (B, K)
    relevant = torch.eye(len(items), dtype=torch.bool, device=task.device)
    if task.labels is not None:
        y = task.labels[chosen.to(task.device)]
        relevant |= y @ y.T > 0.5
    texts = [embedded[f"text-{lang}"] for lang in task.langs]
    return method.terms(embedded["image"], texts, relevant, config.margin * config.bits)


def _judge(task: Task, heads: torch.nn.ModuleDict) -> dict[str, Any]:
    """Tie-aware mAP of val queries by language and direction, and the collapse watch over the database's codes."""
    if task.probe is None:
        return {}
    packed = {name: codes.pack(heads[name].embed(x).cpu().numpy()) for name, x in task.x.items()}  # type: ignore[operator]
    scores: dict[str, dict[str, float]] = {}
    watch: dict[str, dict[str, Any]] = {}
    for lang in task.langs:
        queries, database = task.probe.queries[lang], task.probe.database[lang]
        for direction, (source, sought) in {
            "i2t": ("image", f"text-{lang}"),
            "t2i": (f"text-{lang}", "image"),
        }.items():
            q = packed[source][task.views[source].start[queries]]
            d = packed[sought][task.views[sought].start[database]]
            hist = index.rank_histogram(q, d, heads[source].bits, task.probe.relevance[lang])  # type: ignore[arg-type]
            mean, count = metrics.mean_over_valid(metrics.average_precision(*metrics.items_relevant(hist)))
            if not count:
                raise DataError("no val query has a relevant item", None, "check the labels of the val items")
            scores.setdefault(lang, {})[direction] = mean
            if len(d) > 1:
                watch[sought] = asdict(codes.collapse(d, heads[sought].bits))  # type: ignore[arg-type]
    mean = float(np.mean([value for by in scores.values() for value in by.values()]))
    collapsed = any(view["collapsed"] for view in watch.values())
    return {"val_map": scores, "val_map_mean": mean, "collapse": watch, "collapsed": collapsed}


# ---------------------------------------------------------------------------------------------- small parts


def make_heads(config: TrainConfig, dims: dict[str, int]) -> torch.nn.ModuleDict:
    """One head a view, by name; dims: features of each."""
    shape = (config.bits, config.hidden, config.dropout, config.input_dropout)
    return torch.nn.ModuleDict({name: Head(dim, *shape) for name, dim in dims.items()})


def batch_size(wanted: int, items: int) -> int:
    """The wanted batch, halved until an epoch over the items has MIN_STEPS steps; 2 at least."""
    while wanted > 2 and items // wanted < MIN_STEPS:
        wanted //= 2
    return max(2, wanted)


def one_cycle(step: int, steps: int, peak: float) -> float:
    """The learning rate of a step: up from peak/25 over 30 % of the way, down to almost 0, both by half a cosine
    (Smith & Topin 2018, as torch's OneCycleLR has it). A function of the step, so that a resumed run needs no state.
    """
    rise = max(0.3 * steps - 1, 1e-9)
    if step <= rise:
        low, high, share = peak / 25, peak, step / rise
    else:
        low, high, share = peak, peak / 25e4, (step - rise) / max(steps - 1 - rise, 1e-9)
    return high + (low - high) * (1 + math.cos(math.pi * min(share, 1))) / 2


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Draw from ``seed`` inside, and leave the caller's random numbers as they were."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


class _Clock:
    """Rings when the period has passed since it last did."""

    def __init__(self, period: float) -> None:
        import time

        self._now, self._period = time.monotonic, period
        self._last = self._now()

    def rings(self) -> bool:
        if self._now() - self._last < self._period:
            return False
        self._last = self._now()
        return True


def _check(config: TrainConfig) -> None:
    require_bits(config.bits)
    for option in ("epochs", "batch", "lr", "margin"):
        require_positive(f"--{option}", getattr(config, option))
    for option in ("weight_decay", "hidden"):
        require_positive(f"--{option.replace('_', '-')}", getattr(config, option), zero=True)
    for option in ("dropout", "input_dropout"):
        if not 0 <= getattr(config, option) < 1:
            raise UsageError(f"--{option.replace('_', '-')} {getattr(config, option)}", None, "give a share below 1")


def _recipe(config: TrainConfig, task: Task, method: Method) -> dict[str, Any]:
    """All that decides the result, for the run's config; where the work is done and saved is left out."""
    settings = {k: v for k, v in asdict(config).items() if k not in ("device", "checkpoint_seconds", "langs")}
    features = {
        name: {
            "file": view.path.name,
            "sha256": view.features.sha256,
            "dim": view.features.x.shape[1],
            "encoder": view.features.recipe["encoder"],
            "weights": view.features.recipe["weights"],
        }
        for name, view in task.views.items()
    }
    return {
        "dataset": task.dataset.name,
        "relevance": task.dataset.relevance,
        "split_seed": task.dataset.split_seed,
        "items_sha256": hashlib.sha256(dump(task.dataset)).hexdigest(),
        "langs": task.langs,
        "train": settings,
        "train_items": len(task.train),
        "batch": batch_size(config.batch, len(task.train)),
        "source": method.source,
        "features": features,
    }


def _comparable(config: Any) -> dict[str, Any]:
    """The part of a run's config that must be the same for it to be the run that is asked for."""
    return {key: config.get(key) for key in COMPARED}


def _forget(target: Path) -> None:
    """Remove a checkpoint; its JSON first, so that no JSON ever names tensors that are gone."""
    (target / CHECKPOINT).unlink(missing_ok=True)
    for path in target.glob("checkpoint-*.safetensors"):
        path.unlink()
