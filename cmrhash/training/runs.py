"""Run folders: ``runs/<dataset>/<method>-<bits>[-<langs>][-pairs][-seed<n>]/``, what a training leaves behind.

Standard library only.

config.json         method, bits, seed, languages, feature files and their digests, val mAP; sha256 of the others
heads.safetensors   the heads of the best epoch
history.jsonl       one line an epoch: loss by term, val mAP, collapse watch
codes.h5            codes and embeddings of every item (sealed; also holds the digests of the indexes)
image.faiss, text-<lang>.faiss   Faiss binary index of the database, one a view
metrics.json        what was scored so far, each with its protocol
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cmrhash.errors import StaleError, UsageError
from cmrhash.storage.files import checked, read_json, write_bytes, write_json

CONFIG, HEADS, HISTORY, CODES, METRICS = (
    "config.json",
    "heads.safetensors",
    "history.jsonl",
    "codes.h5",
    "metrics.json",
)
CHECKPOINT = "checkpoint.json"  # of an unfinished run: names the tensors' file and its sha256
TUNED = "tuned"  # below a data set's folder in the cache: fine-tunings, kept as runs are
VERSION = 1
ANEW = "train again with --overwrite"


@dataclass(frozen=True)
class Run:
    """A finished training: its folder and the content of ``config.json``."""

    folder: Path
    config: Mapping[str, Any]

    @property
    def bits(self) -> int:
        """Code length."""
        return int(self.config["train"]["bits"])

    @property
    def method(self) -> str:
        """Name out of METHODS."""
        return str(self.config["train"]["method"])

    @property
    def seed(self) -> int:
        """Seed of the training."""
        return int(self.config["train"]["seed"])

    @property
    def langs(self) -> tuple[str, ...]:
        """Languages that have a text head."""
        return tuple(self.config["langs"])

    @property
    def relevance(self) -> str:
        """Who was relevant to whom in the training: "labels" or "pairs"."""
        return str(self.config["relevance"])

    def codes_recipe(self, borrowed: Mapping[str, Any]) -> dict[str, Any]:
        """What the codes of this run depend on. borrowed: views that it has by another language's head."""
        return {
            "heads": self.config["files"][HEADS],
            "items": self.config["items_sha256"],
            "features": {name: made["sha256"] for name, made in self.config["features"].items()},
            "borrowed": borrowed,
            "captions": "all" if self.relevance == "pairs" else "first",
        }

    def file(self, name: str) -> Path:
        """A file of the run, once its sha256 is the recorded one; raises DamagedError."""
        return checked(self.folder, name, self.config["files"].get(name), ANEW)


def folder_of(
    runs: Path, dataset: str, method: str, bits: int, seed: int, langs: Sequence[str] = (), relevance: str = ""
) -> Path:
    """Where a run lives; seed 0 is the plain name.

    langs: of a run trained on a part of the languages; relevance: of one trained by another than the data set's own.
    """
    parts = [method, str(bits), "+".join(langs), relevance, f"seed{seed}" if seed else ""]
    return runs / dataset / "-".join(part for part in parts if part)


def open_run(folder: Path) -> Run:
    """Read a finished run; raises UsageError, DamagedError or StaleError."""
    path = folder / CONFIG
    if not path.is_file():
        raise UsageError("no trained run", folder, "run cmrhash train first")
    config = read_json(path, ANEW)
    if config["version"] != VERSION:
        fix = f"this cmrhash reads version {VERSION}; upgrade it, or train again"
        raise StaleError(f"run format version {config['version']}", path, fix)
    return Run(folder, config)


def write_config(folder: Path, config: Mapping[str, Any]) -> Run:
    """Finish a run: its config, with a digest over itself, in one move."""
    full = {"version": VERSION, **config}
    write_json(folder / CONFIG, full)
    return Run(folder, full)


def find_runs(
    runs: Path,
    dataset: str,
    relevance: str,
    bits: Sequence[int] = (),
    methods: Sequence[str] = (),
    seeds: Sequence[int] = (),
) -> list[Run]:
    """Every finished run of a data set that fits, by method, languages, seed and bits, whatever its folder is called.

    relevance: that of the training; empty filters let all pass. Raises UsageError if there is none, or none of a
    length.
    """
    found = [open_run(path.parent) for path in sorted((runs / dataset).glob(f"*/{CONFIG}"))]
    fitting = [
        run
        for run in found
        if run.relevance == relevance
        and (not bits or run.bits in bits)
        and (not methods or run.method in methods)
        and (not seeds or run.seed in seeds)
    ]
    missing = [b for b in bits if b not in {run.bits for run in fitting}]
    if not fitting or missing:
        there = ", ".join(run.folder.name for run in found) or "none"
        wish, fix = f" with {missing[0]} bits" if missing else "", "run cmrhash train first"
        others = sorted({run.relevance for run in found} - {relevance})
        if others:
            wish, fix = f"{wish} by {relevance}", f"{fix}, or ask for --relevance {others[0]}"
        raise UsageError(f"no such trained run{wish} (there: {there})", runs / dataset, fix)
    return sorted(fitting, key=lambda run: (run.method, run.langs, run.seed, run.bits))


def best_run(found: Sequence[Run]) -> Run:
    """The one that is best on val, of those that were trained on most languages: a mean over one of them is no mean
    over two. The first of equal ones; without val items the first.
    """
    return max(found, key=lambda run: (len(run.langs), run.config.get("val_map_mean", 0.0)))


def write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """JSON lines, in one move."""
    write_bytes(path, "".join(json.dumps(row) + "\n" for row in rows).encode())
