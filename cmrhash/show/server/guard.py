"""ASGI middleware that refuses requests which the page's own user would not send.

Every web site that the user visits can send requests to a local page. The guard therefore accepts known Host names only
(against DNS rebinding), POST from the page itself only, no CORS, and bodies of limited size and duration; security
headers keep the browser from running anything but our own files.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
from collections.abc import Awaitable, Callable, MutableMapping
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

from cmrhash.show.html.document import PAGE_POLICY

log = logging.getLogger(__name__)

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

LOOPBACK = ("127.0.0.1", "localhost", "::1")
METHODS = ("GET", "POST")
ELSEWHERE = ("cross-site", "same-site")  # values of Sec-Fetch-Site for requests by other sites
COOKIE = "cmrhash-token"
HEADERS = {
    "content-security-policy": PAGE_POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",  # "no-referrer" would make our own forms say "Origin: null"
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
}


class _Refused(Exception):
    def __init__(self, status: int, words: str) -> None:
        super().__init__(words)
        self.status = status


class Guard:
    """Middleware around the application.

    hosts: accepted names in Host, empty for any. token: required in every request, None for no token. max_body: bytes
    of a request body; slow: seconds until the body must be complete.
    """

    def __init__(
        self, app: App, hosts: tuple[str, ...], token: str | None, max_body: int = 10 * 10**6, slow: float = 10.0
    ) -> None:
        self.app, self.hosts, self.token, self.max_body, self.slow = app, hosts, token, max_body, slow

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse a request or pass it on."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return None  # no web sockets
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        try:
            self._check(scope, headers)
            if self.token is not None and (target := self._check_token(scope, headers)) is not None:
                return await _redirect(send, target, self.token)
            body = await self._body(headers, receive) if scope["method"] == "POST" else b""
        except _Refused as no:
            return await _refuse(send, no)
        await self.app(scope, _replay(body, receive), _with_headers(send))
        return None

    def _check(self, scope: Scope, headers: dict[str, str]) -> None:
        if scope["method"] not in METHODS:
            raise _Refused(405, "only GET and POST are supported")
        hosts = [value for name, value in scope["headers"] if name.lower() == b"host"]
        if len(hosts) != 1 or (self.hosts and _hostname(headers["host"]) not in self.hosts):
            raise _Refused(421, "unknown Host name")
        if scope["method"] == "POST":
            _check_origin(headers)
        elif headers.get("sec-fetch-site") in ELSEWHERE and headers.get("sec-fetch-dest") != "document":
            raise _Refused(403, "requests from other sites are refused, except for links")

    def _check_token(self, scope: Scope, headers: dict[str, str]) -> str | None:
        """None if cookie or header hold the token; if the URL does, the path to redirect to."""
        assert self.token is not None
        kept = _cookie(headers.get("cookie", ""))
        bearer = headers.get("authorization", "").removeprefix("Bearer ")
        if any(hmac.compare_digest(given.encode(), self.token.encode()) for given in (kept, bearer)):
            return None
        query = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        given = dict(query).get("token", "")
        if scope["method"] != "GET" or not hmac.compare_digest(given.encode(), self.token.encode()):
            raise _Refused(401, "open the address with the token that the server printed")
        rest = urlencode([pair for pair in query if pair[0] != "token"])
        path: str = "/" + scope["raw_path"].decode("latin-1").lstrip("/")  # "//host" would be another machine
        return path + ("?" + rest if rest else "")

    async def _body(self, headers: dict[str, str], receive: Receive) -> bytes:
        """Read the body; too large a body is refused by its announced size first, then by its true size."""
        announced = headers.get("content-length", "0")
        if not announced.isdecimal():
            raise _Refused(400, "Content-Length is not a number")
        if int(announced) > self.max_body:
            raise self._too_large()
        try:
            return await asyncio.wait_for(self._read(receive), self.slow)
        except TimeoutError:
            raise _Refused(408, f"the request body took longer than {self.slow:g} s") from None

    async def _read(self, receive: Receive) -> bytes:
        body = bytearray()
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise _Refused(400, "the request body ended early")
            body += message.get("body", b"")
            if len(body) > self.max_body:
                raise self._too_large()
            if not message.get("more_body"):
                return bytes(body)

    def _too_large(self) -> _Refused:
        return _Refused(413, f"the request body exceeds {self.max_body / 1e6:g} MB")


def _check_origin(headers: dict[str, str]) -> None:
    """Refuse a POST that a browser sent from another page; other clients send no origin."""
    said = headers.get("origin", headers.get("referer"))
    if said is not None and urlsplit(said).netloc.lower() != headers["host"].lower():  # also "null"
        raise _Refused(403, "this form was sent from another page")
    if headers.get("sec-fetch-site") in ELSEWHERE:
        raise _Refused(403, "this form was sent from another site")


def _hostname(host: str) -> str:
    """Host in lower case without its port; "" if invalid."""
    try:
        return urlsplit("//" + host).hostname or ""
    except ValueError:
        return ""


def _cookie(header: str) -> str:
    try:
        morsel = SimpleCookie(header).get(COOKIE)
    except CookieError:
        return ""
    return morsel.value if morsel else ""


def _replay(body: bytes, receive: Receive) -> Receive:
    """Make a receive function that returns the body read before, then messages of the server."""
    parts: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def next_part() -> Message:
        return parts.pop() if parts else await receive()

    return next_part


def _with_headers(send: Send) -> Send:
    async def named(message: Message) -> None:
        if message["type"] == "http.response.start":
            said = message.get("headers", [])
            has = {name for name, _ in said}  # an SVG has a policy of its own
            own = [(name.encode(), value.encode()) for name, value in HEADERS.items() if name.encode() not in has]
            message = {**message, "headers": [*said, *own]}
        await send(message)

    return named


async def _refuse(send: Send, no: _Refused) -> None:
    log.info("refused with status %d: %s", no.status, no)
    await _answer(send, no.status, str(no), [(b"connection", b"close")])


async def _redirect(send: Send, target: str, token: str) -> None:
    cookie = f"{COOKIE}={token}; HttpOnly; SameSite=Strict; Path=/"
    await _answer(send, 303, "", [(b"location", target.encode("latin-1")), (b"set-cookie", cookie.encode())])


async def _answer(send: Send, status: int, words: str, headers: list[tuple[bytes, bytes]]) -> None:
    body = f"{words}\n".encode() if words else b""
    usual = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", str(len(body)).encode())]
    send = _with_headers(send)
    start = {"type": "http.response.start", "status": status, "headers": [*usual, *headers]}
    await send(start)
    await send({"type": "http.response.body", "body": body})
