"""Language of a sentence, by the words of captions."""

from __future__ import annotations

from collections import Counter

import pytest

from cmrhash.search.languages import likely

WORDS = {
    "de": Counter({"ein": 900, "hund": 300, "in": 200, "a": 3, "dog": 1, "man": 12, "ball": 60}),
    "en": Counter({"a": 2000, "dog": 400, "in": 300, "man": 500, "ball": 50, "the": 400}),
}


@pytest.mark.parametrize(
    ("text", "langs"),
    [
        ("ein Hund", ["de"]),
        ("the dog", ["en"]),
        ("a dog", ["en"]),  # both languages have both words, one of them by mistake
        ("dog", ["en"]),
        ("a man in a ball", ["en"]),
        ("ball", ["de", "en"]),  # both have it about as often
        ("in", ["de", "en"]),
        ("xyzzy", ["de", "en"]),  # none has it
        ("", ["de", "en"]),
    ],
)
def test_the_language_that_has_most_of_the_words_or_clearly_most_often(text, langs):
    assert likely(WORDS, text) == langs


def test_one_language_is_likely_in_any_case():
    assert likely({"en": Counter()}, "xyzzy") == ["en"]
