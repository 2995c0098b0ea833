"""Routes of the HTTP API for programs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Annotated, Any, Literal

from fastapi import Depends, FastAPI, File, Form, Query, Request, UploadFile
from pydantic import BaseModel
from pydantic.json_schema import SkipJsonSchema

from cmrhash.errors import UsageError, did_you_mean, some_of
from cmrhash.search.hasher import Hasher
from cmrhash.show.answers import Answer, Question, ask
from cmrhash.show.server.app import State
from cmrhash.show.server.query_photos import bounded
from cmrhash.show.server.requests import answers, check
from cmrhash.version import __version__


class Result(BaseModel):
    """A result, with the fields of ``cmrhash search --json``."""

    rank: int
    id: str
    modality: Literal["image", "text"]
    lang: str | None
    caption: str | None
    image: str | None
    labels: list[str]
    distance: int
    score: float


class Found(BaseModel):
    """Answer of a search. query: the sentence, the item, or that it was a photo."""

    query: str | dict[str, Any]
    lang: str
    run: str
    results: list[Result]


class Status(BaseModel):
    """Status of the server."""

    status: Literal["ok"]
    version: str
    run: str
    dataset: str
    items: int


Absent = SkipJsonSchema[None]  # the default of a parameter that may be left out, and no value that a request has
Target = Literal["image", "text", "both"] | Absent
Words = str | Absent
TARGET = "What to find; default: the other modality."
LANG = "Language of the sentence and of the captions found; default: detected, or the first one."


USUAL = (400, 404, 422, 429, 500)  # statuses of a refused search


async def _refuse_unknown(request: Request) -> None:
    """Raise UsageError for a parameter that a search does not have: an answer must not ignore it."""
    by_photo = request.method == "POST"
    route = request.scope["route"].dependant
    known = tuple(field.alias for field in (route.body_params if by_photo else route.query_params))
    places = {"form": await request.form()} if by_photo else {}
    for place, given in {"query": request.query_params, **places}.items():
        fields = known if by_photo == (place == "form") else ()
        if odd := next((name for name in given if name not in fields), None):
            near = "" if odd in known else did_you_mean(odd, known)
            fix = f"{near} give {some_of(known)}{' in the form' * by_photo}".strip()
            raise UsageError(f"no parameter '{odd}' of the {place}", None, fix)


def add_interface(app: FastAPI, state: State) -> None:
    """Add the API."""
    config = state.config
    bounds: dict[str, Any] = {"minimum": 1, "maximum": config.max_k}  # `check` refuses others with its own words
    number: Any = Query(config.k, description="Number of results.", json_schema_extra=bounds)
    sentence: Any = Query(None, description=f"A sentence of at most {config.max_text} characters.")
    number_in_form: Any = Form(config.k, json_schema_extra=bounds)

    def current() -> Hasher:
        return (state.collection.get(None) or state.collection.first).hasher

    async def answered(question: Question) -> dict[str, Any]:
        if question.text is not None and question.ident is not None:
            raise UsageError("both a sentence and an id", None, "give either q or id")
        check(question, config)
        hasher = current()
        worker = state.encoding if question.photo is None else state.seeing
        return _as_json(hasher, await worker.run(_asked, hasher, question, config.max_pixels))

    @app.get(
        "/api/search",
        summary="Search by a sentence or by an item of the data set",
        responses=answers({"model": Found}, *USUAL),
        dependencies=[Depends(_refuse_unknown)],
    )
    async def search(
        q: Words = sentence,
        id: Annotated[Words, Query(description="Id of an item of the data set, instead of a sentence.")] = None,
        by: Annotated[
            Literal["image", "text"], Query(description="With id: the image of the item or its first caption.")
        ] = "image",
        lang: Annotated[Words, Query(description=LANG)] = None,
        to: Annotated[Target, Query(description=TARGET)] = None,
        k: int = number,
    ) -> dict[str, Any]:
        return await answered(Question(text=q, ident=id, by=by, lang=lang, to=to, k=k))

    @app.post(
        "/api/search",
        summary="Search by a photo",
        responses=answers({"model": Found}, *USUAL, 408, 413),
        dependencies=[Depends(_refuse_unknown)],
    )
    async def search_photo(
        photo: Annotated[UploadFile, File(description="JPEG, PNG, GIF, WebP, BMP or TIFF.")],
        lang: Annotated[Words, Form(description=LANG)] = None,
        to: Annotated[Target, Form(description=TARGET)] = None,
        k: int = number_in_form,
    ) -> dict[str, Any]:
        return await answered(Question(photo=await photo.read(), lang=lang, to=to, k=k))

    _add_status(app, current)


def _add_status(app: FastAPI, current: Callable[[], Hasher]) -> None:
    @app.get("/healthz", summary="Status of the server, and its run", responses=answers({"model": Status}))
    async def healthz() -> dict[str, Any]:
        hasher = current()
        return {
            "status": "ok",
            "version": __version__,
            "run": str(hasher.run.folder),
            "dataset": hasher.dataset.name,
            "items": len(hasher.dataset.items),
        }


def _asked(hasher: Hasher, question: Question, pixels: int) -> Answer:
    if question.photo is not None:
        question = replace(question, photo=bounded(question.photo, pixels)[0])
    return ask(hasher, question)


def _as_json(hasher: Hasher, answer: Answer) -> dict[str, Any]:
    """The fields of ``cmrhash search --json``."""
    question = answer.question
    if question.ident is not None:
        query: Any = {"id": question.ident, "by": question.by}
    else:
        query = question.text if question.text is not None else {"photo": True}
    results = [hit.as_json() for hits in answer.parts.values() for hit in hits]
    return {"query": query, "lang": answer.lang, "run": str(hasher.run.folder), "results": results}
