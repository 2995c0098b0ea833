"""Extraction as a whole: complete, resumable, honest about bad items, and never a stale file for a fresh one."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from cmrhash.config import ExtractConfig
from cmrhash.data import manifest
from cmrhash.data.view import View
from cmrhash.encoders import text as text_encoders
from cmrhash.encoders.image import ImageEncoder
from cmrhash.encoders.text import TextEncoder
from cmrhash.errors import DamagedError, DataError, StaleError, UsageError
from cmrhash.features import captions as extract_texts
from cmrhash.features import extract as extract_module
from cmrhash.features import images as extract_images
from cmrhash.features.dataset import ExtractedDataset
from cmrhash.features.extract import _text_models, extract, refuse_bad
from cmrhash.features.file import read_features

SMALL = "shufflenet_v2_x0_5"  # the quickest of torchvision's classifiers
COUNT, BLOCK = 10, 4
IMAGES, EN, DE = f"image-{SMALL}-random.h5", "text-en-bert-random.h5", "text-de-bert-random.h5"
WORDS = {"en": ["dog", "cat"], "de": ["Hund", "Katze"]}


@pytest.fixture(autouse=True, scope="module")
def small_blocks_and_models():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(extract_images, "IMAGE_BLOCK", BLOCK)
        patch.setattr(extract_texts, "TEXT_BLOCK", BLOCK)
        tiny = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
        patch.setattr(text_encoders, "TINY", tiny)
        yield


def entry(n):
    texts = {lang: [f"{words[n % 2]} {n}", f"{words[n % 2]} {words[0]}"] for lang, words in WORDS.items()}
    if n == 3:
        del texts["de"]
    splits = ["query"] if n < 2 else ["database", "val" if n == 2 else "train"]
    return {"id": f"i{n}", "image": f"{n}.jpg", "texts": texts, "labels": [WORDS["en"][n % 2]], "splits": splits}


def write(root, entries):
    lines = [json.dumps(e, ensure_ascii=False) for e in entries]
    (root / "manifest.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def draw(root, n, seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (32, 40, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(root / f"{n}.jpg")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """The data set that is not to be touched."""
    root = tmp_path_factory.mktemp("source")
    for n in range(COUNT):
        draw(root, n, n)
    write(root, [entry(n) for n in range(COUNT)])
    return root


@pytest.fixture
def mine(source, tmp_path):
    """A copy of the data set, to be changed."""
    return shutil.copytree(source, tmp_path / "mine")


def config(root, cache, /, **changes):
    settings = ExtractConfig(
        dataset="manifest",
        root=root,
        cache=cache,
        image_model=SMALL,
        image_weights="random",
        text_models=("random",),
        image_batch=4,
    )
    return replace(settings, **changes)


@pytest.fixture(scope="module")
def clean(small_blocks_and_models, source, tmp_path_factory):
    """The report of an undisturbed extraction of the data set; its cache is not to be touched."""
    return extract(config(source, tmp_path_factory.mktemp("cache")))


@pytest.fixture
def made(clean, tmp_path):
    """A copy of that cache, to be changed."""
    return shutil.copytree(clean.folder.parent, tmp_path / "cache")


def contents(folder):
    """Name -> bytes of all that counts in a folder of the cache."""
    return {p.name: p.read_bytes() for p in folder.iterdir() if not p.name.startswith(".")}


def quarantine(report):
    lines = (report.folder / "quarantine.jsonl").read_text(encoding="utf-8").splitlines()
    return [(e["id"], e["stage"], e["code"]) for e in map(json.loads, lines)]


# ---------------------------------------------------------------------------------------------- as it should be


def test_every_file_is_made_and_every_item_accounted_for(clean):
    assert sorted(contents(clean.folder)) == sorted(["dataset.json", "items.jsonl", "quarantine.jsonl", IMAGES, EN, DE])
    assert [f.path.name for f in clean.files] == [IMAGES, DE, EN]
    assert [(f.items, f.rows, f.ok, f.bad) for f in clean.files] == [(10, 10, 10, 0), (10, 18, 9, 0), (10, 20, 10, 0)]
    assert all(f.items == f.ok + len(f.quarantine) for f in clean.files)
    assert all(f.fresh for f in clean.files)
    assert clean.untrained
    assert clean.unknown_words.keys() == {"en", "de"}
    assert quarantine(clean) == [("i3", "de", "no-text")]


def test_rows_belong_to_the_items_that_they_are_said_to_belong_to(clean, source):
    images, texts = read_features(clean.folder / IMAGES), read_features(clean.folder / DE)
    assert images.ids == texts.ids == tuple(f"i{n}" for n in range(COUNT))
    assert images.item.tolist() == list(range(COUNT))
    assert texts.item.tolist() == [n for n in range(COUNT) if n != 3 for _ in range(2)]
    encoder = extract_module.image_encoders.load(SMALL, "random")
    for n in (0, 9):
        expected = encoder.encode(np.stack([encoder.crop(Image.open(source / f"{n}.jpg"))]))[0]
        np.testing.assert_allclose(images.x[n], expected, atol=1e-4 * np.abs(expected).max())
    same = texts.x[1::2]  # "Hund Hund" or "Katze Hund"
    assert np.abs(same[0] - same[2]).max() < 1e-5 < 1e-3 < np.abs(same[0] - same[1]).max()


def test_a_second_call_finds_everything_there(made, source):
    before = contents(made / "manifest")
    calls = []
    report = extract(config(source, made), lambda *call: calls.append(call))
    assert [f.fresh for f in report.files] == [False, False, False]
    assert calls == []
    assert contents(made / "manifest") == before
    assert quarantine(report) == [("i3", "de", "no-text")]


def test_a_call_for_one_language_keeps_the_reasons_of_the_others(made, source):
    report = extract(config(source, made, langs=("en",)))
    assert quarantine(report) == [("i3", "de", "no-text")]


def test_two_extractions_give_the_same_bytes(clean, source, tmp_path):
    report = extract(config(source, tmp_path))
    assert contents(report.folder) == contents(clean.folder)


def test_languages_can_be_extracted_one_after_the_other(clean, source, tmp_path):
    report = extract(config(source, tmp_path, langs=("en", "en")))
    assert [f.path.name for f in report.files] == [IMAGES, EN]
    report = extract(config(source, tmp_path, langs=("de",)))
    assert [(f.path.name, f.fresh) for f in report.files] == [(IMAGES, False), (DE, True)]
    assert (report.folder / EN).read_bytes() == (clean.folder / EN).read_bytes()


def test_another_encoder_gets_a_file_of_its_own(clean, source, made, tmp_path):
    folder = save_bert(tmp_path / "tiny-bert")
    report = extract(config(source, made, image_model="mobilenet_v3_small", text_models=(str(folder),)))
    assert [(f.path.name, f.fresh) for f in report.files] == [
        ("image-mobilenet_v3_small-random.h5", True),
        ("text-de-tiny-bert.h5", True),
        ("text-en-tiny-bert.h5", True),
    ]
    for name in (IMAGES, EN, DE):
        assert (report.folder / name).read_bytes() == (clean.folder / name).read_bytes()


def test_a_folder_of_the_cache_can_itself_be_extracted(clean, tmp_path):
    report = extract(config(clean.folder, tmp_path, name="again"))
    assert report.folder == tmp_path / "again"
    for name in (IMAGES, EN, DE, "items.jsonl"):
        assert (report.folder / name).read_bytes() == (clean.folder / name).read_bytes()


def test_progress_goes_up_to_the_number_of_rows(source, tmp_path):
    calls = []
    extract(config(source, tmp_path), lambda *call: calls.append(call))
    for what, total in (("images", 10), ("de texts", 18), ("en texts", 20)):
        done = [call[1] for call in calls if call[0] == what]
        assert done == sorted(done)
        assert (done[0], done[-1]) == (0, total)
        assert {call[2] for call in calls if call[0] == what} == {total}


# ---------------------------------------------------------------------------------------------- killed and resumed


@pytest.fixture(scope="module")
def whole(small_blocks_and_models, source, tmp_path_factory):
    """A data set with two bad photos, and the report of its undisturbed extraction."""
    root = shutil.copytree(source, tmp_path_factory.mktemp("bad") / "root")
    for n in (2, 5):
        (root / f"{n}.jpg").write_bytes(b"no photo")
    return root, extract(config(root, tmp_path_factory.mktemp("whole")))


@pytest.mark.parametrize(
    ("what", "after", "kept"),
    [
        ("images", 0, ("images", 0)),
        ("images", 5, ("images", 4)),
        ("images", 10, ("images", 8)),
        ("de texts", 0, ("de texts", 0)),
        ("de texts", 8, ("de texts", 8)),
        ("en texts", 20, None),
    ],
)
def test_an_interrupted_extraction_goes_on_where_it_was_and_ends_with_the_same_bytes(
    whole, tmp_path, what, after, kept
):
    root, expected = whole

    def kill(name, done, _):
        if name == what and done >= after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        extract(config(root, tmp_path), kill)
    calls = []
    report = extract(config(root, tmp_path), lambda *call: calls.append(call))
    assert contents(report.folder) == contents(expected.folder)
    assert [f.quarantine for f in report.files] == [f.quarantine for f in expected.files]
    assert (calls[0][:2] if calls else None) == kept


def kill_images(name, done, _):
    if done >= 8:
        raise KeyboardInterrupt


def test_a_photo_that_changed_while_the_extraction_was_interrupted_is_encoded_as_it_is_now(mine, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        extract(config(mine, tmp_path / "cache"), kill_images)
    draw(mine, 2, 99)
    report = extract(config(mine, tmp_path / "cache"))
    assert contents(report.folder) == contents(extract(config(mine, tmp_path / "whole")).folder)


def test_an_unfinished_file_of_another_recipe_is_refused_unless_it_is_to_be_replaced(source, clean, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        extract(config(source, tmp_path, seed=1), kill_images)
    with pytest.raises(StaleError, match=rf"unfinished file was made with weights_sha256 = .*{IMAGES}\.part"):
        extract(config(source, tmp_path))
    report = extract(config(source, tmp_path, overwrite=True))
    assert contents(report.folder) == contents(clean.folder)


# ---------------------------------------------------------------------------------------------- bad items


@pytest.fixture
def spoiled(mine):
    """The data set with one photo missing, one truncated, one empty and one that was never there."""
    (mine / "1.jpg").unlink()
    (mine / "4.jpg").write_bytes((mine / "4.jpg").read_bytes()[:-20])
    (mine / "6.jpg").write_bytes(b"")
    write(mine, [entry(n) | ({"image": None} if n == 8 else {}) for n in range(COUNT)])
    return mine


def test_bad_photos_are_quarantined_with_their_reason_and_the_others_are_not_touched(spoiled, clean, tmp_path):
    report = extract(config(spoiled, tmp_path))
    images = report.files[0]
    assert quarantine(report) == [
        ("i1", "image", "missing"),
        ("i4", "image", "corrupt"),
        ("i6", "image", "empty"),
        ("i8", "image", "no-image"),
        ("i3", "de", "no-text"),
    ]
    assert [e["path"] for e in images.quarantine] == [*(str(spoiled / f"{n}.jpg") for n in (1, 4, 6)), ""]
    assert all(e["reason"] for e in images.quarantine)
    assert (images.items, images.ok, images.bad) == (10, 6, 3)
    found, expected = read_features(images.path), read_features(clean.folder / IMAGES)
    bad = [1, 4, 6, 8]
    assert np.flatnonzero(~found.valid).tolist() == bad
    assert not found.x[bad].any()
    assert np.delete(found.x, bad, 0).tobytes() == np.delete(expected.x, bad, 0).tobytes()
    assert (report.folder / EN).read_bytes() == (clean.folder / EN).read_bytes()


def test_a_second_call_gives_the_same_reasons(spoiled, tmp_path):
    first, second = (extract(config(spoiled, tmp_path)) for _ in range(2))
    assert [f.quarantine for f in first.files] == [f.quarantine for f in second.files]
    assert not second.files[0].fresh


def test_more_bad_photos_than_accepted_are_an_error_after_the_good_ones_are_kept(spoiled, tmp_path):
    report = extract(config(spoiled, tmp_path))
    refuse_bad(report, 0.3)
    with pytest.raises(
        DataError, match=r"3 of 10 items could not be used, more than --max-bad 0\.29: .*quarantine\.json"
    ):
        refuse_bad(report, 0.29)
    assert (report.folder / IMAGES).exists()


def test_parts_that_the_data_set_does_not_have_are_not_bad(clean):
    assert clean.files[1].quarantine
    refuse_bad(clean, 0)


@pytest.mark.faults("bad labels, codes, features, Faiss calls")
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_features_that_are_not_finite_are_quarantined(source, tmp_path, monkeypatch, clean, value):
    def spoil(encoder):
        honest = encoder.encode

        def encode(self, batch):
            out = honest(self, batch)
            out[1, 5] = value
            return out

        monkeypatch.setattr(encoder, "encode", encode)

    spoil(ImageEncoder)
    spoil(TextEncoder)
    report = extract(config(source, tmp_path))
    images, _, english = report.files
    assert [(e["id"], e["code"]) for e in images.quarantine] == [(i, "non-finite") for i in ("i1", "i5", "i9")]
    assert images.bad == 3
    found, expected = read_features(images.path), read_features(clean.folder / IMAGES)
    assert np.flatnonzero(~found.valid).tolist() == [1, 5, 9]
    assert not found.x[~found.valid].any()
    assert found.x[found.valid].tobytes() == expected.x[found.valid].tobytes()
    # captions: the second of every four, so every item has another one left
    found = read_features(english.path)
    assert np.flatnonzero(~found.valid).tolist() == [1, 5, 9, 13, 17]
    assert english.quarantine == []


@pytest.mark.faults("bad labels, codes, features, Faiss calls")
def test_an_item_without_any_finite_caption_is_quarantined(source, tmp_path, monkeypatch):
    monkeypatch.setattr(TextEncoder, "encode", lambda self, texts: np.full((len(texts), self.dim), np.nan, np.float32))
    report = extract(config(source, tmp_path, langs=("de",)))
    reasons = [(f"i{n}", "no-text" if n == 3 else "non-finite") for n in range(COUNT)]
    assert [(e["id"], e["code"]) for e in report.files[1].quarantine] == reasons
    assert (report.files[1].ok, report.files[1].bad) == (0, 9)


# ---------------------------------------------------------------------------------------------- stale files


def test_another_recipe_replaces_the_files_if_it_may(made, source):
    changed = config(source, made, seed=1, pooling="cls", max_length=4)
    assert all(f.fresh for f in extract(replace(changed, overwrite=True)).files)
    assert not any(f.fresh for f in extract(changed).files)


def change_photo(root):
    draw(root, 7, 99)


def add_item(root):
    write(root, [entry(n) for n in range(COUNT)] + [entry(4) | {"id": "new"}])


def draw_roles(root):
    write(root, [{k: v for k, v in entry(n).items() if k != "splits"} for n in range(COUNT)])


def test_a_data_set_that_changed_replaces_the_files_if_it_may(mine, made, tmp_path):
    add_item(mine)
    change_photo(mine)
    report = extract(config(mine, made, overwrite=True))
    assert contents(report.folder) == contents(extract(config(mine, tmp_path / "anew")).folder)


@pytest.mark.faults("stale: one field of the recipe")
def test_a_file_left_over_from_captions_that_changed_since_is_not_used(mine, made):
    change = {"texts": {"en": ["dog", "dog"], "de": ["Vogel", "Vogel"]}}
    write(mine, [entry(n) | (change if n == 7 else {}) for n in range(COUNT)])
    report = extract(config(mine, made, langs=("en",), overwrite=True))
    data = ExtractedDataset(manifest.load(report.folder), report.folder)
    assert data.features(View.text("en")).has.all()
    with pytest.raises(StaleError, match=DE):
        data.features(View.text("de"))


@pytest.mark.faults("stale: one field of the recipe")
def test_another_seed_of_drawn_roles_is_refused(mine, tmp_path):
    draw_roles(mine)
    extract(config(mine, tmp_path / "cache"))
    with pytest.raises(StaleError, match="data set 'manifest' was made with split_seed = 0, asked for 1"):
        extract(config(mine, tmp_path / "cache", seed=1))


@pytest.mark.faults("not stale: moved, touched, elsewhere")
def test_a_data_set_that_moved_is_the_same(mine, source, made):
    old = json.loads((made / "manifest" / "dataset.json").read_text())["root"]
    assert old == str(source.resolve())
    for path in mine.iterdir():
        os.utime(path, (1, 1))
    report = extract(config(mine, made))
    assert not any(f.fresh for f in report.files)
    assert json.loads((made / "manifest" / "dataset.json").read_text())["root"] == str(mine.resolve())


def test_a_damaged_file_is_refused_and_can_be_replaced(made, source, clean):
    path = made / "manifest" / IMAGES
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(DamagedError, match=f"{IMAGES}: delete it and make it again"):
        extract(config(source, made))
    extract(config(source, made, overwrite=True))
    assert path.read_bytes() == (clean.folder / IMAGES).read_bytes()


# ---------------------------------------------------------------------------------------------- what is asked for


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"langs": ("en", "fr")}, UsageError, "the data set has no language 'fr': .*: it has de, en"),
        ({"dataset": "nosuch"}, UsageError, "unknown data set 'nosuch': choose one of sample, iaprtc12, .*manifest"),
        ({"root": None}, UsageError, "data set 'manifest' needs its folder: give --root DIR"),
        ({"name": "../x"}, UsageError, r"--name \.\./x: use letters"),
        ({"name": ".hidden"}, UsageError, r"--name \.hidden: use letters"),
        ({"device": "nosuch"}, UsageError, "device 'nosuch' cannot be used"),
        ({"image_model": "resnet19"}, UsageError, "unknown image model 'resnet19': did you mean"),
        ({"pooling": "max"}, UsageError, "--pooling max: choose one of mean, cls"),
        ({"dtype": "int8"}, UsageError, "dtype 'int8'"),
        ({"text_models": ("fr=random",)}, UsageError, "--text-model fr=random: the languages are de, en"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(source, tmp_path, changes, error, words):
    with pytest.raises(error, match=words):
        extract(config(source, tmp_path / "cache", **changes))
    assert not (tmp_path / "cache").exists()


def test_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"no such folder: .*none: .*--root"):
        extract(config(tmp_path / "none", tmp_path / "cache"))


def test_a_data_set_without_captions_is_refused(mine, tmp_path):
    write(mine, [entry(n) | {"texts": {}} for n in range(COUNT)])
    with pytest.raises(DataError, match="no item has a caption"):
        extract(config(mine, tmp_path / "cache"))


def test_a_data_set_that_breaks_a_promise_is_refused(mine, tmp_path):
    write(mine, [entry(n) | {"splits": ["query", "train"]} for n in range(COUNT)])
    with pytest.raises(DataError, match="query items are also train or val"):
        extract(config(mine, tmp_path / "cache"))


# ---------------------------------------------------------------------------------------------- text models


def save_bert(folder):
    encoder = text_encoders.load("random", corpus=["dog cat Hund Katze"] * 2)
    encoder.tokenizer.save_pretrained(folder)
    encoder.module.save_pretrained(folder)
    return folder


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
    assert _text_models(ExtractConfig(dataset="manifest", text_models=options), langs) == models


def test_the_sample_has_untrained_models_unless_told_otherwise():
    assert _text_models(ExtractConfig(), ["en", "de"]) == {"en": "random", "de": "random"}
    assert _text_models(ExtractConfig(text_models=("en=x",)), ["en", "de"]) == {"en": "x", "de": "random"}


def test_a_language_without_a_model_of_its_own_needs_one():
    with pytest.raises(UsageError, match="no text model for language 'fr': give --text-model fr=DIR"):
        _text_models(ExtractConfig(dataset="manifest"), ["en", "fr"])
