"""Tokenizers of the library ``tokenizers``: their digest, and lower case. This file needs no torch."""

from __future__ import annotations

import hashlib
import json
from typing import Any


def digest(backend: Any) -> str:
    """sha256 over all settings and the vocabulary of a tokenizer."""
    return hashlib.sha256(backend.to_str().encode()).hexdigest()


def lower_case(backend: Any) -> bool:
    """Make a tokenizer put texts into lower case, as sentence-transformers does; False if it does so already."""
    from tokenizers import normalizers

    state = json.loads(backend.to_str())["normalizer"] or {}
    steps = state.get("normalizers", [state])
    if any(step.get("type") == "Lowercase" or step.get("lowercase") for step in steps):
        return False
    first = [normalizers.Lowercase()]
    backend.normalizer = normalizers.Sequence(first + ([backend.normalizer] if backend.normalizer else []))
    return True
