"""Routes of the pages for people."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from starlette.datastructures import UploadFile

from cmrhash.errors import CmrhashError, UsageError
from cmrhash.show.answers import Question, ask, find_item
from cmrhash.show.html.links import Links
from cmrhash.show.server.app import State
from cmrhash.show.server.originals import can_show
from cmrhash.show.server.requests import check, plainly, question_of, spoken
from cmrhash.show.server.served import Served
from cmrhash.show.server.worker import Busy


def add_pages(app: FastAPI, state: State) -> None:
    """Add the search page, and the pages of an item and of the scores."""

    @app.get("/", include_in_schema=False)
    async def search(request: Request) -> HTMLResponse:
        pairs = request.query_params.multi_items()
        question = question_of(pairs, state.config)
        served = state.collection.first
        try:
            served = await _served(state, request)
            return await _shown(state, served, question, spoken(question, request, served.hasher))
        except (CmrhashError, Busy) as error:
            return _problem(state, served, question, error)

    @app.post("/", include_in_schema=False)
    async def ask_by_form(request: Request) -> Response:
        content = None
        async with request.form(max_files=2, max_fields=50) as form:
            pairs = [(name, value) for name, value in form.multi_items() if isinstance(value, str)]
            sent = form.get("file")
            if isinstance(sent, UploadFile) and sent.filename:
                content = await sent.read()
        question = question_of(pairs, state.config)
        try:
            if content is not None:
                digest = await state.seeing.run(state.photos.keep, content)
                question = replace(question, digest=digest, ident=None, by="image")
            if question.parts == 0:
                raise UsageError("no query", None, "Type some words, or choose a photo.")
        except (CmrhashError, Busy) as error:
            return _problem(state, state.collection.first, question, error)
        run = dict(pairs).get("run", "")
        run = "" if run == state.collection.first.hasher.run.folder.name else run
        return RedirectResponse(Links(state.collection.prefix, run, k=state.config.k).search(question), 303)

    @app.get("/item/{ident:path}", include_in_schema=False)
    async def item(request: Request, ident: str) -> HTMLResponse:
        served = await _served(state, request)
        question = question_of(request.query_params.multi_items(), state.config)
        lang = spoken(question, request, served.hasher)
        found = find_item(served.hasher, ident)

        def built() -> str:
            root = served.hasher.dataset.root
            whole = can_show(root, found.image, state.config.max_photo)
            return state.pages.item(served, found, question, lang, whole)

        return _html(await state.looking.run(built))

    @app.get("/scores", include_in_schema=False)
    async def scores(request: Request) -> HTMLResponse:
        return _html(state.pages.scores(await _served(state, request)))


async def _served(state: State, request: Request) -> Served:
    name = request.query_params.get("run")
    if served := state.collection.get(name):
        return served
    return await state.looking.run(state.collection.of, name)


async def _shown(state: State, served: Served, question: Question, lang: str | None) -> HTMLResponse:
    """Answer a question: results, the first page without one, or a page that waits for the encoders.

    lang: of the captions shown, if the question leaves it open.
    """
    if question.parts == 0:
        return _html(await state.looking.run(state.pages.start, served, question, lang))
    check(question, state.config)
    encoded = question.text is not None or question.digest is not None
    if question.digest is not None:
        question = replace(question, photo=state.photos.get(question.digest).content)
    if encoded and not state.ready:
        return _html(state.pages.loading(served, question))
    if not encoded:
        return _html(await state.looking.run(_answered, state, served, question, lang))
    announced: AbstractContextManager[None] = nullcontext()
    if question.text is not None:
        announced = state.sentences.waiting(served.hasher, question.text, question.lang)
    with announced:
        worker = state.encoding if question.photo is None else state.seeing
        return _html(await worker.run(_answered, state, served, question, lang))


def _answered(state: State, served: Served, question: Question, lang: str | None) -> str:
    answer = ask(served.hasher, replace(question, lang=lang), True, state.sentences.embed)
    return state.pages.answered(served, replace(answer, question=question))


def _problem(state: State, served: Served, question: Question, error: Exception) -> HTMLResponse:
    status, title, words = plainly(error)
    return _html(state.pages.problem(served, replace(question, digest=None, ident=None), title, words), status)


def _html(content: str, status: int = 200) -> HTMLResponse:
    return HTMLResponse(content, status, {"cache-control": "no-store"})
