"""Models of every kind that are refused: one line each, before anything is written."""

from __future__ import annotations

import json
import os
import re

import pytest
import torch
from one_space import draw_photos
from package_models import TIMM, need, write_open_clip, write_timm
from running import run, write_own
from safetensors.torch import load_file, save_file
from small_models import write_bert, write_clip, write_image_weights, write_vit

TO_BERT = ("--image-model", "resnet18", "--image-weights", "random", "--text-model", "model")
TO_VIT = ("--image-model", "model", "--text-model", "bow")
TO_RESNET = ("--image-model", "resnet18", "--image-weights", "net.pth", "--text-model", "bow")
BOW = ("--text-model", "bow")
TO_TIMM = ("--image-model", TIMM, "--image-weights", "net.pth", "--text-model", "bow")
TO_OPEN_CLIP = ("--model", "open_clip:tiny/net.pt")


def edit_json(path, **fields):
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def edit_weights(path, change):
    if path.suffix == ".safetensors":
        save_file(change(load_file(path)), path, {"format": "pt"})
    else:
        torch.save(change(torch.load(path)), path)


def less(state):
    return dict(list(state.items())[:-9])


def other_shapes(state):
    return {name: torch.zeros(3, 5) if x.ndim > 1 else x for name, x in state.items()}


def not_finite(state):
    return {name: x * float("nan") if x.is_floating_point() else x for name, x in state.items()}


def other_words(folder):
    """The tokenizer of another model, with half the vocabulary."""
    content = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = content["model"]["vocab"]
    content["model"]["vocab"] = {word: n for word, n in vocabulary.items() if n < len(vocabulary) / 2}
    (folder / "tokenizer.json").write_text(json.dumps(content))


def pipe(path):
    path.unlink()
    os.mkfifo(path)


def device(path):
    path.symlink_to(os.devnull)


