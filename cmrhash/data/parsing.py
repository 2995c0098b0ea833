"""Parsing shared by the readers: decoding, folders, files, and counts for the user."""

from __future__ import annotations

import codecs
import html
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from cmrhash.data.cleaning import clean_text, is_printable
from cmrhash.data.items import Item, common_missing, resolve_image
from cmrhash.errors import DataError

IMAGE_SUFFIXES = (".jpg", ".jpeg")
FOREIGN = "files that are none of the data set's"
NAMED = 3  # files of a kind that a line names
FAILED = "downloads without success, left out"
DOWNLOAD = frozenset({"key", "status", "error_message"})  # fields of img2dataset; status is "success" or a failure

_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
    (b"<\0", "utf-16-le"),  # XML without a byte order mark (XML 1.0, appendix F)
    (b"\0<", "utf-16-be"),
)
# Single-byte encodings, except Latin-1: as on the web, files that declare it are Windows-1252.
_DECLARED = re.compile(
    rb"""<\?xml[^>]{1,80}\bencoding=["'](iso-8859-(?!1\b)\d+|windows-\d+|koi8-[ru])["']""", re.IGNORECASE
)


def decode(raw: bytes) -> str:
    """Decode bytes to text.

    The encoding is that of the byte order mark, otherwise UTF-8, otherwise the one of an XML declaration, otherwise
    Windows-1252 or Latin-1.
    """
    marked = [encoding for bom, encoding in _MARKS if raw.startswith(bom)]
    declared = [found[1].decode() for found in [_DECLARED.match(raw)] if found]
    for encoding in (*marked, "utf-8", *declared, "cp1252"):
        try:
            return raw.decode(encoding)
        except (UnicodeDecodeError, LookupError):  # LookupError: a declared encoding that does not exist
            continue
    return raw.decode("latin-1")


def text_between(raw: bytes, opening: re.Pattern[str], end: re.Pattern[str]) -> str:
    """Cleaned text between ``opening`` and the next ``end``.

    Empty without an opening; without an end, the text runs to the end of the file. Accepts any bytes, because many
    archives contain invalid XML.
    """
    text = decode(raw)
    start = opening.search(text)
    if not start:
        return ""
    stop = end.search(text, start.end())
    return clean_text(html.unescape(text[start.end() : stop.start() if stop else len(text)]))


def read_lines(path: Path) -> list[str]:
    """Lines of a text file, as ``lines_of``."""
    return lines_of(path.read_bytes())


