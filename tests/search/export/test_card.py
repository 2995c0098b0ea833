"""The model card that a run is handed on with."""

import json
import re
import shutil

import pytest
import yaml
from handed_on import TRAIN

from cmrhash.api import extract
from cmrhash.config import EvalConfig, GrowConfig, TrainConfig
from cmrhash.evaluation.evaluate import evaluate
from cmrhash.features.dataset import ExtractedDataset
from cmrhash.search.exported.card import _front_matter
from cmrhash.search.grow import remove
from cmrhash.search.hasher import Hasher
from cmrhash.training import runs
from cmrhash.training.train import train

pytestmark = pytest.mark.slow


def test_the_card_is_what_hubs_read_and_says_how_the_figures_were_made(shared, made):
    _, front, text = (shared / "README.md").read_text().split("---\n", 2)
    head = yaml.safe_load(front)
    assert head["library_name"] == "cmrhash"
    assert head["language"] == ["de", "en"]
    assert "cross-modal-hashing" in head["tags"]
    assert "license" not in head
    report = json.loads((made / "runs/manifest/triplet-20/metrics.json").read_text())["scores"][0]
    for row in report["rows"]:
        assert f"| {row['lang']} | {row['direction']} | {row['map']:.3f} | {row['chance']:.3f} |" in text
    assert report["protocol"]["ties"] in text
    assert "FaceNet" in text
    assert "from_pretrained" in text


@pytest.mark.faults("name that two systems read differently")
@pytest.mark.parametrize("lang", ["no", "on", "yes", "de"])
def test_a_language_is_text_in_yaml(lang):
    front = _front_matter([lang])
    assert yaml.safe_load(front.strip("-"))["language"] == [lang]


def test_the_card_names_both_languages_where_texts_find_texts(made, tmp_path):
    data = ExtractedDataset.open(made / "cache", None)
    done, _ = train(TRAIN, data, tmp_path / "runs")
    evaluate(EvalConfig(directions=("t2t", "i2i")), data, tmp_path / "runs")
    Hasher.open(done, data).save_pretrained(tmp_path / "out")
    lines = re.findall(r"^\| (\S+) \| (t2t|i2i) \|", (tmp_path / "out/README.md").read_text(), re.MULTILINE)
    assert lines == [("de-de", "t2t"), ("de-en", "t2t"), ("en-de", "t2t"), ("en-en", "t2t"), ("-", "i2i")]


def test_nothing_in_it_tells_of_this_machine(shared, made):
    for path in shared.rglob("*"):
        if path.is_file():
            assert str(made).encode() not in path.read_bytes(), path
            assert b"name_or_path" not in path.read_bytes(), path


def test_a_run_that_was_never_evaluated_says_so(make_cache, made, tmp_path):
    data = ExtractedDataset.open(made / "cache", None)
    done, _ = train(TRAIN, data, tmp_path / "runs")
    Hasher.open(done, data).save_pretrained(tmp_path / "out")
    assert "Not evaluated yet" in (tmp_path / "out/README.md").read_text()
    (done.folder / runs.METRICS).write_text("{}")  # figures of these heads do not outlive them
    train(TrainConfig(**{**vars(TRAIN), "epochs": 1}), data, tmp_path / "runs", overwrite=True)
    assert not (done.folder / runs.METRICS).exists()


def test_figures_from_before_a_change_of_the_collection_stay_and_say_so(made, tmp_path):
    shutil.copytree(made / "cache", tmp_path / "cache")
    shutil.copytree(made / "runs/manifest/triplet-20", tmp_path / "runs/manifest/triplet-20")
    data = ExtractedDataset.open(tmp_path / "cache", None)
    grown = remove([data.dataset.items[-1].id], None, GrowConfig(), tmp_path / "cache", tmp_path / "runs")
    Hasher.open(grown.runs[0], grown.data).save_pretrained(tmp_path / "out")
    text = (tmp_path / "out/README.md").read_text()
    assert "Measured before items of the collection were added, removed or changed" in text
    scores = json.loads((made / "runs/manifest/triplet-20/metrics.json").read_text())["scores"][0]
    assert f"- database: {scores['protocol']['database']}" in text
    evaluate(EvalConfig(), grown.data, tmp_path / "runs")
    Hasher.open(grown.runs[0], grown.data).save_pretrained(tmp_path / "now")
    assert "Measured before" not in (tmp_path / "now/README.md").read_text()


def test_the_card_of_photos_alone_names_no_captions_labels_or_figures(made, tmp_path):
    shutil.copytree(made / "mine/images", tmp_path / "photos")
    data = extract(
        tmp_path / "photos", cache=tmp_path / "cache", image_model="mobilenet_v3_small", image_weights="random"
    )
    run, _ = train(TrainConfig(method="itq", bits=8, device="cpu"), data, tmp_path / "runs")
    Hasher.open(run, data).save_pretrained(tmp_path / "out", with_encoders=True)
    text = (tmp_path / "out/README.md").read_text().split("---\n", 2)[2]
    assert "photos find photos" in text
    assert "None: its photos have neither captions nor labels" in text
    assert not re.search("sentences|relevant|language|epoch|lang=|Not evaluated", text)


def test_the_five_lines_of_the_card_run(shared, made, monkeypatch):
    text = (shared / "README.md").read_text()
    code = re.search(r"```python\n(.*?)```", text, re.DOTALL)[1]
    photos = [str(made / f"mine/images/{n}.jpg") for n in (1, 2)]
    code = code.replace("FOLDER or owner/name", str(shared)).replace('"1.jpg"', f'"{photos[0]}"')
    lines = code.replace('"2.jpg"', f'"{photos[1]}"').splitlines()
    assert len(lines) == 5
    found = {}
    exec("\n".join(lines), found)
    assert found["rows"].shape == (2,)
