"""The page refuses what other sites, machines and clients should not send."""

import asyncio
import re

import pytest

pytest.importorskip("fastapi", reason='needs pip install "cmrhash[serve]"')

from fastapi.testclient import TestClient
from serving import BASE, photo, upload

from cmrhash.config import ServeConfig
from cmrhash.errors import UsageError
from cmrhash.search.hasher import Hasher
from cmrhash.show.server import server
from cmrhash.show.server.guard import HEADERS, LOOPBACK, Guard
from cmrhash.show.server.server import guarded, warm

FAULT = pytest.mark.faults("web page: host, origin, size, type, path, slow body")


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
    with pytest.raises(UsageError, match=f"can reach {host}: .*`i_know=True`"):
        server.serve(hasher, ServeConfig(host=host), print)


def test_an_encoder_that_is_gone_is_told_at_the_start(hasher, made, monkeypatch):
    assert warm(hasher) == []
    gone = Hasher.load(made / "runs/manifest/triplet-16", made / "cache", device="cpu", image_weights="gone.pth")
    assert [re.match(r"no such file.*gone\.pth|.*gone\.pth", problem) is not None for problem in warm(gone)] == [True]
