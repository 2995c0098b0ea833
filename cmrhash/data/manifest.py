"""The manifest: one JSON object a line. It is the format of a user's own data, and that of ``items.jsonl`` in the
cache, so that an extracted data set can itself be read as one.

    {"id": "17", "image": "images/17.jpg", "texts": {"en": ["..."], "de": ["..."]}, "labels": ["dog"],
     "splits": ["train", "database"]}

``labels`` and ``splits`` may be left out; then relevance is by pairs, and the roles are drawn once from a seed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from cmrhash.data.dataset import (
    ROLES,
    ImageTextDataset,
    Item,
    check,
    clean_text,
    common_missing,
    resolve_image,
)
from cmrhash.errors import DamagedError, DataError, StaleError, UsageError
from cmrhash.files import read_json, write_bytes, write_json
from cmrhash.recipe import refuse_difference

MANIFEST = "manifest.jsonl"  # a user's
ITEMS, ABOUT = "items.jsonl", "dataset.json"  # ours: the items, and what is said of them as a whole
FIELDS = ("id", "image", "texts", "labels", "splits")
VERSION = 1


def read(root: Path) -> ImageTextDataset:
    """Read ``root/manifest.jsonl``, or a folder of the cache; images lie below the root (of the original data).

    Raises DataError that names the line for anything that is not the format.
    """
    if (root / ABOUT).is_file():
        return replace(load(root), name="manifest")
    path = root / MANIFEST
    if not path.is_file():
        raise DataError(f"no {MANIFEST}", root, "write one JSON object a line, or check --root")
    rows = list(_rows(path))
    classes = tuple(sorted({label for row in rows for label in row["labels"]}))
    number = {label: n for n, label in enumerate(classes)}
    items = tuple(_item(row, number) for row in rows)
    for item in items:
        if item.image:
            resolve_image(root, item.image)
    roles = [bool(item.splits) for item in items]
    if any(roles) and not all(roles):
        raise DataError(f"item '{items[roles.index(False)].id}' has no splits, others have", path, "give all, or none")
    dataset = ImageTextDataset("manifest", root, items, classes, relevance="labels" if classes else "pairs")
    return replace(dataset, found={"items": len(items), **common_missing(items, dataset.languages)})


def _rows(path: Path) -> Iterable[dict[str, Any]]:
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                yield _row(json.loads(line.decode("utf-8-sig")))
            except (ValueError, RecursionError) as error:
                raise DataError(f"line {number} is not a manifest entry ({error})", path, "mend that line") from None


def _row(raw: Any) -> dict[str, Any]:
    """The entry with every field in its place and of its type; ValueError says what is wrong."""
    if not isinstance(raw, dict):
        raise ValueError("not a JSON object")
    for key in raw.keys() - FIELDS:  # fields of one's own are welcome, slips of the pen are not
        if near := get_close_matches(key, FIELDS, 1, 0.8):
            raise ValueError(f"unknown field '{key}', did you mean '{near[0]}'?")
    ident = raw.get("id")
    if isinstance(ident, int) and not isinstance(ident, bool):
        ident = str(ident)
    if not isinstance(ident, str) or not ident.strip() or not ident.isprintable():
        raise ValueError("'id' must be a printable string")
    image = raw.get("image")
    if not (image is None or (isinstance(image, str) and image and "\0" not in image)):
        raise ValueError("'image' must be a path or null")
    texts = raw.get("texts") or {}
    if not isinstance(texts, dict):
        raise ValueError("'texts' must map a language to captions")
    labels = [str(label) for label in _strings("labels", raw.get("labels"), int)]
    splits = frozenset(_strings("splits", raw.get("splits")))
    if not splits <= set(ROLES):
        raise ValueError(f"splits must be out of {', '.join(ROLES)}, found {', '.join(sorted(splits - set(ROLES)))}")
    captions = {_language(lang): _captions(lang, value) for lang, value in texts.items()}
    return {"id": ident, "image": image, "texts": captions, "labels": labels, "splits": splits}


def _strings(key: str, value: Any, *also: type) -> list[Any]:
    value = [] if value is None else value
    if not isinstance(value, list) or not all(isinstance(v, (str, *also)) for v in value):
        raise ValueError(f"'{key}' must be a list of strings")
    return value


def _language(lang: str) -> str:
    if not (lang.isascii() and lang.replace("-", "").replace("_", "").isalnum()):
        raise ValueError(f"'{lang}' is not a language code")
    return lang


def _captions(lang: str, value: Any) -> tuple[str, ...]:
    value = [value] if isinstance(value, str) else value
    cleaned = (clean_text(text) for text in _strings(f"texts.{lang}", value))
    return tuple(text for text in cleaned if text)


def _item(row: dict[str, Any], number: dict[str, int]) -> Item:
    labels = tuple(sorted({number[label] for label in row["labels"]}))
    texts = {lang: captions for lang, captions in sorted(row["texts"].items()) if captions}
    return Item(row["id"], row["image"], texts, labels, row["splits"])


def dump(dataset: ImageTextDataset) -> bytes:
    """The data set's items in the manifest format, the same bytes for the same items."""
    lines = []
    for item in dataset.items:
        entry = {
            "id": item.id,
            "image": item.image,
            "texts": {lang: list(texts) for lang, texts in sorted(item.texts.items())},
            "labels": [dataset.classes[label] for label in item.labels],
            "splits": [role for role in ROLES if role in item.splits],
        }
        lines.append(json.dumps(entry, ensure_ascii=False))
    return ("\n".join(lines) + "\n").encode(errors="backslashreplace")  # of a lone surrogate: its JSON escape


