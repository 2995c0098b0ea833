"""Which text model encodes which language."""

from __future__ import annotations

import pytest
from extracting import COUNT, DE, EN, config, entry, save_bert, write

from cmrhash.config import ExtractConfig
from cmrhash.encoders import text as text_encoders
from cmrhash.errors import UsageError
from cmrhash.features.extract import extract
from cmrhash.features.file import read_features
from cmrhash.features.text_models import models_of, unused


def test_languages_with_the_same_model_share_it(source, tmp_path, monkeypatch):
    folder, loaded, honest = str(save_bert(tmp_path / "tiny-bert")), [], text_encoders.load
    monkeypatch.setattr(text_encoders, "load", lambda model, **more: loaded.append(model) or honest(model, **more))
    report = extract(config(source, tmp_path / "cache", text_models=(folder,), dtype="float32"))
    assert loaded == [folder]
    assert [f.path.name for f in report.files[1:]] == ["text-de-tiny-bert.h5", "text-en-tiny-bert.h5"]
    german, english = (read_features(f.path) for f in report.files[1:])
    assert {"lang": "de", "encoder": "bert", "weights": "trained"}.items() <= german.recipe.items()
    assert german.recipe["weights_sha256"] == english.recipe["weights_sha256"]


def test_each_language_can_have_a_model_of_its_own(source, tmp_path):
    folder = save_bert(tmp_path / "tiny-bert")
    report = extract(config(source, tmp_path / "cache", text_models=(f"de={folder}", "random")))
    assert [f.path.name for f in report.files[1:]] == ["text-de-tiny-bert.h5", EN]


def test_an_untrained_vocabulary_is_learned_on_the_training_captions_alone(mine, tmp_path, clean):
    changed = [
        entry(n) | ({"texts": {"en": ["bird bird"], "de": ["Vogel Vogel"]}} if n == 0 else {}) for n in range(COUNT)
    ]
    write(mine, changed)
    report = extract(config(mine, tmp_path))
    for name in (EN, DE):
        after, before = (read_features(folder / name).recipe for folder in (report.folder, clean.folder))
        assert after == before


@pytest.mark.parametrize(
    ("options", "langs", "notes"),
    [
        (("bow",), [], ['`text_models=("bow",)` is not used: the photos have no captions to encode']),
        (("bow",), ["en"], []),
        (
            ("en=bow", "word2vec"),
            ["en"],
            ['`text_models=("word2vec",)` is not used: every language has another text model'],
        ),
        (("en=a=b",), ["en"], []),
        (("own",), [], []),
    ],
)
def test_a_text_model_that_encodes_nothing_is_named(options, langs, notes):
    asked = ExtractConfig(dataset="manifest", text_models=options)
    assert unused(asked, models_of(asked, langs)) == notes


def test_photos_without_captions_get_a_note_and_both_towers_none(mine, tmp_path):
    write(mine, [{key: value for key, value in entry(n).items() if key != "texts"} for n in range(COUNT)])
    report = extract(config(mine, tmp_path, text_models=("bow",)))
    assert [line for line in report.dataset.notes if "bow" in line]
    towers = ExtractConfig(image_model="clip", text_models=("clip",))
    assert unused(towers, {}) == []


@pytest.mark.parametrize(
    ("options", "langs", "models"),
    [
        ((), ["de", "en"], {"de": "bert-base-german-cased", "en": "bert-base-uncased"}),
        (("random",), ["de", "en"], {"de": "random", "en": "random"}),
        (("en=a/b",), ["de", "en"], {"de": "bert-base-german-cased", "en": "a/b"}),
        (("x", "de=y"), ["de", "en"], {"de": "y", "en": "x"}),
        (("de=y", "x"), ["de", "en"], {"de": "y", "en": "x"}),
        (("en=a=b",), ["en"], {"en": "a=b"}),
        (("/data/a=b/bert",), ["en"], {"en": "/data/a=b/bert"}),
        (("zh-Hant=x",), ["zh-Hant"], {"zh-Hant": "x"}),
        (("english=x",), ["english"], {"english": "x"}),
    ],
)
def test_models_are_given_by_language_or_for_all(options, langs, models):
    assert models_of(ExtractConfig(dataset="manifest", text_models=options), langs) == models


def test_the_sample_has_untrained_models_unless_told_otherwise():
    assert models_of(ExtractConfig(), ["en", "de"]) == {"en": "random", "de": "random"}
    assert models_of(ExtractConfig(text_models=("en=x",)), ["en", "de"]) == {"en": "x", "de": "random"}


def test_a_language_without_a_model_of_its_own_needs_one():
    with pytest.raises(UsageError, match="no text model for language 'fr': give `text_models=..fr=DIR"):
        models_of(ExtractConfig(dataset="manifest"), ["en", "fr"])
