"""Encoders of timm and open_clip: features and photos equal the packages' own, in every later stage."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from package_models import TIMM, need, write_open_clip, write_timm
from PIL import Image
from running import run, write_own
from small_models import write_bert, write_vit

import cmrhash
from cmrhash.config import ExtractConfig
from cmrhash.encoders import bag_and_vectors, image, packages, places, text
from cmrhash.errors import EncoderError, UsageError
from cmrhash.features.file import read_header

TRAIN = ["--epochs", "2", "--batch", "16", "--hidden", "16", "--bits", "8", "--device", "cpu"]
START = ("--dataset", "manifest", "--root", "mine", "--device", "cpu", "--dtype", "float32")
FROM = ("extract", *START)
OF_TIMM = ("--image-model", TIMM, "--image-weights", "net.pth", "--text-model", "bow")
OF_OPEN_CLIP = ("--model", "open_clip:tiny/tiny.pt")
TEXTS = ["a dog", "two dogs run through the snow, " * 9, "Ein HUND &amp; eine Katze", ""]


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with a small data set and the weights of small models."""
    write_own(tmp_path / "mine", 12)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def pixels(encoder, count=3):
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (count, encoder.crop.size, encoder.crop.size, 3)).astype(np.uint8)


def normal(encoder, some):
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (encoder.crop.mean, encoder.crop.std))
    return (torch.tensor(some).permute(0, 3, 1, 2) / 255 - mean) / std


def apart(crop, transform, width, height):
    """Largest difference, in grey levels, between a crop and what a package's transform makes of a photo."""
    coarse = np.random.default_rng(1).integers(0, 256, (height // 20, width // 20, 3)).astype(np.uint8)
    photo = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (crop.mean, crop.std))
    wanted = ((transform(photo) * std + mean) * 255).permute(1, 2, 0).numpy()
    off = abs(crop(photo).astype(float) - wanted)
    assert off.mean() < 0.05
    return off.max()


# ---------------------------------------------------------------------------------------------- timm


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_efficientnet", "test_convnext2", "test_mambaout"])
def test_features_of_timm_are_those_of_num_classes_0_for_a_file_with_and_without_classifier(name, tmp_path):
    timm = need("timm")
    write_timm(tmp_path / "net.pth", name)
    encoder = image.load(f"timm:{name}", str(tmp_path / "net.pth"), dtype="float32")
    network = timm.create_model(name, pretrained=False, num_classes=7)
    network.load_state_dict(torch.load(tmp_path / "net.pth"))
    network.reset_classifier(0)
    some = pixels(encoder)
    with torch.inference_mode():
        wanted = network.eval()(normal(encoder, some))
    assert encoder.dim == wanted.shape[1]
    np.testing.assert_allclose(encoder.encode(some), wanted.numpy(), atol=1e-5)
    torch.save(encoder.module.state_dict(), tmp_path / "without.pth")
    again = image.load(f"timm:{name}", str(tmp_path / "without.pth"), dtype="float32")
    assert again.recipe == encoder.recipe


@pytest.mark.parametrize(
    "name",
    ["resnet10t.c3_in1k", "vit_tiny_patch16_224", "test_vit"],
)
@pytest.mark.parametrize("size", [(400, 300), (161, 700), (120, 80)])
def test_photos_for_timm_are_prepared_as_timm_does(name, size):
    timm = need("timm")
    encoder = image.load(f"timm:{name}", "random")
    config = timm.data.resolve_model_data_config(timm.create_model(name))
    assert apart(encoder.crop, timm.data.create_transform(**config), *size) <= 2.01


def test_a_squash_and_other_modes_of_timm():
    timm = need("timm")
    from cmrhash.encoders.timm_models import preparation
    from cmrhash.errors import EncoderError

    module = timm.create_model("test_resnet")
    module.pretrained_cfg |= {"crop_mode": "squash", "crop_pct": 0.9}
    crop = preparation(timm, module, TIMM)
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(module))
    assert apart(crop, transform, 400, 300) <= 2.01
    for changed, words in (
        ({"crop_mode": "border"}, "the crop mode 'border'"),
        ({"input_size": (3, 160, 128)}, "160 x 128 pixels"),
        ({"input_size": (1, 160, 160)}, "1 channels"),
        ({"interpolation": "random"}, "the interpolation 'random'"),
    ):
        other = timm.create_model("test_resnet")
        other.pretrained_cfg |= changed
        with pytest.raises(EncoderError, match=words):
            preparation(timm, other, TIMM)


