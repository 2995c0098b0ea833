"""Towers of transformers models: features equal transformers' own, padding, layers, digests."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers
from small_models import write_clip, write_dinov2, write_siglip, write_vit

from cmrhash.encoders import image, text
from cmrhash.errors import EncoderError, UsageError

WRITE = {"clip": write_clip, "siglip": write_siglip, "vit": write_vit, "dinov2": write_dinov2}
CAPTIONS = ["a dog 12", "cat and tree", "house " * 30, "dog"]
PIXELS = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3)).astype(np.uint8)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Name -> directory of a very small model."""
    root = tmp_path_factory.mktemp("towers")
    for name, write in WRITE.items():
        (root / name).mkdir()
        write(root / name)
    return root


@pytest.fixture(scope="module", autouse=True)
def quiet():
    transformers.utils.logging.set_verbosity_error()


def open_image(folder, **options):
    return image.load(str(folder), dtype="float32", **options)


def open_text(folder, **options):
    return text.load(str(folder), dtype="float32", **options)


def of_transformers(folder):
    return transformers.AutoModel.from_pretrained(folder, dtype=torch.float32).eval()


def normalised(crop, pixels=PIXELS):
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (crop.mean, crop.std))
    return (torch.tensor(pixels).permute(0, 3, 1, 2) / 255 - mean) / std


def unit(x):
    return (x / x.norm(dim=1, keepdim=True)).numpy()


@pytest.mark.parametrize("name", ["clip", "siglip"])
def test_projections_of_photos_are_those_of_transformers_at_length_1(models, name):
    encoder = open_image(models / name)
    with torch.inference_mode():
        out = of_transformers(models / name).get_image_features(pixel_values=normalised(encoder.crop))
    out = getattr(out, "pooler_output", out)
    assert np.abs(encoder.encode(PIXELS) - unit(out)).max() < 1e-5
    assert encoder.recipe["layer"] == "projection"
    assert encoder.recipe["normalised"]
    assert encoder.dim == out.shape[1]


@pytest.mark.parametrize("name", ["clip", "siglip"])
def test_projections_of_texts_are_those_of_transformers_with_every_text_padded_in_full(models, name):
    encoder, tokenizer = open_text(models / name), transformers.AutoTokenizer.from_pretrained(models / name)
    given = tokenizer(CAPTIONS, padding="max_length", max_length=16, truncation=True, return_tensors="pt")
    with torch.inference_mode():
        out = of_transformers(models / name).get_text_features(**given)
    assert np.abs(encoder.encode(CAPTIONS) - unit(getattr(out, "pooler_output", out))).max() < 1e-5
    assert encoder.recipe.get("padded_to") == (16 if name == "siglip" else None)
    assert encoder.unknown_share(["dog", "cat"]) == 0


def test_a_siglip_text_does_not_depend_on_its_neighbours_and_a_short_limit_keeps_the_padding(models):
    encoder, short = open_text(models / "siglip"), open_text(models / "siglip", max_length=4)
    np.testing.assert_allclose(encoder.encode(CAPTIONS)[:1], encoder.encode(CAPTIONS[:1]), atol=1e-5)
    np.testing.assert_allclose(short.encode(["dog"]), encoder.encode(["dog"]), atol=1e-5)


@pytest.mark.parametrize("name", ["vit", "dinov2"])
def test_a_vision_model_gives_its_pooled_output_or_another_layer(models, name):
    encoder = open_image(models / name)
    with torch.inference_mode():
        out = of_transformers(models / name)(pixel_values=normalised(encoder.crop))
    wanted = {"pooled": out.pooler_output, "cls": out.last_hidden_state[:, 0]}
    wanted["mean"] = out.last_hidden_state[:, 1:].mean(1)  # of the patches
    for layer, features in wanted.items():
        opened = open_image(models / name, layer=layer)
        assert np.abs(opened.encode(PIXELS) - features.numpy()).max() < 1e-5
        assert opened.recipe["layer"] == layer
        assert not opened.recipe["normalised"]
        assert "space" not in opened.recipe
    assert encoder.recipe["layer"] == "pooled"


def test_layers_of_a_dual_encoder_below_the_projection(models):
    network, tokenizer = of_transformers(models / "clip"), transformers.AutoTokenizer.from_pretrained(models / "clip")
    given = tokenizer(CAPTIONS, padding=True, max_length=16, truncation=True, return_tensors="pt")
    encoder = open_image(models / "clip", layer="pooled")
    with torch.inference_mode():
        seen = network.vision_model(pixel_values=normalised(encoder.crop))
        read = network.text_model(**given)
    mask = given["attention_mask"].unsqueeze(-1)
    mean = (read.last_hidden_state * mask).sum(1) / mask.sum(1)
    assert np.abs(encoder.encode(PIXELS) - seen.pooler_output.numpy()).max() < 1e-5
    assert np.abs(open_text(models / "clip", layer="pooled").encode(CAPTIONS) - read.pooler_output.numpy()).max() < 1e-5
    assert np.abs(open_text(models / "clip", layer="mean").encode(CAPTIONS) - mean.numpy()).max() < 1e-5
    assert "space" not in encoder.recipe


def test_a_pooler_that_the_file_lacks_is_not_drawn(tmp_path):
    write_vit(tmp_path, pooler=False)
    encoder = open_image(tmp_path)
    assert encoder.recipe["layer"] == "cls"
    assert encoder.recipe == open_image(tmp_path).recipe
    with pytest.raises(EncoderError, match="vit has no layer 'pooled'.*choose cls or mean"):
        open_image(tmp_path, layer="pooled")


def test_layers_that_a_model_lacks_are_refused_by_name(models):
    with pytest.raises(EncoderError, match="vit has no layer 'projection'.*choose pooled or cls or mean"):
        open_image(models / "vit", layer="projection")
    with pytest.raises(EncoderError, match="siglip has no layer 'cls'"):  # it has no class token
        open_image(models / "siglip", layer="cls")
    with pytest.raises(UsageError, match="has no pooling 'mean'"):
        open_text(models / "clip", pooling="mean")


def test_both_towers_name_one_space_and_hold_one_tower_each(models, tmp_path):
    photos, texts = open_image(models / "clip"), open_text(models / "clip")
    assert photos.recipe["space"] == texts.recipe["space"]
    assert photos.recipe["weights_sha256"] != texts.recipe["weights_sha256"]
    names = [name for encoder in (photos, texts) for name in encoder.module.state_dict()]
    assert len(names) == len(set(names)) == len(of_transformers(models / "clip").state_dict()) - 1  # logit_scale
    write_clip(tmp_path, seed=2)
    assert open_image(tmp_path).recipe["space"] != photos.recipe["space"]


def test_return_values_of_transformers_4_are_taken_too(models, monkeypatch):
    encoder = open_image(models / "clip")
    before = encoder.encode(PIXELS)
    given = encoder.module.network.get_image_features
    encoder.module.network.get_image_features = lambda **x: given(**x).pooler_output
    assert encoder.encode(PIXELS).tobytes() == before.tobytes()


def test_weights_in_half_precision_are_computed_in_float32(models, tmp_path):
    network = of_transformers(models / "clip").to(torch.bfloat16)
    write_clip(tmp_path)
    network.save_pretrained(tmp_path)
    assert {p.dtype for p in open_image(tmp_path).module.parameters()} == {torch.float32}
