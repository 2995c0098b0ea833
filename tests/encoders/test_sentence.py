"""Directories of sentence-transformers: the numbers against a slow reading by the definitions, and what is refused."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file
from sentence_models import TANH, edit_json, make_sentence, slow, write_json
from text_models import CAPTIONS, load

from cmrhash.encoders import hub, sentence
from cmrhash.encoders import text as text_encoders
from cmrhash.errors import EncoderError, UsageError

DENSE, IDENTITY = (32, 12, TANH), (12, 20, "torch.nn.modules.linear.Identity")
MODES = ("mean", "cls", "max", "mean_sqrt_len", "weightedmean", "lasttoken")
PROMPTS = {"prompts": {"query": "the dog ", "passage": "a cat near ", "document": ""}}


@pytest.fixture
def folder(bert, tmp_path):
    return shutil.copytree(bert, tmp_path / "mine")


# ---------------------------------------------------------------------------------------------- the numbers


@pytest.mark.parametrize("new", [False, True])
@pytest.mark.parametrize("pooling", [*MODES, "cls+max+mean", "mean_sqrt_len+weightedmean+lasttoken"])
def test_each_pooling_is_that_of_its_definition(folder, pooling, new):
    encoder = load(make_sentence(folder, pooling, new=new), token_budget=40)
    assert encoder.recipe["pooling"] == pooling
    found = encoder.encode(CAPTIONS)
    assert found.shape == (len(CAPTIONS), encoder.dim) == (len(CAPTIONS), 32 * len(pooling.split("+")))
    np.testing.assert_allclose(found, slow(folder, CAPTIONS, pooling), atol=2e-5)


def test_the_order_of_several_poolings_is_that_of_the_file(folder):
    encoder = load(make_sentence(folder, "mean+cls", new=True))
    np.testing.assert_allclose(encoder.encode(CAPTIONS), slow(folder, CAPTIONS, "mean+cls"), atol=2e-5)


@pytest.mark.parametrize("layers", [["Normalize"], [DENSE], [DENSE, "Normalize"], ["Normalize", DENSE, IDENTITY]])
def test_dense_and_normalize_follow_in_their_order(folder, layers):
    encoder = load(make_sentence(folder, "cls", layers))
    expected = slow(folder, CAPTIONS, "cls", layers)
    assert encoder.dim == expected.shape[1]
    np.testing.assert_allclose(encoder.encode(CAPTIONS), expected, atol=1e-5)
    names = {DENSE: "Dense Tanh", IDENTITY: "Dense Identity", "Normalize": "Normalize"}
    assert encoder.recipe["modules"] == [names[layer] for layer in layers]


def test_weights_of_a_dense_layer_may_be_a_torch_file_and_are_in_the_digest(folder):
    encoder = load(make_sentence(folder, layers=[DENSE]))
    place = folder / "2_Dense"
    state = load_file(place / "model.safetensors")
    torch.save(state, place / "pytorch_model.bin")
    (place / "model.safetensors").unlink()
    assert load(folder).recipe == encoder.recipe
    torch.save({**state, "linear.bias": state["linear.bias"] + 1}, place / "pytorch_model.bin")
    assert load(folder).recipe["weights_sha256"] != encoder.recipe["weights_sha256"]


@pytest.mark.parametrize("pooling", MODES)
def test_a_prompt_that_does_not_count_is_left_out_of_the_pooling_only(folder, pooling):
    make_sentence(folder, pooling, default_prompt_name="query", **PROMPTS)
    edit_json(folder / "1_Pooling/config.json", include_prompt=False)
    encoder = load(folder, token_budget=60)
    assert (encoder.recipe["prompt"], encoder.recipe["include_prompt"]) == ("the dog ", False)
    expected = slow(folder, CAPTIONS, pooling, prompt="the dog ", first=3)
    np.testing.assert_allclose(encoder.encode(CAPTIONS), expected, atol=2e-5)


def test_the_default_prompt_comes_before_each_text_and_another_one_by_its_name(folder):
    make_sentence(folder, default_prompt_name="query", **PROMPTS)
    for name, prompt in ((None, "the dog "), ("passage", "a cat near "), ("document", "")):
        encoder = load(folder, prompt=name)
        assert encoder.recipe.get("prompt", "") == prompt
        np.testing.assert_allclose(encoder.encode(CAPTIONS), slow(folder, CAPTIONS, "mean", prompt=prompt), atol=2e-5)


def test_without_a_default_prompt_there_is_none(folder, encoder):
    assert load(make_sentence(folder, **PROMPTS)).recipe == encoder.recipe


def test_texts_end_at_max_seq_length_or_at_a_smaller_max_length(folder):
    make_sentence(folder, longest=7)
    long = "the old man and the cat in the tree"
    assert load(folder).recipe["max_length"] == 7
    assert load(folder, max_length=5).recipe["max_length"] == 5
    np.testing.assert_allclose(load(folder).encode([long]), slow(folder, [long], "mean", longest=7), atol=2e-5)
    edit_json(folder / "sentence_bert_config.json", max_seq_length=1000)
    assert load(folder).recipe["max_length"] == 48  # the model cannot take more


def test_texts_are_put_into_lower_case_where_the_directory_says_so(folder, encoder):
    make_sentence(folder)
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    content["normalizer"]["lowercase"] = False
    write_json(path, content)
    assert load(folder).unknown_share(["DOG"]) > 0
    edit_json(folder / "sentence_bert_config.json", do_lower_case=True)
    lowered = load(folder)
    assert lowered.recipe["lower_case"] is True
    np.testing.assert_allclose(lowered.encode(["A DOG"]), encoder.encode(["a dog"]), atol=1e-6)


def test_truncate_dim_keeps_the_first_features(folder):
    make_sentence(folder, layers=["Normalize"], truncate_dim=5)
    encoder = load(folder)
    assert (encoder.dim, encoder.recipe["modules"]) == (5, ["Normalize", "Truncate 5"])
    np.testing.assert_allclose(
        encoder.encode(CAPTIONS), slow(folder, CAPTIONS, "mean", ["Normalize"])[:, :5], atol=1e-5
    )


def test_the_transformer_may_lie_in_a_folder_of_its_own(bert, tmp_path, encoder):
    shutil.copytree(bert, tmp_path / "st" / "0_Transformer")
    make_sentence(tmp_path / "st")
    modules = json.loads((tmp_path / "st/modules.json").read_bytes())
    write_json(tmp_path / "st/modules.json", [{**modules[0], "path": "0_Transformer"}, *modules[1:]])
    edit_json(tmp_path / "st/0_Transformer/sentence_bert_config.json", max_seq_length=9)
    assert load(tmp_path / "st").recipe == {**encoder.recipe, "max_length": 9}


def test_the_encoder_of_a_t5_is_used_without_its_decoder(folder, encoder):
    sizes = {"d_model": 32, "d_ff": 32, "num_layers": 1, "num_heads": 2, "d_kv": 8, "decoder_start_token_id": 0}
    config = transformers.T5Config(vocab_size=len(encoder.tokenizer), **sizes)
    transformers.T5Model(config).save_pretrained(folder)
    made = load(make_sentence(folder, layers=["Normalize"]))
    tokens = transformers.T5EncoderModel.from_pretrained(folder).eval()
    for text, found in zip(CAPTIONS, made.encode(CAPTIONS), strict=True):
        with torch.no_grad():
            mean = tokens(**made.tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(0)
        np.testing.assert_allclose(found, mean / mean.norm(), atol=1e-5)


# ---------------------------------------------------------------------------------------------- precedence, recipe


def test_the_given_pooling_comes_before_that_of_the_directory_and_mean_comes_last(folder, bert):
    make_sentence(folder, "cls", ["Normalize"])
    assert load(folder).recipe["pooling"] == "cls"
    np.testing.assert_allclose(
        load(folder, pooling="max").encode(CAPTIONS), slow(folder, CAPTIONS, "max", ["Normalize"]), atol=1e-5
    )
    assert load(bert).recipe["pooling"] == "mean"
    np.testing.assert_allclose(
        load(bert, pooling="max+cls").encode(CAPTIONS), slow(bert, CAPTIONS, "max+cls"), atol=2e-5
    )


def test_the_recipe_of_a_plain_directory_has_the_fields_that_it_always_had(encoder, folder):
    fields = ["encoder", "weights", "weights_sha256", "tokenizer_sha256", "pooling", "max_length", "dtype"]
    assert list(encoder.recipe) == fields
    assert load(make_sentence(folder)).recipe == encoder.recipe  # mean pooling alone gives the same features


def test_a_recipe_from_before_opens_the_transformer_alone(folder, encoder):
    make_sentence(folder, "cls", [DENSE, "Normalize"], longest=7, default_prompt_name="query", **PROMPTS)
    old = encoder.recipe
    found = text_encoders.load(str(folder), pooling="mean", max_length=48, dtype="float32", made=old)
    assert found.recipe == old
    assert found.encode(CAPTIONS).tobytes() == encoder.encode(CAPTIONS).tobytes()


@pytest.mark.parametrize("name", [None, "passage"])
def test_a_recipe_opens_the_same_encoder_again(folder, name):
    make_sentence(folder, "cls+mean", [(64, 12, TANH), "Normalize"], default_prompt_name="query", **PROMPTS)
    edit_json(folder / "1_Pooling/config.json", include_prompt=False)
    one = load(folder, prompt=name)
    edit_json(folder / "config_sentence_transformers.json", prompts={"query": "old "})  # the recipe holds its text
    again = load(folder, pooling="cls+mean", max_length=one.max_length, made=one.recipe)
    assert again.recipe == one.recipe
    assert again.encode(CAPTIONS).tobytes() == one.encode(CAPTIONS).tobytes()


# ---------------------------------------------------------------------------------------------- refusals


@pytest.mark.faults("hostile file")
@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("sentence_transformers.models.Router", "the module 'Router' is not supported"),
        ("sentence_transformers.models.CLIPModel", "the module 'CLIPModel' is not supported"),
        ("sentence_transformers.models.StaticEmbedding", "the module 'StaticEmbedding' is not supported"),
        ("sentence_transformers.models.WeightedLayerPooling", "the module 'WeightedLayerPooling' is not supported"),
        ("os.system", "the module 'system' is not supported"),
        ("sentence_transformers.models.Transformer", "the modules are Transformer, Pooling, Transformer"),
    ],
)
def test_another_module_is_refused_by_its_name(folder, kind, words):
    make_sentence(folder)
    path = folder / "modules.json"
    write_json(path, [*json.loads(path.read_bytes()), {"idx": 2, "name": "2", "path": "2_X", "type": kind}])
    refused(folder, words)


def refused(folder, words, **options):
    with pytest.raises((EncoderError, UsageError)) as caught:
        load(folder, **options)
    assert words in str(caught.value)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.faults("hostile file")
@pytest.mark.parametrize("content", ["", "{}", "[1]", "[]", '[{"type": 3}]', "[{}]", '"x"'])
def test_a_list_of_modules_that_is_none_is_refused(folder, content):
    make_sentence(folder)
    (folder / "modules.json").write_text(content)
    refused(folder, "modules.json")


@pytest.mark.faults("hostile file")
@pytest.mark.parametrize("place", ["../other", "/etc", "1_Pooling/..", 3, None])
def test_a_module_outside_the_directory_is_refused(folder, place):
    make_sentence(folder)
    path = folder / "modules.json"
    modules = json.loads(path.read_bytes())
    write_json(path, [modules[0], {**modules[1], "path": place}])
    refused(folder, f"a module is at {place!r}")


@pytest.mark.faults("hostile file")
@pytest.mark.parametrize(
    ("file", "fields", "words"),
    [
        ("1_Pooling/config.json", {"pooling_mode": "attention"}, "the pooling 'attention' is not supported"),
        ("1_Pooling/config.json", {"pooling_mode": []}, "the pooling 'none' is not supported"),
        ("1_Pooling/config.json", {"pooling_mode_cls_token": 1}, "pooling_mode_cls_token is 1, neither true nor false"),
        ("1_Pooling/config.json", {"include_prompt": "no"}, "include_prompt is 'no', neither true nor false"),
        ("2_Dense/config.json", {"activation_function": "os.system"}, "the activation 'os.system' is not supported"),
        ("2_Dense/config.json", {"activation_function": "torch.hub.load"}, "'torch.hub.load' is not supported"),
        ("2_Dense/config.json", {"in_features": 31}, "it takes 31 features, but gets 32"),
        ("2_Dense/config.json", {"out_features": 11}, "other names or shapes than config.json says"),
        ("2_Dense/config.json", {"out_features": "11"}, "out_features is '11', not a whole number"),
        ("2_Dense/config.json", {"bias": False}, "other names or shapes than config.json says"),
        ("2_Dense/config.json", {"use_residual": True}, "use_residual is not supported"),
        ("2_Dense/config.json", {"module_input_name": "token_embeddings"}, "module_input_name is 'token_embeddings'"),
        ("3_Normalize/config.json", {"module_input_name": "token_embeddings"}, "module_input_name is"),
        ("sentence_bert_config.json", {"max_seq_length": 0}, "max_seq_length is 0, not a whole number"),
        ("sentence_bert_config.json", {"transformer_task": "fill-mask"}, "the task 'fill-mask' is not supported"),
        ("sentence_bert_config.json", {"processing_kwargs": {"text": {}}}, "processing_kwargs is not supported"),
        ("sentence_bert_config.json", {"modality_config": {"image": {}}}, "do not give last_hidden_state"),
        ("config_sentence_transformers.json", {"prompts": [1]}, "prompts is not an object of names with texts"),
        ("config_sentence_transformers.json", {"default_prompt_name": "x"}, "the default prompt 'x' is not among"),
        ("config_sentence_transformers.json", {"model_type": "SparseEncoder"}, "'SparseEncoder' is not supported"),
        ("config_sentence_transformers.json", {"truncate_dim": -1}, "truncate_dim is -1, not a whole number"),
    ],
)
def test_a_setting_that_cmrhash_does_not_follow_is_refused(folder, file, fields, words):
    make_sentence(folder, layers=[DENSE, "Normalize"])
    edit_json(folder / file, **fields)
    refused(folder, words)


@pytest.mark.parametrize("file", ["1_Pooling/config.json", "2_Dense/config.json", "2_Dense/model.safetensors"])
def test_a_missing_file_is_refused_with_its_path(folder, file):
    make_sentence(folder, layers=[DENSE])
    (folder / file).unlink()
    refused(folder, file.rpartition("/")[0])


def test_prompts_that_cannot_be_used_are_refused(folder, bert):
    make_sentence(folder, default_prompt_name="long", prompts={"query": "a [SEP] b", "long": "dog " * 50, "ok": "a "})
    refused(folder, "no prompt 'okk': ", prompt="okk")
    refused(folder, "has special tokens", prompt="query")
    refused(folder, "the prompt has 51 word pieces, and a text may have 48")
    assert load(folder, prompt="ok").prompt == "a "
    refused(bert, "no prompt 'ok': ", prompt="ok")


# ---------------------------------------------------------------------------------------------- hub


def test_the_hub_is_asked_for_the_files_of_the_modules_and_for_no_code():
    from fnmatch import fnmatch

    def fetched(name):
        return any(fnmatch(name, one) for of in (*sentence.FILES, *sentence.OPTIONAL) for one in of.split("|"))

    wanted = ["modules.json", "1_Pooling/config.json", "2_Dense/config.json", "2_Dense/model.safetensors"]
    wanted += ["2_Dense/pytorch_model.bin", "0_Transformer/model.safetensors", "config_sentence_transformers.json"]
    wanted += ["0_Transformer/model-00001-of-00002.safetensors", "model.safetensors", "tokenizer.json"]
    assert all(map(fetched, wanted))
    others = ["pytorch_model.bin", "modeling.py", "2_Dense/custom.py", "0_Transformer/pytorch_model.bin", "run.sh"]
    assert not any(map(fetched, [*others, "onnx/model.onnx", "onnx/model.safetensors"]))


def test_a_download_from_before_gets_the_weights_that_it_lacks(folder, monkeypatch):
    make_sentence(folder, layers=[DENSE])
    weights = folder / "2_Dense/model.safetensors"
    content = weights.read_bytes()
    weights.unlink()
    asked = []

    def located(model, patterns, *_, optional):
        asked.append(patterns)
        if "2_Dense/model.safetensors" in patterns:
            weights.write_bytes(content)
        return folder

    monkeypatch.setattr(hub, "locate", located)
    assert text_encoders.load("someone/mine").recipe["modules"] == ["Dense Tanh"]
    assert len(asked) == 2
    assert sentence.lacking(folder) == []
