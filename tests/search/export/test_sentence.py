"""Runs on directories of sentence-transformers: search, export, graphs, and runs from before modules.json counted."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from handed_on import TEXTS, TRAIN, refused
from sentence_models import TANH, edit_json, make_sentence
from small_models import write_bert
from tokenizers import Tokenizer

from cmrhash.config import ExtractConfig
from cmrhash.data.view import View
from cmrhash.encoders import graphs
from cmrhash.encoders import text as text_encoders
from cmrhash.errors import EncoderError, StaleError
from cmrhash.features.dataset import ExtractedDataset
from cmrhash.features.extract import extract
from cmrhash.features.file import read_features
from cmrhash.retrieval.codes import pack
from cmrhash.search.exported import onnx
from cmrhash.search.hasher import Hasher
from cmrhash.storage.files import read_json, write_json
from cmrhash.training.train import train

pytestmark = pytest.mark.slow

SIX = "cls+max+mean+mean_sqrt_len+weightedmean+lasttoken"
PROMPTS = {"prompts": {"house": "house 12 ", "tree": "tree "}, "default_prompt_name": "house"}


def config(made, cache, model, **changes):
    plain = ExtractConfig(
        dataset="manifest",
        root=made / "mine",
        cache=cache,
        device="cpu",
        dtype="float32",
        image_model="squeezenet1_1",
        image_weights=str(made / "small.pth"),
        text_models=(str(model),),
    )
    return replace(plain, **changes)


def trained(made, base, model):
    """A hasher of a run on that text model."""
    extract(config(made, base / "cache", model))
    train(TRAIN, ExtractedDataset.open(base / "cache", None), base / "runs")
    return opened(base)


def opened(base):
    return Hasher.load(base / "runs/manifest/triplet-20", base / "cache", device="cpu")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "mine"
    write_bert(folder)
    make_sentence(folder, SIX, [(6 * 64, 24, TANH), "Normalize"], width=64, longest=30, **PROMPTS)
    edit_json(folder / "1_Pooling/config.json", include_prompt=False)
    return folder


@pytest.fixture(scope="module")
def base(made, model, tmp_path_factory):
    base = tmp_path_factory.mktemp("sentence")
    trained(made, base, model)
    return base


def test_search_encodes_as_the_directory_says_with_its_prompt(base, model):
    hasher = opened(base)
    path = base / "cache/manifest/text-en-mine.h5"
    x = text_encoders.load(str(model), dtype="float32").encode(["a dog and a cat"])
    assert read_features(path).x.shape[1] == x.shape[1] == 24
    expected = hasher.heads["text-en"].embed(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(hasher.embed_text(["a dog and a cat"], "en"), expected, atol=1e-5)
    assert len(hasher.search("dog", lang="en", k=3)) == 3


def test_an_export_with_encoders_holds_the_modules_and_gives_the_same_bits(base, model, tmp_path):
    hasher = opened(base)
    wanted = hasher.embed_text(TEXTS, "en")
    hasher.save_pretrained(tmp_path / "out", with_encoders=True)
    part = tmp_path / "out/encoders/text-de+en"
    files = {path.relative_to(part).as_posix() for path in part.rglob("*") if path.is_file()}
    assert files == {
        *("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"),
        *("modules.json", "sentence_bert_config.json", "config_sentence_transformers.json"),
        *("1_Pooling/config.json", "2_Dense/config.json", "2_Dense/model.safetensors"),
    }
    loaded = Hasher.from_pretrained(tmp_path / "out", device="cpu", offline=True)
    np.testing.assert_array_equal(loaded.embed_text(TEXTS, "en"), wanted)
    again = text_encoders.load(str(part), dtype="float32")  # the part alone is such a directory
    assert again.recipe == text_encoders.load(str(model), dtype="float32").recipe


@pytest.mark.faults("hostile file")
@pytest.mark.parametrize(
    "name", ["2_Dense/evil.py", "2_Dense/pytorch_model.bin", "2_Router/config.json", "a/modules.json"]
)
def test_an_export_may_name_no_other_file_beside_the_modules(base, tmp_path, name):
    opened(base).save_pretrained(tmp_path / "out")
    config = read_json(tmp_path / "out/config.json", "")
    config["files"][f"encoders/text-de+en/{name}"] = "0" * 64
    write_json(tmp_path / "out/config.json", config)
    assert f"names the file 'encoders/text-de+en/{name}'" in refused(lambda: Hasher.from_pretrained(tmp_path / "out"))


def test_the_graph_pools_and_follows_the_layers(base, tmp_path):
    for name in graphs.PACKAGES:
        pytest.importorskip(name, reason="pip install cmrhash[onnx]")
    hasher = opened(base)
    hasher.save_pretrained(tmp_path / "out")
    view = View.text("en")
    about = onnx._text(hasher.text_encoder(view), hasher.heads[view], tmp_path / "out", view, hasher.captions(4)["en"])
    assert (about["prompt"], about["max_length"], about["pooling"]) == ("house 12 ", 30, SIX)
    tokenizer = Tokenizer.from_file(str(tmp_path / "out" / about["tokenizer"]))
    tokenizer.encode_special_tokens = True
    for texts in (TEXTS, TEXTS[:1], ["cat " * 60, "dog"]):
        found = tokenizer.encode_batch([about["prompt"] + text for text in texts])
        feed = {"input_ids": [one.ids for one in found], "attention_mask": [one.attention_mask for one in found]}
        feed = {name: np.array(rows, np.int64) for name, rows in feed.items()}
        embedding, codes = onnx.open_graph(tmp_path / "out/text-en.onnx").run(["embedding", "codes"], feed)
        want = hasher.embed_text(texts, "en")
        np.testing.assert_allclose(embedding, want, atol=1e-5)
        np.testing.assert_array_equal(codes, pack(want))


def test_a_run_from_before_opens_as_it_was_and_its_features_are_not_mixed_with_others(made, tmp_path):
    write_bert(tmp_path / "mine")
    before = trained(made, tmp_path, tmp_path / "mine").embed_text(TEXTS, "en")
    path = tmp_path / "cache/manifest/text-en-mine.h5"
    content = path.read_bytes()
    make_sentence(tmp_path / "mine", "mean", width=64)  # mean pooling alone: the features are those of before
    report = extract(config(made, tmp_path / "cache", tmp_path / "mine"))
    assert not any(file.fresh for file in report.files)
    make_sentence(tmp_path / "mine", "mean", ["Normalize"], width=64, longest=30, **PROMPTS)
    np.testing.assert_array_equal(opened(tmp_path).embed_text(TEXTS, "en"), before)
    with pytest.raises(StaleError, match="max_length = 40, but this call has 30"):
        extract(config(made, tmp_path / "cache", tmp_path / "mine"))
    (tmp_path / "mine/sentence_bert_config.json").unlink()
    with pytest.raises(StaleError, match=r"modules = nothing, but this call has \['Normalize'\]"):
        extract(config(made, tmp_path / "cache", tmp_path / "mine"))
    assert path.read_bytes() == content


def test_another_prompt_is_another_recipe_and_shards_agree_with_the_whole(made, base, model, tmp_path):
    with pytest.raises(StaleError, match=r"prompt = house 12 , but this call has tree"):
        extract(config(made, base / "cache", model, prompt="tree"))
    for shard in ("1/2", "2/2"):
        extract(config(made, tmp_path / "cache", model, shard=shard))
    whole, merged = (read_features(b / "cache/manifest/text-en-mine.h5") for b in (base, tmp_path))
    np.testing.assert_allclose(whole.x, merged.x, atol=1e-6)
    assert whole.recipe == merged.recipe


def test_a_directory_that_lost_its_layers_is_refused(base, model, tmp_path):
    moved = shutil.copytree(model, tmp_path / "mine")
    (moved / "modules.json").unlink()
    with pytest.raises(EncoderError, match=r"was made with weights_sha256 = \w{12}, but .*mine has \w{12}"):
        Hasher.load(
            base / "runs/manifest/triplet-20", base / "cache", device="cpu", text_models={"": str(moved)}
        ).embed_text(TEXTS, "en")
