"""``postgresql://...``: collections in PostgreSQL with pgvector 0.7 or later.

    cmrhash_collections(name, codes, bits, rows, approximate, meta)    codes: name of the current table
    cmrhash_<16 hex>(key, row, code bit(n))                            row: order of insertion
                    (..., embedding halfvec(n))                        if requested, of length 1

Bit j of a code is character j of ``code``. ``replace`` is one transaction: it fills and indexes a new table, registers
it in cmrhash_collections and drops the old one. Searches continue meanwhile, and a killed writer leaves nothing.
Without an HNSW index a search is exact and orders equal distances by row. Only this module imports psycopg.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar
from urllib.parse import unquote

import numpy as np
from numpy.typing import NDArray

from cmrhash.config import PROBES
from cmrhash.errors import CmrhashError, DataError, UsageError, lacking
from cmrhash.retrieval.codes import check_bits, check_k, check_packed, check_radius, unpack
from cmrhash.retrieval.ranking import RERANK, Rank
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
    embedding_of,
    missing_collection,
    own_place,
    packed_queries,
    shown,
)

try:
    import psycopg
    from psycopg import errors
    from psycopg.conninfo import conninfo_to_dict
    from psycopg.sql import SQL, Composable, Composed, Identifier, Literal
except ImportError as error:
    raise lacking("PostgreSQL needs psycopg", "psycopg", error, None, 'pip install "cmrhash[pgvector]"') from None

T = TypeVar("T")
Rows = list[tuple[Any, ...]]
TIMEOUT = 10  # seconds to reach the server, unless the URL says otherwise
ATTEMPTS = 9  # to search a collection that is replaced again and again
MAX_CANDIDATES = 1000  # largest hnsw.ef_search; a search for more neighbours is exact

EXACT = "SET LOCAL enable_indexscan = off"

REGISTRY = """CREATE TABLE IF NOT EXISTS cmrhash_collections (
    name text COLLATE "C" PRIMARY KEY, codes text NOT NULL, bits int NOT NULL, rows bigint NOT NULL,
    approximate bool, meta json NOT NULL)"""
REGISTER = """INSERT INTO cmrhash_collections (name, codes, bits, rows, approximate, meta)
    VALUES (%s, '', 1, 0, NULL, '{}') ON CONFLICT DO NOTHING"""
TABLE = """CREATE TABLE {table} (
    key text COLLATE "C" PRIMARY KEY, row bigint GENERATED ALWAYS AS IDENTITY, code bit({bits}) NOT NULL)"""
TABLE_NAME = "cmrhash_[0-9a-f]{16}"
QUERIES = "FROM unnest({queries}::text[], {reals}::text[]) WITH ORDINALITY AS q(code, real, n) CROSS JOIN LATERAL"
NEAR = """SELECT *, code <~> q.code::bit({bits}) AS distance FROM {table}{where}
    ORDER BY code <~> q.code::bit({bits}){ties} LIMIT {k}"""
NEAREST = f"""SELECT q.n - 1, c.distance, c.key, c.code::text {QUERIES} ({NEAR}) AS c
    ORDER BY q.n, c.distance, c.row"""
# the cosine distance of a vector of zeros is NaN
SCORE = "round(1 - coalesce(nullif(embedding::vector <=> q.real::vector({bits}), 'NaN'), 1)::numeric, 6)::float8"
RERANKED = f"""SELECT q.n - 1, c.distance, c.key, c.score {QUERIES} (
        SELECT distance, key, {SCORE} AS score FROM ({NEAR}) AS near ORDER BY score DESC, key LIMIT {{best}}) AS c
    ORDER BY q.n, c.score DESC, c.key"""
WITHIN = f"""SELECT q.n - 1, c.distance, c.key {QUERIES} (
        SELECT key, row, code <~> q.code::bit({{bits}}) AS distance FROM {{table}}{{where}}) AS c
    WHERE c.distance <= {{radius}} ORDER BY q.n, c.distance, c.row"""
EMBEDDINGS = """EXISTS (SELECT FROM pg_attribute WHERE attrelid = to_regclass(quote_ident(codes))
    AND attname = 'embedding' AND NOT attisdropped)"""
DESCRIBED = f"SELECT codes, name, bits, rows, meta, approximate, {EMBEDDINGS} FROM cmrhash_collections WHERE name=%s"


class PostgresStore:
    """A `cmrhash.search.stores.CodeStore` in a database, which reconnects after a lost connection."""

    def __init__(self, url: str, probes: int | None) -> None:
        self.url = shown(url)
        open_url, password = credentials(url)
        try:
            self._options: dict[str, Any] = {"connect_timeout": TIMEOUT, **conninfo_to_dict(open_url)}
        except psycopg.Error:  # its message may quote the password
            raise UsageError("not a URL of PostgreSQL", self.url, "give postgresql://USER@HOST/DATABASE") from None
        if password is not None:
            self._options["password"] = unquote(password)
        self._probes = PROBES["postgresql"] if probes is None else probes
        with self._server_errors():
            self._db = self._connect()

    def __repr__(self) -> str:
        return f"PostgresStore({self.url!r})"

    def names(self) -> list[str]:
        """Names of the collections, sorted."""
        return [row[0] for row in self._registered("SELECT name FROM cmrhash_collections ORDER BY name")]

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
        """Create or replace a collection; creates extension and registry if needed.

        approximate: with an HNSW index, which takes minutes for 100,000 codes; None: without.
        """
        table = Identifier(f"cmrhash_{secrets.token_hex(8)}")
        about = [check_bits(bits), 0, approximate, json.dumps(dict(meta or {}))]
        with self._server_errors(), self._transaction() as db:
            _need_extension(db, self.url)
            db.execute(REGISTRY)
            db.execute(SQL(TABLE).format(table=table, bits=Literal(bits)))
            if embeddings:
                db.execute(SQL("ALTER TABLE {} ADD embedding halfvec({}) NOT NULL").format(table, Literal(bits)))
            about[1] = self._copy(db, table, bits, batches, embeddings)
            if approximate:
                db.execute(SQL("CREATE INDEX ON {} USING hnsw (code bit_hamming_ops)").format(table))
            db.execute(SQL("ANALYZE {}").format(table))
            db.execute(REGISTER, [check_name(name)])
            old, _ = self._find(name, lock=True)
            update = "UPDATE cmrhash_collections SET codes=%s, bits=%s, rows=%s, approximate=%s, meta=%s WHERE name=%s"
            db.execute(update, [table.as_string(None).strip('"'), *about, name])
            others = db.execute("SELECT FROM cmrhash_collections WHERE codes=%s", [old]).fetchall()
            if old and not others:  # an entry may have been changed to the table of another collection
                db.execute(SQL("DROP TABLE {}").format(Identifier(old)))
        return self.about(name)

    def add(self, name: str, batches: Iterable[Batch]) -> Collection:
        """Add codes."""
        with self._server_errors(), self._transaction() as db:
            table, about = self._find(name, lock=True)
            added = self._copy(db, Identifier(table), about.bits, batches, about.embeddings)
            db.execute("UPDATE cmrhash_collections SET rows=rows+%s WHERE name=%s", [added, name])
        return self.about(name)

    def remove(self, name: str, keys: Sequence[str]) -> Collection:
        """Remove the codes of these keys."""
        gone = sorted(set(keys))
        with self._server_errors(), self._transaction() as db:
            table, _ = self._find(name, lock=True)
            delete = SQL("DELETE FROM {} WHERE key = ANY(%s) RETURNING key").format(Identifier(table))
            found = {key for (key,) in db.execute(delete, [gone])}
            missing = [key for key in gone if key not in found]
            if missing:
                raise DataError(f"no key '{missing[0]}' in {name}", self.url, "nothing was removed")
            db.execute("UPDATE cmrhash_collections SET rows=rows-%s WHERE name=%s", [len(gone), name])
        return self.about(name)

    def update(self, name: str, gone: Sequence[str], batches: Iterable[Batch], meta: Mapping[str, Any]) -> Collection:
        """Remove the codes of these keys, add codes and replace the meta, in one transaction."""
        with self._server_errors(), self._transaction():
            self.remove(name, gone)
            self.add(name, batches)
            about = [json.dumps(dict(meta)), check_name(name)]
            self._db.execute("UPDATE cmrhash_collections SET meta=%s WHERE name=%s", about)
        return self.about(name)

    def search(self, name: str, packed: Packed, k: int, keys: Sequence[str] | None = None) -> Found:
        """Find the k nearest codes of each query."""

        def work() -> Found:
            table, about = self._find(name)
            return _found(self._nearest(table, about, packed, k, keys), check_query(packed, about, k, keys))

        return self._retry(work)

    def within(self, name: str, packed: Packed, radius: int, keys: Sequence[str] | None = None) -> list[Near]:
        """Find all codes within a Hamming radius of each query."""
        check_radius(radius)

        def work() -> list[Near]:
            table, about = self._find(name)
            check_packed(packed, about.bits, "query codes")
            query = self._query(WITHIN, table, about.bits, packed, keys, radius=Literal(min(radius, about.bits)))
            lines = self._run(query, len(packed), EXACT)
            return [(np.array([d for d, _ in line], np.int32), [key for _, key in line]) for line in lines]

        return self._retry(work)

    def ranked(
        self, name: str, embedding: NDArray[np.float32], k: int, rank: Rank, keys: Sequence[str] | None = None
    ) -> Ranked:
        """Find the k best of each query's nearest codes, in SQL if the collection keeps embeddings."""
        count = rank.candidates(check_k(k))

        def work() -> Ranked:
            table, about = self._find(name)
            packed = packed_queries(embedding, rank, about.bits)
            if rank.kind == RERANK and about.embeddings:
                lines = self._nearest(table, about, packed, count, keys, (embedding, k))
                scores = np.array([[score for *_, score in line] for line in lines], np.float64)
                distances, names = _found(lines, check_query(packed, about, k, keys))
                return distances, names, scores.reshape(distances.shape)
            lines = self._nearest(table, about, packed, count, keys)
            codes = [_of_digits([code for *_, code in line], about.bits) for line in lines]
            return by_code(_found(lines, check_query(packed, about, k, keys)), codes, embedding, k, rank)

        return self._retry(work)

    def close(self) -> None:
        """Close the connection."""
        self._db.close()

    # ------------------------------------------------------------------------------------------ the database

    def _connect(self) -> psycopg.Connection[tuple[Any, ...]]:
        return psycopg.connect(**self._options, autocommit=True)

    @contextmanager
    def _transaction(self) -> Iterator[psycopg.Connection[tuple[Any, ...]]]:
        if self._db.closed:
            self._db = self._connect()
        with self._db.transaction():
            yield self._db

    def _retry(self, work: Callable[[], T]) -> T:
        """Repeat work once after a lost connection, and while its table is being replaced."""
        with self._server_errors():
            for _ in range(ATTEMPTS):
                try:
                    return work()
                except errors.UndefinedTable:
                    continue
                except psycopg.OperationalError:
                    break
            return work()

    @contextmanager
    def _server_errors(self) -> Iterator[None]:
        """Raise server errors as CmrhashError or DataError, in one line."""
        try:
            yield
        except errors.InsufficientPrivilege as error:
            what = error.diag.message_primary
            raise CmrhashError(f"{what}", self.url, "ask the owner of the database for it") from error
        except errors.UniqueViolation as error:
            raise DataError(f"{error.diag.message_detail}", self.url, "remove it first") from error
        except psycopg.OperationalError as error:
            fix = "check the server and the URL; passwords may be in PGPASSWORD or ~/.pgpass"
            raise CmrhashError(_first_line(error), self.url, fix) from error
        except psycopg.Error as error:
            raise CmrhashError(f"PostgreSQL: {_first_line(error)}", self.url) from error

    def _registered(self, query: str, arguments: Sequence[Any] = ()) -> Rows:
        """Query the registry of collections; no rows if it does not exist yet."""

        def work() -> Rows:
            with self._transaction() as db:
                there = db.execute("SELECT to_regclass('cmrhash_collections')").fetchone()
                return db.execute(query.encode(), arguments).fetchall() if there and there[0] else []

        return self._retry(work)

    def _find(self, name: str, lock: bool = False) -> tuple[str, Collection]:
        """Table and description of a collection. lock: against other writers, for the transaction."""
        rows = self._registered(DESCRIBED + (" FOR UPDATE" if lock else ""), [check_name(name)])
        if not rows:
            raise missing_collection(name, self.names(), self.url)
        table = rows[0][0] and own_place(name, rows[0][0], TABLE_NAME, self.url)  # "": made by `replace` just now
        return table, Collection(*rows[0][1:])

    def _copy(self, db: Any, table: Identifier, bits: int, batches: Iterable[Batch], embeddings: bool) -> int:
        """Copy codes, and embeddings if the table has them; returns their number."""
        count, columns = 0, SQL("key, code, embedding" if embeddings else "key, code")
        with db.cursor() as cursor, cursor.copy(SQL("COPY {} ({}) FROM STDIN").format(table, columns)) as copy:
            for rows in checked_batches(batches, bits):
                fields = [rows.keys, _digits(rows.packed, bits)]
                if embeddings:
                    fields.append(_texts(embedding_of(rows, bits)))
                lines = map("\t".join, zip(*fields, strict=True))
                copy.write("".join(f"{line}\n" for line in lines).replace("\\", "\\\\"))
                count += len(rows.keys)
        return count

    def _nearest(
        self,
        table: str,
        about: Collection,
        packed: Packed,
        k: int,
        keys: Sequence[str] | None,
        best: tuple[NDArray[np.float32], int] | None = None,
    ) -> list[Rows]:
        """(distance, key, code) of the k nearest codes of each query, exact if the index finds too few.

        best: embeddings of the queries and number of results: (distance, key, score) of these, by score.
        """
        wanted = check_query(packed, about, k, keys)
        exact = not about.approximate or not self._probes or wanted > MAX_CANDIDATES or keys is not None
        found = self._lines(table, about.bits, packed, wanted, keys, exact, best)
        enough = min(wanted, best[1]) if best else wanted
        short = [at for at, line in enumerate(found) if len(line) < enough]
        if short and not exact:
            some = (best[0][short], best[1]) if best else None
            for at, line in zip(short, self._lines(table, about.bits, packed[short], k, keys, True, some), strict=True):
                found[at] = line
        return found

    def _lines(
        self,
        table: str,
        bits: int,
        packed: Packed,
        k: int,
        keys: Sequence[str] | None,
        exact: bool,
        best: tuple[NDArray[np.float32], int] | None,
    ) -> list[Rows]:
        parts = {"k": Literal(k), "best": Literal(best[1] if best else 0), "ties": SQL(", row" if exact else "")}
        parts |= {"reals": Literal(_texts(best[0]))} if best else {}
        query = self._query(RERANKED if best else NEAREST, table, bits, packed, keys, **parts)
        effort = min(max(self._probes, k), MAX_CANDIDATES)
        return self._run(query, len(packed), EXACT if exact else f"SET LOCAL hnsw.ef_search = {effort}")

    def _query(
        self, query: str, table: str, bits: int, packed: Packed, keys: Sequence[str] | None, **parts: Composable
    ) -> Composed:
        """A query with its parts. keys: search only the codes of these."""
        among = SQL("" if keys is None else " WHERE key = ANY({})").format(Literal(list(keys or ())))
        queries, reals = Literal(_digits(packed, bits)), parts.pop("reals", Literal([]))
        own = {"table": Identifier(table), "bits": Literal(bits), "where": among, "queries": queries, "reals": reals}
        return SQL(query).format(**own, **parts)

    def _run(self, query: Composed, count: int, setting: str) -> list[Rows]:
        """Rows (distance, key, ...) of each of ``count`` codes. setting: a command for this transaction."""
        found: list[Rows] = [[] for _ in range(count)]
        with self._transaction() as db:
            db.execute(setting.encode())
            for at, distance, *line in db.execute(query):
                found[at].append((int(distance), *line))
        return found


