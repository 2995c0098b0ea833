"""A scored run and its cache, trained once and copied for each test."""

import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from cache_states import CACHE, TOY, TRAIN, invoke

from cmrhash.data import manifest


@pytest.fixture(scope="session")
def prepared(make_cache, tmp_path_factory):
    """``cache/toy`` and a scored run of 8 bits, whose photos (all of them empty files) lie beside the caches."""
    base, before = tmp_path_factory.mktemp("prepared"), os.getcwd()
    os.chdir(base)
    make_cache(CACHE)
    for n in range(120):
        Path(f"cache/{n}.jpg").touch()
    assert invoke(*TRAIN, "-q").exit_code == 0
    os.chdir(before)
    return base


@pytest.fixture
def here(prepared, tmp_path, monkeypatch):
    """A copy of it as the current folder."""
    shutil.copytree(prepared, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    manifest.store(replace(manifest.load(TOY), root=CACHE), TOY)
    return tmp_path
