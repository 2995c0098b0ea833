"""Paths on the command line: empty ones, and data sets whose photos are links to another folder."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from running import ENCODERS, run
from trees import COUNT, write_folder

import cmrhash
from cmrhash.config import at_home
from cmrhash.data.manifest import load
from cmrhash.errors import UsageError
from cmrhash.search.stores.folder import FolderStore
from cmrhash.show.html.thumbnails import Thumbnails


@pytest.mark.parametrize("words", [[""], ["", "--dataset", "folder"], ["--dataset", "folder", "--root", ""]])
def test_an_empty_path_is_refused(tmp_path, monkeypatch, capsys, words):
    monkeypatch.chdir(tmp_path)
    write_folder(tmp_path)
    assert run("extract", *words) == 2
    assert capsys.readouterr().err == "error: the path is empty: give a path; the current folder is .\n"
    assert not (tmp_path / "cache").exists()


def test_an_empty_path_is_refused_in_python():
    with pytest.raises(UsageError, match="^the path of the data set is empty"):
        cmrhash.extract("")
    with pytest.raises(UsageError, match="^root: the path is empty"):
        cmrhash.extract("folder", root="")


@pytest.mark.faults("name that two systems read differently")
@pytest.mark.parametrize("words", [("--cache=~/there",), ("--cache", "~/there"), ("--config", "~/c.toml")])
def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch, capsys, words):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home/there").mkdir(parents=True)
    (tmp_path / "home/c.toml").write_text('[search]\ncache = "~/there"\n')
    monkeypatch.chdir(tmp_path)
    assert run("search", "dog", *words) != 0
    assert str(tmp_path / "home/there") in capsys.readouterr().err
    assert not (tmp_path / "~").exists()


def test_paths_of_users_who_are_not_there_stay_as_they_are():
    assert at_home(Path("~nobody-of-this-name/x")) == Path("~nobody-of-this-name/x")


@pytest.mark.faults("name that two systems read differently")
def test_a_store_below_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    assert FolderStore("faiss:~/codes", None).folder == tmp_path / "home/codes"


@pytest.fixture
def linked(tmp_path, monkeypatch):
    """Photos whose folders are links, extracted with ``--follow-links``."""
    monkeypatch.chdir(tmp_path)
    write_folder(tmp_path / "away")
    (tmp_path / "mine").mkdir()
    for name in "012":
        (tmp_path / "mine" / name).symlink_to(tmp_path / "away" / name)
    (tmp_path / "mine/loop").symlink_to(tmp_path / "mine")
    assert run("extract", "mine", "--follow-links", *ENCODERS) == 0
    return SimpleNamespace(folder=tmp_path, cache=tmp_path / "cache/mine")


def test_links_hold_whenever_photos_are_read_again(linked, capsys):
    dataset = load(linked.cache)
    assert dataset.found["images"] == COUNT
    assert Thumbnails(dataset.root).of(dataset.items[0].image)
    assert run("cache", "verify") == 0
    assert run("extract", "mine", "--follow-links", *ENCODERS) == 0
    (linked.folder / "away/0/0.jpg").write_bytes(b"changed")
    assert run("cache", "verify") != 0


def test_without_the_option_the_links_are_named_and_the_cache_stays(linked, capsys):
    before = (linked.cache / "dataset.json").read_bytes()
    capsys.readouterr()
    assert run("extract", "mine", *ENCODERS) == 2
    assert "3 links out of the folder, not followed (--follow-links follows them)" in capsys.readouterr().err
    assert (linked.cache / "dataset.json").read_bytes() == before
