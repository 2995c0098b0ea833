"""Models of fastText in its binary format, against a slow reading of the format's definition."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from word_vectors import load

from cmrhash.encoders.bag_and_vectors import takes
from cmrhash.encoders.fasttext_file import bucket_of, ngrams
from cmrhash.encoders.word_vectors import read_vectors
from cmrhash.errors import EncoderError

WORDS = ["the", "dog", "straße", "Hund", "</s>"]
DIM, BUCKET, LABELS = 5, 37, ["__label__x"]


def matrix(rows: int) -> np.ndarray:
    return np.random.default_rng(rows).normal(size=(rows, DIM)).astype(np.float32)


def model(
    version: int = 12,
    kind: int = 2,
    minn: int = 3,
    maxn: int = 6,
    bucket: int = BUCKET,
    pruned: dict[int, int] | None = None,
    quantised: bool = False,
    x: np.ndarray | None = None,
    **wrong: int,
) -> bytes:
    """A .bin file, field by field. wrong: other values of the fields that tell how much follows."""
    x = matrix(len(WORDS) + bucket) if x is None else x
    said = {
        "dim": DIM,
        "words": len(WORDS),
        "size": len(WORDS) + len(LABELS),
        "rows": len(x),
        "magic": 793712314,
    } | wrong
    out = struct.pack("<ii", said["magic"], version)
    for number in (said["dim"], 5, 5, 1, 5, 1, 2, kind, bucket, minn, maxn, 100):
        out += struct.pack("<i", number)
    out += struct.pack("<d", 1e-4)
    out += struct.pack("<iiiqq", said["size"], said["words"], len(LABELS), 99, -1 if pruned is None else len(pruned))
    for count, word in enumerate(WORDS + LABELS):
        out += word.encode() + b"\0" + struct.pack("<qb", count + 1, word in LABELS)
    for old, new in (pruned or {}).items():
        out += struct.pack("<ii", old, new)
    return out + struct.pack("<?qq", quantised, said["rows"], x.shape[1]) + x.tobytes() + b"\0" * 9


def slow_hash(raw: bytes) -> int:
    """FNV-1a with 32-bit numbers and bytes of C's signed char."""
    h = np.uint32(2166136261)
    with np.errstate(over="ignore"):
        for signed in np.frombuffer(raw, np.int8):
            h = np.uint32(h ^ np.uint32(int(signed) % 2**32)) * np.uint32(16777619)
    return int(h)


def slow_vector(word: str, x: np.ndarray, minn: int, maxn: int, bucket: int) -> np.ndarray | None:
    """By bytes, as fastText walks over them: continuation bytes of UTF-8 start no n-gram and end none."""
    raw, rows = b"<" + word.encode() + b">", [WORDS.index(word)] if word in WORDS else []
    starts = [at for at, byte in enumerate(raw) if byte & 0xC0 != 0x80] + [len(raw)]
    for i, start in enumerate(starts[:-1]):
        for n in range(1, maxn + 1):
            if i + n >= len(starts) or n < minn:
                continue
            end = starts[i + n]
            if n == 1 and (start == 0 or end == len(raw)):
                continue
            rows.append(len(WORDS) + slow_hash(raw[start:end]) % bucket)
    return np.mean([x[row].astype(float) for row in rows], 0) if rows else None


