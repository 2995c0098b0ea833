"""The page, its API and the sheet: what is shown is what the Hasher finds, and nothing gets in that should not."""

import asyncio
import html
import io
import json
import re
import sys
import threading
from dataclasses import replace
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest

pytest.importorskip("fastapi", reason='needs pip install "cmrhash[serve]"')

import numpy as np
from fastapi.testclient import TestClient
from PIL import Image

from cmrhash.config import EvalConfig, ExtractConfig, ServeConfig, TrainConfig
from cmrhash.data.items import ImageTextDataset, Item
from cmrhash.errors import UsageError
from cmrhash.evaluation.evaluate import score
from cmrhash.features.dataset import ExtractedDataset
from cmrhash.features.extract import extract
from cmrhash.search.hasher import Hasher
from cmrhash.show import plots
from cmrhash.show.server import server
from cmrhash.show.server.answers import Question, ask
from cmrhash.show.server.app import DRAWN
from cmrhash.show.server.guard import HEADERS, LOOPBACK, Guard
from cmrhash.show.server.html import about, sheet
from cmrhash.show.server.page import page
from cmrhash.show.server.pictures import Pictures
from cmrhash.show.server.server import guarded, warm
from cmrhash.show.server.thumbs import SIDE, Thumbnails
from cmrhash.show.server.worker import Busy, Worker
from cmrhash.training.runs import METRICS
from cmrhash.training.train import train
from cmrhash_cli.main import main

BASE = "http://127.0.0.1:8000"
FAULT = pytest.mark.faults("web page: host, origin, size, type, path, slow body")
QUICK = {"epochs": 1, "batch": 16, "hidden": 8, "bits": 16, "device": "cpu"}
MODELS = {"image_model": "mobilenet_v3_small", "image_weights": "random", "text_models": ("bow",)}


@pytest.fixture(scope="module")
def made(make_manifest, tmp_path_factory):
    """A folder with photos, cache and one trained run."""
    base = tmp_path_factory.mktemp("serve")
    root = make_manifest(base / "mine", 40)
    extract(ExtractConfig(dataset="manifest", root=root, cache=base / "cache", device="cpu", **MODELS))
    train(TrainConfig(**QUICK), ExtractedDataset.open(base / "cache"), base / "runs")
    return base


@pytest.fixture(scope="module")
def hasher(made):
    return Hasher.load(made / "runs/manifest/triplet-16", made / "cache", device="cpu")


@pytest.fixture
def worker():
    worker = Worker(ServeConfig.queue)
    yield worker
    worker.close()


@pytest.fixture
def client(hasher, worker):
    with TestClient(guarded(hasher, ServeConfig(), worker, worker), base_url=BASE) as client:
        yield client


def photo(made, n):
    return (made / f"mine/images/{n}.jpg").read_bytes()


def upload(content, name="photo.jpg", **fields):
    return {"files": {"photo": (name, content, "image/jpeg")}, "data": fields}


def as_json(hits):
    return [{**hit.as_json(), "labels": list(hit.labels)} for hit in hits]


def without(results):
    return [{key: value for key, value in result.items() if key not in ("relevant", "itself")} for result in results]


class Seen(HTMLParser):
    """Elements of a document in their order: (tag, attributes)."""

    def __init__(self, text):
        super().__init__()
        self.elements = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def all(self, tag, **wanted):
        return [attrs for t, attrs in self.elements if t == tag and wanted.items() <= attrs.items()]


