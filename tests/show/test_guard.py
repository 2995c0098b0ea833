"""The page refuses what other sites, machines and clients should not send."""

import asyncio
import re
import shutil
import socket

import pytest

pytest.importorskip("fastapi", reason='needs pip install "cmrhash[serve]"')

from serving import BASE, Seen, form, photo, upload

from cmrhash.config import ServeConfig
from cmrhash.errors import UsageError
from cmrhash.search.hasher import Hasher
from cmrhash.show.server import server
from cmrhash.show.server.guard import HEADERS, LOOPBACK, Bounds, Guard
from cmrhash.show.server.public import public_url
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
    for path, sent in (("/", form), ("/api/search", upload)):
        assert client.post(path, **sent(photo(made, 3)), headers=headers).status_code == 403
    own = {"origin": BASE, "referer": f"{BASE}/", "sec-fetch-site": "same-origin"}
    assert client.post("/", **form(photo(made, 3)), headers=own).status_code == 303


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
    assert speak(guarded(client.state, None), [], method=method) == 405  # a body of these is not even read


def test_every_answer_tells_the_browser_what_it_may_do(client):
    answers = [client.get(path) for path in ("/", "/style.css", "/thumb/i3", "/thumb/nope", "/item/i3", "/healthz")]
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
    guard = Guard(never, LOOPBACK, None, Bounds(max_body=1000, slow=0.05))
    assert speak(guard, messages, headers) == status


def test_a_body_within_the_bounds_arrives_whole():
    async def page(scope, receive, send):
        message = await receive()
        assert message == {"type": "http.request", "body": b"abcd", "more_body": False}
        await send({"type": "http.response.start", "status": 200})

    guard = Guard(page, LOOPBACK, None, Bounds(max_body=4, slow=5))
    assert speak(guard, [part(b"ab"), part(b"cd", more=False)], [(b"content-length", b"4")]) == 200


@FAULT
def test_where_others_can_reach_it_every_request_needs_the_token(hasher, serve, made, faults):
    with serve(hasher, token="secret", base="http://photos.example:8000") as client:
        for call in (
            lambda: client.get("/"),
            lambda: client.get("/healthz"),
            lambda: client.get("/thumb/i3?token=wrong"),
            lambda: client.get("/", headers={"authorization": "Bearer wrong", "cookie": "cmrhash-token=wrong"}),
            lambda: client.get("/photo/i3"),
            lambda: client.post("/?token=secret", **form(photo(made, 3))),
        ):
            faults.tried += 1
            assert call().status_code == 401
            faults.survived += 1
        assert client.get("/healthz", headers={"authorization": "Bearer secret"}).status_code == 200
        first = client.get("http://photos.example:8000//evil.example/?q=dog&token=secret")
        assert (first.status_code, first.headers["location"]) == (303, "/evil.example/?q=dog")
        assert "HttpOnly; SameSite=Strict" in first.headers["set-cookie"]
        assert client.get("/healthz").status_code == 200  # by the cookie
        assert client.post("/", **form(photo(made, 3)), headers={"origin": "null"}).status_code == 403


@FAULT
@pytest.mark.parametrize(
    "path", ["/%5Cevil.example/", "//evil.example/", "/\\evil.example/", "\\/evil.example/", "/\t/evil.example/"]
)
def test_the_token_s_redirect_stays_on_this_host(hasher, serve, path):
    guard = serve(hasher, token="secret").app
    sent = []

    async def send(message):
        sent.append(message)

    async def receive():
        return part(b"", more=False)

    scope = {"type": "http", "method": "GET", "path": path, "raw_path": path.encode(), "query_string": b"token=secret"}
    asyncio.run(guard({**scope, "headers": [(b"host", b"photos.example")]}, receive, send))
    target = dict(sent[0]["headers"])[b"location"].decode()
    assert sent[0]["status"] == 303
    assert re.fullmatch(r"/(%09/|%5C)?evil\.example/", target)


@pytest.mark.parametrize("host", ["127.0.0.2", "127.1.2.3"])
def test_another_address_of_this_machine_accepts_its_own_name(hasher, serve, host):
    with serve(hasher, host=host) as client:
        assert client.get("/healthz", headers={"host": f"{host}:8000"}).status_code == 200
        assert client.get("/healthz", headers={"host": "127.0.0.9:8000"}).status_code == 421


def test_the_printed_addresses_can_be_opened():
    assert server._names("127.0.0.2") == ["127.0.0.2"]
    assert server._names("photos.example") == ["photos.example"]
    assert server._names("0.0.0.0")[0] == "127.0.0.1"
    assert server._names("::")[0] == "::1"


def test_of_all_addresses_the_one_that_others_use_is_printed_too(monkeypatch):
    monkeypatch.setattr(socket.socket, "connect", lambda self, address: None)
    monkeypatch.setattr(socket.socket, "getsockname", lambda self: ("192.168.0.7", 1))
    assert server._names("0.0.0.0") == ["127.0.0.1", "192.168.0.7"]


