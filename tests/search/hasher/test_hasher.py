"""``Hasher``: a query gets the code that its item has, and finds what brute force finds."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from small_searches import MODELS, QUICK, photo

from cmrhash.config import EvalConfig, ExtractConfig, FinetuneConfig, TrainConfig
from cmrhash.errors import DataError, EncoderError, StaleError, UsageError
from cmrhash.evaluation.evaluate import score
from cmrhash.features.dataset import ExtractedDataset
from cmrhash.features.extract import extract
from cmrhash.retrieval.codes import unpack
from cmrhash.search.hasher import Hasher
from cmrhash.training import runs
from cmrhash.training.finetune.extract import extract_tuned
from cmrhash.training.train import train


def brute_force(hasher, code, view, k):
    """(distance, id) of the k nearest by counting bits one by one, equal ones by id."""
    encoded = hasher.views[view]
    found = []
    for row in encoded.database:
        distance = sum(bin(int(a) ^ int(b)).count("1") for a, b in zip(code, encoded.codes.packed[row], strict=True))
        found.append((distance, hasher.dataset.items[encoded.codes.item[row]].id))
    return sorted(found)[:k]


def stored(hasher, view, n):
    """The embedding of item n's first row as the run holds it."""
    encoded = hasher.views[view]
    return encoded.embedding[np.flatnonzero(encoded.codes.item == n)[0]]


def test_a_photo_is_encoded_as_it_was_for_the_database(made, hasher):
    found = hasher.embed_image([photo(made, 3), photo(made, 8)])
    np.testing.assert_allclose(found, [stored(hasher, "image", n) for n in (3, 8)], atol=1e-3)


@pytest.mark.parametrize("lang", ["en", "de"])
def test_so_is_a_sentence(hasher, lang):
    texts = [hasher.dataset.items[n].texts[lang][0] for n in (3, 8)]
    found = hasher.embed_text(texts, lang)
    np.testing.assert_allclose(found, [stored(hasher, f"text-{lang}", n) for n in (3, 8)], atol=1e-3)


def test_codes_are_the_signs_of_embeddings(made, hasher):
    embedding = hasher.embed_image([photo(made, 3)])
    np.testing.assert_array_equal(unpack(hasher.encode_image([photo(made, 3)]), 16), embedding >= 0)
    assert hasher.encode_image([]).shape == (0, 2)


def test_a_photo_may_be_a_path_bytes_or_a_picture(made, hasher):
    path = photo(made, 5)
    with Image.open(path) as picture:
        codes = hasher.encode_image([path, str(path), path.read_bytes(), picture])
    assert len({code.tobytes() for code in codes}) == 1


@pytest.mark.parametrize(("to", "views"), [("image", ["image"]), ("text", ["text-de"]), ("both", ["image", "text-de"])])
def test_what_is_found_is_what_brute_force_finds(hasher, to, views):
    code = hasher.encode_text(["Katze 5"], "de")[0]
    hits = hasher.search("Katze 5", lang="de", to=to, k=7, rank="hamming")
    slow = [(d, ident, view) for view in views for d, ident in brute_force(hasher, code, view, 40)]
    slow.sort()
    assert [(h.distance, h.id, "image" if h.modality == "image" else "text-de") for h in hits] == slow[:7]
    assert [h.rank for h in hits] == list(range(1, 8))


def test_a_hit_says_what_it_is(made, hasher):
    hit = hasher.search("dog 4", lang="en", k=1)[0]
    item = next(item for item in hasher.dataset.items if item.id == hit.id)
    assert hit.image == item.image
    assert (made / "mine" / hit.image).is_file()
    assert hit.caption == item.texts["en"][0]
    assert hit.labels == tuple(hasher.dataset.classes[label] for label in item.labels)


def test_a_sentence_finds_images_and_a_photo_texts_if_nothing_is_said(made, hasher):
    assert {hit.modality for hit in hasher.search("dog 4", lang="en")} == {"image"}
    hits = hasher.search(photo(made, 3))
    assert {(hit.modality, hit.lang) for hit in hits} == {("text", "en")}


def test_the_language_is_told_by_the_words(hasher):
    assert hasher.language(None, "Katze und Hund") == "de"
    assert hasher.language(None, "a cat") == "en"
    with pytest.raises(UsageError, match="cannot detect the query language: .*de, en"):
        hasher.language(None, "xyzzy")
    with pytest.raises(UsageError, match="no language 'fr'.*de, en"):
        hasher.search("chien", lang="fr")


