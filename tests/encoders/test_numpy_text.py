"""The encoder without torch: the features of torch's, and the cases that are left to torch."""

from __future__ import annotations

import json
import math
import shutil

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from sentence_models import TANH, edit_json, make_sentence
from text_models import CAPTIONS, edit_weights, load
from tokenizers import Tokenizer

from cmrhash.encoders import text as text_encoders
from cmrhash.encoders.numpy_bert import Unknown, activate, erf, read_float32
from cmrhash.encoders.numpy_text import open_like
from cmrhash.encoders.sentence import ACTIVATIONS

MODES = ("mean", "cls", "max", "mean_sqrt_len", "weightedmean", "lasttoken", "cls+max+mean")
LONG = [*CAPTIONS, "the old man and the cat in the tree near the red house " * 6, "[SEP] a dog [PAD]"]


@pytest.fixture
def folder(bert, tmp_path):
    return shutil.copytree(bert, tmp_path / "mine")


def assert_equal_features(folder, **options):
    """Both encoders give the same features for captions of all lengths, together and one by one."""
    encoder = load(folder, **options)
    light = open_like(encoder.recipe, str(folder))
    assert light is not None
    found, expected = light.encode(LONG), encoder.encode(LONG)
    assert (found.dtype, found.shape) == (np.float32, expected.shape)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    for caption, row in zip(LONG, found, strict=True):
        np.testing.assert_allclose(light.encode([caption])[0], row, rtol=1e-5, atol=1e-5)
    return encoder


@pytest.mark.parametrize("pooling", MODES)
def test_a_plain_directory_gives_the_features_of_torch(folder, pooling):
    assert_equal_features(folder, pooling=pooling)


@pytest.mark.parametrize("longest", [3, 5, 9, 48])
def test_long_texts_are_truncated_alike(folder, longest):
    assert assert_equal_features(folder, max_length=longest).max_length == longest


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_dense_normalize_and_truncate_follow_alike(folder, activation):
    name = f"torch.nn.{activation}"
    make_sentence(folder, "mean+cls", [(64, 20, name), "Normalize", (20, 12, name)], truncate_dim=8)
    assert len(assert_equal_features(folder).recipe["modules"]) == 4


@pytest.mark.parametrize("pooling", MODES)
@pytest.mark.parametrize("counts", [True, False])
def test_prompts_come_first_alike(folder, pooling, counts):
    make_sentence(folder, pooling, default_prompt_name="query", prompts={"query": "the dog "})
    edit_json(folder / "1_Pooling/config.json", include_prompt=counts)
    assert assert_equal_features(folder).prompt == "the dog "


def test_texts_are_put_into_lower_case_alike(folder):
    path = folder / "tokenizer.json"
    settings = json.loads(path.read_bytes())
    settings["normalizer"]["lowercase"] = False
    path.write_text(json.dumps(settings), encoding="utf-8")
    make_sentence(folder, longest=20)
    edit_json(folder / "sentence_bert_config.json", do_lower_case=True)
    assert assert_equal_features(folder).recipe["lower_case"]


def test_saved_padding_and_truncation_do_not_change_features(folder):
    path = folder / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.enable_padding(length=16)
    tokenizer.enable_truncation(8)
    tokenizer.save(str(path))
    assert_equal_features(folder)


def test_weights_of_half_precision_and_with_heads_of_another_task_are_read(folder):
    def change(state):
        state = {f"bert.{name}": tensor.half() for name, tensor in state.items()}
        return {**state, "cls.predictions.bias": torch.zeros(3, dtype=torch.bfloat16)}

    edit_weights(folder, change)
    assert_equal_features(folder)


@pytest.mark.parametrize("kind", ["roberta", "xlm-roberta"])
def test_roberta_counts_positions_from_its_padding(folder, kind):
    names = {"xlm-roberta": "XLMRoberta", "roberta": "Roberta"}
    config = getattr(transformers, f"{names[kind]}Config")(
        vocab_size=Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab_size(),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=50,
        pad_token_id=1,
        type_vocab_size=1,
    )
    torch.manual_seed(2)
    model = getattr(transformers, f"{names[kind]}Model")(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder)
    edit_json(folder / "tokenizer_config.json", pad_token="[UNK]")  # its id is 1
    assert_equal_features(folder)


# ---------------------------------------------------------------------------------------------- left to torch


