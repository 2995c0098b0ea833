"""The cleaning that every reader shares: what stays of captions, labels and language tags, on every Python."""

from __future__ import annotations

import io
import json
import tarfile
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmrhash.config import ExtractConfig
from cmrhash.data import in_memory, manifest
from cmrhash.data.catalog import finished
from cmrhash.data.cleaning import check_language, clean_label, clean_language, clean_text, is_printable, known_language
from cmrhash.data.items import check
from cmrhash.data.readers import coco, folder, imagefolder, table, webdataset
from cmrhash.data.readers.flickr import read_flickr8k
from cmrhash.errors import DataError, UsageError

ANY = st.text(st.characters(exclude_categories=()))
INVISIBLE = "\u00ad\u061c\u200b\u200e\u200f\u202a\u202e\u2060\u2064\u2069\ufeff"
NEW_EMOJI = "\U0001fae8"  # of Unicode 15; Python 3.11 knows Unicode 14


@given(ANY)
def test_a_cleaned_caption_is_clean_and_cleaning_it_again_changes_nothing(text):
    cleaned = clean_text(text)
    assert clean_text(cleaned) == cleaned
    assert cleaned == cleaned.strip()
    assert "  " not in cleaned
    assert all(unicodedata.category(c) not in ("Cc", "Cs", "Co", "Zl", "Zp") for c in cleaned)
    assert not {*cleaned} & {*INVISIBLE, "\u00a0", "\u3000"}
    assert unicodedata.is_normalized("NFC", cleaned)
    cleaned.encode()


@given(st.lists(ANY | st.sampled_from([*INVISIBLE, " ", "dog"])), st.sampled_from(INVISIBLE))
def test_an_invisible_character_anywhere_changes_nothing(pieces, invisible):
    assert clean_text(invisible.join(pieces)) == clean_text("".join(pieces))


@pytest.mark.faults("name that two systems read differently")
@given(st.text(st.characters(categories=["Cn"]), min_size=1))
def test_characters_that_python_does_not_know_stay(text):
    assert clean_text(text) == unicodedata.normalize("NFC", text)
    assert is_printable(text)


@pytest.mark.faults("name that two systems read differently")
@given(ANY, st.sampled_from(["", " ", "\t", "\u00a0", "\ufeff", "\x00"]))
def test_a_padded_label_is_the_same_class(text, padding):
    assert clean_label(padding + text + padding) == clean_label(text)


@pytest.mark.parametrize("text", ["", " ", "-1", " -1.0", "NaN", "nan ", "\u00adnan", "\u200b", "\u200d", "\ud800"])
def test_what_is_no_label(text):
    assert clean_label(text) == ""


@pytest.mark.faults("name that two systems read differently")
@given(st.text("abcXYZ09-_", min_size=1).filter(lambda tag: tag.strip("-_")))
def test_a_language_tag_is_one_language_in_any_case(tag):
    assert clean_language(tag) == clean_language(tag.upper()) == clean_language(f" {tag.lower()}")
    assert check_language(tag) == tag
    assert known_language(tag.swapcase(), [tag.lower()]) == tag.lower()


def test_a_language_that_is_not_there_stays_as_it_is_asked_for():
    assert known_language("FR", ["de", "en"]) == "FR"
    assert known_language("EN", ["EN", "en"]) == "EN"


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("a dog", "a dog"),
        ("  a\tdog\r\n and  a cat ", "a dog and a cat"),
        ("a\x00dog\x1b[0m", "a dog [0m"),
        ("Stra\u00dfe in Ko\u0308ln", "Stra\u00dfe in K\u00f6ln"),
        ("Ko\u00ad\u0308ln", "K\u00f6ln"),
        ("Motor\u00adrad\u00adfahrer", "Motorradfahrer"),
        ("\ufeffein Feld\u2060weg", "ein Feldweg"),
        ("Donau\u200bdampfschiff", "Donaudampfschiff"),
        ("a\u00a0dog\u2028here\u200b", "a dog here"),
        ("\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645", "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645"),
        (f"a {NEW_EMOJI} face", f"a {NEW_EMOJI} face"),
        ("\ud800a", "a"),
        ("\ue000a", "a"),
        ("\U0001f469\u200d\U0001f4bb at work", "\U0001f469\u200d\U0001f4bb at work"),
        ("\u4e00\u3000\u4e8c", "\u4e00 \u4e8c"),
        ("\u200d \u200c", ""),
        (" \t\n", ""),
        ("", ""),
    ],
)
def test_examples_of_cleaned_captions(text, cleaned):
    assert clean_text(text) == cleaned


# ---------------------------------------------------------------------------------------------- every reader

CAPTION, CLEAN = f"Motor\u00adrad  auf\tdem Feld\u2060weg {NEW_EMOJI}\ufeff", f"Motorrad auf dem Feldweg {NEW_EMOJI}"
LABELS = ["dog ", "\u00addog", "cat", "", " ", "NaN", "-1"]  # of an item each


def rows():
    return [{"image": f"{n}.jpg", "caption_de": CAPTION, "label": label} for n, label in enumerate(LABELS)]


def photos(root):
    for n in range(len(LABELS)):
        (root / f"{n}.jpg").write_bytes(b"")
    return root


