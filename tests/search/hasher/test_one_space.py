"""Photos that nobody described, encoded in a space of images and texts: trained alone, found by sentences."""

import json
import os
import re
import subprocess
import sys

import numpy as np
import one_space
import pytest
from exit_codes import STALE, USAGE
from one_space import (
    BASIS,
    COLOURS,
    DIM,
    GAPS,
    TO_SPACE,
    Pictures,
    Words,
    described,
    draw,
    draw_photos,
    image_load,
    text_load,
)
from running import files, run

import cmrhash
from cmrhash.config import ServeConfig
from cmrhash.encoders import image, text
from cmrhash.errors import EncoderError, UsageError
from cmrhash.retrieval.codes import pack
from cmrhash.show.answers import Question, ask

BITS, OWN = 8, {"image_encoder": Pictures(), "text_encoder": Words()}


@pytest.fixture
def here(tmp_path, monkeypatch):
    draw_photos(tmp_path / "holiday")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def data(here):
    return cmrhash.extract("holiday", image_encoder=Pictures())


@pytest.fixture
def towers(monkeypatch):
    """The encoders' loads give the two towers of the made-up space."""
    monkeypatch.setattr(image, "load", image_load)
    monkeypatch.setattr(text, "load", text_load)


def opened(method="itq", bits=BITS, data="holiday", **train):
    run_ = cmrhash.train(data, method=method, bits=bits, **train)
    return cmrhash.load(run_.folder, **OWN)


@pytest.mark.parametrize("method", ["itq", "sign"])
def test_both_sides_go_through_one_map_centred_by_the_images(data, method):
    hasher = opened(method)
    heads = hasher.heads
    assert hasher.run.langs == hasher.langs == ("en",)
    assert heads["text-en"].state_dict().keys() == heads["image"].state_dict().keys()
    for name, tensor in heads["image"].state_dict().items():
        assert tensor.equal(heads["text-en"].state_dict()[name])
    mean = data.features(cmrhash.View.IMAGE).features.x.astype(np.float64).mean(0)
    weight = heads["image"].layers[-1].weight.detach().double().numpy()
    np.testing.assert_allclose(weight @ weight.T, np.eye(BITS), atol=1e-6)
    np.testing.assert_allclose(heads["image"].std.numpy(), 1)
    vector = Words().encode(["red blue"])[0]
    assert hasher.encode_text("red blue").tobytes() == pack(((vector - mean) @ weight.T)[None]).tobytes()


def test_a_sentence_finds_the_photo_it_describes_across_the_gap(data):
    hasher = opened(bits=11)
    for name in COLOURS:
        hit = hasher.search(name, k=1)[0]
        assert (hit.id, hit.distance) == (name, 0)
        assert hasher.search(f"holiday/{name}.png", k=1)[0].id == name
    assert [hit.caption for hit in hasher.search("red", k=3)] == [None] * 3
    assert hasher.search_item("red", k=1)[0].id == "red"
    with pytest.raises(UsageError, match=r"no item of the collection has captions \(en\)"):
        hasher.search("red", to="text")


def test_itq_drops_the_gap_between_the_means_and_a_random_rotation_keeps_it(data):
    gap = GAPS["text"] - GAPS["image"]
    by = {method: opened(method).heads["image"].layers[-1].weight.detach().numpy() for method in ("itq", "sign")}
    assert abs(by["itq"] @ gap).max() < 1e-4 < 0.5 < abs(by["sign"] @ gap).max()


def test_the_page_answers_sentences_photos_and_items(data):
    hasher = opened()
    assert ask(hasher, Question(text="red"), apart=True).parts["image"][0].hit.distance == 0
    photo = (hasher.dataset.root / "red.png").read_bytes()
    for question in (Question(photo=photo), Question(ident="red")):
        for apart in (True, False):
            parts = ask(hasher, question, apart).parts
            assert [(kind, of[0].hit.distance) for kind, of in parts.items()] == [("image", 0)], question


def test_seeds_languages_and_more_bits_have_runs_of_their_own(data):
    one, other = (cmrhash.train(data, method="itq", bits=BITS, seed=seed) for seed in (0, 1))
    assert (one.name, other.name) == ("itq-8", "itq-8-seed1")
    assert one.files["heads.safetensors"] != other.files["heads.safetensors"]
    several = opened(bits=BITS, langs=("DE", "en"))
    assert (several.run.name, several.langs) == ("itq-8-de+en", ("de", "en"))
    assert several.encode_text("red", "de").tobytes() == several.encode_text("red", "en").tobytes()
    assert opened("sign", bits=3 * DIM).bits == 48
    with pytest.raises(UsageError, match="itq allows at most 12 bits here: 40 images of 16 features"):
        opened(bits=13)
    with pytest.raises(UsageError, match="'d e' is no language"):
        opened(langs=("d e",))


