"""Odd photos, paths, parameters and too many requests end in an error in one line; markup in data stays text."""

import io
import threading

import pytest

pytest.importorskip("fastapi", reason='needs pip install "cmrhash[serve]"')

from PIL import Image
from serving import QUICK, Seen, form, upload

from cmrhash.config import TrainConfig
from cmrhash.data.items import Item
from cmrhash.search.hasher import Hasher
from cmrhash.show.answers import Question, ask
from cmrhash.show.html.results import sheet
from cmrhash.show.server.worker import Busy, Worker
from cmrhash.training.train import train

FAULT = pytest.mark.faults("web page: host, origin, size, type, path, slow body")


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


SCRIPTS = [{"src": f"/{name}.js", "defer": None} for name in ("search", "more", "lightbox")]


@FAULT
def test_captions_and_ids_are_text_wherever_they_stand(nasty, serve, faults):
    ident = nasty.dataset.items[3].id
    wild = dict.fromkeys(("q", "id", "photo", "to", "lang", "by", "label", "unlike", "k", "skip", "run"), NASTY)
    with serve(nasty) as client:
        first = Seen(client.get("/").text)
        odd = [a["href"] for a in first.all("a") if "id=" in a["href"]]
        found = client.get("/", params={"id": ident, "to": "both", "label": nasty.dataset.classes[0]}).text
        opened = [a["href"] for a in Seen(client.get(odd[0]).text).all("a", **{"class": "open"})]
        for address in (odd[0], opened[0], first.all("img", alt=NASTY)[0]["src"]):
            assert client.get(address).status_code == 200  # an id of odd characters survives the way through it
        pages = [found, client.get(opened[0]).text, client.get("/", params=wild).text]
        pages += [client.get("/", params={name: NASTY}).text for name in wild]
        pages += [client.get("/", params={"q": "x", "lang": "en", name: NASTY}).text for name in wild if name != "q"]
        pages += [client.get(f"/{NASTY}", headers={"accept": "text/html"}).text, client.get("/scores").text]
    for document, scripts in [(page, SCRIPTS) for page in pages] + [
        (sheet(nasty, ask(nasty, Question(ident=ident))), [])
    ]:
        faults.tried += 1
        seen = Seen(document)
        assert seen.all("script") == scripts
        assert not any(name.startswith("on") or name == "style" for _, attrs in seen.elements for name in attrs)
        assert not seen.all("img", src="x")
        faults.survived += 1


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
    shown = client.post("/", **form(content))
    assert shown.status_code == 400
    assert "This file cannot be read as a photo" in shown.text
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
        "/photo/../../etc/passwd",
        "/photo/%2e%2e%2f%2e%2e%2fetc%2fpasswd",
        "/photo//etc/passwd",
        "/photo/images/3.jpg",
        "/item/../../etc/passwd",
        "/item/images/3.jpg",
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
    if {"q", "id"} <= params.keys():  # the page searches by both
        assert shown.status_code == 200
    elif params and params.get("q") != " ":  # an empty form is the first page
        assert shown.status_code in (400, 404)
        assert 'role="alert"' in shown.text


@pytest.mark.parametrize("name", ["run", "where", "langg", "photo"])
def test_an_unknown_parameter_is_refused(client, name):
    answer = client.get("/api/search", params={"id": "i3", name: "x"})
    assert (answer.status_code, f"no parameter '{name}' of the query" in answer.json()["error"]) == (400, True)
    content = upload(saved("PNG"))
    assert client.post("/api/search", **content).status_code == 200
    assert client.post("/api/search", params={name: "x"}, **content).status_code == 400
    if name != "photo":
        answer = client.post("/api/search", **{**content, "data": {name: "x"}})
        assert (answer.status_code, f"no parameter '{name}' of the form" in answer.json()["error"]) == (400, True)


def test_a_parameter_at_the_wrong_place_is_named_once(client):
    answer = client.post("/api/search", params={"k": "3"}, **upload(saved("PNG")))
    wanted = "no parameter 'k' of the query: give photo, lang, to, k in the form"
    assert (answer.status_code, answer.json()["error"]) == (400, wanted)


@FAULT
@pytest.mark.parametrize("content", [{"data": {"k": "3"}}, {"content": b"rubbish"}, {"json": {"photo": "http://x"}}])
def test_a_form_without_a_photo_is_refused(client, content):
    assert client.post("/api/search", **content).status_code == 422
    assert client.post("/", **content).status_code in (400, 422)


@FAULT
def test_who_comes_to_a_full_queue_is_sent_away(hasher, serve, faults):
    going = threading.Event()
    client = serve(hasher, queue=8)
    waiting = [client.state.encoding.submit(going.wait) for _ in range(9)]  # one at work, eight in the queue
    for path in ("/api/search?q=dog&lang=en", "/?q=dog&lang=en"):
        faults.tried += 1
        answer = client.get(path)
        assert (answer.status_code, "in a moment" in answer.text) == (429, True)
        faults.survived += 1
    assert client.get("/api/search?q=dog&lang=en").headers["retry-after"] == "1"
    assert client.get("/healthz").status_code == 200
    assert client.get("/?id=i3").status_code == 200  # which needs no encoder
    going.set()
    assert all(future.result() for future in waiting)
    assert client.get("/api/search?q=dog&lang=en").status_code == 200


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