# ---------------------------------------------------------------------------------------------- what is shown


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
    assert all(judged.relevant == (judged.hit.id == "i6") for judged in hits)
    shown = page(hasher, ServeConfig(), {}, answer.question, answer)
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
    assert re.findall(r">distance (\d+)<", shown.text) == [str(hit.distance) for hit in hits]
    assert f"asked in <b>{lang}</b>" in shown.text
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
    assert f"photo of item {ident}" in by_photo.text
    assert [a["id"] for a in Seen(by_photo.text).all("h2")] == ["found-image", "found-text"]
    assert "relevant)" in by_photo.text  # the count
    by_words = client.get(seen.all("a", title="search by this caption")[0]["href"])
    assert f"caption of item {ident}" in by_words.text
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
        assert "Not scored yet" in page(hasher, ServeConfig(), {}, Question())
        result = score(EvalConfig(relevance=relevance), [run], hasher.data)
        shown = page(hasher, ServeConfig(), {}, Question())
        assert f'<th scope="col">{column}</th>' in shown
        figure = result.rows[0]["map"] if relevance == "labels" else result.rows[0]["hit_at"]["10"]
        assert f"<td>{figure:.3f}</td>" in shown
        for broken in (b"", b"[]", b'{"rows": [{}], "protocol": {}}', b"\xff"):
            (run.folder / METRICS).write_bytes(broken)
            assert "Not scored yet" in page(hasher, ServeConfig(), {}, Question())


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
        assert answer.headers.get_list("content-security-policy") == [DRAWN]
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
    assert "two code lengths" in said[0]
    monkeypatch.setattr("cmrhash.show.tsne.FEWEST", 10**6)
    pictures = Pictures(hasher)
    assert all(b"<svg" in pictures.svg(f"tsne-{lang}") for lang in ("en", "de"))
    assert [words.partition(", ")[2][:2] for words in said[1:]] == ["de", "en"]


def test_an_unknown_plot_is_named(client):
    answer = client.get("/plot/nothing.svg")
    assert (answer.status_code, "pr-en" in answer.json()["error"]) == (404, True)


def test_the_run_and_its_protocol_are_named(hasher):
    assert about(hasher).startswith("manifest: triplet, 16 bits, seed 0, trained on de and en; 32 database items")
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


# ---------------------------------------------------------------------------------------------- thumbnails


def test_a_thumbnail_is_drawn_anew(client, made):
    jpeg = client.get("/thumb/i3")
    assert jpeg.headers["content-type"] == "image/jpeg"
    with Image.open(io.BytesIO(jpeg.content)) as small, Image.open(io.BytesIO(photo(made, 3))) as whole:
        assert (small.format, small.size) == ("JPEG", whole.size)
    assert jpeg.content != photo(made, 3)
    assert client.get("/thumb/nope").status_code == 404


def test_thumbnails_are_small_carry_nothing_along_and_are_kept_up_to_a_bound(tmp_path):
    exif = Image.Exif()
    exif[0x010E] = "where I live"
    for n in range(4):
        noise = np.random.default_rng(n).integers(0, 255, (500, 900, 3), np.uint8)
        Image.fromarray(noise).save(tmp_path / f"{n}.jpg", exif=exif)
    items = [Item(str(n), f"{n}.jpg", {}, ()) for n in range(4)]
    items += [Item("none", None, {}, ()), Item("gone", "gone.jpg", {}, ()), Item("out", "../out.jpg", {}, ())]
    one = Thumbnails(ImageTextDataset("x", tmp_path, tuple(items), ()), 10**9).of(items[0])
    thumbs = Thumbnails(ImageTextDataset("x", tmp_path, tuple(items), ()), int(2.5 * len(one)))
    for item in items[:4]:
        jpeg = thumbs.of(item)
        assert max(Image.open(io.BytesIO(jpeg)).size) == SIDE
        assert b"where I live" not in jpeg
        assert thumbs.bytes <= thumbs.limit
    (tmp_path / "3.jpg").unlink()
    assert thumbs.of(items[3])  # kept
    (tmp_path / "0.jpg").unlink()
    assert thumbs.of(items[0]) is None  # let go of
    assert [thumbs.of(item) for item in items[4:]] == [None] * 3


# ---------------------------------------------------------------------------------------------- hostile data

NASTY = """<script>alert(1)</script>'"><img src=x onerror=alert(1)> &amp; <!--"""


@pytest.fixture
def nasty(make_cache, tmp_path):
    """A run on data whose captions, ids and classes are markup."""

    def change(item):
        return Item(f'{item.id}/"><b>?#', item.image, {"en": (NASTY, NASTY), "de": (NASTY,)}, item.labels, item.splits)

    data = make_cache(tmp_path / "cache", change=change)
    for item in data.dataset.items[:20]:
        Image.new("RGB", (20, 20)).save(data.dataset.root / item.image)
    run, _ = train(TrainConfig(**QUICK), data, tmp_path / "runs")
    return Hasher.open(run, data)


