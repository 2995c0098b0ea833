"""Files of word vectors, and word2vec trained on the captions."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys

import numpy as np
import pytest
from word_vectors import VECTORS, load, text_of

from cmrhash.encoders.bag_and_vectors import takes
from cmrhash.encoders.word_vectors import read_vectors
from cmrhash.errors import EncoderError, UsageError

# ---------------------------------------------------------------------------------------------- files of word vectors


WANTED = {"a", "dog", "cat", "Hund", "straße", "at"}


@pytest.mark.parametrize("header", [False, True])
@pytest.mark.parametrize("end", ["", " ", "\r", " \r"])
@pytest.mark.parametrize("packed", [False, True])
def test_every_usual_form_of_the_file_is_read(tmp_path, header, end, packed):
    content = text_of(VECTORS | {"straße": [1e-3, -2, 3]}, header, end)
    path = tmp_path / ("v.vec.gz" if packed else "v.vec")
    path.write_bytes(gzip.compress(content) if packed else content)
    found = read_vectors(path, WANTED)
    assert found.keys() == {"a", "dog", "cat", "Hund", "straße"}
    assert found["dog"].dtype == np.float32
    assert found["dog"].tolist() == [0, 2, 0]
    assert found["straße"].tolist() == np.array([1e-3, -2, 3], np.float32).tolist()


def test_odd_lines_of_published_files_are_read_as_gensim_reads_them(tmp_path):
    """Tokens with spaces or of bytes that are no UTF-8, white space that is no line's end, words that stand twice."""
    lines = [", 1 2 3", "dog 4 5 6", "at name@domain.com 1 1 1", ". . . 2 2 2", "\u00a0 3 3 3", "a\u0085b 4 4 4"]
    lines += ["\u2028 1 1 1", "dog 9 9 9", "", "cat 1e-2 -.5 +3", " 5 5 5", "2010 6 6 6"]
    path = tmp_path / "odd.txt"
    path.write_bytes("\n".join(lines).encode() + b"\n\xff\xfe 1 2 3\nHund 7 8 9")
    found = {word: vector.tolist() for word, vector in read_vectors(path, WANTED | {"2010"}).items()}
    assert found.keys() == {"dog", "cat", "Hund", "2010"}
    assert (found["dog"], found["Hund"], found["2010"]) == ([4, 5, 6], [7, 8, 9], [6, 6, 6])
    np.testing.assert_allclose(found["cat"], [0.01, -0.5, 3])


def test_gensim_reads_the_same_numbers(tmp_path):
    gensim = pytest.importorskip("gensim", reason="gensim, the extra 'words', is not installed")
    path = tmp_path / "v.txt"
    path.write_bytes(text_of(VECTORS, header=True))
    theirs = gensim.models.KeyedVectors.load_word2vec_format(str(path))
    ours = read_vectors(path, set(VECTORS))
    assert ours.keys() == set(theirs.index_to_key)
    for word, vector in ours.items():
        assert vector.tobytes() == theirs[word].tobytes()


FORMAT = "give the text format of word2vec, GloVe or fastText"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"# Read me first\n\nThese are words\n", f"line 1 is not a word and its numbers: .*: {FORMAT}"),
        (b"dog\ncat\n", "line 1 is not a word and its numbers"),
        (b'{"dog": [1, 2, 3]}', "line 1 is not a word and its numbers"),
        (b"dog,1,2,3\ncat,4,5,6\n", "line 1 is not a word and its numbers"),
        (b"dog 1 2 3\ncat 4 5\n", "line 2 is not a word and 3 numbers"),
        (b"dog 1 2 3\nunused 4 5\n", "line 2 is not a word and 3 numbers"),
        (b"dog 1 2 3\ncat 4 5 x\n", "line 2 is not a word and 3 numbers"),
        (b"dog 1 2 3\ncat 4 nan 5\n", "line 2 is not a word and 3 numbers"),
        (b"dog 1 2 inf\n", "line 1 is not a word and its numbers"),
        (b"1 3\ndog 1 2 inf\n", "line 2 is not a word and 3 numbers"),
        (b"2 4\ndog 1 2 3\ncat 4 5 6\n", "line 2 is not a word and 4 numbers"),
        (b"2 2\ndog 1 2 3\ncat 4 5 6\n", "line 2 is not a word and 2 numbers"),
        (b"3 3\ndog 1 2 3\ncat 4 5 6\n", "2 of 3 word vectors: .*: it is truncated"),
        (b"3 3\n", "0 of 3 word vectors"),
        (b"", "0 of its word vectors"),
        (b"2 3\ndog \x00\x00\x80?\x00\x00\x00@\n", "the word vectors are binary: .*: save them as text"),
        ("dog 1 2 3\n".encode("utf-16"), "the word vectors are binary"),
    ],
)
def test_a_file_of_another_format_is_refused_by_its_line(tmp_path, content, words):
    path = tmp_path / "bad.txt"
    path.write_bytes(content)
    with pytest.raises(EncoderError, match=words) as caught:
        read_vectors(path, WANTED)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_packed_files_that_are_damaged_are_refused(tmp_path):
    content = gzip.compress(text_of({str(n): np.random.default_rng(n).random(3) for n in range(5000)}))
    for name, bad in (("cut", content[:-2000]), ("head", b"x" + content[1:]), ("plain", text_of(VECTORS))):
        path = tmp_path / f"{name}.txt.gz"
        path.write_bytes(bad)
        with pytest.raises(EncoderError, match=rf"cannot read the word vectors \(.+\): {path}: get the file again"):
            read_vectors(path, WANTED)


