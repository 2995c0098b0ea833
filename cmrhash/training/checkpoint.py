"""Training state, saved as safetensors and JSON to resume after an interruption.

Only whole epochs are saved. An epoch draws its random numbers from (seed, epoch) alone, so a resumed training gives the
same bits without a saved generator state.
"""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from cmrhash.errors import DamagedError, StaleError
from cmrhash.storage.files import checked, read_json, remove, sha256, write_bytes, write_json
from cmrhash.storage.recipes import refuse_difference
from cmrhash.training.adamw import AdamW
from cmrhash.training.runs import CHECKPOINT, VAL, completed

ANEW = "start again with `overwrite=True`"
PREFIXES = ("heads.", "parts.", "optimizer.", "best.", "averaged.")  # of tensor names


class TrainingState:
    """Training state: heads, auxiliary modules (``parts``), optimizer, epoch, best epoch, history.

    Of the best epoch only the heads are kept. averaged: the heads that are judged and kept, the moving average of
    ``heads`` over the steps if ``ema``, the share that it keeps each step, is not 0. keeps: False where nothing is to
    be resumed from here: in a process for which another one of the same training saves, and in a closed form of a
    single "epoch". It then holds no copies.
    """

    def __init__(
        self,
        heads: torch.nn.ModuleDict,
        parts: torch.nn.ModuleDict,
        optimizer: AdamW | torch.optim.Optimizer,
        keeps: bool = True,
        ema: float = 0.0,
    ) -> None:
        self.heads, self.parts, self.keeps = heads, parts, keeps
        self.optimizer: Any = optimizer
        self.ema, self.averaged = ema, copy.deepcopy(heads) if ema else heads
        self.epoch = 0
        self.best_epoch, self.best_map = -1, -math.inf
        self.best: dict[str, Tensor] = {}
        self.history: list[dict[str, Any]] = []
        self._snapshot = self._tensors()

    def step(self) -> None:
        """Let the optimizer change the weights, and the average follow."""
        self.optimizer.step()
        if not self.ema:
            return
        with torch.no_grad():
            for mean, weight in zip(self.averaged.parameters(), self.heads.parameters(), strict=True):
                mean.lerp_(weight, 1 - self.ema)
            for own, buffer in zip(self.averaged.buffers(), self.heads.buffers(), strict=True):
                own.copy_(buffer)

    def finish_epoch(self, entry: dict[str, Any]) -> None:
        """Record an epoch with its validation scores and take a snapshot to resume from."""
        score = entry.get("val_map_mean", float(self.epoch))  # without val items the last epoch counts
        if self.history and entry.get("chosen_on", VAL) != self.history[-1].get("chosen_on", VAL):
            self.best_epoch = -1  # resumed by a version with another search on val: its scores are not comparable
        self.history.append(entry)
        if score > self.best_map or self.best_epoch < 0:
            self.best_map, self.best_epoch = score, self.epoch
            self.best = {name: _copy(t) for name, t in self.averaged.state_dict().items()} if self.keeps else {}
        self.epoch += 1
        self._snapshot = self._tensors()

    def note(self) -> str:
        """Latest and best val mAP in one line, "" without val items."""
        if not self.history or "val_map_mean" not in self.history[-1]:
            return ""
        return f"val mAP {self.history[-1]['val_map_mean']:.3f}, best {self.best_map:.3f}"

    def result(self) -> dict[str, Any]:
        """Outcome for the run's record: the selected epoch, its val mAP and collapse watch."""
        best = self.history[self.best_epoch]
        keys = ("val_map", "val_map_mean", "collapse", "collapsed")
        return {
            "epochs": len(self.history),
            "best_epoch": self.best_epoch,
            "chosen_on": best.get("chosen_on", VAL) if "val_map" in best else "last epoch (no val items)",
            "skipped_steps": sum(entry["skipped"] for entry in self.history),
            "collapsed_epochs": sum(entry.get("collapsed", False) for entry in self.history),
            **{key: best[key] for key in keys if key in best},
        }

    def _tensors(self) -> dict[str, Tensor]:
        """Copies of heads, parts and optimizer at the end of an epoch."""
        if not self.keeps:
            return {}
        tensors = {f"heads.{name}": t for name, t in self.heads.state_dict().items()}
        tensors |= {f"parts.{name}": t for name, t in self.parts.state_dict().items()}
        if self.ema:
            tensors |= {f"averaged.{name}": t for name, t in self.averaged.state_dict().items()}
        for at, slots in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{at}.{slot}": t for slot, t in slots.items()}
        return {name: _copy(t) for name, t in tensors.items()}

    def save(self, target: Path, recipe: dict[str, Any]) -> None:
        """Write the last whole epoch; the JSON that names the tensor file comes last, atomically."""
        if not self.epoch:
            return
        tensors = self._snapshot | {f"best.{name}": t for name, t in self.best.items()}
        path = target / f"checkpoint-{self.epoch}.safetensors"
        write_bytes(path, safetensors.torch.save(tensors))
        about = {
            "recipe": recipe,
            "file": path.name,
            "tensors_sha256": sha256(path),
            "epoch": self.epoch,
            "best_epoch": self.best_epoch,
            "best_map": self.best_map,
            "history": self.history,
        }
        write_json(target / CHECKPOINT, about)
        for old in target.glob("checkpoint-*"):
            if old != path:
                old.unlink()

    def resume(self, target: Path, recipe: dict[str, Any], overwrite: bool) -> None:
        """Resume from a checkpoint of the same recipe, if there is one.

        Raises StaleError for another recipe and DamagedError for a damaged checkpoint; with ``overwrite`` it is
        removed.
        """
        try:
            self._resume(target, recipe)
        except (StaleError, DamagedError):
            if not overwrite:
                raise
            forget(target)

    def _resume(self, target: Path, recipe: dict[str, Any]) -> None:
        path = target / CHECKPOINT
        if not path.exists():
            return
        about = read_json(path, ANEW)
        tensors_path = checked(target, about["file"], about["tensors_sha256"], ANEW)
        refuse_difference(
            completed(about["recipe"]), completed(json.loads(json.dumps(recipe))), target, "unfinished run"
        )
        tensors = read_tensors(tensors_path, ANEW)
        saved = {key: {n.removeprefix(key): t for n, t in tensors.items() if n.startswith(key)} for key in PREFIXES}
        fill(self.heads, saved["heads."], tensors_path, ANEW)
        fill(self.parts, saved["parts."], tensors_path, ANEW)
        if self.ema:
            fill(self.averaged, saved["averaged."], tensors_path, ANEW)
        slots: dict[int, dict[str, Tensor]] = {}
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        for name, tensor in saved["optimizer."].items():
            at, slot = name.split(".")
            like = parameters[int(at)]  # moments need its memory format, channels last or not
            laid = torch.empty_like(like, device="cpu").copy_(tensor) if tensor.shape == like.shape else tensor
            slots.setdefault(int(at), {})[slot] = laid
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": slots, "param_groups": groups})
        self.best = saved["best."] if self.keeps else {}
        self.epoch, self.best_epoch, self.best_map = about["epoch"], about["best_epoch"], about["best_map"]
        self.history = about["history"]
        self._snapshot = self._tensors()


def read_tensors(path: Path, fix: str) -> dict[str, Tensor]:
    """Read a safetensors file whose digest is right; raises DamagedError if it is none."""
    try:
        return safetensors.torch.load_file(path)
    except (safetensors.SafetensorError, OSError) as error:
        raise DamagedError(f"not a safetensors file ({str(error)[:120]})", path, fix) from None


def fill(module: torch.nn.Module, state: dict[str, Tensor], path: Path, fix: str) -> None:
    """Load a state dict; raises DamagedError if it is another module's."""
    try:
        module.load_state_dict(state)
    except RuntimeError:
        raise DamagedError("the file has other tensors than expected", path, fix) from None


def _copy(tensor: Tensor) -> Tensor:
    """Copy in contiguous memory format, as files have it."""
    return tensor.detach().cpu().clone(memory_format=torch.contiguous_format)


def forget(target: Path) -> None:
    """Remove a checkpoint, also a half-written one.

    The JSON goes first, so that it never names missing tensors.
    """
    remove(target / CHECKPOINT)
    for path in target.glob("checkpoint*"):
        path.unlink()
