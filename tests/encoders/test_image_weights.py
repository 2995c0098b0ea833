"""Weights of image encoders: files that are accepted, files that are refused, and names."""

from __future__ import annotations

import pickle
import re
import shutil
import socket
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from image_networks import SMALL, load, network, photos
from safetensors.torch import save_file

from cmrhash.encoders import image as image_encoders
from cmrhash.encoders.weights import _today, read_state
from cmrhash.errors import EncoderError

PRUNED = Path(__file__).parents[3] / "shared" / "weights" / "resnet18_pq_fp16.pth"


def saved(folder, name, change):
    """The path of a copy of the small network's state dict, changed."""
    state = torch.load(folder / "net.pth", weights_only=True)
    torch.save(change(dict(state)), folder / name)
    return str(folder / name)


# ---------------------------------------------------------------------------------------------- good files


def test_the_recipe_names_no_path_so_that_a_moved_file_is_the_same(folder, tmp_path):
    here = load(folder / "net.pth")
    there = load(shutil.copy(folder / "net.pth", tmp_path / "other.pt"))
    assert here.recipe == there.recipe
    assert here.name == there.name == SMALL
    assert str(folder) not in repr(here.recipe)
    assert here.recipe["weights"] == "trained"
    assert "weights_seed" not in here.recipe


def test_safetensors_give_the_same_network(folder):
    save_file(torch.load(folder / "net.pth", weights_only=True), folder / "net.safetensors")
    assert load(folder / "net.safetensors").recipe == load(folder / "net.pth").recipe


@pytest.mark.parametrize("key", ["state_dict", "model"])
def test_a_checkpoint_of_a_training_run_gives_the_same_network(folder, key):
    path = saved(folder, "run.pth", lambda s: {"epoch": 3, key: {"module." + n: t for n, t in s.items()}})
    assert load(path).recipe == load(folder / "net.pth").recipe


@pytest.mark.parametrize("classes", [0, 7])
def test_a_head_of_another_size_or_none_gives_the_same_network(folder, classes):
    def change(state):
        del state["fc.weight"], state["fc.bias"]
        return state | ({"fc.weight": torch.zeros(7, 1024), "fc.bias": torch.zeros(7)} if classes else {})

    assert load(saved(folder, "head.pth", change)).recipe == load(folder / "net.pth").recipe


@pytest.mark.slow
def test_names_from_before_torchvision_renamed_its_parts_are_accepted(tmp_path):
    """As in the files that it publishes: ``denselayer1.norm.1``, ``mlp.linear_1``."""
    state = network("densenet121").state_dict()
    torch.save(state, tmp_path / "new.pth")
    old = {re.sub(r"(denselayer\d+\.(norm|conv))([12])\.", r"\1.\3.", name): t for name, t in state.items()}
    assert old.keys() != state.keys()
    torch.save(old, tmp_path / "old.pth")
    assert load(tmp_path / "old.pth", "densenet121").recipe == load(tmp_path / "new.pth", "densenet121").recipe
    with torch.device("meta"):
        vit = torchvision.models.get_model("vit_b_16", weights=None).state_dict()
    now = [name for name in vit if ".mlp." in name]
    old = [name.replace(".mlp.0.", ".mlp.linear_1.").replace(".mlp.3.", ".mlp.linear_2.") for name in now]
    assert len(now) == 48
    assert not set(old) & set(now)
    assert [_today(name) for name in old] == [_today(name) for name in now] == now


def test_a_model_that_asks_for_the_version_of_its_weights_is_told(tmp_path):
    torch.save(network("mnasnet0_5").state_dict(), tmp_path / "net.pth")
    save_file(network("mnasnet0_5").state_dict(), tmp_path / "net.safetensors")
    assert load(tmp_path / "net.pth", "mnasnet0_5").recipe == load(tmp_path / "net.safetensors", "mnasnet0_5").recipe


def test_files_from_before_batch_norm_counted_are_accepted(folder):
    path = saved(folder, "old.pth", lambda s: {n: t for n, t in s.items() if not n.endswith("num_batches_tracked")})
    assert load(path).recipe == load(folder / "net.pth").recipe


def test_half_precision_weights_are_computed_in_single(folder):
    path = saved(folder, "half.pth", lambda s: {n: t.half() if t.is_floating_point() else t for n, t in s.items()})
    half, whole = load(path), load(folder / "net.pth")
    assert half.recipe["weights_sha256"] != whole.recipe["weights_sha256"]
    assert {p.dtype for p in half.module.parameters()} == {torch.float32}


def test_a_name_with_the_right_digest_is_accepted(folder):
    import hashlib

    digest = hashlib.sha256((folder / "net.pth").read_bytes()).hexdigest()
    load(shutil.copy(folder / "net.pth", folder / f"net-{digest[:8]}.pth"))


@pytest.mark.skipif(not PRUNED.exists(), reason="the project's own ../shared/weights/resnet18_pq_fp16.pth is not there")
def test_the_pruned_resnet_of_the_project_is_accepted():
    encoder = load(PRUNED, "resnet18")
    features = encoder.encode(np.stack([encoder.crop(image) for image in photos(2)]))
    assert np.isfinite(features).all()


# ---------------------------------------------------------------------------------------------- bad files


