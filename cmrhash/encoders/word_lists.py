"""Vocabularies given as a file: a word per line, or a word and its count."""

from __future__ import annotations

import codecs
import unicodedata
from pathlib import Path

from cmrhash.errors import UsageError

MAX_WORDS = 1 << 20
MAX_BYTES = 1 << 26


def read_words(path: Path) -> list[str]:
    """Words of the file in their order, in Unicode's composed form (NFC).

    path: UTF-8 with a word per line, as NUS-WIDE's TagList1k.txt; if all lines have a word and a count, as MIRFlickr's
    common_tags.txt, the counts are left out. Empty lines are passed over. Raises UsageError for another file, and for a
    word that is repeated.
    """
    if not path.is_file():
        raise _unusable("no such file", path, "give a number, or a file with a word per line")
    if path.stat().st_size > MAX_BYTES:
        raise _unusable("the file is too large for a list of words", path, "give a file with a word per line")
    content = path.read_bytes().removeprefix(codecs.BOM_UTF8)
    if b"\0" in content:
        raise _unusable("the file is binary", path, "give a text file with a word per line, in UTF-8")
    lines = {}
    for number, line in enumerate(content.split(b"\n"), 1):
        try:
            word = " ".join(unicodedata.normalize("NFC", line.decode()).split())
        except UnicodeDecodeError:
            raise _unusable(f"line {number} is not UTF-8", path, "save the file as UTF-8") from None
        if word:
            lines[number] = word
    fields = [word.split(" ") for word in lines.values()]
    counted = all(len(each) == 2 and each[1].isdecimal() for each in fields)
    return _unique({number: word.split(" ")[0] if counted else word for number, word in lines.items()}, path)


def _unique(lines: dict[int, str], path: Path) -> list[str]:
    """The words of the lines; raises UsageError for none, too many, and for a word that is repeated."""
    if not 0 < len(lines) <= MAX_WORDS:
        raise _unusable(f"the file has {len(lines)} words", path, f"give 1 to {MAX_WORDS} words, one per line")
    first: dict[str, int] = {}
    for number, word in lines.items():
        if first.setdefault(word, number) != number:
            raise _unusable(f"line {number} repeats '{word[:40]}' of line {first[word]}", path, "remove one of them")
    return list(first)


def _unusable(what: str, path: Path, fix: str) -> UsageError:
    return UsageError(what, path, fix, option="vocabulary")