def put(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(("minn", "maxn"), [(3, 6), (1, 2), (2, 2), (0, 4), (5, 5)])
def test_vectors_are_the_means_of_words_and_ngrams(tmp_path: Path, minn: int, maxn: int) -> None:
    path = put(tmp_path / "m.bin", model(minn=minn, maxn=maxn))
    wanted = {"the", "dog", "dogs", "straße", "weiß", "東京", "x", "Hund", "Unbekannt"}
    found = read_vectors(path, wanted)
    x = matrix(len(WORDS) + BUCKET)
    for word in wanted:
        expected = slow_vector(word, x, minn, maxn, BUCKET)
        assert (word in found) == (expected is not None), word
        if expected is not None:
            assert found[word].dtype == np.float32
            np.testing.assert_allclose(found[word], expected, atol=1e-6)


@given(st.text(min_size=1, max_size=12), st.integers(1, 2_000_000))
def test_the_hash_is_that_of_the_definition(text: str, bucket: int) -> None:
    raw = text.encode(errors="replace").decode()
    assert bucket_of(raw, bucket) == slow_hash(raw.encode()) % bucket
    assert all(0 < len(each) <= 4 and each in f"<{raw}>" for each in ngrams(raw, 2, 4))


def test_gensim_reads_the_same_vectors(tmp_path: Path) -> None:
    pytest.importorskip("gensim", reason="gensim, the extra 'words', is not installed")
    from gensim.models.fasttext import FastText, load_facebook_vectors, save_facebook_model

    sentences = [["ein", "Hund", "im", "Schnee"], ["a", "dog", "runs"], ["größe", "dog"]] * 5
    made = FastText(sentences, vector_size=8, min_count=1, bucket=50, min_n=3, max_n=5, epochs=1, workers=1)
    save_facebook_model(made, str(tmp_path / "m.bin"))
    theirs = load_facebook_vectors(str(tmp_path / "m.bin"))
    for word, vector in read_vectors(tmp_path / "m.bin", {"Hund", "größe", "hündchen", "dogs", "a"}).items():
        np.testing.assert_allclose(vector, theirs[word], atol=1e-6)


def test_a_word_that_is_known_in_lower_case_is_not_made_of_its_ngrams(tmp_path: Path) -> None:
    path = put(tmp_path / "cc.en.bin", model())
    assert read_vectors(path, {"Dog", "dog", "HUND", "hund"}).keys() == {"dog", "HUND", "hund"}
    made = load(path)
    assert (made["en"].name, made["en"].dim) == ("vectors-cc.en-mean", DIM)
    assert made["en"].rows("A Dog zebra")[1] == made["en"].vocabulary["dog"]
    assert made["en"].unknown_share(["zebra dog"]) == 0


def test_models_without_ngrams_know_their_words_alone(tmp_path: Path) -> None:
    wanted = {"dog", "dogs"}
    for content in (
        model(maxn=0),
        model(bucket=0, maxn=0),
        model(version=11, kind=3),
        model(pruned={}),
        model(bucket=0),
    ):
        found = read_vectors(put(tmp_path / "m.bin", content), wanted)
        assert found.keys() == {"dog"}
    one = {slow_hash(b"<do") % BUCKET: 3}
    found = read_vectors(put(tmp_path / "m.bin", model(pruned=one)), {"dots"})
    np.testing.assert_allclose(found["dots"], matrix(len(WORDS) + BUCKET)[len(WORDS) + 3])


@pytest.mark.faults("hostile file")
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (model(quantised=True), r"a quantised model of fastText \(\.ftz\): .*: give the \.bin file"),
        (model(version=13), "version 13 of fastText's format"),
        (model(dim=0), "the header is not fastText's"),
        (model(words=4), "the header is not fastText's"),
        (model(words=-1, size=0), "the header is not fastText's"),
        (model(size=2**31 - 1, words=2**31 - 2), "the file ends before its last vector"),
        (model(rows=2**40), "the file ends before its last vector"),
        (model(rows=9), "9 x 5 numbers for 5 words of 5"),
        (model(dim=6), "42 x 5 numbers for 5 words of 6"),
        (model(pruned={1: 2**30}), "42 x 5 numbers for 5 words"),
        (model(pruned={1: -9}), "42 x 5 numbers for 5 words"),
        (model(x=np.full((len(WORDS) + BUCKET, DIM), np.nan, np.float32)), "the vector of 'dog' is not finite"),
        (gzip.compress(model(), mtime=0), r"a packed model of fastText: .*: unpack it with gunzip"),
        (model(magic=7), "the word vectors are binary"),
    ],
)
def test_other_files_are_one_line(tmp_path: Path, content: bytes, message: str) -> None:
    path = put(tmp_path / ("m.bin.gz" if content[:2] == b"\x1f\x8b" else "m.bin"), content)
    with pytest.raises(EncoderError, match=message) as caught:
        read_vectors(path, {"dog"})
    assert "\n" not in str(caught.value)


@pytest.mark.faults("hostile file")
def test_every_cut_file_is_refused(tmp_path: Path) -> None:
    whole = model(bucket=3)[:-9]
    for size in range(4, len(whole)):
        with pytest.raises(EncoderError, match="the file ends before its last vector"):
            read_vectors(put(tmp_path / "m.bin", whole[:size]), {"dog"})
    assert read_vectors(put(tmp_path / "m.bin", whole), {"dog"})


@pytest.mark.faults("hostile file")
@given(st.integers(4, 200), st.integers(0, 255))
def test_a_changed_byte_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, at: int, byte: int) -> None:
    content = bytearray(model(bucket=3))
    content[at] = byte
    path = put(tmp_path_factory.mktemp("any") / "m.bin", bytes(content))
    try:
        read_vectors(path, {"dog", "cat"})
    except EncoderError as error:
        assert "\n" not in str(error)


def test_a_quantised_file_that_is_not_there_is_a_file_of_vectors() -> None:
    assert takes("none/lid.176.ftz")
