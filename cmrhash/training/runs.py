"""Run folders ``runs/<dataset>/<method>-<bits>[-<langs>][-pairs][-seed<n>]/``: the results of a training.

config.json         method, bits, seed, languages, feature files with digests, val mAP; sha256 of heads and history
heads.safetensors   heads of the best epoch
items.digests       16 bytes per item that the data set had, the training items first: how many items came, went or
                    changed since the training
history.jsonl       one line per epoch: loss terms, val mAP, collapse watch
codes.h5            codes and embeddings of every item (sealed; also holds the digests of the indexes)
image.faiss, text-<lang>.faiss   Faiss binary index of the database, one per view
metrics.json        saved scores, each with its protocol
queries-<relevance>.npz   average precision and hits of each query
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

from cmrhash.config import MAX_BITS, RANDOM, TrainConfig
from cmrhash.data.changes import changed_since
from cmrhash.data.view import View
from cmrhash.errors import DamagedError, StaleError, UsageError
from cmrhash.storage import records
from cmrhash.storage.files import below, checked, read_json, write_bytes, write_json
from cmrhash.storage.sealed import read_manifest
from cmrhash.storage.staged import settle

if TYPE_CHECKING:
    from cmrhash.data.items import ImageTextDataset
    from cmrhash.features.dataset import ExtractedDataset
    from cmrhash.features.file import FeatureHeader

CONFIG, HEADS, HISTORY = "config.json", "heads.safetensors", "history.jsonl"
CODES, METRICS = "codes.h5", "metrics.json"
DIGESTS = "items.digests"  # of the items at the training; runs of version 0.1 have none
WORDS = "words.json"  # of an applied run: language -> words of the captions of its training
EXPORT = "export"  # field of a config, and folder: the exported run whose heads and encoders a run applies
CHECKPOINT = "checkpoint.json"  # of an unfinished run: names the tensor file and its sha256
TUNED = "tuned"  # folder of fine-tunings in a data set's cache, stored as runs are
VAL = "val"  # criterion of the selected epoch: val queries, search in the database without val and query items
WITHIN_VAL = "val within val"  # val queries, search in the other val items
VERSION = 1
OPTIONAL = {  # fields that only some runs have
    "trained": int | None,
    "split_seed": int | None,
    "made_as": Mapping[str, Any] | None,
    "sources": Mapping[str, str | None] | None,
    EXPORT: str | None,
}
ANEW = "run `train` with `overwrite=True`"


@dataclass(frozen=True)
class TrainedOn:
    """Feature file that a view of a run was trained on.

    file: its name in the data set's folder; sha256: of its payload, "" if an applied run has no such
    features; dim: features per row; encoder: architecture;
    weights: their kind; weights_sha256: their digest, "" for none.
    """

    file: str
    sha256: str
    dim: int
    encoder: str
    weights: str
    weights_sha256: str

    @classmethod
    def of(cls, header: FeatureHeader) -> TrainedOn:
        """Record of a feature file, made from its header."""
        made = header.architecture, header.weights, header.weights_sha256
        return cls(header.path.name, header.sha256, header.dim, *made)


@dataclass(frozen=True)
class Outcome:
    """Outcome of a training: selected epoch (from 0), val mAP and collapse watch.

    chosen_on: criterion of the selection; val_map: language -> direction -> mAP, empty without val items; collapse:
    view -> collapse watch.
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
        """Outcome in a stored record; other fields are ignored. Raises KeyError, ValueError."""
        outcome: Outcome = records.read(cls, record)
        return outcome


