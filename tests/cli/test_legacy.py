"""Caches, runs and exports that an earlier cmrhash (0.1.0 before its modules lay in rooms) wrote, opened as they are.

tests/helpers/legacy holds its feature files (``extracted``), its runs (``trained``), an export (``shared``) and what it
printed (``eval.json``, ``search.json``). The photos are not there: nothing here may need them.
"""

import json
import shutil
from pathlib import Path

import pytest
import trees
from running import files, run

from cmrhash.search.hasher import Hasher

LEGACY = Path(trees.__file__).parent / "legacy"
TRIPLET, CCA = "runs/legacy/triplet-16-seed1", "runs/legacy/cca-12"
TRAIN = ["train", "--epochs", "20", "--batch", "16", "--hidden", "8", "--dropout", "0", "--input-dropout", "0"]
TRAIN += ["--device", "cpu"]
EARLIER_RUNS = {
    TRIPLET: [*TRAIN, "--method", "triplet", "--bits", "16", "--seed", "1"],
    CCA: ["train", "--device", "cpu", "--method", "cca", "--bits", "12"],
}


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A copy as the current folder, laid out as its commands left it."""
    shutil.copytree(LEGACY / "extracted", tmp_path / "cache/legacy")
    shutil.copytree(LEGACY / "trained", tmp_path / "runs/legacy")
    shutil.copytree(LEGACY / "shared", tmp_path / "shared")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def printed(here, capsys):
    """A function that runs a command and returns the JSON that it prints."""

    def call(*args):
        capsys.readouterr()
        assert run(*args, "-q", "--json") == 0, capsys.readouterr().err
        return json.loads(capsys.readouterr().out)

    return call


def recorded(name):
    return json.loads((LEGACY / name).read_text(encoding="utf-8"))


def test_eval_prints_the_figures_of_then(here, printed):
    before = files(here)
    check_figures(printed("eval"))
    after = files(here)
    assert {path for path in before if after[path] != before[path]} <= {
        path for path in before if "metrics" in str(path)
    }


def check_figures(now):
    """All figures of then, and those by seen and unseen items, which came later."""
    then = recorded("eval.json")
    assert {key: now["protocol"][key] for key in then["protocol"]} == then["protocol"]
    assert now["protocol"]["seen"].startswith("26 train items; unseen: 6 items")
    for row, old in zip(now["rows"], then["rows"], strict=True):
        assert row["map_real"] == pytest.approx(old.pop("map_real"), abs=1e-6)
        assert {key: row[key] for key in old} == old
        assert 0 < row["map_unseen"] < 1


@pytest.mark.parametrize("removed", ["metrics.json", "codes.h5", "*.faiss"])
def test_what_eval_makes_again_gives_the_figures_of_then(here, printed, removed):
    """Figures of Hamming distances are the same to the bit; cosines of embeddings are as exact as the processor."""
    for path in [*here.glob("runs/legacy/*/metrics.json"), *here.glob(f"runs/legacy/*/{removed}")]:
        path.unlink(missing_ok=True)
    check_figures(printed("eval"))


def test_search_finds_what_was_found_then(printed):
    as_then = ("--rank", "hamming", "--among", "database")
    found = printed("search", "--id", "i3", "--lang", "en", "--k", "5", "--run", TRIPLET, *as_then)
    bits = 16
    assert [hit.pop("score") for hit in found["results"]] == [
        pytest.approx(1 - 2 * hit["distance"] / bits, abs=1e-6) for hit in recorded("search.json")["results"]
    ]
    assert found == recorded("search.json")


def test_cache_ls_lists_every_file_as_whole(printed):
    listed = printed("cache", "ls")
    names = {Path(file["path"]).name: file["state"] for file in listed["files"]}
    h5 = [path.name for path in (LEGACY / "extracted").glob("*.h5")]
    assert len(h5) == 5
    assert names == {"items.jsonl": "whole"} | dict.fromkeys(h5, "sealed")
    assert {run["path"]: run["state"] for run in listed["runs"]} == dict.fromkeys((TRIPLET, CCA), "trained")


@pytest.mark.parametrize("folder", EARLIER_RUNS)
def test_train_finds_the_run_done(here, printed, folder):
    before = files(here)
    (told,) = printed(*EARLIER_RUNS[folder])
    assert (told["folder"], told["trained"]) == (folder, False)
    assert files(here) == before


def test_the_exported_run_gives_the_codes_of_then(here):
    hasher = Hasher.from_pretrained(here / "shared", device="cpu")
    assert hasher.encode_text(["a dog red 3", "a small house"], lang="en").tolist() == [[203, 235], [216, 175]]
