"""Directories of transformers models that are refused: one line each, before anything is written."""

from __future__ import annotations

import json
import re
import shutil

import pytest
import torch
from running import run, write_own
from safetensors.torch import load_file, save_file
from small_models import write_bert, write_clip, write_siglip, write_vit, write_words

from cmrhash.encoders import image, text
from cmrhash.errors import EncoderError


@pytest.fixture
def clip(tmp_path):
    (tmp_path / "clip").mkdir()
    write_clip(tmp_path / "clip")
    return tmp_path / "clip"


def edit_json(path, **fields):
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def edit_weights(folder, change):
    save_file(change(load_file(folder / "model.safetensors")), folder / "model.safetensors", {"format": "pt"})


def without(part):
    return lambda state: {name: tensor for name, tensor in state.items() if not name.startswith(part)}


def other_shape(state):
    return state | {"visual_projection.weight": torch.zeros(24, 30)}


def not_finite(state):
    return {name: tensor * float("nan") for name, tensor in state.items()}


def other_tokenizer(folder):
    shutil.rmtree(folder / "tokenizer", ignore_errors=True)
    write_words(folder, end="!")
    content = json.loads((folder / "tokenizer.json").read_text())
    content["model"]["vocab"] = {"<s>": 0, "<pad>": 1, "<unk>": 2, "!": 3}
    content["post_processor"], content["added_tokens"] = None, []
    (folder / "tokenizer.json").write_text(json.dumps(content))


BAD = {  # what is done to a CLIP, and what is said
    "no preprocessor": (lambda d: (d / "preprocessor_config.json").unlink(), "no preprocessor_config.json"),
    "no config": (lambda d: (d / "config.json").unlink(), "no config.json: "),
    "code": (lambda d: edit_json(d / "config.json", auto_map={"AutoModel": "x.Y"}), "code to be run .auto_map"),
    "code of photos": (lambda d: edit_json(d / "preprocessor_config.json", auto_map={}), "code to be run .auto_map"),
    "attention": (lambda d: edit_json(d / "config.json", _attn_implementation="x/y"), "sets _attn_implementation"),
    "missing": (lambda d: edit_weights(d, without("vision_model.encoder.layers.1")), "lack 16 tensors of the image"),
    "no image tower": (lambda d: edit_weights(d, without("vis")), "tensors of the image model"),
    "no text tower": (lambda d: edit_weights(d, without("text_")), "tensors of the text model"),
    "shape": (lambda d: edit_weights(d, other_shape), "has another shape for"),
    "nan": (lambda d: edit_weights(d, not_finite), "NaN or infinity"),
    "tokenizer": (other_tokenizer, "do not match"),
    "no weights": (lambda d: (d / "model.safetensors").unlink(), "model.safetensors"),
    "unknown": (lambda d: edit_json(d / "config.json", model_type="own"), "'own' is no dual encoder"),
    "size": (
        lambda d: edit_json(d / "preprocessor_config.json", crop_size={"height": 24, "width": 24}),
        "the model does not take what its files say",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_directory_is_refused_in_one_line_and_nothing_is_written(clip, name, tmp_path, monkeypatch, capsys):
    spoil, words = BAD[name]
    spoil(clip)
    write_own(tmp_path / "mine")
    monkeypatch.chdir(tmp_path)
    assert run("extract", "--dataset", "manifest", "--root", "mine", "--model", "clip", "--device", "cpu") != 0
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith(("reading", "loading"))]
    assert len(lines) == 1, lines
    assert re.search("error: .*" + words, lines[0]), lines
    assert not (tmp_path / "cache").exists()


def test_a_tokenizer_of_another_vocabulary_or_end_is_refused(clip):
    edit_json(clip / "config.json", text_config=json.loads((clip / "config.json").read_text())["text_config"])
    content = json.loads((clip / "tokenizer.json").read_text())
    content["post_processor"] = None  # no end token, from which CLIP's feature comes
    (clip / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(EncoderError, match="tokenizer .* and model .* do not match"):
        text.load(str(clip))


def test_models_of_the_other_kind_are_refused(tmp_path):
    for name, write in (("bert", write_bert), ("vit", write_vit)):
        (tmp_path / name).mkdir()
        write(tmp_path / name)
    with pytest.raises(EncoderError, match="'bert' is no image model but a text model"):
        image.load(str(tmp_path / "bert"))
    with pytest.raises(EncoderError, match="an image model, given as a text model"):
        text.load(str(tmp_path / "vit"))
    with pytest.raises(EncoderError, match=f"weights 'random' do not go with {tmp_path / 'vit'}"):
        image.load(str(tmp_path / "vit"), "random")


def test_what_is_no_directory_and_no_name_is_refused_without_the_network(tmp_path):
    with pytest.raises(EncoderError, match="is not a directory with a vision model"):
        image.load(str(tmp_path / "nothing"))
    with pytest.raises(EncoderError, match="not in the local cache, and offline mode is on"):
        image.load("owner/name-that-is-not-there", offline=True)


def test_settings_that_no_encoder_reads_are_refused(tmp_path, monkeypatch, capsys):
    write_own(tmp_path / "mine")
    (tmp_path / "siglip").mkdir()
    write_siglip(tmp_path / "siglip")
    monkeypatch.chdir(tmp_path)
    start = ("extract", "--dataset", "manifest", "--root", "mine", "--device", "cpu")
    random = ("--image-model", "squeezenet1_1", "--image-weights", "random", "--text-model", "random")
    for options, words in (
        ((*random, "--layer", "cls"), "no encoder has the layer 'cls'"),
        ((*random, "--layer", "last"), "unknown layer 'last'"),
        (("--model", "siglip", "--image-model", "vgg16"), "'vgg16' is named too"),
        (("--model", "siglip", "--text-model", "bow"), "'bow' is named too"),
        (("--model", "siglip", "--image-weights", "random"), "do not go with siglip"),
        (("--model", "siglip", "--pooling", "cls"), "has no pooling 'cls'"),
    ):
        assert run(*start, *options) != 0
        assert words in capsys.readouterr().err
    assert not (tmp_path / "cache").exists()
