"""A page whose run, data set or photos change while it is served."""

import shutil
import time

import pytest

pytest.importorskip("fastapi", reason='needs pip install "cmrhash[serve]"')

from serving import QUICK, Seen

import cmrhash
from cmrhash.config import ExtractConfig, TrainConfig
from cmrhash.data import switch
from cmrhash.data.switch import CHANGE
from cmrhash.features.dataset import ExtractedDataset
from cmrhash.features.extract import extract
from cmrhash.search.hasher import Hasher
from cmrhash.show.server import served
from cmrhash.training.train import train

MODELS = {"image_model": "mobilenet_v3_small", "image_weights": "random", "text_models": ("bow",)}


@pytest.fixture
def own(make_manifest, tmp_path, monkeypatch):
    """A hasher of a collection of its own, which may change."""
    monkeypatch.setattr(served, "AGAIN", 0.01)
    root = make_manifest(tmp_path / "mine", 40)
    extract(ExtractConfig(dataset="manifest", root=root, cache=tmp_path / "cache", device="cpu", **MODELS))
    data = ExtractedDataset.open(tmp_path / "cache")
    for bits in (16, 24):
        train(TrainConfig(**(QUICK | {"bits": bits})), data, tmp_path / "runs")
    return Hasher.load(tmp_path / "runs/manifest/triplet-16", tmp_path / "cache", device="cpu")


def places(base):
    return {"cache": base / "cache", "runs": base / "runs", "device": "cpu"}


def becomes(client, path, right, seconds=120):
    """The response of a path once it is right; fails if it never is."""
    until = time.monotonic() + seconds
    while True:
        response = client.get(path)
        if right(response):
            return response
        assert time.monotonic() < until, response.text
        time.sleep(0.02)


def items(count):
    return lambda response: response.json()["items"] == count


def test_removed_and_added_items_are_served_without_a_restart(own, serve, tmp_path):
    with serve(own) as client:
        assert client.get("/healthz").json()["items"] == 40
        assert client.get("/?id=i7&run=triplet-24").status_code == 200
        own.encode_text(["dog"], "en")
        cmrhash.remove(["i7"], "manifest", **places(tmp_path))
        becomes(client, "/healthz", items(39))
        assert client.get("/?id=i7").status_code == 404
        assert client.get("/?id=i7&run=triplet-24").status_code == 404
        assert client.get("/?q=dog&lang=en&k=100").text.count("/thumb/") == 39
        found = client.get("/api/search", params={"q": "dog", "lang": "en", "to": "image", "k": 100}).json()["results"]
        assert len(found) == 39
        now = client.state.collection.first.hasher
        assert now is not own
        assert now._light_encoders is own._light_encoders
        (tmp_path / "more").mkdir()
        shutil.copy(tmp_path / "mine/images/3.jpg", tmp_path / "more/new.jpg")
        (tmp_path / "more/new.txt").write_text("a dog on a photo")
        cmrhash.add(tmp_path / "more", "manifest", **places(tmp_path))
        becomes(client, "/healthz", items(40))
        assert client.get("/thumb/new").headers["content-type"] == "image/jpeg"


def test_a_run_trained_again_is_opened_again(own, serve, tmp_path):
    before = client_hits(own)
    with serve(own) as client:
        client.get("/?q=dog&lang=en")
        train(
            TrainConfig(**(QUICK | {"hidden": 24})),
            ExtractedDataset.open(tmp_path / "cache"),
            tmp_path / "runs",
            overwrite=True,
        )
        becomes(client, "/healthz", lambda _: client.state.collection.first.hasher is not own)
        fresh = client_hits(Hasher.load(own.run.folder, tmp_path / "cache", device="cpu"))
        assert fresh != before
        found = client.get("/api/search", params={"q": "dog", "lang": "en", "to": "image"}).json()["results"]
        assert [(hit["id"], round(hit["score"], 4)) for hit in found[:10]] == fresh


def client_hits(hasher):
    return [(hit.id, round(hit.score, 4)) for hit in hasher.search("dog", lang="en", to="image", k=10)]


def test_a_change_under_way_and_damaged_files_leave_the_open_run(own, serve, tmp_path):
    with serve(own) as client:
        (own.folder / CHANGE).write_text("{}")
        (own.folder / "dataset.json").touch()
        for _ in range(5):
            assert client.get("/?id=i3").status_code == 200
            time.sleep(0.02)
        assert client.state.collection.first.hasher is own
        switch.done(own.folder)
        (own.run.folder / "config.json").write_text("{")
        for _ in range(5):
            assert client.get("/?id=i3").status_code == 200
            time.sleep(0.02)
        assert client.state.collection.first.hasher is own


def test_a_missing_photo_is_a_placeholder_until_it_is_back(own, serve, tmp_path):
    image = {"accept": "image/avif,image/webp,image/*,*/*;q=0.8"}
    shutil.move(tmp_path / "mine/images", tmp_path / "mine/moved")
    with serve(own) as client:
        assert Seen(client.get("/?id=i3").text).all("img")
        shown = client.get("/thumb/i3", headers=image)
        assert (shown.status_code, shown.headers["content-type"]) == (404, "image/svg+xml")
        assert "photo not found" in shown.text
        assert shown.headers["cache-control"] == "no-store"
        assert client.get("/thumb/i3").json() == {"error": "no photo of this item"}
        assert client.get("/item/i3").status_code == 200
        shutil.move(tmp_path / "mine/moved", tmp_path / "mine/images")
        assert client.get("/thumb/i3", headers=image).headers["content-type"] == "image/jpeg"
