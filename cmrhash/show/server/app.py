"""Routes of the page and its API. One worker thread hashes and searches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Annotated, Any, Literal

from fastapi import FastAPI, File, Form, Query, Request, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response
from starlette.exceptions import HTTPException

from cmrhash.config import ServeConfig
from cmrhash.errors import CmrhashError, EncoderError, UsageError
from cmrhash.search.finder import TARGETS
from cmrhash.search.hasher import Hasher
from cmrhash.show.answers import Answer, Question, UnknownItem, ask
from cmrhash.show.html.document import SVG_POLICY, static
from cmrhash.show.html.thumbnails import Thumbnails
from cmrhash.show.server.page import page
from cmrhash.show.server.pictures import Pictures
from cmrhash.show.server.worker import Busy, Worker
from cmrhash.version import __version__

FILES = {"style.css": "text/css", "drop.js": "text/javascript", "favicon.svg": "image/svg+xml"}  # file -> media type
STATUS = {UnknownItem: 404, EncoderError: 500, UsageError: 400}  # the first match; others: 400

Page = Callable[..., str]  # ``page`` with its run and config
Target = Annotated[
    Literal["image", "text", "both"] | None, Query(description="What to find; default: the other modality.")
]
Lang = Annotated[
    str | None,
    Query(description="Language of the sentence and of the captions found; default: detected, or the first one."),
]


def create_app(hasher: Hasher, config: ServeConfig, worker: Worker, drawing: Worker) -> FastAPI:
    """Build the application without its guard, which ``server.guarded`` adds.

    drawing: worker for plots, so that a slow plot delays no search.
    """
    app = FastAPI(title="cmrhash", version=__version__, docs_url=None, redoc_url=None)
    pictures = Pictures(hasher)
    _add_page(app, hasher, config, worker, partial(page, hasher, config, pictures.names))
    _add_api(app, hasher, config, worker)
    _add_files(app, hasher, config)
    _add_plots(app, pictures, drawing)
    _add_errors(app, config, partial(page, hasher, config, pictures.names))
    return app


def _add_page(app: FastAPI, hasher: Hasher, config: ServeConfig, worker: Worker, page: Page) -> None:
    async def shown(question: Question) -> HTMLResponse:
        try:
            _check(question, config)
            answer = await worker.run(ask, hasher, question, True)
        except (CmrhashError, Busy) as error:
            status, words = told(error)
            return _html(page(question, problem=words), status)
        return _html(page(question, answer))

    @app.get("/", include_in_schema=False)
    async def by_address(request: Request) -> HTMLResponse:
        question = _spoken(_question(dict(request.query_params), config), request, hasher)
        if question.text is None and question.ident is None:
            return _html(page(question))
        return await shown(question)

    @app.post("/", include_in_schema=False)
    async def by_photo(
        request: Request,
        photo: Annotated[UploadFile, File()],
        lang: Annotated[str, Form()] = "",
        to: Annotated[str, Form()] = "",
        k: Annotated[str, Form()] = "",
    ) -> HTMLResponse:
        question = _question({"lang": lang, "to": to, "k": k}, config, await photo.read())
        return await shown(_spoken(question, request, hasher))


def _add_api(app: FastAPI, hasher: Hasher, config: ServeConfig, worker: Worker) -> None:
    async def answered(question: Question) -> dict[str, Any]:
        _check(question, config)
        return _as_json(hasher, await worker.run(ask, hasher, question))

    @app.get("/api/search", summary="Search by a sentence or by an item of the data set")
    async def search(
        q: Annotated[str | None, Query(description="A sentence.")] = None,
        id: Annotated[str | None, Query(description="Id of an item of the data set, instead of a sentence.")] = None,
        by: Annotated[
            Literal["image", "text"], Query(description="With id: the image of the item or its first caption.")
        ] = "image",
        lang: Lang = None,
        to: Target = None,
        k: Annotated[int, Query(description="Number of results.")] = config.k,
    ) -> dict[str, Any]:
        return await answered(Question(text=q, ident=id, by=by, lang=lang, to=to, k=k))

    @app.post("/api/search", summary="Search by a photo")
    async def search_photo(
        photo: Annotated[UploadFile, File(description="JPEG, PNG, GIF, WebP, BMP or TIFF.")],
        lang: Annotated[str | None, Form()] = None,
        to: Annotated[Literal["image", "text", "both"] | None, Form()] = None,
        k: Annotated[int, Form()] = config.k,
    ) -> dict[str, Any]:
        return await answered(Question(photo=await photo.read(), lang=lang, to=to, k=k))

    @app.get("/healthz", summary="Status of the server, and its run")
    async def healthz() -> dict[str, Any]:
        return {
            "status": "ok",
            "version": __version__,
            "run": str(hasher.run.folder),
            "dataset": hasher.dataset.name,
            "items": len(hasher.dataset.items),
        }


def _add_files(app: FastAPI, hasher: Hasher, config: ServeConfig) -> None:
    thumbs = Thumbnails(hasher.dataset.root, limit=config.thumb_bytes)
    contents = {name: static(name) for name in FILES}

    def add(path: str, name: str) -> None:
        @app.get(path, include_in_schema=False)
        async def file() -> Response:
            return Response(contents[name], media_type=FILES[name], headers={"cache-control": "no-cache"})

    for name in FILES:
        add(f"/{name}", name)
    add("/favicon.ico", "favicon.svg")

    @app.get("/thumb/{ident:path}", summary="A small JPEG of an item's photo", response_class=Response)
    def thumb(ident: str) -> Response:
        item = hasher.item(ident)
        jpeg = thumbs.of(item.image) if item else None
        if jpeg is None:
            raise HTTPException(404, "no photo of this item")
        return Response(jpeg, media_type="image/jpeg", headers={"cache-control": "private, max-age=3600"})


def _add_plots(app: FastAPI, pictures: Pictures, drawing: Worker) -> None:
    @app.get("/plot/{name}.svg", summary="A plot of the run", response_class=Response)
    async def plot(name: str) -> Response:
        if name not in pictures.names:
            raise HTTPException(404, f"unknown plot: choose one of {', '.join(pictures.names) or 'none'}")
        svg = await drawing.run(pictures.svg, name)
        headers = {"cache-control": "no-cache", "content-security-policy": SVG_POLICY}
        return Response(svg, media_type="image/svg+xml", headers=headers)


def _add_errors(app: FastAPI, config: ServeConfig, page: Page) -> None:
    def refused(request: Request, status: int, words: str) -> Response:
        if request.url.path == "/" or "text/html" in request.headers.get("accept", ""):
            return _html(page(Question(k=config.k), problem=words), status)
        headers = {"retry-after": "1"} if status == 429 else {}
        return JSONResponse({"error": words}, status, headers)

    async def ours(request: Request, error: Exception) -> Response:
        return refused(request, *told(error))

    async def invalid(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        first = error.errors()[0]
        return refused(request, 422, f"{first['loc'][-1]}: {first['msg']}")

    async def http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return refused(request, error.status_code, error.detail)

    for kind in (CmrhashError, Busy):
        app.add_exception_handler(kind, ours)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, http)


def told(error: Exception) -> tuple[int, str]:
    """Status and message of an error, without paths."""
    if isinstance(error, Busy):
        return 429, "too many requests: try again in a moment"
    assert isinstance(error, CmrhashError)
    status = next(
        (code for kind, code in STATUS.items() if isinstance(error, kind)), 400 if error.where is None else 500
    )
    words = ": ".join(part for part in (error.option, error.what, error.fix) if part)
    return status, words.replace("?:", "?")


def _question(asked: dict[str, str], config: ServeConfig, photo: bytes | None = None) -> Question:
    """Read the fields of a form; an empty field counts as missing."""
    given = {name: value for name, value in asked.items() if value.strip()}
    k = given.get("k", str(config.k))
    return Question(
        text=given.get("q"),
        photo=photo,
        ident=given.get("id"),
        by=given.get("by", "image"),
        lang=given.get("lang"),
        to=given.get("to"),
        k=int(k) if k.isdecimal() and len(k) < 10 else 0,
    )


def _spoken(question: Question, request: Request, hasher: Hasher) -> Question:
    """Without a sentence, take the caption language from the browser's preferences."""
    if question.lang or question.text is not None:
        return question
    asked = (part.split(";")[0].split("-")[0].strip() for part in request.headers.get("accept-language", "").split(","))
    return replace(question, lang=next((lang for lang in asked if lang in hasher.langs), None))


