"""HTTP server of a run: socket, access, and encoders loaded before the first query."""

from __future__ import annotations

import logging
import secrets
import socket
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from ipaddress import ip_address
from typing import Any

import uvicorn
from PIL import Image

from cmrhash.config import ServeConfig
from cmrhash.errors import CmrhashError, UsageError
from cmrhash.search.hasher import Hasher
from cmrhash.show.server.app import State, create_app, new_state
from cmrhash.show.server.connections import AWAITED, Connection, Sparing
from cmrhash.show.server.guard import LOOPBACK, Bounds, Guard
from cmrhash.show.server.public import public_url

CONNECTIONS = 400  # concurrent; a browser opens six


@dataclass(frozen=True)
class Opened:
    """An address that is open for requests, which wait until the page is served. token: of requests, if others can
    reach it.
    """

    listening: socket.socket
    token: str | None


def open_address(config: ServeConfig) -> Opened:
    """Open the address of the page.

    Raises UsageError for an address that cannot be used, or that others can reach without i_know.
    """
    public_url(config.public_url)
    token = _token(config)
    return Opened(_listen(config), token)


def serve(hasher: Hasher, config: ServeConfig, tell: Callable[[str], None], opened: Opened | None = None) -> None:
    """Serve the page until the process is stopped. tell: prints the address, and problems with encoders.

    opened: the address, None to open it now; raises UsageError as ``open_address`` does.
    """
    opened = opened or open_address(config)
    token, listening = opened.token, opened.listening
    public = public_url(config.public_url)
    state = new_state(hasher, config)
    ending = f"?token={token}" if token else ""
    for host in _names(config.host):
        name = f"[{host}]" if ":" in host else host
        tell(f"http://{name}:{listening.getsockname()[1]}/{ending}")
    if public:
        tell(f"behind the proxy: {public}/{ending}")
    _load(hasher, state, tell)
    options = uvicorn.Config(
        guarded(state, token),
        http=Connection,
        lifespan="off",
        ws="none",
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=CONNECTIONS,
        timeout_keep_alive=int(AWAITED),
        timeout_graceful_shutdown=2,
    )
    for name in ("uvicorn.error", Guard.__module__):
        logging.getLogger(name).addFilter(Sparing())
    try:
        uvicorn.Server(options).run(sockets=[listening])
    finally:
        state.close()
        listening.close()


def guarded(state: State, token: str | None = None) -> Guard:
    """Put the guard before the page. With a token every Host name is accepted: other sites lack the token."""
    app: Any = create_app(state)
    config = state.config
    hosts = () if token else (*LOOPBACK, config.host.lower())
    bounds = Bounds(
        config.max_body, config.body_seconds, config.uploads, None if config.public_url else config.uploads_each
    )
    return Guard(app, hosts, token, bounds, public_url(config.public_url))


def warm(hasher: Hasher) -> list[str]:
    """Load every encoder by one query; returns the errors of those that fail."""
    return [*warm_texts(hasher), *warm_photos(hasher)]


def warm_texts(hasher: Hasher) -> list[str]:
    """Load the encoders of sentences, which takes a fraction of a second where they need no torch."""
    asked = [partial(hasher.encode_text, ["."], lang) for lang in hasher.langs]
    return _problems([partial(hasher.likely, "."), *asked])


def warm_photos(hasher: Hasher) -> list[str]:
    """Load the encoder of photos, which takes seconds."""
    return _problems([partial(hasher.encode_image, [Image.new("RGB", (64, 64))])])


def _load(hasher: Hasher, state: State, tell: Callable[[str], None]) -> None:
    """Load the encoders of sentences, then that of photos in the other thread, so that sentences are answered soon."""

    def then(texts: Future[list[str]]) -> None:
        if not texts.cancelled():
            with suppress(RuntimeError):  # the server is closed already
                _tell_failure(state.drawing.submit(warm_photos, hasher), tell)

    state.warming = state.encoding.submit(warm_texts, hasher)
    _tell_failure(state.warming, tell)
    state.warming.add_done_callback(then)


def _problems(queries: Sequence[Callable[[], Any]]) -> list[str]:
    problems = []
    for ask in queries:
        try:
            ask()
        except CmrhashError as error:
            problems.append(str(error))
    return problems


def _tell_failure(warming: Future[list[str]], tell: Callable[[str], None]) -> None:
    def done(future: Future[list[str]]) -> None:
        if not future.cancelled():
            for problem in dict.fromkeys(future.result()):
                tell(f"warning: {problem}")

    warming.add_done_callback(done)


def _token(config: ServeConfig) -> str | None:
    """Make the token for requests if others can reach the page."""
    if config.host == "localhost" or _is_loopback(config.host):
        return secrets.token_urlsafe(24) if config.public_url and config.i_know else None
    if not config.i_know:
        what = f"others on the network can reach {config.host}"
        raise UsageError(
            what, None, "leave it out, or add `i_know=True` and share the address with its token", option="host"
        )
    return secrets.token_urlsafe(24)


def _names(host: str) -> list[str]:
    """Addresses to open: of all interfaces, this machine's own and the one that others use."""
    try:
        if not ip_address(host).is_unspecified:
            return [host]
    except ValueError:
        return [host]
    six = ":" in host
    own = ["::1" if six else "127.0.0.1"]
    with suppress(OSError), socket.socket(socket.AF_INET6 if six else socket.AF_INET, socket.SOCK_DGRAM) as asked:
        asked.connect(("2001:db8::1" if six else "192.0.2.1", 9))  # sends nothing: the system chooses the interface
        own.append(asked.getsockname()[0])
    return list(dict.fromkeys(own))


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def _listen(config: ServeConfig) -> socket.socket:
    if not 0 <= config.port <= 65535:
        raise UsageError(
            f"{config.port} is out of range", None, "give a number from 0 (any free one) to 65535", option="port"
        )
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    try:
        listening = socket.create_server((config.host, config.port), family=family)
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # else each answer waits 40 ms for the client
        return listening
    except OSError as error:
        where = f"{config.host} port {config.port}"
        reason = (error.strerror or str(error)).partition(" (while")[0]
        raise UsageError(f"cannot listen ({reason})", where, "give another `port` or `host`") from None
