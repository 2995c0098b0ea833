"""Text encoders without a transformer: what they count and average, against plain loops."""

from __future__ import annotations

import math
import re
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from word_vectors import ALL, TRAIN, VECTORS, load, text_of

from cmrhash.encoders import bag_and_vectors
from cmrhash.encoders.bag_and_vectors import rebuild, split
from cmrhash.encoders.word_vectors import read_vectors
from cmrhash.errors import EncoderError, UsageError


def known(caption, table):
    """The vectors of a caption's words, as a plain loop finds them."""
    found = []
    for word in re.findall(r"\w+", caption):
        vector = table.get(word, table.get(word.lower()))
        if vector is not None:
            found.append(np.array(vector, np.float64))
    return found


# ---------------------------------------------------------------------------------------------- words


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A dog's red-brown coat, size 42.", ["A", "dog", "s", "red", "brown", "coat", "size", "42"]),
        ("Straßenhändler, groß – „Übung“", ["Straßenhändler", "groß", "Übung"]),
        ("cafe\u0301 under_score", ["café", "under", "score"]),
        ("हिन्दी में", ["हिन्दी", "में"]),
        ("狗在跑。猫", ["狗在跑", "猫"]),
        ("x² ½", ["x²", "½"]),
        ("\u00a0a\tb\nc\u2003d\u0085e", ["a", "b", "c", "d", "e"]),
        ("?! ...", []),
        ("", []),
    ],
)
def test_words_are_runs_of_letters_marks_and_numbers(text, expected):
    assert split(text) == expected


@given(st.text())
def test_words_are_never_empty_and_hold_nothing_but_what_words_hold(text):
    for word in split(text):
        assert word
        assert not re.search(r"[\s_.,;:!?'\"-]", word)
        assert split(word) == [word]


# ---------------------------------------------------------------------------------------------- bag of words


def test_a_bag_of_words_says_which_of_the_most_frequent_words_occur():
    encoder = load("bow", vocabulary=4)["en"]
    assert list(encoder.vocabulary) == ["a", "cat", "dog", "and"]  # 3, 3, 2; then of those once the first
    assert (encoder.name, encoder.dim) == ("bow4", 4)
    x = encoder.encode(["A dog and a DOG", "cat", "zebra", "", "and, cat."])
    assert x.dtype == np.float32
    assert x.tolist() == [[1, 0, 1, 1], [0, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0], [0, 1, 0, 1]]


@given(st.lists(st.text("ab ", max_size=12), min_size=1, max_size=8), st.integers(1, 5))
def test_the_vocabulary_is_that_of_a_plain_count_whatever_the_order_of_the_captions(captions, size):
    count = Counter(word for caption in captions for word in caption.split())
    if not count:
        return
    expected = sorted(count, key=lambda word: (-count[word], word))[:size]
    for train in (captions, captions[::-1]):
        encoder = load("bow", {"en": train}, {"en": train}, size)["en"]
        assert list(encoder.vocabulary) == expected
        assert encoder.dim == len(expected)


def test_the_vocabulary_is_learned_on_train_captions_alone_and_each_language_has_its_own():
    made = load("bow")
    assert "zebra" not in made["en"].vocabulary
    assert set(made["de"].vocabulary) == {"ein", "hund", "rennt", "und", "eine", "katze", "die", "schläft"}
    assert made["en"].recipe["weights_sha256"] != made["de"].recipe["weights_sha256"]
    assert made["en"].recipe["words"] == made["en"].dim == 10


def test_another_vocabulary_is_another_recipe():
    one, same, fewer = (load("bow", vocabulary=size)["en"] for size in (100, 200, 3))
    assert one.recipe == same.recipe
    assert one.recipe["weights_sha256"] != fewer.recipe["weights_sha256"]
    swapped = {"en": ["b a a b", "c"]}, {"en": ["b c c b", "a"]}
    first, second = (load("bow", train, train, 3)["en"].recipe for train in swapped)
    assert first["words"] == second["words"] == 3
    assert first["weights_sha256"] != second["weights_sha256"]


# ---------------------------------------------------------------------------------------------- pooling


@pytest.mark.parametrize("pooling", ["mean", "sum", "tf-idf"])
@pytest.mark.parametrize("lang", ["en", "de"])
def test_features_are_those_of_a_plain_loop(file, pooling, lang):
    encoder = load(file, pooling=pooling)[lang]
    assert (encoder.name, encoder.dim) == (f"vectors-mine.300d-{pooling}", 3)
    table = dict(VECTORS)
    captions = [*ALL[lang], *{"en": ["a a A dog", "dog dog cat"], "de": ["ein Ein hund", "Hund KATZE Hund"]}[lang], ""]
    x = encoder.encode(captions)
    assert x.shape == (len(captions), 3)
    assert x.dtype == np.float32

    def idf(vector):
        having = sum(any(np.array_equal(vector, v) for v in known(caption, table)) for caption in TRAIN[lang])
        return math.log((1 + len(TRAIN[lang])) / (1 + having)) + 1

    for row, caption in zip(x, captions, strict=True):
        found = known(caption, table)
        if not found:
            assert not row.any()
            continue
        weights = [idf(v) if pooling == "tf-idf" else 1 for v in found]
        expected = sum(w * v for w, v in zip(weights, found, strict=True))
        np.testing.assert_allclose(row, expected if pooling == "sum" else expected / sum(weights), rtol=1e-5)


