"""The built-in data set: drawn the same each time, readable as IAPR TC-12, never half there."""

from __future__ import annotations

import random
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cmrhash.config import ExtractConfig
from cmrhash.data import sample
from cmrhash.data.items import check
from cmrhash.data.readers import iaprtc12
from cmrhash.data.sample.paint import paint
from cmrhash.data.sample.plan import CLASSES, COLOURS, SCENES, Scene, Thing, compose
from cmrhash.data.sample.words import english, german
from cmrhash.errors import DataError, StaleError, UsageError
from cmrhash.features.extract import open_encoders


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("drawn") / "sample"
    sample.draw(root, seed=5, count=110)
    return root


def test_the_same_seed_draws_the_same_bytes(drawn: Path, tmp_path: Path) -> None:
    sample.draw(tmp_path / "again", seed=5, count=110)
    assert contents(tmp_path / "again") == contents(drawn)


def test_another_seed_draws_another_sample(drawn: Path, tmp_path: Path) -> None:
    sample.draw(tmp_path / "other", seed=6, count=20)
    assert contents(tmp_path / "other")["images/00/1.jpg"] != contents(drawn)["images/00/1.jpg"]


def test_it_is_iapr_tc12_to_its_reader(drawn: Path) -> None:
    dataset = check(iaprtc12.read(drawn))
    assert [item.id for item in dataset.items] == [str(n) for n in range(1, 111)]
    assert dataset.items[100].image == "images/01/101.jpg"
    assert set(dataset.classes) <= set(CLASSES)
    for item, scene in zip(dataset.items, compose(5, 110), strict=True):
        assert set(item.texts) == {"en", "de"}
        assert tuple(dataset.classes[label] for label in item.labels) == scene.labels
        with Image.open(drawn / str(item.image)) as picture:
            assert (picture.format, picture.mode, picture.size) == ("JPEG", "RGB", (160, 120))


def test_umlauts_are_written_as_windows_wrote_them(drawn: Path) -> None:
    german_files = [raw for path, raw in contents(drawn).items() if path.endswith(".ger")]
    assert any("ü".encode("cp1252") in raw for raw in german_files)
    assert any("ü" in text for item in sample.read(drawn).items for text in item.texts["de"])


def test_reading_draws_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sample, "compose", lambda seed, count: compose(seed, 12))
    dataset = sample.read(tmp_path / "deep" / "sample")
    assert (dataset.name, len(dataset.items)) == ("sample", 12)
    monkeypatch.setattr(sample, "paint", None)
    assert sample.read(tmp_path / "deep" / "sample") == dataset
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["sample"]


def test_an_interrupted_drawing_leaves_nothing_that_looks_complete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(scene: Scene, seed: list[int]) -> Image.Image:
        if seed[1] == 8:
            raise KeyboardInterrupt
        return paint(scene, seed)

    root = tmp_path / "sample"
    with monkeypatch.context() as patch:
        patch.setattr(sample, "paint", interrupt)
        with pytest.raises(KeyboardInterrupt):
            sample.draw(root, count=20)
    assert list(tmp_path.iterdir()) == []
    sample.draw(root, count=20)
    assert len(sample.read(root).items) == 20


def test_a_killed_drawing_is_left_beside_and_does_not_matter(tmp_path: Path) -> None:
    (tmp_path / ".sample.part-1" / "images").mkdir(parents=True)
    (tmp_path / "sample").mkdir()
    sample.draw(tmp_path / "sample", count=10)
    assert len(sample.read(tmp_path / "sample").items) == 10


def test_a_refused_call_leaves_no_sample_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sample, "compose", lambda seed, count: compose(seed, 12))
    (tmp_path / "empty").mkdir()
    config = ExtractConfig(cache=tmp_path / "cache", langs=("fr",))
    for each in (config, replace(config, root=tmp_path / "empty")):
        with pytest.raises(UsageError, match="has no language 'fr'"):
            open_encoders(each)
    assert list(tmp_path.rglob("*")) == [tmp_path / "empty"]
    sample.draw(tmp_path / "cache/sample/drawn", count=12)
    with pytest.raises(UsageError, match="has no language 'fr'"):
        open_encoders(config)
    assert len(sample.read(tmp_path / "cache/sample/drawn").items) == 12  # it was there before


