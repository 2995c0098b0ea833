"""Fine-tuning of a directory of sentence-transformers: the tuned directory keeps its modules."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sentence_models import TANH, make_sentence
from tuning import QUICK, config

from cmrhash.encoders import text as text_encoders
from cmrhash.features.extract import extract
from cmrhash.features.file import read_features
from cmrhash.training.finetune.extract import extract_tuned

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def model(small_models_and_crops, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained") / "mine"
    bert = text_encoders.load("random", corpus=["red green rot grün 0 1 2"] * 2)
    bert.tokenizer.save_pretrained(folder)
    bert.module.save_pretrained(folder)
    prompts = {"prompts": {"query": "red "}, "default_prompt_name": "query"}
    return make_sentence(folder, "cls+mean", [(64, 16, TANH), "Normalize"], **prompts)


def test_a_tuned_directory_keeps_its_modules_and_its_dense_layer_is_tuned(model, source, tmp_path):
    done = extract_tuned(config(source, tmp_path / "cache", text_models=(str(model),)), QUICK)
    folder = done.tuned.folder / "text-de+en"
    assert [m["type"].rpartition(".")[2] for m in json.loads((folder / "modules.json").read_bytes())] == [
        *("Transformer", "Pooling", "Dense", "Normalize")
    ]
    before, after = (load_file(place / "2_Dense/model.safetensors") for place in (model, folder))
    assert not torch.equal(before["linear.weight"], after["linear.weight"])
    assert not any(name.startswith("sentence") for name in load_file(folder / "model.safetensors"))
    again = extract_tuned(config(source, tmp_path / "cache", text_models=(str(model),)), QUICK)
    assert not again.tuned.fresh
    given = extract(config(source, tmp_path / "other", text_models=(str(folder),)))
    for tuned, file in zip(done.files[1:], given.files[1:], strict=True):
        one, other = read_features(tuned.path), read_features(file.path)
        np.testing.assert_array_equal(one.x, other.x)
        for field in ("modules", "prompt", "pooling", "weights_sha256", "max_length"):
            assert one.recipe[field] == other.recipe[field]
