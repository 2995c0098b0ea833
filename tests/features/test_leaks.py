"""Leaks between train and query items: photos by bytes and by cosine, captions word for word."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
from running import ENCODERS, run, write_own

from cmrhash.config import EvalConfig, TrainConfig
from cmrhash.errors import DataError
from cmrhash.evaluation.evaluate import evaluate
from cmrhash.features import leaks as module
from cmrhash.features.dataset import ExtractedDataset
from cmrhash.features.leaks import NEAR, leaks, near_duplicates
from cmrhash.training.train import train

EXTRACT = ["extract", "--dataset", "manifest", "--root", "mine", "--device", "cpu", *ENCODERS]


def two_queries(entries):
    """Items 0 and 4 ask; their labels differ, so that both find something."""
    entries[4]["splits"] = ["query"]
    return entries


@pytest.fixture
def leaking(tmp_path, monkeypatch, capsys):
    """A data set whose item 5, of train, has the photo of query 0 and the caption of query 4; its notes."""

    def change(entries):
        entries[5]["texts"]["en"] = entries[4]["texts"]["en"]
        return two_queries(entries)

    monkeypatch.chdir(tmp_path)
    write_own(tmp_path / "mine", 12, change)
    shutil.copy("mine/images/0.png", "mine/images/5.png")
    assert run(*EXTRACT) == 0
    return ExtractedDataset.open("cache"), capsys.readouterr().err


def test_the_same_photo_and_the_same_caption_are_found(leaking):
    data, notes = leaking
    found = leaks(data)
    assert (found.photos, found.same_photos, found.captions, found.same_captions) == (2, 1, 4, 1)
    assert found.compared == 0  # of untrained encoders every photo is near
    assert "leaks: 1 of 2 query photos are train photos, byte for byte" in notes
    assert "1 of 4 query captions are train captions, word for word" in notes


def test_near_photos_are_those_of_a_cosine_above_the_bound(leaking, monkeypatch):
    data, _ = leaking
    assert set(np.flatnonzero(near_duplicates(data))) == {5}  # by its bytes
    monkeypatch.setattr(module, "RANDOM", "")
    (data.folder / module.FILE).unlink()
    view = data.features("image")
    x = view.features.x[view.first] / np.linalg.norm(view.features.x[view.first], axis=1, keepdims=True)
    roles = [item.splits for item in data.dataset.items]
    near = {
        (q, t)
        for q in range(12)
        for t in range(12)
        if "query" in roles[q] and "train" in roles[t] and float(x[q] @ x[t]) > NEAR
    }
    assert (0, 5) in near
    assert leaks(data).near_photos == len({q for q, _ in near})
    assert set(np.flatnonzero(near_duplicates(data))) == {t for _, t in near}


def test_a_second_look_at_the_same_files_is_read_and_a_change_is_seen(leaking, monkeypatch):
    data, _ = leaking
    first = leaks(data)
    looked = []
    monkeypatch.setattr(module, "_look", lambda *args: looked.append(args) or replace(first, photos=99))
    assert leaks(ExtractedDataset.open("cache")) == first
    assert not looked
    path = data.folder / module.FILE
    path.write_text(path.read_text().replace('"photos": 2', '"photos": 3'))  # its digest tells
    assert leaks(data).photos == 99
    assert len(looked) == 1


def test_the_protocol_names_the_leaks(leaking, tmp_path):
    data, _ = leaking
    train(TrainConfig(bits=8, epochs=1, hidden=8, device="cpu"), data, tmp_path / "runs")
    result = evaluate(EvalConfig(), data, tmp_path / "runs")
    assert result.protocol["leaks"] == str(leaks(data))
    assert any(line.startswith("leaks: 1 of 2 query photos") for line in result.in_words())


def test_without_query_or_train_items_nothing_is_said(tmp_path, monkeypatch, capsys):
    def database(entries):
        return [{**entry, "splits": ["database"]} for entry in entries]

    monkeypatch.chdir(tmp_path)
    write_own(tmp_path / "mine", 8, database)
    assert run(*EXTRACT) == 0
    assert "leaks:" not in capsys.readouterr().err
    assert leaks(ExtractedDataset.open("cache")) is None


def test_a_training_leaves_out_the_photos_of_queries(leaking, tmp_path, monkeypatch):
    data, _ = leaking
    monkeypatch.setattr(module, "NEAR", 2.0)  # an untrained encoder finds all photos near: bytes alone
    quick = TrainConfig(bits=8, epochs=1, hidden=8, batch=2, device="cpu")
    usual, _ = train(quick, data, tmp_path / "all")
    fewer, _ = train(replace(quick, drop_near_duplicates=True), data, tmp_path / "fewer")
    dropped = int(near_duplicates(data).sum())
    assert dropped == 1
    assert fewer.train_items == usual.train_items - dropped
    protocol = evaluate(EvalConfig(), data, tmp_path / "fewer").protocol
    assert "drop_near_duplicates True" in protocol["settings other than the default"]


def test_a_training_without_items_is_refused(leaking, tmp_path, monkeypatch):
    data, _ = leaking
    monkeypatch.setattr("cmrhash.training.task.near_duplicates", lambda of: np.ones(len(of.dataset.items), bool))
    with pytest.raises(DataError, match="0 items to train on without the photos of queries"):
        train(TrainConfig(bits=8, drop_near_duplicates=True, device="cpu"), data, tmp_path / "runs")
    assert not list((tmp_path / "runs").rglob("*.json"))


def test_of_ready_made_features_only_cosines_are_compared(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    x = np.random.default_rng(0).standard_normal((30, 4))
    np.savez("f.npz", image=x, text=x, label=np.arange(30) % 3)
    assert run("extract", "--dataset", "features", "--features", "f.npz") == 0
    found = leaks(ExtractedDataset.open("cache"))
    assert (found.photos, found.captions) == (0, 0)
    assert found.compared > 0
    assert str(found).startswith(f"{found.near_photos} of {found.compared} query photos have a cosine above 0.9")
