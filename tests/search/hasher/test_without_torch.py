"""Queries that a small interpreter answers: in a child process where torch and transformers cannot be imported."""

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from small_models import write_bert
from small_searches import MODELS, QUICK

from cmrhash.config import ExtractConfig, TrainConfig
from cmrhash.data.view import View
from cmrhash.features.dataset import ExtractedDataset
from cmrhash.features.extract import extract
from cmrhash.search.hasher import Hasher
from cmrhash.training.train import train

FORBID = """
import json, sys

class Forbidden:
    def find_spec(self, name, *_):
        if name.partition(".")[0] in ("torch", "torchvision", "transformers"):
            raise AssertionError(f"{name} is imported")

sys.meta_path.insert(0, Forbidden())
"""


@pytest.fixture(scope="module")
def base(make_manifest, tmp_path_factory):
    """A folder with a run: English by a small BERT, German by its words."""
    base = tmp_path_factory.mktemp("light")
    root = make_manifest(base / "mine", 40)
    (base / "bert").mkdir()
    write_bert(base / "bert")
    models = {**MODELS, "text_models": (f"en={base / 'bert'}", "de=bow")}
    config = ExtractConfig(dataset="manifest", root=root, cache=base / "cache", device="cpu", dtype="float32", **models)
    extract(config)
    data = ExtractedDataset.open(base / "cache", None)
    train(TrainConfig(**QUICK, device="cpu"), data, base / "runs")
    Hasher.load(base / "runs/manifest/triplet-16", base / "cache").save_pretrained(base / "shared", with_encoders=True)
    return base


def run_light(base, code):
    """Standard output of ``code`` in a process without torch, in that folder."""
    done = subprocess.run([sys.executable, "-c", FORBID + code], capture_output=True, text=True, cwd=base)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    "args",
    [
        ["a dog in the snow", "--lang", "en"],
        ["Hund 3", "--lang", "de"],
        ["Hund 3", "--lang", "de", "--device", "cpu", "--among", "database"],
        ["--id", "i3"],
        ["--id", "i3", "--by", "text", "--lang", "de"],
    ],
)
def test_the_command_answers_without_torch_as_it_does_with_it(base, args, monkeypatch):
    ident = Hasher.load(base / "runs/manifest/triplet-16", base / "cache").dataset.items[3].id
    args = [ident if arg == "i3" else arg for arg in args]
    code = f"""
sys.argv = ["cmrhash", "search", *{args}, "--rank", "hamming", "--json", "--quiet"]
from cmrhash_cli.main import main
main()
"""
    found = json.loads(run_light(base, code))["results"]
    among = "database" if "database" in args else None
    hasher = Hasher.load(base / "runs/manifest/triplet-16", base / "cache", among=among, rank="hamming")
    monkeypatch.setattr("cmrhash.search.embedder.FEW", 0)  # torch's encoder
    lang = args[args.index("--lang") + 1] if "--lang" in args else None
    by = "text" if "text" in args else "image"
    hits = hasher.search_item(ident, by=by, lang=lang) if "--id" in args else hasher.search(args[0], lang=lang)
    assert [each["id"] for each in found] == [hit.id for hit in hits]
    assert [each["distance"] for each in found] == [hit.distance for hit in hits]


def test_codes_that_the_caller_gives_need_no_torch(base):
    code = """
import numpy as np
from cmrhash.search.hasher import Hasher
hasher = Hasher.load("runs/manifest/triplet-16", "cache")
print(len(hasher.search(np.zeros(2, np.uint8), k=4)))
"""
    assert run_light(base, code) == "4\n"


@pytest.mark.parametrize("lang", ["de", "en"])
def test_an_exported_run_hashes_sentences_without_torch(base, lang):
    code = f"""
from cmrhash.search.hasher import Hasher
hasher = Hasher.from_pretrained("shared", offline=True)
print(json.dumps(hasher.embed_text(["a dog 3", "Hund 5"], "{lang}").tolist()))
"""
    found = np.array(json.loads(run_light(base, code)))
    hasher = Hasher.load(base / "runs/manifest/triplet-16", base / "cache", device="cpu")
    x = hasher.text_encoder(View.text(lang)).encode(["a dog 3", "Hund 5"])
    np.testing.assert_allclose(found, hasher._embed(View.text(lang), x), atol=1e-5)


def test_many_texts_go_through_the_encoder_of_torch(base, monkeypatch):
    hasher = Hasher.load(base / "runs/manifest/triplet-16", base / "cache", device="cpu")
    few = hasher.embed_text(["a dog", "a cat"], "en")
    monkeypatch.setattr("cmrhash.search.embedder.FEW", 1)
    light = hasher.light_encoder(View.text("en"))
    monkeypatch.setattr(type(light), "encode", None)
    np.testing.assert_allclose(hasher.embed_text(["a dog", "a cat"], "en"), few, atol=1e-5)


def test_a_moved_text_model_is_opened_where_it_is_now(base, tmp_path):
    (base / "bert").rename(tmp_path / "moved")
    try:
        hasher = Hasher.load(
            base / "runs/manifest/triplet-16", base / "cache", text_models={"en": str(tmp_path / "moved")}
        )
        assert type(hasher.light_encoder(View.text("en"))).__name__ == "NumpyTextEncoder"
        assert len(hasher.search("a dog", lang="en", k=3)) == 3
    finally:
        (tmp_path / "moved").rename(base / "bert")


def test_heads_of_the_users_own_method_are_left_to_torch(base):
    hasher = Hasher.load(base / "runs/manifest/triplet-16", base / "cache", device="cpu")
    expected = hasher.embed_text("a dog", "en")
    hasher = Hasher.load(base / "runs/manifest/triplet-16", base / "cache", device="cpu")
    hasher.heads = hasher.heads  # opened by torch, before the record names a network that is not registered here
    hasher.run = replace(hasher.run, head={**hasher.run.head, "network": "mine"})
    assert hasher.light_heads == {}
    np.testing.assert_allclose(hasher.embed_text("a dog", "en"), expected, atol=1e-5)
