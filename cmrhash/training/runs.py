"""Run folders: ``runs/<dataset>/<method>-<bits>[-<langs>][-pairs][-seed<n>]/``, what a training leaves behind.

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
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cmrhash.config import RANDOM
from cmrhash.data.view import View
from cmrhash.errors import DamagedError, StaleError, UsageError
from cmrhash.storage.files import checked, read_json, write_bytes, write_json

if TYPE_CHECKING:
    from cmrhash.features.dataset import ExtractedDataset
    from cmrhash.features.file import FeatureHeader

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
class TrainedOn:
    """The feature file that a view of a run was trained on.

    file: its name in the data set's folder; sha256: of its payload; dim: features per row; encoder: architecture;
    weights: what kind they are; weights_sha256: their digest, "" for none.
    """

    file: str
    sha256: str
    dim: int
    encoder: str
    weights: str
    weights_sha256: str

    @classmethod
    def of(cls, header: FeatureHeader) -> TrainedOn:
        """What a run keeps of a feature file."""
        made = header.architecture, header.weights, header.weights_sha256
        return cls(header.path.name, header.sha256, header.dim, *made)


@dataclass(frozen=True)
class Outcome:
    """How a training ended: the chosen epoch (from 0), what it was chosen on, its val mAP and the state of its codes.

    val_map: language -> direction -> mAP, empty without val items; collapse: view -> the collapse watch.
    """

    epochs: int
    best_epoch: int
    chosen_on: str
    skipped_steps: int
    collapsed_epochs: int
    val_map: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    val_map_mean: float | None = None
    collapse: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    collapsed: bool = False

    @classmethod
    def read(cls, record: Mapping[str, Any]) -> Outcome:
        """Those fields of a stored record that tell the outcome."""
        return cls(**{key.name: record[key.name] for key in fields(cls) if key.name in record})


@dataclass(frozen=True)
class Run:
    """A finished training: its folder, and what ``config.json`` records of it.

    langs: languages with a text head; settings: fields of the TrainConfig; train_items: how many items were learned
    from, ``batch`` at a time; source: where the method comes from; head: keywords of ``Head``; features: the feature
    file of each view; files: sha256 of heads and history; record: all of it, as stored.
    """

    folder: Path
    dataset: str
    relevance: str
    items_sha256: str
    langs: tuple[str, ...]
    settings: Mapping[str, Any]
    train_items: int
    batch: int
    source: str
    head: Mapping[str, Any]
    features: Mapping[View, TrainedOn]
    files: Mapping[str, str]
    outcome: Outcome
    record: Mapping[str, Any] = field(repr=False)

    @classmethod
    def read(cls, folder: Path, record: Mapping[str, Any]) -> Run:
        """The run of a stored record; raises StaleError for missing fields, DamagedError for other types."""
        plain = ("dataset", "relevance", "items_sha256", "train_items", "batch", "source")
        try:
            return cls(
                folder=folder,
                langs=tuple(record["langs"]),
                settings=dict(record["train"]),
                head=dict(record["head"]),
                features={View(name): TrainedOn(**of) for name, of in record["features"].items()},
                files=dict(record["files"]),
                outcome=Outcome.read(record),
                record=record,
                **{key: record[key] for key in plain},
            )
        except KeyError:
            raise StaleError("fields are missing", folder / CONFIG, f"made by another version: {ANEW}") from None
        except (TypeError, ValueError, AttributeError) as error:
            raise DamagedError(f"not the config of a run ({error})", folder / CONFIG, ANEW) from None

    def __repr__(self) -> str:
        score = "" if self.outcome.val_map_mean is None else f", val mAP {self.outcome.val_map_mean:.3f}"
        return f"Run({str(self.folder)!r}, {self.method}, {self.bits} bits, {'+'.join(self.langs)}{score})"

    @property
    def name(self) -> str:
        """Name of its folder."""
        return self.folder.name

    @property
    def bits(self) -> int:
        """Code length."""
        return int(self.settings["bits"])

    @property
    def method(self) -> str:
        """Name of the method."""
        return str(self.settings["method"])

    @property
    def seed(self) -> int:
        """Seed of the training."""
        return int(self.settings["seed"])

    @property
    def untrained_views(self) -> list[View]:
        """Views whose encoder has random weights."""
        return [view for view, of in self.features.items() if of.weights == RANDOM]

    def refuse_stale(self, data: ExtractedDataset) -> None:
        """Raise StaleError if the cache holds other items, splits or features than those of the training."""
        if self.items_sha256 != data.dataset.sha256:
            what = "trained on other items or splits than the cache holds"
            raise StaleError(what, self.folder, "train again; cmrhash cache prune deletes what is of the past")
        for of in self.features.values():
            header = data.header(of.file)
            if header is not None and header.sha256 != of.sha256:
                what = f"{of.file} was extracted again since this run was trained"
                raise StaleError(what, self.folder, "train again")

    def is_current(self, data: ExtractedDataset) -> bool:
        """Whether the cache still holds the items and features of the training."""
        try:
            self.refuse_stale(data)
        except StaleError:
            return False
        return True

    def codes_recipe(self, borrowed: Mapping[str, Any]) -> dict[str, Any]:
        """All that the codes of this run depend on. borrowed: views that it has by another language's head."""
        return {
            "heads": self.files[HEADS],
            "items": self.items_sha256,
            "features": {view: of.sha256 for view, of in self.features.items()},
            "borrowed": borrowed,
            "captions": "all" if self.relevance == "pairs" else "first",
        }

    def file(self, name: str) -> Path:
        """A file of the run, once its sha256 is the recorded one; raises DamagedError."""
        return checked(self.folder, name, self.files.get(name), ANEW)


def folder_of(
    runs: Path, dataset: str, method: str, bits: int, seed: int, langs: Sequence[str] = (), relevance: str = ""
) -> Path:
    """Where a run lives; seed 0 is the plain name.

    langs: of a run trained on a part of the languages; relevance: of one trained by another than the data set's own.
    """
    parts = [method, str(bits), "+".join(langs), relevance, f"seed{seed}" if seed else ""]
    return runs / dataset / "-".join(part for part in parts if part)


def open_run(folder: str | Path) -> Run:
    """Read a finished run; raises UsageError, DamagedError or StaleError."""
    folder = Path(folder)
    return Run.read(folder, read_record(folder))


def read_record(folder: Path) -> dict[str, Any]:
    """What the ``config.json`` of a finished training holds; raises UsageError, DamagedError or StaleError."""
    path = folder / CONFIG
    if not path.is_file():
        raise UsageError("no trained run", folder, "run cmrhash train first")
    record = read_json(path, ANEW)
    if record.get("version") != VERSION:
        fix = f"this cmrhash reads version {VERSION}; upgrade it, or train again"
        raise StaleError(f"run format version {record.get('version')}", path, fix)
    return record


def write_record(folder: Path, record: Mapping[str, Any]) -> dict[str, Any]:
    """Finish a training: its record, with a digest over itself, in one move. Returns what was stored."""
    full = {"version": VERSION, **record}
    write_json(folder / CONFIG, full)
    return full


def current(found: Sequence[Run], data: ExtractedDataset) -> list[Run]:
    """The runs of the items and features that the cache holds now; if none is, raises the StaleError of the first."""
    there = [run for run in found if run.is_current(data)]
    if found and not there:
        found[0].refuse_stale(data)
    return there


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
    return max(found, key=lambda run: (len(run.langs), run.outcome.val_map_mean or 0.0))


def write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """JSON lines, in one move."""
    write_bytes(path, "".join(json.dumps(row) + "\n" for row in rows).encode())
