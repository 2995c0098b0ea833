"""Text encoders without a transformer: a bag of words, and word vectors from a file or trained on the captions.

Vocabulary, inverse document frequencies and word2vec are learned on the captions of the train items only.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cmrhash.encoders.word_vectors import WORD2VEC, read_vectors, train_word2vec
from cmrhash.errors import EncoderError, UsageError

BOW, TRAINED = "bow", "word2vec"  # names in place of a file
FILES = (".txt", ".vec", ".gz", ".bin")  # endings of word-vector files, for those that are not there
POOLING = {BOW: ("binary",), "vectors": ("mean", "sum", "tf-idf")}  # the first is what is done if none is asked for
RULES = "NFC; letters, marks and numbers; as written, else in lower case; v1"

Captions = Mapping[str, Sequence[str]]  # language -> captions


@dataclass
class WordEncoder:
    """Captions -> features by the words in them. name: for file names; dim: features a caption; recipe: all that
    changes the numbers.

    vocabulary: word -> its row; weight: (V,) float32 of a word among those of a caption; vectors: (V, D) float32,
    None for a bag of words.
    """

    name: str
    dim: int
    recipe: dict[str, Any]
    vocabulary: dict[str, int]
    weight: NDArray[np.float32]
    vectors: NDArray[np.float32] | None

    def __repr__(self) -> str:
        return f"WordEncoder({self.name!r}, {self.dim} features, {len(self.vocabulary)} words)"

    def encode(self, captions: Sequence[str]) -> NDArray[np.float32]:
        """N captions -> (N, D) float32; zeros for one without any known word."""
        out = np.zeros((len(captions), self.dim), np.float32)  # (N, D)
        for at, caption in enumerate(captions):
            rows = [row for row in self.rows(caption) if row is not None]
            if not rows:
                continue
            if self.vectors is None:
                out[at, rows] = 1
                continue
            weight = self.weight[rows]
            total = (weight[:, None] * self.vectors[rows]).sum(0)  # (D,)
            out[at] = total if self.recipe["pooling"] == "sum" else total / weight.sum()
        return out

    def rows(self, caption: str) -> list[int | None]:
        """The row of each word of a caption, None for one that is unknown both as written and in lower case."""
        known = self.vocabulary
        return [known.get(word, known.get(word.lower())) for word in split(caption)]

    def unknown_share(self, captions: Sequence[str]) -> float:
        """Share of words that the vocabulary does not know; a caption without any word counts as an unknown one."""
        rows = [row for caption in captions for row in self.rows(caption) or [None]]
        return rows.count(None) / max(len(rows), 1)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """All that ``rebuild`` needs beside name and recipe."""
        words = np.frombuffer("\n".join(self.vocabulary).encode(), np.uint8)
        return {"words": words, "weight": self.weight, **({} if self.vectors is None else {"vectors": self.vectors})}


def rebuild(name: str, recipe: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> WordEncoder:
    """The encoder whose ``arrays`` these are, to encode other captions as the first ones were."""
    words = bytes(arrays["words"]).decode().split("\n")
    vocabulary = {word: row for row, word in enumerate(words)}
    vectors = arrays.get("vectors")
    dim = len(words) if vectors is None else vectors.shape[1]
    return WordEncoder(name, dim, dict(recipe), vocabulary, arrays["weight"], vectors)


def takes(model: str) -> bool:
    """Whether a text model is one of these: "bow", "word2vec" or a file of word vectors."""
    path = Path(model).expanduser()
    return model in (BOW, TRAINED) or path.is_file() or (path.suffix in FILES and not path.exists())


def load(
    model: str, train: Captions, captions: Captions, *, vocabulary: int, pooling: str | None = None, seed: int = 0
) -> dict[str, WordEncoder]:
    """An encoder for each language of ``captions``, all that the data set has; a file is read once for all of them.

    model: "bow" (the ``vocabulary`` most frequent words of the train captions), "word2vec" (trained on them from
    ``seed``) or the path of a file of word vectors. train: language -> captions of the train items. pooling: of the
    word vectors: "mean", "sum" or "tf-idf", a mean by inverse document frequency; None: the first that the model has.
    Raises EncoderError for a file that cannot be used and for train captions without words, UsageError for an unknown
    pooling or without gensim.
    """
    known = POOLING[BOW if model == BOW else "vectors"]
    pooling = known[0] if pooling is None else pooling
    if pooling not in known:
        raise UsageError(f"unknown pooling '{pooling}'", model, f"choose one of {', '.join(known)}", option="pooling")
    if model in (BOW, TRAINED) or pooling == "tf-idf":
        _check_learnable(train, captions)
    if model == BOW:
        return {lang: _bow(train[lang], vocabulary) for lang in captions}
    if model == TRAINED:
        return {lang: _trained(train[lang], pooling, seed) for lang in captions}
    return _from_file(Path(model).expanduser(), train, captions, pooling)


def split(text: str) -> list[str]:
    """The words of a text as they are written: runs of letters, marks (which Indian scripts need) and numbers."""
    return unicodedata.normalize("NFC", text).translate(_SPACES).split()


def lower_words(text: str) -> list[str]:
    """The same in lower case."""
    return [word.lower() for word in split(text)]


class _Spaces(dict[int, int]):
    """Code point -> itself if it belongs to words, else a space; learned as they come."""

    def __missing__(self, code: int) -> int:
        self[code] = code if unicodedata.category(chr(code))[0] in "LMN" else ord(" ")
        return self[code]


_SPACES = _Spaces()


# ---------------------------------------------------------------------------------------------- each kind


def _bow(train: Sequence[str], size: int) -> WordEncoder:
    """The most frequent words, in the order of the alphabet where they are equally frequent; binary occurrence."""
    counts = Counter(word for caption in train for word in lower_words(caption))
    words = sorted(counts, key=lambda word: (-counts[word], word))[:size]
    recipe = {
        "encoder": BOW,
        "weights": "trained",
        "weights_sha256": _digest(words),
        "words": len(words),
        "pooling": POOLING[BOW][0],
        "tokens": RULES,
    }
    vocabulary = {word: column for column, word in enumerate(words)}
    return WordEncoder(f"{BOW}{size}", len(words), recipe, vocabulary, np.ones(len(words), np.float32), None)


def _trained(train: Sequence[str], pooling: str, seed: int) -> WordEncoder:
    words, vectors, version = train_word2vec([lower_words(caption) for caption in train], seed)
    how = {"gensim": version, "settings": dict(WORD2VEC), "seed": seed}  # first: they say why the weights differ
    return _pooled(TRAINED, {"encoder": TRAINED, **how}, words, vectors, pooling, train)


def _from_file(path: Path, train: Captions, captions: Captions, pooling: str) -> dict[str, WordEncoder]:
    """One encoder a language, each of the words of its own captions."""
    # a file may know a word only as it is written (German nouns), or only in lower case
    forms = {
        lang: {form for text in texts for w in split(text) for form in (w, w.lower())}
        for lang, texts in captions.items()
    }
    found = read_vectors(path, set().union(*forms.values()))
    name = "vectors-" + re.sub(r"[^\w.-]", "_", re.sub(r"(\.txt|\.vec)?(\.gz)?$", "", path.name))
    made = {}
    for lang in captions:
        words = sorted(forms[lang] & found.keys())
        if not words:
            what = f"none of the {len(forms[lang])} words of the {lang} captions has a vector"
            raise EncoderError(
                what, path, f'check its language, or give {lang} another model: `text_models=("{lang}=MODEL",)`'
            )
        vectors = np.stack([found[word] for word in words])  # (V, D)
        made[lang] = _pooled(name, {"encoder": "word-vectors"}, words, vectors, pooling, train.get(lang, ()))
    return made


def _pooled(
    name: str,
    recipe: dict[str, Any],
    words: list[str],
    vectors: NDArray[np.float32],
    pooling: str,
    train: Sequence[str],
) -> WordEncoder:
    recipe |= {
        "weights": "trained",
        "weights_sha256": _digest(words, vectors),
        "words": len(words),
        "pooling": pooling,
        "tokens": RULES,
    }
    vocabulary = {word: row for row, word in enumerate(words)}
    weight = np.ones(len(words), np.float32)
    made = WordEncoder(f"{name}-{pooling}", vectors.shape[1], recipe, vocabulary, weight, vectors)
    if pooling == "tf-idf":
        made.weight = _idf(made, train)
        recipe["idf_sha256"] = hashlib.sha256(made.weight.tobytes()).hexdigest()
    return made


def _idf(encoder: WordEncoder, captions: Sequence[str]) -> NDArray[np.float32]:
    """(V,) float32: log((1 + n) / (1 + df)) + 1 over n captions, df of which have the word (smooth, as scikit-learn's:
    one more caption that has every word). Above 0, and largest for words that no train caption has.
    """
    having = np.zeros(len(encoder.vocabulary))
    for caption in captions:
        having[[row for row in set(encoder.rows(caption)) if row is not None]] += 1
    weight: NDArray[np.float32] = (np.log((1 + len(captions)) / (1 + having)) + 1).astype(np.float32)
    return weight


def _check_learnable(train: Captions, langs: Iterable[str]) -> None:
    for lang in langs:
        if not any(split(caption) for caption in train.get(lang, ())):
            fix = f'give items the split "train", or use a pretrained model: `text_models=("{lang}=MODEL",)`'
            raise EncoderError(f"the {lang} training captions contain no words", None, fix)


def _digest(words: list[str], vectors: NDArray[np.float32] | None = None) -> str:
    """sha256 over the words in their order, and their vectors."""
    digest = hashlib.sha256("\n".join(words).encode())
    if vectors is not None:
        digest.update(f"\n{vectors.shape}\n".encode() + vectors.astype("<f4").tobytes())
    return digest.hexdigest()
