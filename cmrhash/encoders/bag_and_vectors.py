"""Text encoders without a transformer: bag of words, and word vectors.

Word vectors come from a file or are trained on the captions. Vocabulary, inverse document frequencies and word2vec are
learned from the captions of the train items only.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cmrhash.encoders import packages
from cmrhash.encoders.word_lists import read_words
from cmrhash.encoders.word_vectors import WORD2VEC, read_vectors, train_word2vec
from cmrhash.errors import EncoderError, UsageError

BOW, TRAINED = "bow", "word2vec"  # model names that are not files
FILES = (".txt", ".vec", ".gz", ".bin", ".ftz")  # suffixes of word-vector files, to recognise a missing file
POOLING = {BOW: ("binary",), "vectors": ("mean", "sum", "tf-idf", "sequence")}  # the first is the default
POSITIONS = 20  # words of a "sequence"; a caption has 6 to 15
RULES = "NFC; letters, marks and numbers; as written, else in lower case; v1"

Captions = Mapping[str, Sequence[str]]  # language -> captions


@dataclass
class WordEncoder:
    """Captions -> features by their words.

    name: used in file names; dim: features per caption; recipe: all settings that change the features.
    vocabulary: word -> row; weight: (V,) float32, weight of each word within a caption; vectors: (V, D) float32, None
    for a bag of words.
    """

    name: str
    dim: int
    recipe: dict[str, Any]
    vocabulary: dict[str, int]
    weight: NDArray[np.float32]
    vectors: NDArray[np.float32] | None
    phrases: dict[str, list[tuple[list[str], int]]] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Find the entries of several words, which a given vocabulary may have: first word -> all words and the row."""
        self.phrases = {}
        for word, row in self.vocabulary.items() if self.vectors is None else ():
            words = lower_words(word)
            if words and words != [word.lower()]:
                self.phrases.setdefault(words[0], []).append((words, row))

    def __repr__(self) -> str:
        return f"WordEncoder({self.name!r}, {self.dim} features, {len(self.vocabulary)} words)"

    def encode(self, captions: Sequence[str]) -> NDArray[np.float32]:
        """N captions -> (N, D) float32; a caption without known words gives zeros."""
        out = np.zeros((len(captions), self.dim), np.float32)  # (N, D)
        for at, caption in enumerate(captions):
            rows = [row for row in self.rows(caption) if row is not None] + self.phrase_rows(caption)
            if not rows:
                continue
            if self.vectors is None:
                out[at, rows] = 1
                continue
            if positions := self.recipe.get("positions"):
                vectors = self.vectors[rows[:positions]]  # (words, D)
                out[at, : vectors.size] = vectors.ravel()
                continue
            weight = self.weight[rows]
            total = (weight[:, None] * self.vectors[rows]).sum(0)  # (D,)
            out[at] = total if self.recipe["pooling"] == "sum" else total / weight.sum()
        return out

    def rows(self, caption: str) -> list[int | None]:
        """Row of each word of a caption.

        None for a word that is unknown both in its original case and in lower case.
        """
        known = self.vocabulary
        return [known.get(word, known.get(word.lower())) for word in split(caption)]

    def phrase_rows(self, caption: str) -> list[int]:
        """Rows of the entries of several words that occur in a caption, in any case."""
        words = lower_words(caption) if self.phrases else []
        return [
            row
            for at, word in enumerate(words)
            for phrase, row in self.phrases.get(word, ())
            if words[at : at + len(phrase)] == phrase
        ]

    def unknown_share(self, captions: Sequence[str]) -> float:
        """Share of unknown words; a caption without words counts as one unknown word."""
        rows = [row for caption in captions for row in self.rows(caption) or [None]]
        return rows.count(None) / max(len(rows), 1)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Arrays that ``rebuild`` needs, besides name and recipe."""
        words = np.frombuffer("\n".join(self.vocabulary).encode(), np.uint8)
        return {"words": words, "weight": self.weight, **({} if self.vectors is None else {"vectors": self.vectors})}


def rebuild(name: str, recipe: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> WordEncoder:
    """Create the encoder again from its name, recipe and ``arrays``.

    It encodes new captions exactly as the original did.
    """
    words = bytes(arrays["words"]).decode().split("\n")
    vocabulary = {word: row for row, word in enumerate(words)}
    vectors = arrays.get("vectors")
    dim = len(words) if vectors is None else vectors.shape[1] * int(recipe.get("positions", 1))
    return WordEncoder(name, dim, dict(recipe), vocabulary, arrays["weight"], vectors)


def takes(model: str) -> bool:
    """Whether this module handles a text model: "bow", "word2vec" or a file of word vectors."""
    path = Path(model).expanduser()
    if packages.is_named(model):
        return False
    return model in (BOW, TRAINED) or path.is_file() or (path.suffix in FILES and not path.exists())


def load(
    model: str,
    train: Captions,
    captions: Captions,
    *,
    vocabulary: int | Path,
    pooling: str | None = None,
    seed: int = 0,
    progress: Callable[..., None] = lambda *_: None,
) -> dict[str, WordEncoder]:
    """An encoder per language of ``captions``.

    model: "bow" (the ``vocabulary`` most frequent words of the train captions, or the words of that file), "word2vec"
    (trained on them from ``seed``) or the path of a file of word vectors, which is read once for all languages.
    train, captions: language -> captions of the train items, and of all items.
    pooling: of word vectors: "mean", "sum", "tf-idf" (mean weighted by inverse document frequency) or "sequence" (those
    of the first POSITIONS known words one after the other, then 0); None: the first that the model supports.
    progress: called with (task, done, total) while word2vec is trained.
    Raises EncoderError for an unusable file and for train captions without words, UsageError for an unknown pooling, an
    unusable vocabulary or without gensim.
    """
    known = POOLING[BOW if model == BOW else "vectors"]
    pooling = known[0] if pooling is None else pooling
    if pooling not in known:
        raise UsageError(f"unknown pooling '{pooling}'", model, f"choose one of {', '.join(known)}", option="pooling")
    if model == BOW and isinstance(vocabulary, Path):
        return dict.fromkeys(captions, _bag(f"{BOW}-{_file_name(vocabulary)}", read_words(vocabulary)))
    if model in (BOW, TRAINED) or pooling == "tf-idf":
        _check_learnable(train, captions)
    if model == BOW and not isinstance(vocabulary, Path):
        return {lang: _bow(train[lang], vocabulary) for lang in captions}
    if model == TRAINED:
        return {lang: _trained(train[lang], pooling, seed, partial(progress, f"{lang} word2vec")) for lang in captions}
    return _from_file(Path(model).expanduser(), train, captions, pooling)


def split(text: str) -> list[str]:
    """Words of a text, in their original case: runs of letters, marks and numbers.

    Indian scripts need the marks.
    """
    return unicodedata.normalize("NFC", text).translate(_SPACES).split()


def lower_words(text: str) -> list[str]:
    """Words of a text in lower case."""
    return [word.lower() for word in split(text)]


class _Spaces(dict[int, int]):
    """Translation table: code point -> itself if it belongs to words, otherwise a space.

    Entries are computed on first use.
    """

    def __missing__(self, code: int) -> int:
        self[code] = code if unicodedata.category(chr(code))[0] in "LMN" else ord(" ")
        return self[code]


_SPACES = _Spaces()


# ---------------------------------------------------------------------------------------------- kinds of encoders


def _bow(train: Sequence[str], size: int) -> WordEncoder:
    """The most frequent words, ties in alphabetical order; features are binary occurrences."""
    counts = Counter(word for caption in train for word in lower_words(caption))
    return _bag(f"{BOW}{size}", sorted(counts, key=lambda word: (-counts[word], word))[:size])


def _bag(name: str, words: list[str]) -> WordEncoder:
    """A bag of these words, in this order."""
    recipe = {
        "encoder": BOW,
        "weights": "trained",
        "weights_sha256": _digest(words),
        "words": len(words),
        "pooling": POOLING[BOW][0],
        "tokens": RULES,
    }
    vocabulary = {word: column for column, word in enumerate(words)}
    return WordEncoder(name, len(words), recipe, vocabulary, np.ones(len(words), np.float32), None)


def _trained(train: Sequence[str], pooling: str, seed: int, told: Callable[[int, int], None]) -> WordEncoder:
    words, vectors, version = train_word2vec([lower_words(caption) for caption in train], seed, told)
    how = {"gensim": version, "settings": dict(WORD2VEC), "seed": seed}  # first, as they explain different weights
    return _pooled(TRAINED, {"encoder": TRAINED, **how}, words, vectors, pooling, train)


def _from_file(path: Path, train: Captions, captions: Captions, pooling: str) -> dict[str, WordEncoder]:
    """An encoder per language, each limited to the words of its own captions."""
    # a file may contain a word only in its original case (German nouns) or only in lower case
    forms = {
        lang: {form for text in texts for w in split(text) for form in (w, w.lower())}
        for lang, texts in captions.items()
    }
    found = read_vectors(path, set().union(*forms.values()))
    name = f"vectors-{_file_name(path)}"
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


def _file_name(path: Path) -> str:
    """Name of a file of words or vectors without suffix, as part of an encoder's name."""
    return re.sub(r"[^\w.-]", "_", re.sub(r"(\.txt|\.vec|\.bin)?(\.gz)?$", "", path.name))


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
    positions = POSITIONS if pooling == "sequence" else 1
    recipe |= {"positions": positions} if pooling == "sequence" else {}
    made = WordEncoder(f"{name}-{pooling}", positions * vectors.shape[1], recipe, vocabulary, weight, vectors)
    if pooling == "tf-idf":
        made.weight = _idf(made, train)
        recipe["idf_sha256"] = hashlib.sha256(made.weight.tobytes()).hexdigest()
    return made


def _idf(encoder: WordEncoder, captions: Sequence[str]) -> NDArray[np.float32]:
    """Inverse document frequency of each word, (V,) float32.

    log((1 + n) / (1 + df)) + 1 for n captions, df of which contain the word. Smoothed as in scikit-learn, as if one
    more caption contained every word. Above 0, and largest for words that no train caption contains.
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
    """sha256 of the words in order, and of their vectors."""
    digest = hashlib.sha256("\n".join(words).encode())
    if vectors is not None:
        digest.update(f"\n{vectors.shape}\n".encode() + vectors.astype("<f4").tobytes())
    return digest.hexdigest()
