"""Recognition of a data set's layout from the files in its folder."""

from __future__ import annotations

import fnmatch
import itertools
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from cmrhash.config import FEATURES_DATASET, SAMPLE_DATASET, TARS_DATASET
from cmrhash.data.matrices import SUFFIXES as FEATURES
from cmrhash.data.photos import LEAVING, PHOTO_SUFFIXES, walk
from cmrhash.data.tables import SUFFIXES as TABLES
from cmrhash.data.tables import tables_in
from cmrhash.data.tars import COMPRESSED, is_pattern
from cmrhash.errors import UsageError

LOOKED_AT = 10_000  # files of a folder
# A layout, and the files that tell it: a pattern each, of which one must match, below the folder; the first that fits.
SIGNS: tuple[tuple[str, tuple[str, ...]], ...] = (
    (SAMPLE_DATASET, ("sample.json",)),
    ("manifest", ("manifest.jsonl", "dataset.json")),
    ("iaprtc12-lists", ("iapr_train*",)),
    ("iaprtc12", ("iaprtc12/annotations_complete_eng", "annotations_complete_eng")),
    ("coco", ("annotations/captions_*.json", "dataset_coco.json", "annotations/dataset_coco.json")),
    ("mirflickr", ("mirflickr/meta/tags", "mirflickr25k_annotations_v080")),
    ("nuswide", ("ImageList/Imagelist.txt",)),
    ("wikipedia", ("trainset_txt_img_cat.list",)),
    (
        "flickr30k",
        (
            *("dataset_flickr30k.json", "results_20130124.token", "results.csv", "flickr_annotations_30k.csv"),
            "flickr30k[-_]images/../captions.txt",
        ),
    ),
    ("flickr8k", ("dataset_flickr8k.json", "Flickr8k.token.txt", "captions.txt")),
    ("fashion", ("styles.csv",)),
    ("mat-lists", ("index.mat",)),
    ("pascal", ("sentence", "sentences")),
)
IMAGEFOLDER = ("metadata.csv", "metadata.jsonl", "metadata.parquet", "*/metadata.*", "train/*", "test/*")
# Layouts of anybody's data, which have the name of their folder or file in the cache.
OWN_NAME = ("manifest", "table", "folder", "imagefolder", "mat-lists", TARS_DATASET, FEATURES_DATASET)
# What a folder or file has that fits nothing, the nearest layout, and what that lacks; the first that fits.
NEAR: tuple[tuple[str, str, str], ...] = (
    ("captions_*.json", "coco", "the folder above it: give the folder that holds annotations"),
    ("annotations/*.json", "coco", "annotations/captions_train2017.json or another captions_*.json"),
    ("annotations_complete_ger", "iaprtc12", "annotations_complete_eng"),
    ("meta/tags", "mirflickr", "a folder mirflickr around meta"),
    ("Groundtruth", "nuswide", "ImageList/Imagelist.txt"),
    ("NUS_WID_Tags", "nuswide", "ImageList/Imagelist.txt"),
    ("texts/*.xml", "wikipedia", "trainset_txt_img_cat.list"),
    ("multi30k", "flickr30k", "dataset_flickr30k.json or results_20130124.token"),
    *((f"*{suffix}", FEATURES_DATASET, "a file as PATH: give it instead of its folder") for suffix in FEATURES),
    *((f"*{suffix}", "table", "its .csv form: save it as CSV") for suffix in (".xlsx", ".xls", ".ods", ".numbers")),
    ("*.json", "table", "a line per row: save it as JSON lines, .jsonl"),
    *((f"*{suffix}", "folder", "the files of the archive: unpack it") for suffix in (".zip", ".7z", ".rar")),
    *(
        (f"*{suffix}", "folder", f"photos as {', '.join(PHOTO_SUFFIXES[:4])}: convert them")
        for suffix in (".heic", ".heif", ".avif", ".jp2", ".jxl", ".svg", ".psd", ".dng", ".cr2", ".nef", ".arw")
    ),
    ("*.txt", "folder", "a photo beside each text file, such as dog.jpg beside dog.txt"),
)
LACKS = ("table", "photos and a table that names them")  # the nearest layout of anything else
EXAMPLE = 'the line "filename,caption,label", then a line per photo, such as "1.jpg,a dog runs,dog"'


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
        raise UsageError("no such file or folder", path, "check the path")
    dataset, sign = by_sign(path)
    if sign:
        return Layout(dataset, path, (), _name(path, dataset), sign)
    if sign := _tars(path) or _unpacked(path):
        return Layout(TARS_DATASET, path, (), _name(path, TARS_DATASET), sign)
    if sign := _first(path, IMAGEFOLDER):
        return Layout("imagefolder", path, (), _name(path, "imagefolder"), sign)
    if tables := tables_in(path):
        return Layout("table", path, (), _name(path, "table"), tables[0])
    links: Counter[str] = Counter()
    suffixes = _count(path, links)
    if photos := _photos(suffixes):
        return Layout("folder", path, (), _name(path, "folder"), f"{photos} photos")
    raise _nothing_fits(path, suffixes, links)


