"""Options out of a TOML file and of a run: what is typed wins, then the environment, the file, the run."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from running import run

from cmrhash.training.runs import open_run

QUICK = ["--epochs", "1", "--batch", "16", "--hidden", "4", "--device", "cpu", "-q"]


@pytest.fixture
def here(make_cache, tmp_path, monkeypatch):
    make_cache(tmp_path / "cache")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def config(text):
    Path("table.toml").write_text(text, encoding="utf-8")
    return ["--config", "table.toml"]


def test_a_file_sets_what_is_not_typed(here, capsys):
    given = config(
        '[train]\nbits = [8, 16]\nmethod = "tie-ap"\nepochs = 2\nhidden = 4\nbatch = 16\n'
        'device = "cpu"\njson = true\nquiet = true\nlang = ["de"]\n[eval]\nlang = ["de"]\nbits = 8\njson = true\n'
    )
    assert run("train", *given, "--epochs", "1") == 0
    assert len(json.loads(capsys.readouterr().out)) == 2
    assert open_run(Path("runs/toy/tie-ap-16-de")).bits == 16
    assert open_run(Path("runs/toy/tie-ap-8-de")).settings["epochs"] == 1
    assert open_run(Path("runs/toy/tie-ap-8-de")).settings["hidden"] == 4
    assert run("eval", *given) == 0
    assert {(row["bits"], row["lang"]) for row in json.loads(capsys.readouterr().out)["rows"]} == {(8, "de")}
    assert run("eval", *given, "--bits", "16") == 0
    assert {row["bits"] for row in json.loads(capsys.readouterr().out)["rows"]} == {16}


def test_the_environment_wins_over_the_file(here, capsys, monkeypatch):
    assert run("train", "--bits", "8", *QUICK) == 0
    given = config('[index]\nstore = "faiss:of-the-file"\n')
    monkeypatch.setenv("CMRHASH_STORE", "faiss:of-the-environment")
    assert run("index", *given, "-q") == 0
    assert Path("of-the-environment").is_dir()
    assert not Path("of-the-file").exists()
    monkeypatch.delenv("CMRHASH_STORE")
    assert run("index", *given, "-q") == 0
    assert Path("of-the-file").is_dir()


def test_a_run_gives_its_settings_and_a_file_wins_over_it(here, capsys):
    assert run("train", "--bits", "8", "--method", "tie-ap", "--lang", "de", "--seed", "3", *QUICK) == 0
    first = open_run(Path("runs/toy/tie-ap-8-de-seed3"))
    assert run("train", "--from-run", str(first.folder), "--bits", "16", "-q", "--device", "cpu") == 0
    again = open_run(Path("runs/toy/tie-ap-16-de-seed3"))
    assert again.settings == {**first.settings, "bits": 16}
    assert again.langs == ("de",)
    given = config("[train]\nseed = 4\n")
    assert run("train", "--from-run", str(first.folder), *given, "-q", "--device", "cpu") == 0
    assert open_run(Path("runs/toy/tie-ap-8-de-seed4")).settings["hidden"] == 4


def test_the_same_run_is_found_done(here, capsys):
    assert run("train", "--bits", "8", *QUICK) == 0
    assert run("train", "--from-run", "runs/toy/triplet-8", "--device", "cpu", "-q", "--json") == 0
    assert [one["trained"] for one in json.loads(capsys.readouterr().out.rpartition("\n\n")[2])] == [False]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[train\n", "no TOML file (Expected ']'"),
        ("[eval]\nbits = 8\n", "no table [train] (there: [eval])"),
        ("bits = 8\n", "no table [train] (there: [bits])"),
        ("[train]\nbitz = 8\n", "'bitz' is no option of train: table.toml: did you mean bits?"),
        ("[train]\nconfig = 'a'\n", "'config' is no option of train"),
        ("[train]\nepochs = [1, 2]\n", "epochs = [1, 2]: table.toml: give one value"),
        ("[train]\nbits = [[1], 2]\n", "give a value, or a list of values"),
        ("[train]\nlr = {a = 1}\n", "give one value"),
        ("[train]\nepochs = 'many'\n", "--epochs"),
        ("[train]\nmethod = 'tie-app'\n", "unknown method 'tie-app'"),
        ("[train]\nmethod = 'cca'\nepochs = 3\n", "--epochs: method 'cca' has no such setting"),
    ],
)
def test_a_file_that_cannot_be_used_is_one_line(here, capsys, text, words):
    before = sorted(here.rglob("*"))
    given = config(text)
    assert run("train", *given) in (2, 5)
    error = capsys.readouterr().err.strip()
    assert words in error
    assert len(error.splitlines()) == 1
    assert sorted(path for path in here.rglob("*") if path.name != "table.toml") == before


def test_a_missing_file_and_a_missing_run_are_one_line(here, capsys):
    assert run("train", "--config", "none.toml") == 5
    assert "not readable (No such file or directory): none.toml" in capsys.readouterr().err
    assert run("train", "--from-run", "runs/none") != 0
    assert "runs/none" in capsys.readouterr().err


def test_a_typo_in_a_file_is_told_without_torch(here):
    given = config("[train]\nbitz = 8\n")
    forbid = "import sys; sys.modules['torch'] = None; from cmrhash_cli.main import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", forbid, "train", *given], capture_output=True, text=True, env={**os.environ}
    )
    assert "did you mean bits?" in done.stderr
    assert done.returncode == 5
