"""Region features: the numbers against torchvision's own detections, and what a letterbox must not lose."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torchvision.transforms.functional import to_tensor

from cmrhash.config import ExtractConfig
from cmrhash.encoders import image as image_encoders
from cmrhash.encoders import regions
from cmrhash.encoders.pixels import Letterbox
from cmrhash.errors import EncoderError
from cmrhash.features.extract import extract
from cmrhash.features.file import read_features

pytestmark = pytest.mark.slow

SMALL, SIZE = "fasterrcnn_mobilenet_v3_large_320_fpn", 320  # the quickest of torchvision's detectors, and its side
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CLASSES = 7


def photo(seed=0, size=(SIZE, 240)):
    """Coloured rectangles on a background."""
    rng = np.random.default_rng(seed)
    pixels = np.full((size[1], size[0], 3), rng.integers(0, 256, 3), np.uint8)
    for _ in range(6):
        (x, y), (w, h) = rng.integers(0, np.maximum(np.array(size) * 3 // 4, 1)), rng.integers(20, 120, 2)
        pixels[y : y + h, x : x + w] = rng.integers(0, 256, 3)
    return Image.fromarray(pixels)


def network(classes=CLASSES, **options):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return torchvision.models.get_model(
            SMALL, weights=None, weights_backbone=None, num_classes=classes, **options
        ).eval()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A file with weights that find more than enough boxes: batch norms that know pictures, and sure classes."""
    net = network()
    scale = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)
    batch = torch.stack([(to_tensor(photo(seed, (SIZE, SIZE))) - scale[0]) / scale[1] for seed in range(6)])
    for part in net.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            part.momentum = None
    with torch.no_grad():
        net.backbone.train()
        net.backbone(batch)
        net.roi_heads.box_predictor.cls_score.weight *= 300
    path = tmp_path_factory.mktemp("weights") / "net.pth"
    torch.save(net.eval().state_dict(), path)
    return path


@pytest.fixture(scope="module")
def encoder(trained):
    """An encoder whose mean colour is a byte, so that nothing at all is left of it after normalisation."""
    made = image_encoders.load(SMALL, str(trained), dtype="float32")
    made.crop = replace(made.crop, mean=tuple(value / 255 for value in made.crop.fill))
    made.module.fill.zero_()
    return made


@pytest.fixture(scope="module")
def untrained():
    return image_encoders.load(SMALL, "random")


def plain(path, image, mean):
    """What users of torchvision would write, for a photo that needs no resizing: (mean vector, boxes)."""
    sizes = {"min_size": min(image.size), "max_size": SIZE, "size_divisible": SIZE}
    net = network(**sizes, box_detections_per_img=36, image_mean=list(mean))
    net.load_state_dict(torch.load(path, weights_only=True))
    maps = []
    net.backbone.register_forward_hook(lambda _, __, out: maps.append(out))
    with torch.no_grad():
        (found,) = net([to_tensor(image)])
        vectors = net.roi_heads.box_head(net.roi_heads.box_roi_pool(maps[0], [found["boxes"]], [(SIZE, SIZE)]))
    return vectors.mean(0).numpy(), found["boxes"]


# ---------------------------------------------------------------------------------------------- the numbers


@pytest.mark.parametrize("size", [(SIZE, 240), (240, SIZE), (SIZE, SIZE)])
def test_features_are_the_mean_over_the_boxes_that_torchvision_finds(trained, encoder, size):
    image = photo(3, size)
    expected, boxes = plain(trained, image, encoder.crop.mean)
    assert len(boxes) == regions.REGIONS == 36
    assert (boxes[:, 2:] - boxes[:, :2]).prod(1).min() < 0.1 * SIZE * SIZE  # not all of them the whole photo
    features = encoder.encode(encoder.crop(image)[None])
    assert features.shape == (1, encoder.dim) == (1, 1024)
    assert features.dtype == np.float32
    assert np.abs(features[0] - expected).max() <= 1e-3 * np.abs(expected).max()
    other, _ = plain(trained, photo(4, size), encoder.crop.mean)
    assert np.abs(features[0] - other).max() > 0.1 * np.abs(expected).max()


def test_no_box_reaches_beyond_the_photo(encoder, monkeypatch):
    found, heads = [], encoder.module.network.roi_heads
    honest = heads.postprocess_detections
    monkeypatch.setattr(heads, "postprocess_detections", lambda *args: found.append(honest(*args)) or found[-1])
    encoder.encode(np.stack([encoder.crop(photo(1, (SIZE, 100))), encoder.crop(photo(2, (100, SIZE)))]))
    (boxes, _, _) = found[0]
    for part, (wide, high) in zip(boxes, [(SIZE, 100), (100, SIZE)], strict=True):
        assert len(part)
        assert part[:, 0::2].max() <= wide
        assert part[:, 1::2].max() <= high


