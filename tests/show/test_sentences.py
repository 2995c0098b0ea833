"""Sentences that wait together are encoded together, each with its own result."""

from contextlib import ExitStack

import numpy as np
import pytest

pytest.importorskip("fastapi", reason='needs pip install "cmrhash[serve]"')

from cmrhash.errors import UsageError
from cmrhash.show.server import sentences as module
from cmrhash.show.server.sentences import Sentences


@pytest.fixture
def asked(hasher, monkeypatch):
    """Lists of sentences that were encoded together."""
    embed, calls = hasher.embed_text, []
    monkeypatch.setattr(hasher, "embed_text", lambda texts, lang: calls.append(list(texts)) or embed(texts, lang))
    return calls


def test_what_waits_in_the_same_language_is_encoded_at_once_and_kept(hasher, asked):
    sentences = Sentences()
    waiting = [("dog 4", "en"), ("cat 5", None), ("Katze 5", "de"), ("cat 7", "en"), ("xyzzy", None)]
    with ExitStack() as stack:
        for text, lang in waiting:
            stack.enter_context(sentences.waiting(hasher, text, lang))
        first = sentences.embed(hasher, "dog 4", "en")
        assert asked == [["dog 4", "cat 5", "cat 7"]]  # the language of "xyzzy" cannot be told
        others = {text: sentences.embed(hasher, text, "en") for text in ("cat 5", "cat 7", "dog 4")}
        assert len(asked) == 1
    assert np.array_equal(first, others["dog 4"])
    for text, embedding in others.items():
        assert np.allclose(embedding, hasher.embed_text([text], "en")[0], atol=1e-6)
    asked.clear()
    sentences.embed(hasher, "bird", "en")
    assert asked == [["bird"]]  # nobody waits any more


def test_one_that_cannot_be_encoded_harms_no_other(hasher, asked):
    sentences = Sentences()
    with sentences.waiting(hasher, "dog", "en"), sentences.waiting(hasher, "\u200b", "en"):
        assert sentences.embed(hasher, "dog", "en").shape == (16,)
        assert asked == [["dog", "\u200b"], ["dog"]]
        with pytest.raises(UsageError, match="empty text"):
            sentences.embed(hasher, "\u200b", "en")


def test_batches_and_memory_are_bounded(hasher, asked, monkeypatch):
    monkeypatch.setattr(module, "TOGETHER", 3)
    sentences = Sentences()
    with ExitStack() as stack:
        for n in range(9):
            stack.enter_context(sentences.waiting(hasher, f"dog {n}", "en"))
        for n in range(9):
            sentences.embed(hasher, f"dog {n}", "en")
    assert [len(texts) for texts in asked] == [3, 3, 3]
    monkeypatch.setattr(module, "KEPT", 4)
    sentences.embed(hasher, "bird", "en")
    assert len(sentences._kept) == 4
    assert not sentences._waiting
