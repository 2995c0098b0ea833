"""What lies in the cache and among the runs, whether it is whole, and what is stale.

Read from manifests, configs and names alone: no payload is looked at (``verify`` does that), and torch is not needed.
Whatever a file turns out to be, it is an entry with its state, never an end of the listing.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from cmrhash.data import manifest
from cmrhash.data.items import ImageTextDataset, ids_digest
from cmrhash.data.view import View
from cmrhash.errors import CmrhashError, DamagedError, StaleError, UsageError, did_you_mean
from cmrhash.storage.files import holder, read_json
from cmrhash.storage.recipes import fingerprint
from cmrhash.storage.sealed import DELETE, MAGIC, SHARD, merging, read_manifest, read_note
from cmrhash.training import runs

WHOLE, SEALED, TRAINED, TUNED = "whole", "sealed", "trained", "tuned"  # states, in words
BUSY, UNFINISHED, PIECE, LEFT = "being written", "unfinished", "shard", "left behind"
ITEMS, FEATURES, CODES, WORDS = "items changed", "features changed", "codes of other heads", "words of other features"
GONE, FORMAT, DAMAGED, FOREIGN = "features gone", "another format", "damaged", "not of cmrhash"
STATUS = {
    **dict.fromkeys((WHOLE, SEALED, TRAINED, TUNED), "whole"),
    **dict.fromkeys((ITEMS, FEATURES, CODES, WORDS, FORMAT), "stale"),
    BUSY: "busy",
    **dict.fromkeys((UNFINISHED, PIECE), "unfinished"),
    LEFT: "leftover",
    GONE: "gone",
    DAMAGED: "damaged",
    FOREIGN: "foreign",
}
FIX = {
    UNFINISHED: "the command that made it goes on from there",
    PIECE: "waits for the other shards; `extract` without `shard` does not need it",
    GONE: "`extract` creates the same features again",
    ITEMS: "made for other items than the data set has now: `extract` with `overwrite=True`, then `train`, or `prune`",
    FEATURES: "the features were extracted again: run `train` with `overwrite=True`, or `prune`",
    CODES: "`evaluate` creates them again",
    WORDS: "run `prune`, then `extract` creates them again",
    LEFT: "left by an interrupted process: `prune` deletes it",
}
ANEW = "start again with `overwrite=True`"
REMAKE = {
    "run": "run `train` with `overwrite=True`",
    "tuned": "run `extract` with `finetune=True` and `overwrite=True`",
}
VIEW = re.compile(r"(image|text|words)-.+\.h5(\.shard-\d+-of-\d+)?(\.part)?")  # files that extract makes
RUN_FILES = (
    *(runs.CONFIG, runs.CHECKPOINT, runs.HEADS, runs.HISTORY, runs.CODES, runs.METRICS),
    *("checkpoint-*.safetensors", "*.faiss"),
)


@dataclass(frozen=True)
class Entry:
    """One file of the cache, or one folder of a run or of tuned encoders.

    kind: "items", "image", "text", "words", "tuned", "run" or "other". state: a key of STATUS; detail: more of it.
    facts: what is known (view, encoder, rows, ok, dim; method, bits, seed, val_map). bytes: of our files in it.
    """

    dataset: str
    path: Path
    kind: str
    state: str
    detail: str = ""
    fix: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)
    bytes: int = 0

    @property
    def status(self) -> str:
        """One of "whole", "busy", "unfinished", "gone", "stale", "damaged", "leftover", "foreign"."""
        return STATUS[self.state]

    @property
    def words(self) -> str:
        """State and detail."""
        if self.state == PIECE:
            return f"{self.state} {self.detail}"
        return f"{self.state} ({self.detail})" if self.detail else self.state


@dataclass(frozen=True)
class Holding:
    """A data set: its two folders, its items if they can be read, the manifests of its .h5 files if they can."""

    name: str
    folder: Path
    runs: Path
    dataset: ImageTextDataset | None
    manifests: Mapping[str, Mapping[str, Any]]

    @property
    def ids(self) -> str:
        """Digest of the items' ids, "" if they are not known."""
        return ids_digest(self.dataset) if self.dataset else ""


