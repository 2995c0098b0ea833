"""A trained run and an extracted data set, and a check that a command is refused in one line."""

import os
import re
import shutil

import pytest
from running import EXTRACT, QUICK, files, run, write_own

from cmrhash.storage.files import read_json, write_json


@pytest.fixture(scope="module")
def prepared(make_cache, tmp_path_factory):
    """cache/toy with a trained, scored run; and a data set "mine" that is extracted into another cache."""
    base, before = tmp_path_factory.mktemp("prepared"), os.getcwd()
    make_cache(base / "cache")
    write_own(base / "mine")
    os.chdir(base)
    assert run("train", *QUICK, "-q") == 0
    assert run(*EXTRACT, "--cache", "own", "-q") == 0
    os.chdir(before)
    return base


@pytest.fixture
def here(prepared, tmp_path, monkeypatch):
    """A copy of it as the current folder."""
    shutil.copytree(prepared, tmp_path, dirs_exist_ok=True)
    about = tmp_path / "own/manifest/dataset.json"  # it names the folder of the photos, which are copied as well
    write_json(about, {**read_json(about, ""), "root": str((tmp_path / "mine").resolve())})
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def refused(here, capsys):
    """A function that runs a command, which must fail: in one line, with that code, nothing lost and nothing left."""

    def check(code, words, *args, leaves=False):
        before = files(here)
        capsys.readouterr()
        assert run(*args, "-q") == code, capsys.readouterr().err
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert error.count("\n") == 1, error
        assert re.search(words, error), error
        assert "unexpected" not in error
        after = files(here)
        assert [str(p) for p, content in before.items() if after.get(p) != content] == []
        assert leaves or [str(p) for p in after.keys() - before.keys()] == []
        return error

    return check