def test_a_sample_that_another_process_finished_first_is_taken(
    drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "sample"

    def meanwhile(scene: Scene, seed: list[int]) -> Image.Image:
        if not root.exists():
            drawn.rename(root)
        return paint(scene, seed)

    monkeypatch.setattr(sample, "paint", meanwhile)
    sample.draw(root, count=10)
    assert len(sample.read(root).items) == 110
    root.rename(drawn)


def test_a_folder_of_the_users_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(DataError, match="not empty and is not a complete sample"):
        sample.read(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
    (tmp_path / "manifest.jsonl").write_text("{}")
    with pytest.raises(
        DataError, match=r'not a complete sample: .*: read its manifest\.jsonl with `dataset="manifest"`'
    ):
        sample.read(tmp_path)


@pytest.mark.parametrize("marker", ["", "[]", "{}", "7"])
def test_a_damaged_marker_is_refused(tmp_path: Path, marker: str) -> None:
    (tmp_path / sample.MARKER).write_text(marker)
    with pytest.raises(DataError, match="not the marker of a sample"):
        sample.read(tmp_path)


def test_a_sample_of_another_version_is_refused(tmp_path: Path) -> None:
    (tmp_path / sample.MARKER).write_text('{"version": 0}')
    with pytest.raises(StaleError, match="sample has version 0, this cmrhash makes version 1"):
        sample.read(tmp_path)


def test_no_scenes_cannot_be_drawn(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot draw 0 scenes"):
        sample.draw(tmp_path / "sample", count=0)


@pytest.mark.parametrize("seed", [sample.SEED, 1, 2])
def test_chance_leaves_room_to_learn(seed: int) -> None:
    labels = np.array([[name in s.labels for name in CLASSES] for s in compose(seed, sample.COUNT)], int)
    relevant = labels @ labels.T > 0
    np.fill_diagonal(relevant, False)
    assert 0.20 < relevant.sum() / (sample.COUNT * (sample.COUNT - 1)) < 0.35
    assert (labels.sum(0) >= 30).all()
    assert (labels.sum(1) >= 2).all()


def all_things() -> list[Thing]:
    return [Thing(k, c, n, "left") for k, colours in COLOURS.items() for c in colours for n in (1, 2)]


def test_german_endings_fit_gender_case_and_number() -> None:
    articles = {"ein": ("er", "es"), "eine": ("e",), "einen": ("en",), "einem": ("en",), "einer": ("en",)}
    phrase = re.compile(r"\b(eine[nmr]?|ein) (\w+) ([A-Z]\w+)")
    texts = [german(Scene("sea", False, False, (t,)), random.Random(n)) for t in all_things() for n in range(30)]
    found = [match for text in texts for match in phrase.findall(text)]
    assert len(found) > 300
    for article, adjective, noun in found:
        assert adjective.endswith(articles[article]), (article, adjective, noun)
    whole = " ".join(texts)
    for good in ("einem roten Haus", "ein rotes Haus", "einen schwarzen Hund", "einer grünen Palme"):
        assert good in whole
    for good in ("zwei roten Häusern", "zwei rote Häuser", "zwei grüne Kakteen", "in einem roten Kleid"):
        assert good in whole


@pytest.mark.parametrize("caption", [english, german])
def test_captions_end_their_clauses_and_fit_their_encoding(caption: object) -> None:
    assert callable(caption)
    for number, scene in enumerate(compose(0, 300)):
        text = caption(scene, random.Random(number))
        assert text.endswith(";")
        assert not re.search(r"  |; ;|;;|^;|\{|\ba [aeiou]", text), text
        assert text.encode("cp1252")


def test_most_captions_name_what_the_picture_shows() -> None:
    scenes = [s for s in compose(0, 1000) for t in s.things if t.kind == "snowman"]
    named = sum("snowm" in english(scene, random.Random(n)) for n, scene in enumerate(scenes))
    assert 0.75 < named / len(scenes) < 1


def test_every_thing_can_be_painted_everywhere_day_and_night() -> None:
    for kind in SCENES:
        for things in zip(*[iter(all_things())] * 3, strict=False):
            picture = paint(Scene(kind, len(things[0].colour) % 2 == 0, False, things), [0, 1])
            assert picture.size == (160, 120)


def test_night_is_darker_than_day() -> None:
    for kind in SCENES.keys() - {"city"}:
        day, night = (np.asarray(paint(Scene(kind, dark, False, ()), [0, 1])).mean() for dark in (False, True))
        assert night < 0.6 * day
