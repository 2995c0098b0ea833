"""A trained or exported run applied to another collection: photos alone, and photos with some captions."""

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
from exit_codes import USAGE
from running import files, run
from trees import draw_photo

from cmrhash.errors import DamagedError, DataError, UsageError
from cmrhash.search.apply import apply
from cmrhash.search.exported.hasher import PretrainedHasher
from cmrhash.search.hasher import Hasher

RUN = "runs/manifest/triplet-16"
COUNT = 12


@pytest.fixture
def here(made, tmp_path, monkeypatch):
    """A folder with the run, its cache, and photos of another collection in ``holiday``."""
    for name in ("runs", "cache"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "manifest").symlink_to(made / name / "manifest")
    for n in range(COUNT):
        draw_photo(tmp_path / f"holiday/day{n % 2}/{n}.jpg", 1000 * (n % 4) + 500 + n)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def photos(here):
    return sorted((here / "holiday").rglob("*.jpg"))


def opened(here, name="holiday/manifest-triplet-16"):
    return Hasher.load(here / "runs" / name, here / "cache", device="cpu")


def hashed(here, source, collection="holiday"):
    return apply(source, collection, cache=here / "cache", out=here / "runs", device="cpu")[0]


def test_the_words_of_the_training_tell_the_language_of_a_sentence(here, hasher):
    made = hashed(here, RUN)
    applied = opened(here)
    assert applied.words == hasher.words
    assert applied.search("Katze")[0].lang == "de"
    assert applied.search("cat")[0].lang == "en"
    (made.folder / "words.json").write_bytes((made.folder / "words.json").read_bytes().replace(b"cat", b"cut"))
    with pytest.raises(DamagedError, match=r"words\.json"):
        opened(here).search("cat")


def test_encoders_that_an_export_lacks_are_named(here, made, monkeypatch):
    hashed(here, RUN)
    record = opened(here).run.record
    assert record["sources"] == {"image": "random"}
    monkeypatch.setattr(PretrainedHasher, "load", lambda source, **options: pytest.fail(str(options)))
    with pytest.raises(pytest.fail.Exception, match=r"'image_weights': 'there.pth'.*'text_models': \{'de': 'bert'\}"):
        apply(here / "shared", "holiday", cache=here / "cache", image_weights="there.pth", text_models={"de": "bert"})


@pytest.mark.parametrize("exported", [False, True])
def test_photos_alone_have_the_codes_that_the_run_gives_them(here, hasher, exported):
    if exported:
        hasher.save_pretrained(here / "shared")
    made = hashed(here, here / "shared" if exported else RUN)
    assert made.folder == here / "runs/holiday/manifest-triplet-16"
    applied = opened(here)
    codes = applied.views["image"].codes
    np.testing.assert_array_equal(codes.packed, hasher.encode_image(photos(here)))
    assert [applied.dataset.items[n].image for n in codes.item] == [
        f"day{n % 2}/{n}.jpg" for n in (0, 10, *range(2, 9, 2), *(1, 11), *range(3, 10, 2))
    ]
    assert list(applied.views) == ["image"]


def test_a_sentence_finds_photos_that_nobody_described(here, hasher):
    hashed(here, RUN)
    applied = opened(here)
    assert applied.langs == hasher.langs == ("de", "en")
    for lang, sentence in (("en", "dog 3"), ("de", "Katze 5")):
        bits = np.unpackbits(hasher.encode_image(photos(here)) ^ hasher.encode_text(sentence, lang), axis=1)
        hits = applied.search(sentence, lang=lang, k=COUNT, rank="hamming")
        assert [hit.distance for hit in hits] == sorted(bits.sum(1).tolist())
        assert {hit.caption for hit in hits} == {None}


def test_a_photo_finds_photos_where_no_text_can_be_found(here):
    hashed(here, RUN)
    applied = opened(here)
    first = photos(here)[0]
    assert applied.search(first, k=1)[0].image == "day0/0.jpg"
    assert applied.search_item("day0/0", k=1)[0].id == "day0/0"
    assert applied.search(applied.views["image"].codes.packed[0], k=1)[0].id == "day0/0"
    with pytest.raises(UsageError, match=r"no item of the collection has captions \(en\)"):
        applied.search(first, to="text")
    with pytest.raises(UsageError, match="'day0/0' has no text"):
        applied.search_item("day0/0", by="text")


