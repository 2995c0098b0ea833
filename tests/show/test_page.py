"""The page and its API show what the Hasher finds, for every reader and in every colour scheme."""

import io
import re
from xml.etree import ElementTree

import pytest

pytest.importorskip("fastapi", reason='needs pip install "cmrhash[serve]"')

import numpy as np
from fastapi.testclient import TestClient
from PIL import Image
from serving import BASE, QUICK, Seen, photo, upload

from cmrhash.config import EvalConfig, ExtractConfig, ServeConfig, TrainConfig
from cmrhash.evaluation.evaluate import score
from cmrhash.features.dataset import ExtractedDataset
from cmrhash.features.extract import extract
from cmrhash.search.hasher import Hasher
from cmrhash.show import plots
from cmrhash.show.answers import Question, ask
from cmrhash.show.html.document import SVG_POLICY
from cmrhash.show.html.results import about
from cmrhash.show.server.page import page
from cmrhash.show.server.pictures import Pictures
from cmrhash.show.server.server import guarded, warm
from cmrhash.training.runs import METRICS
from cmrhash.training.train import train


def as_json(hits):
    return [{**hit.as_json(), "labels": list(hit.labels)} for hit in hits]


def without(results):
    return [{key: value for key, value in result.items() if key not in ("relevant", "itself")} for result in results]


def test_the_api_finds_what_the_hasher_finds(client, hasher, made):
    asked = client.get("/api/search", params={"q": "dog 4", "lang": "en", "k": 5}).json()
    assert without(asked["results"]) == as_json(hasher.search("dog 4", lang="en", k=5))
    assert asked["query"] == "dog 4"
    assert {result["relevant"] for result in asked["results"]} == {None}
    found = client.post("/api/search", **upload(photo(made, 3), lang="de", to="both", k="7")).json()
    assert without(found["results"]) == as_json(hasher.search(photo(made, 3), lang="de", to="both", k=7))
    found = client.get("/api/search", params={"id": "i3", "by": "text", "lang": "en"}).json()
    assert without(found["results"]) == as_json(hasher.search_item("i3", by="text", lang="en", k=ServeConfig.k))


def test_by_an_item_the_api_says_what_is_relevant(client, hasher):
    results = client.get("/api/search", params={"id": "i3", "k": 30}).json()["results"]
    assert [r["relevant"] for r in results] == [r["labels"] == ["house"] for r in results]
    assert len({r["relevant"] for r in results}) == 2
    assert [r["itself"] for r in results] == [r["id"] == "i3" for r in results]


def test_by_pairs_only_the_item_itself_is_relevant(make_cache, tmp_path):
    data = make_cache(tmp_path / "cache")
    run, _ = train(TrainConfig(**QUICK, relevance="pairs"), data, tmp_path / "runs")
    hasher = Hasher.open(run, data)
    answer = ask(hasher, Question(ident="i6", k=40))
    hits = answer.parts["text"]
    assert len(hits) == 40
    assert all(judged.relevant is (True if judged.hit.id == "i6" else None) for judged in hits)
    shown = page(hasher, ServeConfig(), {}, answer.question, answer)
    assert "not relevant" not in shown
    assert shown.count("its own caption") == 2
    wanted = {("id", "by"), ("q",)}  # an item stands for its first caption; the others are asked by their words
    links = [a["href"] for a in Seen(shown).all("a", title="search by this caption")]
    assert {tuple(key for key in ("q", "id", "by") if f"{key}=" in link) for link in links} == wanted


@pytest.mark.parametrize(("q", "lang"), [("dog 4", "en"), ("Katze 5", "de")])
def test_the_page_shows_photos_with_distance_caption_and_labels(client, hasher, q, lang):
    shown = client.get("/", params={"q": q, "k": 4})
    assert shown.status_code == 200
    hits = hasher.search(q, k=4)
    pictures = [img for img in Seen(shown.text).all("img") if not img["src"].startswith("/plot/")]
    assert [p["alt"] for p in pictures] == [hit.caption for hit in hits]
    assert [p["src"].partition("?")[0] for p in pictures] == [f"/thumb/{hit.id}" for hit in hits]
    assert re.findall(r"distance (\d+)<", shown.text) == [str(hit.distance) for hit in hits]
    assert f"query language: <b>{lang}</b>" in shown.text
    assert f'value="{q}"' in shown.text


