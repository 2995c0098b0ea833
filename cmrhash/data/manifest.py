"""The manifest: items as one JSON object per line.

Users describe their own data in this format. The cache stores ``items.jsonl`` in it, so that an extracted data set can
be read like a manifest.

    {"id": "17", "image": "images/17.jpg", "texts": {"en": ["..."], "de": ["..."]}, "labels": ["dog"],
     "splits": ["train", "database"]}

``labels`` and ``splits`` are optional. Without labels relevance is by pairs; without splits roles are drawn from a
seed.
"""

from __future__ import annotations

import codecs
import contextlib
import hashlib
import json
import os
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

from cmrhash.data import description, item_blocks
from cmrhash.data.cleaning import check_language, clean_label, clean_language, clean_text, is_printable
from cmrhash.data.description import BROUGHT, LATER, ids_of, joined
from cmrhash.data.items import (
    ROLES,
    ImagesBelow,
    ImageTextDataset,
    Item,
    LinkedRoot,
    also_of,
    check,
    root_of,
)
from cmrhash.data.named_photos import Photos, as_path, count_photos
from cmrhash.data.parsing import report, unique_keys
from cmrhash.data.photo_files import find_photo
from cmrhash.data.switch import settle
from cmrhash.errors import DamagedError, DataError, StaleError, UsageError, did_you_mean, some_of
from cmrhash.storage import staged
from cmrhash.storage.files import locked, make_folder, read_json, write_bytes, write_json

MANIFEST = "manifest.jsonl"  # written by users
ITEMS, ABOUT = "items.jsonl", "dataset.json"  # in the cache: the items, and the description of the data set
BLOCKS = "items.blocks"  # a copy of the items that is read faster; caches of version 0.1 have none
QUARANTINE = "quarantine.jsonl"  # unusable files, with reasons
FIELDS = ("id", "image", "texts", "labels", "splits")
LINKS = "follow_links"  # in dataset.json
ALSO = "also"  # in dataset.json: folders elsewhere with added photos
VERSION = 1
AGAIN = "delete it and run `extract` again"


def read(root: Path) -> ImageTextDataset:
    """Read ``root/manifest.jsonl``, or a data set's folder in the cache.

    Images are below the root (of the original data, for a folder of the cache). Raises DataError that names the line of
    an invalid entry.
    """
    if (root / ABOUT).is_file():
        stored = load(root)
        return replace(
            stored, name="manifest", root=root_of(stored.root, isinstance(root, LinkedRoot), also_of(stored.root))
        )
    path = root / MANIFEST
    if not path.is_file():
        raise DataError(f"no {MANIFEST}", root, "write one JSON object per line, or check `root`")
    met: defaultdict[str, int] = defaultdict(lambda: len(met))  # label -> number, in order of appearance
    same: dict[Any, Any] = {}
    read = [_item(row, met, same) for row in _rows(path)]
    classes = tuple(sorted(met))
    place = {met[label]: n for n, label in enumerate(classes)}
    sort = {labels: tuple(sorted(place[n] for n in labels)) for labels in {item.labels for item in read}}
    items = tuple(replace(item, labels=sort[item.labels]) for item in read)
    extra: Counter[str] = Counter()
    items = tuple(_with_photos(root, items, extra))
    roles = [bool(item.splits) for item in items]
    if any(roles) and not all(roles):
        raise DataError(
            f"item '{items[roles.index(False)].id}' has no splits, other items have",
            path,
            "give splits to all items, or to none",
        )
    dataset = ImageTextDataset("manifest", root, items, classes, relevance="labels" if classes else "pairs")
    return replace(dataset, found=report(items, classes, dataset.languages, extra))


def _with_photos(root: Path, items: Iterable[Item], extra: Counter[str]) -> Iterator[Item]:
    """Items with the paths of their photos, which may have similar names; those not found keep what is written."""
    below, photos, missing, similar = ImagesBelow(root), Photos(root), list[str](), 0
    for item in items:
        image = item.image
        if image and not os.path.isfile(_file(root, image, below)):
            path, near = photos.find(as_path(image), anywhere=True)
            similar += near
            if path is None:
                missing.append(image)
            item = replace(item, image=path or image.replace("\\", "/"))
        yield item
    count_photos(missing, similar, extra)


