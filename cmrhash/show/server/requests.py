"""Requests read into questions, and errors put into plain words."""

from __future__ import annotations

from collections.abc import Sequence
from http import HTTPStatus
from typing import Any

from fastapi import Request
from pydantic import BaseModel

from cmrhash.config import ServeConfig
from cmrhash.errors import CmrhashError, EncoderError, UsageError
from cmrhash.search.finder import TARGETS
from cmrhash.search.hasher import Hasher
from cmrhash.show.answers import NO_PHOTO, Question, UnknownItem
from cmrhash.show.server.originals import TooLarge
from cmrhash.show.server.query_photos import PhotoGone
from cmrhash.show.server.served import UnknownRun
from cmrhash.show.server.worker import Busy

MOST = 8  # values of a field that may be repeated
STATUS = {  # the first match; others: 400
    PhotoGone: 410,
    UnknownItem: 404,
    UnknownRun: 404,
    TooLarge: 413,
    EncoderError: 500,
    UsageError: 400,
}
PLAIN = {  # status -> title and advice on the page, where the error itself has none for people
    404: ("There is nothing at this address", "The link may be incomplete, or the photo was removed."),
    405: ("This is not possible here", ""),
    413: ("This file is too large", "Choose a smaller one."),
    422: ("The server did not understand this request", "Start again from the first page."),
    429: ("Too many people are searching right now", "Try again in a moment."),
    500: ("Something went wrong on the server", "Try again. If it stays so, tell the person who runs it."),
}


class Problem(BaseModel):
    """Answer to a request that is not possible."""

    error: str


def answers(found: dict[str, Any], *statuses: int) -> dict[int | str, dict[str, Any]]:
    """Describe answers for the OpenAPI document.

    found: with status 200; statuses: of refusals, which are JSON, or plain text by the guard.
    """
    text = {"schema": {"type": "string"}}
    described: dict[int | str, dict[str, Any]] = {
        status: {"model": Problem, "description": HTTPStatus(status).phrase, "content": {"text/plain": text}}
        for status in statuses
    }
    return {200: found, **described} if found else described


Pairs = Sequence[tuple[str, str]]


def question_of(pairs: Pairs, config: ServeConfig) -> Question:
    """Read the fields of an address or a form; an empty field counts as missing."""
    filled = [(name, value) for name, value in pairs if value.strip()]
    given = dict(filled)
    return Question(
        text=given.get("q"),
        digest=given.get("photo"),
        ident=given.get("id"),
        by=given.get("by", "image"),
        lang=given.get("lang"),
        to=given.get("to"),
        k=_number(given.get("k"), config.k),
        skip=_number(given.get("skip"), 0),
        unlike=tuple(dict.fromkeys(value for name, value in filled if name == "unlike"))[:MOST],
        labels=tuple(dict.fromkeys(value for name, value in filled if name == "label"))[:MOST],
    )


def spoken(question: Question, request: Request, hasher: Hasher) -> str | None:
    """Language of a question; without a sentence and a choice, the browser's preferred one that the run has."""
    if question.lang or question.text is not None:
        return question.lang
    asked = (part.split(";")[0].split("-")[0].strip() for part in request.headers.get("accept-language", "").split(","))
    return next((lang for lang in asked if lang in hasher.langs), None)


def check(question: Question, config: ServeConfig) -> None:
    """Refuse a question that is out of bounds; raises UsageError."""
    if question.parts == 0:
        raise UsageError("no query", None, "give words or a photo")
    if not 1 <= question.k <= config.max_k:
        raise UsageError("k out of range", None, f"give a whole number from 1 to {config.max_k}")
    if not 0 <= question.skip <= config.max_depth:
        raise UsageError("these are all the results", None, f"at most {config.max_depth} are shown: use other words")
    if len(question.text or "") > config.max_text:
        raise UsageError("the sentence is too long", None, f"give at most {config.max_text} characters")
    if question.to not in (None, *TARGETS) or question.by not in ("image", "text"):
        raise UsageError("unknown value of to or by", None, f"choose one of {', '.join(TARGETS)}")


def told(error: Exception) -> tuple[int, str]:
    """Status and message of an error, without paths."""
    if isinstance(error, Busy):
        return 429, "too many requests: try again in a moment"
    if isinstance(error, OSError):
        return 500, f"the files of the run cannot be read ({(error.strerror or 'unknown reason').lower()})"
    if not isinstance(error, CmrhashError):
        return 500, "unforeseen error: see the log of the server"
    status = next(
        (code for kind, code in STATUS.items() if isinstance(error, kind)), 400 if error.where is None else 500
    )
    words = ": ".join(part for part in (error.option, error.what, error.fix) if part)
    return status, words.replace("?:", "?")


def plainly(error: Exception) -> tuple[int, str, str]:
    """Status, title and advice of an error, for people."""
    status, words = told(error)
    if isinstance(error, (PhotoGone, UnknownRun, TooLarge)):
        return status, error.what, error.fix or ""
    if isinstance(error, CmrhashError) and error.option == "lang":
        return status, "Which language is this?", "Choose the language under “More options” and search again."
    if isinstance(error, UnknownItem):
        return status, "This item is not in the data set", words
    if isinstance(error, CmrhashError) and error.what.startswith(NO_PHOTO):
        return status, "This file cannot be read as a photo", words
    if status >= 429:
        return status, *PLAIN.get(status, PLAIN[500])
    return status, "This search is not possible", words


def _number(given: str | None, usual: int) -> int:
    """Read a whole number; -1 for anything else."""
    if given is None:
        return usual
    return int(given) if given.isdecimal() and len(given) < 10 else -1