def test_two_poolings_of_a_model_share_no_name_and_differ_in_their_recipe(file):
    made = [load(file, pooling=pooling)["en"] for pooling in bag_and_vectors.POOLING["vectors"]]
    assert len({encoder.name for encoder in made}) == len(made) == 4
    assert len({encoder.recipe["pooling"] for encoder in made}) == 4
    assert len({encoder.recipe["weights_sha256"] for encoder in made}) == 1
    assert [set(encoder.recipe) for encoder in made[:2]] == [set(made[2].recipe) - {"idf_sha256"}] * 2


def test_frequencies_are_learned_on_train_captions_alone(file):
    one = load(file, pooling="tf-idf")["en"]
    other = load(file, captions={"en": [*ALL["en"], "dog", "dog"]}, pooling="tf-idf")["en"]
    assert one.recipe == other.recipe
    more = load(file, train={"en": [*TRAIN["en"], "dog"]}, captions={"en": ALL["en"]}, pooling="tf-idf")["en"]
    assert more.recipe["weights_sha256"] == one.recipe["weights_sha256"]
    assert more.recipe["idf_sha256"] != one.recipe["idf_sha256"]


@pytest.mark.parametrize(
    ("model", "pooling", "choices"),
    [("bow", "mean", "binary"), ("bow", "tf-idf", "binary"), (None, "cls", "mean, sum, tf-idf"), (None, "", "mean")],
)
def test_a_pooling_that_a_model_does_not_have_is_refused_with_those_that_it_has(file, model, pooling, choices):
    with pytest.raises(UsageError, match=f"unknown pooling '{pooling}': {model or file}: choose one of {choices}"):
        load(model or file, pooling=pooling)


@pytest.mark.parametrize(("model", "pooling"), [("bow", None), ("word2vec", None), (None, "tf-idf")])
def test_without_train_captions_there_is_nothing_to_learn_from(file, model, pooling):
    for train in ({}, {"en": ["..."], "de": TRAIN["de"]}):
        with pytest.raises(EncoderError, match="the en training captions contain no words: give items the split"):
            load(model or file, train=train, pooling=pooling)


# ---------------------------------------------------------------------------------------------- unknown words


def test_a_caption_without_any_known_word_is_zeros_and_counts_as_unknown(file):
    encoder = load(file)["en"]
    assert not encoder.encode(["zebra lion", "?!", ""]).any()
    assert encoder.unknown_share(["zebra lion"]) == 1
    assert encoder.unknown_share(["?!"]) == 1
    assert encoder.unknown_share(["a dog", "a zebra", ""]) == pytest.approx(2 / 5)
    assert encoder.unknown_share(["a Dog"]) == 0
    assert encoder.unknown_share([]) == 0


def test_a_word_is_looked_up_as_it_is_written_and_else_in_lower_case(file):
    encoder = load(file)["de"]
    x = encoder.encode(["Hund", "hund", "KATZE", "katze"])
    assert x[0].tolist() == VECTORS["Hund"]
    assert encoder.unknown_share(["hund"]) == 0  # in the file, and the lower case of a word of the captions
    assert x[1].tolist() == VECTORS["hund"]
    assert x[2].tolist() == x[3].tolist() == VECTORS["katze"]


def test_only_words_of_the_captions_are_kept_and_each_language_its_own(file):
    made = load(file)
    assert set(made["en"].vocabulary) == {"a", "dog", "cat", "runs"}
    assert set(made["de"].vocabulary) == {"ein", "Hund", "hund", "katze"}
    alone = load(file, captions={"de": ALL["de"]})["de"]
    assert alone.recipe == made["de"].recipe
    assert alone.encode(ALL["de"]).tobytes() == made["de"].encode(ALL["de"]).tobytes()


def test_a_file_is_read_once_for_all_languages(file, monkeypatch):
    read = []
    monkeypatch.setattr(
        bag_and_vectors, "read_vectors", lambda path, wanted: read.append(path) or read_vectors(path, wanted)
    )
    load(file)
    assert read == [file]


def test_a_file_without_any_word_of_a_language_is_refused(tmp_path):
    (tmp_path / "en.txt").write_bytes(text_of({"dog": [1, 2, 3]}))
    with pytest.raises(EncoderError, match=r"none of the 13 words of the de captions has a vector: .*en\.txt: .*de="):
        load(tmp_path / "en.txt")


# ---------------------------------------------------------------------------------------------- built again


@pytest.mark.parametrize(("model", "pooling"), [("bow", None), (None, "mean"), (None, "sum"), (None, "tf-idf")])
def test_an_encoder_built_from_its_arrays_is_the_same(file, model, pooling):
    encoder = load(model or file, pooling=pooling)["en"]
    again = rebuild(encoder.name, encoder.recipe, encoder.arrays())
    assert (again.name, again.dim, again.recipe) == (encoder.name, encoder.dim, encoder.recipe)
    captions = [*ALL["en"], "A Dog, a cat and something new"]
    assert again.encode(captions).tobytes() == encoder.encode(captions).tobytes()
    assert again.unknown_share(captions) == encoder.unknown_share(captions)