def _need_extension(db: Any, url: str) -> None:
    """Create the extension if missing; raises CmrhashError if it is not installed or too old."""
    version = db.execute("SELECT extversion FROM pg_extension WHERE extname='vector'").fetchone()
    if version is None:
        try:
            with db.transaction():
                db.execute("CREATE EXTENSION vector")
        except errors.InsufficientPrivilege:
            fix = "let its administrator run CREATE EXTENSION vector"
            raise CmrhashError("the database has no extension vector", url, fix) from None
        except (errors.FeatureNotSupported, errors.UndefinedFile):
            raise CmrhashError("the server has no pgvector", url, "install pgvector 0.7 or later on it") from None
    elif tuple(map(int, version[0].split(".")[:2])) < (0, 7):
        fix = "upgrade it to 0.7 or later, and run ALTER EXTENSION vector UPDATE"
        raise CmrhashError(f"pgvector {version[0]} cannot search bits", url, fix)


def _digits(packed: NDArray[np.uint8], bits: int) -> list[str]:
    """Codes as "0110...", bit 0 first."""
    text = (unpack(packed, bits).astype(np.uint8) + ord("0")).tobytes().decode("ascii")
    return [text[at : at + bits] for at in range(0, len(text), bits)]


def _of_digits(digits: Sequence[str], bits: int) -> Packed:
    """Packed codes of "0110...", (n, ceil(bits / 8)) uint8."""
    signs = np.frombuffer("".join(digits).encode(), np.uint8).reshape(-1, bits) - ord("0")
    return np.packbits(signs, axis=1, bitorder="little")


def _texts(vectors: NDArray[np.float32]) -> list[str]:
    """Vectors as "[0.5, -1.0, ...]", as pgvector reads them."""
    return [str(vector) for vector in vectors.tolist()]


def _found(lines: Sequence[Rows], most: int) -> Found:
    """Distances and keys of lines of equal length; most: this length if there is no line."""
    distances = np.array([[distance for distance, *_ in line] for line in lines], np.int32)
    shape = len(lines), len(lines[0]) if lines else most
    return distances.reshape(shape), [[line[1] for line in one] for one in lines]


def _first_line(error: Exception) -> str:
    """First line of an error message, without the hints that follow."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines or [type(error).__name__])[0]
