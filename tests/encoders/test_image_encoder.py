"""Image encoders: the numbers against torchvision's own pipeline, and every kind of weights that must not be used."""

from __future__ import annotations

import pickle
import re
import shutil
import socket
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from safetensors.torch import save_file
from torchvision.transforms import CenterCrop, Compose, Normalize, Resize, ToTensor

from cmrhash.compute.device import choose_device, choose_dtype
from cmrhash.encoders import image as image_encoders
from cmrhash.encoders.image import _classifier
from cmrhash.encoders.weights import _today, read_state
from cmrhash.errors import EncoderError, UsageError
from cmrhash.training.heads import Head

SMALL = "shufflenet_v2_x0_5"  # the quickest of torchvision's classifiers
PRUNED = Path(__file__).parents[3] / "shared" / "weights" / "resnet18_pq_fp16.pth"


def photos(count, seed=0):
    rng = np.random.default_rng(seed)
    sizes = [(40, 32), (32, 40), (300, 200), (64, 64), (20, 90)]
    return [
        Image.fromarray(rng.integers(0, 256, (*sizes[n % len(sizes)][::-1], 3)).astype(np.uint8)) for n in range(count)
    ]


def network(name=SMALL, seed=3, **options):
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(seed)
        return torchvision.models.get_model(name, weights=None, **options).eval()


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


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with ``net.pth``, the state dict of a small network."""
    folder = tmp_path_factory.mktemp("weights")
    torch.save(network().state_dict(), folder / "net.pth")
    return folder


def saved(folder, name, change):
    """The path of a copy of the small network's state dict, changed."""
    state = torch.load(folder / "net.pth", weights_only=True)
    torch.save(change(dict(state)), folder / name)
    return str(folder / name)


def load(path, model=SMALL, **options):
    return image_encoders.load(model, str(path), dtype="float32", **options)


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
    with pytest.raises(EncoderError, match=f"not a readable weights file .*{path}: truncated"):
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
    with pytest.raises(EncoderError, match="unknown image model 'xyzzy': did you mean resnet18"):
        image_encoders.load("xyzzy", "random")


@pytest.mark.parametrize("model", ["fcn_resnet50", "maskrcnn_resnet50_fpn", "r3d_18"])
def test_a_model_that_is_no_classifier_of_images_is_unknown(model):
    with pytest.raises(EncoderError, match=f"unknown image model '{model}'"):
        image_encoders.load(model, "random")


def test_a_model_without_a_last_linear_layer_is_refused():
    with pytest.raises(EncoderError, match="squeezenet1_1 has no last linear layer to cut"):
        image_encoders.load("squeezenet1_1", "random")


@pytest.mark.parametrize("weights", ["IMAGENET1K_V9", "./none.pth"])
def test_unknown_weights_list_those_that_there_are(weights):
    with pytest.raises(
        EncoderError, match=rf"no weights '{weights}': give default, IMAGENET1K_V1, .*, random, or a file"
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
        rf"IMAGENET1K_V1 is not in {folder} and download\.pytorch\.org cannot be reached .*"
        rf"--image-weights FILE \(resnet18-f37072fd\.pth\), or copy that file to {folder}, or use random"
    )
    with pytest.raises(EncoderError, match=words):
        image_encoders.load("resnet18", "default")
    assert asked == ["download.pytorch.org"]  # once
    assert list(folder.iterdir()) == []


def test_offline_mode_asks_nobody(unplugged):
    folder, asked = unplugged
    with pytest.raises(EncoderError, match=rf"not in the local cache and offline mode is on: {folder}: pass --image-w"):
        image_encoders.load("resnet18", "default", offline=True)
    assert asked == []


def test_a_cached_file_of_another_content_is_refused_although_torch_would_take_it(unplugged, folder):
    cache, asked = unplugged
    cache.mkdir(parents=True)
    shutil.copy(folder / "net.pth", cache / "resnet18-f37072fd.pth")
    with pytest.raises(EncoderError, match=r"expected sha256 f37072fd"):
        image_encoders.load("resnet18", "default")
    assert asked == []


# ---------------------------------------------------------------------------------------------- devices, types


@pytest.mark.parametrize("name", ["nosuch", "cuda:99", "", "cpu:x"])
def test_a_device_that_is_not_there_is_refused(name):
    with pytest.raises(UsageError, match=rf"device '{name}' cannot be used \(.+\): try --device auto or cpu"):
        choose_device(name)


def test_the_device_of_choice():
    assert choose_device("cpu") == torch.device("cpu")
    assert choose_device("auto").type in ("cpu", "cuda")


def test_an_unknown_compute_type_is_refused():
    with pytest.raises(UsageError, match="dtype 'int8': choose one of auto, float32, bfloat16, float16"):
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
