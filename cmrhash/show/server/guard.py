"""ASGI middleware that refuses requests which the page's own user would not send.

Every web site that the user visits can send requests to a local page. The guard therefore accepts known Host names only
(against DNS rebinding), POST from the page itself only, no CORS, and bodies of limited size and duration; security
headers keep the browser from running anything but our own files.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from dataclasses import dataclass
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

from cmrhash.show.html.document import PAGE_POLICY
from cmrhash.show.server.public import PublicUrl

log = logging.getLogger(__name__)

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

GUARDED = (401, 403, 405, 421)  # statuses with which any request may be refused
LOOPBACK = ("127.0.0.1", "localhost", "::1")
SPARED = 1.0  # seconds in which an upload is not ended for another one
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
    def __init__(self, status: int, words: str, headers: Sequence[tuple[bytes, bytes]] = ()) -> None:
        super().__init__(words)
        self.status, self.headers = status, headers


@dataclass(frozen=True)
class Bounds:
    """Limits of request bodies.

    max_body: bytes of one; slow: seconds until it must be complete; bodies: at the same time; of_one: likewise, of one
    address, None for no limit.
    """

    max_body: int = 10 * 10**6
    slow: float = 10.0
    bodies: int = 8
    of_one: int | None = None


class Guard:
    """Middleware around the application.

    hosts: accepted names in Host, empty for any. token: required in every request, None for no token. public: address
    behind a proxy; its name is accepted too, and its path is taken off the requests.
    """

    def __init__(
        self,
        app: App,
        hosts: tuple[str, ...],
        token: str | None,
        bounds: Bounds = Bounds(),  # frozen
        public: PublicUrl | None = None,
    ) -> None:
        self.app, self.token, self.bounds, self.public = app, token, bounds, public
        self.hosts = (*hosts, public.host) if hosts and public else hosts
        self._bodies: Counter[str] = Counter()  # by address
        self._reading: dict[object, tuple[str, asyncio.Timeout]] = {}  # bodies that are not complete, the oldest first

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse a request or pass it on."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return None  # no web sockets
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        scope = _without(scope, self._prefix)
        try:
            self._check(scope, headers)
            if self.token is not None and (target := self._check_token(scope, headers)) is not None:
                return await self._redirect(send, target, self.token)
            if scope["method"] != "POST":
                await self.app(scope, receive, _with_headers(send))
                return None
            await self._pass_body(scope, headers, receive, send)
        except _Refused as no:
            return await _refuse(send, no)
        return None

    @property
    def _prefix(self) -> str:
        return self.public.prefix if self.public else ""

    async def _pass_body(self, scope: Scope, headers: dict[str, str], receive: Receive, send: Send) -> None:
        """Read the body of a request and pass both on, unless too many bodies are in memory already."""
        address = (scope.get("client") or ("",))[0]
        own = self.bounds.of_one is not None and self._bodies[address] >= self.bounds.of_one
        if (own or self._bodies.total() >= self.bounds.bodies) and not self._make_room(address if own else None):
            raise _Refused(429, "too many uploads at the same time: try again in a moment")
        self._bodies[address] += 1
        try:
            body = await self._body(headers, receive, address)
            await self.app(scope, _replay(body, receive), _with_headers(send))
        finally:
            self._bodies[address] -= 1
            self._bodies += Counter()  # forgets addresses that have none

    def _check(self, scope: Scope, headers: dict[str, str]) -> None:
        hosts = [value for name, value in scope["headers"] if name.lower() == b"host"]
        if len(hosts) != 1 or (self.hosts and _hostname(headers["host"]) not in self.hosts):
            fix = "open the address that the server printed"
            raise _Refused(421, f"unknown Host name: {fix}")
        if scope["method"] == "POST":
            _check_origin(headers, self.public)
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
        # browsers take "//host" and "/\\host" for another machine, and pass over tabs between
        path = quote("/" + scope["raw_path"].decode("latin-1").lstrip("/\\"), safe="/%:@!$&'()*+,;=~")
        return self._prefix + path + ("?" + rest if rest else "")

    async def _redirect(self, send: Send, target: str, token: str) -> None:
        secure = "; Secure" if self.public and self.public.scheme == "https" else ""
        cookie = f"{COOKIE}={token}; HttpOnly; SameSite=Strict; Path={self._prefix or '/'}{secure}"
        await _answer(send, 303, "", [(b"location", target.encode("latin-1")), (b"set-cookie", cookie.encode())])

    async def _body(self, headers: dict[str, str], receive: Receive, address: str) -> bytes:
        """Read the body; too large a body is refused by its announced size first, then by its true size."""
        announced = headers.get("content-length", "0")
        if not announced.isdecimal():
            raise _Refused(400, "Content-Length is not a number")
        if int(announced) > self.bounds.max_body:
            raise self._too_large()
        key = object()
        try:
            async with asyncio.timeout(self.bounds.slow) as limit:
                self._reading[key] = address, limit
                return await self._read(receive)
        except TimeoutError:
            raise _Refused(408, "the request body took too long: try again in a moment") from None
        finally:
            self._reading.pop(key, None)

    def _make_room(self, address: str | None) -> bool:
        """End the oldest upload of an address, or of any, that is not complete after SPARED seconds."""
        now = asyncio.get_running_loop().time()
        for key, (of, limit) in self._reading.items():
            ends = limit.when()
            if address in (None, of) and ends is not None and ends - self.bounds.slow + SPARED <= now:
                self._reading.pop(key)
                limit.reschedule(now)
                return True
        return False

    async def _read(self, receive: Receive) -> bytes:
        body = bytearray()
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise _Refused(400, "the request body ended early")
            body += message.get("body", b"")
            if len(body) > self.bounds.max_body:
                raise self._too_large()
            if not message.get("more_body"):
                return bytes(body)

    def _too_large(self) -> _Refused:
        return _Refused(413, f"the request body exceeds {self.bounds.max_body / 1e6:g} MB")


def _without(scope: Scope, prefix: str) -> Scope:
    """Take the public path off a request; a proxy may have done so already."""
    path, raw = scope["path"], scope["raw_path"]
    if not prefix or not (path + "/").startswith(prefix + "/"):
        return scope
    length = len(quote(prefix).encode()) if raw.startswith(quote(prefix).encode()) else len(prefix.encode())
    return {**scope, "path": path[len(prefix) :] or "/", "raw_path": raw[length:] or b"/"}


def _check_origin(headers: dict[str, str], public: PublicUrl | None) -> None:
    """Refuse a POST that a browser sent from another page; other clients send no origin."""
    said = headers.get("origin", headers.get("referer"))
    own = {headers["host"].lower(), *([public.netloc] if public else [])}
    if said is not None and urlsplit(said).netloc.lower() not in own:  # also "null"
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
    await _answer(send, no.status, str(no), [(b"connection", b"close"), *no.headers])


async def _answer(send: Send, status: int, words: str, headers: list[tuple[bytes, bytes]]) -> None:
    body = f"{words}\n".encode() if words else b""
    usual = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", str(len(body)).encode())]
    send = _with_headers(send)
    start = {"type": "http.response.start", "status": status, "headers": [*usual, *headers]}
    await send(start)
    await send({"type": "http.response.body", "body": body})