def without(state, part):
    return {name: tensor for name, tensor in state.items() if part not in name}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: without(s, "conv5.0"), rf"lacks 1 of {SMALL}'s tensors \(conv5\.0\.weight\)"),
        (lambda s: without(s, "conv5.1.running_var"), r"lacks 1 .*conv5\.1\.running_var"),
        (lambda s: s | {"conv5.0.weight": torch.zeros(1, 2, 1, 1)}, r"another shape for 1 .*\(conv5\.0\.weight\)"),
        (lambda s: s | {"extra.weight": torch.zeros(1)}, r"has unknown 1 .*\(extra\.weight\)"),
        (lambda s: network("mobilenet_v3_small").state_dict(), rf"lacks \d+ of {SMALL}'s tensors \(conv1"),
        (lambda s: s | {"conv5.0.weight": s["conv5.0.weight"] * float("nan")}, "NaN or infinity"),
        (lambda s: s | {"conv5.1.bias": s["conv5.1.bias"] + float("inf")}, "NaN or infinity"),
        (lambda s: list(s.values()), "holds no state dict"),
        (lambda s: s | {"epoch": 3}, "holds no state dict"),
        (lambda s: {0: s["conv5.0.weight"]}, "holds no state dict"),
        (lambda s: {}, "lacks"),
    ],
    ids=["layer", "buffer", "shape", "extra", "model", "nan", "inf", "list", "mixed", "numbered", "empty"],
)
def test_weights_that_do_not_fit_are_refused_by_name(folder, change, words):
    path = saved(folder, "bad.pth", change)
    with pytest.raises(EncoderError, match=f"{words}.*{path}"):
        load(path)


@pytest.mark.parametrize("kept", [0, 100, 0.5, -1])
@pytest.mark.parametrize("kind", ["pth", "safetensors"])
def test_a_truncated_file_is_refused(folder, kind, kept):
    state = torch.load(folder / "net.pth", weights_only=True)
    path = folder / f"cut.{kind}"
    (torch.save if kind == "pth" else save_file)(state, path)
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content)) if isinstance(kept, float) else kept])
    with pytest.raises(EncoderError, match=f"not a readable weights file .*{path}: it may be truncated"):
        load(path)


def test_a_file_whose_name_holds_another_digest_is_refused(folder):
    path = shutil.copy(folder / "net.pth", folder / "net-deadbeef.pth")
    words = r"expected sha256 deadbeef\.\.\., found [0-9a-f]{8}\.\.\. \([\d,]+ bytes\).*net-deadbeef\.pth: delete it"
    with pytest.raises(EncoderError, match=words):
        load(path)


class Evil:
    """Pickled, it makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.faults("hostile file")
def test_code_in_a_weights_file_is_not_run(tmp_path):
    trap = tmp_path / "trap"
    for save in (torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))):
        save({"conv1.0.weight": Evil(trap)}, tmp_path / "net.pth")
        with pytest.raises(EncoderError, match="not a readable weights file"):
            load(tmp_path / "net.pth")
        assert not trap.exists()


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(EncoderError, match="no such weights file"):
        read_state(tmp_path / "none.pth")
    with pytest.raises(EncoderError, match="no such weights file"):
        load(tmp_path)


# ---------------------------------------------------------------------------------------------- names


@pytest.mark.parametrize(("model", "near"), [("resnet19", "resnet18"), ("vgg", "vgg1"), ("shufflenet", SMALL[:10])])
def test_an_unknown_model_names_the_nearest(model, near):
    with pytest.raises(EncoderError, match=f"unknown image model '{model}': did you mean .*{near}"):
        image_encoders.load(model, "random")


def test_a_model_unlike_any_other_names_some(tmp_path):
    with pytest.raises(EncoderError, match="unknown image model 'xyzzy': for example resnet18"):
        image_encoders.load("xyzzy", "random")


@pytest.mark.parametrize("model", ["fcn_resnet50", "maskrcnn_resnet50_fpn", "r3d_18"])
def test_a_model_that_is_no_classifier_of_images_is_unknown(model):
    with pytest.raises(EncoderError, match=f"unknown image model '{model}'"):
        image_encoders.load(model, "random")


@pytest.mark.parametrize("weights", ["IMAGENET1K_V9", "./none.pth"])
def test_unknown_weights_list_those_that_there_are(weights):
    with pytest.raises(
        EncoderError,
        match=rf"unknown weights '{weights}': give default, IMAGENET1K_V1, .*, random, or an existing file",
    ):
        image_encoders.load("resnet50", weights)


@pytest.fixture
def unplugged(monkeypatch, tmp_path):
    """No name can be looked up; torch's own cache is an empty folder, which is returned."""
    asked = []

    def lookup(host, *_, **__):
        asked.append(host)
        raise socket.gaierror(-3, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    folder = tmp_path / "hub" / "checkpoints"
    return folder, asked


def test_default_weights_without_network_say_what_can_be_done(unplugged):
    folder, asked = unplugged
    words = (
        rf"IMAGENET1K_V1 is not in {folder}, and download\.pytorch\.org cannot be reached .*"
        rf'.image_weights="FILE". \(resnet18-f37072fd\.pth\), copy that file to {folder}, '
        'or try .image_weights="random"'
    )
    with pytest.raises(EncoderError, match=words):
        image_encoders.load("resnet18", "default")
    assert asked == ["download.pytorch.org"]  # once
    assert list(folder.iterdir()) == []


def test_offline_mode_asks_nobody(unplugged):
    folder, asked = unplugged
    with pytest.raises(
        EncoderError, match=rf"not in the local cache, and offline mode is on: {folder}: give .image_weights="
    ):
        image_encoders.load("resnet18", "default", offline=True)
    assert asked == []


def test_a_cached_file_of_another_content_is_refused_although_torch_would_take_it(unplugged, folder):
    cache, asked = unplugged
    cache.mkdir(parents=True)
    shutil.copy(folder / "net.pth", cache / "resnet18-f37072fd.pth")
    with pytest.raises(EncoderError, match=r"expected sha256 f37072fd"):
        image_encoders.load("resnet18", "default")
    assert asked == []