def test_the_photo_is_told_from_the_colour_beside_it(untrained):
    shapes = [(SIZE, 240), (240, SIZE), (SIZE, SIZE), (SIZE, 1), (3, SIZE)]
    pixels = np.stack([untrained.crop(photo(n, size)) for n, size in enumerate(shapes)])
    batch = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (MEAN, STD))
    assert untrained.module.sizes((batch - mean) / std) == [(high, wide) for wide, high in shapes]


def test_a_photo_without_any_detection_is_one_region(untrained):
    heads, image = untrained.module.network.roi_heads, photo(5)
    features = untrained.encode(untrained.crop(image)[None])
    maps = []
    handle = untrained.module.network.backbone.register_forward_hook(lambda _, __, out: maps.append(out))
    untrained.encode(untrained.crop(image)[None])
    handle.remove()
    whole = [torch.tensor([[0.0, 0.0, 320.0, 240.0]])]
    with torch.no_grad():
        expected = heads.box_head(heads.box_roi_pool(maps[0], whole, [(SIZE, SIZE)])).numpy()
    np.testing.assert_allclose(features, expected, atol=1e-5 * np.abs(expected).max())


def test_features_do_not_depend_on_the_rest_of_the_batch(encoder):
    sizes = [(SIZE, 240), (100, SIZE), (SIZE, SIZE), (SIZE, 240), (200, 90)]
    pixels = np.stack([encoder.crop(photo(n, size)) for n, size in enumerate(sizes)])
    assert len(pixels) > regions.TOGETHER
    together = encoder.encode(pixels)
    alone = np.concatenate([encoder.encode(pixels[n : n + 1]) for n in range(len(pixels))])
    assert np.abs(together - alone).max() <= 1e-3 * np.abs(together).max()
    assert encoder.encode(pixels).tobytes() == together.tobytes()


def test_pictures_of_one_colour_are_survived(encoder, untrained):
    for made in (encoder, untrained):
        colours = [(0, 0, 0), (255, 255, 255), made.crop.fill]
        flat = np.stack([np.full((SIZE, SIZE, 3), colour, np.uint8) for colour in colours])
        assert np.isfinite(made.encode(flat)).all()


# ---------------------------------------------------------------------------------------------- random weights


def test_an_untrained_detector_tells_photos_apart_and_is_the_same_for_the_same_seed(untrained):
    pixels = np.stack([untrained.crop(photo(n)) for n in range(3)])
    features = untrained.encode(pixels)
    assert np.isfinite(features).all()
    assert (features.std(0) > 0.05 * np.abs(features).mean()).any()
    same, other = (image_encoders.load(SMALL, "random", seed=seed) for seed in (0, 1))
    assert same.recipe == untrained.recipe
    assert other.recipe["weights_sha256"] != untrained.recipe["weights_sha256"]
    assert untrained.name == SMALL + "-random"
    assert (untrained.recipe["weights"], untrained.recipe["weights_seed"]) == ("random", 0)


# ---------------------------------------------------------------------------------------------- weights of a file


def saved(trained, name, change):
    state = torch.load(trained, weights_only=True)
    torch.save(change(dict(state)), trained.with_name(name))
    return str(trained.with_name(name))


def test_the_recipe_says_what_changes_the_numbers(trained):
    recipe = image_encoders.load(SMALL, str(trained), dtype="float32").recipe
    assert {"encoder": SMALL, "weights": "trained", "layer": "box head", "regions": 36}.items() <= recipe.items()
    assert recipe["region_pooling"] == "mean"
    assert recipe["crop"]["letterbox"] == SIZE
    path = saved(trained, "other.pth", lambda s: s | {"roi_heads.box_head.fc7.bias": torch.ones(1024)})
    assert image_encoders.load(SMALL, path, dtype="float32").recipe["weights_sha256"] != recipe["weights_sha256"]


def test_names_from_before_torchvision_renamed_its_parts_are_accepted(trained):
    def old(name):
        name = name.replace("rpn.head.conv.0.0.", "rpn.head.conv.")
        return re.sub(r"(fpn\.(?:inner|layer)_blocks\.\d)\.0\.", r"\1.", name)

    path = saved(trained, "old.pth", lambda s: {old(name): tensor for name, tensor in s.items()})
    assert image_encoders.load(SMALL, path).recipe == image_encoders.load(SMALL, str(trained)).recipe


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: {n: t for n, t in s.items() if "cls_score.bias" not in n}, "lacks 1 .*cls_score.bias"),
        (lambda s: {n: t for n, t in s.items() if "cls_score" not in n}, "lacks 2|another shape"),
        (lambda s: s | {"rpn.head.cls_logits.bias": torch.full((15,), float("nan"))}, "NaN or infinity"),
        (lambda s: torchvision.models.get_model("shufflenet_v2_x0_5").state_dict(), rf"lacks \d+ of {SMALL}'s"),
    ],
    ids=["bias", "classes", "nan", "classifier"],
)
def test_weights_that_do_not_fit_are_refused(trained, change, words):
    path = saved(trained, "bad.pth", change)
    with pytest.raises(EncoderError, match=f"({words}).*{path}"):
        image_encoders.load(SMALL, path)


