"""Options of image features: size of the photos, layers, mirror image; against slow twins, and refused by name."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from image_networks import network, photos
from one_space import Pictures
from running import run, write_own
from small_models import write_clip, write_dinov2, write_image_weights, write_vit

import cmrhash
from cmrhash.config import ExtractConfig
from cmrhash.data.view import View
from cmrhash.encoders import image, names
from cmrhash.encoders.pixels import Crop
from cmrhash.errors import CmrhashError, EncoderError
from cmrhash.features import reopen
from cmrhash.search.exported.onnx import ImageGraph
from cmrhash.training.heads import Head

PIXELS = np.random.default_rng(0).integers(0, 256, (3, 48, 48, 3)).astype(np.uint8)
RICH = {"size": 48, "layers": "layer3+layer4", "mirror": True}
FROM = ("extract", "--dataset", "manifest", "--root", "mine", "--text-model", "bow", "--device", "cpu")


def slow_twin(pixels):
    """(B, 768): averages of two stages of a plain ResNet18, each the mean of two forward passes."""
    plain = network("resnet18", seed=0)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    rows = []
    for photo in pixels:
        both = []
        for way in (photo, photo[:, ::-1].copy()):
            x = ((torch.from_numpy(way) / 255 - mean) / std).permute(2, 0, 1)[None]
            with torch.no_grad():
                third = plain.layer3(plain.layer2(plain.layer1(plain.maxpool(plain.relu(plain.bn1(plain.conv1(x)))))))
                fourth = plain.layer4(third)
            both.append(np.concatenate([third[0].mean((1, 2)).numpy(), fourth[0].mean((1, 2)).numpy()]))
        rows.append((both[0] + both[1]) / 2)
    return np.stack(rows)


def near(found, wanted):
    assert found.shape == wanted.shape
    assert np.abs(found - wanted).max() <= 1e-4 * np.abs(wanted).max()


@pytest.fixture(scope="module")
def rich():
    return image.load("resnet18", "random", seed=0, **RICH)


def test_features_are_the_mean_over_mirror_images_of_the_averaged_feature_maps(rich):
    near(rich.encode(PIXELS), slow_twin(PIXELS))
    assert rich.dim == 768
    near(rich.encode(PIXELS[:, :, ::-1].copy()), rich.encode(PIXELS))


def test_a_larger_photo_loses_the_same_share_of_its_border(rich):
    assert rich.crop == Crop(55, 48, "BILINEAR", rich.crop.mean, rich.crop.std)
    assert [rich.crop(photo).shape for photo in photos(2)] == [(48, 48, 3)] * 2


def test_the_recipe_names_each_option_and_none_by_default(rich):
    plain = image.load("resnet18", "random", seed=0)
    assert rich.recipe == plain.recipe | {"layer": "layer3+layer4", "mirror": True, "crop": rich.crop.recipe()}
    assert (plain.recipe["layer"], "mirror" in plain.recipe) == ("penultimate", False)
    assert image.load("resnet18", "random", layers="penultimate", size=224).recipe == plain.recipe


def test_the_penultimate_features_are_a_layer_too():
    plain, both = (image.load("resnet18", "random", size=48, layers=name) for name in (None, "penultimate+layer4"))
    near(both.encode(PIXELS), np.concatenate([plain.encode(PIXELS)] * 2, 1))


def test_an_encoder_opened_by_its_recipe_gives_the_same_features(rich, tmp_path):
    again = reopen.image_from(rich.recipe, "random", tmp_path, "cpu")
    assert again.recipe == rich.recipe
    np.testing.assert_array_equal(again.encode(PIXELS), rich.encode(PIXELS))


@pytest.mark.parametrize(("write", "options"), [(write_clip, {}), (write_dinov2, {"size": 48})])
def test_towers_have_mirror_images_and_keep_length_1(write, options, tmp_path):
    write(tmp_path)
    plain = image.load(str(tmp_path), dtype="float32", **options)
    both = image.load(str(tmp_path), dtype="float32", mirror=True, **options)
    pixels = PIXELS[:, : plain.crop.size, : plain.crop.size]
    mean = (plain.encode(pixels) + plain.encode(pixels[:, :, ::-1].copy())) / 2
    if plain.recipe["normalised"]:
        mean /= np.linalg.norm(mean, axis=1, keepdims=True)
    near(both.encode(pixels), mean)
    again = reopen.image_from(both.recipe, str(tmp_path), tmp_path, "cpu")
    np.testing.assert_array_equal(again.encode(pixels), both.encode(pixels))


def test_the_exported_graph_of_photos_has_the_mirror_images(rich):
    head = Head(rich.dim, 8).eval()
    with torch.no_grad():
        embedding, _ = ImageGraph(rich, head)(torch.from_numpy(PIXELS))
        wanted = head(torch.from_numpy(rich.encode(PIXELS)))
    np.testing.assert_allclose(embedding.numpy(), wanted.numpy(), atol=1e-5)


# ---------------------------------------------------------------------------------------------- refusals


@pytest.fixture
def here(tmp_path, monkeypatch):
    write_own(tmp_path / "mine", 12)
    monkeypatch.chdir(tmp_path)
    return tmp_path


REFUSED = {
    "fasterrcnn_resnet50_fpn --mirror": "fasterrcnn_resnet50_fpn has regions",
    "fasterrcnn_resnet50_fpn --image-size 900": "has photos of one size",
    "fasterrcnn_resnet50_fpn --image-layers backbone": "has regions",
    "vit --image-layers layer4": "vit is a tower, which has a --layer",
    "vit --image-size 48": "vit does not take photos of 48 pixels",
    "resnet18 --image-layers layer3+layer5": "resnet18 has no layer 'layer5': did you mean layer",
    "resnet18 --image-layers layer4+layer4": "resnet18 is asked for the layer 'layer4' twice",
    "resnet18 --image-layers layer3+": "resnet18 has no layer ''",
    "swin_t --image-layers features.5": "the layer 'features.5' of swin_t gives no feature map",
    "alexnet --image-size 32": "alexnet does not take photos of 32 pixels",
    "resnet18 --image-size 31": "--image-size: 31 is out of range: give a number of at least 32",
    "resnet18 --image-size 5000": "--image-size: 5000 is out of range: give a number of at most 1024",
}


@pytest.mark.parametrize("typed", REFUSED)
def test_an_option_that_a_model_cannot_obey_is_refused_before_weights_are_read(typed, here, capsys):
    model, *options = typed.split()
    if model == "vit":
        (here / "vit").mkdir()
        write_vit(here / "vit")
    (here / "net.pth").write_bytes(b"PK")  # no weights, which reading would say
    weights = () if model == "vit" else ("--image-weights", "net.pth")
    assert run(*FROM, "--image-model", model, *weights, *options, "-q") == 2
    assert REFUSED[typed] in " ".join(capsys.readouterr().err.split())
    assert not (here / "cache").exists()


@pytest.mark.parametrize("given", [{"mirror": True}, {"image_size": 64}, {"image_layers": "layer4"}])
def test_options_without_an_encoder_of_cmrhash_are_refused(given, here):
    option = next(iter(given))
    with pytest.raises(CmrhashError, match=f"{option}: an encoder of your own prepares the photos: leave it out"):
        cmrhash.extract("mine", dataset="manifest", image_encoder=Pictures(), text_models=("bow",), **given)
    np.savez(here / "all.npz", image=np.eye(8), text=np.eye(8), label=np.eye(2).repeat(4, 0))
    with pytest.raises(CmrhashError, match=f"{option}: the images have ready-made features"):
        cmrhash.extract(dataset="features", features=(here / "all.npz",), **given)


def test_features_of_other_options_are_refused_and_a_collection_grows_by_the_same_ones(here, capsys):
    write_image_weights(here / "net.pth", "squeezenet1_1")
    model = ("--image-model", "squeezenet1_1", "--image-weights", "net.pth", "--dtype", "float32")
    rich = ("--image-size", "48", "--image-layers", "features.9+features.12", "--mirror")
    assert run(*FROM, *model, *rich, "-q") == 0
    for changed, words in ((rich[:-1], "mirror = True, but this call has False"), ((), "layer = features.9+features")):
        assert run(*FROM, *model, *changed, "-q") != 0
        assert words in capsys.readouterr().err
    assert run(*FROM, *model, "-q", *rich) == 0
    (here / "more").mkdir()
    shutil.copy("mine/images/3.png", here / "more/new.png")
    entry = {"id": "new", "image": "new.png", "texts": {"en": ["dog"], "de": ["Hund"]}, "labels": ["a"]}
    (here / "more/manifest.jsonl").write_text(json.dumps(entry) + "\n")
    assert run("add", "more", "--dataset", "manifest", "--device", "cpu", "-q") == 0
    x = cmrhash.open_dataset("manifest", cache="cache").features(View.IMAGE).features.x
    near(x[-1:], x[3:4])


def test_a_tower_of_open_clip_has_photos_of_one_size():
    with pytest.raises(CmrhashError, match="image_size: open_clip:tiny/net.pt has photos of one size: leave it out"):
        names.check_image_options(ExtractConfig(image_model="open_clip:tiny/net.pt", image_size=300))


def test_an_encoder_in_python_says_what_it_cannot():
    with pytest.raises(EncoderError, match="image_layers: resnet18 has no layer 'nosuch'"):
        image.load("resnet18", "random", layers="nosuch")
    with pytest.raises(EncoderError, match="image_size: vit_b_16 does not take photos of 256 pixels"):
        image.load("vit_b_16", "random", size=256)