def store(dataset: ImageTextDataset, folder: Path) -> None:
    """Write ``items.jsonl`` and ``dataset.json`` into the folder of the cache, each in one move."""
    items = dump(dataset)
    about = {
        "version": VERSION,
        "name": dataset.name,
        "root": str(dataset.root.resolve()),
        "relevance": dataset.relevance,
        "classes": list(dataset.classes),
        "split_seed": dataset.split_seed,
        "val_drawn": dataset.val_drawn,
        "found": dict(dataset.found),
        "items_sha256": hashlib.sha256(items).hexdigest(),
    }
    write_bytes(folder / ITEMS, items)
    write_json(folder / ABOUT, about)


def keep(dataset: ImageTextDataset, folder: Path, overwrite: bool) -> ImageTextDataset:
    """Write the items into the cache once; later runs must bring the same ones (the folder itself may have moved)."""
    if (folder / ABOUT).exists() and not overwrite:
        stored = load(folder)
        for field_name in ("split_seed", "relevance", "classes"):
            made, asked = ({field_name: getattr(d, field_name)} for d in (stored, dataset))
            refuse_difference(made, asked, folder, f"data set '{dataset.name}'")
        for old, new in zip(stored.items, dataset.items, strict=False):
            if old != new:
                raise StaleError(f"item '{new.id}' differs from the extracted '{old.id}'", folder, "use --overwrite")
        if len(stored.items) != len(dataset.items):
            what = f"{len(stored.items)} items are extracted, the data set has {len(dataset.items)}"
            raise StaleError(what, folder, "use --overwrite, or another --name")
        if stored.root == dataset.root.resolve():
            return dataset
    store(dataset, folder)
    return dataset


def load(folder: Path) -> ImageTextDataset:
    """Read what ``store`` wrote.

    Raises StaleError for a newer version, DamagedError if the items are not the ones that were stored.
    """
    about_path, items_path = folder / ABOUT, folder / ITEMS
    again = "delete it and run cmrhash extract again"
    for path in (about_path, items_path):
        if not path.is_file():
            raise DamagedError("incomplete data set folder", path, "run cmrhash extract again")
    about, content = read_json(about_path, again), items_path.read_bytes()
    version, digest = about["version"], about["items_sha256"]
    if version != VERSION:
        fix = f"this cmrhash reads version {VERSION}; upgrade it, or extract again"
        raise StaleError(f"data set format version {version}", about_path, fix)
    if hashlib.sha256(content).hexdigest() != digest:
        raise DamagedError("not the items that were stored", items_path, "delete the folder's .json* and extract again")
    try:
        number = {label: n for n, label in enumerate(about["classes"])}
        dataset = ImageTextDataset(
            about["name"],
            Path(about["root"]),
            tuple(_item(row, number) for row in _rows(items_path)),
            tuple(about["classes"]),
            about["relevance"],
            about["found"],
            about["split_seed"],
            digest,
            val_drawn=about["val_drawn"],
        )
    except (KeyError, TypeError) as error:
        raise DamagedError(f"unreadable ({error})", about_path, again) from None
    return check(dataset)


def open_extracted(cache: Path, name: str | None) -> tuple[ImageTextDataset, Path]:
    """The extracted data set of that name and its folder; without a name, the only one that the cache holds."""
    held = sorted(path.parent.name for path in cache.glob(f"*/{ABOUT}")) if cache.is_dir() else []
    if name is None:
        if not held:
            raise UsageError("no extracted data set", cache, "run cmrhash extract first")
        if len(held) > 1:
            raise UsageError(f"the cache holds {', '.join(held)}", cache, "say which one with --dataset")
        name = held[0]
    if name not in held:
        near = get_close_matches(name, held, 1)
        what = f"no extracted data set '{name}' (there: {', '.join(held) or 'none'})"
        raise UsageError(what, cache, f"did you mean {near[0]}?" if near else "run cmrhash extract first")
    return load(cache / name), cache / name
