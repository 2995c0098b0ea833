"""Samples of WebDataset and img2dataset, in tars that stay packed or unpacked in folders.

    00000.tar           members a/17.jpg, a/17.txt, a/17.json, a/17.cls: one sample, because their names agree up to the
                        first dot; several tars at any depth, or by a pattern, "{00000..00012}.tar"
    00000/000000017.*   the same as files, which img2dataset writes with output format "files"

Photos: .jpg .jpeg .png .webp .gif .bmp .tif .tiff. Captions: .txt or .caption, one per line (.de.txt: German ones),
else the usual fields of .json (``cmrhash.data.columns``). Labels: .cls, else the fields of .json. A sample of
img2dataset whose status is not "success" is left out. Relevance by labels if there are any. Protocol: train, val and
test by the names of the tars, as "train-000.tar"; otherwise roles are drawn from the seed.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from cmrhash.data.cleaning import clean_label, clean_text
from cmrhash.data.columns import DEFAULT, LANGUAGES, NAMES, caption_columns
from cmrhash.data.items import ImageTextDataset, Item
from cmrhash.data.parsing import DOWNLOAD, FAILED, decode, lines_of, report, unique_keys
from cmrhash.data.photo_files import Slice
from cmrhash.data.photos import LEAVING, PHOTO_SUFFIXES, composed, files_below
from cmrhash.data.split_names import roles_of, splits_of
from cmrhash.data.tables import strings
from cmrhash.data.tars import COMPRESSED, Tar, expand, is_pattern, refuse_compressed
from cmrhash.errors import DataError

_DECODE = json.JSONDecoder(object_pairs_hook=unique_keys).decode
MAX_TEXT = 16 * 2**20  # bytes of a .txt, .json or .cls
_TEXT = re.compile(rf"(?:({'|'.join(LANGUAGES)})\.)?(?:txt|text|caption)")
_STATS = re.compile(r"[0-9]+_stats\.json")
LEFT_OUT = "samples with neither photo nor caption, left out"
Member = tuple[str, str, Callable[[], bytes | None]]  # name, place as of an item's image, content or None if too large


def read(root: Path) -> ImageTextDataset:
    """Read the tars, or the unpacked samples, of a folder; root may also be one tar or a brace pattern.

    Raises DataError without samples, for a compressed or damaged tar and for links that leave the root.
    """
    extra: Counter[str] = Counter()
    folder, files = _files(root, extra)
    tars = [path for path in files if path.lower().endswith(".tar")]
    samples = _Samples(extra)
    for tar, split in zip(tars, splits_of(tars), strict=True):
        with Tar(folder / tar) as opened:
            samples.add(_members(opened, tar, extra), tar, "query" if split == "test" else split)
    if not tars:
        samples.add(_unpacked(folder, files), "", "")
    extra[FAILED] += sum(_failures(folder / path) for path in files if _is_summary(path))
    items, classes = samples.items()
    if not items:
        seen = f"; other members: {', '.join(sorted(samples.others)[:5])}" if samples.others else ""
        what = f"no sample with a photo or a caption in {len(tars)} tars" if tars else "no tar and no samples"
        seen += f"; {extra[LEAVING]} {LEAVING}" if extra[LEAVING] else ""
        raise DataError(what + seen, root, "members are named 0001.jpg, 0001.txt, 0001.json, 0001.cls")
    languages = sorted({lang for item in items for lang in item.texts})
    found = report(items, classes, languages, extra)
    return ImageTextDataset("webdataset", folder, items, classes, "labels" if classes else "pairs", found)


def _files(root: Path, extra: Counter[str]) -> tuple[Path, list[str]]:
    """The folder of the data set, and the paths of its files below it."""
    if is_pattern(root):
        folder, files = expand(root)
        folder = type(root)(folder)
    elif root.is_file():
        folder, files = type(root)(os.path.realpath(root)).parent, [os.path.realpath(root).rpartition(os.sep)[2]]
    else:
        folder, files = root, files_below(root, extra)
    for path in files:
        if path.lower().endswith(COMPRESSED):
            refuse_compressed(folder / path)
    return folder, files


def _members(tar: Tar, path: str, extra: Counter[str]) -> Iterator[Member]:
    def content(part: Slice) -> bytes | None:
        return tar.read(part) if part.size <= MAX_TEXT else None

    for name, part in tar.members(extra):
        yield name, part.within(path), partial(content, part)


def _unpacked(folder: Path, files: list[str]) -> Iterator[Member]:
    def content(path: Path) -> bytes | None:
        return path.read_bytes() if path.stat().st_size <= MAX_TEXT else None

    for path in files:
        if not path.endswith(".parquet") and not _is_summary(path):
            yield path, path, partial(content, folder / path)


def _is_summary(path: str) -> bool:
    """Whether img2dataset wrote this file beside a shard to count its downloads."""
    return _STATS.fullmatch(path.rpartition("/")[2]) is not None


def _failures(path: Path) -> int:
    """Downloads that failed by a summary of img2dataset, which does not write them into tars or folders."""
    try:
        counts = json.loads(path.read_bytes())
        return sum(max(0, int(counts[key])) for key in ("failed_to_download", "failed_to_resize"))
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return 0


@lru_cache(4096)
def _kind(suffix: str) -> tuple[str, str]:
    """Kind of a member by all that follows the first dot of its name, and its language."""
    suffix = suffix.lower()
    if "." + suffix in PHOTO_SUFFIXES:
        return "photo", ""
    if text := _TEXT.fullmatch(suffix):
        return "text", text[1] or DEFAULT
    return (suffix if suffix in ("json", "cls") else ""), ""


@lru_cache(4096)
def _fields(names: tuple[str, ...]) -> tuple[dict[str, list[int]], list[int]]:
    """Fields of captions by language, and fields of labels, by number, of an object with these names."""
    plain = [clean_text(name).casefold() for name in names]
    labels = [at for at, name in enumerate(plain) if name in NAMES["labels"]]
    return caption_columns(plain, set(labels)), labels


class _Sample:
    """A sample while its members are read: what its texts, its .json and its .cls say."""

    __slots__ = ("classes", "failed", "image", "labels", "own", "texts", "whole")

    def __init__(self) -> None:
        self.image: str | None = None
        self.texts: dict[str, list[str]] = {}  # of .txt
        self.whole: dict[str, str] = {}  # the same as one caption
        self.own: dict[str, list[str]] = {}  # of .json
        self.labels: tuple[str, ...] = ()  # of .json
        self.classes: tuple[str, ...] = ()  # of .cls
        self.failed = False

    def captions(self) -> dict[str, tuple[str, ...]]:
        """Captions by language. Lines that .json knows as one caption are one."""
        if not self.texts:
            return {lang: tuple(own) for lang, own in sorted(self.own.items())}
        for lang, whole in self.whole.items():
            if whole in self.own.get(lang, ()):
                self.texts[lang] = [whole]
        return {lang: tuple(texts) for lang, texts in sorted(self.texts.items())}


class _Samples:
    """Samples of all tars. others: suffixes of the members that are not used."""

    def __init__(self, extra: Counter[str]) -> None:
        self.extra, self.others = extra, Counter[str]()
        self._items: list[tuple[str, str, Item]] = []  # tar and split of an item, whose labels are numbers of _met
        self._met: defaultdict[str, int] = defaultdict(lambda: len(self._met))
        self._same: dict[Any, Any] = {}

    def add(self, members: Iterator[Member], tar: str, split: str) -> None:
        """Join the members of a tar to samples, whether or not those of a sample are adjacent."""
        samples: dict[str, _Sample] = {}
        for name, place, content in members:
            folder, slash, base = name.rpartition("/")
            stem, _, suffix = base.partition(".")
            kind, lang = _kind(suffix)
            if not kind or not stem.strip():
                self.others[f".{suffix}"[:20]] += 1
                continue
            key = composed(folder + slash + stem)
            sample = samples.get(key) or samples.setdefault(key, _Sample())
            if kind != "photo":
                self._read(sample, kind, lang, content())
            elif sample.image is None:
                sample.image = place
            else:
                self.extra["further photos of a sample, not used"] += 1
        for key in list(samples):  # a sample is let go as soon as it is an item
            if item := self._item(key, samples.pop(key)):
                self._items.append((tar, split, item))

    def _read(self, sample: _Sample, kind: str, lang: str, content: bytes | None) -> None:
        if content is None:
            self.extra[f".{kind} members that are too large"] += 1
        elif kind == "json":
            self._read_json(sample, content)
        elif kind == "cls":
            sample.classes = tuple(filter(None, [clean_label(decode(content))]))
        elif captions := [text for line in lines_of(content) if (text := clean_text(line))]:
            sample.texts.setdefault(sys.intern(lang), []).extend(captions)
            if len(captions) > 1:
                sample.whole[lang] = clean_text(decode(content))

    def _read_json(self, sample: _Sample, content: bytes) -> None:
        try:
            row = _DECODE(decode(content))
            if not isinstance(row, dict):
                raise ValueError
        except (ValueError, RecursionError):
            self.extra[".json members that cannot be read"] += 1
            return
        sample.failed = row.keys() >= DOWNLOAD and row["status"] != "success"
        (texts, labels), values = _fields(tuple(row)), list(row.values())
        for lang, fields in texts.items():
            if captions := [text for at in fields for text in map(clean_text, self._strings(values[at])) if text]:
                sample.own[sys.intern(lang)] = captions
        sample.labels = tuple(
            label for at in labels for text in self._strings(values[at]) if (label := clean_label(text))
        )

    def _strings(self, value: Any) -> list[str]:
        try:
            return strings(value, as_list=True)
        except ValueError:
            self.extra["fields of .json with an object, not used"] += 1
            return []

    def _item(self, key: str, sample: _Sample) -> Item | None:
        """The item of a sample, None if it is left out."""
        texts = sample.captions()
        if sample.failed or not (sample.image or texts):
            self.extra[FAILED if sample.failed else LEFT_OUT] += 1
            return None
        labels = tuple(self._met[label] for label in dict.fromkeys(sample.classes or sample.labels))
        return Item(key, sample.image, texts, self._same.setdefault(labels, labels))

    def items(self) -> tuple[tuple[Item, ...], tuple[str, ...]]:
        """All items with their final ids, labels and roles, and the classes."""
        for suffix, count in self.others.most_common(5):
            self.extra[f"members {suffix}, not used"] = count
        classes = tuple(sorted(self._met))
        place = {self._met[label]: n for n, label in enumerate(classes)}
        sort = {labels: tuple(sorted(place[n] for n in labels)) for labels in self._same}
        repeated = {key for key, n in Counter(item.id for _, _, item in self._items).items() if n > 1}
        if repeated:
            self.extra["keys that several tars have"] = len(repeated)
        roles = {split: roles_of(split, bool(classes)) for _, split, _ in self._items}
        items = (
            Item(
                f"{tar}/{old.id}" if old.id in repeated else old.id,
                old.image,
                old.texts,
                sort[old.labels],
                roles[split],
            )
            for tar, split, old in self._items
        )
        return tuple(items), classes