def test_a_photo_is_answered_by_images_and_captions_and_shown(client, hasher, made):
    shown = client.post("/", **upload(photo(made, 3), k="5"), headers={"accept-language": "fr, en-GB;q=0.8, de"})
    seen = Seen(shown.text)
    assert [a["id"] for a in seen.all("h2")] == ["found-image", "found-text"]
    assert sum(p["src"].startswith("data:image/jpeg;base64,") for p in seen.all("img")) == 1
    captions = [hit.caption for hit in hasher.search(photo(made, 3), lang="en", k=5)]
    assert captions[0] in shown.text  # in the browser's first language that the run has
    assert seen.all("select", name="to")
    assert not seen.all("option", selected=None, value="both")  # what was not chosen does not stay


def test_results_can_be_searched_by(client, hasher):
    seen = Seen(client.get("/", params={"q": "dog 4", "lang": "en", "k": 3}).text)
    ident = hasher.search("dog 4", lang="en", k=1)[0].id
    by_photo = client.get(seen.all("a", title="search by this photo")[0]["href"])
    assert f"Photo of item {ident}" in by_photo.text
    assert [a["id"] for a in Seen(by_photo.text).all("h2")] == ["found-image", "found-text"]
    assert "relevant)" in by_photo.text  # the count
    by_words = client.get(seen.all("a", title="search by this caption")[0]["href"])
    assert f"Caption of item {ident}" in by_words.text
    assert [a["id"] for a in Seen(by_words.text).all("h2")] == ["found-image"]


def test_the_first_page_offers_query_items(client, hasher):
    shown = client.get("/").text
    queries = [item.id for item in hasher.dataset.items if "query" in item.splits]
    offered = re.findall(r'href="/\?id=(i\d+)&amp;by=image', shown)
    assert offered == queries  # there are eight


def test_ready_made_features_are_searched_by_items(tmp_path, worker):
    rng = np.random.default_rng(0)
    arrays = {"image": rng.standard_normal((60, 8)), "text": rng.standard_normal((60, 6))}
    labels = np.eye(3, dtype=np.int64)[rng.integers(0, 3, 60)]
    np.savez(tmp_path / "own.npz", labels=labels, **{name: x.astype(np.float32) for name, x in arrays.items()})
    extract(ExtractConfig(dataset="features", features=(tmp_path / "own.npz",), cache=tmp_path / "cache"))
    run, _ = train(TrainConfig(**QUICK), ExtractedDataset.open(tmp_path / "cache"), tmp_path / "runs")
    hasher = Hasher.load(run.folder, tmp_path / "cache")
    assert {"ready-made" in problem for problem in warm(hasher)} == {True}
    with TestClient(guarded(hasher, ServeConfig(), worker, worker), base_url=BASE) as client:
        first = client.get("/").text
        shown = client.get(Seen(first).all("a")[2]["href"])
        assert "relevant)" in shown.text
        assert "no photo" in shown.text
        assert client.get("/?q=dog").status_code == 400


def test_people_find_their_way_without_eyes_or_mouse(client):
    shown = client.get("/", params={"q": "dog 4", "lang": "en"}).text
    seen = Seen(shown)
    tags = {tag for tag, _ in seen.elements}
    assert {"header", "main", "search", "footer", "h1"} <= tags
    assert seen.all("html", lang="en")
    assert seen.all("a", **{"class": "skip", "href": "#results"})
    assert seen.all("main", id="results")
    assert seen.all("p", role="status", **{"aria-live": "polite"})
    assert all("alt" in picture for picture in seen.all("img"))
    named = {label["for"] for label in seen.all("label") if "for" in label}
    for tag in ("input", "select"):
        for field in seen.all(tag):
            inside = re.search(rf'<label>[^<]*<{tag}[^>]*name="{field["name"]}"', shown)
            assert field.get("type") == "hidden" or field.get("id") in named or inside, field
    style = client.get("/style.css").text
    assert "prefers-color-scheme: dark" in style
    assert ":focus-visible" in style


def test_nothing_is_loaded_from_elsewhere(client):
    for path in ("/", "/?q=dog&lang=en", "/style.css", "/drop.js", "/favicon.svg"):
        text = client.get(path).text.replace("http://www.w3.org/2000/svg", "")
        assert "//" not in re.sub(r"(?m)^// .*$", "", text).replace("://127.0.0.1", ""), path


def test_scores_are_shown_once_eval_was_run(make_cache, tmp_path):
    data = make_cache(tmp_path / "cache")
    for relevance, column in (("labels", "mAP"), ("pairs", "R@10")):
        run, _ = train(TrainConfig(**QUICK, relevance=relevance), data, tmp_path / "runs")
        hasher = Hasher.open(run, data)
        assert "No scores yet" in page(hasher, ServeConfig(), {}, Question())
        result = score(EvalConfig(relevance=relevance), [run], hasher.data)
        shown = page(hasher, ServeConfig(), {}, Question())
        assert f'<th scope="col" class=n>{column}</th>' in shown
        figure = result.rows[0]["map"] if relevance == "labels" else result.rows[0]["hit_at"]["10"]
        assert f"<td class=n>{figure:.3f}</td>" in shown
        for broken in (b"", b"[]", b'{"rows": [{}], "protocol": {}}', b"\xff"):
            (run.folder / METRICS).write_bytes(broken)
            assert "No scores yet" in page(hasher, ServeConfig(), {}, Question())


