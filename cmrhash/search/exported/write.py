"""Export of a run: a folder with heads, encoders or their names, and a model card."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.numpy

from cmrhash.config import CUSTOM, LAYERS, RANDOM
from cmrhash.data.manifest import ABOUT
from cmrhash.data.view import View
from cmrhash.encoders import copies, hub, packages
from cmrhash.encoders.bag_and_vectors import WordEncoder
from cmrhash.encoders.image import ImageEncoder
from cmrhash.encoders.text import TextEncoder
from cmrhash.errors import CmrhashError, UsageError
from cmrhash.evaluation import saved_scores
from cmrhash.features import reopen
from cmrhash.features.captions import words_path
from cmrhash.features.outcome import OF_DATA
from cmrhash.search.embedder import Embedder
from cmrhash.search.exported.card import card
from cmrhash.search.exported.hasher import CARD, CONFIG, FILE, HEADS, VERSION, PretrainedHasher, read_config
from cmrhash.storage.files import refuse_folded, sha256, write_bytes, write_json
from cmrhash.storage.recipes import canonical
from cmrhash.storage.staged import settle, staged
from cmrhash.training import runs
from cmrhash.version import __version__

OF_MACHINE = ("name_or_path", "_name_or_path", "tokenizer_file", "vocab_file")  # local paths that transformers writes
SETTINGS = ("config.json", "tokenizer_config.json")  # files that may have them
ONNX = "onnx.json"
GRAPHS = (f"{View.IMAGE}.onnx*", f"{View.ANY_TEXT}.onnx*", f"{View.ANY_TEXT}.tokenizer.json")  # files that onnx.py adds

PARTS = ("encoders/*", ONNX, *GRAPHS)  # files that only some exports have


@dataclass(frozen=True)
class Exporting:
    """Source of an export.

    features: folder of the feature files; embedder: opens the encoders; moved: view -> present source of its encoder.
    """

    run: runs.Run
    features: Path
    embedder: Embedder
    moved: Mapping[View, str | None]


def save(
    source: Exporting,
    target: Path,
    *,
    with_encoders: bool = False,
    overwrite: bool = False,
    more: Callable[[Path], object] | None = None,
) -> None:
    """Write the folder that ``PretrainedHasher.load`` opens.

    Tuned, untrained and word text encoders and tuned image encoders are bundled; public ones are referenced by name, or
    bundled too ``with_encoders``. An untrained image encoder is drawn again from its seed. Bundled encoders are opened
    once to check their digests. more: writes further files into the folder that it gets, such as ONNX graphs. The new
    files take the place of an earlier export in one step, once all of them are written.

    Raises UsageError for a folder with other files, unless ``overwrite``, for one whose config.json is of anything else
    than an export or that holds a collection, and for ready-made features.
    """
    _refuse_other(target)
    if target.exists() and (not target.is_dir() or any(target.iterdir())) and not overwrite:
        raise UsageError("the target folder is not empty", target, "give another folder, or use `overwrite=True`")
    if source.run.is_applied:
        what = "these heads were trained on another data set"
        raise UsageError(what, source.run.folder, "export the run that was trained")
    refuse_heads(source.run)
    entries = _entries(source, with_encoders)
    with staged(target, CONFIG, ("encoders/**/*", ONNX, *GRAPHS)) as aside:
        _write(source, entries, aside)
        _check(aside, entries)
        if more:
            more(aside)


def _refuse_other(target: Path) -> None:
    """Raise UsageError for the folder of a run, a collection or a model, which an export would spoil."""
    refuse_folded(target)
    settle(target)
    holds = ""
    if (target / ABOUT).exists():
        holds = "a collection"
    elif (target / runs.HISTORY).exists():
        holds = "a run"
    else:
        with contextlib.suppress(OSError, ValueError):  # no config, or the damaged one of an export
            fields = json.loads((target / CONFIG).read_bytes())
            if not isinstance(fields, dict) or not {"cmrhash", "views"} <= set(fields):
                holds = "a run or a model"
    if holds:
        raise UsageError(f"the target folder holds {holds}, which no export replaces", target, "give another folder")


def _write(source: Exporting, entries: Mapping[View, Mapping[str, Any]], target: Path) -> None:
    """Write heads, bundled encoders, model card and config."""
    for view, entry in entries.items():
        if entry["part"] and not (target / entry["part"]).exists():
            _bundle(source.embedder, view, target / entry["part"])
    run, langs = source.run, source.embedder.langs
    write_bytes(target / HEADS, run.file(runs.HEADS).read_bytes())
    there = sorted(path for path in [target / HEADS, *(target / "encoders").rglob("*")] if path.is_file())
    config = {
        "version": VERSION,
        "cmrhash": __version__,
        "bits": run.bits,
        "method": run.method,
        "source": run.source,
        "dataset": run.dataset,
        "relevance": run.relevance,
        "head": dict(run.head),
        "views": {view: source.embedder.head_of(view) for view in (View.IMAGE, *map(View.text, langs))},
        "encoders": entries,
        "files": {path.relative_to(target).as_posix(): sha256(path) for path in there},
    }
    present = saved_scores.shown(run)
    text = card(config, run, present or saved_scores.shown(run, former=True), former=present is None)
    write_bytes(target / CARD, text.encode(errors="backslashreplace"))
    write_json(target / CONFIG, config)


def refuse_heads(run: runs.Run) -> None:
    """Raise UsageError for a run whose heads no export holds."""
    if "network" in run.head:
        what = f"the heads of method '{run.method}' are code of your own, which no export holds"
        raise UsageError(what, run.folder, "export a run of a built-in method")


def push(folder: Path, repo: str, *, private: bool = False) -> str:
    """Upload an export to a model hub as the repository "owner/name"; returns the commit's address.

    The repository is created if missing: private if ``private``, else as the owner's default is. Only files that
    ``save`` and ``onnx.write`` write are uploaded; they replace those of an earlier export, the card too. Raises
    UsageError for a folder without an export, without login or without write access, CmrhashError if the hub cannot be
    reached.
    """
    read_config(folder)
    if hub.is_offline():
        raise UsageError(f"'{repo}' cannot be uploaded: offline mode is on", None, f"unset {' and '.join(hub.OFFLINE)}")
    from huggingface_hub import HfApi

    try:
        with hub.spoken():
            api = HfApi(library_name="cmrhash", library_version=__version__)
            made = api.create_repo(repo, private=private or None, exist_ok=True)
            done = api.upload_folder(
                repo_id=made.repo_id,
                folder_path=folder,
                allow_patterns=[CARD, CONFIG, HEADS, *PARTS],
                delete_patterns=list(PARTS),
                commit_message="Upload an exported run of cmrhash",
            )
    except CmrhashError as error:
        raise type(error)(f"'{repo}' cannot be uploaded ({error.what})", None, error.fix) from None
    return str(done.commit_url)


def _entries(source: Exporting, with_encoders: bool) -> dict[View, dict[str, Any]]:
    """Config entries of the encoders, one per head, by view."""
    entries: dict[View, dict[str, Any]] = {}
    for view, made in source.run.features.items():
        path = source.features / made.file
        name, recipe, known = _encoder(source, view)
        weights = recipe["weights"]
        if weights == CUSTOM:
            raise UsageError("an encoder of your own cannot be exported", path, "export a run of cmrhash's encoders")
        kind = "image" if view.is_image else "words" if words_path(path).exists() else "transformer"
        named = source.moved.get(view) or known
        own = kind == "words" or weights == "tuned" or (weights == RANDOM and not view.is_image)
        entries[view] = {
            "kind": kind,
            "name": name,
            "dim": made.dim,
            "source": None if own or _is_path(named) else named or None,
            "part": None,
            "recipe": recipe,
        }
        entries[view]["put_in"] = own or (with_encoders and weights != RANDOM)
    for view, entry in entries.items():
        if entry["put_in"]:
            same = [v for v, e in entries.items() if canonical(e["recipe"]) == canonical(entry["recipe"])]
            part = view if view.is_image else View.text("+".join(v.short for v in same))
            in_folder = entry["kind"] == "transformer" or entry["recipe"].get("layer") in LAYERS
            ending = "" if in_folder else ".safetensors"
            entry["part"] = f"encoders/{part}{ending}"
    return {view: {key: e[key] for key in e if key != "put_in"} for view, e in entries.items()}


def _is_path(source: str) -> bool:
    """Whether a source names a place on this machine, which no export names."""
    path = Path(source).expanduser()
    return path.exists() or path.is_absolute() or packages.names_file(source)


def _encoder(source: Exporting, view: View) -> tuple[str, dict[str, Any], str]:
    """Name, recipe and source of the encoder of a view: by its feature file, or as it is opened where there is none."""
    made = source.run.features[view]
    if made.sha256:
        header = reopen.made_by(source.features / made.file)
        name, recipe, known = header.encoder, header.recipe, header.source
    else:
        encoder = source.embedder.text_encoder(view)
        name, recipe, known = encoder.name, encoder.recipe, getattr(encoder, "source", "")
    return name, {field: value for field, value in recipe.items() if field not in OF_DATA}, known


def _bundle(embedder: Embedder, view: View, path: Path) -> None:
    """Write an encoder's weights, with its tokenizer if it has one."""
    encoder = embedder.image_encoder if view.is_image else embedder.text_encoder(view)
    if isinstance(encoder, WordEncoder):
        write_bytes(path, safetensors.numpy.save(encoder.arrays()))
        return
    assert isinstance(encoder, (ImageEncoder, TextEncoder))
    copies.write(encoder, copies.network_of(encoder.module).state_dict(), path)
    for file in [file for file in path.rglob("*") if file.is_file()]:
        if not FILE.fullmatch(f"encoders/{path.name}/{file.relative_to(path).as_posix()}"):
            file.unlink()
        elif file.name in SETTINGS and file.parent == path:
            _forget_machine(file)


def _forget_machine(path: Path) -> None:
    """Remove local paths from a file of settings."""
    content = json.loads(path.read_bytes())
    kept = {key: value for key, value in content.items() if key not in OF_MACHINE}
    write_bytes(path, json.dumps(kept, indent=2, ensure_ascii=False).encode())


def _check(target: Path, entries: Mapping[View, Mapping[str, Any]]) -> None:
    """Open the bundled encoders: their digests must match the recipes."""
    opened = PretrainedHasher.load(target, device="cpu", offline=True)
    for view, entry in entries.items():
        if entry["part"]:
            _ = opened.image_encoder if view.is_image else opened.text_encoder(view)
