"""Language of a sentence, told from the words of captions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain

from cmrhash.data.items import ImageTextDataset
from cmrhash.encoders.bag_and_vectors import lower_words
from cmrhash.storage.files import read_json
from cmrhash.training.runs import ANEW, WORDS, Run

Words = Mapping[str, set[str]]  # language -> every word of its captions, in lower case


def words_of(run: Run, dataset: ImageTextDataset, langs: Sequence[str]) -> Words:
    """Words of the captions; of an applied run also those of the training's captions."""
    known = read_json(run.file(WORDS), ANEW) if WORDS in run.files else {}
    return {
        lang: set(chain.from_iterable(map(lower_words, texts_of(dataset, lang)))).union(known.get(lang, ()))
        for lang in langs
    }


def texts_of(dataset: ImageTextDataset, lang: str) -> Iterator[str]:
    """Captions of a language."""
    return (text for item in dataset.items for text in item.texts.get(lang, ()))


def likely(words: Words, text: str) -> list[str]:
    """Languages that have most words of a text."""
    asked = set(lower_words(text))
    known = {lang: len(asked & own) for lang, own in words.items()}
    return [lang for lang, count in known.items() if count == max(known.values())]


def doubt(words: Words, text: str, lang: str) -> str | None:
    """Reason to doubt the results of a text: fewer than half of its words are in captions of the language."""
    asked, own = set(lower_words(text)), words.get(lang, set())
    there = len(asked & own)
    if not asked or not own or 2 * there >= len(asked):
        return None
    few = f"only {there} of its {len(asked)} words are" if there else "none of its words is"
    return f"'{text}': {few} in the captions ({lang}); the run may not know them, or the language"
