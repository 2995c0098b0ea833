"""Text encoders without a transformer: what they count and average, which files they read, what they learn from."""

from __future__ import annotations

import gzip
import json
import math
import re
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmrhash.config import ExtractConfig
from cmrhash.encoders import bag_and_vectors
from cmrhash.encoders.bag_and_vectors import rebuild, split, takes
from cmrhash.encoders.word_vectors import WORD2VEC, read_vectors
from cmrhash.errors import CmrhashError, DataError, EncoderError, StaleError, UsageError
from cmrhash.features import captions as extract_texts
from cmrhash.features.captions import load_words, words_path
from cmrhash.features.extract import extract
from cmrhash.features.file import read_features

TRAIN = {
    "en": ["A dog runs.", "a dog and a cat", "The cat sleeps", "two dogs, one cat!"],
    "de": ["Ein Hund rennt.", "ein Hund und eine Katze", "die Katze schläft"],
}
ALL = {"en": [*TRAIN["en"], "a zebra runs", "???"], "de": [*TRAIN["de"], "Ein Zebra rennt"]}
VECTORS = {"a": [1, 0, 0], "dog": [0, 2, 0], "cat": [0, 0, 4], "runs": [1, 1, 1], "Hund": [0, 2, 1], "hund": [9, 9, 9]}
VECTORS |= {"katze": [0.5, -0.25, 4], "ein": [1, 0.125, 0], "unused": [7, 7, 7]}


def text_of(vectors, header=False, end=""):
    lines = [f"{len(vectors)} 3\n"] if header else []
    return "".join(lines + [f"{word} {' '.join(map(str, v))}{end}\n" for word, v in vectors.items()]).encode()


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "mine.300d.txt"
    path.write_bytes(text_of(VECTORS))
    return path


def load(model, train=TRAIN, captions=ALL, vocabulary=2912, **options):
    return bag_and_vectors.load(str(model), train, captions, vocabulary=vocabulary, **options)


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
    assert len({encoder.name for encoder in made}) == 3
    assert len({encoder.recipe["pooling"] for encoder in made}) == 3
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
    with pytest.raises(UsageError, match=f"--pooling {pooling}: {model or file}: choose one of {choices}"):
        load(model or file, pooling=pooling)


@pytest.mark.parametrize(("model", "pooling"), [("bow", None), ("word2vec", None), (None, "tf-idf")])
def test_without_train_captions_there_is_nothing_to_learn_from(file, model, pooling):
    for train in ({}, {"en": ["..."], "de": TRAIN["de"]}):
        with pytest.raises(EncoderError, match="no train caption in en has a word to learn from: give items the split"):
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


FORMAT = "give text, as word2vec, GloVe and fastText have it"


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
        (b"3 3\ndog 1 2 3\ncat 4 5 6\n", "2 of 3 word vectors: .*: cut short"),
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
        with pytest.raises(EncoderError, match=rf"cannot read the word vectors \(.+\): {path}: fetch the file again"):
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


@pytest.fixture(scope="module")
def small():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(WORD2VEC, "vector_size", 16)
        yield


def test_words_that_stand_together_are_alike(corpus, small):
    encoder = trained(corpus)
    assert set(encoder.vocabulary) == {"dog", "puppy", "barks", "fur", "car", "wheel", "drives", "road"}
    assert (encoder.name, encoder.dim) == ("word2vec-mean", 16)
    x = encoder.encode(["dog", "Puppy", "car", "wheel", "zebra"])
    unit = x[:4] / np.linalg.norm(x[:4], axis=1, keepdims=True)
    cosine = unit @ unit.T
    assert min(cosine[0, 1], cosine[2, 3]) > cosine[:2, 2:].max() + 0.05
    assert not x[4].any()


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
    with pytest.raises(UsageError, match=r'word2vec needs gensim: pip install "cmrhash\[words\]"'):
        load("word2vec")


# ---------------------------------------------------------------------------------------------- built again


@pytest.mark.parametrize(("model", "pooling"), [("bow", None), (None, "mean"), (None, "sum"), (None, "tf-idf")])
def test_an_encoder_built_from_its_arrays_is_the_same(file, model, pooling):
    encoder = load(model or file, pooling=pooling)["en"]
    again = rebuild(encoder.name, encoder.recipe, encoder.arrays())
    assert (again.name, again.dim, again.recipe) == (encoder.name, encoder.dim, encoder.recipe)
    captions = [*ALL["en"], "A Dog, a cat and something new"]
    assert again.encode(captions).tobytes() == encoder.encode(captions).tobytes()
    assert again.unknown_share(captions) == encoder.unknown_share(captions)


# ---------------------------------------------------------------------------------------------- as a whole


def entry(n):
    role = ["query"] if n < 2 else ["database", "val" if n == 2 else "train"]
    texts = {"en": [f"a dog {n}", f"cat {n % 3}" if "train" in role else "bird bird bird"], "de": [f"ein Hund {n}"]}
    return {"id": f"i{n}", "texts": texts, "labels": ["x"], "splits": role}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    root = tmp_path_factory.mktemp("source")
    (root / "manifest.jsonl").write_text("\n".join(json.dumps(entry(n)) for n in range(8)))
    return root


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(extract_texts, "TEXT_BLOCK", 4)


