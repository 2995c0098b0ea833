"""Texts as sequences of word vectors: features, the LSTM that reads them, and a run of them from photos to a search."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from running import QUICK, files, run, write_own

import cmrhash
from cmrhash.encoders import bag_and_vectors
from cmrhash.training.sequences import SequenceHead

WORDS = ["a", "dog", "Hund", *map(str, range(8))]


@pytest.fixture
def vectors(tmp_path):
    """A file of word vectors of 5 numbers."""
    rng = np.random.default_rng(1)
    lines = [" ".join([word, *(f"{x:.3f}" for x in rng.normal(size=5))]) for word in WORDS]
    (tmp_path / "mine.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return tmp_path / "mine.txt"


def test_known_words_stand_one_after_the_other_and_the_rest_is_0(vectors):
    captions = {"en": ["a unknown dog 3", "a " * 30, "none"]}
    encoder = bag_and_vectors.load(str(vectors), captions, captions, vocabulary=9, pooling="sequence")["en"]
    rows = dict(zip(encoder.vocabulary, encoder.vectors, strict=True))
    x = encoder.encode(captions["en"])
    assert x.shape == (3, encoder.dim) == (3, 20 * 5)
    np.testing.assert_array_equal(x[0, :15], np.concatenate([rows["a"], rows["dog"], rows["3"]]))
    assert not x[0, 15:].any()
    assert not x[2].any()
    np.testing.assert_array_equal(x[1], np.tile(rows["a"], 20))
    again = bag_and_vectors.rebuild(encoder.name, encoder.recipe, encoder.arrays())
    np.testing.assert_array_equal(again.encode(captions["en"]), x)


def test_the_head_is_an_lstm_over_the_words_that_there_are():
    torch.manual_seed(0)
    head = SequenceHead(6 * 4, 8, 6, hidden=12).eval()
    lengths = [3, 6, 1, 0]
    x = torch.randn(4, 6, 4)
    for row, length in zip(x, lengths, strict=True):
        row[length:] = 0
    head.standardise(x.flatten(1))
    torch.testing.assert_close(head.scaled(x.flatten(1))[x.flatten(1) != 0].square().mean(), torch.tensor(1.0))
    states, _, last = head.layers
    for row, length, found in zip(x, lengths, head(x.flatten(1)), strict=True):  # one by one, without padding
        _, (state, _) = states.lstm(row[None, : max(length, 1)] / head.std[0])
        torch.testing.assert_close(found, torch.tanh(last(state[0, 0])))
    changed = x.clone()
    changed[0, [0, 1]] = x[0, [1, 0]]
    assert not torch.allclose(head(changed.flatten(1))[0], head(x.flatten(1))[0])  # the order counts


def test_a_run_from_photos_to_a_search(vectors, tmp_path, monkeypatch, capsys):
    write_own(tmp_path / "mine", 12)
    monkeypatch.chdir(tmp_path)
    image = ["--image-model", "mobilenet_v3_small", "--image-weights", "random", "--device", "cpu"]
    taken = ["--text-model", "mine.txt", "--pooling", "sequence"]
    assert run("extract", "--dataset", "manifest", "--root", "mine", *image, *taken) == 0
    before = files(tmp_path)
    for method in ("cca", "krr-ap"):
        assert run("train", "--method", method, "--bits", "8", "--device", "cpu") == 2
        assert "reads one vector per text" in capsys.readouterr().err
    assert {path for path in files(tmp_path).keys() - before.keys() if path.is_file()} == set()
    assert run("train", "--method", "triplet", *QUICK) == 0
    assert run("eval") == 0
    assert run("search", "a dog 3", "--lang", "en", "--k", "2") == 0
    assert run("export", "out", "--with-encoders", "--device", "cpu") == 0
    hasher = cmrhash.load("runs/manifest/triplet-8", device="cpu")
    assert isinstance(hasher.heads["text-en"], SequenceHead)
    shared = cmrhash.from_pretrained("out", device="cpu", offline=True)
    texts = ["a dog 3", "3 a dog", "none"]
    np.testing.assert_array_equal(shared.encode_text(texts, lang="en"), hasher.encode_text(texts, lang="en"))
