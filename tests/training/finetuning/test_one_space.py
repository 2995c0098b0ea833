"""Fine-tuning of dual encoders: towers tuned through one head keep a common space, which itq needs."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from small_models import write_bert, write_clip
from tuning import QUICK, config, draw, entry, write

import cmrhash
from cmrhash.data.view import View
from cmrhash.errors import StaleError, UsageError
from cmrhash.features.dataset import ExtractedDataset
from cmrhash.features.file import read_header
from cmrhash.storage.files import read_json
from cmrhash.training import runs
from cmrhash.training.finetune.extract import extract_tuned
from cmrhash.training.finetune.heads import Centring, heads, in_one_space

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

COUNT = 64
TUNE = replace(QUICK, method="tie-ap", epochs=16, batch=16, image_lr=3e-3, text_lr=3e-3)
WORDS = {"en": ["dog", "cat"], "de": ["tree", "house"]}
EN, DE = View.text("en"), View.text("de")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Photos with a little more of red or of green, one a dog, the other a cat; a small CLIP and a small BERT."""
    root = tmp_path_factory.mktemp("photos")
    items = []
    for n in range(COUNT):
        draw(root, n, n)
        texts = {lang: [f"{words[n % 2]} {n % 3}"] for lang, words in WORDS.items()}
        splits = ["query"] if n < 12 else ["database", "val" if n < 20 else "train"]
        items.append(entry(n) | {"texts": texts, "splits": splits})
    write(root, items)
    for name, make in (("clip", write_clip), ("bert", write_bert)):
        (root / name).mkdir()
        make(root / name)
    return root


def tuned(photos, cache, tune=TUNE, **models):
    model = str(photos / "clip")
    return extract_tuned(config(photos, cache, image_weights=None, image_model=model, **models), tune)


def spaces(done):
    return {file.path.name.partition("-clip")[0]: read_header(file.path).recipe.get("space") for file in done.files}


def test_towers_tuned_through_one_head_find_each_other_by_itq(photos, tmp_path):
    done = tuned(photos, tmp_path / "cache", text_models=(str(photos / "clip"),))
    assert done.tuned.recipe["one_head"] == ["image", "text-de", "text-en"]
    assert set(spaces(done).values()) == {done.tuned.digest}
    data = ExtractedDataset.open(tmp_path / "cache", "manifest")
    run = cmrhash.train(data, method="itq", bits=8, runs=tmp_path / "runs", device="cpu")
    rows = {(row["lang"], row["direction"]): row for row in cmrhash.evaluate(run, data).rows}
    for lang in ("en", "de"):
        assert rows[lang, "t2i"]["map"] > 0.75 > 0.6 > rows[lang, "t2i"]["chance"]
    hasher = cmrhash.load(run, cache=tmp_path / "cache", device="cpu")
    assert sum("red" in hit.labels for hit in hasher.search("dog 1", lang="en", k=8)) >= 6
    exported = hasher.save_pretrained(tmp_path / "out") or cmrhash.from_pretrained(tmp_path / "out", device="cpu")
    np.testing.assert_array_equal(exported.encode_text(["dog 1"], "en"), hasher.encode_text(["dog 1"], "en"))


def test_a_frozen_tower_or_another_model_has_a_head_of_its_own(photos, tmp_path):
    few = replace(TUNE, epochs=1, method="triplet", batch=4)
    one = tuned(photos, tmp_path / "one", replace(few, image_lr=0.0), text_models=(str(photos / "clip"),))
    assert "one_head" not in one.tuned.recipe
    assert list(spaces(one)) == ["image", "text-de", "text-en"]
    assert [bool(space) for space in spaces(one).values()] == [True, False, False]
    models = (f"en={photos / 'clip'}", f"de={photos / 'bert'}")
    two = tuned(photos, tmp_path / "two", few, text_models=models)
    assert two.tuned.recipe["one_head"] == ["image", "text-en"]
    data = ExtractedDataset.open(tmp_path / "two", "manifest")
    with pytest.raises(UsageError, match=r"itq needs images and texts in one space, which clip-tuned .* \(de\)"):
        cmrhash.train(data, method="itq", bits=8, runs=tmp_path / "runs", device="cpu")


def test_encoders_that_an_earlier_version_tuned_are_used_as_they_are(photos, tmp_path):
    """Their recipe names no common head, and another recipe is refused as ever."""
    few = replace(TUNE, epochs=1, method="triplet", batch=4)
    models = {"text_models": (str(photos / "clip"),)}
    folder = tuned(photos, tmp_path / "cache", few, **models).tuned.folder
    record = read_json(folder / runs.CONFIG, "")
    del record["recipe"]["one_head"]
    runs.write_record(folder, record)
    for file in (tmp_path / "cache/manifest").glob("*-tuned.h5"):
        file.unlink()
    again = tuned(photos, tmp_path / "cache", few, **models)
    assert not again.tuned.fresh
    assert set(spaces(again).values()) == {None}
    with pytest.raises(StaleError, match="epochs"):
        tuned(photos, tmp_path / "cache", replace(few, epochs=2), **models)


def test_views_of_one_head_are_centred_apart_and_scaled_by_one_factor():
    rates = {View.IMAGE: 1.0, EN: 1.0, DE: 1.0}
    there, other = SimpleNamespace(recipe={"space": "a"}), SimpleNamespace(recipe={"space": "b"})
    assert in_one_space(there, {"de": other, "en": there}, rates) == (View.IMAGE, EN)
    assert in_one_space(there, {"en": there}, rates | {EN: 0.0}) == ()
    assert in_one_space(SimpleNamespace(recipe={}), {"en": SimpleNamespace(recipe={})}, rates) == ()
    made = heads({View.IMAGE: 4, EN: 4, DE: 3}, 2, (View.IMAGE, EN))
    assert made[View.IMAGE].get_submodule("head") is made[EN].get_submodule("head")
    assert not isinstance(made[DE].get_submodule("scale"), Centring)
    scale = made[EN].get_submodule("scale")
    scale.momentum = 1.0
    x = torch.tensor([[0.0, 1.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0]])
    factor = 8**0.5  # mean variance of the four features: 1 / 8
    torch.testing.assert_close(scale(x), factor * (x - x.mean(0)))
    torch.testing.assert_close(scale.eval()(x[:1]), factor * (x[:1] - x.mean(0)))
