"""Models by their ids: downloaded from a hub of this machine, then opened offline; what is refused leaves nothing."""

from __future__ import annotations

import pytest
import torch
from local_hub import only_this_machine, taken_for_the_hub
from package_models import need, write_open_clip_folder, write_timm
from small_models import write_clip

from cmrhash.encoders import image, text
from cmrhash.errors import EncoderError

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An empty hub that huggingface_hub takes for the one."""
    only_this_machine(monkeypatch)
    with taken_for_the_hub(monkeypatch, tmp_path / "hub") as local:
        yield local


def files_of(folder):
    """{path: content} of a directory."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def both(model, **rest):
    """Recipes of both towers, and their sources."""
    towers = image.load(model, dtype="float32", **rest), text.load(model, dtype="float32", **rest)
    return [tower.recipe for tower in towers], {tower.source for tower in towers}


def test_a_dual_encoder_of_transformers(hub, tmp_path):
    write_clip(tmp_path / "clip")
    hub.add("me/clip", files_of(tmp_path / "clip"))
    recipes, sources = both("me/clip")
    assert sources == {"me/clip"}
    assert recipes == both(str(tmp_path / "clip"))[0]
    hub.status = 500
    assert both("me/clip", offline=True)[0] == recipes


def test_a_directory_of_open_clip(hub, tmp_path):
    need("open_clip")
    write_open_clip_folder(tmp_path / "whole", mean=[0.5, 0.5, 0.5], std=[0.25, 0.25, 0.25])
    hub.add("me/clip", files_of(tmp_path / "whole") | {"README.md": b"of no use"})
    recipes, sources = both("open_clip:hf-hub:me/clip")
    assert sources == {"open_clip:hf-hub:me/clip"}
    assert image.load("open_clip:hf-hub:me/clip").name == "open_clip-me--clip"
    assert recipes == both(f"open_clip:{tmp_path / 'whole'}")[0]
    assert not list((tmp_path / "hub").rglob("README.md"))
    hub.status = 500
    assert both("open_clip:hf-hub:me/clip", offline=True)[0] == recipes


def test_weights_of_timm(hub, tmp_path):
    import safetensors.torch

    need("timm")
    write_timm(tmp_path / "net.pth", classes=1000)
    safetensors.torch.save_file(torch.load(tmp_path / "net.pth"), tmp_path / "net.safetensors", {"format": "pt"})
    hub.add("timm/test_resnet.r160_in1k", {"model.safetensors": (tmp_path / "net.safetensors").read_bytes()})
    encoder = image.load("timm:test_resnet")
    assert encoder.recipe == image.load("timm:test_resnet", str(tmp_path / "net.pth")).recipe


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("gated", "cannot be downloaded \\(it is gated\\)"),
        ("absent", "it does not exist, or is private"),
        ("plain", "no config.json|model 'me/one' has no open_clip_model"),
    ],
)
@pytest.mark.parametrize("prefix", ["", "open_clip:hf-hub:"])
def test_what_cannot_be_had(kind, words, prefix, hub, tmp_path):
    if prefix:
        need("open_clip")
    if kind != "absent":
        names = ["config.json", "open_clip_config.json"] if kind == "gated" else ["README.md"]
        hub.add("me/one", dict.fromkeys(names, b"{}"), gated=kind == "gated")
    with pytest.raises(EncoderError, match=words) as caught:
        image.load(f"{prefix}me/one")
    assert "\n" not in str(caught.value)
