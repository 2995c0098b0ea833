"""Recognition of a data set's layout from the files in its folder."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from cmrhash.config import FEATURES_DATASET, SAMPLE_DATASET, TARS_DATASET
from cmrhash.data.photos import is_photo
from cmrhash.data.tables import SUFFIXES as TABLES
from cmrhash.data.tables import tables_in
from cmrhash.data.tars import COMPRESSED, is_pattern
from cmrhash.errors import DataError, UsageError

FEATURES = (".mat", ".h5", ".hdf5", ".h5py", ".npz", ".npy")
LOOKED_AT = 10_000  # files of a folder
# A layout, and the files that tell it: a pattern each, of which one must match, below the folder; the first that fits.
SIGNS: tuple[tuple[str, tuple[str, ...]], ...] = (
    (SAMPLE_DATASET, ("sample.json",)),
    ("manifest", ("manifest.jsonl", "dataset.json")),
    ("iaprtc12-lists", ("iapr_train*",)),
    ("iaprtc12", ("iaprtc12/annotations_complete_eng", "annotations_complete_eng")),
    ("coco", ("annotations/captions_*.json",)),
    ("mirflickr", ("mirflickr/meta/tags", "mirflickr25k_annotations_v080")),
    ("nuswide", ("ImageList/Imagelist.txt",)),
    ("wikipedia", ("trainset_txt_img_cat.list",)),
    ("flickr30k", ("dataset_flickr30k.json", "results_20130124.token", "results.csv")),
    ("flickr8k", ("dataset_flickr8k.json", "Flickr8k.token.txt", "captions.txt")),
    ("fashion", ("styles.csv",)),
    ("pascal", ("sentence", "sentences")),
)
IMAGEFOLDER = ("metadata.csv", "metadata.jsonl", "metadata.parquet", "*/metadata.*", "train/*", "test/*")
OWN_NAME = ("manifest", "table", "folder", "imagefolder", TARS_DATASET, FEATURES_DATASET)  # layouts of anybody's data
EXAMPLE = '{"id": "1", "image": "photos/1.jpg", "texts": {"en": ["a dog runs"]}, "labels": ["dog"]}'


@dataclass(frozen=True)
class Layout:
    """A recognised layout. dataset: name of its reader; root, features: where it is; name: for the cache; sign: why."""

    dataset: str
    root: Path | None
    features: tuple[Path, ...]
    name: str | None
    sign: str


def recognise(path: Path) -> Layout:
    """Recognise the layout of a folder or file; raises DataError, or UsageError with what was seen, if none fits."""
    path = path.expanduser()
    if path.is_file():
        return _file(path)
    if is_pattern(path):
        return Layout(TARS_DATASET, path, (), _name(path.parent, TARS_DATASET), path.name)
    if not path.is_dir():
        raise DataError("no such file or folder", path, "check the path")
    for dataset, patterns in SIGNS:
        if sign := _first(path, patterns):
            return Layout(dataset, path, (), _name(path, dataset), sign)
    if sign := _tars(path) or _unpacked(path):
        return Layout(TARS_DATASET, path, (), _name(path, TARS_DATASET), sign)
    if sign := _first(path, IMAGEFOLDER):
        return Layout("imagefolder", path, (), _name(path, "imagefolder"), sign)
    if tables := tables_in(path):
        return Layout("table", path, (), _name(path, "table"), tables[0])
    photos, others = _count(path)
    if photos:
        return Layout("folder", path, (), _name(path, "folder"), f"{photos} photos")
    seen = f"{others} files, none of them a photo or a table" if others else "no files"
    fix = f"give the folder of the photos, or write a manifest.jsonl there with a line per photo: {EXAMPLE}"
    raise UsageError(f"no known layout ({seen})", path, fix)


def _first(path: Path, patterns: Iterable[str]) -> str:
    """Path below the folder of the first file that fits one of the patterns, "" if none does."""
    found = (file for pattern in patterns for file in sorted(path.glob(pattern)))
    return next((file.relative_to(path).as_posix() for file in found), "")


def _tars(path: Path) -> str:
    """The first tar of a folder, "" if it has none, or also has photos or tables other than those of img2dataset."""
    sign = _first(path, ("*.tar", *(f"*{suffix}" for suffix in COMPRESSED), "*/*.tar"))
    tables = [name for name in tables_in(path) if not (path / name).with_suffix(".tar").is_file()]
    return "" if tables or not sign or _count(path)[0] else sign


def _unpacked(path: Path) -> str:
    """A table or summary that img2dataset writes beside the folder of the same samples, "" if there is none."""
    beside = sorted(found for ending in ("_stats.json", ".parquet") for found in path.glob(f"[0-9]*{ending}"))
    signs = (found.name for found in beside if (path / re.split(r"[_.]", found.name)[0]).is_dir())
    return next(signs, "")


def _file(path: Path) -> Layout:
    suffix = path.suffix.lower()
    if path.name == "manifest.jsonl":
        return Layout("manifest", path.parent, (), _name(path.parent, "manifest"), path.name)
    if suffix in TABLES:
        return Layout("table", path, (), _name(path, "table"), path.name)
    if suffix == ".tar" or path.name.lower().endswith(COMPRESSED):
        return Layout(TARS_DATASET, path, (), _name(path, TARS_DATASET), path.name)
    if suffix in FEATURES:
        return Layout(FEATURES_DATASET, None, (path,), _name(path, FEATURES_DATASET), path.name)
    fix = f"give a folder, a table ({', '.join(TABLES)}), a tar or a feature file ({', '.join(FEATURES)})"
    raise UsageError(f"no known layout of a {suffix or 'file'}", path, fix)


def _name(path: Path, dataset: str) -> str | None:
    """Name in the cache: that of the folder or file for anybody's data, None (the reader's) for published data sets."""
    own = re.sub(r"[^\w.-]+", "_", (path.resolve().stem if path.is_file() else path.resolve().name)).strip("._-")
    return own or None if dataset in OWN_NAME else None


def _count(folder: Path) -> tuple[int, int]:
    """Photos and other files below a folder, of the first LOOKED_AT ones."""
    photos = others = 0
    for _, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for file in files:
            photos, others = photos + is_photo(file), others + (not is_photo(file))
        if photos + others > LOOKED_AT:
            break
    return photos, others