def by_sign(path: Path) -> tuple[str, str]:
    """The layout that a file of SIGNS in a folder tells, and that file; two times "" without any."""
    found = ((dataset, sign) for dataset, patterns in SIGNS if (sign := _first(path, patterns)))
    return next(found, ("", ""))


def _nothing_fits(path: Path, suffixes: Counter[str], links: Counter[str]) -> UsageError:
    """The error for a folder without a layout: what it has, the nearest layout, and how a table begins."""
    often = sorted(suffixes, key=lambda suffix: (-suffixes[suffix], suffix))
    seen = [f"{suffixes[suffix]} {suffix or 'files without a suffix'}" for suffix in often[:5]]
    seen += [f"{count} {what}" for what, count in links.items()]
    what = f"no known layout (the folder holds {', '.join(seen) or 'no files'})"
    if not suffixes and not links:
        return UsageError(what, path, f"put photos into it; captions, if there are any, into captions.csv: {EXAMPLE}")
    if links[LEAVING]:
        return UsageError(what, path, "read through the links with `follow_links=True`")
    below = (sign for _, patterns in SIGNS for pattern in patterns for sign in sorted(path.glob(f"*/{pattern}")))
    if sign := next(below, None):
        inner = path / sign.relative_to(path).parts[0]
        return UsageError(what, path, f"{sign.relative_to(path).as_posix()} is in a folder inside: give {inner}")
    layout, lacks = next(((name, lacks) for pattern, name, lacks in NEAR if any(path.glob(pattern))), LACKS)
    start = f"; start captions.csv with {EXAMPLE}" if layout == "table" else ""
    return UsageError(what, path, f"the nearest layout is {layout}, which lacks {lacks}{start}")


def _first(path: Path, patterns: Iterable[str]) -> str:
    """Path below the folder of the first file that fits one of the patterns, "" if none does."""
    found = (file for pattern in patterns for file in sorted(path.glob(pattern)))
    return next((file.relative_to(path).as_posix() for file in found), "")


def _tars(path: Path) -> str:
    """The first tar of a folder, "" if it has none, or also has photos or tables other than those of img2dataset."""
    sign = _first(path, ("*.tar", *(f"*{suffix}" for suffix in COMPRESSED), "*/*.tar"))
    tables = [name for name in tables_in(path) if not (path / name).with_suffix(".tar").is_file()]
    return "" if tables or not sign or _photos(_count(path, Counter())) else sign


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
    near = (f"{name} lacks {lacks}; " for pattern, name, lacks in NEAR if fnmatch.fnmatch(path.name.lower(), pattern))
    files = f"a table ({', '.join(TABLES)}), a tar or a feature file ({', '.join(FEATURES)})"
    fix = f"{next(near, '')}give a folder, {files}"
    raise UsageError(f"no known layout of a {suffix or 'file'}", path, fix)


def _name(path: Path, dataset: str) -> str | None:
    """Name in the cache: that of the folder or file for anybody's data, None (the reader's) for published data sets."""
    own = re.sub(r"[^\w.-]+", "_", (path.resolve().stem if path.is_file() else path.resolve().name)).strip("._-")
    return own or None if dataset in OWN_NAME else None


def _photos(suffixes: Counter[str]) -> int:
    return sum(suffixes[suffix] for suffix in PHOTO_SUFFIXES)


def _count(folder: Path, extra: Counter[str]) -> Counter[str]:
    """Number of files below a folder by suffix, of the first LOOKED_AT files; extra: as ``walk`` counts."""
    files = itertools.islice(walk(folder, extra), LOOKED_AT)
    return Counter(PurePosixPath(path).suffix.lower() for path in files)