def run(source, cache, *models, **changes):
    settings = ExtractConfig(
        dataset="manifest",
        root=source,
        cache=cache,
        image_model="shufflenet_v2_x0_5",
        image_weights="random",
        text_models=models,
    )
    return extract(replace(settings, **changes))


def names(report):
    return sorted(p.name for p in report.folder.glob("*.h5") if not p.name.startswith("image"))


def test_a_bag_of_words_is_extracted_with_the_words_beside_it(source, tmp_path):
    report = run(source, tmp_path, "bow", vocabulary=6)
    assert names(report) == ["text-de-bow6.h5", "text-en-bow6.h5", "words-de-bow6.h5", "words-en-bow6.h5"]
    assert set(report.unknown_words) == {"de", "en"}
    features = read_features(report.folder / "text-en-bow6.h5")
    assert features.valid.all()
    encoder = load_words(report.folder / "text-en-bow6.h5")
    assert list(encoder.vocabulary) == ["a", "cat", "dog", "0", "1", "2"]  # 5, 5, 5, 2, 2, 1
    assert (encoder.name, encoder.dim) == ("bow6", 6)
    captions = [text for n in range(8) for text in entry(n)["texts"]["en"]]
    assert encoder.encode(captions).tobytes() == features.x.tobytes()
    assert encoder.recipe.items() <= features.recipe.items()


def test_a_file_serves_all_languages_or_the_one_that_it_is_given_for(source, file, tmp_path):
    report = run(source, tmp_path / "a", str(file), pooling="tf-idf")
    stem = "vectors-mine.300d-tf-idf.h5"
    assert names(report) == [f"text-de-{stem}", f"text-en-{stem}", f"words-de-{stem}", f"words-en-{stem}"]
    both = run(source, tmp_path / "b", f"en={file}", "bow", langs=("de", "en"))
    assert [f.path.name for f in both.files[1:]] == ["text-de-bow2912.h5", "text-en-vectors-mine.300d-mean.h5"]
    one = run(source, tmp_path / "c", f"de={file}", pooling="tf-idf", langs=("de",))
    assert one.files[1].path.read_bytes() == (report.folder / f"text-de-{stem}").read_bytes()


def test_two_extractions_give_the_same_bytes_and_lost_words_are_written_again(source, file, tmp_path):
    first, second = (run(source, tmp_path / name, str(file), pooling="tf-idf") for name in "ab")
    side = [words_path(report.files[1].path) for report in (first, second)]
    assert side[0].read_bytes() == side[1].read_bytes()
    content = side[0].read_bytes()
    side[0].unlink()
    with pytest.raises(DataError, match="no words are kept"):
        load_words(first.files[1].path)
    assert not run(source, tmp_path / "a", str(file), pooling="tf-idf").files[1].fresh
    assert side[0].read_bytes() == content


def test_words_of_another_recipe_are_refused(source, file, tmp_path):
    report = run(source, tmp_path, str(file), langs=("en",))
    path = report.files[1].path
    before = words_path(path).read_bytes()
    file.write_bytes(text_of(VECTORS | {"dog": [5, 5, 5]}))
    with pytest.raises(StaleError, match=r"made with weights_sha256 = \w+, asked for \w+: .*text-en-vectors"):
        run(source, tmp_path, str(file), langs=("en",))
    assert words_path(path).read_bytes() == before
    run(source, tmp_path, str(file), langs=("en",), overwrite=True)
    assert load_words(path).encode(["dog"]).tolist() == [[5, 5, 5]]
    words_path(path).write_bytes(before)
    with pytest.raises(StaleError, match="word file was made with weights_sha256"):
        load_words(path)
    words_path(path).write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
    with pytest.raises(CmrhashError):
        load_words(path)


def test_a_moved_file_of_the_same_name_is_the_same(source, file, tmp_path):
    run(source, tmp_path / "cache", str(file), langs=("en",))
    (tmp_path / "elsewhere").mkdir()
    moved = shutil.copy(file, tmp_path / "elsewhere" / file.name)
    assert not run(source, tmp_path / "cache", str(moved), langs=("en",)).files[1].fresh


def test_word2vec_is_extracted(source, tmp_path, small):
    pytest.importorskip("gensim", reason="gensim, the extra 'words', is not installed")
    report = run(source, tmp_path, "word2vec", pooling="sum")
    assert names(report)[:2] == ["text-de-word2vec-sum.h5", "text-en-word2vec-sum.h5"]
    features = read_features(report.folder / "text-en-word2vec-sum.h5")
    assert load_words(features_path := report.folder / "text-en-word2vec-sum.h5").encode(["a dog 0"]).any()
    assert features.x[0].any()
    assert not run(source, tmp_path, "word2vec", pooling="sum").files[1].fresh
    with pytest.raises(StaleError, match=f"made with seed = 0, asked for 1: .*{report.files[1].path.name}"):
        run(source, tmp_path, "word2vec", pooling="sum", seed=1, image_model="resnet18")
    assert features_path.exists()
