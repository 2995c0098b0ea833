"""A head that scores a language it was not trained on, through the same text encoder."""

import shutil
from dataclasses import replace

import pytest
from slow_scores import QUICK, expected_ap, hamming, mean, rankings

from cmrhash.config import EvalConfig
from cmrhash.errors import UsageError
from cmrhash.evaluation.evaluate import evaluate
from cmrhash.features.file import FeatureWriter, read_features
from cmrhash.training import runs
from cmrhash.training.train import train


@pytest.fixture
def english(mine):
    """A run trained on English alone beside the joint ones."""
    data, out = mine
    run, _ = train(replace(QUICK, langs=("en",)), data, out)
    return data, out, run


def seal_text(folder, lang, name, change):
    """Texts of a language as another encoder would leave them: the same rows under another recipe."""
    old = read_features(folder / f"text-{lang}-toy.h5")
    recipe = {**old.recipe, **change}
    path = folder / f"text-{lang}-{name}.h5"
    with FeatureWriter(path, old.item, old.ids, old.x.shape[1], recipe, len(old.x)) as writer:
        writer.commit(0, old.x * 2, old.valid, old.source)
        writer.seal({})
    return path


@pytest.mark.slow
def test_a_head_scores_another_language_through_the_same_text_encoder(english):
    data, out, run = english
    rows = [row for row in evaluate(EvalConfig(bits=(8,)), data, out).rows if row["trained_langs"] == ["en"]]
    assert [(row["lang"], row["head_lang"]) for row in rows] == [("de", "en")] * 2 + [("en", "en")] * 2
    for row in rows:
        head = "text-en" if row["lang"] == "de" else None
        slow = rankings(run, data, row["lang"], row["direction"], hamming, head=head)
        assert row["map"] == pytest.approx(mean(map(expected_ap, slow)), abs=1e-9)
    result = evaluate(EvalConfig(langs=("de",), directions=("t2t",)), data, out)
    assert [row["database_head_lang"] for row in result.rows] == ["de", "de", "en"]
    assert "de by the head of en" in result.protocol["untrained languages"]


def test_a_language_by_another_encoder_is_refused_and_left_out(english):
    data, out, run = english
    (data.folder / "text-de-toy.h5").rename(data.folder.parent / "kept.h5")
    shutil.rmtree(out / "toy" / "triplet-8")
    shutil.rmtree(out / "toy" / "triplet-13")
    with pytest.raises(UsageError, match=r"no features for language 'de' \(there: en\)"):
        evaluate(EvalConfig(langs=("de",)), data, out)
    (data.folder.parent / "kept.h5").rename(data.folder / "text-de-toy.h5")
    seal_text(data.folder, "de", "bert", {"weights_sha256": "0123456789abcdef"})
    (data.folder / "text-de-toy.h5").unlink()
    with pytest.raises(UsageError, match="weights_sha256 = 0123456789ab, those of text-en with nothing.*`langs=..de"):
        evaluate(EvalConfig(langs=("de",)), data, out)
    assert {row["lang"] for row in evaluate(EvalConfig(), data, out).rows} == {"en"}
    assert run.langs == ("en",)


def test_a_language_that_is_extracted_later_makes_the_codes_anew(english):
    data, out, run = english
    (data.folder / "text-de-toy.h5").rename(data.folder.parent / "kept.h5")

    def langs():
        rows = evaluate(EvalConfig(bits=(8,), methods=("triplet",)), data, out).rows
        return {row["lang"] for row in rows if row["run"] == str(run.folder)}

    shutil.rmtree(out / "toy" / "triplet-8")
    assert langs() == {"en"}
    (data.folder.parent / "kept.h5").rename(data.folder / "text-de-toy.h5")
    assert langs() == {"de", "en"}
    before = (run.folder / runs.CODES).stat().st_mtime_ns
    assert langs() == {"de", "en"}
    assert (run.folder / runs.CODES).stat().st_mtime_ns == before


def test_codes_outlive_the_features(english):
    data, out, _ = english
    before = evaluate(EvalConfig(), data, out).rows
    for path in data.folder.glob("*.h5"):
        path.unlink()
    assert evaluate(EvalConfig(), data, out).rows == before
    assert [row for row in before if row["lang"] == "de"] == evaluate(EvalConfig(langs=("de",)), data, out).rows
