"""Model folders by name: an existing directory, else the hub's local cache, else the hub itself. Files, no code."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from cmrhash.errors import EncoderError

OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")  # the environment's own switches


def locate(model: str, patterns: Sequence[str], offline: bool, kind: str, fix: str) -> Path:
    """The directory of a model. patterns: its files; kind: what it is, for messages; fix: what to do without it.

    Raises EncoderError at once for what looks like a path and is none, and when it cannot be had.
    """
    path = Path(model).expanduser()
    if path.is_dir():
        return path
    looks_like_path = model.startswith((".", "/", "~")) or model.count("/") > 1
    if path.exists() or looks_like_path or ("/" in model and path.parent.is_dir()):
        raise EncoderError(f"'{model}' is not a directory with a {kind}", None, "check the path")
    offline = offline or any(os.environ.get(v, "0") not in ("", "0") for v in OFFLINE)
    for local in (True,) if offline else (True, False):
        folder = _snapshot(model, patterns, local, kind)
        if folder:
            return folder
    from huggingface_hub.constants import HF_HUB_CACHE

    why = "offline mode is on" if offline else "the hub cannot be reached"
    raise EncoderError(f"{kind} '{model}' is not cached and {why}", HF_HUB_CACHE, fix)


def _snapshot(model: str, patterns: Sequence[str], local: bool, kind: str) -> Path | None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(model, allow_patterns=list(patterns), local_files_only=local, etag_timeout=10))
    except HFValidationError as error:
        raise EncoderError(f"'{model}' is neither a directory nor a model id ({error})", None, "check it") from None
    except LocalEntryNotFoundError:
        return None
    except (HfHubHTTPError, OSError) as error:
        reason = str(error).split("\n")[0][:120]
        raise EncoderError(f"{kind} '{model}' cannot be fetched ({reason})", None, "check the id") from None
