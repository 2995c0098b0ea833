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
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from cmrhash.config import MAX_KEY, STORES
from cmrhash.errors import DamagedError, DataError, UsageError, did_you_mean
from cmrhash.retrieval.codes import check_k, check_packed, describe, pack, unpack
from cmrhash.retrieval.ranking import FEATURES, HAMMING, Rank, asymmetric_scores, hamming_scores

Packed = NDArray[np.uint8]
# n keys, their codes (n, ceil(bits / 8)) uint8 and, if the collection keeps them, their embeddings (n, bits) float32
Batch = tuple[Sequence[str], Packed] | tuple[Sequence[str], Packed, NDArray[np.float32]]
Found = tuple[NDArray[np.int32], list[list[str]]]
Near = tuple[NDArray[np.int32], list[str]]
Ranked = tuple[NDArray[np.int32], list[list[str]], NDArray[np.float64]]


class Rows(NamedTuple):
    """A checked batch."""

    keys: Sequence[str]
    packed: Packed
    embedding: NDArray[np.float32] | None


@dataclass(frozen=True)
class Collection:
    """Description of a collection.

    meta: a JSON object as given; approximate: as requested; embeddings: whether it keeps embeddings beside the codes.
    """

    name: str
    bits: int
    rows: int
    meta: Mapping[str, Any]
    approximate: bool | None
    embeddings: bool = False


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
        embeddings: bool = False,
    ) -> Collection:
        """Create or replace a collection.

        approximate: with an index that finds most neighbours. embeddings: keep those of the batches, for `ranked`; of a
        batch without them, the codes as -1 and +1. Raises UsageError if this kind of store keeps codes alone.
        """

    def add(self, name: str, batches: Iterable[Batch]) -> Collection:
        """Add codes."""

    def remove(self, name: str, keys: Sequence[str]) -> Collection:
        """Remove the codes of these keys, or none if a key is missing."""

    def search(self, name: str, packed: Packed, k: int, keys: Sequence[str] | None = None) -> Found:
        """Find the k nearest codes of each query (Q, ceil(bits / 8)) uint8.

        keys: search only the codes of these, exactly; unknown ones are ignored. Returns distances (Q, k') int32,
        ascending, and their keys, with k' = min(k, rows). If an approximate index finds fewer, an exact search replaces
        it.
        """

    def within(self, name: str, packed: Packed, radius: int, keys: Sequence[str] | None = None) -> list[Near]:
        """Find all codes within a Hamming radius of each query (Q, ceil(bits / 8)) uint8, exactly.

        keys: as of `search`. Returns distances (n,) int32, ascending, and their keys, per query.
        """

    def ranked(
        self, name: str, embedding: NDArray[np.float32], k: int, rank: Rank, keys: Sequence[str] | None = None
    ) -> Ranked:
        """Find the k best of each query's nearest codes by score; queries: embeddings (Q, bits), real numbers.

        The nearest ``rank.candidates(k)`` codes are scored: "rerank" by the cosine of the embeddings, or of the code as
        -1 and +1 if the collection keeps none; "asymmetric" always by the latter; "hamming" by the distance. Returns
        distances (Q, k') int32, keys, and scores (Q, k') float64, the highest first, equal scores by key.
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


def own_place(name: str, place: object, pattern: str, url: str) -> str:
    """Return the table or folder that a registry names for a collection's codes, if cmrhash makes such names.

    pattern: regular expression of these names. Raises DamagedError for any other name: `replace` drops the old place.
    """
    if not isinstance(place, str) or not re.fullmatch(pattern, place):
        what = f"collection '{name}' refers to {ascii(place)[:80]}, which cmrhash has not made"
        raise DamagedError(what, url, "delete its entry in the list of collections; nothing was changed")
    return place


def check_query(packed: Packed, collection: Collection, k: int, keys: Sequence[str] | None = None) -> int:
    """Most neighbours that a search can find; raises UsageError or DataError for invalid queries."""
    check_packed(packed, collection.bits, "query codes")
    return min(check_k(k), collection.rows, collection.rows if keys is None else len(keys))


def packed_queries(embedding: NDArray[np.float32], rank: Rank, bits: int) -> Packed:
    """Codes of embeddings; raises UsageError for another shape or type, and for a rank by features."""
    if not isinstance(embedding, np.ndarray) or embedding.dtype.kind != "f" or embedding.shape[1:] != (bits,):
        raise UsageError(f"queries must be a real (Q, {bits}) array, got {describe(embedding)}")
    if rank.kind == FEATURES:
        raise UsageError("stores hold no features", None, "choose hamming, asymmetric or rerank", option="rank")
    return pack(embedding)


def by_code(found: Found, codes: Sequence[Packed], embedding: NDArray[np.float32], k: int, rank: Rank) -> Ranked:
    """Order what a search has found by scores of the codes, those of each query (n, ceil(bits / 8)) uint8."""
    distances, keys = found
    kept = min(k, distances.shape[1])
    near, names = np.empty((len(keys), kept), np.int32), []
    scores = np.empty(near.shape, np.float64)
    for at, line in enumerate(keys):
        own = hamming_scores(distances[at], embedding.shape[1])
        if rank.kind != HAMMING:
            own = asymmetric_scores(embedding[at : at + 1], codes[at])[0]
        order = sorted(range(len(line)), key=lambda n: (-own[n], line[n]))[:kept]
        near[at], scores[at] = distances[at][order], own[order]
        names.append([line[n] for n in order])
    return near, names, scores


def refuse_embeddings(embeddings: bool, kind: str, url: str) -> None:
    """Raise UsageError if a store that keeps codes alone shall keep embeddings."""
    if embeddings:
        fix = "leave it out: results are ranked by the codes, or use PostgreSQL"
        raise UsageError(f"{kind} keeps codes alone", url, fix, option="embeddings")


def embedding_of(rows: Rows, bits: int) -> NDArray[np.float32]:
    """Embeddings of a batch, scaled to length 1; without any, those of the codes as -1 and +1. (n, bits) float32."""
    real = unpack(rows.packed, bits) * 2.0 - 1.0 if rows.embedding is None else rows.embedding.astype(np.float64)
    scaled: NDArray[np.float64] = real / np.maximum(np.linalg.norm(real, axis=1, keepdims=True), 1e-12)
    return scaled.astype(np.float32)


def checked_batches(batches: Iterable[Batch], bits: int) -> Iterator[Rows]:
    """Yield the batches after checking each; holds 16 bytes per key.

    Raises DataError for a key that is empty, too long or not printable, and at the end for a duplicate key; UsageError
    for codes of another width, or of another number than keys.
    """
    digests = [np.empty((0, 2), np.uint64)]
    for keys, packed, *more in batches:
        check_packed(packed, bits)
        embedding = more[0] if more else None
        if embedding is not None and (embedding.shape != (len(packed), bits) or not np.isfinite(embedding).all()):
            what = f"embeddings must be finite real numbers ({len(packed)}, {bits}), got {describe(embedding)}"
            raise UsageError(what, None, "give one embedding per code")
        if len(keys) != len(packed):
            raise UsageError(f"{len(packed)} codes but {len(keys)} keys: give one key per code")
        raw = b"".join(blake2b(_encoded(key), digest_size=16).digest() for key in keys)
        digests.append(np.frombuffer(raw, np.uint64).reshape(-1, 2))
        yield Rows(keys, packed, embedding)
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