def test_weights_of_timms_hub_come_from_the_local_cache(tmp_path, monkeypatch):
    """A repository in the cache as timm downloads it: opened by timm's own loader, every tensor from the file."""
    import safetensors.torch

    write_timm(tmp_path / "net.pth", "test_resnet", classes=1000)
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "hub/models--timm--test_resnet.r160_in1k"
    snapshot = repository / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text(commit)
    safetensors.torch.save_file(torch.load(tmp_path / "net.pth"), snapshot / "model.safetensors", {"format": "pt"})
    monkeypatch.setattr("huggingface_hub._snapshot_download.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    encoder = image.load(TIMM)
    assert encoder.source == "default"
    assert encoder.recipe == image.load(TIMM, str(tmp_path / "net.pth")).recipe
    less = dict(list(torch.load(tmp_path / "net.pth").items())[:-9])
    safetensors.torch.save_file(less, snapshot / "model.safetensors", {"format": "pt"})
    with pytest.raises(UsageError, match="timm cannot load test_resnet .*Missing key"):
        image.load(TIMM)


def test_timm_in_every_stage(here, capsys):
    write_timm(here / "net.pth")
    assert run(*FROM, *OF_TIMM) == 0
    header = read_header(here / "cache/manifest/image-timm-test_resnet.h5")
    assert header.recipe["encoder"] == TIMM
    assert header.recipe["layer"] == "penultimate"
    assert header.source == str(here / "net.pth")
    assert run("train", "--dataset", "manifest", *TRAIN) == 0
    assert run("search", "--dataset", "manifest", "mine/images/3.png") == 0
    assert run("export", "--dataset", "manifest", "out", "--with-encoders", "--device", "cpu") == 0
    for name in ("net.pth", "cache"):
        (here / name).rename(here / f"{name}-moved")
    assert cmrhash.from_pretrained("out", device="cpu", offline=True).encode_image(["mine/images/1.png"]).shape == (
        1,
        1,
    )


@pytest.mark.filterwarnings("ignore")
def test_timm_is_fine_tuned(here):
    write_timm(here / "net.pth")
    (here / "bert").mkdir()
    write_bert(here / "bert")
    given = ("--image-model", TIMM, "--image-weights", "net.pth", "--text-model", "bert")
    assert run(*FROM, *given, "--finetune", "--epochs", "1", "--batch", "4", "--bits", "8") == 0
    header = read_header(here / "cache/manifest/image-timm-test_resnet-tuned.h5")
    assert run("train", "--dataset", "manifest", *TRAIN) == 0
    assert run("search", "--dataset", "manifest", "mine/images/3.png") == 0
    tuned = here / "cache/manifest/tuned/timm-test_resnet/image.safetensors"
    assert image.load(TIMM, str(tuned)).recipe["weights_sha256"] == header.recipe["weights_sha256"]


# ---------------------------------------------------------------------------------------------- open_clip


def test_both_towers_of_open_clip_equal_its_own_in_one_space(tmp_path):
    open_clip = need("open_clip")
    model = write_open_clip(tmp_path / "tiny.pt")
    of_image, of_text = image.load(model, dtype="float32"), text.load(model, dtype="float32")
    network, _, transform = open_clip.create_model_and_transforms("tiny", pretrained=str(tmp_path / "tiny.pt"))
    some = pixels(of_image)
    with torch.inference_mode():
        x = network.eval().encode_image(normal(of_image, some), normalize=True)
        y = network.encode_text(open_clip.get_tokenizer("tiny")(TEXTS), normalize=True)
    np.testing.assert_allclose(of_image.encode(some), x.numpy(), atol=1e-5)
    np.testing.assert_allclose(of_text.encode(TEXTS), y.numpy(), atol=1e-5)
    assert of_text.encode([]).shape == (0, of_text.dim)
    assert of_image.recipe["space"] == of_text.recipe["space"]
    assert of_image.recipe["weights_sha256"] != of_text.recipe["weights_sha256"]
    for size in ((400, 300), (160, 700)):
        assert apart(of_image.crop, transform, *size) <= 2.01
    other = write_open_clip(tmp_path / "other.pt", seed=4)
    assert image.load(other).recipe["space"] != of_image.recipe["space"]


@pytest.mark.parametrize(("mode", "kind"), [("squash", "squash"), ("longest", "")])
def test_a_squash_and_other_modes_of_open_clip(mode, kind, tmp_path):
    open_clip = need("open_clip")
    from cmrhash.encoders.open_clip_towers import _preparation
    from cmrhash.errors import EncoderError

    model = write_open_clip(tmp_path / "tiny.pt")
    given = {"pretrained": str(tmp_path / "tiny.pt"), "image_resize_mode": mode}
    network, _, transform = open_clip.create_model_and_transforms("tiny", **given)
    if kind:
        crop = _preparation(network, model)
        assert kind in crop.recipe()
        assert apart(crop, transform, 400, 300) <= 2.01
    else:
        with pytest.raises(EncoderError, match="the resize mode 'longest'"):
            _preparation(network, model)


def test_open_clip_in_every_stage(here, capsys):
    write_open_clip(here / "tiny.pt")
    assert run(*FROM, *OF_OPEN_CLIP) == 0
    headers = [read_header(here / f"cache/manifest/{view}-open_clip-tiny-tiny.h5") for view in ("image", "text-en")]
    assert len({header.recipe["space"] for header in headers}) == 1
    assert {header.source for header in headers} == {f"open_clip:tiny/{here / 'tiny.pt'}"}
    assert run("train", "--dataset", "manifest", *TRAIN) == 0
    assert run("train", "--dataset", "manifest", "--method", "itq", "--bits", "8", "--device", "cpu") == 0
    assert run("search", "--dataset", "manifest", "--lang", "en", "dog 3") == 0
    assert run("search", "--dataset", "manifest", "mine/images/3.png") == 0
    capsys.readouterr()
    assert run(*FROM, *OF_OPEN_CLIP, "--json") == 0
    assert not any(file["fresh"] for file in json.loads(capsys.readouterr().out)["files"])


def test_photos_alone_are_found_by_texts_of_open_clip(here, capsys):
    write_open_clip(here / "tiny.pt")
    (here / "photos").mkdir()
    for n in range(12):
        shutil.copy(here / f"mine/images/{n}.png", here / "photos")
    assert run("extract", "photos", "--image-model", "open_clip:tiny/tiny.pt", "--device", "cpu") == 0
    assert run("train", "--method", "itq", "--bits", "8", "--device", "cpu") == 0
    capsys.readouterr()
    assert run("search", "a dog", "--json", "--device", "cpu") == 0
    assert json.loads(capsys.readouterr().out)["results"]


# ---------------------------------------------------------------------------------------------- before torch


@pytest.mark.parametrize(("model", "extra"), [("timm:resnet10t", "timm"), ("open_clip:ViT-B-32/openai", "open-clip")])
def test_a_package_that_is_not_installed_is_named_with_its_extra(model, extra, here, monkeypatch, capsys):
    monkeypatch.setattr(packages.importlib.util, "find_spec", lambda name: None)
    assert run("extract", "mine", "--image-model", model) != 0
    lines = capsys.readouterr().err.splitlines()
    assert (
        lines[-1] == f"error: '{model}' needs the package {model.partition(':')[0]}: pip install \"cmrhash[{extra}]\""
    )


@pytest.mark.parametrize(
    "options",
    [
        {"image_weights": "none.pth"},
        {"image_weights": "there/none"},
        {"image_model": "./none"},
        {"text_models": ("de=none.vec",)},
        {"text_models": ("/no/such/folder",)},
        {"model": "timm:test_resnet"},
    ],
)
def test_a_wrong_place_is_refused_before_torch_is_imported(options, tmp_path):
    assert said_without_torch(options, tmp_path) in ("EncoderError", "UsageError")


def said_without_torch(options, folder):
    """The type of error that check_places raises in a process of its own, which must not have imported torch."""
    code = (
        "import sys; from cmrhash.config import ExtractConfig; from cmrhash.encoders.places import check_places\n"
        f"try: check_places(ExtractConfig(**{options!r}))\n"
        "except Exception as error: print(type(error).__name__, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=folder)
    assert done.stdout.split()[1] == "False"
    return done.stdout.split()[0]


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("preprocessor_config.json", None),
        ("preprocessor_config.json", b'{"auto_map": {}}'),
        ("config.json", b'{"auto_map": {}}'),
        ("config.json", b"{"),
        ("config.json", b'{"num_hidden_layers": 1000000}'),
        ("model.safetensors", b"\x09\0\0\0\0\0\0\0{"),
    ],
)
def test_a_folder_whose_files_show_it_is_refused_before_torch_is_imported(file, content, tmp_path):
    write_vit(tmp_path)
    places.check_places(ExtractConfig(image_model=str(tmp_path)))
    (tmp_path / file).unlink()
    if content is not None:
        (tmp_path / file).write_bytes(content)
    with pytest.raises(EncoderError, match=file.partition(".")[0] if content else file):
        places.check_places(ExtractConfig(image_model=str(tmp_path)))
    assert said_without_torch({"image_model": str(tmp_path)}, tmp_path) == "EncoderError"


def test_a_tokenizer_of_another_model_is_refused_before_torch_is_imported(tmp_path):
    write_bert(tmp_path)
    places.check_places(ExtractConfig(text_models=(str(tmp_path),)))
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"vocab_size": 2 * config["vocab_size"]}))
    with pytest.raises(EncoderError, match="tokenizer .* do not match"):
        places.check_places(ExtractConfig(text_models=(str(tmp_path),)))
    assert said_without_torch({"text_models": (str(tmp_path),)}, tmp_path) == "EncoderError"


def test_places_know_the_endings_of_word_vectors():
    assert set(places.WORDS) == set(bag_and_vectors.FILES)
    places.check_places(ExtractConfig(image_weights="IMAGENET1K_V1", text_models=("bow", "de=owner/name")))
