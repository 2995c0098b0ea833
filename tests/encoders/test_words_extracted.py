"""Bags of words and word vectors, extracted into the cache."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
from word_vectors import VECTORS, text_of

from cmrhash.config import ExtractConfig
from cmrhash.errors import CmrhashError, DataError, StaleError
from cmrhash.features import captions as extract_texts
from cmrhash.features.captions import load_words, words_path
from cmrhash.features.extract import extract
from cmrhash.features.file import read_features

pytestmark = pytest.mark.slow


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
    assert [f.path.name for f in both.files] == ["text-de-bow2912.h5", "text-en-vectors-mine.300d-mean.h5"]
    one = run(source, tmp_path / "c", f"de={file}", pooling="tf-idf", langs=("de",))
    assert one.files[0].path.read_bytes() == (report.folder / f"text-de-{stem}").read_bytes()


def test_two_extractions_give_the_same_bytes_and_lost_words_are_written_again(source, file, tmp_path):
    first, second = (run(source, tmp_path / name, str(file), pooling="tf-idf") for name in "ab")
    side = [words_path(report.files[0].path) for report in (first, second)]
    assert side[0].read_bytes() == side[1].read_bytes()
    content = side[0].read_bytes()
    side[0].unlink()
    with pytest.raises(DataError, match="the words of this feature file are missing"):
        load_words(first.files[0].path)
    assert not run(source, tmp_path / "a", str(file), pooling="tf-idf").files[0].fresh
    assert side[0].read_bytes() == content


def test_words_of_another_recipe_are_refused(source, file, tmp_path):
    report = run(source, tmp_path, str(file), langs=("en",))
    path = report.files[0].path
    before = words_path(path).read_bytes()
    file.write_bytes(text_of(VECTORS | {"dog": [5, 5, 5]}))
    with pytest.raises(StaleError, match=r"made with weights_sha256 = \w+, but this call has \w+: .*text-en-vectors"):
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
    assert not run(source, tmp_path / "cache", str(moved), langs=("en",)).files[0].fresh


def test_word2vec_is_extracted(source, tmp_path, small):
    pytest.importorskip("gensim", reason="gensim, the extra 'words', is not installed")
    report = run(source, tmp_path, "word2vec", pooling="sum")
    assert names(report)[:2] == ["text-de-word2vec-sum.h5", "text-en-word2vec-sum.h5"]
    features = read_features(report.folder / "text-en-word2vec-sum.h5")
    assert load_words(features_path := report.folder / "text-en-word2vec-sum.h5").encode(["a dog 0"]).any()
    assert features.x[0].any()
    assert not run(source, tmp_path, "word2vec", pooling="sum").files[0].fresh
    with pytest.raises(StaleError, match=f"made with seed = 0, but this call has 1: .*{report.files[0].path.name}"):
        run(source, tmp_path, "word2vec", pooling="sum", seed=1, image_model="resnet18")
    assert features_path.exists()