@FAULT
def test_captions_and_ids_are_text_wherever_they_stand(nasty, worker, faults):
    question = Question(ident=nasty.dataset.items[3].id, to="both", k=10)
    answer = ask(nasty, question, apart=True)
    typed = Question(text=NASTY, lang=NASTY, to=NASTY, by=NASTY)
    with TestClient(guarded(nasty, ServeConfig(), worker, worker), base_url=BASE) as client:
        asked = client.get("/", params={"id": NASTY, "to": NASTY, "lang": NASTY}).text
        first = Seen(client.get("/").text)
        for address in (first.all("a")[2]["href"], first.all("img")[0]["src"]):
            assert client.get(address).status_code == 200  # an id of odd characters survives the way through it
    for document, scripts in (
        (page(nasty, ServeConfig(), {f"pr-{NASTY}": NASTY}, question, answer), [{"src": "/drop.js", "defer": None}]),
        (page(nasty, ServeConfig(), {}, typed, problem=NASTY), [{"src": "/drop.js", "defer": None}]),
        (asked, [{"src": "/drop.js", "defer": None}]),
        (sheet(nasty, answer, lambda item: None), []),
    ):
        faults.tried += 1
        seen = Seen(document)
        assert seen.all("script") == scripts
        assert not any(name.startswith("on") or name == "style" for _, attrs in seen.elements for name in attrs)
        assert not seen.all("img", src="x")
        faults.survived += 1


# ---------------------------------------------------------------------------------------------- the guard


@FAULT
@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "evil.example:8000", "", "[::1", "0.0.0.0"])
def test_another_host_name_is_refused(client, host):
    assert client.get("/", headers={"host": host}).status_code == 421
    assert client.get("/healthz").status_code == 200


@pytest.mark.parametrize("host", ["127.0.0.1:8000", "localhost", "LOCALHOST:9", "[::1]:8000"])
def test_names_of_this_machine_are_served(client, host):
    assert client.get("/healthz", headers={"host": host}).status_code == 200


@FAULT
@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "null"},
        {"origin": "http://evil.example"},
        {"origin": "http://127.0.0.1:9"},
        {"origin": "http://127.0.0.1:8000.evil.example"},
        {"origin": ""},
        {"referer": "http://evil.example/127.0.0.1:8000"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},  # another port of this machine
    ],
)
def test_a_form_from_elsewhere_is_refused(client, made, headers):
    for path in ("/", "/api/search"):
        assert client.post(path, **upload(photo(made, 3)), headers=headers).status_code == 403
    own = {"origin": BASE, "referer": f"{BASE}/", "sec-fetch-site": "same-origin"}
    assert client.post("/", **upload(photo(made, 3)), headers=own).status_code == 200


@FAULT
@pytest.mark.parametrize("dest", ["image", "iframe", "script", "empty"])
def test_other_sites_lead_here_by_links_and_by_nothing_else(client, dest):
    for site in ("cross-site", "same-site"):
        from_there = {"sec-fetch-site": site, "sec-fetch-dest": dest}
        assert client.get("/?q=dog&lang=en", headers=from_there).status_code == 403
        assert client.get("/", headers=from_there | {"sec-fetch-dest": "document"}).status_code == 200


@FAULT
@pytest.mark.parametrize("method", ["OPTIONS", "PUT", "DELETE", "TRACE"])
def test_no_other_method_and_no_leave_for_other_origins(client, method):
    wish = {"origin": "http://evil.example", "access-control-request-method": "POST"}
    answer = client.request(method, "/api/search", headers=wish)
    assert answer.status_code == 405
    assert "access-control-allow-origin" not in answer.headers
    assert speak(Guard(never, LOOPBACK, None), [], method=method) == 405  # a body of these is not even read


def test_every_answer_tells_the_browser_what_it_may_do(client):
    answers = [client.get(path) for path in ("/", "/style.css", "/thumb/i3", "/thumb/nope", "/api/search", "/healthz")]
    answers.append(client.get("/", headers={"host": "evil.example"}))
    for answer in answers:
        assert HEADERS.items() <= dict(answer.headers).items(), answer.url
        assert not [name for name in answer.headers if name.startswith("access-control")]
    policy = HEADERS["content-security-policy"]
    assert "default-src 'self'; img-src 'self' data:;" in policy
    assert "unsafe" not in policy


