"""Embeddings of sentences: those that wait at the same time are encoded together, and the latest are kept."""

from __future__ import annotations

import threading
from collections import Counter, OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from cmrhash.errors import CmrhashError
from cmrhash.search.hasher import Hasher
from cmrhash.training.runs import HEADS

TOGETHER = 32  # most sentences encoded at once
KEPT = 2000  # embeddings kept

Key = tuple[str, str, str]  # digest of the run's heads, language, sentence


class Sentences:
    """Embeddings for the pages of a server. ``waiting`` announces a sentence, ``embed`` encodes it with others."""

    def __init__(self) -> None:
        self._kept: OrderedDict[Key, NDArray[np.float32]] = OrderedDict()
        self._waiting: Counter[tuple[str, str | None, str]] = Counter()
        self._lock = threading.Lock()

    @contextmanager
    def waiting(self, hasher: Hasher, text: str, lang: str | None) -> Iterator[None]:
        """Announce a sentence while its request waits. lang: None if it is to be detected."""
        key = (hasher.run.files[HEADS], lang, text)
        with self._lock:
            self._waiting[key] += 1
        try:
            yield
        finally:
            with self._lock:
                self._waiting[key] -= 1
                if not self._waiting[key]:
                    del self._waiting[key]

    def embed(self, hasher: Hasher, text: str, lang: str) -> NDArray[np.float32]:
        """Embed a sentence (bits,) float32, together with those that wait for the same run in the same language."""
        key = (hasher.run.files[HEADS], lang, text)
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        texts = [text, *self._others(hasher, text, lang)]
        try:
            found = hasher.embed_text(texts, lang)
        except CmrhashError:  # perhaps of another sentence
            texts = [text]
            found = hasher.embed_text(texts, lang)
        with self._lock:
            for each, embedding in zip(texts, found, strict=True):
                self._kept[(key[0], lang, each)] = embedding
            while len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        return np.asarray(found[0])

    def _others(self, hasher: Hasher, text: str, lang: str) -> list[str]:
        """Sentences of this run and language that wait and are not embedded yet."""
        heads, others = hasher.run.files[HEADS], []
        with self._lock:
            waiting = [key for key in self._waiting if key[0] == heads and key[2] != text]
            waiting = [key for key in waiting if (heads, lang, key[2]) not in self._kept]
        for _, given, other in waiting:
            try:
                if given == lang or (given is None and hasher.language(None, other) == lang):
                    others.append(other)
            except CmrhashError:  # its own request tells why
                continue
            if len(others) == TOGETHER - 1:
                break
        return others
