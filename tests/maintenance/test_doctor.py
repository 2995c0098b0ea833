"""cmrhash doctor and cmrhash alone: states that make it fail, parts that may be missing, and no torch for a glance."""

import importlib
import json
import re
import subprocess
import sys
import tomllib
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from cmrhash.maintenance import doctor
from cmrhash.maintenance.doctor import ABSENT, EXTRAS, FAILED, OK, examine, passes
from cmrhash.maintenance.overview import overview
from cmrhash_cli.main import app

ROOT = Path(__file__).parents[2]


@pytest.fixture
def without(monkeypatch):
    """A function that makes modules fail to import."""

    def lack(**errors):
        real = importlib.import_module

        def load(name):
            if name in errors:
                raise errors[name]
            return real(name)

        monkeypatch.setattr(importlib, "import_module", load)

    return lack


@pytest.fixture
def states(tmp_path):
    """A function that examines this machine: part -> check."""
    return lambda: {one.part: one for one in examine(tmp_path / "cache", tmp_path / "runs")}


def test_a_whole_installation_passes_and_leaves_nothing_behind(tmp_path):
    where = ["--cache", str(tmp_path / "cache"), "--runs", str(tmp_path / "runs")]
    done = CliRunner().invoke(app, ["doctor", "--json", "--quiet", *where])
    found = json.loads(done.stdout)
    assert (done.exit_code, found["passes"]) == (0, True)
    assert {one["state"] for one in found["checks"]} <= {OK, ABSENT}
    assert list(tmp_path.iterdir()) == []


def test_every_extra_is_checked():
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    assert EXTRAS.keys() == {name for name, packages in declared.items() if packages} - {"test", "dev", "docs"}


def test_every_extra_that_a_text_names_can_be_installed():
    """By pip before 23.3, too, which compares names letter by letter with their normal form (PEP 685)."""
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    assert [name for name in declared if name != re.sub("[-_.]+", "-", name).lower()] == []
    files = [
        ROOT / "README.md",
        ROOT / "pyproject.toml",
        *(ROOT / "docs").rglob("*.md"),
        *(ROOT / "cmrhash").rglob("*.py"),
    ]
    texts = "\n".join(file.read_text(encoding="utf-8") for file in files)
    named = set(re.findall(r"[\w-]+", " ".join(re.findall(r"(?:cmrhash|\.)\[([\w,-]+)\]\"", texts))))
    assert named - {"NAME"} <= declared.keys()
    assert len(named) > 8


def test_missing_and_broken_packages(states, without):
    without(
        h5py=ModuleNotFoundError("No module named 'h5py'", name="h5py"),
        torchvision=RuntimeError("operator torchvision::nms does not exist"),
        sklearn=ModuleNotFoundError("No module named 'sklearn'", name="sklearn"),
    )
    found = states()
    assert found["h5py"].state == found["torchvision"].state == FAILED
    assert found["torchvision"].fix == "install torch and torchvision together"
    assert not passes([*found.values()])
    viz = found["[viz]"]
    assert (viz.state, viz.fix) == (ABSENT, 'pip install "cmrhash[viz]"')
    assert viz.found == "sklearn not installed; for plot, report"


def test_an_old_package_fails(states, monkeypatch):
    monkeypatch.setattr(doctor, "_declared", lambda: {"numpy": "99.1"})
    found = states()["numpy"]
    assert found.state == FAILED
    assert found.fix == 'pip install "numpy>=99.1"'


def test_folders_that_cannot_be_used(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    found = {one.part: one for one in examine(tmp_path / "file", tmp_path)}
    assert found["cache"].state == FAILED
    assert "--cache" in found["cache"].fix
    assert found["runs"].state == OK
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: usage(1, 1, 5e8))
    found = {one.part: one for one in examine(tmp_path, tmp_path)}
    assert (found["cache"].state, "0.5 GB free" in found["cache"].found) == (FAILED, True)


def test_a_card_that_does_not_compute_fails(states, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Some Card")

    def ones(*_, **__):
        raise RuntimeError("no kernel image is available")

    monkeypatch.setattr(torch, "ones", ones)
    found = states()["GPU"]
    assert (found.state, found.fix) == (FAILED, "update its driver, or use --device cpu")


def test_weights_that_are_not_here(states, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    found = states()
    assert "HF_HUB_OFFLINE is set" in found["bert-base-uncased"].found
    assert found["resnet18"].state == ABSENT
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints/resnet18-0.pth").write_text("")
    assert states()["resnet18"].state == OK


def test_cmrhash_alone_shows_the_way_and_what_is_here(tmp_path, monkeypatch, make_cache):
    monkeypatch.chdir(tmp_path)
    shown = CliRunner().invoke(app, [])
    assert shown.exit_code == 0
    ways = [shown.stdout.index(f"cmrhash {name}") for name in ("extract", "train", "eval", "search")]
    assert ways == sorted(ways)
    assert "no features and no runs" in shown.stdout
    assert "next: cmrhash extract\n" in shown.stdout
    data = make_cache(tmp_path / "cache")
    shown = CliRunner().invoke(app, []).stdout
    assert "toy: 120 items, features of image (toy), de (toy), en (toy)" in shown
    assert "next: cmrhash train\n" in shown
    from cmrhash.config import TrainConfig
    from cmrhash.training.train import train

    for bits in (8, 16):
        train(TrainConfig(bits=bits, epochs=1, hidden=8, device="cpu"), data, tmp_path / "runs")
    (best, score), (_, other) = overview(Path("cache"), Path("runs"))[0].runs
    assert score >= other
    shown = CliRunner().invoke(app, []).stdout
    assert f"2 runs, best on val: {best} (val mAP {score:.3f})" in shown
    assert "next: cmrhash search 'a dog in snow'\n" in shown


def test_damaged_and_foreign_files_are_left_out(tmp_path, make_cache):
    make_cache(tmp_path / "cache")
    (tmp_path / "cache/toy/image-toy.h5").write_bytes(b"no HDF5")
    (tmp_path / "runs/toy/x").mkdir(parents=True)
    (tmp_path / "runs/toy/x/config.json").write_text("[]")
    (held,) = overview(tmp_path / "cache", tmp_path / "runs")
    assert (list(held.views), held.runs) == (["de", "en"], [])
    assert overview(tmp_path / "nowhere", tmp_path / "cache/toy/image-toy.h5") == []


def test_a_glance_imports_nothing_heavy(tmp_path):
    heavy = "[m for m in ('torch', 'numpy', 'h5py', 'rich') if m in sys.modules]"
    code = f"import sys; from cmrhash_cli.welcome import welcome; welcome(); print({heavy})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout.strip() == "[]", done.stderr
