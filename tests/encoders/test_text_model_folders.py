"""Folders of text models: how one is found, and which are refused."""

from __future__ import annotations

import builtins
import json
import shutil

import pytest
import torch
from text_models import CAPTIONS, edit_weights, load
from tokenizers import Tokenizer

from cmrhash.encoders import text as text_encoders
from cmrhash.encoders.sentence import locate
from cmrhash.errors import EncoderError


def edit_config(folder, **fields):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


# ---------------------------------------------------------------------------------------------- bad directories


def without(state, part):
    return {name: tensor for name, tensor in state.items() if part not in name}


def test_weights_that_lack_a_layer_are_refused_by_name(changed):
    edit_weights(changed, lambda s: without(s, "encoder.layer.1."))
    with pytest.raises(EncoderError, match=rf"the weights lack 16 tensors \(encoder\.layer\.1\..*{changed}"):
        load(changed)


def test_weights_without_a_pooler_are_accepted_and_another_pooler_changes_nothing_that_is_used(changed, encoder):
    edit_weights(changed, lambda s: without(s, "pooler"))
    assert load(changed).encode(CAPTIONS).tobytes() == encoder.encode(CAPTIONS).tobytes()


def test_weights_without_a_pooler_have_one_recipe(changed):
    """Missing tensors are drawn at random; what is drawn must not be part of what is compared."""
    edit_weights(changed, lambda s: without(s, "pooler"))
    torch.manual_seed(1)
    one = load(changed).recipe
    torch.manual_seed(2)
    assert load(changed).recipe == one


def test_weights_of_another_shape_are_refused(changed):
    edit_weights(changed, lambda s: s | {"encoder.layer.1.output.dense.weight": torch.zeros(32, 60)})
    with pytest.raises(EncoderError, match=str(changed)):
        load(changed)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(changed, value):
    edit_weights(changed, lambda s: s | {"encoder.layer.1.output.dense.bias": torch.full((32,), value)})
    with pytest.raises(EncoderError, match=f"NaN or infinity: {changed}"):
        load(changed)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
@pytest.mark.parametrize("spoil", ["truncate", "remove", "empty"])
def test_a_spoiled_or_missing_file_is_refused_with_its_directory(changed, name, spoil):
    path = changed / name
    if spoil == "remove":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:100] if spoil == "truncate" else b"")
    with pytest.raises(EncoderError, match=str(changed)):
        load(changed)


@pytest.mark.parametrize("content", ["[]", "3", '"bert"', "null", '{"model_type": "nosuch"}', "{}"])
def test_a_config_that_is_none_is_refused(changed, content):
    (changed / "config.json").write_text(content)
    with pytest.raises(EncoderError, match=str(changed)):
        load(changed)


def test_a_directory_without_a_tokenizer_is_refused(changed):
    for path in changed.glob("token*"):
        path.unlink()
    with pytest.raises(EncoderError, match=str(changed)):
        load(changed)


def test_a_tokenizer_with_more_words_than_the_model_is_refused(changed):
    edit_weights(changed, lambda s: s | {"embeddings.word_embeddings.weight": torch.zeros(10, 32)})
    edit_config(changed, vocab_size=10)
    with pytest.raises(EncoderError, match=r"tokenizer \(\d+ word pieces\) and model \(10\) do not match"):
        load(changed)


@pytest.mark.faults("hostile file")
@pytest.mark.parametrize("field", ["_attn_implementation", "_attn_implementation_internal"])
def test_a_config_that_chooses_an_attention_kernel_is_refused(changed, field):
    edit_config(changed, **{field: "someone/kernel"})
    with pytest.raises(EncoderError, match=rf"config\.json sets {field}: .*config\.json: remove that field"):
        load(changed)


@pytest.mark.faults("hostile file")
def test_code_in_the_directory_is_not_run_and_nobody_is_asked_whether_it_should_be(changed, monkeypatch, tmp_path):
    trap, asked = tmp_path / "trap", []
    monkeypatch.setattr(builtins, "input", lambda *words: asked.append(words) or "y")
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    (changed / "evil.py").write_text(f"open({str(trap)!r}, 'w').close()\n")
    auto = {"AutoConfig": "evil.Config", "AutoModel": "evil.Model", "AutoTokenizer": ["evil.Tok", "evil.Tok"]}
    edit_config(changed, model_type="evil", auto_map=auto)
    path = changed / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"auto_map": auto}))
    with pytest.raises(EncoderError, match=str(changed)):
        load(changed)
    assert not trap.exists()
    assert asked == []


# ---------------------------------------------------------------------------------------------- finding a model


def test_a_directory_is_taken_whatever_its_name(bert, tmp_path, monkeypatch):
    (tmp_path / "a" / "b").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert locate(str(bert)) == bert
    assert locate("a/b").is_dir()
    assert locate("~/a/b") == tmp_path / "a" / "b"


@pytest.mark.parametrize("model", ["./none", "/none/here", "~/none", "a/b/c", "there/none", "file.txt", "../x"])
def test_what_looks_like_a_path_is_not_asked_for_at_the_hub(tmp_path, monkeypatch, model):
    (tmp_path / "there").mkdir()
    (tmp_path / "file.txt").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: pytest.fail("asked the hub"))
    with pytest.raises(EncoderError, match=f"'{model}' is not a directory with a text model: check the path"):
        locate(model)


@pytest.mark.parametrize("model", ["a b", "-x", "x..y", "a--b"])
def test_what_is_neither_a_path_nor_an_id_is_refused(model):
    with pytest.raises(EncoderError, match=f"'{model}' is neither a directory nor a model id"):
        locate(model)


@pytest.mark.parametrize("how", ["argument", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"])
def test_an_id_that_is_not_cached_is_refused_offline_without_asking_anyone(monkeypatch, asked, how):
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    if how != "argument":
        monkeypatch.setenv(how, "1")
    words = (
        r"text model 'cmrhash-tests/no-such-model' is not in the local cache, and offline mode is on: .+: "
        r"give .text_models=.*\[LANG=\]DIR.* with config\.json, model\.safetensors and tokenizer\.json, or random"
    )
    with pytest.raises(EncoderError, match=words):
        text_encoders.load("cmrhash-tests/no-such-model", offline=how == "argument")
    assert asked == []


def test_an_id_in_the_local_cache_of_the_hub_is_used_without_asking_anyone(bert, encoder, monkeypatch, asked, tmp_path):
    commit = "0123456789abcdef0123456789abcdef01234567"
    repo = tmp_path / "models--someone--tiny"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text(commit)
    shutil.copytree(bert, repo / "snapshots" / commit)
    monkeypatch.setattr("huggingface_hub._snapshot_download.constants.HF_HUB_CACHE", str(tmp_path))
    found = text_encoders.load("someone/tiny", dtype="float32")
    assert found.recipe == encoder.recipe
    assert found.name == "someone--tiny"
    assert asked == []


def test_encoding_leaves_truncation_and_padding_of_the_tokenizers_file_as_they_were(bert, tmp_path):
    folder = shutil.copytree(bert, tmp_path / "padding")
    core = Tokenizer.from_file(str(folder / "tokenizer.json"))
    core.enable_truncation(9, stride=1)
    core.enable_padding(length=9, pad_id=0)
    core.save(str(folder / "tokenizer.json"))
    for model in (bert, folder):
        made = text_encoders.load(str(model), dtype="float32")
        before = made.tokenizer.backend_tokenizer.to_str()
        assert made.encode(CAPTIONS).shape == (len(CAPTIONS), 32)
        assert made.tokenizer.backend_tokenizer.to_str() == before