def test_an_item_finds_what_its_own_photo_or_caption_finds(made, hasher):
    code = hasher.views["image"].codes
    row = int(np.flatnonzero(code.item == 3)[0])
    by_code = hasher.nearest(code.packed[row], "text", "en", 10)
    assert hasher.search_item("i3", lang="en", rank="hamming") == by_code
    assert hasher.search_item("i3", lang="en") == hasher.nearest(stored(hasher, "image", 3), "text", "en", 10)
    by_text = hasher.search_item("i3", by="text", lang="en")
    found = hasher.search(hasher.dataset.items[3].texts["en"][0], lang="en")
    assert [hit.id for hit in by_text] == [hit.id for hit in found]
    with pytest.raises(UsageError, match="no item 'nope'"):
        hasher.search_item("nope")


def test_the_right_caption_of_several_is_shown(make_cache, tmp_path):
    data = make_cache(tmp_path / "cache")
    run, _ = train(TrainConfig(**QUICK, relevance="pairs", device="cpu"), data, tmp_path / "runs")
    hasher = Hasher.open(run, data)
    codes = hasher.views["text-en"].codes
    hits = hasher.nearest(codes.packed[0], "text", "en", 400)
    slow = []
    for row in hasher.views["text-en"].database:
        item, first = hasher.dataset.items[codes.item[row]], int(np.flatnonzero(codes.item == codes.item[row])[0])
        slow.append(
            (
                int((unpack(codes.packed[[0, row]], 16)[0] ^ unpack(codes.packed[[0, row]], 16)[1]).sum()),
                item.id,
                row - first,
            )
        )
    wanted = [(distance, ident, hasher.item(ident).texts["en"][n]) for distance, ident, n in sorted(slow)]
    assert [(hit.distance, hit.id, hit.caption) for hit in hits] == wanted


@pytest.mark.parametrize(
    ("words", "call"),
    [
        ("'sound' is no modality.*image, text, both", lambda hasher: hasher.search("dog", lang="en", to="sound")),
        ("an empty text", lambda hasher: hasher.search(" \t", lang="en")),
        ("at least 1", lambda hasher: hasher.search("dog", lang="en", k=0)),
    ],
)
def test_what_cannot_be_asked(hasher, words, call):
    with pytest.raises(UsageError, match=words):
        call(hasher)


def test_a_broken_photo_is_named(hasher, tmp_path):
    path = tmp_path / "broken.jpg"
    path.write_bytes(b"no photo")
    with pytest.raises(DataError, match=r"not a readable photo.*broken\.jpg"):
        hasher.search(path)
    with pytest.raises(DataError, match=r"no such file.*gone\.jpg"):
        hasher.search(tmp_path / "gone.jpg")


# ---------------------------------------------------------------------------------------------- the whole collection


def test_all_items_are_searched_by_their_first_caption_where_labels_count(made, hasher):
    wide = hasher
    hasher = Hasher.load(made / "runs/manifest/triplet-16", made / "cache", among="database")
    assert (hasher.searched, hasher.encoded, hasher.scope) == (32, 40, "32 database items")
    assert (wide.searched, wide.encoded, wide.scope) == (40, 40, "all 40 items")
    code = hasher.views["image"].codes.packed[3]
    for to, view in (("image", "image"), ("text", "text-en")):
        hits = wide.nearest(code, to, "en", 100)
        assert [(hit.distance, hit.id) for hit in hits] == brute_force(wide, code, view, 100)
        assert sorted(hit.id for hit in hits) == sorted(item.id for item in wide.dataset.items)
        queries = {item.id for item in wide.dataset.items if "query" in item.splits}
        assert [hit for hit in hasher.nearest(code, to, "en", 100) if hit.id in queries] == []


def test_of_all_items_a_photo_finds_its_own_captions(by_pairs):
    found = {}
    for among in ("database", "all"):
        hasher = Hasher.load(by_pairs / "runs/toy/triplet-16", by_pairs / "cache", among=among)
        found[among] = hasher.search_item("i7", to="text", lang="en", k=1000)
    assert len(found["database"]) == 40
    assert len(found["all"]) == 240
    assert [hit for hit in found["database"] if hit.id == "i7"] == []
    assert sorted(hit.caption for hit in found["all"] if hit.id == "i7") == ["en 7 a", "en 7 b"]
    wanted = [(hit.distance, hit.caption) for hit in found["database"]]
    assert [(hit.distance, hit.caption) for hit in found["all"] if int(hit.id[1:]) % 6 == 0] == wanted


def test_an_item_without_codes_is_not_counted(make_cache, tmp_path):
    def change(item):
        return replace(item, image=None, texts={}) if item.id in ("i7", "i6") else item

    data = make_cache(tmp_path / "cache", change=change)
    run, _ = train(TrainConfig(**QUICK, device="cpu"), data, tmp_path / "runs")
    hasher = Hasher.open(run, data)
    assert (hasher.searched, hasher.encoded) == (118, 118)
    assert Hasher.open(run, data, among="database").searched == 99


def test_scores_are_of_the_database_whatever_is_searched(by_pairs):
    data = ExtractedDataset.open(by_pairs / "cache", None)
    run = runs.open_run(by_pairs / "runs/toy/triplet-16")
    Hasher.open(run, data, among="all")
    rows = score(EvalConfig(), [run], data).rows
    assert {(row["direction"], row["queries"], row["database"]) for row in rows} == {("i2t", 20, 40), ("t2i", 40, 20)}