def speak(app, messages, headers=(), method="POST", path="/api/search"):
    """One request by ASGI itself. messages: the body, an endless wait when they are used up. Returns the status."""
    sent, left = [], list(messages)

    async def receive():
        if not left:
            await asyncio.Event().wait()
        return left.pop(0)

    async def send(message):
        sent.append(message)

    named = [(b"host", b"localhost"), *headers]
    scope = {"type": "http", "method": method, "path": path, "raw_path": path.encode(), "query_string": b""}
    asyncio.run(app({**scope, "headers": named}, receive, send))
    return sent[0]["status"]


async def never(scope, receive, send):
    raise AssertionError("the page was reached")


def part(body, more=True):
    return {"type": "http.request", "body": body, "more_body": more}


@FAULT
@pytest.mark.parametrize(
    ("status", "headers", "messages"),
    [
        (413, [(b"content-length", b"1001")], []),  # refused before a byte of it is asked for
        (413, [], [part(b"x" * 600), part(b"x" * 600)]),  # of a body that never said how long it is
        (413, [(b"content-length", b"5")], [part(b"x" * 2000)]),
        (400, [(b"content-length", b"-1")], []),
        (408, [(b"content-length", b"9")], [part(b"x")]),  # and then nothing
        (408, [], []),
        (400, [], [part(b"x"), {"type": "http.disconnect"}]),
        (421, [(b"host", b"localhost")], []),  # two of them
    ],
)
def test_a_body_too_large_or_too_slow_is_refused(status, headers, messages):
    guard = Guard(never, LOOPBACK, None, max_body=1000, slow=0.05)
    assert speak(guard, messages, headers) == status


def test_a_body_within_the_bounds_arrives_whole():
    async def page(scope, receive, send):
        message = await receive()
        assert message == {"type": "http.request", "body": b"abcd", "more_body": False}
        await send({"type": "http.response.start", "status": 200})

    guard = Guard(page, LOOPBACK, None, max_body=4, slow=5)
    assert speak(guard, [part(b"ab"), part(b"cd", more=False)], [(b"content-length", b"4")]) == 200


def png_header(width, height):
    """A PNG of which nothing is there but its size."""
    import struct
    import zlib

    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))


def saved(kind):
    out = io.BytesIO()
    Image.new("RGB", (30, 30)).save(out, kind)
    return out.getvalue()


@FAULT
@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no photo",
        b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>',
        b"GIF89a<script>alert(1)</script>",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        png_header(100_000, 100_000),
        saved("JPEG")[:200],
        saved("ICO"),  # a format that is not on the list
    ],
    ids=["empty", "text", "svg", "half a gif", "eps", "bomb", "cut", "ico"],
)
def test_what_is_no_photo_is_refused(client, content):
    answer = client.post("/api/search", **upload(content))
    assert answer.status_code == 400
    assert answer.json()["error"].startswith("not a readable photo")
    shown = client.post("/", **upload(content))
    assert shown.status_code == 400
    assert 'role="alert">not a readable photo' in shown.text
    assert client.get("/healthz").status_code == 200


@FAULT
@pytest.mark.parametrize(
    "path",
    [
        "/thumb/../../etc/passwd",
        "/thumb/%2e%2e%2f%2e%2e%2fetc%2fpasswd",
        "/thumb//etc/passwd",
        "/thumb/images/3.jpg",
        "/thumb/i3%00.jpg",
        "/thumb/http://evil.example/x.jpg",
        "/app.py",
        "/../pyproject.toml",
    ],
)
def test_an_id_is_no_path(client, path):
    assert client.get(path).status_code == 404


