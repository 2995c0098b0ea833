"""A file that must not be opened and one that must not come to be."""

from __future__ import annotations

import os
import shutil

import pytest
from hostile_files import Canary
from running import QUICK, run


@pytest.fixture
def canary(tmp_path):
    canary = Canary(tmp_path / "canary.h5")
    yield canary
    assert not canary.opened()
    canary.close()


@pytest.fixture
def trap(tmp_path):
    """The file that must not come to be."""
    path = tmp_path / "trap"
    yield path
    assert not path.exists()


@pytest.fixture(scope="module")
def trained(make_cache, tmp_path_factory):
    """An extracted data set and a scored run of it."""
    base, before = tmp_path_factory.mktemp("trained"), os.getcwd()
    make_cache(base / "cache", count=40)
    os.chdir(base)
    assert run("train", *QUICK, "-q") == run("eval", "-q") == 0
    os.chdir(before)
    return base


@pytest.fixture
def mine(trained, tmp_path, monkeypatch):
    """A copy, and its run's folder."""
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "runs/toy/triplet-8"