def lines_of(raw: bytes) -> list[str]:
    """Lines of a text, decoded one by one.

    A bad byte thus spoils one line only. Only line feeds (with or without carriage returns) end a line, because
    captions may contain other Unicode line breaks.
    """
    if any(raw.startswith(bom) for bom, _ in _MARKS):
        lines = decode(raw).split("\n")
    else:
        lines = [decode(line) for line in raw.split(b"\n")]
    if not lines[-1]:
        lines.pop()
    return [line.removesuffix("\r") for line in lines]


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object, as ``object_pairs_hook`` of the json module. Raises ValueError for a repeated key."""
    entries = dict(pairs)
    if len(entries) < len(pairs):
        key = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"key '{clean_text(key)[:40]}' is repeated in an object")
    return entries


def unquoted(text: str) -> str:
    """Text of a CSV field without its outer quotes; doubled quotes become single ones."""
    text = text.strip()
    quoted = len(text) > 1 and text[0] == text[-1] == '"' and '"' not in text[1:-1].replace('""', "")
    return text[1:-1].replace('""', '"') if quoted else text


def subfolders(folder: Path) -> list[Path]:
    """Folders inside a folder, sorted, without hidden ones."""
    with os.scandir(folder) as entries:
        return sorted(Path(e.path) for e in entries if not e.name.startswith(".") and holds(e.is_dir))


def holds(question: Callable[[], bool]) -> bool:
    """Result of a check on a directory entry; False for a link to itself, which raises OSError."""
    try:
        return question()
    except OSError:
        return False


def below(root: Path, path: str | Path) -> str:
    """Path relative to the root, with "/" between folders."""
    return os.path.relpath(path, root).replace(os.sep, "/")


def need_folder(root: Path, *names: str) -> Path:
    """The first of these folders that exists; a name without "/" also in other case.

    Raises DataError if none exists, or if it is a link that leaves the root.
    """
    if not root.is_dir():
        raise DataError("no such folder", root, "give the data set's folder")
    if name := _folder(root, names):
        return resolve_image(root, name)
    fix = _one_below(root, lambda below: bool(_folder(below, names))) or "unpack the data set there"
    raise DataError(f"no folder {' or '.join(repr(name) for name in names)}", root, fix)


def has_folder(root: Path, *names: str) -> bool:
    """Whether ``need_folder`` finds one of these folders."""
    return root.is_dir() and bool(_folder(root, names))


def _folder(root: Path, names: Sequence[str]) -> str:
    """The first of these folders, else the only one with such a name in other case, else ""."""
    wanted = {name.casefold() for name in names}
    exact = (name for name in names if (root / name).is_dir())
    near = (name for name in sorted(os.listdir(root)) if name.casefold() in wanted and (root / name).is_dir())
    return next(exact, None) or next(near, "")


def _one_below(root: Path, has: Callable[[Path], bool]) -> str:
    """ "did you mean DIR?" for a folder inside the root that has what the root lacks, else ""."""
    near = next((one for one in subfolders(root) if holds(partial(has, one))), None) if root.is_dir() else None
    return f"did you mean {near}?" if near else ""


def need_file(root: Path, *names: str) -> Path:
    """The first of these files that exists. Raises DataError if none exists."""
    for name in names:
        if (root / name).is_file():
            return root / name
    fix = _one_below(root, lambda below: any((below / name).is_file() for name in names))
    fix = fix or "put the data set's files there"
    raise DataError(f"no file {' or '.join(repr(name) for name in names)}", root, fix)


def files_by_stem(root: Path, folder: Path, suffixes: tuple[str, ...], extra: Counter[str]) -> dict[str, str]:
    """Files with these suffixes in a folder, sorted: stem -> path below the root.

    extra: counts the other files, and apart those whose name cannot be printed. Raises DataError for two files with
    the same stem, and for a link that leaves the root.
    """
    inside = below(root, folder)
    resolve_image(root, inside)
    with os.scandir(folder) as entries:
        names = sorted((e.name, e.is_symlink()) for e in entries if holds(e.is_file))
    files, unusable = dict[str, str](), list[str]()
    for name, linked in names:
        stem, suffix = os.path.splitext(name)
        path = name if inside == "." else f"{inside}/{name}"
        if suffix.lower() not in suffixes:
            extra[FOREIGN] += 1
        elif not is_printable(stem) or "\\" in stem:
            unusable.append(path)
        elif stem in files:
            raise DataError(f"two files for '{stem}'", f"{files[stem]} and {path}", "remove one of them")
        else:
            files[stem] = path
            if linked:
                resolve_image(root, path)
    count_unusable(unusable, extra)
    return files


def count_unusable(paths: Sequence[str], extra: Counter[str]) -> None:
    """Count paths whose names cannot be ids, since they cannot be printed or have a backslash; names the first ones."""
    if paths:
        first = ", ".join([ascii(path) for path in sorted(paths)[:NAMED]] + ["..."] * (len(paths) > NAMED))
        extra[f"files whose names cannot be used ({first})"] += len(paths)


def report(
    items: tuple[Item, ...], classes: tuple[str, ...], languages: Iterable[str], extra: Mapping[str, int]
) -> dict[str, int]:
    """Counts for the user: items found, and what is missing or odd.

    Counts of missing or odd things appear only above 0, labels only if there are classes.
    """
    languages = list(languages)
    found = {"items": len(items), "images": sum(item.image is not None for item in items)}
    for lang in languages:
        found[f"{lang} texts"] = sum(lang in item.texts for item in items)
    if classes:
        found["labelled items"] = sum(bool(item.labels) for item in items)
        found["classes"] = len(classes)
    missing = common_missing(items, languages)
    if not classes:
        missing.pop("items without a label", None)
    odd = {**extra, "items without an image": found["items"] - found["images"]}
    return found | missing | {what: n for what, n in odd.items() if n}