@FAULT
@pytest.mark.parametrize("gone", ["runs/manifest/triplet-16", "cache", "mine"])
def test_files_that_go_away_end_in_answers_in_one_line(made, serve, tmp_path, faults, gone):
    shutil.copytree(made, tmp_path / "all")
    hasher = Hasher.load(tmp_path / "all/runs/manifest/triplet-16", tmp_path / "all/cache", device="cpu")
    with serve(hasher) as client:
        shutil.rmtree(tmp_path / "all" / gone)
        plots = [f"/plot/{name}.svg" for name in ("distances", "bits")]
        for path in (
            "/",
            "/?id=i3",
            "/api/search?q=dog&lang=en",
            "/healthz",
            "/scores",
            "/item/i3",
            "/photo/i3",
            *plots,
        ):
            faults.tried += 1
            answer = client.get(path)  # an error that no handler knows would be raised here
            assert answer.status_code in (200, 404, 500)
            if answer.status_code == 500 and "json" in answer.headers["content-type"]:
                error = answer.json()["error"]
                assert "\n" not in error
                assert str(tmp_path) not in error
            faults.survived += 1


def test_an_error_that_nobody_foresaw_is_answered_and_logged(hasher, serve, monkeypatch):
    client = serve(hasher)
    monkeypatch.setattr(client.state.collection, "get", lambda name: 1 / 0)
    with pytest.raises(ZeroDivisionError):  # for the log of the server, after the answer
        client.get("/healthz")
    client = type(client)(client.app, base_url=BASE, raise_server_exceptions=False)
    assert client.get("/healthz").json() == {"error": "unforeseen error: see the log of the server"}


@FAULT
@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.0.7", "photos.example"])
def test_another_address_than_this_machine_s_must_be_meant(hasher, host):
    with pytest.raises(UsageError, match=f"can reach {host}: .*`i_know=True`"):
        server.serve(hasher, ServeConfig(host=host), print)


def test_an_encoder_that_is_gone_is_told_at_the_start(hasher, made, monkeypatch):
    assert warm(hasher) == []
    gone = Hasher.load(made / "runs/manifest/triplet-16", made / "cache", device="cpu", image_weights="gone.pth")
    assert [re.match(r"no such file.*gone\.pth|.*gone\.pth", problem) is not None for problem in warm(gone)] == [True]


PUBLIC = "https://example.org/photos"


@pytest.mark.parametrize("kept", ["", "/photos"], ids=["prefix taken off by the proxy", "prefix kept"])
@pytest.mark.parametrize("host", ["example.org", "127.0.0.1:8000"])
def test_behind_a_proxy_every_address_has_its_prefix(hasher, serve, made, host, kept):
    seen, headers = [], {"host": host, "accept": "text/html"}
    with serve(hasher, public_url=f"{PUBLIC}/") as client:
        own = headers | {"origin": "https://example.org", "sec-fetch-site": "same-origin"}
        sent = client.post(f"{kept}/", **form(photo(made, 3)), headers=own)
        assert (sent.status_code, sent.headers["location"][:15]) == (303, "/photos/?photo=")
        paths = ["/", "/?q=dog&lang=en", "/item/i3?q=dog", "/scores", "/nowhere", sent.headers["location"][7:]]
        for path in paths:
            answer = client.get(kept + path, headers=headers)
            assert answer.status_code == (404 if path == "/nowhere" else 200)
            page = Seen(answer.text)
            links = [
                (tag, attrs[name])
                for tag, attrs in page.elements
                for name in ("href", "src", "action")
                if name in attrs
            ]
            assert all(link.startswith(("/photos/", "#")) for _, link in links), links
            seen += [link for tag, link in links if tag in ("img", "link", "script") and "/plot/" not in link]
        for link in sorted(set(seen)):
            assert client.get(kept + link.removeprefix("/photos"), headers=headers).status_code == 200, link
        assert client.get("/openapi.json", headers=headers).json()["servers"] == [{"url": PUBLIC}]


@FAULT
def test_behind_a_proxy_other_names_and_origins_are_refused(hasher, serve, made, faults):
    with serve(hasher, public_url=PUBLIC) as client:
        for headers, status in (
            ({"host": "evil.example"}, 421),
            ({"host": "example.org.evil.example"}, 421),
            ({"host": "example.org", "origin": "https://evil.example"}, 403),
            ({"host": "example.org", "origin": "https://example.org:9"}, 403),
        ):
            faults.tried += 1
            assert client.post("/", **form(photo(made, 3)), headers=headers).status_code == status
            faults.survived += 1
        assert client.get("/photosphere", headers={"host": "example.org"}).status_code == 404  # not below the prefix


def test_behind_a_proxy_the_token_s_cookie_keeps_to_the_prefix(hasher, serve):
    with serve(hasher, token="secret", public_url=PUBLIC, base="https://example.org") as client:
        first = client.get("/photos/?q=dog&token=secret")
        assert (first.status_code, first.headers["location"]) == (303, "/photos/?q=dog")
        assert first.headers["set-cookie"].endswith("HttpOnly; SameSite=Strict; Path=/photos; Secure")


@pytest.mark.parametrize(
    "given",
    [
        "",
        "example.org",
        "ftp://example.org",
        "https://",
        "https://a/?q=1",
        "https://u:p@a/",
        "https://a:b/",
        "https://a/<b>",
    ],
)
def test_a_public_address_that_is_none_is_refused(hasher, given):
    with pytest.raises(UsageError, match="give one such as https://example.org/photos"):
        public_url(given)


def test_parts_of_a_public_address():
    assert str(public_url("https://Example.org:443/a/b/")) == "https://example.org/a/b"
    assert str(public_url("http://[::1]:9")) == "http://[::1]:9"
    assert public_url(None) is None
