"""Growth of a collection: items are added or removed, and its features, codes and stores follow.

Only new photos and captions are encoded, by the encoders that the collection has. The new feature files are prepared
aside and take their place in one step (``data.switch``); then the codes of every run that fits are made again, and
stores that have them get the new ones. A killed call leaves the old collection or the new one; the same call typed
again finishes what is left.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cmrhash.compute import processes
from cmrhash.config import AUTO, FEATURES_DATASET, ExtractConfig, GrowConfig, Progress
from cmrhash.data import manifest, switch
from cmrhash.data.additions import merged, named, without
from cmrhash.data.catalog import read_dataset
from cmrhash.data.changes import Changes
from cmrhash.data.items import ImageTextDataset, LinkedRoot, also_of, check, root_of
from cmrhash.data.recognise import recognise
from cmrhash.data.view import View, by_language
from cmrhash.encoders.own import Encoder
from cmrhash.errors import CmrhashError, StaleError, UsageError, did_you_mean
from cmrhash.evaluation.run_codes import ViewCodes, among_all, codes_of
from cmrhash.features import reopen, update
from cmrhash.features.dataset import ExtractedDataset
from cmrhash.features.file import FeatureHeader
from cmrhash.features.outcome import Extracted
from cmrhash.features.runtime import Runtimes
from cmrhash.search.publish import Published, collection_of, deploy, index_call, published, refuse_other_codes
from cmrhash.search.publish import update as updated
from cmrhash.search.stores import CodeStore, Collection, IncrementalStore, open_store
from cmrhash.storage.files import locked
from cmrhash.training.runs import CONFIG, Run, open_run


@dataclass
class Grown:
    """What a change did.

    changes: ids of added ("new") and removed ("gone") items; there: ids to add that the collection had already, with
    the same content; files: feature files, with the items that could not be used; runs: those whose codes are up to
    date; left_out: name of a run -> why its heads do not fit; collections: those of stores that were changed.
    """

    data: ExtractedDataset
    changes: Changes
    there: tuple[str, ...] = ()
    files: list[Extracted] = field(default_factory=list)
    runs: list[Run] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    collections: list[Collection] = field(default_factory=list)

    @property
    def bad(self) -> list[dict[str, str]]:
        """Added photos and captions that could not be encoded, with the reasons."""
        new = set(self.changes.new)
        entries = (entry for file in self.files for entry in file.quarantine if entry["id"] in new)
        return [entry for entry in entries if entry["code"] not in ("no-image", "no-text")]


def add(
    source: str | Path | ImageTextDataset,
    name: str | None,
    config: GrowConfig,
    cache: Path,
    out: Path,
    progress: Progress = lambda *_: None,
    image_encoder: Encoder[Any] | None = None,
    text_encoder: Encoder[Any] | Mapping[str, Encoder[Any]] | None = None,
) -> Grown:
    """Add the items of a folder, table, tar or data set in memory to a collection; they join the database alone.

    name: of the collection in the cache, None for the only one; out: the folder of all runs. An item that is there
    already is passed over if it has the same content. Raises DataError if it has another, UsageError or EncoderError if
    no encoder can encode the new items, StaleError or LockedError as ``extract`` does; then nothing is changed.
    """
    data = ExtractedDataset.open(cache, name)
    more = _read(source, config, data)
    union, new, there = merged(data.dataset, more)
    own = {"image": image_encoder, "text": text_encoder}
    return _change(data, union, Changes(new=new, same=len(data.dataset.items)), config, out, progress, own, there)


def remove(
    ids: Sequence[str],
    name: str | None,
    config: GrowConfig,
    cache: Path,
    out: Path,
    progress: Progress = lambda *_: None,
) -> Grown:
    """Remove items from a collection; their rows leave its feature files, codes and stores.

    Raises UsageError for an id that the collection has not, and if no item or no query would be left; then nothing is
    changed.
    """
    data = ExtractedDataset.open(cache, name)
    known, gone = [item.id for item in data.dataset.items], set(ids)
    unknown = [ident for ident in dict.fromkeys(ids) if ident not in {*known, *switch.removed(data.folder)}]
    if unknown:
        fix = did_you_mean(unknown[0], known) or "check the id"
        raise UsageError(f"no item {named(unknown)} in '{data.name}'; nothing was removed", data.folder, fix)
    kept = without(data.dataset, gone)
    for what, before, after in (
        ("items", len(known), len(kept.items)),
        ("query items", data.dataset.count("query"), kept.count("query")),
    ):
        if before and not after:
            raise UsageError(f"no {what} of '{data.name}' would be left", data.folder, "keep some of them")
    removed = tuple(ident for ident in known if ident in gone)
    return _change(data, kept, Changes(gone=removed, same=len(kept.items)), config, out, progress)


def relocate(name: str | None, root: Path, former: Path | None, config: GrowConfig, cache: Path, out: Path) -> Grown:
    """Tell a collection where its photos are now; nothing is encoded.

    former: the folder of added photos that moved; None: the collection's own folder moved. Raises UsageError for a
    folder without any of the photos.
    """
    data = ExtractedDataset.open(cache, name)
    dataset, root = data.dataset, Path(os.path.abspath(root.expanduser()))
    old = dataset.root if former is None else Path(os.path.abspath(former.expanduser()))
    if former is not None and old not in also_of(dataset.root):
        there = ", ".join(map(str, also_of(dataset.root))) or "none"
        raise UsageError(f"no photos were added from {old} (other folders: {there})", data.folder, "give one of them")
    images = [item.image for item in dataset.items if item.image]
    below = [Path(image).relative_to(old) if former else Path(image) for image in images if _is_of(image, former, old)]
    if not any((root / str(path).partition("@")[0]).exists() for path in below):
        raise UsageError(f"this folder has none of the {len(below)} photos", root, "give the folder that holds them")
    links = isinstance(dataset.root, LinkedRoot)
    if former is None:
        moved = replace(dataset, root=root_of(root, links, also_of(dataset.root)))
        with locked(data.folder / switch.NEXT):
            manifest.keep(moved, data.folder)
        return Grown(ExtractedDataset.open(cache, data.name), Changes(same=len(dataset.items)))
    also = [root if folder == old else folder for folder in also_of(dataset.root)]
    items = [
        replace(item, image=(root / Path(item.image).relative_to(old)).as_posix())
        if item.image and _is_of(item.image, former, old)
        else item
        for item in dataset.items
    ]
    moved = replace(dataset, items=tuple(items), root=root_of(dataset.root, links, also))
    changes = Changes(changed=tuple(item.id for item, was in zip(items, dataset.items, strict=True) if item != was))
    return _change(data, moved, changes, config, out, lambda *_: None)


def _is_of(image: str, former: Path | None, old: Path) -> bool:
    """Whether a photo is in the folder that moved."""
    return not Path(image).is_absolute() if former is None else Path(image).is_relative_to(old)


# ---------------------------------------------------------------------------------------------- one change


def _change(
    data: ExtractedDataset,
    dataset: ImageTextDataset,
    changes: Changes,
    config: GrowConfig,
    out: Path,
    progress: Progress,
    own: Mapping[str, Any] | None = None,
    there: tuple[str, ...] = (),
) -> Grown:
    """Prepare the changed collection, switch to it, and bring the codes of its runs and the stores up to date."""
    with ExitStack() as stack:
        stack.enter_context(locked(data.folder / switch.NEXT))
        _refuse_changed(data)
        stores = [stack.enter_context(closing(open_store(url))) for url in config.stores]
        fitting, left_out = _runs(data, out)
        places = [place for store in stores for place in _published(data, fitting, store)]
        grown = Grown(data, changes, there, left_out=left_out)
        if changes:
            new = dataset.items[len(data.dataset.items) :]
            opened = update.open_needed(data, new, _opener(data, config, own or {}))
            grown.files = update.prepare(data, dataset, changes, opened, config.device, progress)
            _refuse_changed(data)
            switch.switch(data.folder, changes.gone)
            grown.data = data = ExtractedDataset.open(data.folder.parent, data.name)
        for run in fitting:
            codes_of(run, data)
            data.release()
            grown.runs.append(run)
        for place in places:
            grown.collections += _publish(data, place, progress)
        switch.done(data.folder)
    return grown


def _refuse_changed(data: ExtractedDataset) -> None:
    """Raise StaleError if another process has changed the collection since it was opened."""
    if manifest.read_about(data.folder)["items_sha256"] != data.dataset.sha256:
        raise StaleError("the collection has changed meanwhile", data.folder, "run this command again")


def _runs(data: ExtractedDataset, out: Path) -> tuple[list[Run], dict[str, str]]:
    """Runs of the collection whose heads fit its features, and the others with the reasons."""
    fitting, left_out = [], {}
    for path in sorted((out / data.name).glob(f"*/{CONFIG}")):
        try:
            run = open_run(path.parent)
            run.refuse_stale(data)
            fitting.append(run)
        except CmrhashError as error:
            left_out[path.parent.name] = error.what
    return fitting, left_out


@dataclass(frozen=True)
class _Place:
    """Collections of a run in a store. among, approximate, embeddings: how they were made; before: codes if known."""

    store: CodeStore
    run: Run
    among: str
    approximate: bool | None
    embeddings: bool
    before: Published | None = None


def _published(data: ExtractedDataset, fitting: Sequence[Run], store: CodeStore) -> list[_Place]:
    """Collections of the runs in a store; raises UsageError if there are none."""
    names, places = set(store.names()), list[_Place]()
    for run in fitting:
        views = [View.IMAGE, *map(View.text, data.dataset.languages)]
        there = [store.about(name) for view in views if (name := collection_of(run, view)) in names]
        if there:
            among = str(there[0].meta.get("among", "database"))
            before = _before(data, run, store, among) if isinstance(store, IncrementalStore) else None
            places.append(_Place(store, run, among, there[0].approximate, there[0].embeddings, before))
    if not places:
        fix = f"create it with {index_call(store, data.folder.parent, dataset=data.name)}"
        raise UsageError(f"no collection of '{data.name}' in this store", store.url, fix)
    return places


def _views(data: ExtractedDataset, run: Run, among: str) -> tuple[ImageTextDataset, Mapping[View, ViewCodes]]:
    """The data set under the run's relevance, and the run's codes of the items that a store covers."""
    own, codes = data.with_relevance(run.relevance).dataset, codes_of(run, data)
    return own, among_all(own, codes) if among == "all" else dict(codes)


def _before(data: ExtractedDataset, run: Run, store: CodeStore, among: str) -> Published | None:
    """Codes that the store has of a run; None if they are not those of the present items, or some are missing."""
    dataset, views = _views(data, run, among)
    try:
        for view in views:
            refuse_other_codes(run, dataset, view, store, among, data.folder.parent)
    except CmrhashError:
        return None
    return published(run, dataset, views)


def _publish(data: ExtractedDataset, place: _Place, progress: Progress) -> list[Collection]:
    """Bring the collections of a run up to date: what differs, or all codes if the store or its state asks for it."""
    dataset, views = _views(data, place.run, place.among)
    if place.before is not None and place.before.keys() == views.keys() and isinstance(place.store, IncrementalStore):
        return updated(place.run, dataset, views, place.store, place.before, place.among)
    how = place.approximate, progress, place.among, place.embeddings
    return deploy(place.run, dataset, views, place.store, *how)


def _opener(data: ExtractedDataset, config: GrowConfig, own: Mapping[str, Any]) -> update.Opener:
    """Opens the encoder of a feature file, on the runtime that made it."""
    device = str(processes.device_of(config.device))
    runtimes = Runtimes(ExtractConfig(cache=data.folder.parent, device=config.device, runtime=AUTO), data.folder)
    models = by_language(config.text_models)

    def open_one(header: FeatureHeader) -> Any:
        if header.view.is_image:
            image = reopen.image_encoder(header.path, device, config.image_weights, config.offline, own.get("image"))
            return runtimes.choose(header.view, image, 0)
        lang, given = str(header.view.lang), own.get("text")
        mine = given.get(lang) if isinstance(given, Mapping) else given
        model = models.get(lang, models.get(""))
        text = reopen.text_encoder(header.path, data.dataset, device, model, config.offline, mine)
        return runtimes.choose(header.view, text, 0)

    return open_one


# ---------------------------------------------------------------------------------------------- the items to add


def _read(source: str | Path | ImageTextDataset, config: GrowConfig, data: ExtractedDataset) -> ImageTextDataset:
    """The items of a source as items of the collection: their ids, the places of their photos, their splits."""
    prefix = config.prefix
    if isinstance(source, ImageTextDataset):
        more = source
    else:
        layout = recognise(root_of(Path(source), isinstance(data.dataset.root, LinkedRoot)))
        if layout.dataset == FEATURES_DATASET:
            what = "a file of ready-made features, which no encoder of the collection made"
            raise UsageError(what, source, "give photos, or a table, or extract all features together")
        more = read_dataset(ExtractConfig(dataset=layout.dataset, root=layout.root, cache=data.folder.parent))
        if layout.dataset == "folder" and not prefix and (inner := _inner(more.root, data.dataset.root)):
            prefix = f"{inner}/"
    inner = _inner(more.root, data.dataset.root)
    place = Path(os.path.abspath(more.root)) if inner is None else Path(inner)
    items = tuple(
        replace(
            item,
            id=prefix + item.id,
            image=(place / item.image).as_posix() if item.image else None,
            splits=frozenset({"database"}),
        )
        for item in more.items
    )
    also = dict.fromkeys([*also_of(data.dataset.root), *([place] if inner is None else [])])
    links = isinstance(data.dataset.root, LinkedRoot)
    return check(replace(more, items=items, root=root_of(data.dataset.root, links, also)))


def _inner(folder: Path, root: Path) -> str | None:
    """Path of a folder below the root, "" for the root itself; None if it lies elsewhere."""
    inside, around = (Path(os.path.realpath(path)) for path in (folder, root))
    if not inside.is_relative_to(around):
        return None
    return "" if inside == around else inside.relative_to(around).as_posix()