WEIGHTS = "model/model.safetensors"
CODE = {"auto_map": {"AutoModel": "own.Model", "AutoConfig": "own.Config"}}
MODELS = {"bert": write_bert, "vit": write_vit}
BAD = {  # kind and case: options, what is done to the model, what is said
    "bert, no weights": (TO_BERT, lambda d: (d / WEIGHTS).unlink(), "model.safetensors"),
    "bert, no tokenizer": (TO_BERT, lambda d: (d / "model/tokenizer.json").unlink(), "tokenizer"),
    "bert, code": (TO_BERT, lambda d: edit_json(d / "model/config.json", **CODE), "code to be run"),
    "bert, code of an unknown": (
        TO_BERT,
        lambda d: edit_json(d / "model/config.json", model_type="own", **CODE),
        "code to be run",
    ),
    "bert, layers": (
        TO_BERT,
        lambda d: edit_json(d / "model/config.json", num_hidden_layers=1_000_000),
        "num_hidden_layers 1000000, but the weights have .* tensors",
    ),
    "bert, size": (
        TO_BERT,
        lambda d: edit_json(d / "model/config.json", vocab_size=1 << 40),
        "vocab_size 1099511627776, but the weights have .* bytes",
    ),
    "bert, tokenizer": (TO_BERT, lambda d: other_words(d / "model"), "tokenizer .* do not match"),
    "bert, missing": (TO_BERT, lambda d: edit_weights(d / WEIGHTS, less), "the weights lack 7 tensors"),
    "bert, shapes": (
        TO_BERT,
        lambda d: edit_weights(d / WEIGHTS, other_shapes),
        "text model has another shape for .* than",
    ),
    "bert, nan": (TO_BERT, lambda d: edit_weights(d / WEIGHTS, not_finite), "NaN or infinity"),
    "vit, no preprocessor": (
        TO_VIT,
        lambda d: (d / "model/preprocessor_config.json").unlink(),
        "no preprocessor_config.json",
    ),
    "vit, patches": (
        TO_VIT,
        lambda d: edit_json(d / "model/config.json", patch_size=0),
        "config.json says patch_size 0",
    ),
    "vit, code": (TO_VIT, lambda d: edit_json(d / "model/config.json", **CODE), "code to be run"),
    "vit, preprocessor of another kind": (
        TO_VIT,
        lambda d: (d / "model/preprocessor_config.json").write_text("[]"),
        "not a JSON object",
    ),
    "vit, mean": (
        TO_VIT,
        lambda d: edit_json(d / "model/preprocessor_config.json", image_mean=[float("nan")] * 3),
        r"cannot be prepared \(the mean of the colours is \[nan",
    ),
    "vit, deviation": (
        TO_VIT,
        lambda d: edit_json(d / "model/preprocessor_config.json", image_std=[0, 0, 0]),
        r"cannot be prepared \(the standard deviation of the colours is \[0",
    ),
    "vit, factor": (
        TO_VIT,
        lambda d: edit_json(d / "model/preprocessor_config.json", rescale_factor=1e30),
        "the standard deviation of the colours is",
    ),
    "vit, pipe": (TO_VIT, lambda d: pipe(d / "model/config.json"), "not a regular file: model/config.json"),
    "vit, device": (TO_VIT, lambda d: device(d / "model/tokenizer.json"), "not a regular file: model/tokenizer.json"),
    "vit, missing": (TO_VIT, lambda d: edit_weights(d / WEIGHTS, less), "lack .* tensors of the image model"),
    "vit, shapes": (TO_VIT, lambda d: edit_weights(d / WEIGHTS, other_shapes), "has another shape for .* than"),
    "vit, nan": (TO_VIT, lambda d: edit_weights(d / WEIGHTS, not_finite), "NaN or infinity"),
    "vit, as text": (("--image-model", "model", "--text-model", "model"), lambda d: None, "given as a text model"),
    "vit, as both": (("--model", "model"), lambda d: None, "'vit' is no dual encoder"),
    "resnet, missing": (TO_RESNET, lambda d: edit_weights(d / "net.pth", less), "lacks .* tensors"),
    "resnet, shapes": (TO_RESNET, lambda d: edit_weights(d / "net.pth", other_shapes), "another shape for"),
    "resnet, nan": (TO_RESNET, lambda d: edit_weights(d / "net.pth", not_finite), "NaN or infinity"),
    "resnet, not there": (TO_RESNET, lambda d: (d / "net.pth").unlink(), "no such weights file"),
    "timm, missing": (TO_TIMM, lambda d: edit_weights(d / "net.pth", less), "lacks .* tensors"),
    "timm, shapes": (TO_TIMM, lambda d: edit_weights(d / "net.pth", other_shapes), "another shape for"),
    "timm, nan": (TO_TIMM, lambda d: edit_weights(d / "net.pth", not_finite), "NaN or infinity"),
    "timm, cut": (TO_TIMM, lambda d: (d / "net.pth").write_bytes(b"PK"), "not a readable weights file"),
    "timm, not there": (TO_TIMM, lambda d: (d / "net.pth").unlink(), "no such weights file"),
    "timm, name": (("--image-model", "timm:test_resnt", *BOW), lambda d: None, "did you mean test_resnet"),
    "timm, tag": (("--image-model", TIMM + ".none", *BOW), lambda d: None, "choose one of r160_in1k"),
    "timm, layer": ((*TO_TIMM, "--layer", "cls"), lambda d: None, "no encoder has the layer 'cls'"),
    "timm, as text": (("--text-model", TIMM), lambda d: None, "is an image model, given as a text model"),
    "timm, as both": (("--model", TIMM), lambda d: None, "is no dual encoder"),
    "open_clip, missing": (TO_OPEN_CLIP, lambda d: edit_weights(d / "net.pt", less), "cannot load .*Missing key"),
    "open_clip, shapes": (TO_OPEN_CLIP, lambda d: edit_weights(d / "net.pt", other_shapes), "open_clip cannot load"),
    "open_clip, nan": (TO_OPEN_CLIP, lambda d: edit_weights(d / "net.pt", not_finite), "NaN or infinity"),
    "open_clip, cut": (TO_OPEN_CLIP, lambda d: (d / "net.pt").write_bytes(b"PK"), "open_clip cannot load"),
    "open_clip, not there": (TO_OPEN_CLIP, lambda d: (d / "net.pt").unlink(), "is no file and no weights of tiny"),
    "open_clip, no weights": (("--model", "open_clip:tiny"), lambda d: None, "names no weights"),
    "open_clip, name": (("--model", "open_clip:ViT-B-33/openai"), lambda d: None, "no architecture 'ViT-B-33'"),
    "open_clip, tag": (("--model", "open_clip:ViT-B-32/opnai"), lambda d: None, "did you mean openai"),
    "open_clip, layer": ((*TO_OPEN_CLIP, "--layer", "cls"), lambda d: None, "has no layer 'cls'"),
    "open_clip, pooling": ((*TO_OPEN_CLIP, "--pooling", "cls"), lambda d: None, "has no pooling 'cls'"),
    "open_clip, prompt": ((*TO_OPEN_CLIP, "--prompt", "query"), lambda d: None, "has no prompt 'query'"),
    "open_clip, length": ((*TO_OPEN_CLIP, "--max-length", "9"), lambda d: None, "have 16 word pieces, not 9"),
    "open_clip, weights": ((*TO_OPEN_CLIP, "--image-weights", "random"), lambda d: None, "'random' do not go with"),
}


