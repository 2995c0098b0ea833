"""A trained run applied to another collection: its encoders and heads, the codes of the collection's items.

The result is a run folder ``runs/<collection>/<data set of the training>-<name>/`` that ``search``, ``serve``,
``index`` and ``Hasher`` open as a trained run. Photos without captions become searchable by text this way.

config.json, heads.safetensors   as for a trained run; "export" in the config says where the encoders are described
export/                          the run, exported without encoders that have a name or lie elsewhere
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cmrhash.config import CACHE, KEEP, RUNS, ExtractConfig, Progress
from cmrhash.data.catalog import read_dataset
from cmrhash.data.changes import renewed
from cmrhash.data.items import ImageTextDataset
from cmrhash.data.manifest import ABOUT
from cmrhash.data.recognise import recognise
from cmrhash.data.view import View
from cmrhash.errors import DataError, UsageError
from cmrhash.evaluation.run_codes import codes_of
from cmrhash.features.dataset import ExtractedDataset
from cmrhash.features.extract import Opened, extract, refuse_bad
from cmrhash.search.exported import write
from cmrhash.search.exported.hasher import HEADS, PretrainedHasher
from cmrhash.search.hasher import Hasher
from cmrhash.storage.files import below, locked, new_folder, read_json, sha256, write_bytes, write_json
from cmrhash.storage.staged import staged
from cmrhash.training import runs
from cmrhash.training.runs import EXPORT, Run, TrainedOn


def apply(
    source: str | Path,
    collection: str | Path | ExtractedDataset,
    *,
    cache: Path = CACHE,
    out: Path = RUNS,
    device: str = "auto",
    offline: bool = False,
    image_weights: str | None = None,
    text_models: Mapping[str, str] | None = None,
    progress: Progress = lambda *_: None,
) -> tuple[Run, ExtractedDataset]:
    """Encode a collection with the encoders of a run, hash it with its heads, and return it as a run of the collection.

    source: folder of a trained run, whose data set is in the cache, or an exported run: a folder or an id of a model
    hub. collection: a data set of the cache or its name, or a folder or file whose layout is recognised. Features
    that are in the cache are not made again. out: the folder of all runs. image_weights, text_models: present places of
    encoders that moved, or that an export does not include. Raises UsageError for a source without a run,
    EncoderError if an encoder cannot be found, StaleError if the cache has other features under the names of these
    encoders, DataError as ``extract`` does.
    """
    models = {} if text_models is None else dict(text_models)
    where = {"image_weights": image_weights, "text_models": models, "device": device, "offline": offline}
    embedder = _opened(str(source), cache, where)
    if isinstance(embedder, Hasher):
        write.refuse_heads(embedder.run)
    dataset = collection.dataset if isinstance(collection, ExtractedDataset) else _read(str(collection), cache)
    if isinstance(embedder, Hasher) and embedder.run.dataset == dataset.name:
        raise UsageError("this run was trained on the same collection", embedder.place, "search it as it is")
    target = below(out, dataset.name, _name(embedder))
    dataset, changes = renewed(dataset, below(cache, dataset.name), added=KEEP)
    langs = [lang for lang in embedder.langs if lang in dataset.languages]
    photos = any(item.image for item in dataset.items)
    if not photos and not langs:
        what = f"no item has a photo, or a caption in {', '.join(embedder.langs)}"
        raise DataError(what, dataset.root, "give another collection, or another run")
    texts = {lang: embedder.text_encoder(View.text(lang)) for lang in langs}
    opened = Opened(dataset, langs, embedder.image_encoder if photos else None, texts, changes)
    config = ExtractConfig(cache=cache, device=device)
    refuse_bad(extract(config, progress, opened), config.max_bad)
    data = ExtractedDataset.open(cache, dataset.name)
    moved = {View.text(lang): models.get(lang, models.get("")) for lang in embedder.langs} | {View.IMAGE: image_weights}
    run = _run(embedder, data, target, {view: place for view, place in moved.items() if place})
    codes_of(run, data)
    return run, data


def _opened(source: str, cache: Path, where: Mapping[str, Any]) -> Hasher | PretrainedHasher:
    config = Path(source).expanduser() / runs.CONFIG
    record = read_json(config, runs.ANEW) if config.is_file() else {}
    if isinstance(record, dict) and "train" in record:
        return Hasher.load(config.parent, cache, **where)
    return PretrainedHasher.load(source, **where)


def _read(collection: str, cache: Path) -> ImageTextDataset:
    """The collection in that folder or file, or else of that name in the cache."""
    if not Path(collection).expanduser().exists() and (cache / collection / ABOUT).is_file():
        return ExtractedDataset.open(cache, collection).dataset
    layout = recognise(Path(collection))
    return read_dataset(
        ExtractConfig(dataset=layout.dataset, root=layout.root, name=layout.name, features=layout.features, cache=cache)
    )


def _name(embedder: Hasher | PretrainedHasher) -> str:
    """Name of the run of the collection."""
    if isinstance(embedder, Hasher):
        return f"{embedder.run.dataset}-{embedder.run.folder.resolve().name}"
    return "{dataset}-{method}-{bits}".format_map(embedder.config)


def _run(embedder: Hasher | PretrainedHasher, data: ExtractedDataset, target: Path, moved: Mapping[View, str]) -> Run:
    """Write the run of the collection. moved: view -> present place of its encoder."""
    if isinstance(embedder, Hasher):
        run = embedder.run
        write.save(write.Exporting(run, embedder.folder, embedder, {}), target / EXPORT, overwrite=True)
        made = {view: view if of.sha256 else View.IMAGE for view, of in run.features.items()}
        headers = {view: embedder.data.header(run.features[of].file) for view, of in made.items()}
        sources = {view: header.source for view, header in headers.items() if header is not None} | dict(moved)
        known = {lang: dict(sorted(words.items())) for lang, words in embedder.words.items()}
        lender = PretrainedHasher.load(target / EXPORT)
        sources = {view: source for view, source in sources.items() if _is_apart(lender, view)}
        return _write(target, lender, data, {**run.record, EXPORT: EXPORT, "sources": sources}, known)
    config = embedder.config
    record = {
        **{key: config[key] for key in ("source", "head")},
        "train": {"bits": config["bits"], "method": config["method"], "seed": 0},
        "train_items": 0,
        "batch": 0,
        "epochs": 0,
        "best_epoch": 0,
        "skipped_steps": 0,
        "collapsed_epochs": 0,
        "chosen_on": "unknown",
        EXPORT: str(embedder.folder.resolve()),
        "sources": dict(moved),
    }
    return _write(target, embedder, data, record)


def _is_apart(lender: PretrainedHasher, view: View) -> bool:
    """Whether the encoder of a view is not part of the export."""
    return not lender.config["encoders"].get(lender.head_of(view), {}).get("part")


def _write(
    target: Path,
    lender: PretrainedHasher,
    data: ExtractedDataset,
    record: Mapping[str, Any],
    words: Mapping[str, Any] | None = None,
) -> Run:
    """Write the folder of the run in one step. words: of each language, unless the export is elsewhere."""
    features: dict[str, TrainedOn] = {}
    made_as: dict[str, str] = {}
    for view, entry in lender.config["encoders"].items():
        file = View(view).feature_file(entry["name"])
        header, recipe = data.header(file), entry["recipe"]
        made = str(recipe["encoder"]), str(recipe["weights"]), str(recipe.get("weights_sha256", ""))
        features[view] = TrainedOn.of(header) if header else TrainedOn(file, "", entry["dim"], *made)
        made_as |= {view: header.made_as} if header else {}
    with new_folder(target), locked(target / runs.CONFIG), staged(target, runs.CONFIG, [runs.METRICS]) as aside:
        write_bytes(aside / runs.HEADS, (lender.folder / HEADS).read_bytes())
        write_bytes(aside / runs.HISTORY, b"")
        if words is not None:
            write_json(aside / runs.WORDS, words)
        files = [runs.HEADS, runs.HISTORY, *([] if words is None else [runs.WORDS])]
        own = {
            "dataset": data.name,
            "relevance": data.dataset.relevance,
            "split_seed": data.dataset.split_seed,
            "items_sha256": data.dataset.sha256,
            "langs": list(lender.langs),
            "features": {view: vars(of) for view, of in features.items()},
            "made_as": made_as,
            "files": {name: sha256(aside / name) for name in files},
        }
        kept = {key: value for key, value in record.items() if key not in ("val_map", "val_map_mean", "collapse")}
        full = runs.write_record(aside, {**kept, **own})
    return Run.read(target, full)
