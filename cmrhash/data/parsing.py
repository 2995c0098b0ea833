"""What the readers share: bytes to text, folders to files, and the counts that the user reads."""

from __future__ import annotations

import codecs
import html
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from cmrhash.data.items import Item, clean_text, common_missing, resolve_image
from cmrhash.errors import DataError

IMAGE_SUFFIXES = (".jpg", ".jpeg")
FOREIGN = "files that are none of the data set's"

_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
    (b"<\0", "utf-16-le"),  # XML without a byte order mark (its appendix F)
    (b"\0<", "utf-16-be"),
)
# One byte a letter. Latin-1 is not among them: as on the web, it stands for what Windows wrote.
_DECLARED = re.compile(
    rb"""<\?xml[^>]{1,80}\bencoding=["'](iso-8859-(?!1\b)\d+|windows-\d+|koi8-[ru])["']""", re.IGNORECASE
)


def decode(raw: bytes) -> str:
    """Any bytes as text: in the encoding of the byte order mark, else UTF-8, else what an XML declaration says, else
    what Windows wrote.
    """
    marked = [encoding for bom, encoding in _MARKS if raw.startswith(bom)]
    declared = [found[1].decode() for found in [_DECLARED.match(raw)] if found]
    for encoding in (*marked, "utf-8", *declared, "cp1252"):
        try:
            return raw.decode(encoding)
        except (UnicodeDecodeError, LookupError):  # the latter for a number that no encoding has
            continue
    return raw.decode("latin-1")


def text_between(raw: bytes, opening: re.Pattern[str], end: re.Pattern[str]) -> str:
    """The cleaned text from the first ``opening`` to the next ``end`` (or the end of it all), "" without an opening.

    Takes any bytes: what these archives call XML often is none.
    """
    text = decode(raw)
    start = opening.search(text)
    if not start:
        return ""
    stop = end.search(text, start.end())
    return clean_text(html.unescape(text[start.end() : stop.start() if stop else len(text)]))


def read_lines(path: Path) -> list[str]:
    """The lines of a text file, each decoded on its own, so that one bad byte spoils one line.

    Only line feeds (and carriage returns before them) end a line: captions may hold the other breaks of Unicode.
    """
    raw = path.read_bytes()
    if any(raw.startswith(bom) for bom, _ in _MARKS):
        lines = decode(raw).split("\n")
    else:
        lines = [decode(line) for line in raw.split(b"\n")]
    if not lines[-1]:
        lines.pop()
    return [line.removesuffix("\r") for line in lines]


def unquoted(text: str) -> str:
    """The text of a CSV field: its quotes belong to the file, doubled ones to the text."""
    text = text.strip()
    quoted = len(text) > 1 and text[0] == text[-1] == '"' and '"' not in text[1:-1].replace('""', "")
    return text[1:-1].replace('""', '"') if quoted else text


def subfolders(folder: Path) -> list[Path]:
    """The folders in a folder, sorted, without hidden ones."""
    with os.scandir(folder) as entries:
        return sorted(Path(e.path) for e in entries if not e.name.startswith(".") and _holds(e.is_dir))


def _holds(question: Callable[[], bool]) -> bool:
    """The answer of a directory entry: a link to itself, which has none, is neither file nor folder."""
    try:
        return question()
    except OSError:
        return False


def below(root: Path, path: str | Path) -> str:
    """The path from the root on, with "/" between folders."""
    return os.path.relpath(path, root).replace(os.sep, "/")


def need_folder(root: Path, *names: str) -> Path:
    """The first of these folders that is there. Raises DataError if none is, or it is a link out of the root."""
    if not root.is_dir():
        raise DataError("no such folder", root, "give the data set's folder")
    for name in names:
        if (root / name).is_dir():
            return resolve_image(root, name)
    raise DataError(f"no folder {' or '.join(repr(name) for name in names)}", root, "unpack the data set there")


def need_file(root: Path, *names: str) -> Path:
    """The first of these files that is there. Raises DataError if none is."""
    for name in names:
        if (root / name).is_file():
            return root / name
    raise DataError(f"no file {' or '.join(repr(name) for name in names)}", root, "put the data set's files there")


def files_by_stem(root: Path, folder: Path, suffixes: tuple[str, ...], extra: Counter[str]) -> dict[str, str]:
    """The files of a kind in a folder: name without suffix -> path below the root, sorted. Counts the others.

    Raises DataError for two files of one stem, and for a link that leaves the root.
    """
    inside = below(root, folder)
    resolve_image(root, inside)
    with os.scandir(folder) as entries:
        names = sorted((e.name, e.is_symlink()) for e in entries if _holds(e.is_file))
    files: dict[str, str] = {}
    for name, linked in names:
        stem, suffix = os.path.splitext(name)
        path = name if inside == "." else f"{inside}/{name}"
        if suffix.lower() not in suffixes or not stem.isprintable() or "\\" in stem:
            extra[FOREIGN] += 1
        elif stem in files:
            raise DataError(f"two files for '{stem}'", f"{files[stem]} and {path}", "remove one of them")
        else:
            files[stem] = path
            if linked:
                resolve_image(root, path)
    return files


def report(
    items: tuple[Item, ...], classes: tuple[str, ...], languages: Iterable[str], extra: Mapping[str, int]
) -> dict[str, int]:
    """What was found, always; what was missing or odd, only if it was. Labels only where there are classes."""
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
