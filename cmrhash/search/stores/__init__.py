"""Code stores, opened by URL: a folder, PostgreSQL or Milvus. One file per kind.

A store holds named collections: codes of one length, a string key for each code, and meta that records their origin.

    store = open_store("faiss:/srv/codes")
    store.replace("shop-image", 64, [(["a", "b"], packed)], {"made": "today"})
    distances, keys = store.search("shop-image", queries, k=10)

A collection is replaced atomically: the new one is built beside the old one, and every search finds all of the one or
all of the other. Equal distances may come in any order, so compare results by distance.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from cmrhash.config import MAX_KEY, STORES
from cmrhash.errors import DataError, UsageError, did_you_mean
from cmrhash.retrieval.codes import check_k, check_packed

Batch = tuple[Sequence[str], NDArray[np.uint8]]  # n keys and their codes, (n, ceil(bits / 8)) uint8
Found = tuple[NDArray[np.int32], list[list[str]]]


@dataclass(frozen=True)
class Collection:
    """Description of a collection. meta: a JSON object as given; approximate: as requested."""

    name: str
    bits: int
    rows: int
    meta: Mapping[str, Any]
    approximate: bool | None


class CodeStore(Protocol):
    """Interface of every kind of store. url: for display, without a password.

    Raises UsageError for a missing collection and for codes of another width; DataError for keys that exist already,
    occur twice or are missing; CmrhashError with the reason if a server or disk refuses.
    """

    url: str

    def names(self) -> list[str]:
        """Names of the collections, sorted."""

    def about(self, name: str) -> Collection:
        """Describe a collection."""

    def replace(
        self,
        name: str,
        bits: int,
        batches: Iterable[Batch],
        meta: Mapping[str, Any] | None = None,
        approximate: bool | None = None,
    ) -> Collection:
        """Create or replace a collection. approximate: with an index that finds most neighbours."""

    def add(self, name: str, batches: Iterable[Batch]) -> Collection:
        """Add codes."""

    def remove(self, name: str, keys: Sequence[str]) -> Collection:
        """Remove the codes of these keys, or none if a key is missing."""

    def search(self, name: str, packed: NDArray[np.uint8], k: int) -> Found:
        """Find the k nearest codes of each query (Q, ceil(bits / 8)) uint8.

        Returns distances (Q, k') int32, ascending, and their keys, with k' = min(k, rows). If an approximate index
        finds fewer, an exact search replaces it.
        """

    def close(self) -> None:
        """Close files and connections."""


@runtime_checkable
class IncrementalStore(CodeStore, Protocol):
    """A store that changes a part of a collection in one transaction."""

    def update(self, name: str, gone: Sequence[str], batches: Iterable[Batch], meta: Mapping[str, Any]) -> Collection:
        """Remove the codes of keys, add codes and replace the meta: all of it or nothing."""


def open_store(url: str, probes: int | None = None) -> CodeStore:
    """Open the store at a URL.

    probes: how much of an approximate index a search visits, see config.PROBES; 0: all. Raises UsageError for a URL of
    unknown kind and for a missing package; CmrhashError if a server cannot be reached.
    """
    scheme, colon, _ = url.partition(":")
    if not colon or scheme not in KINDS:
        fix = f"{did_you_mean(scheme, KINDS)} give {STORES}"
        raise UsageError("unknown kind of store", shown(url), fix, option="store")
    if probes is not None and probes < 0:
        raise UsageError(f"{probes} is out of range", None, "give a number from 0 (exact search)", option="probes")
    return KINDS[scheme](url, probes)


def _folder(url: str, probes: int | None) -> CodeStore:
    from cmrhash.search.stores.folder import FolderStore

    return FolderStore(url, probes)


def _postgresql(url: str, probes: int | None) -> CodeStore:
    from cmrhash.search.stores.postgresql import PostgresStore

    return PostgresStore(url, probes)


def _milvus(url: str, probes: int | None) -> CodeStore:
    from cmrhash.search.stores.milvus import MilvusStore

    return MilvusStore(url, probes)


KINDS: dict[str, Callable[[str, int | None], CodeStore]] = {  # by the scheme of the URL
    "faiss": _folder,
    "postgresql": _postgresql,
    "postgres": _postgresql,
    "milvus": _milvus,
    "milvus+http": _milvus,
    "milvus+https": _milvus,
}


# ---------------------------------------------------------------------------------------------- shared by all kinds


def shown(url: str) -> str:
    """URL with every possible password hidden, however it is written."""
    hidden = re.sub(r"(://[^:/@]*):.*@", r"\1:***@", url, flags=re.S)
    return re.sub(r"(password|passwd|token)=[^&]*", r"\1=***", hidden, flags=re.I)


def credentials(url: str) -> tuple[str, str | None]:
    """Split a server's URL into the URL without password and the password as written."""
    head, mark, query = url.partition("?")
    scheme, slashes, rest = head.partition("://")
    account, at, place = rest.rpartition("@")
    user, colon, password = account.partition(":")
    return f"{scheme}{slashes}{user}{at}{place}{mark}{query}", password if colon else None


def check_name(name: str) -> str:
    """Return the name if every kind of store accepts it; raises UsageError."""
    if not re.fullmatch(r"\w[\w.+-]*", name) or len(name.encode()) > 150:
        fix = "use letters, digits, '.', '_', '+' and '-', at most 150 bytes"
        raise UsageError(f"{name!r} cannot be the name of a collection", None, fix)
    return name


def missing_collection(name: str, there: Sequence[str], url: str) -> UsageError:
    """Make the error for a missing collection."""
    names = ", ".join(there[:8]) + (", ..." if len(there) > 8 else "")
    return UsageError(f"no collection '{name}' (there: {names or 'none'})", url, "create it with `index`")


def check_query(packed: NDArray[np.uint8], collection: Collection, k: int) -> int:
    """Number k' of neighbours of a search; raises UsageError or DataError for invalid queries."""
    check_packed(packed, collection.bits, "query codes")
    return min(check_k(k), collection.rows)


def checked_batches(batches: Iterable[Batch], bits: int) -> Iterator[Batch]:
    """Yield the batches after checking each; holds 16 bytes per key.

    Raises DataError for a key that is empty, too long or not printable, and at the end for a duplicate key; UsageError
    for codes of another width, or of another number than keys.
    """
    digests = [np.empty((0, 2), np.uint64)]
    for keys, packed in batches:
        check_packed(packed, bits)
        if len(keys) != len(packed):
            raise UsageError(f"{len(packed)} codes but {len(keys)} keys: give one key per code")
        raw = b"".join(blake2b(_encoded(key), digest_size=16).digest() for key in keys)
        digests.append(np.frombuffer(raw, np.uint64).reshape(-1, 2))
        yield keys, packed
    every = np.concatenate(digests)
    order = np.argsort(every[:, 0], kind="stable")
    same = np.flatnonzero((every[order[1:]] == every[order[:-1]]).all(axis=1))
    if len(same):
        first, second = int(order[same[0]]), int(order[same[0] + 1])
        raise DataError(f"codes {first} and {second} have the same key", None, "give every code a key of its own")


def _encoded(key: str) -> bytes:
    """Key in UTF-8; raises DataError unless every kind of store accepts it."""
    raw = key.encode() if isinstance(key, str) and key.isprintable() else b""
    if not 0 < len(raw) <= MAX_KEY:
        raise DataError(f"not a key: {ascii(key)[:60]}", None, f"a key is printable text of 1 to {MAX_KEY} bytes")
    return raw