def lines_of(root, name, entries):
    (root / name).write_text("\n".join(map(json.dumps, entries)), encoding="utf-8")
    return photos(root)


def as_csv(root):
    lines = ["image,caption_de,label", *(",".join(row.values()) for row in rows())]
    (root / "t.csv").write_text("\n".join(lines), encoding="utf-8")
    return table.read(photos(root))


def as_coco(root):
    names = [*dict.fromkeys(LABELS)]
    images = [{"id": n, "file_name": f"{n}.jpg"} for n in range(len(LABELS))]
    captions = [{"image_id": n, "caption": CAPTION} for n in range(len(LABELS))]
    objects = [{"image_id": n, "category_id": names.index(label) + 1} for n, label in enumerate(LABELS)]
    categories = [{"id": n, "name": name} for n, name in enumerate(names, 1)]
    (root / "annotations").mkdir()
    for kind, entries in (("captions", captions), ("instances", objects)):
        whole = {"images": images, "annotations": entries, "categories": categories}
        (root / f"annotations/{kind}_train2017.json").write_text(json.dumps(whole))
    (root / "train2017").mkdir()
    photos(root / "train2017")
    return coco.read(root)


def as_manifest(root):
    entries = [{"id": str(n), "texts": {"DE": [CAPTION]}, "labels": [label]} for n, label in enumerate(LABELS)]
    return manifest.read(lines_of(root, "manifest.jsonl", entries))


def as_imagefolder(root):
    entries = [{"file_name": row["image"], "text_de": CAPTION, "label": row["label"]} for row in rows()]
    return imagefolder.read(lines_of(root, "metadata.jsonl", entries))


def as_folder(root):
    for n in range(len(LABELS)):
        (root / f"{n}.DE.txt").write_text(CAPTION, encoding="utf-8")
    return folder.read(photos(root))


def as_tar(root):
    with tarfile.open(root / "a.tar", "w") as tar:
        for n, label in enumerate(LABELS):
            for suffix, content in (("jpg", b"photo"), ("DE.txt", CAPTION.encode()), ("cls", label.encode())):
                member = tarfile.TarInfo(f"{n}.{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return webdataset.read(root)


READERS = {
    "tar": as_tar,
    "CSV": as_csv,
    "JSON lines": lambda root: table.read(lines_of(root, "t.jsonl", rows())),
    "manifest": as_manifest,
    "imagefolder": as_imagefolder,
    "folder": as_folder,
    "COCO": as_coco,
    "lists": lambda root: in_memory.dataset(texts={"DE": [CAPTION] * len(LABELS)}, labels=LABELS),
}


@pytest.mark.parametrize("reader", READERS)
def test_every_reader_cleans_in_the_same_way(tmp_path, reader):
    read = check(READERS[reader](tmp_path))
    assert {text for item in read.items for text in next(iter(item.texts.values()))} == {CLEAN}
    assert read.languages == ("en" if reader == "COCO" else "de",)
    if reader != "folder":
        assert read.classes == ("dog", "cat") if reader == "COCO" else ("cat", "dog")
        dog, cat = (read.classes.index(name) for name in ("dog", "cat"))
        assert [item.labels for item in read.items] == [(dog,), (dog,), (cat,), (), (), (), ()]


@pytest.mark.faults("name that two systems read differently")
def test_captions_of_a_language_in_two_cases_are_joined(tmp_path):
    texts = {"en": ["a"], "EN": "b", "de": []}
    (tmp_path / "manifest.jsonl").write_text(json.dumps({"id": "1", "texts": texts}))
    assert manifest.read(tmp_path).items[0].texts == {"en": ("a", "b")}


@pytest.mark.parametrize("texts", [{"en": ["a"], "EN": ["b"]}, {"../x": ["a"]}])
def test_lists_of_odd_languages_are_refused(texts):
    with pytest.raises(UsageError, match=r"language|x"):
        in_memory.dataset(texts=texts)


@pytest.mark.faults("name that two systems read differently")
def test_languages_that_differ_by_case_alone_are_not_two_of_a_data_set():
    read = in_memory.dataset(texts={"en": ["x"], "fr": ["x"], "de": ["x"]})
    assert finished(read, ExtractConfig()).languages == ("de", "en", "fr")
    read.items[0].texts["EN"] = ("y",)
    with pytest.raises(DataError, match="languages 'EN' and 'en' differ only by case"):
        finished(read, ExtractConfig())


def test_a_stored_data_set_is_not_cleaned_again(tmp_path):
    """A cache of an earlier version opens with the captions, ids and languages that its features were made from."""
    read = in_memory.dataset(texts={"de": ["x"]})
    item = read.items[0]
    object.__setattr__(item, "texts", {"zh-Hant": (CAPTION,)})
    manifest.store(read, tmp_path)
    assert manifest.load(tmp_path).items == (item,)


@pytest.mark.parametrize("file", ["dataset_flickr8k.json", "annotations/captions_train2017.json"])
def test_a_repeated_key_is_an_error_in_every_json(tmp_path, file):
    (tmp_path / "annotations").mkdir()
    (tmp_path / file).write_text('{"images": [], "images": []}')
    with pytest.raises(DataError, match="key 'images' is repeated in an object"):
        (read_flickr8k if "flickr" in file else coco.read)(tmp_path)