def other_config(**fields):
    return lambda folder: edit_json(folder / "config.json", **fields)


def without_eps(folder):
    config = json.loads((folder / "config.json").read_bytes())
    del config["layer_norm_eps"]
    (folder / "config.json").write_text(json.dumps(config))


def cut(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def other_weights(folder):
    edit_weights(folder, lambda state: {name: tensor + 1e-6 for name, tensor in state.items()})


def bfloat16(folder):
    edit_weights(folder, lambda state: {name: tensor.bfloat16() for name, tensor in state.items()})


def left(folder):
    edit_json(folder / "tokenizer_config.json", truncation_side="left")


def other_words(folder):
    path = folder / "tokenizer.json"
    path.write_text(path.read_text().replace('"dog"', '"cow"'))


def no_json(folder):
    (folder / "config.json").write_text("[]")


CHANGES = {
    "another architecture": other_config(model_type="distilbert"),
    "another activation": other_config(hidden_act="gelu_new"),
    "relative positions": other_config(position_embedding_type="relative_key"),
    "a decoder": other_config(is_decoder=True),
    "code": other_config(_attn_implementation="mine/kernel"),
    "odd heads": other_config(num_attention_heads=5),
    "fewer layers": other_config(num_hidden_layers=1),
    "no epsilon": without_eps,
    "no object": no_json,
    "a truncated file": cut,
    "other weights": other_weights,
    "bfloat16": bfloat16,
    "truncation at the left": left,
    "another vocabulary": other_words,
    "unknown modules": lambda folder: make_sentence(folder, layers=[(31, 12, TANH)]),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_anything_unknown_or_changed_is_left_to_torch(folder, change):
    recipe = load(folder).recipe
    if change is CHANGES["unknown modules"]:
        recipe["modules"] = ["Dense Tanh"]
    assert open_like(recipe, str(folder)) is not None or "modules" in recipe
    change(folder)
    assert open_like(recipe, str(folder)) is None


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_recipes_of_half_precision_are_computed_in_float32(folder, dtype):
    """A query then differs from stored features by their rounding alone, and takes a fifth of the time."""
    exact, half = load(folder), text_encoders.load(str(folder), dtype=dtype)
    light = open_like(half.recipe, str(folder))
    assert light.recipe["dtype"] == dtype
    found = light.encode(CAPTIONS)
    np.testing.assert_allclose(found, exact.encode(CAPTIONS), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found, half.encode(CAPTIONS), atol=0.05)


@pytest.mark.parametrize("fields", [{"weights": "random"}, {"max_length": 1000}, {"pooling": "first"}])
def test_recipes_of_other_encoders_are_left_to_torch(folder, fields):
    assert open_like({**load(folder).recipe, **fields}, str(folder)) is None


def test_a_source_that_is_not_here_is_left_to_torch(folder, tmp_path, asked):
    recipe = load(folder).recipe
    for source in (str(tmp_path / "none"), "owner/unknown-model", "no:id", "random"):
        assert open_like(recipe, source) is None
    assert asked == []  # the hub is not asked


# ---------------------------------------------------------------------------------------------- parts


def test_erf_is_that_of_the_library():
    x = np.linspace(-6, 6, 5001, dtype=np.float32)
    np.testing.assert_allclose(erf(x), [math.erf(value) for value in x], atol=3e-7)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_are_those_of_torch(name):
    x = np.linspace(-30, 30, 2001, dtype=np.float32)
    found = activate(x, name)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, getattr(torch.nn, name)()(torch.from_numpy(x)).numpy(), rtol=1e-5, atol=1e-6)


def test_tensors_are_read_as_the_library_reads_them(tmp_path):
    state = {"a": torch.randn(3, 5), "b": torch.randn(7).half(), "empty": torch.empty(0, 4), "one": torch.tensor(1.5)}
    save_file(state, tmp_path / "x.safetensors", {"format": "pt"})
    found = read_float32(tmp_path / "x.safetensors")
    expected = load_file(tmp_path / "x.safetensors")
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        np.testing.assert_array_equal(found[name], tensor.float().numpy())


@pytest.mark.parametrize("size", [0, 5, 8, 60, 300])
def test_a_truncated_file_is_unknown(tmp_path, size):
    path = tmp_path / "x.safetensors"
    save_file({"a": torch.zeros(9, 9)}, path)
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(Unknown):
        read_float32(path)