def test_unknown_weights_and_models_name_what_there_is():
    with pytest.raises(
        EncoderError, match="unknown weights 'IMAGENET1K_V1': give default, COCO_V1, random, or an existing file"
    ):
        image_encoders.load(SMALL, "IMAGENET1K_V1")
    with pytest.raises(EncoderError, match="'fasterrcnn_resnet50': did you mean .*fasterrcnn_resnet50_fpn"):
        image_encoders.load("fasterrcnn_resnet50", "random")
    with pytest.raises(EncoderError, match=r"'xyzzy': for example resnet18, .* or fasterrcnn_resnet50_fpn"):
        image_encoders.load("xyzzy", "random")


def test_the_epsilon_is_that_of_the_published_weights_of_that_model():
    with torch.device("meta"):
        net = torchvision.models.get_model("fasterrcnn_resnet50_fpn", weights=None, weights_backbone=None)
    state = {name: torch.ones(tensor.shape, dtype=tensor.dtype) for name, tensor in net.state_dict().items()}
    for model_state, eps in ((state, 0), (None, 1e-5)):
        made, dim, letterbox, _ = regions.network("fasterrcnn_resnet50_fpn", model_state, "there")
        assert {part.eps for part in made.modules() if isinstance(part, torch.nn.BatchNorm2d)} == {eps}
        assert (dim, letterbox.size) == (1024, 800)


# ---------------------------------------------------------------------------------------------- the letterbox


@pytest.mark.parametrize("size", [(400, 100), (100, 400), (64, 64), (7, 5), (1, 3000), (3000, 1)])
def test_no_border_of_the_photo_is_lost(size):
    box = Letterbox(64, "BILINEAR", MEAN, STD)
    wide, high = size
    pixels = np.zeros((high, wide, 3), np.uint8)
    pixels[: -(-high // 2), : -(-wide // 2)] = (255, 0, 0)
    square = box(Image.fromarray(pixels))
    assert square.shape == (64, 64, 3)
    assert square.dtype == np.uint8
    scale = 64 / max(size)
    w, h = (max(1, round(scale * side)) for side in size)
    fill = np.array(box.fill)
    assert (square[h:] == fill).all()
    assert (square[:, w:] == fill).all()
    inside = square[:h, :w]
    assert (inside[..., 1:] < 100).all()  # no fill
    if min(w, h) > 1:
        assert (inside[0, 0, 0], inside[-1, -1, 0]) == (255, 0)
        share = (inside[..., 0] > 127).mean()
        assert share == pytest.approx((-(-wide // 2)) * (-(-high // 2)) / (wide * high), abs=0.05)


def test_a_photo_of_that_size_is_not_touched():
    image = photo(1, (64, 40))
    assert np.array_equal(Letterbox(64, "BILINEAR", MEAN, STD)(image)[:40], np.asarray(image))


def test_the_recipe_of_a_letterbox_is_all_that_changes_the_pixels():
    box = Letterbox(64, "BILINEAR", MEAN, STD)
    recipe = box.recipe()
    assert json.loads(json.dumps(recipe)) == recipe
    for change in ({"size": 65}, {"interpolation": "BICUBIC"}, {"mean": STD}, {"std": MEAN}):
        assert replace(box, **change).recipe() != recipe


# ---------------------------------------------------------------------------------------------- as a whole


def test_a_data_set_is_extracted_with_regions(tmp_path):
    root = tmp_path / "mine"
    root.mkdir()
    lines = []
    for n, (size, role) in enumerate(zip([(64, 40), (40, 64), (50, 50)], ["query", "train", "train"], strict=True)):
        photo(n, size).save(root / f"{n}.png")
        entry = {"id": f"i{n}", "image": f"{n}.png", "texts": {"en": [f"dog {n}"]}, "splits": [role]}
        lines.append(json.dumps(entry))
    lines.append(json.dumps({"id": "i3", "texts": {"en": ["dog 3"]}, "splits": ["val"]}))
    (root / "1.png").write_bytes(b"no photo")
    (root / "manifest.jsonl").write_text("\n".join(lines))
    settings = ExtractConfig(
        dataset="manifest",
        root=root,
        cache=tmp_path / "cache",
        image_model=SMALL,
        image_weights="random",
        text_models=("random",),
        image_batch=2,
    )
    report = extract(settings)
    features = read_features(report.folder / f"image-{SMALL}-random.h5")
    assert features.valid.tolist() == [True, False, True, False]
    encoder = image_encoders.load(SMALL, "random")
    expected = encoder.encode(encoder.crop(Image.open(root / "2.png"))[None])[0]
    np.testing.assert_allclose(features.x[2], expected, atol=1e-3 * np.abs(expected).max())
    assert np.abs(features.x[0] - features.x[2]).max() > 1e-2 * np.abs(expected).max()