def test_only_train_items_are_fitted_on_if_there_are_any(here):
    paths = sorted((here / "holiday").glob("*.png"))
    splits = [["database", "train"] if n < 20 else ["database"] for n in range(len(paths))]
    data = cmrhash.extract(cmrhash.dataset(paths, splits=splits, name="parts"), image_encoder=Pictures())
    x = data.features(cmrhash.View.IMAGE).features.x
    train = [n for n, item in enumerate(data.dataset.items) if "train" in item.splits]
    run_ = cmrhash.train(data, method="itq", bits=BITS)
    assert run_.train_items == len(train) < len(paths)
    mean = cmrhash.load(run_.folder, **OWN).heads["image"].mean.numpy()
    np.testing.assert_allclose(mean, x[train].mean(0), atol=1e-5)


# ---------------------------------------------------------------------------------------------- captions


def pairs(here, name="pairs"):
    """Photos and captions of one space: each caption names the four colours of its photo, nearly."""
    words = [["red", "green", "blue", "white", "black"][n] for n in np.random.default_rng(3).integers(0, 5, 400)]
    texts = [" ".join(words[4 * n : 4 * n + 4]) for n in range(100)]
    for n, each in enumerate(texts):
        draw(here / f"pairs/{n}.png", 255 * described(each))
    return cmrhash.dataset([here / f"pairs/{n}.png" for n in range(100)], {"en": texts}, name=name)


def test_captions_are_centred_by_their_own_mean_and_scored(here):
    data = cmrhash.extract(pairs(here), **OWN)
    drawn, hasher = opened("sign", data=data), opened(data=data)
    assert drawn.run.features["text-en"].sha256
    x = {view: data.features(cmrhash.View(view)).features.x for view in ("image", "text-en")}
    train = [n for n, item in enumerate(data.dataset.items) if "train" in item.splits]
    for view, features in x.items():
        np.testing.assert_allclose(hasher.heads[view].mean.numpy(), features[train].mean(0), atol=1e-5)
    assert hasher.heads["image"].layers[-1].weight.equal(hasher.heads["text-en"].layers[-1].weight)
    assert hasher.run.outcome.val_map_mean is not None
    for row in cmrhash.evaluate([drawn.run, hasher.run]).rows:
        assert row["map"] > 0.8 > 3 * row["chance"], row["method"]


def test_captions_of_another_space_are_refused(here):
    elsewhere = Words(name="other", recipe={"version": 1})
    data = cmrhash.extract(pairs(here), image_encoder=Pictures(), text_encoder=elsewhere)
    before = files(here)
    what = r"itq needs images and texts in one space, which pictures \(image\) and other \(en\) do not share: .*cca"
    with pytest.raises(UsageError, match=what.replace(": ", ".*")):
        cmrhash.train(data, method="itq", bits=BITS)
    assert files(here) == before


# ---------------------------------------------------------------------------------------------- refusals


def test_photos_of_an_encoder_without_texts_find_photos(here):
    data = cmrhash.extract("holiday", image_encoder=Pictures(recipe={"version": 1}))
    run_ = cmrhash.train(data, method="itq", bits=BITS)
    hasher = cmrhash.load(run_.folder, image_encoder=Pictures(recipe={"version": 1}))
    assert run_.langs == hasher.langs == ()
    assert hasher.search("holiday/red.png", k=1)[0].id == hasher.search_item("red", k=1)[0].id == "red"
    for search in (lambda: hasher.search("red"), lambda: ask(hasher, Question(text="red"))):
        with pytest.raises(UsageError, match="takes no sentences: the encoder of its photos has no texts in the same"):
            search()
    photo = (hasher.dataset.root / "red.png").read_bytes()
    assert ask(hasher, Question(photo=photo), apart=True).parts["image"][0].hit.distance == 0


def test_a_text_encoder_of_another_space_is_refused(data):
    run_ = cmrhash.train(data, method="itq", bits=BITS)
    other = cmrhash.load(run_.folder, image_encoder=Pictures(), text_encoder=Words(recipe={"space": "other"}))
    with pytest.raises(EncoderError, match="the texts of pictures do not lie in the space of these images"):
        other.search("red")
    with pytest.raises(EncoderError, match="an encoder of your own.*text_encoder"):
        cmrhash.load(run_.folder, image_encoder=Pictures()).search("red")


def test_two_photos_are_the_least(here):
    paths = [here / "holiday/red.png"]
    data = cmrhash.extract(cmrhash.dataset(paths, name="one"), image_encoder=Pictures())
    with pytest.raises(cmrhash.DataError, match="1 images to fit sign on"):
        cmrhash.train(data, method="sign", bits=BITS)


# ---------------------------------------------------------------------------------------------- the commands