def test_captions_of_the_collection_are_hashed_too(here, hasher):
    for n in (0, 2):
        (here / f"holiday/day0/{n}.txt").write_text(f"dog {n}\nhouse {n}\n", encoding="utf-8")
    hashed(here, RUN)
    applied = opened(here)
    assert list(applied.views) == ["image", "text-en"]
    expected = hasher.encode_text(["dog 0", "house 0", "dog 2", "house 2"], "en")
    np.testing.assert_array_equal(applied.views["text-en"].codes.packed, expected)


def test_the_commands(here, capsys):
    assert run("index", "holiday", "--with", RUN, "--device", "cpu", "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert said == {
        "run": "runs/holiday/manifest-triplet-16",
        "dataset": "holiday",
        "codes": {"image": COUNT},
        "langs": ["de", "en"],
    }
    assert run("search", "Katze", "--lang", "de", "--dataset", "holiday", "--k", "3", "--device", "cpu") == 0
    assert capsys.readouterr().out.count(".jpg") == 3
    assert run("index", "holiday", "--with", RUN, "--device", "cpu", "--store", "faiss:store") == 0
    assert "holiday-manifest-triplet-16-image" in capsys.readouterr().out
    assert run("cache", "verify") == 0
    assert run("cache", "ls") == 0
    assert "features gone" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("upper", "place"), [("holiday", "cache"), ("holiday", "runs"), ("manifest-triplet-16", "runs/holiday")]
)
def test_a_name_that_is_another_by_case_alone_is_refused_before_anything_is_written(
    here, hasher, monkeypatch, upper, place
):
    hasher.save_pretrained(here / "shared")
    (here / place / upper).mkdir(parents=True)
    real = os.listdir
    monkeypatch.setattr(
        os, "listdir", lambda path: [x.upper() if Path(path) == here / place else x for x in real(path)]
    )
    before = files(here)
    for source in (RUN, here / "shared"):
        with pytest.raises(UsageError, match=f"^'{upper}' is '{upper.upper()}' here") as caught:
            hashed(here, source)
        assert caught.value.where == here / place
    assert files(here) == before


def test_what_photos_alone_cannot_do_is_said(here, capsys):
    assert run("index", "holiday", "--with", RUN, "--device", "cpu", "--quiet") == 0
    for command, words in (
        (["train"], "nothing to train or score.*cmrhash index --with RUN"),
        (["eval"], "nothing to score: the photos have neither captions nor labels"),
        (["export", "out", "--run", "runs/holiday/manifest-triplet-16"], "trained on another data set"),
    ):
        own = [] if command[0] == "export" else ["--dataset", "holiday"]
        assert run(*command, *own, "--cache", "cache") == USAGE, command
        assert re.search(words, capsys.readouterr().err), command


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (["holiday"], USAGE, "'holiday' is given without --with"),
        ([], USAGE, "no --store"),
        (["holiday", "--with", "empty"], USAGE, "not an exported run"),
        (["nowhere", "--with", RUN], USAGE, "no such file or folder: ./nowhere"),
        (["empty", "--with", RUN], USAGE, "no known layout"),
        (["manifest", "--with", RUN], USAGE, "trained on the same collection"),
        (["holiday", "--with", RUN, "--bits", "8"], USAGE, "--bits chooses among a collection's own runs"),
    ],
)
def test_refused_calls_change_nothing(here, capsys, args, code, words):
    (here / "empty").mkdir()
    before = files(here)
    assert run("index", *args) == code
    assert words in capsys.readouterr().err
    assert files(here) == before
    assert not (here / "cache/holiday").exists()
    assert not (here / "runs/holiday").exists()


def test_another_photo_is_found_after_its_extraction(here, capsys):
    index = ["index", "holiday", "--with", RUN, "--device", "cpu", "--quiet"]
    search = ["search", "Katze", "--lang", "de", "--dataset", "holiday", "--device", "cpu", "--k", "99", "--json"]
    encoders = ["--image-model", "mobilenet_v3_small", "--image-weights", "random", "--device", "cpu", "--quiet"]
    assert run(*index) == 0
    before = opened(here).views["image"].codes.packed
    draw_photo(here / "holiday/new.jpg", 7)
    assert run("extract", "holiday", *encoders) == 0
    capsys.readouterr()
    assert run(*search) == 0
    assert "new.jpg" in capsys.readouterr().out
    np.testing.assert_array_equal(opened(here).views["image"].codes.packed[:COUNT], before)


def test_texts_in_other_languages_alone_are_refused(here):
    entry = {"id": "1", "image": None, "texts": {"fr": ["un chien"]}}
    (here / "fr").mkdir()
    (here / "fr/manifest.jsonl").write_text(json.dumps(entry), encoding="utf-8")
    with pytest.raises(DataError, match="no item has a photo, or a caption in de, en"):
        hashed(here, RUN, "fr")