def _file(root: Path, image: str, below: ImagesBelow) -> Path | str:
    """The file in which a photo is; "" for a path with other separators."""
    if "@" in image:
        return find_photo(root, image).path
    return "" if "\\" in image else below.check(image)


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    with path.open("rb") as lines:
        if lines.peek(2)[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
            raise DataError("the file is in UTF-16, as PowerShell writes it", path, "save it as UTF-8")
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                yield _row(json.loads(line.decode("utf-8-sig"), object_pairs_hook=unique_keys))
            except (ValueError, RecursionError) as error:
                raise DataError(f"line {number} is not a manifest entry ({error})", path, "fix this line") from None


def _row(raw: Any) -> dict[str, Any]:
    """Check the types of an entry and fill in missing fields. Raises ValueError."""
    if not isinstance(raw, dict):
        raise ValueError("not a JSON object")
    for key in raw.keys() - FIELDS:  # unknown fields are allowed unless they look misspelt
        if near := did_you_mean(key, FIELDS, 0.8):
            raise ValueError(f"unknown field '{key}', {near}")
    ident = raw.get("id")
    if isinstance(ident, int) and not isinstance(ident, bool):
        ident = str(ident)
    if not isinstance(ident, str) or not ident.strip() or not is_printable(ident):
        raise ValueError("'id' must be a printable string")
    image = raw.get("image")
    if not (image is None or (isinstance(image, str) and image and "\0" not in image)):
        raise ValueError("'image' must be a path or null")
    texts = raw.get("texts") or {}
    if not isinstance(texts, dict):
        raise ValueError("'texts' must map a language to captions")
    labels = [label for value in _strings("labels", raw.get("labels"), int) if (label := clean_label(str(value)))]
    splits = frozenset(_strings("splits", raw.get("splits")))
    if not splits <= set(ROLES):
        raise ValueError(f"splits must be among {', '.join(ROLES)}, found {', '.join(sorted(splits - set(ROLES)))}")
    captions = dict[str, tuple[str, ...]]()
    for lang, value in texts.items():  # "EN" and "en" are one language
        tag = clean_language(lang)
        captions[tag] = captions.get(tag, ()) + _captions(lang, value)
    return {"id": ident, "image": image, "texts": captions, "labels": labels, "splits": splits}


def _strings(key: str, value: Any, *also: type) -> list[Any]:
    value = [] if value is None else value
    if not isinstance(value, list) or not all(isinstance(v, (str, *also)) for v in value):
        raise ValueError(f"'{key}' must be a list of strings")
    return value


def _captions(lang: str, value: Any) -> tuple[str, ...]:
    value = [value] if isinstance(value, str) else value
    cleaned = (clean_text(text) for text in _strings(f"texts.{lang}", value))
    return tuple(text for text in cleaned if text)


def _item(row: dict[str, Any], number: Mapping[str, int], same: dict[Any, Any]) -> Item:
    """Item of a checked entry.

    same: labels and splits of earlier items; equal ones share one object, because a million items have few distinct
    ones.
    """
    labels = tuple(sorted({number[label] for label in row["labels"]}))
    labels, splits = (same.setdefault(value, value) for value in (labels, row["splits"]))
    texts = {sys.intern(lang): captions for lang, captions in sorted(row["texts"].items()) if captions}
    return Item(row["id"], row["image"], texts, labels, splits)


def dump(dataset: ImageTextDataset) -> Iterator[bytes]:
    """Lines of ``items.jsonl``; equal items give equal bytes."""
    encode = json.JSONEncoder(ensure_ascii=False).encode
    for item in dataset.items:
        line = encode(entry(dataset, item)) + "\n"
        yield line.encode(errors="backslashreplace")  # a lone surrogate becomes its JSON escape


def entry(dataset: ImageTextDataset, item: Item) -> dict[str, Any]:
    """An item as a line of ``items.jsonl``, with the names of its labels."""
    return {
        "id": item.id,
        "image": item.image,
        "texts": {lang: list(texts) for lang, texts in sorted(item.texts.items())},
        "labels": [dataset.classes[label] for label in item.labels],
        "splits": [role for role in ROLES if role in item.splits],
    }


def items_digest(dataset: ImageTextDataset) -> str:
    """sha256 of the ``items.jsonl`` of these items."""
    digest = hashlib.sha256()
    for _ in _digested(dump(dataset), digest):
        pass
    return digest.hexdigest()


def _digested(lines: Iterable[bytes], digest: hashlib._Hash) -> Iterator[bytes]:
    """Pass the lines through and add them to the digest."""
    for line in lines:
        digest.update(line)
        yield line


def store(dataset: ImageTextDataset, folder: Path) -> None:
    """Write items (with their copy in blocks) and description into a folder of the cache, all in one step."""
    digest, blocks = hashlib.sha256(), hashlib.sha256()
    with staged.staged(folder, ABOUT) as aside:
        write_bytes(aside / ITEMS, _digested(dump(dataset), digest))
        write_bytes(aside / BLOCKS, _digested(item_blocks.dump(dataset, digest.hexdigest()), blocks))
        write_json(aside / ABOUT, _about(dataset, digest.hexdigest(), blocks.hexdigest()))


def _about(dataset: ImageTextDataset, items: str, blocks: str) -> dict[str, Any]:
    """Description of a data set. items, blocks: sha256 of its two files."""
    return {
        "version": VERSION,
        "name": dataset.name,
        **_place(dataset),
        "relevance": dataset.relevance,
        "classes": list(dataset.classes),
        "split_seed": dataset.split_seed,
        "val_drawn": dataset.val_drawn,
        **({"added": dataset.added} if dataset.added else {}),
        **joined(dataset),
        **({"chosen": dataset.chosen} if dataset.chosen else {}),
        "found": dict(dataset.found),
        "items_sha256": items,
        "blocks_sha256": blocks,
    }


def _place(dataset: ImageTextDataset) -> dict[str, Any]:
    """Folder of the photos, and, if so, that its links are followed."""
    links = {LINKS: True} if isinstance(dataset.root, LinkedRoot) else {}
    also = {ALSO: [str(folder) for folder in also_of(dataset.root)]} if also_of(dataset.root) else {}
    return {"root": str(dataset.root.resolve()), **links, **also}


def keep(dataset: ImageTextDataset, folder: Path) -> None:
    """Write the items into the cache, unless the same are stored; the folder of the original data may have moved."""
    make_folder(folder)
    with locked(folder / ABOUT, wait=True):  # several processes may share an extraction
        staged.settle(folder)
        if (folder / ABOUT).exists():
            about = read_about(folder)
            place = {key: about[key] for key in ("root", LINKS, ALSO) if key in about}
            ranges = {kind: about[kind] for kind in (LATER, BROUGHT) if kind in about}
            kept = place, ranges, about.get("classes"), about.get("added", 0), about.get("chosen", "")
            asked = _place(dataset), joined(dataset), list(dataset.classes), dataset.added, dataset.chosen
            if kept == asked and about["items_sha256"] == items_digest(dataset):
                return
        store(dataset, folder)


def read_about(folder: Path) -> dict[str, Any]:
    """Read the description of a stored data set, after checking both digests; raises DamagedError, StaleError."""
    with _opened(folder) as (about, _):
        return about


def load(folder: Path) -> ImageTextDataset:
    """Read the data set that ``store`` wrote.

    Raises StaleError for another format version, DamagedError if the items were changed.
    """
    with _opened(folder) as (about, lines), item_blocks.without_garbage_collection():
        try:
            items = _items(folder, about, lines)
            dataset = ImageTextDataset(
                about["name"],
                root_of(Path(about["root"]), about.get(LINKS) is True, map(Path, about.get(ALSO, ()))),
                items,
                tuple(about["classes"]),
                about["relevance"],
                about["found"],
                about["split_seed"],
                about["items_sha256"],
                val_drawn=about["val_drawn"],
                added=about.get("added", 0),
                later=ids_of(items, about.get(LATER, ())),
                brought=ids_of(items, about.get(BROUGHT, ())),
                chosen=str(about.get("chosen", "")),
            )
            return check(dataset)
        except DataError as error:
            raise DamagedError(f"unreadable ({error.what[:120]})", folder / ABOUT, AGAIN) from None
        except (LookupError, TypeError, ValueError, AttributeError, RecursionError) as error:
            raise DamagedError(f"unreadable ({str(error)[:120]})", folder / ABOUT, AGAIN) from None


@contextlib.contextmanager
def _opened(folder: Path) -> Iterator[tuple[dict[str, Any], IO[bytes]]]:
    """Yield the description of the data set and its open items file, after checking both digests."""
    settle(folder)
    staged.settle(folder)
    about_path, items_path = folder / ABOUT, folder / ITEMS
    for path in (about_path, items_path):
        if not path.is_file():
            raise DamagedError("incomplete data set folder", path, "run `extract` again")
    about = read_json(about_path, AGAIN)
    if about.get("version") != VERSION:
        fix = f"this cmrhash reads version {VERSION}; upgrade it, or run `extract` again"
        raise StaleError(f"data set format version {about.get('version')}", about_path, fix)
    try:
        description.check(about)
    except (ValueError, KeyError) as error:
        raise DamagedError(f"unreadable ({str(error)[:120]})", about_path, AGAIN) from None
    with items_path.open("rb") as lines:
        if hashlib.file_digest(lines, "sha256").hexdigest() != about.get("items_sha256"):
            fix = "delete the .json* files of the folder and run `extract` again"
            raise DamagedError("the items were changed after extraction", items_path, fix)
        lines.seek(0)
        yield about, lines


def _items(folder: Path, about: Mapping[str, Any], lines: Iterable[bytes]) -> tuple[Item, ...]:
    """Items of the cache, from their copy in blocks if it is whole."""
    with item_blocks.open_blocks(folder / BLOCKS, about.get("blocks_sha256"), about["items_sha256"]) as blocks:
        return item_blocks.load(blocks, about["classes"]) if blocks else _stored(lines, about["classes"])


def check_blocks(folder: Path) -> None:
    """Raise DamagedError if the copy of the items in blocks was changed; a missing one passes."""
    about, path = read_json(folder / ABOUT, AGAIN), folder / BLOCKS
    with item_blocks.open_blocks(path, about.get("blocks_sha256"), about["items_sha256"]) as blocks:
        if path.exists() and "blocks_sha256" in about and not blocks:
            raise DamagedError(f"{BLOCKS} was changed after extraction", path, f"delete it; {ITEMS} has the same items")


def _stored(lines: Iterable[bytes], classes: Sequence[str]) -> tuple[Item, ...]:
    """Items from the lines that ``store`` wrote; only the types of values are checked.

    Raises KeyError, TypeError, ValueError and others for lines that ``store`` never writes.
    """
    number = {label: n for n, label in enumerate(classes)}
    decode, same, langs = json.JSONDecoder().decode, dict[Any, Any](), dict[str, str]()
    items = []
    for line in lines:
        row = decode(line.decode())
        texts = {}
        for lang, captions in row["texts"].items():
            if lang not in langs:
                langs[lang] = check_language(lang)
            "".join(captions)  # TypeError if one is no string
            texts[langs[lang]] = tuple(_list(captions))
        labels, splits = tuple([number[label] for label in _list(row["labels"])]), frozenset(_list(row["splits"]))
        ident, image = row["id"], row["image"]
        if not isinstance(ident, str) or not (image is None or isinstance(image, str)):
            raise TypeError(f"{ident!r}, {image!r}")
        items.append(Item(ident, image, texts, same.setdefault(labels, labels), same.setdefault(splits, splits)))
    return tuple(items)


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError(f"no list: {value!r}")
    return value


def open_extracted(cache: Path, name: str | None) -> tuple[ImageTextDataset, Path]:
    """Load the extracted data set of that name; return it with its folder.

    name: None means the only data set in the cache. Raises UsageError if the choice is impossible.
    """
    held = sorted(path.parent.name for path in cache.glob(f"*/{ABOUT}")) if cache.is_dir() else []
    if name is None:
        if not held:
            raise UsageError("no extracted data set in this folder", cache, "run `extract` first")
        if len(held) > 1:
            raise UsageError(f"the cache holds several data sets ({some_of(held)})", cache, "choose one with `dataset`")
        name = held[0]
    if name not in held:
        what = f"no extracted data set '{name}' (the cache holds {some_of(held) or 'none'})"
        raise UsageError(what, cache, did_you_mean(name, held) or "run `extract` first")
    return load(cache / name), cache / name
