"""Encoders from towers in every later stage: extraction, search, export, ONNX, fine-tuning, shards."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torchvision
from running import run, write_own
from small_models import write_clip, write_siglip, write_vit

import cmrhash
from cmrhash.encoders import image, tower
from cmrhash.features.file import read_header

TRAIN = ["--epochs", "2", "--batch", "16", "--hidden", "16", "--bits", "8", "--device", "cpu"]
FROM = ("extract", "--dataset", "manifest", "--root", "mine", "--device", "cpu", "--dtype", "float32")


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with a small data set and small models."""
    write_own(tmp_path / "mine", 12)
    for name, write in (("clip", write_clip), ("siglip", write_siglip), ("vit", write_vit)):
        (tmp_path / name).mkdir()
        write(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("model", ["clip", "siglip"])
def test_a_dual_encoder_serves_photos_and_texts_of_all_languages_to_the_end(here, model, capsys):
    assert run(*FROM, "--model", model) == 0
    headers = [read_header(here / f"cache/manifest/{view}-{model}.h5") for view in ("image", "text-en", "text-de")]
    assert len({header.recipe["space"] for header in headers}) == 1
    assert {header.recipe["layer"] for header in headers} == {"projection"}
    assert all(header.source == str(here / model) for header in headers)
    assert run("train", "--dataset", "manifest", *TRAIN) == 0
    assert run("search", "--dataset", "manifest", "--lang", "en", "dog 3") == 0
    assert run("search", "--dataset", "manifest", "mine/images/3.png") == 0
    capsys.readouterr()
    assert run(*FROM, "--model", model, "--json") == 0
    assert not any(file["fresh"] for file in json.loads(capsys.readouterr().out)["files"])


def test_a_vision_model_beside_a_word_model_and_another_layer_in_another_recipe(here, capsys):
    given = ("--image-model", "vit", "--text-model", "bow")
    assert run(*FROM, *given, "--layer", "cls") == 0
    assert read_header(here / "cache/manifest/image-vit.h5").recipe["layer"] == "cls"
    capsys.readouterr()
    assert run(*FROM, *given) != 0
    assert "layer" in capsys.readouterr().err


def test_the_export_holds_both_towers_and_its_graphs_give_the_same_bits(here):
    assert run(*FROM, "--model", "siglip") == 0
    assert run("train", "--dataset", "manifest", *TRAIN) == 0
    assert run("export", "--dataset", "manifest", "out", "--with-encoders", "--onnx", "--device", "cpu") == 0
    for name in ("siglip", "cache"):
        (here / name).rename(here / f"{name}-moved")
    hasher = cmrhash.from_pretrained("out", device="cpu", offline=True)
    assert isinstance(hasher.image_encoder.module, tower.Tower)
    assert hasher.encode_image(["mine/images/1.png"]).shape == (1, 1) == hasher.encode_text(["dog"], "en").shape
    graphs = json.loads((here / "out/onnx.json").read_text())["graphs"]
    assert "squash" in graphs["image.onnx"]["crop"]
    assert len(graphs) == 3
    from cmrhash.search.exported.onnx import open_graph

    pixels = np.stack([hasher.image_encoder.crop(_photo(here / "mine/images/1.png"))])
    codes = open_graph(here / "out/image.onnx").run(["codes"], {"pixels": pixels})[0]
    np.testing.assert_array_equal(codes, hasher.encode_image(["mine/images/1.png"]))
    assert open_image_of(here / "out/encoders/image").recipe["layer"] == "projection"


def _photo(path):
    from PIL import Image

    return Image.open(path).convert("RGB")


def open_image_of(folder):
    return image.load(str(folder), dtype="float32")


@pytest.mark.filterwarnings("ignore")
def test_both_towers_are_fine_tuned_and_opened_again(here):
    tuned = here / "cache/manifest/tuned/clip"
    assert run(*FROM, "--model", "clip", "--finetune", "--epochs", "1", "--batch", "4", "--bits", "8") == 0
    assert sorted(path.name for path in tuned.iterdir() if path.is_dir()) == ["image", "text-de+en"]
    header = read_header(here / "cache/manifest/image-clip-tuned.h5")
    assert header.weights == "tuned"
    assert header.recipe["space"] == header.recipe["tuned"]  # both towers went through one head
    assert run("train", "--dataset", "manifest", *TRAIN) == 0
    assert run("search", "--dataset", "manifest", "--lang", "en", "dog 3") == 0
    assert run("search", "--dataset", "manifest", "mine/images/3.png") == 0
    opened = open_image_of(tuned / "image")
    assert "space" not in opened.recipe  # half of it is not there
    assert opened.recipe["weights_sha256"] == header.recipe["weights_sha256"]
    assert run(*FROM, "--image-model", str(tuned / "image"), "--text-model", "bow", "--name", "again") == 0


def test_a_squeezenet_gives_the_mean_of_what_its_last_convolution_reads(tmp_path):
    import torch

    network = torchvision.models.squeezenet1_1().eval()
    torch.save(network.state_dict(), tmp_path / "net.pth")
    encoder = image.load("squeezenet1_1", str(tmp_path / "net.pth"), dtype="float32")
    pixels = np.random.default_rng(0).integers(0, 256, (2, 224, 224, 3)).astype(np.uint8)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (encoder.crop.mean, encoder.crop.std))
    with torch.inference_mode():
        wanted = network.features((torch.tensor(pixels).permute(0, 3, 1, 2) / 255 - mean) / std).mean((2, 3))
    assert encoder.dim == 512
    np.testing.assert_allclose(encoder.encode(pixels), wanted.numpy(), atol=1e-4)
