"""Extraction as a whole: complete, and resumed to the same bytes."""

from __future__ import annotations

import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from extracting import COUNT, DE, EN, IMAGES, SMALL, config, contents, draw, entry, quarantine, save_bert, write
from PIL import Image

from cmrhash.encoders import image as image_encoders
from cmrhash.errors import DataError, StaleError, UsageError
from cmrhash.features.dataset import ExtractedDataset
from cmrhash.features.extract import extract, open_encoders
from cmrhash.features.file import read_features

TWO_SYSTEMS = pytest.mark.faults("name that two systems read differently")

# ---------------------------------------------------------------------------------------------- as it should be


def test_every_file_is_made_and_every_item_accounted_for(clean):
    names = ["dataset.json", "items.blocks", "items.jsonl", "quarantine.jsonl", IMAGES, EN, DE]
    assert sorted(contents(clean.folder)) == sorted(names)
    assert [f.path.name for f in clean.files] == [IMAGES, DE, EN]
    assert [(f.items, f.rows, f.ok, f.broken) for f in clean.files] == [
        (10, 10, 10, 0),
        (10, 18, 9, 0),
        (10, 20, 10, 0),
    ]
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
    encoder = image_encoders.load(SMALL, "random")
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
    assert all(what.startswith("loading") for what, *_ in calls)
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


def test_progress_names_the_encoders_that_are_loaded(source, tmp_path):
    calls = []
    extract(config(source, tmp_path), lambda *call: calls.append(call))
    names = [f"{SMALL} for images", *(f"an untrained encoder for {lang}" for lang in ("de", "en"))]
    assert calls[:7] == [*((f"loading {name}", done, 1) for name in names for done in (0, 1)), ("images", 0, 10)]


def test_progress_over_captions_moves_with_each_batch_of_the_encoder(source, tmp_path, monkeypatch):
    monkeypatch.setattr("cmrhash.features.captions.TEXT_BLOCK", 1024)
    monkeypatch.setattr("cmrhash.encoders.text.CPU_TOKENS", 16)  # 4 captions
    calls = []
    extract(config(source, tmp_path), lambda *call: calls.append(call))
    done = [call[1] for call in calls if call[0] == "en texts"]
    assert list(dict.fromkeys(done)) == [0, 4, 8, 12, 16, 20]


def test_progress_over_captions_moves_within_a_block_of_an_encoder_of_ones_own(source, tmp_path, monkeypatch):
    monkeypatch.setattr("cmrhash.features.captions.TEXT_BLOCK", 1024)
    monkeypatch.setattr("cmrhash.features.captions.PIECE", 8)
    calls, own = [], SimpleNamespace(dim=1, recipe={}, encode=lambda batch: [[len(text)] for text in batch])
    asked = config(source, tmp_path, text_models=())
    extract(asked, lambda *call: calls.append(call), open_encoders(asked, text_encoder=own))
    assert list(dict.fromkeys(call[1] for call in calls if call[0] == "en texts")) == [0, 8, 16, 20]
    made = read_features(tmp_path / "manifest/text-en-simplenamespace.h5")
    captions = [text for item in ExtractedDataset.open(tmp_path).dataset.items for text in item.texts["en"]]
    assert made.x[:, 0].tolist() == [len(text) for text in captions]


# ---------------------------------------------------------------------------------------------- killed and resumed


@pytest.fixture(scope="module")
def whole(small_blocks_and_models, source, tmp_path_factory):
    """A data set with two bad photos, and the report of its undisturbed extraction."""
    root = shutil.copytree(source, tmp_path_factory.mktemp("bad") / "root")
    for n in (2, 5):
        (root / f"{n}.jpg").write_bytes(b"no photo")
    return root, extract(config(root, tmp_path_factory.mktemp("whole")))


@pytest.mark.slow
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
    encoded = [call[:2] for call in calls if not call[0].startswith("loading")]
    assert (encoded[0] if encoded else None) == kept


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


# ---------------------------------------------------------------------------------------------- what is asked for


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"langs": ("en", "fr")}, UsageError, "the data set has no language 'fr': .*: it has de, en"),
        ({"dataset": "nosuch"}, UsageError, "unknown data set 'nosuch': choose one of sample, folder, .* and 8 more"),
        ({"root": None}, UsageError, "data set 'manifest' needs its folder: give `root=.DIR.`"),
        ({"name": "../x"}, UsageError, r"'\.\./x' cannot be a folder name: use letters"),
        ({"name": "a/b", "dataset": "sample", "root": None}, UsageError, "'a/b' cannot be a folder name"),
        *(
            pytest.param({"name": name}, UsageError, f"'{name}' cannot be a folder name on Windows", marks=TWO_SYSTEMS)
            for name in ("con", "NUL.2", "lpt1", "flickr.")
        ),
        ({"name": ".hidden"}, UsageError, r"'\.hidden' cannot be a folder name: use letters"),
        ({"device": "nosuch"}, UsageError, "'nosuch' cannot be used"),
        ({"image_model": "resnet19"}, UsageError, "unknown image model 'resnet19': did you mean"),
        ({"pooling": "median"}, UsageError, "unknown pooling 'median': choose one of mean, cls"),
        ({"dtype": "int8"}, UsageError, "'int8' is not a number type"),
        (
            {"text_models": ("fr=random",)},
            UsageError,
            "'fr=random' names an unknown language: the languages are de, en",
        ),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(source, tmp_path, changes, error, words):
    with pytest.raises(error, match=words):
        extract(config(source, tmp_path / "cache", **changes))
    assert not (tmp_path / "cache").exists()


def test_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"no such folder: .*none: .*`root`"):
        extract(config(tmp_path / "none", tmp_path / "cache"))


def test_photos_alone_have_image_features_and_are_the_database(mine, tmp_path):
    whole = extract(config(mine, tmp_path / "whole"))
    write(mine, [entry(n) | {"texts": {}, "splits": [], "labels": []} for n in range(COUNT)])
    report = extract(config(mine, tmp_path / "cache", text_models=()))
    assert [file.view for file in report.files] == ["image"]
    assert not list(report.folder.glob("text-*"))
    assert all(item.splits == {"database"} for item in report.dataset.items)
    features = [read_features(found.folder / IMAGES).x.tobytes() for found in (whole, report)]
    assert features[0] == features[1]
    with pytest.raises(UsageError, match="no item has a caption, so there is nothing to train"):
        ExtractedDataset.open(tmp_path / "cache").languages()


def test_captions_alone_have_no_image_features(mine, tmp_path):
    write(mine, [entry(n) | {"image": None} for n in range(COUNT)])
    report = extract(config(mine, tmp_path / "cache", image_weights="nowhere.pth"))
    assert {file.view.kind for file in report.files} == {"text"}
    assert not list(report.folder.glob("image-*"))


def test_items_without_photo_and_caption_are_refused(mine, tmp_path):
    write(mine, [entry(n) | {"image": None, "texts": {}} for n in range(COUNT)])
    with pytest.raises(DataError, match="no item has a photo or a caption"):
        extract(config(mine, tmp_path / "cache"))
    assert not (tmp_path / "cache").exists()


def test_a_data_set_that_breaks_a_promise_is_refused(mine, tmp_path):
    write(mine, [entry(n) | {"splits": ["query", "train"]} for n in range(COUNT)])
    with pytest.raises(DataError, match="query items are also train or val"):
        extract(config(mine, tmp_path / "cache"))
