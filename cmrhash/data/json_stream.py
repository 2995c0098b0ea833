"""A large JSON object, read member by member: the elements of its lists one at a time."""

from __future__ import annotations

import codecs
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

CHUNK = 1 << 20  # bytes per read
SPACE = " \t\n\r"
BEHIND = (*SPACE, ",", ":", "]", "}")  # what may stand behind a value
Pairs = list[tuple[str, Any]]


def members(path: Path, hook: Callable[[Pairs], dict[str, Any]]) -> Iterator[tuple[str, Any]]:
    """Yield (key, element) for each element of a member that is a list, otherwise (key, value).

    A list begins with (key, []), so that empty ones are seen. hook: as ``object_pairs_hook`` of json. Raises ValueError
    unless the file is one JSON object in UTF-8 whose keys differ.
    """
    with path.open("rb") as file:
        text, met = _Text(file, json.JSONDecoder(object_pairs_hook=hook)), set[str]()
        text.expect("{")
        if text.next() != "}":
            while True:
                key = text.value()
                if not isinstance(key, str):
                    raise ValueError("a key is not a string")
                if key in met:
                    raise ValueError(f"key '{key[:40]}' is repeated in an object")
                met.add(key)
                text.expect(":")
                if text.next() == "[":
                    yield key, []
                    yield from ((key, element) for element in _elements(text))
                else:
                    yield key, text.value()
                if text.next() != ",":
                    break
                text.expect(",")
        text.expect("}")
        if text.next():
            raise ValueError("text behind the object")


def _elements(text: _Text) -> Iterator[Any]:
    text.expect("[")
    if text.next() != "]":
        yield text.value()
        while text.next() == ",":
            text.expect(",")
            yield text.value()
    text.expect("]")


class _Text:
    """Text of a file from a position on; what is behind it is forgotten."""

    def __init__(self, file: BinaryIO, decoder: json.JSONDecoder) -> None:
        self._file, self._decoder = file, decoder
        self._utf8 = codecs.getincrementaldecoder("utf-8-sig")()
        self._text, self._at, self._whole = "", 0, False

    def next(self) -> str:
        """The next character that is no white space, "" at the end."""
        while True:
            while self._at < len(self._text) and self._text[self._at] in SPACE:
                self._at += 1
            if self._at < len(self._text) or self._whole:
                return self._text[self._at : self._at + 1]
            self._read(CHUNK)

    def expect(self, character: str) -> None:
        """Pass over this character; raises ValueError if another is there."""
        if (found := self.next()) != character:
            raise ValueError(f"'{character}' is expected, found '{found}'" if found else "the file ends too early")
        self._at += 1

    def value(self) -> Any:
        """The JSON value that is next; raises ValueError."""
        self.next()
        size = CHUNK
        while True:
            try:
                value, end = self._decoder.raw_decode(self._text, self._at)
            except json.JSONDecodeError:
                if self._whole:
                    raise
            else:
                if self._text[end : end + 1] in BEHIND or self._whole:  # a number at the end of the text may go on
                    self._at = end
                    return value
            self._read(size)
            size *= 2

    def _read(self, size: int) -> None:
        content = self._file.read(size)
        self._whole = not content
        self._text, self._at = self._text[self._at :] + self._utf8.decode(content, final=self._whole), 0