@FAULT
@pytest.mark.parametrize(
    ("status", "params"),
    [
        (400, {}),
        (400, {"q": "dog", "id": "i3"}),
        (400, {"q": " ", "lang": "en"}),
        (400, {"q": "dog", "lang": "fr"}),
        (400, {"q": "xyzzy"}),  # of which language?
        (400, {"q": "dog " * 2000, "lang": "en"}),
        (404, {"id": "nope"}),
        (400, {"id": "i3", "k": 0}),
        (400, {"id": "i3", "k": 10**6}),
        (422, {"id": "i3", "k": "many"}),
        (422, {"id": "i3", "to": "sound"}),
        (422, {"id": "i3", "by": "smell"}),
    ],
)
def test_what_cannot_be_asked_is_told_in_a_line(client, status, params):
    answer = client.get("/api/search", params=params)
    assert answer.status_code == status
    assert "\n" not in answer.json()["error"]
    shown = client.get("/", params=params)
    if params and params.get("q") != " ":  # an empty form is the first page
        assert shown.status_code in (400, 404)
        assert html.escape("no item 'nope'") in shown.text or 'role="alert"' in shown.text


@FAULT
@pytest.mark.parametrize("content", [{"data": {"k": "3"}}, {"content": b"rubbish"}, {"json": {"photo": "http://x"}}])
def test_a_form_without_a_photo_is_refused(client, content):
    assert client.post("/api/search", **content).status_code == 422
    assert client.post("/", **content).status_code == 422


@FAULT
def test_who_comes_to_a_full_queue_is_sent_away(hasher, faults):
    going, worker = threading.Event(), Worker(queue=8)
    with TestClient(guarded(hasher, ServeConfig(), worker, worker), base_url=BASE) as client:
        waiting = [worker.submit(going.wait) for _ in range(9)]  # one at work, eight in the queue
        for path in ("/api/search?q=dog&lang=en", "/?q=dog&lang=en"):
            faults.tried += 1
            answer = client.get(path)
            assert (answer.status_code, "ask again in a moment" in answer.text) == (429, True)
            faults.survived += 1
        assert client.get("/api/search?q=dog&lang=en").headers["retry-after"] == "1"
        assert client.get("/healthz").status_code == 200
        going.set()
        assert all(future.result() for future in waiting)
        assert client.get("/api/search?q=dog&lang=en").status_code == 200
    worker.close()


def test_a_worker_takes_one_at_a_time_and_frees_the_place_of_who_failed():
    worker, threads = Worker(queue=0), set()
    for _ in range(3):
        worker.submit(lambda: threads.add(threading.current_thread())).result()
        with pytest.raises(ZeroDivisionError):
            worker.submit(lambda: 1 / 0).result()
    assert len(threads) == 1
    going = threading.Event()
    first = worker.submit(going.wait)
    with pytest.raises(Busy):
        worker.submit(print)
    going.set()
    first.result()
    worker.close()


# ---------------------------------------------------------------------------------------------- beyond this machine


@FAULT
def test_where_others_can_reach_it_every_request_needs_the_token(hasher, worker, made, faults):
    app = guarded(hasher, ServeConfig(), worker, worker, token="secret")
    with TestClient(app, base_url="http://photos.example:8000", follow_redirects=False) as client:
        for call in (
            lambda: client.get("/"),
            lambda: client.get("/healthz"),
            lambda: client.get("/thumb/i3?token=wrong"),
            lambda: client.get("/", headers={"authorization": "Bearer wrong", "cookie": "cmrhash-token=wrong"}),
            lambda: client.post("/?token=secret", **upload(photo(made, 3))),
        ):
            faults.tried += 1
            assert call().status_code == 401
            faults.survived += 1
        assert client.get("/healthz", headers={"authorization": "Bearer secret"}).status_code == 200
        first = client.get("http://photos.example:8000//evil.example/?q=dog&token=secret")
        assert (first.status_code, first.headers["location"]) == (303, "/evil.example/?q=dog")
        assert "HttpOnly; SameSite=Strict" in first.headers["set-cookie"]
        assert client.get("/healthz").status_code == 200  # by the cookie
        assert client.post("/", **upload(photo(made, 3)), headers={"origin": "null"}).status_code == 403


@FAULT
@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.0.7", "photos.example"])
def test_another_address_than_this_machine_s_must_be_meant(hasher, host):
    with pytest.raises(UsageError, match=f"could reach --host {host}: .*--i-know"):
        server.serve(hasher, ServeConfig(host=host), print)


