"""Model folders by name: a directory, otherwise the hub's local cache, otherwise the hub.

Only data files are fetched, never code.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Sequence
from fnmatch import filter as matching
from pathlib import Path
from typing import Any

from cmrhash.errors import CmrhashError, EncoderError, UsageError

OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")  # environment variables of the hub's libraries
LOGIN = "run hf auth login"


def locate(
    model: str,
    patterns: Sequence[str],
    offline: bool,
    kind: str,
    fix: str,
    revision: str | None = None,
    optional: Sequence[str] = (),
) -> Path:
    """Directory of a model.

    patterns: names of files that it needs, "a|b" for one of two; optional: of files that it may have. A folder of the
    local cache that lacks a needed one stems from an interrupted download, or from that of other files.
    kind: noun for messages; fix: advice if the model is unavailable; revision: branch, tag or commit on the hub; None:
    main.
    Raises EncoderError if the model is unavailable, at once if ``model`` looks like a path that does not exist;
    UsageError for a revision of a directory.
    """
    path = Path(model).expanduser()
    if path.is_dir():
        if revision is not None:
            raise UsageError(
                f"a directory has no revision '{revision}'", path, "leave it out: only models of the hub have revisions"
            )
        return path
    if path.exists() or ("/" in model and path.parent.is_dir()):
        raise EncoderError(f"'{model}' is not a directory with a {kind}", None, "check the path")
    refuse_lost(model, kind)
    wanted = [*patterns, *optional]
    return cached(model, patterns, revision) or _downloaded(model, wanted, offline, kind, fix, revision)


def _downloaded(model: str, patterns: Sequence[str], offline: bool, kind: str, fix: str, revision: str | None) -> Path:
    """Folder of a model of which the local cache lacked files; EncoderError if they cannot be had."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.constants import HF_HUB_CACHE

    which = f"{kind} '{model}'" + (f", revision '{revision}'," if revision else "")
    absent = f"{which} is {'not' if '/' in model else 'neither a folder here nor'} in the local cache"
    if offline or is_offline():
        raise EncoderError(f"{absent}, and offline mode is on", HF_HUB_CACHE, fix)
    try:
        with spoken():
            found = snapshot_download(model, revision=revision, allow_patterns=_each(patterns), etag_timeout=10)
    except Unreachable as error:
        raise EncoderError(f"{absent}, and {error.what}", HF_HUB_CACHE, fix) from None
    except CmrhashError as error:
        raise EncoderError(f"{which} cannot be downloaded ({error.what})", None, error.fix) from None
    return Path(found)


def refuse_lost(model: str, kind: str) -> None:
    """Raise EncoderError for a model that looks like a path which does not exist."""
    looks_like_path = model.startswith((".", "/", "~")) or model.count("/") > 1
    if looks_like_path and not Path(model).expanduser().exists():
        raise EncoderError(f"'{model}' is not a directory with a {kind}", None, "check the path")


def locate_file(
    model: str, names: Sequence[str], offline: bool, kind: str, fix: str, revision: str | None = None
) -> Path:
    """File of a model of the hub: the first of these names that it has, in the local cache before the network.

    Raises EncoderError as ``locate`` does, and for a model without any of them.
    """
    for name in names:
        if (folder := cached(model, [name], revision)) is not None:
            return folder / name
    for name in names:
        folder = _downloaded(model, [name], offline, kind, fix, revision)
        if (folder / name).is_file():
            return folder / name
    raise EncoderError(f"{kind} '{model}' has no {' and no '.join(names)}", None, fix)


def names_folder(model: str) -> bool:
    """Whether a model is named as a directory or as an id of the hub, not by a name that a library knows."""
    path = Path(model or "none").expanduser()
    return "/" in model or model.startswith(("~", ".")) or (path / "config.json").is_file()


def name_and_source(model: str, folder: Path) -> tuple[str, str]:
    """Name of an encoder in file names, and what opens it again: the directory, or the id."""
    if Path(model).expanduser().is_dir():
        return Path(os.path.abspath(folder)).name, str(folder.resolve())
    return model.replace("/", "--"), model


def is_offline() -> bool:
    """Whether the environment forbids network access."""
    return any(os.environ.get(name, "0") not in ("", "0") for name in OFFLINE)


def cached(model: str, patterns: Sequence[str], revision: str | None) -> Path | None:
    """The model's folder in the local cache, None if it lacks a file; patterns: as those of ``locate``."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        each = _each(patterns)
        found = snapshot_download(model, revision=revision, allow_patterns=each, local_files_only=True)
    except HFValidationError as error:
        raise EncoderError(
            f"'{model}' is neither a directory nor a model id ({error})", None, "check its spelling"
        ) from None
    except LocalEntryNotFoundError:
        return None
    folder = Path(found)
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    whole = all(any(matching(names, one) for one in _each([needed])) for needed in patterns)
    return folder if whole and _has_all_parts(folder) else None


def _each(patterns: Sequence[str]) -> list[str]:
    """Patterns with each alternative of its own."""
    return [one for pattern in patterns for one in pattern.split("|")]


def _has_all_parts(folder: Path) -> bool:
    """Whether weights in several files are complete."""
    try:
        parts = json.loads((folder / "model.safetensors.index.json").read_bytes())["weight_map"].values()
        return all((folder / str(part)).is_file() for part in parts)
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return True  # one file, or an index that is judged where it is read


class Unreachable(CmrhashError):
    """A hub that does not answer, or does not answer like a hub."""


@contextlib.contextmanager
def spoken() -> Iterator[None]:
    """Turn every error of a hub call into a CmrhashError with cause and advice.

    The error has no place; the caller adds it. ``huggingface_hub`` lets exceptions of its HTTP library through, and
    that library has changed twice. The base classes of HfHubHTTPError always belong to the current one.
    """
    from huggingface_hub.errors import HfHubHTTPError

    fails: tuple[type[Any], ...] = (*HfHubHTTPError.__bases__, OSError, ValueError, RuntimeError)
    try:
        yield
    except fails as error:
        raise _translated(error) from None


def _translated(error: BaseException) -> CmrhashError:
    """The CmrhashError for an error of a hub call."""
    from huggingface_hub import errors

    lost = isinstance(error, errors.LocalEntryNotFoundError)
    if (lost or isinstance(error, RuntimeError)) and error.__cause__:
        error = error.__cause__  # the original error, before the fallback to the cache
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