@dataclass(frozen=True)
class Run:
    """A finished training: its folder and the content of its ``config.json``.

    langs: languages with a text head; settings: fields of the TrainConfig; train_items: number of training items;
    batch: items per step; source: origin of the method; head: keywords of ``Head``; features: feature file of each
    view; files: sha256 of heads and history; record: the whole content, as stored.
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
        """Build a run from its record; raises StaleError for missing fields, DamagedError for wrong types."""
        try:
            settings = records.typed(Mapping[str, Any], record["train"], "train")
            for name, kind in {"method": str, "seed": int, **get_type_hints(TrainConfig)}.items():
                if name in settings or name in ("bits", "method", "seed"):
                    records.typed(kind, settings[name], f"train.{name}")
            if not 0 < settings["bits"] <= MAX_BITS:
                raise ValueError(f"{settings['bits']} bits")
            for name, kind in OPTIONAL.items():
                records.typed(kind, record.get(name), name)
            run: Run = records.read(
                cls, record, folder=folder, settings=settings, outcome=Outcome.read(record), record=record
            )
            return run
        except KeyError:
            if "encoders" in record and "views" in record:
                fix = "open it with `from_pretrained`, or `apply` it to a data set"
                raise UsageError("an exported run, which has no data set", folder, fix) from None
            raise StaleError("fields are missing", folder / CONFIG, f"made by another version: {ANEW}") from None
        except (TypeError, ValueError, AttributeError) as error:
            raise DamagedError(f"not the config of a run ({str(error)[:120]})", folder / CONFIG, ANEW) from None

    def __repr__(self) -> str:
        score = "" if self.outcome.val_map_mean is None else f", val mAP {self.outcome.val_map_mean:.3f}"
        return f"Run({str(self.folder)!r}, {self.method}, {self.bits} bits, {'+'.join(self.langs) or 'images'}{score})"

    @property
    def name(self) -> str:
        """Name of the run's folder."""
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
    def direction(self) -> str | None:
        """The only search direction of the training, "i2t" or "t2i"; None for both."""
        return self.settings.get("direction")

    def scored(self, directions: Sequence[str]) -> list[str]:
        """Those of the search directions that the run was trained for, all if for both."""
        return [way for way in directions if self.direction in (None, way)]

    @property
    def has_two_roles(self) -> bool:
        """Whether queries are hashed differently from database items."""
        return "rows" in self.head

    @property
    def trained(self) -> int | None:
        """Number of items, complete or not, that the heads were trained on; they come first in ``items.digests``.

        None for runs that did not record it.
        """
        count = self.record.get("trained")
        return None if count is None or DIGESTS not in self.files else int(count)

    @property
    def is_applied(self) -> bool:
        """Whether the heads were trained on another data set; see ``search.apply``."""
        return EXPORT in self.record

    @property
    def untrained_views(self) -> list[View]:
        """Views whose encoder has random weights."""
        return [view for view, of in self.features.items() if of.weights == RANDOM]

    def refuse_stale(self, data: ExtractedDataset) -> None:
        """Raise StaleError if the heads do not fit the data set and its features; items may come, go and change."""
        headers = {of.file: data.header(of.file) for of in self.features.values()}
        what = self.misfit(data.name, data.dataset.sha256, headers)
        missing = [of.file for of in self.features.values() if of.sha256 and headers[of.file] is None]
        if missing and not what and data.dataset.sha256 not in (self.items_sha256, self._codes_items()):
            what = f"the items changed since this run was made, and {missing[0]} is missing"
        if what:
            raise StaleError(what, self.folder, f"{self._again}; `prune` deletes outdated runs")

    def misfit(self, dataset: str, items_sha256: str, headers: Mapping[str, FeatureHeader | None]) -> str:
        """Why the heads do not fit a data set, "" if they do. headers: of its feature files, by their names."""
        changed = self.items_sha256 != items_sha256
        if changed and self.dataset != dataset:
            return f"{'applied to' if self.is_applied else 'trained on'} the data set '{self.dataset}', not '{dataset}'"
        for view, of in self.features.items():
            header = headers[of.file]
            if not of.sha256 or (header is not None and header.sha256 == of.sha256):
                continue
            if header is not None and self._other_encoder(view, of, header, changed):
                return f"{of.file} was extracted again in another way since this run was made"
        return ""

    def _other_encoder(self, view: View, of: TrainedOn, header: FeatureHeader, changed: bool) -> bool:
        """Whether a feature file was made by another encoder than that of the training.

        Runs of version 0.1 recorded a part of its recipe; then other features of the same items are refused.
        """
        made = self.record.get("made_as", {}).get(view)
        same = TrainedOn.of(header) == replace(of, sha256=header.sha256)
        return not same or (made != header.made_as if made else not changed)

    def _codes_items(self) -> str:
        """Digest of the items that the codes are of, "" without codes."""
        path = self.folder / CODES
        return str(read_manifest(path)["recipe"]["items"]) if path.exists() else ""

    def since(self, dataset: ImageTextDataset) -> str:
        """How many items were added, removed or changed since the training, in words; "" for none.

        dataset: as it is now.
        """
        if dataset.sha256 == self.items_sha256:
            return ""
        if DIGESTS not in self.files:
            return "items were added, removed or changed"
        return changed_since(self.file(DIGESTS).read_bytes(), dataset)

    @property
    def _again(self) -> str:
        return "run `index` again" if self.is_applied else ANEW

    def is_current(self, data: ExtractedDataset) -> bool:
        """Whether the heads fit the features in the cache."""
        try:
            self.refuse_stale(data)
        except StaleError:
            return False
        return True

    def codes_recipe(
        self, items_sha256: str, features: Mapping[View, str], borrowed: Mapping[str, Any]
    ) -> dict[str, Any]:
        """All that the codes of this run depend on.

        features: digest of each view's present features; borrowed: views hashed by another language's head.
        """
        return {
            "heads": self.files[HEADS],
            "items": items_sha256,
            "features": dict(features),
            "borrowed": borrowed,
            "captions": "all" if self.relevance == "pairs" else "first",
        }

    def file(self, name: str) -> Path:
        """Path of a file of the run, after a check of its sha256; raises DamagedError."""
        return checked(self.folder, name, self.files.get(name), ANEW)


