"""Model folders by name: an existing directory, else the hub's local cache, else the hub itself. Files, no code."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from cmrhash.errors import CmrhashError, EncoderError, UsageError

OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")  # the environment's own switches
LOGIN = "run hf auth login"


def locate(
    model: str, patterns: Sequence[str], offline: bool, kind: str, fix: str, revision: str | None = None
) -> Path:
    """The directory of a model. patterns: its files; kind: what it is, for messages; fix: what to do without it;
    revision: branch, tag or commit of the hub's, None for main.

    Raises EncoderError at once for what looks like a path and is none, and when it cannot be had.
    """
    path = Path(model).expanduser()
    if path.is_dir():
        if revision is not None:
            raise UsageError(
                f"a directory has no revision '{revision}'", path, "leave it out: only models of the hub have revisions"
            )
        return path
    looks_like_path = model.startswith((".", "/", "~")) or model.count("/") > 1
    if path.exists() or looks_like_path or ("/" in model and path.parent.is_dir()):
        raise EncoderError(f"'{model}' is not a directory with a {kind}", None, "check the path")
    folder = _cached(model, patterns, revision)
    if folder:
        return folder
    from huggingface_hub.constants import HF_HUB_CACHE

    which = f"{kind} '{model}'" + (f", revision '{revision}'," if revision else "")
    if offline or is_offline():
        raise EncoderError(f"{which} is not in the local cache, and offline mode is on", HF_HUB_CACHE, fix)
    return _fetched(model, patterns, revision, which, fix)


def is_offline() -> bool:
    """Whether the environment forbids the network."""
    return any(os.environ.get(name, "0") not in ("", "0") for name in OFFLINE)


def _cached(model: str, patterns: Sequence[str], revision: str | None) -> Path | None:
    """Its folder in the local cache; a fetch that broke off may have left some files out, so those named are there."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        found = snapshot_download(model, revision=revision, allow_patterns=list(patterns), local_files_only=True)
    except HFValidationError as error:
        raise EncoderError(
            f"'{model}' is neither a directory nor a model id ({error})", None, "check its spelling"
        ) from None
    except LocalEntryNotFoundError:
        return None
    folder = Path(found)
    return folder if all((folder / name).is_file() for name in patterns if "*" not in name) else None


def _fetched(model: str, patterns: Sequence[str], revision: str | None, which: str, fix: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.constants import HF_HUB_CACHE

    try:
        with spoken():
            found = snapshot_download(model, revision=revision, allow_patterns=list(patterns), etag_timeout=10)
    except Unreachable as error:
        raise EncoderError(f"{which} is not in the local cache, and {error.what}", HF_HUB_CACHE, fix) from None
    except CmrhashError as error:
        raise EncoderError(f"{which} cannot be downloaded ({error.what})", None, error.fix) from None
    return Path(found)


class Unreachable(CmrhashError):
    """A hub that does not answer, or not as a hub does."""


@contextlib.contextmanager
def spoken() -> Iterator[None]:
    """Speak to the hub: what goes wrong becomes a CmrhashError that says what it was and what to do, without a place.

    ``huggingface_hub`` passes on the exceptions of the HTTP library that it happens to be built on, which has changed
    twice; its own derive from that library's.
    """
    from huggingface_hub.errors import HfHubHTTPError

    fails: tuple[type[Any], ...] = (*HfHubHTTPError.__bases__, OSError, ValueError, RuntimeError)
    try:
        yield
    except fails as error:
        raise _in_words(error) from None


def _in_words(error: BaseException) -> CmrhashError:
    from huggingface_hub import errors

    lost = isinstance(error, errors.LocalEntryNotFoundError)
    if (lost or isinstance(error, RuntimeError)) and error.__cause__:
        error = error.__cause__  # what happened, before it looked into its cache or said which file it was
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, errors.RevisionNotFoundError):
        return UsageError("it has no such revision", None, "check the revision")
    if isinstance(error, errors.GatedRepoError):
        return UsageError("it is gated", None, f"request access on its page, and {LOGIN}")
    if isinstance(error, errors.RepositoryNotFoundError):
        return UsageError("it does not exist, or is private", None, f"check the id, and {LOGIN} if it is private")
    if status in (401, 403):
        return UsageError(
            f"access is refused with status {status}", None, f"{LOGIN} with a token that has the permission"
        )
    if status is not None:
        said = _first_line(getattr(error, "server_message", None) or "")
        return Unreachable(f"the hub answers with status {status}" + (f", {said}" if said else ""), None, "try again")
    reason = _first_line(str(error)) or type(error).__name__
    if lost:
        return Unreachable(f"the hub cannot be reached ({reason})", None, "try again")
    if isinstance(error, json.JSONDecodeError):
        return Unreachable("the server is not a model hub", None, "check HF_ENDPOINT and the proxy")
    if isinstance(error, errors.HfHubHTTPError.__bases__[0]):
        return CmrhashError(f"the connection failed: {reason}", None, "try again")
    return CmrhashError(reason)


def _first_line(words: str) -> str:
    return next((line for line in words.splitlines() if line.strip()), "")[:120]
