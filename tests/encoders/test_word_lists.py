"""The vocabulary of a bag of words, given as a file."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from extracting import config
from running import ENCODERS, run, write_own
from trees import put
from word_vectors import load

from cmrhash.encoders.word_lists import read_words
from cmrhash.errors import UsageError
from cmrhash.features import extract as extraction
from cmrhash.features.captions import load_words
from cmrhash.features.file import read_features

WORDS = ["zebra", "dog", "New York", "cat", "d50's", "!!"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("dog\ncat\n", ["dog", "cat"]),
        ("\ufeffdog \r\n\r\n  cat\r\n", ["dog", "cat"]),
        ("nikon 3500\nexplore\t8000\n2008 7\n", ["nikon", "explore", "2008"]),
        ("dog 3\nhot dog\n", ["dog 3", "hot dog"]),
        ("gru\u0308n\n\u2028a\u0085b", ["gr\u00fcn", "a b"]),
    ],
)
def test_words_stand_one_a_line_or_with_their_count(tmp_path, content, words):
    put(tmp_path / "w.txt", content)
    assert read_words(tmp_path / "w.txt") == words


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file has 0 words"),
        (b" \n\r\n", "the file has 0 words"),
        (b"dog\ncat\n\ndog \n", "line 4 repeats 'dog' of line 1"),
        ("gru\u0308n\ngr\u00fcn".encode(), "line 2 repeats 'gr\u00fcn' of line 1"),
        (b"dog\ncaf\xe9\n", "line 2 is not UTF-8"),
        (b"dog\0\n", "the file is binary"),
        (b"dog\n".join(b"%d" % n for n in range((1 << 20) + 1)), "the file has 1048577 words"),
    ],
)
def test_another_file_is_one_line(tmp_path, content, message):
    put(tmp_path / "w.txt", content)
    with pytest.raises(UsageError, match=rf"^vocabulary: {message}: .*w\.txt: ") as caught:
        load("bow", vocabulary=tmp_path / "w.txt")
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there_or_too_large_is_refused(tmp_path):
    with pytest.raises(UsageError, match="^vocabulary: no such file: .*none: give a number, or a file"):
        read_words(tmp_path / "none")
    with pytest.raises(UsageError, match="no such file"):
        read_words(tmp_path)
    with (tmp_path / "large").open("wb") as file:
        file.truncate((1 << 26) + 1)
    with pytest.raises(UsageError, match="too large"):
        read_words(tmp_path / "large")


def test_the_words_are_the_columns_in_the_order_of_the_file(tmp_path):
    put(tmp_path / "my tags.txt", "\n".join(WORDS))
    made = load("bow", train={}, vocabulary=tmp_path / "my tags.txt")
    encoder = made["en"]
    assert (encoder.name, encoder.dim, list(encoder.vocabulary)) == ("bow-my_tags", 6, WORDS)
    found = encoder.encode(["A Dog in new york, a cat", "York, new: D50's new-york!!", "???"])
    np.testing.assert_array_equal(found, [[0, 1, 1, 1, 0, 0], [0, 0, 1, 0, 1, 0], [0] * 6])
    put(tmp_path / "other.txt", "\n".join(reversed(WORDS)))
    other = load("bow", vocabulary=tmp_path / "other.txt")["de"]
    assert other.recipe["weights_sha256"] != encoder.recipe["weights_sha256"]


def test_the_cache_needs_the_file_no_more(tmp_path):
    write_own(tmp_path / "mine")
    words = tmp_path / "tags.txt"
    put(words, "dog 9\nhund 8\n7 7\n")
    settings = config(tmp_path / "mine", tmp_path / "cache", text_models=("bow",), vocabulary=words)
    report = extraction.extract(settings)
    path = report.folder / "text-en-bow-tags.h5"
    words.unlink()
    encoder = load_words(path)
    assert list(encoder.vocabulary) == ["dog", "hund", "7"]
    features = read_features(path)
    assert features.x.sum() == 9
    assert encoder.encode([f"dog {n}" for n in range(8)]).tobytes() == features.x.tobytes()
    put(words, "cat\ndog\nhund\n")
    with pytest.raises(Exception, match="weights_sha256"):
        extraction.extract(settings)
    with pytest.raises(UsageError, match=r"^no text model is bow, which uses the words of .*tags\.txt: add"):
        extraction.extract(replace(settings, text_models=("random",)))


def test_the_command_takes_a_number_or_a_file(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_own(tmp_path / "mine")
    put(tmp_path / "tags.txt", "dog\nhund\n")
    words = ["extract", "mine", *ENCODERS[:-1], "bow"]
    assert run(*words, "--vocabulary", "tags.txt") == 0
    assert run(*words, "--vocabulary", "3") == 0
    assert {p.name for p in (tmp_path / "cache/mine").glob("text-en*")} == {"text-en-bow-tags.h5", "text-en-bow3.h5"}
    capsys.readouterr()
    for value, message in {
        "0": "--vocabulary: 0 is out of range: give a whole number from 1, or a file",
        "": "the path is empty",
        "none.txt": "--vocabulary: no such file: none.txt: give a number",
    }.items():
        assert run(*words, "--vocabulary", value) == 2
        assert f"error: {message}" in capsys.readouterr().err