def survey(cache: Path, out: Path, only: str | None = None) -> list[Entry]:
    """Every entry, by data set: items, feature files, what is unfinished or left behind, tuned encoders, runs.

    cache, out: the folders of all data sets and of all runs. only: a data set. Raises UsageError if that is not there.
    """
    return [entry for held in holdings(cache, out, only) for entry in entries(held)]


def holdings(cache: Path, out: Path, only: str | None = None) -> list[Holding]:
    """Every data set that has a folder in one of the two places, or the one of that name."""
    names = {p.name for p in _folders(cache) if any(_of_a_data_set(p))}
    names |= {p.name for p in _folders(out) if any(run_folders(p))}
    if only is not None and only not in names:
        raise UsageError(
            f"no data set '{only}' (there: {', '.join(sorted(names)) or 'none'})",
            cache,
            did_you_mean(only, names) or "list them with `survey`",
        )
    return [_holding(cache / name, out / name) for name in sorted(names) if only in (None, name)]


def _holding(folder: Path, own_runs: Path) -> Holding:
    manifests = {}
    for path in folder.glob("*.h5"):
        with contextlib.suppress(CmrhashError, OSError, *BROKEN):
            if path.is_file():  # a pipe would be waited for
                manifests[path.name] = read_manifest(path)
    try:
        dataset = manifest.load(folder)
    except (CmrhashError, OSError, *BROKEN):
        dataset = None
    return Holding(folder.name, folder, own_runs, dataset, manifests)


def entries(held: Holding) -> Iterator[Entry]:
    """The entries of a data set."""
    folder = held.folder
    if folder.is_dir():
        yield _entry(held, folder / manifest.ITEMS, "items", partial(_items, held))
    for path in _feature_files(folder):
        yield _entry(held, path, _kind(held, path), partial(_sealed, held, path))
    for path in _feature_files(folder, ".part"):
        yield _entry(held, path, path.name.partition("-")[0], partial(_unfinished, held, path))
    for path in _feature_files(folder, ".part.new"):
        yield _entry(held, path, path.name.partition("-")[0], partial(_created, path))
    for path in run_folders(folder / runs.TUNED):
        yield _entry(held, path, "tuned", partial(_tuned, held, path))
    for path in run_folders(held.runs):
        yield _entry(held, path, "run", partial(_run, held, path))


# ---------------------------------------------------------------------------------------------- one entry

BROKEN = (KeyError, TypeError, ValueError, AttributeError, IndexError, RecursionError)  # of JSON that is not ours
Facts = dict[str, Any]
Look = Callable[[Facts], tuple[str, str]]  # fills in the facts; returns state and detail


def _entry(held: Holding, path: Path, kind: str, look: Look) -> Entry:
    facts: Facts = {}
    fix = None
    try:
        state, detail = look(facts)
    except StaleError as error:
        state, detail, fix = FORMAT, error.what, error.fix
    except CmrhashError as error:
        state, detail, fix = DAMAGED, error.what, error.fix
    except OSError as error:
        why = (error.strerror or str(error)).lower()
        state, detail, fix = DAMAGED, why, "check the file and its permissions"
    except BROKEN:  # its digest is right: another version wrote it
        state, detail, fix = FORMAT, "fields are missing", REMAKE.get(kind, DELETE)
    fix = FIX.get(state, "") if fix is None else fix
    return Entry(held.name, path, kind, state, detail, fix or "", facts, _size(path))


def _items(held: Holding, facts: Facts) -> tuple[str, str]:
    dataset = held.dataset or manifest.load(held.folder)
    facts["rows"] = len(dataset.items)
    return WHOLE, ""


