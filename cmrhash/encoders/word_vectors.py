"""Word vectors: text files of word2vec, GloVe and fastText, models of fastText, or training with gensim."""

from __future__ import annotations

import gzip
import logging
import zlib
from collections.abc import Callable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from cmrhash.encoders.fasttext_file import MAGIC, read_fasttext
from cmrhash.errors import EncoderError, lacking

HEAD = 1 << 16  # bytes that are searched for a NUL byte, the sign of a binary file
AS_TEXT = "give the text format of word2vec, GloVe or fastText: a word and its numbers per line, plain or .gz"
UNPACK = "unpack it with gunzip: its vectors are read where they are in the file"
# Skip-gram with negative sampling (Mikolov et al., NIPS 2013). Captions are few and short, hence many epochs; rare
# words are kept, because their vectors still distinguish captions.
WORD2VEC: dict[str, Any] = {"vector_size": 300, "sg": 1, "window": 5, "negative": 5, "min_count": 1, "epochs": 20}


def read_vectors(path: Path, wanted: AbstractSet[str]) -> dict[str, NDArray[np.float32]]:
    """Word -> (D,) float32 for the wanted words that the file contains; see ``read_fasttext`` for models of fastText.

    Other words are not kept in memory. The first line may be a header "count dim". The last D fields of a line are the
    numbers, since a token may contain spaces (as in GloVe's 840B). A repeated word keeps its first vector.
    Raises EncoderError for a file that is binary, truncated or of another format.
    """
    if _starts(path) == MAGIC:
        return read_fasttext(path, wanted)
    found: dict[str, NDArray[np.float32]] = {}
    keys = {word.encode(): word for word in wanted}
    with _opened(path) as file:
        promised, dim, vectors = None, 0, 0
        for number, line in enumerate(file, 1):
            word, _, rest = line.rstrip(b" \r\n").partition(b" ")
            if not rest and not word:
                continue
            if number == 1 and rest.isdigit() and word.isdigit():
                promised, dim = int(word), int(rest)
                continue
            fields, vectors = rest.count(b" ") + bool(rest), vectors + 1
            vector = None
            if vectors == 1 or (fields == dim and word in keys and keys[word] not in found):
                vector = _numbers(rest)
                if vector is None or fields != (dim or fields):
                    raise _malformed(number, dim, path)
                dim = fields
            if fields < dim:
                raise _malformed(number, dim, path)
            if vector is not None and word in keys:
                found[keys[word]] = vector
    if vectors < (promised or 1):
        raise EncoderError(
            f"the file holds {vectors} of {promised or 'its'} word vectors", path, "it is truncated: get it again"
        )
    return found


def _starts(path: Path) -> bytes:
    """The first bytes of a file, as many as MAGIC has; none without a file."""
    if not path.is_file():
        return b""
    with path.open("rb") as file:
        return file.read(len(MAGIC))


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """Open the file, decompressed if it is .gz; raises EncoderError for a binary file."""
    if not path.is_file():
        raise EncoderError("no such file of word vectors", path, "check the path")
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            head = file.read(HEAD)
            if head.startswith(MAGIC):
                raise EncoderError("a packed model of fastText", path, UNPACK)
            if b"\0" in head:
                what, fix = "the word vectors are binary", "save them as text, with save_word2vec_format of gensim"
                raise EncoderError(what, path, fix)
            file.seek(0)
            yield file  # type: ignore[misc]
    except (OSError, EOFError, zlib.error) as error:
        raise EncoderError(f"cannot read the word vectors ({error})", path, "get the file again") from None


def _numbers(rest: bytes) -> NDArray[np.float32] | None:
    """(D,) float32 from the fields of a line; None unless all are finite numbers."""
    try:
        vector = np.array([float(field) for field in rest.split(b" ")], np.float32)
    except ValueError:
        return None
    return vector if np.isfinite(vector).all() else None


def _malformed(number: int, dim: int, path: Path) -> EncoderError:
    numbers = f"{dim} numbers" if dim else "its numbers"
    return EncoderError(f"line {number} is not a word and {numbers}", path, AS_TEXT)


def train_word2vec(
    sentences: Sequence[Sequence[str]], seed: int, told: Callable[[int, int], None] = lambda *_: None
) -> tuple[list[str], NDArray[np.float32], str]:
    """Train skip-gram: (V words, (V, D) float32 vectors, version of gensim).

    The same seed gives the same bytes. told: called with the epochs done and their number. Raises UsageError without
    gensim.
    """
    try:
        import gensim
        from gensim.models import Word2Vec
        from gensim.models.callbacks import CallbackAny2Vec
    except ImportError as error:
        raise lacking("word2vec needs gensim", "gensim", error, None, 'pip install "cmrhash[words]"') from None

    class Told(CallbackAny2Vec):  # type: ignore[misc]
        def __init__(self) -> None:
            self.done = 0

        def on_epoch_end(self, _: Any) -> None:
            self.done += 1
            told(self.done, WORD2VEC["epochs"])

    told(0, WORD2VEC["epochs"])
    logging.getLogger("gensim").setLevel(logging.ERROR)  # it warns about small corpora
    # one worker, as the order of several is random; a fixed hash, as Python's differs between processes
    model = Word2Vec(sentences, **WORD2VEC, seed=seed % 2**32, workers=1, hashfxn=_hash, callbacks=[Told()])
    return list(model.wv.index_to_key), np.asarray(model.wv.vectors, np.float32), str(gensim.__version__)


def _hash(word: Any) -> int:
    return zlib.crc32(str(word).encode())
