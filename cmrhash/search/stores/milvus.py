"""``milvus+http://HOST:PORT``, ``milvus:FILE``: collections in Milvus, binary vectors by Hamming.

    cmrhash_collections                 name, codes (the Milvus collection that holds the codes), about (JSON)
    cmrhash_<name>_<16 hex>_<16 hex>    key, code: BINARY_VECTOR of whole bytes, zero-padded

Milvus has no transactions, its embedded form no aliases, and during an upsert neither version exists. So a row of the
registry is never changed: a row with a higher version is inserted, then the old one deleted. Adding and removing codes
change a collection in place. One writer at a time. FILE is a database of milvus-lite, whose versions from 3.0 on have
no binary vectors. Only this module imports pymilvus.
"""

from __future__ import annotations

import json
import logging
import re
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from hashlib import blake2b
from itertools import chain
from typing import Any, TypeVar
from urllib.parse import unquote

import numpy as np
from numpy.typing import NDArray

from cmrhash.config import MAX_KEY, PROBES
from cmrhash.errors import CmrhashError, DataError, UsageError, lacking
from cmrhash.retrieval.codes import check_bits, check_k, check_radius
from cmrhash.retrieval.ranking import Rank
from cmrhash.search.stores import (
    Batch,
    Collection,
    Found,
    Near,
    Packed,
    Ranked,
    by_code,
    check_name,
    check_query,
    checked_batches,
    credentials,
    missing_collection,
    own_place,
    packed_queries,
    refuse_embeddings,
    shown,
)

try:
    from pymilvus import DataType, MilvusClient, MilvusException
except ImportError as error:
    raise lacking("Milvus needs pymilvus", "pymilvus", error, None, 'pip install "cmrhash[milvus]"') from None

T = TypeVar("T")
LIST = "cmrhash_collections"
TIMEOUT = 10  # seconds to reach the server
MOST = 16_384  # limit of Milvus for neighbours and for rows of an answer
FIRST = 1024  # neighbours asked for at first to find all within a radius
MOST_FOUND = 100_000  # neighbours of all queries per request
SUFFIX = "[0-9a-f]{16}"  # of a Milvus collection that holds codes
ROWS = 10_000  # per insertion: a message has 64 MB at most


