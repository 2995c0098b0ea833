"""Entries of the cache and of the runs: each file or folder with its state.

Manifests, configs and file names are read, payloads are not (``verify`` reads them), and torch is not needed. A file
that cannot be read becomes an entry with its state; it never ends the listing.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from cmrhash.data import manifest
from cmrhash.data.items import ImageTextDataset, ids_digest
from cmrhash.data.switch import NEXT
from cmrhash.data.view import View, features_of_words
from cmrhash.errors import CmrhashError, DamagedError, StaleError, UsageError, did_you_mean, some_of
from cmrhash.features.file import FeatureHeader, header_of
from cmrhash.features.graph_files import GRAPH_FILE, graph_key
from cmrhash.maintenance.folders import BROKEN, folders_of, run_folders, size_of
from cmrhash.maintenance.states import State
from cmrhash.storage.files import holder, read_json
from cmrhash.storage.recipes import fingerprint
from cmrhash.storage.sealed import DELETE, MAGIC, SHARD, merging, read_manifest, read_note
from cmrhash.training import runs

RESTART = "start again with `overwrite=True`"
REMAKE = {
    "run": "run `train` with `overwrite=True`",
    "tuned": "run `extract` with `finetune=True` and `overwrite=True`",
}
FEATURE_FILE = re.compile(r"(image|text|words)-.+\.h5(\.shard-\d+-of-\d+)?(\.part(\.new)?)?")  # written by extract


@dataclass(frozen=True)
class Entry:
    """One file of the cache, or one folder of a run or of tuned encoders.

    kind: "items", "image", "text", "words", "graph", "change", "tuned", "run" or "other". detail: more about the state.
    facts: what is known (view, encoder, rows, ok, dim; method, bits, seed, val_map). bytes: size of the files that
    cmrhash wrote.
    """

    dataset: str
    path: Path
    kind: str
    state: State
    detail: str = ""
    fix: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)
    bytes: int = 0

    @property
    def status(self) -> str:
        """Group of the state, for example "stale"."""
        return self.state.status

    @property
    def words(self) -> str:
        """State and detail."""
        if self.state is State.SHARD:
            return f"{self.state} {self.detail}"
        return f"{self.state} ({self.detail})" if self.detail else self.state.value


@dataclass(frozen=True)
class Holding:
    """A data set: its cache folder, its runs, and its items and .h5 manifests where they can be read."""

    name: str
    folder: Path
    runs: Path
    dataset: ImageTextDataset | None
    manifests: Mapping[str, Mapping[str, Any]]

    @cached_property
    def ids(self) -> str:
        """Digest of the items' ids, "" if the items cannot be read."""
        return ids_digest(self.dataset) if self.dataset else ""


def survey(cache: Path, out: Path, only: str | None = None) -> list[Entry]:
    """List the entries of every data set, or of the data set ``only``.

    cache, out: the folders of all data sets and of all runs. Raises UsageError for an unknown data set.
    """
    return [entry for held in holdings(cache, out, only) for entry in entries(held)]


