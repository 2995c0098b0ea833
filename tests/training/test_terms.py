"""tf-idf vectors of words and n-grams against plain loops."""

import numpy as np
import pytest
import torch
from slow_terms import slow_terms, slow_tf_idf

from cmrhash.training import terms
from cmrhash.training.terms import KINDS, Vocabulary, dots

CAPTIONS = [
    "Ein schwarzer Hund im Schnee.",
    "Zwei Hunde im Schnee",
    "Ein Hundeschlitten, im Schnee!",
    "ein Hund",
    "",
    "Schnee Schnee Schnee",
]


@pytest.mark.parametrize("kind", KINDS)
def test_terms_of_enough_captions_are_known_the_frequent_ones_first(kind):
    found = Vocabulary.learn(CAPTIONS, kind)
    each = [slow_terms(caption)[kind == "grams"] for caption in CAPTIONS]
    counts = {term: sum(term in some for some in each) for term in set().union(*each)}
    assert found.terms == sorted((t for t, n in counts.items() if n >= 3), key=lambda t: (-counts[t], t))
    np.testing.assert_allclose(found.idf, [np.log(6 / counts[term]) for term in found.terms], rtol=1e-6)
    assert {"words": "schnee", "grams": "#<hund"}[kind] in found.terms


def test_only_the_most_frequent_terms_are_kept(monkeypatch):
    monkeypatch.setattr(terms, "MOST", 2)
    assert Vocabulary.learn(CAPTIONS, "words").terms == ["schnee", "ein"]


def test_vectors_are_those_of_plain_loops():
    both = Vocabulary.learn(CAPTIONS, "words") + Vocabulary.learn(CAPTIONS, "grams")
    asked = [*CAPTIONS, "Hundeschnee über den Schneehund", "no known term"]
    found = both.vectors(asked)
    slow = np.stack([slow_tf_idf(caption, both.terms, both.idf.numpy()) for caption in asked])
    np.testing.assert_allclose(found.to_dense(), slow, atol=1e-6)
    assert not slow[-1].any()
    np.testing.assert_allclose(dots(found, found, block=3), slow @ slow.T, atol=1e-6)


def test_a_term_of_every_caption_says_nothing():
    assert not Vocabulary.learn(["a dog", "a dog", "a dog"], "words").vectors(["a dog"]).to_dense().any()


def test_no_captions_give_no_rows():
    assert Vocabulary.learn(CAPTIONS, "words").vectors([]).shape == (0, 3)
    assert Vocabulary([], torch.zeros(0)).vectors(["a"]).shape == (1, 0)


def test_stored_terms_are_the_same_again():
    both = Vocabulary.learn(CAPTIONS, "words") + Vocabulary.learn(CAPTIONS, "grams")
    again = Vocabulary.decode(both.encoded, both.idf)
    assert again.terms == both.terms
    assert torch.equal(again.vectors(CAPTIONS).to_dense(), both.vectors(CAPTIONS).to_dense())
    assert len(Vocabulary.decode(Vocabulary([], torch.zeros(0)).encoded, torch.zeros(0))) == 0


@pytest.mark.parametrize("stored", [b"one", b"one\ntwo\nthree", b"\xff\ntwo"])
def test_other_bytes_are_no_terms(stored):
    with pytest.raises(ValueError, match=r"terms with 2 weights|decode"):
        Vocabulary.decode(torch.tensor(list(stored), dtype=torch.uint8), torch.ones(2))
