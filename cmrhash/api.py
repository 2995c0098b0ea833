"""The public face: one function per stage, as ``import cmrhash`` gives them. It may import every room but the wings.

data = cmrhash.extract("sample")
run = cmrhash.train(data, bits=32)
print(cmrhash.evaluate(run, langs=["de"]))
cmrhash.load(run.folder).search("ein Hund im Schnee", k=5)
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

from cmrhash.config import (
    CACHE,
    DATASETS,
    RUNS,
    CompareConfig,
    EvalConfig,
    ExtractConfig,
    FinetuneConfig,
    GrowConfig,
    Progress,
    SweepConfig,
    TrainConfig,
)
from cmrhash.data.items import ImageTextDataset, root_of, with_relevance
from cmrhash.data.recognise import recognise
from cmrhash.data.tars import is_pattern
from cmrhash.encoders.own import Encoder
from cmrhash.errors import UsageError, did_you_mean, some_of
from cmrhash.evaluation import compare as comparison
from cmrhash.evaluation import sweep as search_of_settings
from cmrhash.evaluation.evaluate import Evaluation, check_eval, score
from cmrhash.evaluation.sweep import Sweep
from cmrhash.features import extract as extraction
from cmrhash.features.dataset import ExtractedDataset
from cmrhash.search import apply as application
from cmrhash.search import grow as growth
from cmrhash.search.exported.hasher import PretrainedHasher
from cmrhash.search.grow import Grown
from cmrhash.search.hasher import Hasher
from cmrhash.training import methods, runs
from cmrhash.training.loggers import Logger
from cmrhash.training.methods import Method
from cmrhash.training.runs import Run

EXTRACT = ("image_encoder", "text_encoder", "finetune", "progress")  # what extract takes besides its config
Config = TypeVar("Config", ExtractConfig, GrowConfig, TrainConfig, EvalConfig, CompareConfig, SweepConfig)


def extract(
    source: str | Path | ImageTextDataset = "sample",
    *,
    image_encoder: Encoder[Any] | None = None,
    text_encoder: Encoder[Any] | Mapping[str, Encoder[Any]] | None = None,
    finetune: FinetuneConfig | None = None,
    progress: Progress = lambda *_: None,
    **settings: Any,
) -> ExtractedDataset:
    """Encode a data set once, into the feature cache, and return it as it is there.

    source: the name of a data set that cmrhash reads ("sample", or "iaprtc12" with ``root=DIR``), a folder, table, tar
    or feature file whose layout is recognised, or a data set in memory (see ``dataset``). image_encoder, text_encoder:
    encoder objects of your own (see ``Encoder``); a mapping gives one per language. finetune: tune the encoders on the
    data set first. settings: fields of ``ExtractConfig``. Raises UsageError for unusable settings, DataError for bad
    data or more broken items than ``max_bad``, StaleError for features of another recipe unless ``overwrite``.
    """
    config, items = _source(source, settings)
    if finetune is not None:
        if items is not None or image_encoder is not None or text_encoder is not None:
            raise UsageError("fine-tuning of items in memory or of your own encoders", None, "leave `finetune` out")
        from cmrhash.training.finetune.extract import extract_tuned

        done: extraction.Extraction = extract_tuned(config, finetune, progress)
    else:
        opened = extraction.open_encoders(config, items, image_encoder, text_encoder, progress)
        done = extraction.extract(config, progress, opened)
    extraction.refuse_bad(done, config.max_bad)
    return ExtractedDataset.open(config.cache, done.dataset.name)


def open_dataset(name: str | None = None, *, cache: str | Path = CACHE) -> ExtractedDataset:
    """Open an extracted data set of the cache; without a name, the only one that it holds."""
    return ExtractedDataset.open(cache, name)


def train(
    data: ExtractedDataset | str,
    method: str | Method = TrainConfig.method,
    *,
    cache: str | Path = CACHE,
    runs: str | Path = RUNS,
    encoders: Sequence[str] = (),
    overwrite: bool = False,
    progress: Progress = lambda *_: None,
    logger: Logger | None = None,
    **settings: Any,
) -> Run:
    """Train hash heads on an extracted data set, or find the run done.

    data: the data set, or its name in the cache. method: a name out of METHODS, or your own Method. runs: folder of all
    runs. encoders: "image=NAME" or "LANG=NAME" where the cache has features by several. logger: your own object with
    the methods of ``Logger``. settings: fields of ``TrainConfig``, such as bits and langs. Raises UsageError (also for
    a setting that the method does not read), DataError, or StaleError for a run of other settings in the same folder
    unless ``overwrite``.
    """
    from cmrhash.training.train import train as run_one

    name = method if isinstance(method, str) else methods.register(method)
    config, opened = _config(TrainConfig, {"method": name, **settings}), _data(data, cache)
    _refuse_unread((name,), settings, config, opened)
    return run_one(config, opened, Path(runs), tuple(encoders), overwrite, progress, logger)[0]


def find_runs(data: ExtractedDataset | str, *, cache: str | Path = CACHE, folder: str | Path = RUNS) -> list[Run]:
    """The runs of a data set in the folder of all runs; raises UsageError if there are none."""
    opened = _data(data, cache)
    return runs.find_runs(Path(folder), opened.name, opened.dataset.relevance)


def evaluate(
    run: Run | Sequence[Run],
    data: ExtractedDataset | str | None = None,
    *,
    cache: str | Path = CACHE,
    **settings: Any,
) -> Evaluation:
    """Score one run or several of the same data set: tie-aware mAP and its companions with their protocol.

    data: the data set of the runs; None: that name in the cache. settings: fields of ``EvalConfig``, such as langs and
    map_at. ``print`` of the result shows a table. Raises UsageError, StaleError, or DataError if no query has anything
    relevant.
    """
    found = [run] if isinstance(run, Run) else list(run)
    if not found:
        raise UsageError("no run to evaluate", None, "give a run of `train` or `find_runs`")
    opened = _data(found[0].dataset if data is None else data, cache)
    config = _config(EvalConfig, settings)
    opened = opened.with_relevance(config.relevance or found[0].relevance)
    check_eval(config, opened.dataset)
    return score(config, found, opened)


def compare(
    data: ExtractedDataset | str,
    methods: Sequence[str | Method] = CompareConfig.methods,
    *,
    cache: str | Path = CACHE,
    runs: str | Path = RUNS,
    encoders: Sequence[str] = (),
    progress: Progress = lambda *_: None,
    **settings: Any,
) -> Evaluation:
    """Train and score methods x bits x seeds, and return one row per cell with mean, spread and number of seeds.

    settings: fields of ``CompareConfig`` (bits, seeds, langs, metric, out) and of ``TrainConfig``; each of the latter
    changes the methods that read it, and is refused if none does. What is trained already is not trained again.
    """
    names = tuple(method if isinstance(method, str) else _register(method) for method in methods)
    own = {field.name for field in fields(CompareConfig)} - {"methods"}
    grid = _config(CompareConfig, {"methods": names, **{key: value for key, value in settings.items() if key in own}})
    shared = {key: value for key, value in settings.items() if key not in own or key == "langs"}
    config = _config(TrainConfig, {key: value for key, value in shared.items() if key != "langs"})
    opened = _data(data, cache)
    _refuse_unread(names, shared, config, opened)
    return comparison.compare(grid, config, opened, Path(runs), tuple(encoders), progress)


def sweep(
    data: ExtractedDataset | str,
    values: Mapping[str, Any],
    method: str | Method = TrainConfig.method,
    *,
    cache: str | Path = CACHE,
    runs: str | Path = RUNS,
    encoders: Sequence[str] = (),
    progress: Progress = lambda *_: None,
    **settings: Any,
) -> Sweep:
    """Train many settings of a method, and return them with the best on val first.

    values: field of ``TrainConfig`` -> a list of values to try, or "LOW..HIGH" to draw from. settings: fields of
    ``SweepConfig`` (samples, seeds, jobs, out) and of ``TrainConfig``, which hold for all. Raises as ``train`` does.
    """
    texts = tuple(f"{name}={_listed(value)}" for name, value in values.items())
    own = {field.name for field in fields(SweepConfig)} - {"values"}
    grid = _config(SweepConfig, {"values": texts, **{key: value for key, value in settings.items() if key in own}})
    shared = {key: value for key, value in settings.items() if key not in own}
    name = method if isinstance(method, str) else _register(method)
    config, opened = _config(TrainConfig, {"method": name, **shared}), _data(data, cache)
    _refuse_unread((name,), shared, config, opened)
    return search_of_settings.sweep(grid, config, opened, Path(runs), tuple(encoders), progress)


def load(run: str | Path | Run, *, cache: str | Path = CACHE, **options: Any) -> Hasher:
    """Open a run for search.

    options: as ``Hasher`` takes them: device, among, store, probes, offline, image_weights and text_models (of moved
    encoders), image_encoder and text_encoder (encoder objects of your own, as given to ``extract``).
    """
    _refuse_unknown(options, inspect.signature(Hasher.__init__).parameters)
    return Hasher.load(run.folder if isinstance(run, Run) else run, cache, **options)


def apply(
    run: str | Path | Run,
    data: ExtractedDataset | str | Path,
    *,
    cache: str | Path = CACHE,
    runs: str | Path = RUNS,
    progress: Progress = lambda *_: None,
    **options: Any,
) -> Run:
    """Hash another collection by a trained or exported run, and return it as a run of that collection for ``load``.

    run: a trained run whose data set is in the cache, or an exported one: its folder or id of a model hub. data: a
    folder or file whose layout is recognised, or an extracted data set or its name; photos need no captions. runs:
    folder of all runs. options: device, offline, image_weights and text_models, as ``load`` takes them. Raises as
    ``search.apply.apply`` does.
    """
    source = run.folder if isinstance(run, Run) else run
    _refuse_unknown(options, ("device", "offline", "image_weights", "text_models"))
    return application.apply(source, data, cache=Path(cache), out=Path(runs), progress=progress, **options)[0]


def add(
    source: str | Path | ImageTextDataset,
    data: ExtractedDataset | str,
    *,
    cache: str | Path = CACHE,
    runs: str | Path = RUNS,
    image_encoder: Encoder[Any] | None = None,
    text_encoder: Encoder[Any] | Mapping[str, Encoder[Any]] | None = None,
    progress: Progress = lambda *_: None,
    **settings: Any,
) -> Grown:
    """Add the items of a folder, table or manifest to an extracted data set, and bring its runs up to date.

    Only the new items are encoded, by the encoders of the data set; they join the database. data: the data set, or its
    name in the cache. settings: fields of ``GrowConfig``, such as stores and prefix. Raises as ``search.grow.add``.
    """
    opened, config = _data(data, cache), _config(GrowConfig, settings)
    where = opened.folder.parent
    return growth.add(source, opened.name, config, where, Path(runs), progress, image_encoder, text_encoder)


def remove(
    ids: str | Sequence[str],
    data: ExtractedDataset | str,
    *,
    cache: str | Path = CACHE,
    runs: str | Path = RUNS,
    progress: Progress = lambda *_: None,
    **settings: Any,
) -> Grown:
    """Remove items by their ids from an extracted data set, and bring its runs up to date.

    settings: fields of ``GrowConfig``, such as stores. Raises as ``search.grow.remove`` does.
    """
    opened, config = _data(data, cache), _config(GrowConfig, settings)
    gone = [ids] if isinstance(ids, str) else list(ids)
    return growth.remove(gone, opened.name, config, opened.folder.parent, Path(runs), progress)


def relocate(
    data: str,
    root: str | Path,
    *,
    former: str | Path | None = None,
    cache: str | Path = CACHE,
    runs: str | Path = RUNS,
) -> Grown:
    """Tell an extracted data set where its photos are now; nothing is encoded.

    root: their present folder. former: the folder that moved, if it is one of added photos.
    """
    old = None if former is None else Path(former)
    return growth.relocate(data, Path(root), old, GrowConfig(), Path(cache), Path(runs))


def from_pretrained(source: str | Path, *, revision: str | None = None, **options: Any) -> PretrainedHasher:
    """Open an exported run in a folder or under an id of a model hub; see ``PretrainedHasher.load``."""
    return PretrainedHasher.load(source, revision=revision, **options)


# ---------------------------------------------------------------------------------------------- small parts

_register = methods.register


def _listed(values: Any) -> str:
    """Values of a setting as text."""
    return ",".join(map(str, values)) if isinstance(values, (list, tuple)) else str(values)


def _source(
    source: str | Path | ImageTextDataset, settings: dict[str, Any]
) -> tuple[ExtractConfig, ImageTextDataset | None]:
    """The configuration of an extraction, and its items where they are in memory."""
    if isinstance(source, ImageTextDataset):
        return _config(ExtractConfig, {"dataset": "manifest", "name": source.name, **settings}, EXTRACT), source
    if source == "":
        raise UsageError("the path of the data set is empty", None, 'give a path; the current folder is "."')
    if isinstance(source, str) and source in DATASETS:
        return _config(ExtractConfig, {"dataset": source, **settings}, EXTRACT), None
    path = Path(source).expanduser() if isinstance(source, (str, Path)) else None
    if path and (path.exists() or is_pattern(path)):
        if "dataset" in settings:
            return _config(ExtractConfig, {"root": path, **settings}, EXTRACT), None
        layout = recognise(root_of(path, bool(settings.get("follow_links"))))
        found = {"dataset": layout.dataset, "root": layout.root, "name": layout.name, "features": layout.features}
        return _config(ExtractConfig, {**found, **settings}, EXTRACT), None
    if not isinstance(source, (str, Path)):
        raise UsageError(f"a data set is a {type(source).__name__}", None, "give a name, a folder, or `dataset(...)`")
    fix = f"{did_you_mean(str(source), DATASETS)} give a folder or file, or one of {some_of(DATASETS)}"
    raise UsageError(f"no data set and no folder '{source}'", None, fix)


def _data(data: ExtractedDataset | str, cache: str | Path) -> ExtractedDataset:
    if isinstance(data, ExtractedDataset):
        return data
    if isinstance(data, str):
        return ExtractedDataset.open(cache, data)
    raise UsageError(f"a data set is a {type(data).__name__}", None, "give what `extract` returned, or its name")


def _refuse_unread(names: Sequence[str], given: Iterable[str], config: TrainConfig, data: ExtractedDataset) -> None:
    """Raise UsageError for a setting that none of the methods reads."""
    from cmrhash.training.settings import refuse_unread

    refuse_unread(names, given, config, with_relevance(data.dataset, config.relevance).relevance)


def _refuse_unknown(given: Iterable[str], known: Iterable[str]) -> None:
    """Raise UsageError for a setting that the called function does not have."""
    names = [name for name in known if name != "self"]
    for name in given:
        if name not in names:
            raise UsageError(f"no setting '{name}'", None, f"{did_you_mean(name, names)} settings: {some_of(names)}")


def _config(kind: type[Config], settings: Mapping[str, Any], also: Iterable[str] = ()) -> Config:
    """A config with these fields; raises UsageError for a name that it does not have. also: names to suggest."""
    types: dict[str, str] = {field.name: str(field.type) for field in fields(kind)}
    _refuse_unknown(settings, [*types, *also])
    values: dict[str, Any] = {}
    for name, value in settings.items():
        if types[name].startswith("tuple") and not isinstance(value, tuple):
            value = tuple(value) if isinstance(value, (list, set)) else (value,)
        if value == "" and "Path" in types[name]:
            raise UsageError("the path is empty", None, 'give a path; the current folder is "."', option=name)
        values[name] = Path(value) if "Path" in types[name] and isinstance(value, str) else value
    return kind(**values)
