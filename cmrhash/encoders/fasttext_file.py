"""Models of fastText (.bin): vectors of words, and of other words from their n-grams of characters.

    int32 magic, version       int32 dim ... lr_update_rate (12 numbers), float64 t
    int32 words + labels, words, labels; int64 tokens, pruned n-grams (-1: none is pruned)
    entries: word, NUL, int64 count, int8 type (0 word, 1 label); then the pruned n-grams, two int32 each
    bool quantised; int64 rows, columns; float32 rows of all words, then of the buckets of n-grams

The vector of a word is the mean of its own row and of the rows of its n-grams (Bojanowski et al., TACL 2017). This is
the layout of fastText's ``saveModel``, version 12, in little-endian byte order.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cmrhash.errors import EncoderError

MAGIC = struct.pack("<i", 793712314)
_VERSIONS = (11, 12)
_HEAD, _COUNTS, _MATRIX = struct.Struct("<4si12id"), struct.Struct("<3i2q"), struct.Struct("<?2q")
_SUPERVISED = 3  # model; in version 11 such a model uses no n-grams
_ENTRY = 10  # bytes of the shortest entry: NUL, count and type
_LONGEST = 1 << 16  # bytes of a word
AGAIN = "get the file again"


@dataclass(frozen=True)
class _Model:
    """A model whose rows stay in the file. ids: row of each wanted word; rows: (R, D) float32."""

    words: int
    bucket: int
    shortest: int
    longest: int
    pruned: dict[int, int] | None
    ids: dict[str, int]
    rows: NDArray[np.float32]

    def vector(self, word: str) -> NDArray[np.float32] | None:
        """(D,) float32 mean of the rows of a word; None for a word with neither an own row nor n-grams."""
        own = [self.ids[word]] if word in self.ids else []
        at = own + [row for number in self._buckets(word) if (row := self._row(number)) is not None]
        return self.rows[at].sum(0) * np.float32(1 / len(at)) if at else None

    def _buckets(self, word: str) -> list[int]:
        return (
            [bucket_of(each, self.bucket) for each in ngrams(word, self.shortest, self.longest)] if self.bucket else []
        )

    def _row(self, number: int) -> int | None:
        if self.pruned is not None:
            if number not in self.pruned:
                return None
            number = self.pruned[number]
        return self.words + number


def read_fasttext(path: Path, wanted: AbstractSet[str]) -> dict[str, NDArray[np.float32]]:
    """Word -> (D,) float32 for the wanted words.

    A word that the model does not know gets the mean of its n-grams, unless the model knows it in lower case. Raises
    EncoderError for a file that is truncated, quantised, or of another version.
    """
    with path.open("rb") as file:
        try:
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                model = _open(path, content, wanted)
        except (struct.error, ValueError):  # fewer bytes than a header has
            raise _truncated(path) from None
    found: dict[str, NDArray[np.float32]] = {}
    for word in wanted:
        if word not in model.ids and word.lower() in model.ids:
            continue
        vector = model.vector(word)
        if vector is not None:
            if not np.isfinite(vector).all():
                raise EncoderError(f"the vector of '{word[:40]}' is not finite", path, AGAIN)
            found[word] = vector
    return found


def _open(path: Path, content: mmap.mmap, wanted: AbstractSet[str]) -> _Model:
    _, version, dim, *_, model, bucket, shortest, longest, _, _ = _HEAD.unpack_from(content)
    size, words, labels, _, pruned_count = _COUNTS.unpack_from(content, _HEAD.size)
    if version not in _VERSIONS:
        raise EncoderError(f"version {version} of fastText's format", path, "save the model with fastText 0.2 or later")
    if dim < 1 or min(words, labels, bucket) < 0 or size != words + labels or pruned_count < -1:
        raise EncoderError("the header is not fastText's", path, AGAIN)
    if size * _ENTRY + max(pruned_count, 0) * 8 > len(content):
        raise _truncated(path)
    ids, at = _ids(path, content, size, words, wanted)
    pruned = None if pruned_count < 0 else _pruned(path, content, pruned_count, at)
    at += max(pruned_count, 0) * 8
    quantised, rows, columns = _MATRIX.unpack_from(content, at)
    if quantised:
        fix = "give the .bin file that was not quantised, or its vectors as text (.vec)"
        raise EncoderError("a quantised model of fastText (.ftz)", path, fix)
    at += _MATRIX.size
    if version == _VERSIONS[0] and model == _SUPERVISED:
        longest = 0
    most = max(pruned.values(), default=-1) + 1 if pruned is not None else bucket if longest > 0 else 0
    if columns != dim or rows < words + most or (pruned and min(pruned.values()) < 0):
        raise EncoderError(f"{rows} x {columns} numbers for {words} words of {dim}", path, AGAIN)
    if rows * columns * 4 > len(content) - at:
        raise _truncated(path)
    matrix = np.memmap(path, "<f4", "r", offset=at, shape=(rows, columns))
    return _Model(words, bucket, shortest, longest, pruned, ids, matrix)


def _ids(path: Path, content: mmap.mmap, size: int, words: int, wanted: AbstractSet[str]) -> tuple[dict[str, int], int]:
    """The row of each wanted word of the dictionary, and the offset at which the dictionary ends."""
    keys = {word.encode(): word for word in wanted}
    ids: dict[str, int] = {}
    at = _HEAD.size + _COUNTS.size
    for row in range(size):
        end = content.find(b"\0", at, at + _LONGEST)
        if end < 0 or end + _ENTRY > len(content):
            raise _truncated(path)
        if row < words and (word := keys.get(content[at:end])) is not None:
            ids.setdefault(word, row)
        at = end + _ENTRY
    return ids, at


def _pruned(path: Path, content: mmap.mmap, count: int, at: int) -> dict[int, int]:
    """Bucket -> row of the n-grams that a pruned model keeps."""
    if at + count * 8 > len(content):
        raise _truncated(path)
    pairs = np.frombuffer(content[at : at + count * 8], "<i4").reshape(-1, 2)
    return dict(pairs.tolist())


def _truncated(path: Path) -> EncoderError:
    return EncoderError("the file ends before its last vector", path, f"it is truncated: {AGAIN}")


def ngrams(word: str, shortest: int, longest: int) -> list[str]:
    """N-grams of ``shortest`` to ``longest`` characters of "<word>", without "<" and ">" alone.

    >>> ngrams("ab", 2, 3)
    ['<a', '<ab', 'ab', 'ab>', 'b>']
    """
    text = f"<{word}>"
    found = []
    for start in range(len(text)):
        for end in range(start + max(shortest, 1), min(start + longest, len(text)) + 1):
            if end - start > 1 or 0 < start < len(text) - 1:
                found.append(text[start:end])
    return found


def bucket_of(ngram: str, bucket: int) -> int:
    """Bucket of an n-gram: 32-bit FNV-1a of its bytes, which fastText extends with their sign."""
    value = 2166136261
    for byte in ngram.encode():
        value = ((value ^ (byte if byte < 128 else byte | 0xFFFFFF00)) * 16777619) & 0xFFFFFFFF
    return value % bucket
