"""An export in the place of another one: killed anywhere, the folder holds the old export or the new one, whole."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import odd_records
import pytest
from running import largest_file

from cmrhash.errors import CmrhashError, DamagedError
from cmrhash.search.exported import write
from cmrhash.search.exported.hasher import CONFIG, PretrainedHasher, read_config
from cmrhash.search.hasher import Hasher
from cmrhash.storage import staged
from cmrhash.storage.files import read_json, write_json

FUZZ = int(os.environ.get("CMRHASH_FUZZ", "1"))
CALLS = ("fsync", "replace", "unlink", "rmdir", "mkdir")  # of the system, each of which may be the last


class Killed(BaseException):
    """The process is gone: nothing that follows reaches the disk."""


@pytest.fixture
def killed_at(monkeypatch):
    """A function that lets a call run up to a number of system calls; whether it was killed then."""

    def run(last, do):
        count = 0

        def counted(real):
            def call(*args, **options):
                nonlocal count
                count += 1
                if count >= last:
                    raise Killed
                return real(*args, **options)

            return call

        with monkeypatch.context() as patch:
            for name in CALLS:
                patch.setattr(os, name, counted(getattr(os, name)))
            try:
                do()
            except Killed:
                return True
            return False

    return run


@pytest.fixture
def other(made, tmp_path):
    """The same run, exported with a card of its own."""
    hasher = Hasher.load(made / "runs/manifest/triplet-20", made / "cache", device="cpu")
    folder = tmp_path / "old"
    hasher.save_pretrained(folder, with_encoders=True)
    (folder / "README.md").write_text("the old one")
    (folder / "image.onnx").write_text("of the old one")
    return hasher, folder


@pytest.mark.faults("crash at a write: killed")
def test_a_killed_export_leaves_the_old_one_or_the_new_one(other, tmp_path, killed_at, monkeypatch, faults):
    hasher, old = other
    monkeypatch.setattr(write, "_check", lambda *_: None)  # opens every encoder: it writes nothing
    folder, shown = tmp_path / "out", set[tuple[bool, bool]]()
    for last in range(1, 400):
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(old, folder)
        killed = killed_at(last, lambda: hasher.save_pretrained(folder, overwrite=True))
        config = read_config(folder)
        is_old = (folder / "README.md").read_text() == "the old one"
        whole = is_old == (folder / "image.onnx").exists() == (config["encoders"]["image"]["part"] is not None)
        shown.add((is_old, whole))
        faults.tried += 1
        faults.survived += whole
        if not killed:
            break
    assert last > 20
    assert shown == {(True, True), (False, True)}
    assert not (folder / staged.NEXT).exists()
    PretrainedHasher.load(folder)


@pytest.mark.faults("disk full")
def test_a_full_disk_keeps_the_old_export(other):
    hasher, folder = other
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with largest_file(5000), pytest.raises(OSError, match="large|space"):
        hasher.save_pretrained(folder, overwrite=True)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


@pytest.mark.faults("hostile file")
@pytest.mark.parametrize("name", ["../victim", "/tmp/victim", "sub/../../victim", "link/victim", "sub\\..\\victim"])
@pytest.mark.parametrize("field", ["files", "removed"])
def test_a_switch_of_strangers_touches_nothing_outside(tmp_path: Path, name: str, field: str) -> None:
    folder, outside = tmp_path / "theirs", tmp_path / "outside"
    (folder / staged.NEXT / "link").mkdir(parents=True)
    outside.mkdir()
    for place in (outside, tmp_path):
        (place / "victim").write_text("mine")
    (folder / "link").symlink_to(outside)
    (folder / staged.NEXT / "link/victim").write_text("theirs")
    write_json(folder / staged.NEXT / staged.SWITCH, {"files": [], "removed": [], field: [name]})
    with pytest.raises(DamagedError, match="not below the folder"):
        staged.settle(folder)
    assert (outside / "victim").read_text() == (tmp_path / "victim").read_text() == "mine"


@pytest.mark.faults("record of others: field missing or of another type")
def test_every_odd_config_of_an_export_is_read_or_refused(copy, faults):
    config, wrong = read_json(copy / CONFIG, ""), []
    for name, odd in list(odd_records.odd(config))[:: 1 if FUZZ > 1 else 7]:
        write_json(copy / CONFIG, odd)
        faults.tried += 1
        try:
            made = PretrainedHasher.load(copy, device="cpu")
            assert isinstance(made.bits, int)
            assert all(isinstance(lang, str) for lang in made.langs)
        except CmrhashError:
            pass
        except Exception as error:
            wrong.append(f"{name}: {error!r}")
            continue
        faults.survived += 1
    assert not wrong
