"""A run of krr-ap, whose queries and database items have different codes: codes, scores, searches, exports."""

import contextlib
import json
import shutil
import subprocess
import sys
from functools import partial

import numpy as np
import pytest
import safetensors.numpy
from PIL import Image
from running import run
from slow_scores import expected_ap, hamming, related
from slow_terms import slow_tf_idf

import cmrhash
from cmrhash.config import EvalConfig
from cmrhash.data.sample import draw
from cmrhash.data.view import View
from cmrhash.encoders.graphs import PACKAGES, open_graph
from cmrhash.errors import DamagedError, UsageError
from cmrhash.evaluation.evaluate import evaluate
from cmrhash.features.file import read_features
from cmrhash.retrieval.codes import pack
from cmrhash.search.exported import onnx
from cmrhash.storage.files import read_json, write_json

COUNT, BITS = 60, 16
RUN = "runs/sample/krr-ap-16"


def cli(folder, *args):
    script = [sys.executable, "-c", "from cmrhash_cli.main import main; main()"]
    done = subprocess.run([*script, *args], cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with the sample, extracted, and trained by a process of its own."""
    folder = tmp_path_factory.mktemp("roles")
    draw(folder / "cache/sample/drawn", count=COUNT)
    with contextlib.chdir(folder):
        assert run("extract", "--image-model", "squeezenet1_1", "--quiet", "--device", "cpu") == 0
    cli(folder, "train", "--method", "krr-ap", "--bits", str(BITS), "--quiet", "--device", "cpu")
    return folder


@pytest.fixture
def here(trained, monkeypatch):
    monkeypatch.chdir(trained)
    return trained


@pytest.fixture
def hasher(here):
    return cmrhash.load(RUN, device="cpu")


def slow_embeddings(folder, view):
    """item -> (as database item, as query) of its photo or first caption, in double precision from the heads' file."""
    (path,) = (folder / "cache/sample").glob(f"{view}-*.h5")
    features = read_features(path)
    state = safetensors.numpy.load_file(folder / RUN / "heads.safetensors")
    head = {name.removeprefix(f"{view}."): t.astype(float) for name, t in state.items() if name.startswith(f"{view}.")}
    terms = bytes(state[f"{view}.terms"]).decode().split("\n") if view != "image" else []
    items = cmrhash.load(folder / RUN, cache=folder / "cache", device="cpu").dataset.items
    found = {}
    for item, row in zip(features.item.tolist(), features.x, strict=True):
        z = (row - head["mean"]) / head["std"]
        z /= np.sqrt((z**2).mean())
        k = np.array([np.exp(-head["width"] * ((z - other) ** 2).mean()) for other in head["support"]])
        inner, beside, closely = k @ head["weights"]
        if terms and item not in found:  # the first caption
            said = slow_tf_idf(items[item].texts[view[5:]][0], terms, head["idf"]) @ head["term_weights"]
            inner, beside, closely = inner + said[0], beside + said[1], closely + said[2]
        query = np.tanh(inner + head["biases"][0]) + beside + head["biases"][1]
        found.setdefault(item, (closely + head["biases"][1], query))
    return found


def test_codes_of_both_roles_are_stored(hasher, here):
    for view, of in hasher.views.items():
        slow = slow_embeddings(here, view)
        first = np.flatnonzero(of.ordinal == 0)
        database, query = (np.stack([slow[item][role] for item in of.codes.item[first].tolist()]) for role in (0, 1))
        np.testing.assert_allclose(of.embedding[first], database, atol=1e-3)
        np.testing.assert_allclose(of.asked[first], query, atol=1e-3)
        np.testing.assert_array_equal(of.codes.packed, pack(of.embedding))
        np.testing.assert_array_equal(of.asked_packed, pack(of.asked))
        assert (of.asked_packed != of.codes.packed).any()


def test_the_words_of_a_sentence_are_part_of_its_embedding(hasher):
    heads = hasher.heads
    assert all(len(heads[f"text-{lang}"].vocabulary) for lang in ("de", "en"))
    text = hasher.dataset.items[0].texts["en"][0]
    said = hasher.embed_text(text, "en")
    x = hasher.data.features(View("text-en")).features.x[:1]
    np.testing.assert_allclose(hasher._embed(View("text-en"), x, captions=[text])[0], said, atol=1e-5)
    assert np.abs(hasher._embed(View("text-en"), x)[0] - said).max() > 0.01


def test_scores_are_of_query_codes_against_database_codes(here, hasher):
    data = hasher.data
    result = evaluate(EvalConfig(), data, here / "runs")
    assert result.protocol["roles"] == "queries and database items have heads of their own (krr-ap)"
    for row in result.rows:
        views = ["image", f"text-{row['lang']}"][:: 1 if row["direction"] == "i2t" else -1]
        asking, sought = (slow_embeddings(here, view) for view in views)
        items = data.dataset.items
        aps = []
        for q in [place for place, item in enumerate(items) if "query" in item.splits]:
            ranked = [
                (hamming(asking[q][1], sought[d][0]), related(data.dataset, q, d))
                for d, item in enumerate(items)
                if "database" in item.splits
            ]
            if any(relevant for _, relevant in ranked):
                aps.append(expected_ap(ranked))
        assert row["map"] == pytest.approx(np.mean(aps), abs=2e-3)
        assert row["map"] > row["chance"]


def test_sentences_photos_and_closelyask_as_queries(hasher, here):
    dataset, n = hasher.dataset, 7
    item = dataset.items[n]
    text, photo = item.texts["en"][0], here / "cache/sample/drawn" / item.image
    for view, vector, hits, sought in (
        ("text-en", hasher.embed_text(text, "en"), hasher.search(text, lang="en", k=COUNT, rank="hamming"), "image"),
        ("image", hasher.embed_image(photo), hasher.search(photo, lang="en", k=COUNT, rank="hamming"), "text-en"),
    ):
        np.testing.assert_allclose(vector, slow_embeddings(here, view)[n][1], atol=1e-2)
        stored = hasher.search_item(
            item.id, by="image" if view == "image" else "text", lang="en", k=COUNT, rank="hamming"
        )
        database = hasher.views[View(sought)]
        codes = dict(zip(database.codes.item.tolist()[::-1], database.codes.packed[::-1], strict=True))
        own = pack(vector[None])[0]
        for hit in hits:
            place = next(at for at, each in enumerate(dataset.items) if each.id == hit.id)
            assert hit.distance == int(np.bitwise_count(codes[place] ^ own).sum())
        assert {hit.id for hit in stored} == {hit.id for hit in hits}


@pytest.mark.slow
def test_commands(here, trained, capsys):
    """The search in a process of its own."""
    assert run("eval", "--json") == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert {(row["method"], row["direction"], row["lang"]) for row in rows} == {
        ("krr-ap", direction, lang) for direction in ("i2t", "t2i") for lang in ("de", "en")
    }
    sentence = "a red circle"
    found = json.loads(cli(trained, "search", sentence, "--lang", "en", "--k", "3", "--json", "--device", "cpu"))
    hits = cmrhash.load(trained / RUN, cache=trained / "cache", device="cpu").search(sentence, lang="en", k=3)
    assert [hit["id"] for hit in found["results"]] == [hit.id for hit in hits]


def test_photos_and_sentences_are_embedded_in_either_role(hasher, here):
    item = hasher.dataset.items[7]
    photo, text = here / "cache/sample/drawn" / item.image, item.texts["de"][0]
    for view, vectors, codes in (
        ("image", partial(hasher.embed_image, photo), partial(hasher.encode_image, [photo])),
        ("text-de", partial(hasher.embed_text, text, "de"), partial(hasher.encode_text, [text], "de")),
    ):
        of = hasher.views[View(view)]
        row = int(np.searchsorted(of.codes.item, 7))
        np.testing.assert_allclose(vectors(role="database"), of.embedding[row], atol=1e-3)
        np.testing.assert_allclose(vectors(), of.asked[row], atol=1e-3)
        np.testing.assert_array_equal(codes(role="database"), pack(of.embedding[row : row + 1]))
        with pytest.raises(UsageError, match="unknown role 'items'"):
            codes(role="items")


@pytest.fixture(scope="module")
def shared(trained, tmp_path_factory):
    target = tmp_path_factory.mktemp("shared") / "export"
    cmrhash.load(trained / RUN, cache=trained / "cache", device="cpu").save_pretrained(target)
    return target


def test_an_export_hashes_in_both_roles(hasher, here, shared):
    exported = cmrhash.from_pretrained(shared, device="cpu")
    items = hasher.dataset.items[:5]
    photos, texts = [here / "cache/sample/drawn" / i.image for i in items], [i.texts["en"][0] for i in items]
    for role in ("query", "database"):
        assert np.array_equal(exported.embed_image(photos, role), hasher.embed_image(photos, role))
        assert np.array_equal(exported.embed_text(texts, "en", role), hasher.embed_text(texts, "en", role))
    codes = exported.encode_image(photos, role="database")
    distances, rows = exported.search(texts[0], codes, lang="en", k=5)
    own = exported.encode_text(texts[0], "en")
    assert distances.tolist() == sorted(np.bitwise_count(codes ^ own).sum(1).tolist())
    assert sorted(rows) == [0, 1, 2, 3, 4]
    assert 'hasher.encode_image(["1.jpg", "2.jpg"], role="database")' in (shared / "README.md").read_text()


@pytest.mark.parametrize(("field", "count"), [("rows", "many"), ("rows", 0), ("rows", 1 << 40), ("near", 1 << 40)])
def test_an_export_with_other_rows_is_damaged(shared, tmp_path, field, count):
    other = shutil.copytree(shared, tmp_path / "other")
    config = read_json(other / "config.json", "")
    config["head"][field] = count
    write_json(other / "config.json", {key: value for key, value in config.items() if key != "sha256"})
    with pytest.raises(DamagedError, match=f"{field} is"):
        cmrhash.from_pretrained(other, device="cpu")


def test_another_collection_is_hashed_in_both_roles(hasher, here, tmp_path):
    """Photos alone; sentences find them."""
    more = tmp_path / "more"
    more.mkdir()
    photos = [here / "cache/sample/drawn" / item.image for item in hasher.dataset.items[:6]]
    for at, photo in enumerate(photos):
        shutil.copy(photo, more / f"{at}{photo.suffix}")
    applied = cmrhash.apply(here / RUN, more, cache=here / "cache", runs=tmp_path / "runs", device="cpu")
    found = cmrhash.load(applied.folder, cache=here / "cache", device="cpu")
    of = found.views[View.IMAGE]
    np.testing.assert_allclose(of.embedding, hasher.embed_image(photos, "database"), atol=1e-3)
    np.testing.assert_allclose(of.asked, hasher.embed_image(photos), atol=1e-3)
    text = hasher.dataset.items[0].texts["en"][0]
    hits = found.search(text, lang="en", k=6, rank="hamming")
    own = hasher.encode_text(text, "en")
    assert [hit.distance for hit in hits] == sorted(np.bitwise_count(of.codes.packed ^ own).sum(1).tolist())


@pytest.mark.slow
def test_the_image_graph_has_both_roles_and_the_words_stay_outside(hasher, here, shared, tmp_path):
    for name in PACKAGES:
        pytest.importorskip(name, reason="pip install cmrhash[onnx]")
    folder = shutil.copytree(shared, tmp_path / "graphs")
    about = onnx.write(hasher, folder, hasher.captions(4))
    assert set(about["graphs"]) == {"image.onnx"}
    photo = here / "cache/sample/drawn" / hasher.dataset.items[7].image
    with Image.open(photo) as opened:
        pixels = np.stack([hasher.image_encoder.crop(opened.convert("RGB"))])
    outputs = list(about["graphs"]["image.onnx"]["outputs"])
    found = dict(zip(outputs, open_graph(folder / "image.onnx").run(outputs, {"pixels": pixels}), strict=True))
    for prefix, role in (("", "query"), ("database_", "database")):
        np.testing.assert_allclose(found[f"{prefix}embedding"][0], hasher.embed_image(photo, role), atol=1e-3)
        np.testing.assert_array_equal(found[f"{prefix}codes"], pack(found[f"{prefix}embedding"]))
    for view in ("text-de", "text-en"):
        assert "words" in about["left_out"][view]