@pytest.mark.slow
def test_plots_are_drawn_once_asked_for_in_the_colours_of_the_page(client, hasher, monkeypatch):
    pytest.importorskip("matplotlib")
    shown = Seen(client.get("/").text)
    addresses = [img["src"] for img in shown.all("img") if img["src"].startswith("/plot/")]
    names = ["pr-de", "pr-en", "bits", "distances", "tsne-de", "tsne-en", "training"]
    assert addresses == [f"/plot/{name}.svg" for name in names]
    assert all(img["loading"] == "lazy" for img in shown.all("img") if img["src"] in addresses)
    drawn = {}
    for address in addresses:
        answer = client.get(address)
        assert (answer.status_code, answer.headers["content-type"]) == (200, "image/svg+xml")
        assert answer.headers.get_list("content-security-policy") == [SVG_POLICY]
        root = ElementTree.fromstring(answer.text)
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        assert "prefers-color-scheme: dark" in root[0].text
        assert "var(--plot-ink, #222222)" in answer.text or "var(--plot-muted, #595959)" in answer.text
        drawn[address] = answer.content
    assert len(set(drawn.values())) == len(drawn)
    monkeypatch.setattr("cmrhash.show.figures.KINDS", {})
    assert {address: client.get(address).content for address in addresses} == drawn


def test_a_plot_that_cannot_be_drawn_is_words(hasher, monkeypatch):
    pytest.importorskip("matplotlib")
    said, words = [], plots.words
    monkeypatch.setattr(plots, "words", lambda text: words(said.append(text) or text))
    assert b"<svg" in Pictures(hasher).svg("bits")
    assert said[0].startswith("not available: plot bits needs two code lengths")
    monkeypatch.setattr("cmrhash.show.tsne.FEWEST", 10**6)
    pictures = Pictures(hasher)
    assert all(b"<svg" in pictures.svg(f"tsne-{lang}") for lang in ("en", "de"))
    assert said[1:] == ["not available: plot tsne needs 1000000 query items with image and text, found 8"]


def test_an_unknown_plot_is_named(client):
    answer = client.get("/plot/nothing.svg")
    assert (answer.status_code, "pr-en" in answer.json()["error"]) == (404, True)


def test_the_run_and_its_protocol_are_named(hasher):
    assert about(hasher).startswith("manifest: triplet, 16 bits, seed 0, trained on de and en; all 40 items")
    assert about(hasher).endswith("UNTRAINED ENCODERS")


def test_the_whole_collection_is_served_where_it_is_asked_for(made, worker):
    hasher = Hasher.load(made / "runs/manifest/triplet-16", made / "cache", device="cpu", among="all")
    with TestClient(guarded(hasher, ServeConfig(among="all"), worker, worker), base_url=BASE) as client:
        assert "; all 40 items; " in client.get("/").text
        asked = {"id": "i5", "lang": "en", "k": 100}  # a query item
        found = client.get("/api/search", params=asked).json()["results"]
        assert len(found) == 40
        assert [r["id"] for r in found if r["itself"]] == ["i5"]


def test_machines_are_told_what_is_there(client, hasher):
    health = client.get("/healthz").json()
    assert (health["status"], health["items"]) == ("ok", 40)
    described = client.get("/openapi.json").json()
    assert set(described["paths"]) == {"/api/search", "/healthz", "/plot/{name}.svg", "/thumb/{ident}"}
    assert set(described["paths"]["/api/search"]) == {"get", "post"}
    for path in ("/docs", "/redoc"):  # these would be loaded from another host
        assert client.get(path).status_code == 404
    assert client.get("/favicon.ico").headers["content-type"] == "image/svg+xml"


def test_a_thumbnail_is_drawn_anew(client, made):
    jpeg = client.get("/thumb/i3")
    assert jpeg.headers["content-type"] == "image/jpeg"
    with Image.open(io.BytesIO(jpeg.content)) as small, Image.open(io.BytesIO(photo(made, 3))) as whole:
        assert (small.format, small.size) == ("JPEG", whole.size)
    assert jpeg.content != photo(made, 3)
    assert client.get("/thumb/nope").status_code == 404