def lay(kind, folder):
    """A model of that kind in a folder."""
    if kind in MODELS:
        (folder / "model").mkdir()
        MODELS[kind](folder / "model")
    elif kind == "resnet":
        write_image_weights(folder / "net.pth", "resnet18")
    elif kind == "timm":
        write_timm(folder / "net.pth")
    else:
        write_open_clip(folder / "net.pt")


@pytest.fixture
def here(tmp_path, monkeypatch):
    write_own(tmp_path / "mine")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refused(capsys, *options, layout="manifest", root="mine"):
    """The line with which an extraction is refused."""
    capsys.readouterr()  # transformers has spoken
    assert run("extract", "--dataset", layout, "--root", root, "--device", "cpu", *options) != 0
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith(("reading", "loading"))]
    assert len(lines) == 1, lines
    return lines[0]


@pytest.mark.parametrize("name", BAD)
def test_a_bad_model_is_refused_in_one_line_and_nothing_is_written(name, here, capsys):
    options, spoil, words = BAD[name]
    lay(name.partition(",")[0], here)
    spoil(here)
    assert re.search("error: .*" + words, line := refused(capsys, *options)), line
    assert not (here / "cache").exists()


TOWERS = {  # what is done to the text tower of a dual encoder, what is said
    "tokenizer": (lambda d: other_words(d / "model"), "tokenizer .* do not match"),
    "missing": (lambda d: edit_weights(d / WEIGHTS, without_text), "lack .* tensors of the text model"),
    "no tokenizer": (lambda d: (d / "model/tokenizer.json").unlink(), "tokenizer"),
}


def without_text(state):
    return {name: x for name, x in state.items() if not name.startswith("text_model.encoder")}


@pytest.mark.parametrize("name", TOWERS)
def test_photos_alone_want_a_model_that_can_read_sentences_later(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    draw_photos(tmp_path / "photos")
    (tmp_path / "model").mkdir()
    write_clip(tmp_path / "model")
    spoil, words = TOWERS[name]
    spoil(tmp_path)
    assert re.search(
        "error: .*" + words, line := refused(capsys, "--model", "model", layout="folder", root="photos")
    ), line
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("image_model", ["resnet18", "vgg16"])
def test_a_model_of_both_goes_with_no_image_model(image_model, here, capsys):
    line = refused(capsys, "--model", "clip", "--image-model", image_model)
    assert f"'clip' is the model of photos and texts, and '{image_model}' is named too" in line


SIZED = {
    "bert": (TO_BERT, "./model"),
    "vit": (TO_VIT, "./model"),
    "resnet": (TO_RESNET, "net.pth"),
    "timm": (TO_TIMM, "net.pth"),
    "open_clip": (TO_OPEN_CLIP, "net.pt"),
}


@pytest.mark.parametrize("kind", SIZED)
def test_weights_too_large_for_the_memory_are_refused_before_they_are_read(kind, here, monkeypatch, capsys):
    lay(kind, here)
    options, place = SIZED[kind]
    monkeypatch.setattr(os, "sysconf", lambda name: 100)
    assert re.search(rf"this machine has 0 GB of memory: {place}", refused(capsys, *options))
    assert not (here / "cache").exists()


@pytest.mark.parametrize(
    ("model", "package"),
    [
        ("timm:resnet10t.c3_in1k", "timm"),
        ("open_clip:ViT-B-32/laion2b_s34b_b79k", "open_clip"),
        ("open_clip:ViT-B-32/openai", "open_clip"),
        ("open_clip:xlm-roberta-base-ViT-B-32/laion5b_s13b_b90k", "open_clip"),
        ("owner/a-vision-model", ""),
    ],
)
def test_an_id_that_cannot_be_reached_is_refused(model, package, here, asked, capsys, monkeypatch):
    if package:
        need(package)
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    line = refused(capsys, "--image-model", model, "--text-model", "bow")
    assert "in the local cache, and the hub cannot be reached" in line
    assert asked
    asked.clear()
    line = refused(capsys, "--image-model", model, "--text-model", "bow", "--offline")
    assert "in the local cache, and offline mode is on" in line
    assert not asked
    assert not (here / "cache").exists()
