"""``cmrhash export``."""

import json
import os
import re

import numpy as np
import pytest
from handed_on import TRAIN
from running import EXTRACT, QUICK, run, write_own

from cmrhash.config import ExtractConfig
from cmrhash.errors import UsageError
from cmrhash.features.dataset import ExtractedDataset
from cmrhash.features.extract import extract
from cmrhash.search.hasher import Hasher
from cmrhash.training.train import train

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def untrained(tmp_path_factory):
    """A trained run on untrained encoders, made by commands."""
    folder = tmp_path_factory.mktemp("untrained")
    write_own(folder / "mine")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert run(*EXTRACT, "--quiet") == 0
        assert run("train", *QUICK, "--quiet") == 0
    return folder


def test_the_command_writes_what_loads_without_the_data_set(untrained, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(untrained)
    capsys.readouterr()
    assert run("export", tmp_path / "out", "--json", "--device", "cpu") == 0
    out = capsys.readouterr()
    found = json.loads(out.out)
    assert out.err == ""
    assert found["files"] == {name: (tmp_path / "out" / name).stat().st_size for name in found["files"]}
    assert found["encoders"]["image"] == "random"
    assert found["encoders"]["text-de"] == "encoders/text-de"
    want = Hasher.load("runs/manifest/triplet-8", "cache", device="cpu")
    photos = [untrained / "mine/images/3.png"]
    codes = want.encode_image(photos), want.encode_text(["Hund 3"], "de")
    monkeypatch.chdir(tmp_path)
    loaded = Hasher.from_pretrained("out", device="cpu")
    np.testing.assert_array_equal(loaded.encode_image(photos), codes[0])
    np.testing.assert_array_equal(loaded.encode_text(["Hund 3"], "de"), codes[1])


def test_the_command_prints_a_table_and_keeps_what_is_there(untrained, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(untrained)
    assert run("export", tmp_path / "out", "--device", "cpu") == 0
    assert re.search(r"heads\.safetensors +\d+\.\d kB", capsys.readouterr().out)
    assert run("export", tmp_path / "out") == 2
    assert capsys.readouterr().err.count("\n") == 1
    (tmp_path / "out/mine.txt").write_text("kept")
    (tmp_path / "out/image.onnx").write_text("of other heads")
    assert run("export", tmp_path / "out", "--overwrite", "--quiet", "--device", "cpu") == 0
    assert (tmp_path / "out/mine.txt").read_text() == "kept"
    assert not (tmp_path / "out/image.onnx").exists()
    (tmp_path / "out/config.json").write_text("{")  # a damaged export is replaced
    assert run("export", tmp_path / "out", "--overwrite", "--quiet", "--device", "cpu") == 0


@pytest.mark.parametrize(("place", "kind"), [("runs/manifest/triplet-8", "a run"), ("cache/manifest", "a collection")])
def test_no_run_and_no_collection_is_replaced_by_an_export(place, kind, untrained, monkeypatch, capsys):
    monkeypatch.chdir(untrained)
    before = {path: path.read_bytes() for path in (untrained / place).rglob("*") if path.is_file()}
    assert run("export", place, "--overwrite", "--device", "cpu") == 2
    assert f"the target folder holds {kind}" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in (untrained / place).rglob("*") if path.is_file()} == before


def test_an_export_whose_name_differs_by_case_is_not_replaced(untrained, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(untrained)
    (tmp_path / "Mine").mkdir()
    real = os.listdir
    monkeypatch.setattr(os, "listdir", lambda path: ["mine"] if path == tmp_path else real(path))
    assert run("export", tmp_path / "Mine", "--overwrite", "--device", "cpu") == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: 'Mine' is 'mine' here: the file system does not")
    assert real(tmp_path / "Mine") == []


def test_without_the_packages_onnx_is_refused_before_any_work(untrained, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(untrained)
    monkeypatch.setattr("cmrhash.encoders.graphs.PACKAGES", ("onnx", "no_such_package"))
    assert run("export", tmp_path / "out", "--onnx") == 2
    err = capsys.readouterr().err
    assert re.fullmatch(r'error: ONNX needs .*no_such_package: pip install "cmrhash\[onnx\]"\n', err)
    assert not (tmp_path / "out").exists()


def test_ready_made_features_have_no_encoder_to_hand_on(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {"image": rng.standard_normal((60, 8)), "text": rng.standard_normal((60, 6))}
    labels = np.eye(3, dtype=np.int64)[rng.integers(0, 3, 60)]
    np.savez(tmp_path / "own.npz", labels=labels, **{k: x.astype(np.float32) for k, x in arrays.items()})
    extract(ExtractConfig(dataset="features", features=(tmp_path / "own.npz",), cache=tmp_path / "cache"))
    done, _ = train(TRAIN, ExtractedDataset.open(tmp_path / "cache"), tmp_path / "runs")
    ready = Hasher.load(done.folder, tmp_path / "cache")
    with pytest.raises(UsageError, match="ready-made"):
        ready.save_pretrained(tmp_path / "out")
    assert not (tmp_path / "out").exists()
