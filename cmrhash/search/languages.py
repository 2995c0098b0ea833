"""Language of a sentence, told from the words of captions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from math import log
from typing import Any

from cmrhash.data.items import ImageTextDataset
from cmrhash.encoders.bag_and_vectors import lower_words
from cmrhash.storage.files import read_json
from cmrhash.training.runs import ANEW, WORDS, Run

Words = Mapping[str, Counter[str]]  # language -> how often its captions have each word, in lower case
SHOWN = 200  # letters of a text in a message
CLEARLY = log(10)  # a language whose captions have the words ten times as often is the language of a text


def words_of(run: Run, dataset: ImageTextDataset, langs: Sequence[str]) -> Words:
    """Words of the captions; of an applied run also those of the training's captions."""
    known = read_json(run.file(WORDS), ANEW) if WORDS in run.files else {}
    return {
        lang: Counter(known.get(lang, ())) + Counter(chain.from_iterable(map(lower_words, texts_of(dataset, lang))))
        for lang in langs
    }


def texts_of(dataset: ImageTextDataset, lang: str) -> Iterator[str]:
    """Captions of a language."""
    return (text for item in dataset.items for text in item.texts.get(lang, ()))


def likely(words: Words, text: str) -> list[str]:
    """Languages that have most words of a text; of several, the one that clearly has them most often."""
    asked = set(lower_words(text))
    known = {lang: len(asked & own.keys()) for lang, own in words.items()}
    best = [lang for lang, count in known.items() if count == max(known.values())]
    often = {lang: sum(log((words[lang][word] + 0.5) / max(words[lang].total(), 1)) for word in asked) for lang in best}
    ranked = sorted(best, key=lambda lang: -often[lang])
    clear = len(ranked) > 1 and known[ranked[0]] and often[ranked[0]] - often[ranked[1]] > CLEARLY
    return ranked[:1] if clear else best


def doubt(words: Words, text: str, lang: str) -> str | None:
    """Reason to doubt the results of a text: fewer than half of its words are in captions of the language."""
    asked, own = set(lower_words(text)), words.get(lang, Counter())
    there = len(asked & own.keys())
    if not asked or not own or 2 * there >= len(asked):
        return None
    few = f"only {there} of its {len(asked)} words are" if there else "none of its words is"
    return f"'{_short(text)}': {few} in the captions ({lang}); the run may not know them, or the language"


def cut(recipe: Mapping[str, Any], text: str) -> str | None:
    """Reason to doubt the results of a text: it has more words than its encoder reads word pieces.

    recipe: of the encoder; those of words alone read any length.
    """
    most, count = recipe.get("max_length"), len(lower_words(text))
    if most is None or count <= most:
        return None
    return f"'{_short(text)}': the encoder reads at most {most} word pieces at its start, and it has {count:,} words"


def _short(text: str) -> str:
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
