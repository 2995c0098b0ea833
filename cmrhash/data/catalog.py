"""Catalog of readers by name.

``READERS`` maps a name to a function ``(root, **options) -> ImageTextDataset``; ``OPTIONS`` lists the readers that take
an option. The names are those of ``config.DATASETS`` except the last, precomputed feature files, which have no root.
``OWN_FEATURES`` maps a reader to a function that reads the precomputed features of its data set.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from cmrhash.config import (
    DATASETS,
    FEATURES_DATASET,
    LABELS_FROM,
    LISTS_DATASET,
    OWN,
    SAMPLE_DATASET,
    TABLE_DATASET,
    TARS_DATASET,
    ExtractConfig,
)
from cmrhash.data.items import ImageTextDataset, Ready, check, root_of
from cmrhash.data.manifest import read as read_manifest
from cmrhash.data.matrices import dataset as matrices
from cmrhash.data.matrices.over import lay_over
from cmrhash.data.readers import iaprtc12_lists, mat_lists, table
from cmrhash.data.readers.coco import read as read_coco
from cmrhash.data.readers.fashion import read as read_fashion
from cmrhash.data.readers.flickr import read_flickr8k, read_flickr30k
from cmrhash.data.readers.folder import read as read_folder
from cmrhash.data.readers.iaprtc12 import read as read_iaprtc12
from cmrhash.data.readers.imagefolder import read as read_imagefolder
from cmrhash.data.readers.mirflickr import read as read_mirflickr
from cmrhash.data.readers.nuswide import read as read_nuswide
from cmrhash.data.readers.pascal import read as read_pascal
from cmrhash.data.readers.webdataset import read as read_webdataset
from cmrhash.data.readers.wikipedia import read as read_wikipedia
from cmrhash.data.recognise import by_sign
from cmrhash.data.sample import read as read_sample
from cmrhash.data.sample import undrawn_if_refused
from cmrhash.data.splits import check as check_splits
from cmrhash.data.splits import with_splits
from cmrhash.data.tars import is_pattern
from cmrhash.data.view import View
from cmrhash.errors import DataError, UsageError, did_you_mean, some_of
from cmrhash.storage.files import is_refused_elsewhere

READERS: dict[str, Callable[..., ImageTextDataset]] = {
    SAMPLE_DATASET: read_sample,
    "folder": read_folder,
    TABLE_DATASET: table.read,
    "manifest": read_manifest,
    "imagefolder": read_imagefolder,
    TARS_DATASET: read_webdataset,
    "iaprtc12": read_iaprtc12,
    "iaprtc12-lists": iaprtc12_lists.read,
    "pascal": read_pascal,
    "wikipedia": read_wikipedia,
    "flickr30k": read_flickr30k,
    "flickr8k": read_flickr8k,
    "fashion": read_fashion,
    "mirflickr": read_mirflickr,
    "nuswide": read_nuswide,
    "coco": read_coco,
    LISTS_DATASET: mat_lists.read,
}

OWN_FEATURES: dict[str, Callable[[ImageTextDataset], dict[View, Ready]]] = {
    "iaprtc12-lists": iaprtc12_lists.own_features
}

# Option -> the readers that take it, and why the others do not.
OPTIONS: dict[str, tuple[tuple[str, ...], str]] = {
    "labels": (("fashion", "imagefolder", TABLE_DATASET), "has no columns of labels"),
    "follow_links": (
        tuple(name for name in DATASETS if name not in (SAMPLE_DATASET, FEATURES_DATASET)),
        "has no folder of photos",
    ),
    "labels_from": (("folder", "imagefolder", TABLE_DATASET), "does not take its labels from folders"),
    "ids": ((FEATURES_DATASET,), "has ids of its own"),
    "captions": ((FEATURES_DATASET,), "has captions of its own"),
    "images": ((LISTS_DATASET,), "has its photos below its root"),
}


def read_dataset(config: ExtractConfig) -> ImageTextDataset:
    """Read the data set of a config, with its roles drawn and checked.

    Raises UsageError for settings that do not fit, DataError for files that cannot be used.
    """
    if config.dataset not in DATASETS:
        fix = f"{did_you_mean(config.dataset, DATASETS)} choose one of {some_of(DATASETS)}"
        raise UsageError(f"unknown data set '{config.dataset}'", None, fix, option="dataset")
    options = _options(config)
    check_splits(config)
    if config.name is not None:
        _check_name(config.name)  # before the sample is drawn
    if config.dataset == FEATURES_DATASET:
        dataset = matrices.read(config.features, config.maps, config.ids, config.captions)
        dataset = replace(dataset, notes=(*dataset.notes, *_ways_to_labels(dataset)))
    else:
        arrays, dataset = _maps_and_items(config, options)
        asked = any(option.rpartition("=")[2] == OWN for option in config.text_models)
        if asked and config.dataset in OWN_FEATURES:
            dataset = replace(dataset, ready=OWN_FEATURES[config.dataset](dataset))
        if config.features:
            dataset = lay_over(dataset, config.features, arrays)
        elif arrays:
            raise UsageError(
                f"'{arrays[0]}' needs a feature file",
                None,
                "give the file of that array with `features`",
                option="maps",
            )
    return finished(dataset, config)


def _ways_to_labels(dataset: ImageTextDataset) -> tuple[str, ...]:
    """A note on feature files without labels, with the reader of their folder if it is that of a known data set."""
    if dataset.classes:
        return ()
    layout, sign = by_sign(dataset.root)
    way = f'; {sign} belongs to {layout}: `dataset="{layout}"` with `root="{dataset.root}"` reads its labels and splits'
    return (
        'no labels, so no mAP but R@1, ... of pairs; an array of labels: `maps=("labels=ARRAY",)`' + way * bool(sign),
    )


def undone_if_refused(config: ExtractConfig) -> AbstractContextManager[None]:
    """A context in which a CmrhashError undoes what ``read_dataset`` wrote: the drawn sample."""
    return undrawn_if_refused(_root(config)) if config.dataset == SAMPLE_DATASET else nullcontext()


def _options(config: ExtractConfig) -> dict[str, Any]:
    """Options of the reader that the config gives; raises UsageError for one that the reader does not take."""
    given = {option: value for option in OPTIONS if (value := getattr(config, option))}
    for option in given:
        readers, why = OPTIONS[option]
        if config.dataset not in readers:
            what = f"data set '{config.dataset}' {why}"
            take = "takes" if len(readers) == 1 else "take"
            raise UsageError(what, None, f"leave it out; {', '.join(readers)} {take} it", option=option)
    if len(given.keys() & {"labels", "labels_from"}) > 1:
        raise UsageError("columns and folders cannot both be the labels", None, "use one of the two", option="labels")
    if config.labels_from not in (None, *LABELS_FROM):
        raise UsageError(f"unknown '{config.labels_from}'", None, 'use "folder"', option="labels_from")
    given.pop("follow_links", None)  # travels with the root
    return given


def _maps_and_items(config: ExtractConfig, options: dict[str, Any]) -> tuple[tuple[str, ...], ImageTextDataset]:
    """The maps of feature files, and the data set of a reader.

    A table takes all maps; beside feature files, only those that say "no column" ("text=").
    """
    if config.dataset != TABLE_DATASET:
        return config.maps, READERS[config.dataset](_root(config), **options)
    columns = tuple(option for option in config.maps if not config.features or option.endswith("="))
    return tuple(option for option in config.maps if option not in columns), table.read(
        _root(config), columns, **options
    )


def finished(dataset: ImageTextDataset, config: ExtractConfig) -> ImageTextDataset:
    """The data set with its splits chosen or drawn, and with its name checked; raises UsageError, DataError."""
    _options(config)
    dataset = with_splits(dataset, config)
    name = dataset.name if config.name is None else config.name
    _check_name(name)
    dataset = check(replace(dataset, name=name, root=root_of(dataset.root, config.follow_links)))
    for lang, after in pairwise(sorted(dataset.languages, key=str.lower)):
        if lang.lower() == after.lower():
            fix = "join their captions: files on some systems have one name for both"
            raise DataError(f"languages '{lang}' and '{after}' differ only by case", dataset.root, fix)
    return dataset


def _check_name(name: str) -> None:
    """Raise UsageError for the name of a data set that cannot be a folder."""
    if not re.fullmatch(r"[\w][\w.-]*", name):
        raise UsageError(
            f"'{name}' cannot be a folder name", None, "use letters, digits, '.', '_' and '-'", option="name"
        )
    if is_refused_elsewhere(name):
        raise UsageError(f"'{name}' cannot be a folder name on Windows", None, "give another one", option="name")


def _root(config: ExtractConfig) -> Path:
    """Folder of the data set, or the file of a table or tar; the sample has a folder in the cache."""
    if config.root is None:
        if config.dataset != SAMPLE_DATASET:
            raise UsageError(f"data set '{config.dataset}' needs its folder", None, 'give `root="DIR"`')
        return config.cache / SAMPLE_DATASET / "drawn"
    file = config.root.is_file() and config.dataset in (TABLE_DATASET, TARS_DATASET)
    tars = config.dataset == TARS_DATASET and is_pattern(config.root)
    if not (config.root.is_dir() or file or tars):
        raise DataError("no such folder", config.root, "give the folder of the data set with `root`")
    return root_of(config.root, config.follow_links)
