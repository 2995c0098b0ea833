"""Loggers of a training: any object with three methods, or TensorBoard by name."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from cmrhash.errors import UsageError

TENSORBOARD = "tensorboard"


class Logger(Protocol):
    """What ``train`` takes as its logger, once per run."""

    def start(self, run: str, recipe: Mapping[str, Any]) -> None:
        """Begin a run. run: its name; recipe: what its ``config.json`` will hold of settings and features."""

    def log(self, epoch: int, values: Mapping[str, float]) -> None:
        """Take the figures of an epoch, from 1: "loss", "val_map_mean", "val_map/de/i2t", ..."""

    def finish(self, outcome: Mapping[str, float]) -> None:
        """End a run that was not interrupted, with the figures of the chosen epoch."""


class Silence:
    """The logger of a training without one."""

    def start(self, run: str, recipe: Mapping[str, Any]) -> None:
        """Do nothing."""

    def log(self, epoch: int, values: Mapping[str, float]) -> None:
        """Do nothing."""

    def finish(self, outcome: Mapping[str, float]) -> None:
        """Do nothing."""


class TensorBoard:
    """Event files of TensorBoard, in a folder per run."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def start(self, run: str, recipe: Mapping[str, Any]) -> None:
        """Open the event file of a run."""
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(str(self._folder / run))
        self._writer.add_text("settings", ", ".join(f"{name} {value}" for name, value in recipe["train"].items()))

    def log(self, epoch: int, values: Mapping[str, float]) -> None:
        """Write the figures of an epoch."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, epoch)
        self._writer.flush()

    def finish(self, outcome: Mapping[str, float]) -> None:
        """Close the event file."""
        self._writer.close()


def check_logger(text: str | None) -> None:
    """Raise UsageError for a logger that is unknown, or whose package is not installed; imports nothing."""
    if text is None:
        return
    name, colon, folder = text.partition(":")
    if name != TENSORBOARD or (colon and not folder):
        raise UsageError(f"unknown logger '{text}'", None, "give tensorboard or tensorboard:DIR", option="log")
    if importlib.util.find_spec(TENSORBOARD) is None:
        raise UsageError("TensorBoard is not installed", None, 'pip install "cmrhash[tensorboard]"', option="log")


def logger_of(text: str | None, folder: Path) -> Logger:
    """The logger of that name. text: "tensorboard[:DIR]" or None; folder: its default DIR."""
    check_logger(text)
    return Silence() if text is None else TensorBoard(Path(text.partition(":")[2] or folder))


def figures(entry: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """Numbers of a line of the history, with the names of their levels joined by "/"."""
    found: dict[str, float] = {}
    for name, value in entry.items():
        if isinstance(value, Mapping):
            found |= figures(value, f"{prefix}{name}/")
        elif isinstance(value, int | float) and name != "epoch":
            found[prefix + name] = float(value)
    return found