def test_the_commands(here, towers, capsys):
    assert run("extract", "holiday") == 0
    assert "next: cmrhash train --dataset holiday --method itq --bits 16\n" in capsys.readouterr().err
    assert run("train", "--method", "itq", "--bits", BITS, "--device", "cpu") == 0
    said = capsys.readouterr()
    assert "runs/holiday/itq-8" in said.out
    assert said.out.startswith("trained runs\n")
    assert "i2t" not in said.out
    assert "no validation items" not in said.err
    assert re.search(r"next: cmrhash search .*--dataset holiday", said.err)
    assert run("train", "--method", "itq", "--bits", BITS, "--device", "cpu") == 0
    assert "reused" in capsys.readouterr().out
    assert run("search", "red", "--k", "3", "--json", "--device", "cpu") == 0
    assert json.loads(capsys.readouterr().out)["results"][0]["id"] == "red"
    assert run("search", "holiday/red.png", "--k", "1", "--html", "found.html", "--device", "cpu") == 0
    table = capsys.readouterr().out
    assert "red.png" in table
    assert not re.search("caption|labels", table)
    assert run("search", "--id", "red", "--k", "1", "--device", "cpu") == 0
    assert run("cache", "verify") == run("cache", "ls") == 0
    capsys.readouterr()
    for command, words in (
        (["train"], "nothing to train or score.*cmrhash index --with RUN.*--method itq"),
        (["eval"], "neither captions nor labels: cache/holiday: cmrhash search and cmrhash serve show what the run"),
        (["report"], "nothing to score: the photos have neither captions nor labels"),
        (["compare", "--method", "itq"], "no item has a caption"),
    ):
        assert run(*command) == USAGE, command
        assert re.search(words, capsys.readouterr().err), command


def test_added_photos_ask_for_the_training_again(here, towers, capsys):
    train = ["train", "--method", "itq", "--bits", BITS, "--device", "cpu", "--quiet"]
    assert run("extract", "holiday", "--quiet") == run(*train) == 0
    draw(here / "holiday/new.png", [(255, 0, 0), (255, 255, 255), (0, 255, 0), (9, 99, 199)])
    assert run("extract", "holiday", "--quiet") == 0
    capsys.readouterr()
    assert run(*train) == STALE
    assert "--overwrite" in capsys.readouterr().err
    assert run(*train, "--overwrite") == 0
    capsys.readouterr()
    assert run("search", "holiday/new.png", "--k", "1", "--json", "--device", "cpu") == 0
    assert json.loads(capsys.readouterr().out)["results"][0]["id"] == "new"


@pytest.mark.slow
def test_a_search_in_a_process_of_its_own(here, towers):
    assert run("extract", "holiday", "--quiet") == run("train", "--method", "itq", "--bits", BITS, "--quiet") == 0
    command = [sys.executable, one_space.__file__, "search", "red", "--k", "1", "--json", "--device", "cpu"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, cwd=here, env=environment, check=True, capture_output=True, text=True)
    found = json.loads(done.stdout)["results"]
    assert [(hit["id"], hit["distance"]) for hit in found] == [("red", 0)]


def test_the_page_is_served(data):
    testclient = pytest.importorskip("fastapi.testclient", reason='needs pip install "cmrhash[serve]"')
    from cmrhash.show.server.app import new_state
    from cmrhash.show.server.server import guarded, warm

    hasher = opened()
    state = new_state(hasher, ServeConfig())
    assert warm(hasher) == []
    with testclient.TestClient(guarded(state), base_url="http://127.0.0.1:8000") as client:
        first, scores = client.get("/").text, client.get("/scores").text
        assert first.count("/?id=") >= 8  # photos to start from
        assert "relevant" not in first
        assert "Nothing to score" in scores
        assert "<img" not in scores
        assert client.get("/", params={"q": "red"}).text.count("<img") > 1
        found = client.get("/api/search", params={"q": "red", "k": 1}).json()["results"]
        assert [(hit["id"], hit["distance"]) for hit in found] == [("red", 0)]
        photo = {"photo": ("red.png", (hasher.dataset.root / "red.png").read_bytes(), "image/png")}
        assert client.post("/api/search", files=photo).json()["results"][0]["id"] == "red"
        assert client.post("/", files={"file": photo["photo"]}).status_code == 200
    state.close()


def test_an_export_and_another_collection_take_both_towers(here, towers, capsys):
    assert run("extract", "holiday", "--quiet") == run("train", "--method", "itq", "--bits", BITS, "--quiet") == 0
    hasher = cmrhash.load("runs/holiday/itq-8")
    hasher.save_pretrained("shared")
    capsys.readouterr()
    shared = cmrhash.from_pretrained("shared", image_weights="PLACE", text_models={"en": "PLACE"})
    assert shared.encode_text("red").tobytes() == hasher.encode_text("red").tobytes()
    draw_photos(here / "more", 20)
    for source in ("runs/holiday/itq-8", "shared"):
        assert run("index", "more", "--with", source, "--device", "cpu", "--quiet") == 0
        capsys.readouterr()
        assert run("search", "red", "--dataset", "more", "--k", "1", "--json", "--device", "cpu") == 0
        assert json.loads(capsys.readouterr().out)["results"][0]["id"] == "red"


def test_the_made_up_space_has_a_gap():
    assert abs(TO_SPACE @ GAPS["image"]).max() < 1e-12
    assert abs(BASIS @ BASIS.T - np.eye(DIM)).max() < 1e-12
