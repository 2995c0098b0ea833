"""Image encoders: the numbers against torchvision's own pipeline."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from image_networks import SMALL, load, network, photos
from torchvision.transforms import CenterCrop, Compose, Normalize, Resize, ToTensor

from cmrhash.compute.device import choose_device, choose_dtype
from cmrhash.encoders import image as image_encoders
from cmrhash.encoders.image import _classifier
from cmrhash.errors import UsageError
from cmrhash.training.heads import Head


def penultimate(module, head, images):
    """What torchvision users would write: its transforms, and a hook before the last layer."""
    pipeline = Compose(
        [Resize(256), CenterCrop(224), ToTensor(), Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))]
    )
    seen = []
    handle = module.get_submodule(head).register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    with torch.no_grad():
        module(torch.stack([pipeline(image) for image in images]))
    handle.remove()
    return seen[0].numpy()


@pytest.fixture(scope="module")
def resnet():
    return image_encoders.load("resnet18", "random", seed=0)


# ---------------------------------------------------------------------------------------------- the numbers


def test_features_are_those_of_the_plain_torchvision_pipeline(resnet):
    images = photos(4)
    features = resnet.encode(np.stack([resnet.crop(image) for image in images]))
    assert features.shape == (4, resnet.dim) == (4, 512)
    assert features.dtype == np.float32
    expected = penultimate(network("resnet18", seed=0), "fc", images)
    scale = np.abs(expected).max()
    assert np.abs(features - expected).max() <= 1e-4 * max(scale, 1)
    assert np.ptp(features, 0).max() > 1e-3 * scale  # not all the same


def test_features_of_a_file_are_those_of_the_plain_torchvision_pipeline(folder):
    encoder, images = load(folder / "net.pth"), photos(2)
    features = encoder.encode(np.stack([encoder.crop(image) for image in images]))
    expected = penultimate(network(), "fc", images)
    assert np.abs(features - expected).max() <= 1e-4 * max(np.abs(expected).max(), 1)


@pytest.mark.slow
def test_a_model_that_rescales_its_input_does_so_with_weights_from_a_file(tmp_path):
    """GoogLeNet's and Inception's weights want another normalisation, which torchvision does inside the model."""
    trained = network("googlenet", transform_input=True, init_weights=False)
    torch.save(trained.state_dict(), tmp_path / "net.pth")
    encoder, images = load(tmp_path / "net.pth", "googlenet"), photos(2)
    features = encoder.encode(np.stack([encoder.crop(image) for image in images]))
    expected = penultimate(trained, "fc", images)
    trained.transform_input = False
    mistaken = penultimate(trained, "fc", images)
    assert np.abs(features - expected).max() <= 0.01 * np.abs(mistaken - expected).max()


def test_features_do_not_depend_on_the_rest_of_the_batch(resnet):
    pixels = np.stack([resnet.crop(image) for image in photos(5)])
    together = resnet.encode(pixels)
    alone = np.concatenate([resnet.encode(pixels[n : n + 1]) for n in range(5)])
    assert np.abs(together - alone).max() <= 1e-4 * max(np.abs(together).max(), 1)


@pytest.mark.parametrize(("model", "dim"), [("mobilenet_v3_small", 1024), (SMALL, 1024), ("mnasnet0_5", 1280)])
def test_the_features_are_those_before_the_last_layer(model, dim):
    encoder = image_encoders.load(model, "random")
    features = encoder.encode(np.zeros((2, encoder.crop.size, encoder.crop.size, 3), np.uint8))
    assert features.shape == (2, encoder.dim) == (2, dim)


@pytest.mark.parametrize(
    ("model", "dim", "head"),
    [
        ("vgg16", 4096, "classifier.6"),  # fc7
        ("vgg19", 4096, "classifier.6"),
        ("efficientnet_b0", 1280, "classifier.1"),
        ("mobilenet_v2", 1280, "classifier.1"),
        ("densenet121", 1024, "classifier"),
        ("inception_v3", 2048, "fc"),
        ("vit_b_16", 768, "heads.head"),
    ],
)
def test_it_is_the_classifying_layer_that_is_cut(model, dim, head):
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module, found = _classifier(model, None, None)
    assert found == dim
    cut = {name for name, part in module.named_modules() if isinstance(part, torch.nn.Identity)}
    assert cut >= {head}
    assert len(
        [part for part in module.modules() if isinstance(part, torch.nn.Linear) and part.out_features == 1000]
    ) == (
        model == "inception_v3"  # its auxiliary head, which runs in training only
    )


# ---------------------------------------------------------------------------------------------- random weights


@pytest.mark.parametrize("model", ["mobilenet_v3_small", "mobilenet_v2", "efficientnet_b0"])
def test_however_faint_untrained_features_are_a_head_can_learn_from_them(model):
    encoder = image_encoders.load(model, "random")
    x = torch.from_numpy(encoder.encode(np.stack([encoder.crop(image) for image in photos(4)])))
    assert 0 < x.abs().max() < 1e-6
    head = Head(encoder.dim, 8)
    head.standardise(x)
    spread = ((x - head.mean) / head.std).std(0, correction=0)
    assert (spread > 0.99).float().mean() > 0.5


def test_the_same_seed_draws_the_same_network_and_another_seed_another():
    one, same, other = (image_encoders.load(SMALL, "random", seed=seed) for seed in (1, 1, 2))
    assert one.recipe == same.recipe
    assert one.recipe["weights_sha256"] != other.recipe["weights_sha256"]
    assert (one.recipe["weights"], one.recipe["weights_seed"]) == ("random", 1)
    assert one.name == SMALL + "-random"


def test_drawing_a_network_leaves_the_random_state_of_the_process_alone():
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    image_encoders.load(SMALL, "random", seed=5)
    assert torch.equal(torch.rand(3), expected)


# ---------------------------------------------------------------------------------------------- devices, types


@pytest.mark.parametrize("name", ["nosuch", "cuda:99", "", "cpu:x"])
def test_a_device_that_is_not_there_is_refused(name):
    with pytest.raises(UsageError, match=rf"'{name}' cannot be used \(.+\): use auto or cpu"):
        choose_device(name)


def test_the_device_of_choice():
    assert choose_device("cpu") == torch.device("cpu")
    assert choose_device("auto").type in ("cpu", "cuda")


def test_an_unknown_compute_type_is_refused():
    with pytest.raises(UsageError, match="'int8' is not a number type: choose one of auto, float32, bfloat16, float16"):
        image_encoders.load(SMALL, "random", dtype="int8")


def test_untrained_networks_are_computed_in_single_precision_wherever_they_run():
    assert choose_dtype("auto", torch.device("cpu"), True) is torch.float32
    assert choose_dtype("auto", torch.device("cuda"), True) is torch.float32
    assert choose_dtype("bfloat16", torch.device("cpu"), True) is torch.bfloat16


def test_half_precision_is_close_and_in_the_recipe(resnet):
    half = image_encoders.load("resnet18", "random", dtype="bfloat16")
    pixels = np.stack([half.crop(image) for image in photos(2)])
    single = resnet.encode(pixels)
    assert half.recipe == resnet.recipe | {"dtype": "bfloat16"}
    assert 0 < np.abs(half.encode(pixels) - single).max() < 0.1 * np.abs(single).max()
