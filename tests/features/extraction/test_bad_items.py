"""Bad items are quarantined with their reason; the others are not touched."""

from __future__ import annotations

import re

import numpy as np
import pytest
from extracting import COUNT, EN, IMAGES, config, entry, quarantine, write

from cmrhash.encoders.image import ImageEncoder
from cmrhash.encoders.text import TextEncoder
from cmrhash.errors import DataError
from cmrhash.features.extract import extract, refuse_bad
from cmrhash.features.file import read_features
from cmrhash_cli import extract_report


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
    assert (images.items, images.ok, images.broken) == (10, 6, 3)
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
        DataError, match=r"3 of 10 items could not be used, more than `max_bad=0\.29`: .*quarantine\.json"
    ):
        refuse_bad(report, 0.29)
    assert (report.folder / IMAGES).exists()


def test_parts_that_the_data_set_does_not_have_are_not_bad(clean):
    assert clean.files[1].quarantine
    refuse_bad(clean, 0)


@pytest.mark.faults("bad labels, codes, features, Faiss calls")
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_features_that_are_not_finite_are_quarantined(source, tmp_path, monkeypatch, clean, value):
    of_photos, of_captions = ImageEncoder.encode, TextEncoder.encode_batches

    def encode(self, batch):
        out = of_photos(self, batch)
        out[1, 5] = value
        return out

    def encode_batches(self, captions):
        for rows, x in of_captions(self, captions):
            x[np.array(rows) == 1, 5] = value
            yield rows, x

    monkeypatch.setattr(ImageEncoder, "encode", encode)
    monkeypatch.setattr(TextEncoder, "encode_batches", encode_batches)
    report = extract(config(source, tmp_path))
    images, _, english = report.files
    assert [(e["id"], e["code"]) for e in images.quarantine] == [(i, "non-finite") for i in ("i1", "i5", "i9")]
    assert images.broken == 3
    found, expected = read_features(images.path), read_features(clean.folder / IMAGES)
    assert np.flatnonzero(~found.valid).tolist() == [1, 5, 9]
    assert not found.x[~found.valid].any()
    assert found.x[found.valid].tobytes() == expected.x[found.valid].tobytes()
    # captions: the second of every four, so every item has another one left
    found = read_features(english.path)
    assert np.flatnonzero(~found.valid).tolist() == [1, 5, 9, 13, 17]
    assert english.quarantine == []


@pytest.mark.faults("bad labels, codes, features, Faiss calls")
def test_an_item_without_any_finite_caption_is_quarantined(source, tmp_path, monkeypatch, capsys):
    def encode_batches(self, captions):
        yield slice(None), np.full((len(captions), self.dim), np.nan, np.float32)

    monkeypatch.setattr(TextEncoder, "encode_batches", encode_batches)
    report = extract(config(source, tmp_path, langs=("de",)))
    reasons = [(f"i{n}", "no-text" if n == 3 else "non-finite") for n in range(COUNT)]
    assert [(e["id"], e["code"]) for e in report.files[1].quarantine] == reasons
    assert (report.files[1].ok, report.files[1].absent, report.files[1].broken) == (0, 1, 9)
    extract_report.show(report, as_json=False, quiet=False)
    out, err = capsys.readouterr()
    assert re.search(r"file +rows +items +ok +absent +broken +time", out)
    assert re.search(r"text-de-\S+ +\d+ +10 +0 +1 +9 ", out)
    assert f"absent and broken items, with reasons: {report.folder / 'quarantine.jsonl'}" in err