def test_nothing_else_can_be_searched(by_pairs):
    with pytest.raises(UsageError, match="among: unknown value 'train': choose database or all"):
        Hasher.load(by_pairs / "runs/toy/triplet-16", by_pairs / "cache", among="train")


# ---------------------------------------------------------------------------------------------- where encoders are


@pytest.fixture
def moved(made, tmp_path):
    """A copy, so that it can be changed."""
    shutil.copytree(made, tmp_path / "copy")
    return tmp_path / "copy"


def test_another_encoder_than_the_one_of_the_database_is_refused(moved, tmp_path):
    import torchvision

    module = torchvision.models.mobilenet_v3_small()
    torch.save(module.state_dict(), tmp_path / "other.pth")
    other = Hasher.load(
        moved / "runs/manifest/triplet-16",
        moved / "cache",
        image_weights=str(tmp_path / "other.pth"),
        device="cpu",
    )
    with pytest.raises(EncoderError, match="made with weights_sha256 = .*other.pth has"):
        other.search(photo(moved, 3))


def test_weights_from_a_file_are_found_again_or_named(moved, tmp_path):
    import torchvision

    weights = tmp_path / "own.pth"
    torch.save(torchvision.models.mobilenet_v3_small().state_dict(), weights)
    cache = tmp_path / "cache2"
    config = ExtractConfig(dataset="manifest", root=moved / "mine", cache=cache, device="cpu", langs=("de",), **MODELS)
    extract(ExtractConfig(**{**vars(config), "image_weights": str(weights), "text_models": ("bow",)}))
    run, _ = train(TrainConfig(**QUICK, device="cpu"), ExtractedDataset.open(cache), tmp_path / "runs")
    before = Hasher.load(run.folder, cache).encode_image([photo(moved, 3)])
    weights.rename(tmp_path / "elsewhere.pth")
    with pytest.raises(EncoderError, match=r"own\.pth"):
        Hasher.load(run.folder, cache).encode_image([photo(moved, 3)])
    again = Hasher.load(run.folder, cache, image_weights=str(tmp_path / "elsewhere.pth"))
    np.testing.assert_array_equal(again.encode_image([photo(moved, 3)]), before)


@pytest.mark.slow
def test_tuned_encoders_are_found_where_the_cache_is_now(moved, tmp_path):
    config = ExtractConfig(
        dataset="manifest", root=moved / "mine", cache=tmp_path / "first", device="cpu", **MODELS | {"text_models": ()}
    )
    config = ExtractConfig(**{**vars(config), "text_models": ("random",)})
    extract_tuned(config, FinetuneConfig(epochs=1, batch=8, bits=8))
    (tmp_path / "first").rename(tmp_path / "second")
    data = ExtractedDataset.open(tmp_path / "second", None)
    run, _ = train(TrainConfig(**QUICK, device="cpu"), data, tmp_path / "runs")
    tuned = Hasher.load(run.folder, tmp_path / "second")
    np.testing.assert_allclose(tuned.embed_image([photo(moved, 3)])[0], stored(tuned, "image", 3), atol=1e-3)
    caption = data.dataset.items[3].texts["de"][0]
    np.testing.assert_allclose(tuned.embed_text([caption], "de")[0], stored(tuned, "text-de", 3), atol=1e-3)


def test_ready_made_features_are_asked_by_items_only(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {
        "image": rng.standard_normal((60, 8)).astype(np.float32),
        "text": rng.standard_normal((60, 6)).astype(np.float32),
        "labels": np.eye(3, dtype=np.int64)[rng.integers(0, 3, 60)],
    }
    np.savez(tmp_path / "own.npz", **arrays)
    extract(ExtractConfig(dataset="features", features=(tmp_path / "own.npz",), cache=tmp_path / "cache"))
    run, _ = train(TrainConfig(**QUICK, device="cpu"), ExtractedDataset.open(tmp_path / "cache"), tmp_path / "runs")
    ready = Hasher.load(run.folder, tmp_path / "cache")
    assert len(ready.search_item(ready.dataset.items[0].id, to="image")) == 10
    with pytest.raises(UsageError, match="ready-made"):
        ready.search("a word", lang=ready.langs[0])


def test_features_that_changed_since_the_training_are_refused(moved):
    for path in (moved / "cache/manifest").glob("image-*.h5"):
        path.unlink()
    config = ExtractConfig(dataset="manifest", root=moved / "mine", cache=moved / "cache", device="cpu", **MODELS)
    extract(ExtractConfig(**{**vars(config), "seed": 1, "overwrite": True}))
    with pytest.raises(StaleError):
        Hasher.load(moved / "runs/manifest/triplet-16", moved / "cache")