class MilvusStore:
    """A `cmrhash.search.stores.CodeStore` in Milvus."""

    def __init__(self, url: str, probes: int | None) -> None:
        logging.getLogger("pymilvus").setLevel(logging.CRITICAL)  # it logs a traceback for every exception
        self.url = shown(url)
        place, password = credentials(url.removeprefix("milvus+").removeprefix("milvus:"))
        options = {"uri": place}
        if password is not None:
            scheme, _, rest = place.partition("://")
            user, _, host = rest.rpartition("@")
            options = {"uri": f"{scheme}://{host}", "token": f"{unquote(user)}:{unquote(password)}"}
        self._probes = PROBES["milvus"] if probes is None else probes
        with self._server_errors():
            self._client = MilvusClient(**options, timeout=TIMEOUT)

    def __repr__(self) -> str:
        return f"MilvusStore({self.url!r})"

    def names(self) -> list[str]:
        """Names of the collections, sorted."""
        return sorted({line["name"] for line in self._lines('name != ""')})

    def about(self, name: str) -> Collection:
        """Describe a collection."""
        return self._find(name)[1]

    def replace(
        self,
        name: str,
        bits: int,
        batches: Iterable[Batch],
        meta: Mapping[str, Any] | None = None,
        approximate: bool | None = None,
        embeddings: bool = False,
    ) -> Collection:
        """Create or replace a collection; keeps codes alone. approximate: BIN_IVF_FLAT; None: without."""
        refuse_embeddings(embeddings, "Milvus", self.url)
        prefix = _prefix(check_name(name))
        target = prefix + secrets.token_hex(8)
        about = Collection(name, check_bits(bits), 0, meta or {}, approximate)
        if self._lines(_is_name(name)):
            self._find(name)  # refuses an entry that was not written here
        with self._server_errors():
            self._make(target, {"key": MAX_KEY}, "code", bits)
            try:
                rows = self._insert(target, bits, batches)
                self._index(target, "code", rows if approximate else 0)
                self._register(about, target, rows)
            except BaseException:
                self._client.drop_collection(target)
                raise
            for old in self._client.list_collections():  # old collections, also of a killed writer
                if re.fullmatch(prefix + SUFFIX, old) and old != target:
                    self._client.drop_collection(old)
        return self.about(name)

    def add(self, name: str, batches: Iterable[Batch]) -> Collection:
        """Add codes; each batch can be found at once."""
        target, about = self._find(name)
        with self._server_errors():
            rows = self._insert(target, about.bits, batches, new=True)
            self._register(about, target, about.rows + rows)
        return self.about(name)

    def remove(self, name: str, keys: Sequence[str]) -> Collection:
        """Remove the codes of these keys."""
        target, about = self._find(name)
        gone = sorted(set(keys))
        with self._server_errors():
            there = self._there(target, gone)
            missing = [key for key in gone if key not in there]
            if missing:
                raise DataError(f"no key '{missing[0]}' in {name}", self.url, "nothing was removed")
            self._delete(target, gone)
            self._register(about, target, about.rows - len(gone))
        return self.about(name)

    def search(self, name: str, packed: Packed, k: int, keys: Sequence[str] | None = None) -> Found:
        """Find the k nearest codes of each query, 16,384 at most."""
        return self._while_there(name, lambda target, about: self._search(target, about, packed, k, keys))

    def within(self, name: str, packed: Packed, radius: int, keys: Sequence[str] | None = None) -> list[Near]:
        """Find all codes within a Hamming radius of each query; raises UsageError for more than 16,384 of one."""
        check_radius(radius)

        def work(target: str, about: Collection) -> list[Near]:
            near: list[Near] = [(np.empty(0, np.int32), []) for _ in packed]
            left, most = [*range(len(packed))], FIRST  # queries that may have more results than these
            while left:
                distances, found = self._search(target, about, packed[left], most, keys, exact=True)
                for at, line, names in zip(left, distances, found, strict=True):
                    inside = int(np.searchsorted(line, radius, "right"))
                    near[at] = line[:inside], names[:inside]
                left = [at for at in left if len(near[at][1]) == most < about.rows]
                if left and most == MOST:
                    what = f"more than {MOST:,} codes are within {radius} bits, the most that Milvus finds"
                    raise UsageError(what, self.url, "give a smaller number", option="radius")
                most = min(8 * most, MOST)
            return near

        return self._while_there(name, work)

    def ranked(
        self, name: str, embedding: NDArray[np.float32], k: int, rank: Rank, keys: Sequence[str] | None = None
    ) -> Ranked:
        """Find the k best of each query's nearest codes, by the codes; of 16,384 at most."""
        check_k(k)

        def work(target: str, about: Collection) -> Ranked:
            packed, count = packed_queries(embedding, rank, about.bits), rank.candidates(k)
            distances, found = self._search(target, about, packed, min(count, MOST) if k <= MOST else k, keys)
            codes = self._codes(target, {key for line in found for key in line}, packed.shape[1])
            return by_code((distances, found), [codes(line) for line in found], embedding, k, rank)

        return self._while_there(name, work)

    def _while_there(self, name: str, work: Callable[[str, Collection], T]) -> T:
        """Search the Milvus collection that holds the codes; again if it is replaced meanwhile."""
        target, about = self._find(name)
        try:
            return work(target, about)
        except CmrhashError:
            if self._find(name)[0] == target:
                raise
            return self._while_there(name, work)

    def _search(
        self, target: str, about: Collection, packed: Packed, k: int, keys: Sequence[str] | None, exact: bool = False
    ) -> Found:
        wanted = check_query(packed, about, k, keys)
        if wanted > MOST:
            raise UsageError(f"{k} is out of range", self.url, f"Milvus finds at most {MOST}", option="k")
        if not wanted or not len(packed):
            return np.empty((len(packed), wanted), np.int32), [[] for _ in packed]
        if keys is None:
            found = self._nearest(target, packed, wanted, 0 if exact else self._probes)
            short = [at for at, line in enumerate(found) if len(line) < wanted]
            for at, line in zip(short, self._nearest(target, packed[short], wanted, 0), strict=True):
                found[at] = line
        else:
            parts = [self._nearest(target, packed, wanted, 0, part) for part in _filters("key", keys)]
            found = [sorted(chain(*lines))[:wanted] for lines in zip(*parts, strict=True)]
        distances = np.array([[distance for distance, _ in line] for line in found], np.int32)
        return distances.reshape(len(packed), len(found[0])), [[key for _, key in line] for line in found]

    def _codes(self, target: str, keys: set[str], width: int) -> Callable[[Sequence[str]], Packed]:
        """A function that gives the codes of some of these keys, (n, width) uint8."""
        code: dict[str, bytes] = {}
        with self._server_errors():
            for part in _filters("key", sorted(keys)):
                for row in self._client.query(target, filter=part, output_fields=["key", "code"]):
                    raw = row["code"]  # bytes, which pymilvus wraps in a list
                    code[row["key"]] = bytes(raw[0] if isinstance(raw, list) else raw)
        if len(code) < len(keys):
            raise CmrhashError("codes were removed during the search", self.url, "search again")
        return lambda line: np.frombuffer(b"".join(map(code.__getitem__, line)), np.uint8).reshape(-1, width)

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    # ------------------------------------------------------------------------------------------ the server

    @contextmanager
    def _server_errors(self) -> Iterator[None]:
        """Raise server errors as CmrhashError, in one line."""
        try:
            yield
        except MilvusException as error:
            fix = "check the server and the URL; binary vectors need Milvus, or milvus-lite below 3.0"
            raise CmrhashError(f"Milvus: {error.message.splitlines()[0][:200]}", self.url, fix) from error

    def _make(self, target: str, texts: Mapping[str, int], vector: str, bits: int) -> None:
        """Create a Milvus collection: strings, the first of them the key, and a binary vector."""
        schema = self._client.create_schema(auto_id=False, enable_dynamic_field=False)
        for at, (field, length) in enumerate(texts.items()):
            schema.add_field(field, DataType.VARCHAR, is_primary=at == 0, max_length=length)
        schema.add_field(vector, DataType.BINARY_VECTOR, dim=8 * -(-bits // 8))
        self._client.create_collection(target, schema=schema, consistency_level="Strong")

    def _index(self, target: str, vector: str, rows: int) -> None:
        """Make a collection searchable. rows: of an approximate index; 0: exact search."""
        how: dict[str, Any] = {"index_type": "BIN_FLAT"}
        if rows:
            how = {"index_type": "BIN_IVF_FLAT", "params": {"nlist": min(round(4 * rows**0.5), 65_536)}}
        index = self._client.prepare_index_params()
        index.add_index(vector, metric_type="HAMMING", **how)
        self._client.create_index(target, index)
        self._client.load_collection(target)

    def _insert(self, target: str, bits: int, batches: Iterable[Batch], new: bool = False) -> int:
        """Insert codes; returns their number.

        new: refuse keys that exist already; if that or an insertion fails, remove the inserted codes.
        """
        count, done = 0, list[str]()
        try:
            for keys, packed, _ in checked_batches(batches, bits):
                count += len(keys)
                for start in range(0, len(keys), ROWS):
                    some = list(keys[start : start + ROWS])
                    there = self._there(target, some) if new else set()
                    if there:
                        raise DataError(f"key '{min(there)}' already exists", self.url, "remove it first")
                    codes = map(bytes, packed[start : start + ROWS])
                    rows = [{"key": key, "code": code} for key, code in zip(some, codes, strict=True)]
                    done += some if new else []
                    self._client.insert(target, rows)
        except BaseException:
            self._delete(target, done)
            raise
        return count

    def _there(self, target: str, keys: Sequence[str]) -> set[str]:
        """Keys that a collection has already."""
        found = [self._client.query(target, filter=part, output_fields=["key"]) for part in _filters("key", keys)]
        return {row["key"] for rows in found for row in rows}

    def _delete(self, target: str, keys: Sequence[str], field: str = "key") -> None:
        for part in _filters(field, keys):
            self._client.delete(target, filter=part)

    def _lines(self, filter: str) -> list[dict[str, Any]]:
        """Rows of the registry, latest first; none if there is no registry yet."""
        with self._server_errors():
            if not self._client.has_collection(LIST):
                return []
            fields = ["id", "name", "codes", "about"]
            found = self._client.query(LIST, filter=filter, output_fields=fields, limit=MOST)
        lines = [{**line, "about": json.loads(line["about"])} for line in found]
        return sorted(lines, key=lambda line: -line["about"]["version"])

    def _register(self, about: Collection, target: str, rows: int) -> None:
        """Register the Milvus collection that holds the codes now."""
        if not self._client.has_collection(LIST):
            self._make(LIST, {"id": MAX_KEY, "name": MAX_KEY, "codes": MAX_KEY, "about": 65_535}, "unused", 8)
            self._index(LIST, "unused", 0)
        old = self._lines(_is_name(about.name))
        version = old[0]["about"]["version"] + 1 if old else 0
        told = {"bits": about.bits, "rows": rows, "meta": dict(about.meta), "approximate": about.approximate}
        line = {"id": secrets.token_hex(8), "name": about.name, "codes": target, "unused": b"\0"}
        self._client.insert(LIST, [{**line, "about": json.dumps({**told, "version": version})}])
        self._delete(LIST, [line["id"] for line in old], "id")

    def _find(self, name: str) -> tuple[str, Collection]:
        """Milvus collection that holds the codes, and description."""
        lines = self._lines(_is_name(check_name(name)))
        if not lines:
            raise missing_collection(name, self.names(), self.url)
        told = lines[0]["about"]
        target = own_place(name, lines[0]["codes"], _prefix(name) + SUFFIX, self.url)
        return target, Collection(name, told["bits"], told["rows"], told["meta"], told["approximate"])

    def _nearest(
        self, target: str, packed: Packed, k: int, probes: int, filter: str = ""
    ) -> list[list[tuple[int, str]]]:
        """(distance, key) of the k nearest codes of each query. probes: 0 searches all lists."""
        how = {"metric_type": "HAMMING", "params": {"nprobe": probes or 65_536}}
        found: list[list[tuple[int, str]]] = []
        step = max(1, MOST_FOUND // k)
        with self._server_errors():
            for start in range(0, len(packed), step):
                codes = [code.tobytes() for code in packed[start : start + step]]
                lines = self._client.search(
                    target, data=codes, anns_field="code", limit=k, search_params=how, filter=filter
                )
                found += [sorted((int(hit["distance"]), hit["id"]) for hit in hits) for hits in lines]
        return found


def _prefix(name: str) -> str:
    """First part of the names of all Milvus collections of a collection."""
    digest = blake2b(name.encode(), digest_size=8).hexdigest()  # distinguishes names that the next line makes equal
    return f"cmrhash_{re.sub('[^A-Za-z0-9]', '_', name)}_{digest}_"


def _is_name(name: str) -> str:
    """Filter expression for the registry rows of one collection."""
    return next(_filters("name", [name]))


def _filters(field: str, keys: Sequence[str]) -> Iterator[str]:
    """Filter expressions for all keys, some in each: ``ids`` of pymilvus breaks at a quotation mark."""
    quoted = ['"' + key.replace("\\", "\\\\").replace('"', '\\"') + '"' for key in keys]
    for start in range(0, len(quoted), ROWS):
        yield f"{field} in [{', '.join(quoted[start : start + ROWS])}]"