def folder_of(
    runs: Path,
    dataset: str,
    method: str,
    bits: int,
    seed: int,
    langs: Sequence[str] = (),
    relevance: str = "",
    direction: str = "",
) -> Path:
    """Folder of a run; seed 0 adds nothing to its name.

    langs: given for a training on some of the languages; relevance: given if it differs from the data set's; direction:
    given if only that one was trained. Raises UsageError where the file system takes it for a folder whose name
    differs by case.
    """
    parts = [method, str(bits), "+".join(langs), relevance, direction, f"seed{seed}" if seed else ""]
    return below(runs, dataset, "-".join(part for part in parts if part))


def open_run(folder: str | Path) -> Run:
    """Read a finished run; raises UsageError, DamagedError or StaleError."""
    folder = Path(folder)
    return Run.read(folder, read_record(folder))


def read_record(folder: Path) -> dict[str, Any]:
    """Read the ``config.json`` of a finished training; raises UsageError, DamagedError or StaleError."""
    settle(folder)
    path = folder / CONFIG
    if not path.is_file():
        raise UsageError("no trained run", folder, "run `train` first")
    record = read_json(path, ANEW)
    if record.get("version") != VERSION:
        fix = f"this cmrhash reads version {VERSION}; upgrade it, or run `train` again"
        raise StaleError(f"run format version {record.get('version')}", path, fix)
    return record


def write_record(folder: Path, record: Mapping[str, Any]) -> dict[str, Any]:
    """Finish a training: write its record, with a digest over itself, atomically; returns the record."""
    write_json(folder / CONFIG, full := {"version": VERSION, **record})
    return full


def completed(record: Mapping[str, Any]) -> dict[str, Any]:
    """A stored record or recipe whose training has every setting, as it was before versions that added settings."""
    defaults = {field.name: field.default for field in fields(TrainConfig)}
    return {**record, **({"train": {**defaults, **record["train"]}} if "train" in record else {})}


def current(found: Sequence[Run], data: ExtractedDataset) -> list[Run]:
    """Runs whose heads fit the features in the cache; if none, raises the StaleError of the first."""
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
    """Finished runs of a data set that pass the filters, whatever their folder names.

    They are sorted by method, languages, seed and bits. relevance: that of the training; an empty filter passes all.
    Raises UsageError if there is no run, or none of a requested length.
    """
    found = [open_run(path.parent) for path in sorted((runs / dataset).glob(f"*/{CONFIG}"))]
    fitting = [
        run
        for run in found
        if run.relevance == relevance
        and all(of in wish for of, wish in ((run.bits, bits), (run.method, methods), (run.seed, seeds)) if wish)
    ]
    missing = [b for b in bits if b not in {run.bits for run in fitting}]
    if not fitting or missing:
        there = ", ".join(run.folder.name for run in found)
        wish, fix = f" with {missing[0]} bits" if missing else "", "run `train` first"
        others = sorted({run.relevance for run in found} - {relevance})
        if others:
            wish, fix = f"{wish} with relevance {relevance}", f'{fix}, or use `relevance="{others[0]}"`'
        raise UsageError(f"no such trained run{wish}" + f" (there: {there})" * bool(there), runs / dataset, fix)
    return sorted(fitting, key=lambda run: (run.method, run.langs, run.direction or "", run.seed, run.bits))


def best_run(found: Sequence[Run]) -> Run:
    """Run with the best validation mAP among the runs on most languages, of both directions if there are any.

    Means over different languages or directions are not comparable. Of equal runs the first, without val items the
    one trained last.
    """

    def merit(run: Run) -> tuple[bool, int, float, float]:
        score = run.outcome.val_map_mean
        return run.direction is None, len(run.langs), score or 0.0, finished(run) if score is None else 0.0

    return max(found, key=merit)


def finished(run: Run) -> float:
    """Time at which its record was written, seconds since 1970."""
    return (run.folder / CONFIG).stat().st_mtime


def write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write JSON lines atomically."""
    write_bytes(path, "".join(json.dumps(row) + "\n" for row in rows).encode())