def holdings(cache: Path, out: Path, only: str | None = None) -> list[Holding]:
    """Find every data set that has a folder in the cache or among the runs, or the one named ``only``."""
    names = {p.name for p in folders_of(cache) if any(_of_a_data_set(p))}
    names |= {p.name for p in folders_of(out) if any(run_folders(p))}
    if only is not None and only not in names:
        raise UsageError(
            f"no data set '{only}' (there: {some_of(sorted(names)) or 'none'})",
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
    """Yield items, feature files, unfinished and abandoned files, tuned encoders and runs of a data set."""
    folder = held.folder
    if folder.is_dir():
        yield _entry(held, folder / manifest.ITEMS, "items", _items)
    for suffix, look in (("", _sealed), (".part", _unfinished), (".part.new", _unfinished)):
        for path in _feature_files(folder, suffix):
            yield _entry(held, path, _kind(held, path), look)
    for path in sorted(path for path in folder.glob("graph-*") if GRAPH_FILE.fullmatch(path.name)):
        yield _entry(held, path, "graph", _graph)
    if (folder / NEXT).is_dir():
        yield _entry(held, folder / NEXT, "change", _change)
    for path in run_folders(folder / runs.TUNED):
        yield _entry(held, path, "tuned", _tuned)
    for path in run_folders(held.runs):
        yield _entry(held, path, "run", _run)


# ---------------------------------------------------------------------------------------------- one entry

Facts = dict[str, Any]
Found = tuple[State, str]  # state and detail


def _entry(held: Holding, path: Path, kind: str, look: Callable[[Holding, Path, Facts], Found]) -> Entry:
    """Turn a path into an entry; look fills in the facts."""
    facts: Facts = {}
    fix: str | None = ""
    try:
        state, detail = look(held, path, facts)
    except CmrhashError as error:
        state = State.OTHER_FORMAT if isinstance(error, StaleError) else State.DAMAGED
        detail, fix = error.what, error.fix
    except OSError as error:
        state, detail, fix = State.DAMAGED, reason(error), "check the file and its permissions"
    except BROKEN:  # its digest is right: another version wrote it
        state, detail, fix = State.OTHER_FORMAT, "fields are missing", REMAKE.get(kind, DELETE)
    return Entry(held.name, path, kind, state, detail, fix or state.fix, facts, size_of(path))


def _items(held: Holding, _: Path, facts: Facts) -> Found:
    facts["rows"] = len((held.dataset or manifest.load(held.folder)).items)
    manifest.check_blocks(held.folder)
    return State.WHOLE, ""


def _sealed(held: Holding, path: Path, facts: Facts) -> Found:
    """State of a feature file, of its shard, or of its words."""
    if not path.is_file():
        return State.FOREIGN, "no file"
    with path.open("rb") as file:
        if not FEATURE_FILE.fullmatch(path.name) and file.read(len(MAGIC)) != MAGIC:
            return State.FOREIGN, ""
    made, shard = held.manifests.get(path.name) or read_manifest(path), SHARD.fullmatch(path.name)
    recipe = made["recipe"]
    view = View.IMAGE if recipe["kind"] == "image" else View.text(recipe["lang"])
    name = Path(shard[1] if shard else path).name
    encoder = view.encoder_of(features_of_words(name))
    facts |= {"view": view, "encoder": encoder, "weights": recipe.get("weights", "")}
    facts |= {key: made[key] for key in ("rows", "ok", "dim") if key in made}
    who = holder(path)
    if who and not path.with_name(path.name + ".part").exists():
        return State.BUSY, f"by {who}"
    if held.ids and recipe.get("items", held.ids) != held.ids:
        return State.ITEMS_CHANGED, ""
    if made["kind"] == "words":
        of = held.manifests.get(features_of_words(path.name))
        if of is None or of["recipe"] != recipe:
            return State.OTHER_FEATURES, ""
    if shard:
        who = holder(merging(path.with_name(shard[1])))
        return (State.BUSY, f"merged by {who}") if who else (State.SHARD, f"{shard[2]} of {shard[3]}")
    return State.SEALED, ""


def _unfinished(held: Holding, path: Path, facts: Facts) -> Found:
    """State of an extraction that is running or was interrupted."""
    if not path.is_file():
        return State.FOREIGN, "no file"
    own = path.with_name(path.name.removesuffix(".new").removesuffix(".part"))
    who, note, shard, far = holder(own), read_note(path), SHARD.fullmatch(own.name), ""
    if shard and path.suffix == ".part":
        far = f"shard {shard[2]} of {shard[3]}, "
    if note:
        facts |= {"rows": note.rows, "blocks": note.blocks, "done": note.done}
        far += f"{note.done} of {note.blocks} blocks"
    if who:
        return State.BUSY, f"by {who}, {far}".rstrip(", ")
    if not FEATURE_FILE.fullmatch(path.name):
        return State.FOREIGN, ""
    if path.suffix == ".new" or features_of_words(path.name) != path.name:  # before its first row; written in one move
        return State.LEFT_BEHIND, ""
    if note and held.ids and note.recipe.get("items", held.ids) != held.ids:
        return State.ITEMS_CHANGED, f"{State.UNFINISHED}, {far}"
    return State.UNFINISHED, far.rstrip(", ")


def _change(held: Holding, path: Path, facts: Facts) -> Found:
    """State of a change of the collection by ``extract``, ``add``, ... that has not taken place yet."""
    aside = path / held.name
    far = "nothing prepared yet"
    if (aside / manifest.ABOUT).exists():
        facts["rows"] = len(manifest.load(aside).items)
        before = len(held.dataset.items) if held.dataset else 0
        far = f"a change from {before} to {facts['rows']} items"
    if who := holder(path):
        return State.BUSY, f"by {who}, {far}"
    return State.UNFINISHED, far


def _graph(held: Holding, path: Path, facts: Facts) -> Found:
    """State of the ONNX graph of an encoder: in use while features of that encoder are there, or being made."""
    if not path.is_file():
        return State.FOREIGN, "no file"
    facts["encoder"] = read_manifest(path)["encoder"]
    keys = {graph_key(made["recipe"]) for made in held.manifests.values() if made["kind"] == "features"}
    unfinished = any(True for name in ("*.part", "*.shard-*") for _ in held.folder.glob(name))
    used = unfinished or any(path.name.endswith(f"-{key}.sealed") for key in keys)
    return (State.SEALED if used else State.UNUSED_GRAPH), ""


def _tuned(held: Holding, folder: Path, facts: Facts) -> Found:
    facts["encoder"] = folder.name
    if not (folder / runs.CONFIG).exists() or holder(folder / runs.CONFIG):
        return _training(folder, "finetune", facts)
    config = runs.read_record(folder)
    recipe = config["recipe"]
    facts |= {"digest": fingerprint(recipe), "val_map": config.get("val_map_mean")}
    _refuse_missing(folder, config["files"], REMAKE["tuned"])
    if held.dataset and recipe["items_sha256"] != held.dataset.sha256:
        return State.ITEMS_CHANGED, ""
    return State.TUNED, _trained_again(folder, recipe, "finetune")


def _run(held: Holding, folder: Path, facts: Facts) -> Found:
    if not (folder / runs.CONFIG).exists() or holder(folder / runs.CONFIG):
        return _training(folder, "train", facts)
    run = runs.open_run(folder)
    facts |= {"method": run.method, "bits": run.bits, "seed": run.seed, "langs": list(run.langs)}
    facts |= {"relevance": run.relevance, "val_map": run.outcome.val_map_mean}
    _refuse_missing(folder, run.files, REMAKE["run"])
    if who := holder(folder / runs.CODES):
        return State.BUSY, f"by {who}"
    files = [of.file for of in run.features.values()]
    headers = {name: _header(held, name) for name in files}
    if what := run.misfit(held.name, held.dataset.sha256 if held.dataset else run.items_sha256, headers):
        return State.FEATURES_CHANGED, what
    state, codes = _codes(held, run, headers)
    if state in (State.OTHER_HEADS, State.OTHER_ITEMS):
        return state, ""
    if not all((held.folder / of.file).exists() for of in run.features.values() if of.sha256):
        return State.FEATURES_GONE, codes or "codes left"
    again = _trained_again(folder, run.record, "train")
    return state, again or codes


def _header(held: Holding, name: str) -> FeatureHeader | None:
    return header_of(held.folder / name, held.manifests[name]) if name in held.manifests else None


def _codes(held: Holding, run: runs.Run, headers: Mapping[str, FeatureHeader | None]) -> Found:
    """State of a run by its codes. Raises DamagedError, StaleError."""
    path = run.folder / runs.CODES
    if not path.exists():
        return State.TRAINED, "no codes yet"
    made = read_manifest(path)
    recipe = made["recipe"]
    now = {view: header.sha256 for view, of in run.features.items() if of.sha256 and (header := headers[of.file])}
    items = held.dataset.sha256 if held.dataset else recipe["items"]
    features = {View(view): digest for view, digest in recipe["features"].items()} | now
    wanted = run.codes_recipe(items, features, recipe["borrowed"])
    if recipe != wanted:
        return (State.OTHER_HEADS if recipe["heads"] != wanted["heads"] else State.OTHER_ITEMS), ""
    missing = [name for name in made["indexes"] if not (run.folder / name).exists()]
    return State.TRAINED, f"without {missing[0]}" if missing else ""


def _training(folder: Path, settings: str, facts: Facts) -> Found:
    """State of a training without a result. settings: "train" or "finetune", the key in its recipe."""
    who, about, far = holder(folder / runs.CONFIG), checkpoint(folder), ""
    if about:
        far = _epoch(about, settings)
        if settings == "train":
            facts |= {key: about["recipe"][settings][key] for key in ("method", "bits", "seed")}
    if who:
        return State.BUSY, f"by {who}, {far}".rstrip(", ")
    return (State.UNFINISHED, far) if about else (State.LEFT_BEHIND, "nothing saved yet")


def _trained_again(folder: Path, recipe: Mapping[str, Any], settings: str) -> str:
    """Progress of an unfinished training, with other settings, that would replace a finished one."""
    about = checkpoint(folder)
    return "" if not about or is_finished(about, recipe) else f"another one at {_epoch(about, settings)}"


def _epoch(about: Mapping[str, Any], settings: str) -> str:
    return f"epoch {about['epoch']} of {about['recipe'][settings]['epochs']}"


def _refuse_missing(folder: Path, names: Iterable[str], fix: str) -> None:
    for name in names:
        if not (folder / name).is_file():
            raise DamagedError(f"{name} is missing", folder, fix)


# ---------------------------------------------------------------------------------------------- small parts


def reason(error: Exception) -> str:
    """Describe an error in a few words, without the file's name."""
    if isinstance(error, CmrhashError):
        return error.what
    words = (error.strerror or str(error)).lower() if isinstance(error, OSError) else str(error)
    return words or "not what cmrhash writes"


def checkpoint(folder: Path) -> dict[str, Any] | None:
    """Read the record of an unfinished training, None if there is none. Raises DamagedError."""
    path = folder / runs.CHECKPOINT
    if not path.exists():
        return None
    about = read_json(path, RESTART)
    _refuse_missing(folder, [about["file"]], RESTART)
    return about


def is_finished(about: Mapping[str, Any], made: Mapping[str, Any]) -> bool:
    """Whether a checkpoint belongs to the training that has been finished since."""
    return all(made.get(key) == value for key, value in json.loads(json.dumps(about["recipe"])).items())


def _kind(held: Holding, path: Path) -> str:
    made = held.manifests.get(path.name, {})
    if made.get("kind") == "words" or features_of_words(path.name) != path.name:
        return "words"
    return path.name.partition("-")[0] if FEATURE_FILE.fullmatch(path.name) else "other"


def _of_a_data_set(folder: Path) -> Iterator[Path]:
    for pattern in (manifest.ABOUT, manifest.ITEMS, runs.TUNED):
        yield from folder.glob(pattern)
    for suffix in ("", ".part"):
        yield from _feature_files(folder, suffix)


def _feature_files(folder: Path, suffix: str) -> list[Path]:
    """List the files named X.h5 or X.h5.shard-1-of-2, each followed by the suffix."""
    return sorted(path for name in ("*.h5", "*.h5.shard-*[0-9]") for path in folder.glob(name + suffix))
