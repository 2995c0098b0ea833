"""Preparation of photos by the file of a processor: equal to transformers within one grey level, or refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from small_models import write_vit

from cmrhash.encoders.pixels import Crop, Squash, crop_of
from cmrhash.encoders.processors import preparation
from cmrhash.errors import EncoderError

SQUARE, LARGER = {"height": 32, "width": 32}, {"height": 36, "width": 36}
PROCESSORS = {
    "clip": ("CLIPImageProcessor", {"size": {"shortest_edge": 36}, "crop_size": SQUARE}, Crop),
    "bit": ("BitImageProcessor", {"size": {"shortest_edge": 37}, "crop_size": SQUARE}, Crop),
    "siglip": ("SiglipImageProcessor", {"size": SQUARE}, Squash),
    "vit": ("ViTImageProcessor", {"size": SQUARE}, Squash),
    "beit": ("BeitImageProcessor", {"size": LARGER, "crop_size": SQUARE, "do_center_crop": True}, Squash),
    "convnext": ("ConvNextImageProcessor", {"size": {"shortest_edge": 32}, "crop_pct": 0.875}, Crop),
    "convnext-384": ("ConvNextImageProcessor", {"size": {"shortest_edge": 384}}, Squash),
    "align": (
        "EfficientNetImageProcessor",
        {"size": SQUARE, "include_top": False, "rescale_offset": True, "rescale_factor": 1 / 127.5},
        Squash,
    ),
}


def write(folder, kind, **settings):
    getattr(transformers, kind)(**settings).save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "vit"}))


def photo(wide, high):
    coarse = np.random.default_rng(wide).integers(0, 256, (7, 9, 3)).astype(np.uint8)
    return Image.fromarray(coarse).resize((wide, high), Image.Resampling.BICUBIC)


@pytest.mark.parametrize("name", PROCESSORS)
@pytest.mark.parametrize("size", [(61, 47), (40, 90), (36, 36), (500, 333)])
def test_a_photo_is_prepared_as_the_processor_does_within_one_grey_level(tmp_path, name, size):
    kind, settings, expected = PROCESSORS[name]
    write(tmp_path, kind, **settings)
    crop = preparation(tmp_path)
    assert type(crop) is expected
    assert crop_of(crop.recipe(), tmp_path) == crop
    pixels = torch.tensor(crop(photo(*size)).copy())
    assert pixels.shape == (crop.size, crop.size, 3)
    mean, std = torch.tensor(crop.mean), torch.tensor(crop.std)
    for module, limit in ((kind + "Pil", 1.01), (kind, 2.01)):  # torchvision enlarges otherwise than Pillow
        processor = getattr(transformers, module).from_pretrained(tmp_path)
        other = processor(photo(*size), return_tensors="pt")["pixel_values"][0].permute(1, 2, 0)
        assert (((pixels / 255 - mean) / std - other) * std * 255).abs().max() < limit


def test_sizes_of_old_files_are_single_numbers(tmp_path):
    settings = {"feature_extractor_type": "CLIPFeatureExtractor", "size": 36, "crop_size": 32, "resample": 3}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "clip"}))
    crop = preparation(tmp_path)
    assert isinstance(crop, Crop)
    assert (crop.resize, crop.size, crop.interpolation) == (36, 32, "BICUBIC")


def test_the_block_of_a_processor_config_is_read(tmp_path):
    write(tmp_path, "SiglipImageProcessor", size=SQUARE)
    wanted = preparation(tmp_path)
    file = tmp_path / "preprocessor_config.json"
    block = {"image_processor": json.loads(file.read_text()), "processor_class": "SiglipProcessor"}
    file.unlink()
    (tmp_path / "processor_config.json").write_text(json.dumps(block))
    assert preparation(tmp_path) == wanted


@pytest.mark.parametrize(
    ("kind", "settings", "words"),
    [
        ("Siglip2ImageProcessor", {}, "Siglip2ImageProcessor cannot be prepared .its class"),
        ("CLIPImageProcessor", {"size": {"shortest_edge": 36}, "do_center_crop": False}, "without a crop"),
        ("ViTImageProcessor", {"size": {"height": 32, "width": 64}}, "'width': 64"),
        ("CLIPImageProcessor", {"size": {"shortest_edge": 30}, "crop_size": SQUARE}, "32 pixels out of 30"),
        ("ViTImageProcessor", {"size": SQUARE, "do_resize": False}, "do_resize"),
        ("EfficientNetImageProcessor", {"size": SQUARE}, "include_top"),
    ],
)
def test_other_preparations_are_refused_by_name(tmp_path, kind, settings, words):
    write(tmp_path, kind, **settings)
    with pytest.raises(EncoderError, match=words):
        preparation(tmp_path)


@pytest.mark.parametrize("content", [None, b"{", b"[]", b'{"image_mean": [1]}', b'{"auto_map": {}}'])
def test_without_a_good_file_nothing_is_guessed(tmp_path, content):
    write_vit(tmp_path)
    file = tmp_path / "preprocessor_config.json"
    file.unlink()
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(EncoderError, match=str(tmp_path)) as raised:
        preparation(tmp_path)
    assert "\n" not in str(raised.value)