def test_an_encoder_that_is_gone_is_told_at_the_start(hasher, made, monkeypatch):
    assert warm(hasher) == []
    gone = Hasher.load(made / "runs/manifest/triplet-16", made / "cache", device="cpu", image_weights="gone.pth")
    assert [re.match(r"no such file.*gone\.pth|.*gone\.pth", problem) is not None for problem in warm(gone)] == [True]


# ---------------------------------------------------------------------------------------------- the commands


@pytest.fixture
def command(made, monkeypatch, capsys):
    """A function that runs a command there: (exit code, stdout, stderr)."""
    monkeypatch.chdir(made)

    def call(*args):
        monkeypatch.setattr(sys, "argv", ["cmrhash", *map(str, args), "--device", "cpu"])
        code = 0
        try:
            main()
        except SystemExit as end:
            code = end.code or 0
        out = capsys.readouterr()
        return code, out.out, out.err

    return call


def test_serve_says_how_many_items_it_searches(command, make_cache, tmp_path, monkeypatch):
    served = []
    monkeypatch.setattr(server, "serve", lambda hasher, config, tell: served.append((hasher.among, config.among)))
    few = ("serve", "--cache", tmp_path / "cache", "--runs", tmp_path / "runs")

    def change(item):
        return replace(item, splits=item.splits - {"database"}) if int(item.id[1:]) % 3 else item

    train(TrainConfig(**QUICK), make_cache(tmp_path / "cache", change=change), tmp_path / "runs")
    run = f"run: {tmp_path / 'runs/toy/triplet-16'}"
    hint = "20 database items of 120: --among all searches all of them\n"
    assert command("serve")[2] == "run: runs/manifest/triplet-16, 32 database items; Ctrl-C ends it\n"
    assert command(*few)[2] == f"{run}, 20 database items; Ctrl-C ends it\n{hint}"
    assert command(*few, "--among", "all")[2] == f"{run}, all 120 items; Ctrl-C ends it\n"
    assert command(*few, "--quiet")[2] == ""
    assert served == [("database", "database")] * 2 + [("all", "all")] + [("database", "database")]


@pytest.mark.parametrize("missing", ["fastapi", "uvicorn", "python_multipart"])
def test_a_missing_package_is_named_with_its_cure(command, monkeypatch, missing):
    for name in [name for name in sys.modules if name.startswith("cmrhash.show.server.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, missing, None)
    code, out, err = command("serve")
    assert (code, out) == (2, "")
    assert err == f'error: cmrhash serve needs {missing}, which is not installed: pip install "cmrhash[serve]"\n'


@pytest.mark.parametrize(
    ("words", "args"),
    [
        ("others on the network could reach --host 0.0.0.0: .*add --i-know", ["--host", "0.0.0.0"]),
        ("--port 70000: give a number from 0", ["--port", "70000"]),
        ("no such trained run with 99 bits", ["--bits", "99"]),
        (r"cannot listen \(.*\): 192.0.2.1 port 1: give another", ["--host", "192.0.2.1", "--i-know", "--port", "1"]),
    ],
)
def test_serve_refuses_in_one_line(command, words, args):
    code, out, err = command("serve", *args, "--quiet")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert re.search(words, err), err


def test_search_writes_a_sheet_that_needs_no_other_file(command, hasher, tmp_path, made):
    path = tmp_path / "found.html"
    for args, title in (
        (["Katze 5"], "“Katze 5”"),
        (["--id", "i3"], "photo of item i3"),
        (["mine/images/3.jpg"], "your"),
    ):
        code, out, err = command("search", *args, "--k", 4, "--to", "image", "--json", "--html", path)
        assert code == 0
        assert f"wrote {path}" in err
        found = json.loads(out)["results"]
        document = path.read_text(encoding="utf-8")
        seen = Seen(document)
        pictures = [p for p in seen.all("img") if p["alt"] in {hit["caption"] for hit in found}][-4:]
        assert [p["alt"] for p in pictures] == [hit["caption"] for hit in found]
        assert {p["src"].partition(",")[0] for p in seen.all("img")} == {"data:image/jpeg;base64"}
        assert f"<title>{title}" in document
        assert about(hasher) in document
        assert not seen.all("script") + seen.all("link") + seen.all("a")
        assert "prefers-color-scheme: dark" in document
