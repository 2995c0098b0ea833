"""A run that is handed on gives the same bits elsewhere, without data set, cache and encoders."""

import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
import torchvision
from handed_on import TEXTS, TRAIN, refused
from PIL import Image

from cmrhash.config import ExtractConfig, FinetuneConfig
from cmrhash.data.view import View
from cmrhash.errors import StaleError
from cmrhash.features import reopen
from cmrhash.features.dataset import ExtractedDataset
from cmrhash.retrieval.codes import pack
from cmrhash.search.hasher import Hasher
from cmrhash.training.finetune.extract import extract_tuned
from cmrhash.training.train import train

pytestmark = pytest.mark.slow


def test_the_bits_are_the_same_elsewhere_with_data_set_run_and_encoders_gone(made, copy, wanted, tmp_path):
    gone = tmp_path / "gone"
    made.rename(gone)
    try:
        loaded = Hasher.from_pretrained(copy, device="cpu", offline=True)
        np.testing.assert_array_equal(loaded.embed_image(wanted.photos), wanted.image)
        np.testing.assert_array_equal(loaded.embed_text(TEXTS, "en"), wanted.en)
        np.testing.assert_array_equal(loaded.embed_text(TEXTS, "de"), wanted.de)
        np.testing.assert_array_equal(loaded.encode_text(TEXTS, "de"), pack(wanted.de))
        assert (loaded.bits, loaded.langs) == (20, ("de", "en"))
    finally:
        gone.rename(made)


def test_public_encoders_are_named_and_have_to_be_given(made, hasher, wanted, tmp_path):
    hasher.save_pretrained(tmp_path / "plain")
    files = {str(p.relative_to(tmp_path / "plain")) for p in (tmp_path / "plain").rglob("*") if p.is_file()}
    assert files == {"config.json", "heads.safetensors", "README.md", "encoders/text-de.safetensors"}
    loaded = Hasher.from_pretrained(tmp_path / "plain")
    np.testing.assert_array_equal(loaded.embed_text(TEXTS, "de"), wanted.de)  # words travel always
    assert re.search(
        r"weights of its image encoder \(squeezenet1_1, \w{12}\.\.\.\) .*image_weights=.*`with_encoders=True`",
        refused(lambda: loaded.embed_image(wanted.photos)),
    )
    assert re.search(r"text-en encoder .*text_models=\{.en.: .DIR.\}", refused(lambda: loaded.embed_text(TEXTS, "en")))
    given = {"image_weights": str(made / "small.pth"), "text_models": {"en": str(made / "bert")}}
    loaded = Hasher.from_pretrained(tmp_path / "plain", **given, device="cpu")
    np.testing.assert_array_equal(loaded.embed_image(wanted.photos), wanted.image)
    np.testing.assert_array_equal(loaded.embed_text(TEXTS, "en"), wanted.en)


def test_other_weights_than_those_of_the_run_are_refused(hasher, wanted, tmp_path):
    hasher.save_pretrained(tmp_path / "plain")
    torch.save(torchvision.models.squeezenet1_1().state_dict(), tmp_path / "other.pth")
    loaded = Hasher.from_pretrained(tmp_path / "plain", image_weights=str(tmp_path / "other.pth"))
    assert "weights_sha256" in refused(lambda: loaded.embed_image(wanted.photos))


def test_tuned_encoders_travel_and_languages_share_one(made, tmp_path):
    config = ExtractConfig(
        dataset="manifest",
        root=made / "mine",
        cache=tmp_path / "cache",
        device="cpu",
        dtype="float32",
        image_model="squeezenet1_1",
        image_weights=str(made / "small.pth"),
        text_models=(str(made / "bert"),),
    )
    extract_tuned(config, FinetuneConfig(epochs=1, batch=8, bits=8))
    data = ExtractedDataset.open(tmp_path / "cache", None)
    done, _ = train(TRAIN, data, tmp_path / "runs")
    tuned = Hasher.open(done, data, device="cpu")
    want = tuned.embed_text(TEXTS, "de"), tuned.embed_image([made / "mine/images/3.jpg"])
    tuned.save_pretrained(tmp_path / "out")
    assert {p.name for p in (tmp_path / "out/encoders").iterdir()} == {"image.safetensors", "text-de+en"}
    english, _ = train(replace(TRAIN, langs=("en",)), data, tmp_path / "runs")
    Hasher.open(english, data, device="cpu").save_pretrained(tmp_path / "english")
    assert "(de by the head of en, which saw no de, en)" in (tmp_path / "english/README.md").read_text()
    assert "(de, en)" in (tmp_path / "out/README.md").read_text()
    shutil.rmtree(tmp_path / "cache")
    loaded = Hasher.from_pretrained(tmp_path / "out", device="cpu")
    np.testing.assert_array_equal(loaded.embed_text(TEXTS, "de"), want[0])
    np.testing.assert_array_equal(loaded.embed_image([made / "mine/images/3.jpg"]), want[1])
    assert loaded.text_encoder(View.text("de")) is loaded.text_encoder(View.text("en"))


def test_a_photo_is_prepared_as_the_recipe_says_whatever_the_weights_are_known_for(hasher, made, tmp_path):
    recipe = json.loads(json.dumps(hasher.image_encoder.recipe))
    recipe["crop"] |= {"resize": 40, "size": 32}
    encoder = reopen.image_from(recipe, str(made / "small.pth"), tmp_path, torch.device("cpu"))
    assert encoder.crop(Image.new("RGB", (50, 60))).shape == (32, 32, 3)
    recipe["crop"]["rules"] = "other"
    with pytest.raises(StaleError, match="rules 'other'"):
        reopen.image_from(recipe, str(made / "small.pth"), tmp_path, torch.device("cpu"))


def test_it_searches_among_the_codes_that_it_is_given(shared, wanted):
    loaded = Hasher.from_pretrained(shared, device="cpu")
    codes = loaded.encode_image(wanted.photos)
    distances, rows = loaded.search("dog 4", codes, lang="en", k=3)
    code = loaded.encode_text(["dog 4"], "en")[0]
    slow = sorted(
        (sum(bin(int(a ^ b)).count("1") for a, b in zip(code, row, strict=True)), n) for n, row in enumerate(codes)
    )
    assert list(zip(distances.tolist(), rows.tolist(), strict=True)) == slow[:3]
    scores, ranked = loaded.search("dog 4", codes, lang="en", k=3, rank="asymmetric")
    embedding = loaded.embed_text("dog 4", "en").astype(np.float64)
    signs = np.where(np.unpackbits(codes, axis=1, bitorder="little")[:, : loaded.bits], 1.0, -1.0)
    cosines = signs @ embedding / np.linalg.norm(embedding) / loaded.bits**0.5
    np.testing.assert_allclose(scores, np.sort(cosines)[::-1][:3], atol=2e-6)
    np.testing.assert_allclose(cosines[ranked], scores, atol=2e-6)
    assert "cannot be ranked by rerank:9" in refused(lambda: loaded.search("dog 4", codes, lang="en", rank="rerank:9"))
    assert "an exported run contains no database" in refused(lambda: loaded.search("dog 4", lang="en"))
    assert "cannot detect the query language" in refused(lambda: loaded.search("dog 4", codes))
    assert "no language 'fr'" in refused(lambda: loaded.encode_text(["chien"], "fr"))