def test_a_path_or_name_decides_who_encodes(file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.vec").mkdir()
    taken = ["bow", "word2vec", str(file), file.name, "none.txt", "./none.vec", "~/none.vec.gz", "none.bin"]
    assert all(takes(model) for model in taken)
    assert not any(takes(model) for model in ("random", str(tmp_path), "folder.vec", "bert-base-uncased", "a/b", ""))
    with pytest.raises(EncoderError, match=r"no such file of word vectors: none\.txt: check the path"):
        load("none.txt")


# ---------------------------------------------------------------------------------------------- word2vec


@pytest.fixture(scope="module")
def corpus():
    pytest.importorskip("gensim", reason="gensim, the extra 'words', is not installed")
    rng = np.random.default_rng(0)
    groups = (["dog", "puppy", "barks", "Fur"], ["car", "wheel", "drives", "road"])
    return [" ".join(rng.choice(groups[n % 2], 6)) for n in range(200)]


def trained(corpus, **options):
    return load("word2vec", {"en": corpus}, {"en": [*corpus, "zebra"]}, **options)["en"]


def test_words_that_stand_together_are_alike(corpus, small):
    encoder = trained(corpus)
    assert set(encoder.vocabulary) == {"dog", "puppy", "barks", "fur", "car", "wheel", "drives", "road"}
    assert (encoder.name, encoder.dim) == ("word2vec-mean", 16)
    x = encoder.encode(["dog", "Puppy", "car", "wheel", "zebra"])
    unit = x[:4] / np.linalg.norm(x[:4], axis=1, keepdims=True)
    cosine = unit @ unit.T
    assert min(cosine[0, 1], cosine[2, 3]) > cosine[:2, 2:].max() + 0.05
    assert not x[4].any()


@pytest.mark.slow
def test_the_same_seed_gives_the_same_vectors_in_every_process(corpus, small):
    one, same, other = (trained(corpus, seed=seed) for seed in (3, 3, 4))
    assert one.recipe == same.recipe
    assert {"encoder": "word2vec", "seed": 3, "weights": "trained"}.items() <= one.recipe.items()
    assert one.recipe["settings"]["vector_size"] == 16
    assert other.recipe["weights_sha256"] != one.recipe["weights_sha256"]
    code = (
        "import json, sys; from cmrhash.encoders import bag_and_vectors as bags, word_vectors; "
        "word_vectors.WORD2VEC['vector_size'] = 16; "
        "corpus = json.load(sys.stdin); print(bags.load('word2vec', {'en': corpus}, {'en': corpus}, vocabulary=1, "
        "seed=3)['en'].recipe['weights_sha256'])"
    )
    for hash_seed in ("1", "2"):
        env = {"PYTHONHASHSEED": hash_seed, "PYTHONPATH": ":".join(sys.path)}
        done = subprocess.run(
            [sys.executable, "-c", code], input=json.dumps(corpus), capture_output=True, text=True, env=env
        )
        assert done.stdout.strip() == one.recipe["weights_sha256"], done.stderr


def test_training_says_nothing_and_survives_a_corpus_of_one_word_and_any_seed(corpus, small, capfd):
    encoder = trained(["dog"], seed=2**40)
    assert np.isfinite(encoder.encode(["dog"])).all()
    assert capfd.readouterr() == ("", "")


def test_without_gensim_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "gensim", None)
    with pytest.raises(UsageError, match=r'word2vec needs gensim, which is not .*: pip install "cmrhash\[words\]"'):
        load("word2vec")
