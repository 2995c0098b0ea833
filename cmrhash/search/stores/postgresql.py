"""``postgresql://...``: collections in PostgreSQL with pgvector 0.7 or later.

    cmrhash_collections(name, codes, bits, rows, approximate, meta)    codes: name of the current table
    cmrhash_<16 hex>(key, row, code bit(n))                            row: order of insertion

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
from cmrhash.errors import CmrhashError, DataError, UsageError
from cmrhash.retrieval.codes import check_bits, unpack
from cmrhash.search.stores import (
    Batch,
    Collection,
    Found,
    check_name,
    check_query,
    checked_batches,
    credentials,
    missing_collection,
    shown,
)

try:
    import psycopg
    from psycopg import errors
    from psycopg.conninfo import conninfo_to_dict
    from psycopg.sql import SQL, Identifier, Literal
except ImportError:
    raise UsageError("PostgreSQL needs psycopg", None, 'pip install "cmrhash[pgvector]"') from None

T = TypeVar("T")
Rows = list[tuple[Any, ...]]
TIMEOUT = 10  # seconds to reach the server, unless the URL says otherwise
ATTEMPTS = 9  # to search a collection that is replaced again and again
MAX_CANDIDATES = 1000  # largest hnsw.ef_search; a search for more neighbours is exact

REGISTRY = """CREATE TABLE IF NOT EXISTS cmrhash_collections (
    name text COLLATE "C" PRIMARY KEY, codes text NOT NULL, bits int NOT NULL, rows bigint NOT NULL,
    approximate bool, meta json NOT NULL)"""
TABLE = """CREATE TABLE {table} (
    key text COLLATE "C" PRIMARY KEY, row bigint GENERATED ALWAYS AS IDENTITY, code bit({bits}) NOT NULL)"""
NEAREST = """SELECT q.n - 1, c.distance, c.key
    FROM unnest({queries}::text[]) WITH ORDINALITY AS q(code, n)
    CROSS JOIN LATERAL (
        SELECT key, row, code <~> q.code::bit({bits}) AS distance FROM {table}
        ORDER BY code <~> q.code::bit({bits}){ties} LIMIT {k}) AS c
    ORDER BY q.n, c.distance, c.row"""


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
            about[1] = self._copy(db, table, bits, batches)
            if approximate:
                db.execute(SQL("CREATE INDEX ON {} USING hnsw (code bit_hamming_ops)").format(table))
            db.execute(SQL("ANALYZE {}").format(table))
            insert = "INSERT INTO cmrhash_collections (name, codes, bits, rows, approximate, meta) "
            insert += "VALUES (%s, '', 1, 0, NULL, '{}') ON CONFLICT DO NOTHING"
            db.execute(insert, [check_name(name)])
            old, _ = self._find(name, lock=True)
            update = "UPDATE cmrhash_collections SET codes=%s, bits=%s, rows=%s, approximate=%s, meta=%s WHERE name=%s"
            db.execute(update, [table.as_string(None).strip('"'), *about, name])
            if old:
                db.execute(SQL("DROP TABLE {}").format(Identifier(old)))
        return self.about(name)

    def add(self, name: str, batches: Iterable[Batch]) -> Collection:
        """Add codes."""
        with self._server_errors(), self._transaction() as db:
            table, about = self._find(name, lock=True)
            added = self._copy(db, Identifier(table), about.bits, batches)
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
            self._db.execute(
                "UPDATE cmrhash_collections SET meta=%s WHERE name=%s", [json.dumps(dict(meta)), check_name(name)]
            )
        return self.about(name)

    def search(self, name: str, packed: NDArray[np.uint8], k: int) -> Found:
        """Find the k nearest codes of each query."""

        def work() -> Found:
            table, about = self._find(name)
            wanted = check_query(packed, about, k)
            exact = not about.approximate or not self._probes or wanted > MAX_CANDIDATES
            found = self._nearest(table, about.bits, packed, wanted, exact)
            short = [at for at, line in enumerate(found) if len(line) < wanted]
            if short and not exact:
                backed = self._nearest(table, about.bits, packed[short], wanted, True)
                found = [backed[short.index(at)] if at in short else line for at, line in enumerate(found)]
            distances = np.array([[distance for distance, _ in line] for line in found], np.int32)
            return distances.reshape(len(packed), wanted), [[key for _, key in line] for line in found]

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
        query = "SELECT codes, name, bits, rows, meta, approximate FROM cmrhash_collections WHERE name=%s"
        rows = self._registered(query + (" FOR UPDATE" if lock else ""), [check_name(name)])
        if not rows:
            raise missing_collection(name, self.names(), self.url)
        return rows[0][0], Collection(*rows[0][1:])

    def _copy(self, db: Any, table: Identifier, bits: int, batches: Iterable[Batch]) -> int:
        """Copy codes into a table; returns their number."""
        rows = 0
        with db.cursor() as cursor, cursor.copy(SQL("COPY {} (key, code) FROM STDIN").format(table)) as copy:
            for keys, packed in checked_batches(batches, bits):
                lines = zip(keys, _digits(packed, bits), strict=True)
                copy.write("".join(f"{key}\t{code}\n" for key, code in lines).replace("\\", "\\\\"))
                rows += len(keys)
        return rows

    def _nearest(
        self, table: str, bits: int, packed: NDArray[np.uint8], k: int, exact: bool
    ) -> list[list[tuple[int, str]]]:
        """(distance, key) of the k nearest codes of each query."""
        query = SQL(NEAREST).format(
            table=Identifier(table),
            bits=Literal(bits),
            k=Literal(k),
            ties=SQL(", row" if exact else ""),
            queries=Literal(_digits(packed, bits)),
        )
        found: list[list[tuple[int, str]]] = [[] for _ in packed]
        with self._transaction() as db:
            if exact:
                db.execute("SET LOCAL enable_indexscan = off")
            else:
                effort = min(max(self._probes, k), MAX_CANDIDATES)
                db.execute(SQL("SET LOCAL hnsw.ef_search = {}").format(Literal(effort)))
            for at, distance, key in db.execute(query):
                found[at].append((int(distance), key))
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


def _first_line(error: Exception) -> str:
    """First line of an error message, without the hints that follow."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines or [type(error).__name__])[0]