def _check(question: Question, config: ServeConfig) -> None:
    given = [name for name in ("text", "photo", "ident") if getattr(question, name) is not None]
    if len(given) != 1:
        raise UsageError("no query" if not given else "both a sentence and an id", None, "give either q or id")
    if not 1 <= question.k <= config.max_k:
        raise UsageError("k out of range", None, f"give a whole number from 1 to {config.max_k}")
    if len(question.text or "") > config.max_text:
        raise UsageError("the sentence is too long", None, f"give at most {config.max_text} characters")
    if question.to not in (None, *TARGETS) or question.by not in ("image", "text"):
        raise UsageError("unknown value of to or by", None, f"choose one of {', '.join(TARGETS)}")


def _as_json(hasher: Hasher, answer: Answer) -> dict[str, Any]:
    """The fields of ``cmrhash search --json``."""
    question = answer.question
    if question.ident is not None:
        query: Any = {"id": question.ident, "by": question.by}
    else:
        query = question.text if question.text is not None else {"photo": True}
    results = [hit.as_json() for hits in answer.parts.values() for hit in hits]
    return {"query": query, "lang": answer.lang, "run": str(hasher.run.folder), "results": results}


def _html(content: str, status: int = 200) -> HTMLResponse:
    return HTMLResponse(content, status, {"cache-control": "no-store"})