def _sealed(held: Holding, path: Path, facts: Facts) -> tuple[str, str]:
    """A feature file, or the words of one."""
    if not path.is_file():
        return FOREIGN, "no file"
    with path.open("rb") as file:
        if not VIEW.fullmatch(path.name) and file.read(len(MAGIC)) != MAGIC:
            return FOREIGN, ""
    made, shard = held.manifests.get(path.name) or read_manifest(path), SHARD.fullmatch(path.name)
    recipe = made["recipe"]
    view = View.IMAGE if recipe["kind"] == "image" else View.text(recipe["lang"])
    name = Path(shard[1] if shard else path).name
    encoder = view.encoder_of(name.replace("words-", "text-", 1) if made["kind"] == "words" else name)
    facts |= {"view": view, "encoder": encoder, "weights": recipe.get("weights", "")}
    facts |= {key: made[key] for key in ("rows", "ok", "dim") if key in made}
    who = holder(path)
    if who and not path.with_name(path.name + ".part").exists():
        return BUSY, f"by {who}"
    if held.ids and recipe.get("items", held.ids) != held.ids:
        return ITEMS, ""
    if made["kind"] == "words":
        of = held.manifests.get(path.name.replace("words-", "text-", 1))
        if of is None or of["recipe"] != recipe:
            return WORDS, ""
    if shard:
        who = holder(merging(path.with_name(shard[1])))
        return (BUSY, f"merged by {who}") if who else (PIECE, f"{shard[2]} of {shard[3]}")
    return SEALED, ""


def _unfinished(held: Holding, path: Path, facts: Facts) -> tuple[str, str]:
    """An extraction under way, or that was; the words of one are written in one go."""
    if not path.is_file():
        return FOREIGN, "no file"
    who = holder(path.with_suffix(""))
    note = read_note(path)
    if note:
        facts |= {"rows": note.rows, "blocks": note.blocks, "done": note.done}
    shard = SHARD.fullmatch(path.with_suffix("").name)
    of = f"shard {shard[2]} of {shard[3]}, " if shard else ""
    far = of + (f"{note.done} of {note.blocks} blocks" if note else "")
    if who:
        return BUSY, f"by {who}, {far}".rstrip(", ")
    if path.name.startswith("words-") or not VIEW.fullmatch(path.name):
        return (LEFT, "") if VIEW.fullmatch(path.name) else (FOREIGN, "")
    if note and held.ids and note.recipe.get("items", held.ids) != held.ids:
        return ITEMS, f"{UNFINISHED}, {far}"
    return UNFINISHED, far


def _created(path: Path, facts: Facts) -> tuple[str, str]:
    """A feature file before its first row, whose bytes were being set aside."""
    who = holder(path.with_suffix("").with_suffix(""))
    return (BUSY, f"by {who}") if who else (LEFT, "")


def _tuned(held: Holding, folder: Path, facts: Facts) -> tuple[str, str]:
    facts["encoder"] = folder.name
    if not (folder / runs.CONFIG).exists() or holder(folder / runs.CONFIG):
        return _training(folder, "finetune")
    config = runs.read_record(folder)
    recipe = config["recipe"]
    facts |= {"digest": fingerprint(recipe), "val_map": config.get("val_map_mean")}
    _refuse_missing(folder, config["files"], REMAKE["tuned"])
    if held.dataset and recipe["items_sha256"] != held.dataset.sha256:
        return ITEMS, ""
    return TUNED, _trained_again(folder, recipe, "finetune")


def _run(held: Holding, folder: Path, facts: Facts) -> tuple[str, str]:
    if not (folder / runs.CONFIG).exists() or holder(folder / runs.CONFIG):
        return _training(folder, "train", facts)
    run = runs.open_run(folder)
    facts |= {"method": run.method, "bits": run.bits, "seed": run.seed, "langs": list(run.langs)}
    facts |= {"relevance": run.relevance, "val_map": run.outcome.val_map_mean}
    _refuse_missing(folder, run.files, REMAKE["run"])
    if who := holder(folder / runs.CODES):
        return BUSY, f"by {who}"
    if held.dataset and run.items_sha256 != held.dataset.sha256:
        return ITEMS, ""
    made = {of.file: of.sha256 for of in run.features.values()}
    there = {name: held.manifests[name]["payload_sha256"] for name in made if name in held.manifests}
    changed = sorted(name for name, digest in there.items() if digest != made[name])
    if changed:
        return FEATURES, ", ".join(changed)
    codes = _codes(run)
    if codes == CODES:
        return CODES, ""
    if not all((held.folder / name).exists() for name in made):
        return GONE, codes
    again = _trained_again(folder, run.record, "train")
    return TRAINED, again or ("" if codes == "codes left" else codes)


