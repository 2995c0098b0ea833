"""The application: its state, and its routes from ``pages``, ``interface`` and ``files``."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.routing import Route

from cmrhash.config import ServeConfig
from cmrhash.errors import CmrhashError
from cmrhash.search.hasher import Hasher
from cmrhash.show.answers import Question
from cmrhash.show.server.documents import Pages
from cmrhash.show.server.guard import GUARDED
from cmrhash.show.server.public import public_url
from cmrhash.show.server.query_photos import QueryPhotos
from cmrhash.show.server.requests import PLAIN, answers, plainly, told
from cmrhash.show.server.sentences import Sentences
from cmrhash.show.server.served import Collection
from cmrhash.show.server.worker import Busy, Worker
from cmrhash.version import __version__


@dataclass
class State:
    """All that the routes share.

    encoding: worker that hashes words; seeing: worker that decodes and hashes photos, so that a large one delays no
    sentence; looking: worker for queries by items; drawing: worker for plots. warming: loading of the encoders, None if
    it was not started.
    """

    config: ServeConfig
    collection: Collection
    encoding: Worker
    seeing: Worker
    looking: Worker
    drawing: Worker
    pages: Pages = field(init=False)
    photos: QueryPhotos = field(init=False)
    sentences: Sentences = field(default_factory=Sentences)
    warming: Future[Any] | None = None

    def __post_init__(self) -> None:
        self.pages = Pages(self.collection)
        self.photos = QueryPhotos(self.config.kept_photos, self.config.kept_bytes, self.config.max_pixels)

    @property
    def ready(self) -> bool:
        """Whether the encoders are loaded."""
        return self.warming is None or self.warming.done()

    def close(self) -> None:
        """End the workers."""
        for worker in (self.encoding, self.seeing, self.looking, self.drawing):
            worker.close()


def new_state(hasher: Hasher, config: ServeConfig) -> State:
    """Make the state of a server that was started with a run."""
    public = public_url(config.public_url)
    collection = Collection(hasher, config, public.prefix if public else "")
    encoding, looking, drawing = (Worker(config.queue) for _ in range(3))
    return State(config, collection, encoding, Worker(config.uploads), looking, drawing)


def create_app(state: State) -> FastAPI:
    """Build the application without its guard, which ``server.guarded`` adds."""
    from cmrhash.show.server.files import add_files
    from cmrhash.show.server.interface import add_interface
    from cmrhash.show.server.pages import add_pages

    public = public_url(state.config.public_url)
    servers = [{"url": str(public)}] if public else None
    app = FastAPI(
        title="cmrhash",
        version=__version__,
        docs_url=None,
        redoc_url=None,
        servers=servers,
        redirect_slashes=False,
        responses=answers({}, *GUARDED),
    )
    add_pages(app, state)
    add_interface(app, state)
    add_files(app, state)
    _add_errors(app, state)
    return app


def _allowed(app: FastAPI, path: str) -> str:
    """The methods of all routes of a path; Starlette names those of the first route alone."""
    routes = [route for route in app.routes if isinstance(route, Route) and route.path_regex.match(path)]
    return ", ".join(sorted({method for route in routes for method in route.methods or ()}))


def _add_errors(app: FastAPI, state: State) -> None:
    def refused(
        request: Request, status: int, words: str, title: str, advice: str, more: Mapping[str, str] | None = None
    ) -> Response:
        if request.url.path == "/" or "text/html" in request.headers.get("accept", ""):
            question = Question(k=state.config.k)
            shown = state.pages.problem(state.collection.first, question, title, advice)
            return HTMLResponse(shown, status, {"cache-control": "no-store", **(more or {})})
        headers = {"retry-after": "1"} if status == 429 else {}
        return JSONResponse({"error": words}, status, headers | dict(more or {}))

    async def ours(request: Request, error: Exception) -> Response:
        status, words = told(error)
        return refused(request, status, words, *plainly(error)[1:])

    async def invalid(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        first = error.errors()[0]
        return refused(request, 422, f"{first['loc'][:2][-1]}: {first['msg']}", *PLAIN[422])

    async def http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        title, advice = PLAIN.get(error.status_code, PLAIN[500])
        headers = {"allow": _allowed(app, request.scope["path"])} if error.status_code == 405 else error.headers
        return refused(request, error.status_code, error.detail, title, advice, headers)

    for kind in (CmrhashError, Busy, OSError, Exception):  # the last one is also logged, with its traceback
        app.add_exception_handler(kind, ours)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, http)
