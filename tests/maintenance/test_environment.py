"""cmrhash env: a report that says what matters, of any machine, and nothing that is secret."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from cmrhash import __version__
from cmrhash.maintenance import environment
from cmrhash.maintenance.environment import VARIABLES, as_markdown, describe
from cmrhash_cli.main import app

SECTIONS = ["cmrhash", "machine", "packages", "extras", "devices", "folders", "variables"]


@pytest.fixture
def found(tmp_path):
    """A function that describes this machine again."""
    return lambda: describe(tmp_path / "cache", tmp_path / "runs")


def test_the_report_has_every_section_as_json_and_as_markdown(tmp_path):
    where = ["--cache", str(tmp_path / "cache"), "--runs", str(tmp_path / "runs")]
    report = json.loads(CliRunner().invoke(app, ["env", "--json", *where]).stdout)
    assert list(report) == SECTIONS
    assert report["cmrhash"]["version"] == __version__
    assert report["packages"]["torch"].startswith(torch.__version__.partition("+")[0])
    assert "HDF5 " in report["packages"]["h5py"]
    assert report["devices"]["--device auto"] in ("cpu", "cuda")
    assert report["devices"]["threads"] == torch.get_num_threads()
    assert report["folders"]["cache"]["state"] == "not there yet, writable"
    shown = CliRunner().invoke(app, ["env", *where]).stdout
    for section, values in report.items():
        assert f"**{section}**\n\n- " in shown
        for name in values:
            assert f"\n- {name}: " in shown
    assert all(line.startswith(("**", "- ")) for line in shown.splitlines() if line)
    assert "GB free" in shown


def test_packages_that_are_missing_or_broken_are_lines(found, monkeypatch):
    real = importlib.import_module
    broken = {
        "gensim": ModuleNotFoundError("No module named 'gensim'", name="gensim"),
        "scipy": ModuleNotFoundError("No module named 'numpy.core'", name="numpy.core"),
        "faiss": OSError("libopenblas.so.0: cannot open\nshared object file"),
        "torch": RuntimeError("no kernel image"),
        "huggingface_hub": AttributeError("__version__"),
    }

    def load(name):
        if name in broken:
            raise broken[name]
        return real(name)

    monkeypatch.setattr(importlib, "import_module", load)
    report = found()
    assert report["extras"]["gensim"].endswith("not installed")
    assert report["extras"]["scipy"].endswith("broken (needs numpy.core)")
    assert report["packages"]["faiss-cpu"].endswith(
        "broken (OSError: libopenblas.so.0: cannot open shared object file)"
    )
    assert report["devices"] == {"torch": "broken (RuntimeError: no kernel image)"}
    assert report["folders"]["torch hub"] == "broken (RuntimeError: no kernel image)"
    assert list(report) == SECTIONS
    assert "not installed" in as_markdown(report)


def test_nothing_secret_is_in_it(found, monkeypatch):
    secret = "hf_s3cr3t"
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "AWS_SECRET_ACCESS_KEY", "WANDB_API_KEY"):
        monkeypatch.setenv(name, secret)
    monkeypatch.setenv("HF_ENDPOINT", f"https://me:{secret}@mirror.example/api")
    monkeypatch.setenv("HF_HOME", str(Path.home() / "hub"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1\n2")
    monkeypatch.setenv("TMPDIR", "/" + "x" * 500)
    report = found()
    shown = json.dumps(report) + as_markdown(report)
    assert secret not in shown
    assert report["variables"]["HF_ENDPOINT"] == "https://***@mirror.example/api"
    assert report["variables"]["HF_HOME"] == "~/hub"
    assert report["variables"]["HF_HUB_OFFLINE"] == "1 2"
    assert len(report["variables"]["TMPDIR"]) == environment.LONGEST
    assert not any(word in name for name in VARIABLES for word in ("TOKEN", "KEY", "SECRET", "PASS"))


def test_a_card_and_what_is_said_of_it(found, monkeypatch):
    class Card:
        name, total_memory = "Some Card", 80 * 2**30

    def available():
        import warnings

        warnings.warn("the driver is too old", stacklevel=1)
        return True

    monkeypatch.setattr(torch.cuda, "is_available", available)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: Card)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    devices = found()["devices"]
    assert devices["CUDA"] == "Some Card, 80 GiB; Some Card, 80 GiB"
    assert devices["--device auto"] == "cuda"
    assert devices["--dtype auto"].startswith("bfloat16")
    assert [value for name, value in devices.items() if "warning" in name] == ["the driver is too old"]


def test_a_checkout_names_its_commit(found, monkeypatch, tmp_path):
    def run(*_, **__):
        raise FileNotFoundError("git")

    monkeypatch.setattr(environment, "PACKAGE", tmp_path / "cmrhash")
    assert environment._commit() == ""
    (tmp_path / ".git").mkdir()
    assert environment._commit() == "unknown"  # that is no repository
    monkeypatch.setattr(subprocess, "run", run)
    assert environment._commit() == "unknown"
    monkeypatch.undo()
    if (environment.PACKAGE.parent / ".git").exists():
        assert found()["cmrhash"]["commit"] not in ("", "unknown")


def test_importing_it_loads_nothing_heavy():
    heavy = "[m for m in ('torch', 'numpy', 'h5py') if m in sys.modules]"
    code = f"import sys, cmrhash.maintenance.environment; print({heavy})"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