def _codes(run: runs.Run) -> str:
    """What there is of a run's codes, in words. Raises DamagedError, StaleError."""
    path = run.folder / runs.CODES
    if not path.exists():
        return "no codes yet"
    made = read_manifest(path)
    if made["recipe"] != run.codes_recipe(made["recipe"]["borrowed"]):
        return CODES
    missing = [name for name in made["indexes"] if not (run.folder / name).exists()]
    return f"without {missing[0]}" if missing else "codes left"


def _training(folder: Path, settings: str, facts: Facts | None = None) -> tuple[str, str]:
    """A training without a result: how far it is. settings: "train" or "finetune", as its recipe calls them."""
    who = holder(folder / runs.CONFIG)
    about = checkpoint(folder)
    far = ""
    if about:
        epochs = about["recipe"][settings]["epochs"]
        far = f"epoch {about['epoch']} of {epochs}"
        if facts is not None:
            facts |= {key: about["recipe"][settings][key] for key in ("method", "bits", "seed")}
    if who:
        return BUSY, f"by {who}, {far}".rstrip(", ")
    return (UNFINISHED, far) if about else (LEFT, "nothing saved yet")


def _trained_again(folder: Path, recipe: Mapping[str, Any], settings: str) -> str:
    """Of a finished training: how far another one in its place, by other settings, had got."""
    about = checkpoint(folder)
    if not about or is_finished(about, recipe):
        return ""
    return f"another one at epoch {about['epoch']} of {about['recipe'][settings]['epochs']}"


def _refuse_missing(folder: Path, names: Mapping[str, str], fix: str) -> None:
    for name in names:
        if not (folder / name).is_file():
            raise DamagedError(f"{name} is missing", folder, fix)


# ---------------------------------------------------------------------------------------------- small parts


def checkpoint(folder: Path) -> dict[str, Any] | None:
    """What the checkpoint of an unfinished training says of itself; raises DamagedError."""
    path = folder / runs.CHECKPOINT
    if not path.exists():
        return None
    about = read_json(path, ANEW)
    if not (folder / about["file"]).is_file():
        raise DamagedError(f"{about['file']} is missing", folder, ANEW)
    return about


def is_finished(about: Mapping[str, Any], made: Mapping[str, Any]) -> bool:
    """Whether a checkpoint is one of the very training that has been finished since."""
    asked = json.loads(json.dumps(about["recipe"]))
    return all(made.get(key) == value for key, value in asked.items())


def run_folders(folder: Path) -> list[Path]:
    """Folders that a training has begun in."""
    marks = (runs.CONFIG, runs.CHECKPOINT, f".{runs.CONFIG}.lock")
    return [path for path in _folders(folder) if any((path / mark).exists() for mark in marks)]


def own_files(folder: Path) -> list[Path]:
    """The files of a run, or of tuned encoders, that cmrhash made; its locks and partial files are not among them."""
    found = {path for name in RUN_FILES for path in folder.glob(name)}
    with contextlib.suppress(CmrhashError, OSError, *BROKEN):
        found |= {folder / name for name in runs.read_record(folder)["files"] if ".." not in Path(name).parts}
    return sorted(path for path in found if path.is_relative_to(folder) and path.is_file() and not path.is_symlink())


def _size(path: Path) -> int:
    size = 0
    for each in own_files(path) if path.is_dir() else [path]:
        with contextlib.suppress(OSError):
            size += each.lstat().st_size
    return size


def _kind(held: Holding, path: Path) -> str:
    made = held.manifests.get(path.name, {})
    if made.get("kind") == "words" or path.name.startswith("words-"):
        return "words"
    return path.name.partition("-")[0] if VIEW.fullmatch(path.name) else "other"


def _of_a_data_set(folder: Path) -> Iterator[Path]:
    for pattern in (manifest.ABOUT, manifest.ITEMS, runs.TUNED):
        yield from folder.glob(pattern)
    yield from _feature_files(folder)
    yield from _feature_files(folder, ".part")


def _feature_files(folder: Path, suffix: str = "") -> list[Path]:
    """Files that are called X.h5 or X.h5.shard-1-of-2 and that suffix."""
    return sorted(path for name in ("*.h5", "*.h5.shard-*[0-9]") for path in folder.glob(name + suffix))


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
