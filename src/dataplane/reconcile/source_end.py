"""The source's end of a comparison: one connection that only reads, each statement in a transaction of its own.

Rows come as COPY's text with the settings that snapshot and stream have, so a value is the same text here as there.
No long snapshot is held, and every statement is bounded. Called by `comparison`, on its thread.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import psycopg
import pyarrow as pa
from psycopg import errors, pq, sql

from contracts.codes import Code
from contracts.v2 import ConnectionDocument
from dataplane import postgres
from dataplane.batch import ChangeBatch, Op, TableSchema
from dataplane.failures import Permanent
from dataplane.postgres import Revealable, Side
from dataplane.reconcile import walking
from dataplane.reconcile.proof import SourceRow
from dataplane.reconcile.walking import Key, Walk
from dataplane.sources.postgres import copytext
from dataplane.sources.postgres.catalog import Catalog, TableSeen
from dataplane.sources.postgres.messages import lsn_number

STATEMENT_SECONDS_MAX = 60
LOCK_SECONDS_MAX = 5

SETTINGS: Mapping[str, str] = {
    **postgres.SESSION_SETTINGS,
    "statement_timeout": f"{STATEMENT_SECONDS_MAX}s",
    "lock_timeout": f"{LOCK_SECONDS_MAX}s",
    "default_transaction_read_only": "on",
    # A chunk and a look-up go through the key's index, whatever the statistics say.
    "enable_seqscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    "jit": "off",
}

_END = """SELECT (CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_insert_lsn() END)::text,
    current_setting('wal_block_size')::int, pg_snapshot_xmin(pg_current_snapshot())::text::int8,
    pg_snapshot_xmax(pg_current_snapshot())::text::int8, current_setting('synchronous_standby_names') <> ''"""

PAGE_HEADER_BYTES_MAX = 40
_VERSION = "t.tableoid::text || t.ctid::text || t.xmin::text"
_MARKED = "t.xmax::text <> '0'"


class LogEnd(NamedTuple):
    """Where the source's log ends, and which transactions run."""

    lsn: int
    """All that a statement before this one has seen was committed before here."""
    running_from: int
    """Every transaction below this one has ended."""
    running_until: int
    """No transaction from this one on has begun."""
    waits_for_standby: bool
    """A commit may stay invisible for long after it was written to the log."""


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows that were asked for by key: `numbers` are the places of those that exist, in order, `batch` their values."""

    numbers: list[int]
    versions: dict[int, SourceRow]
    batch: ChangeBatch | None


class SourceEnd:
    """One table at the source. The constructor does no I/O."""

    def __init__(self, conninfo: str, table: TableSeen, schema: TableSchema) -> None:
        self.schema = schema
        self._conninfo = conninfo
        self._table = table
        self._casts = walking.casts(schema)
        self._connection: psycopg.Connection[tuple[object, ...]] | None = None
        self._walk: Walk | None = None

    def open(self, *, system: str, database: str) -> None:
        """Connect, and check that this is the database that the checkpoint's position belongs to.

        Raises:
            Permanent: it is another one.
        """
        with self._asking():
            connection = self._connection = psycopg.connect(self._conninfo, autocommit=True, prepare_threshold=None)
            found = connection.execute(
                "SELECT system_identifier::text, current_database()::text FROM pg_control_system()"
            ).fetchone()
            if found != (system, database):
                raise Permanent(Code.GAP_OTHER_SYSTEM, "the source is another database than the checkpoint's")
            self._walk = walking.read(
                connection,
                self.schema,
                missing=Code.SOURCE_TABLE_MISSING,
                mismatch=Code.SOURCE_TABLE_WITHOUT_KEY,
            )

    def close(self) -> None:
        """End the session. May be called twice."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def chunk(self, after: Key | None, limit: int) -> ChangeBatch | None:
        """Return the next rows behind `after` in the order of the key; None at the end."""
        walk = self._walking()
        place: sql.Composable = sql.SQL("")
        if after is not None:
            place = sql.SQL("WHERE {}").format(walk.beyond("t", walking.named(self.schema.key, after)))
        columns = sql.SQL(", ").join(sql.Identifier("t", column.name) for column in self.schema.columns)
        query = sql.SQL("SELECT {} FROM {} AS t {} ORDER BY {} LIMIT {}").format(
            columns, self._table.identifier, place, walk.order("t"), sql.Literal(limit)
        )
        arrays = self._copied(query, len(self.schema.columns))
        return self._batch(arrays) if arrays is not None else None

    def rows(self, keys: Sequence[Key]) -> Rows:
        """Return the rows of `keys` that exist, whole."""
        columns = [sql.Identifier("t", column.name) for column in self.schema.columns]
        arrays = self._copied(self._by_key(keys, columns), 3 + len(columns))
        if arrays is None:
            return Rows([], {}, None)
        numbers = [int(number) for number in arrays[0].to_pylist()]
        return Rows(numbers, _versions(arrays), self._batch(arrays[3:]))

    def versions(self, keys: Sequence[Key]) -> dict[int, SourceRow]:
        """Return the versions of the rows of `keys` that exist, by their places."""
        arrays = self._copied(self._by_key(keys, []), 3)
        return {} if arrays is None else _versions(arrays)

    def absent(self, keys: Sequence[Key]) -> list[int]:
        """Return the places of the keys that have no row."""
        query = sql.SQL('SELECT u."pm$n" - 1 FROM {} WHERE NOT EXISTS (SELECT FROM {} AS t WHERE {})').format(
            self._given(keys), self._table.identifier, self._walking().matches("t", "u", self._casts)
        )
        arrays = self._copied(query, 1)
        return [] if arrays is None else sorted(int(number) for number in arrays[0].to_pylist())

    def log_end(self) -> LogEnd:
        """Return where the log ends now."""
        with self._asking():
            row = self._connected().execute(_END).fetchone()
        assert row is not None
        text, block, first, last, waits = row
        lsn, size = lsn_number(str(text)), int(str(block))
        # Behind a page's header nothing was written yet: an idle server never says that it has sent the header.
        if lsn % size <= PAGE_HEADER_BYTES_MAX:
            lsn -= lsn % size
        return LogEnd(lsn, int(str(first)), int(str(last)), bool(waits))

    # ---- Reading ----------------------------------------------------------------------------------------------------

    def _by_key(self, keys: Sequence[Key], columns: Sequence[sql.Composable]) -> sql.Composed:
        return sql.SQL('SELECT {} FROM {} JOIN {} AS t ON {} ORDER BY u."pm$n"').format(
            sql.SQL(", ").join([sql.SQL('u."pm$n" - 1'), sql.SQL(_VERSION), sql.SQL(_MARKED), *columns]),
            self._given(keys),
            self._table.identifier,
            self._walking().matches("t", "u", self._casts),
        )

    def _given(self, keys: Sequence[Key]) -> sql.Composed:
        """Return the keys as a table `u`, each with its place from 1 on."""
        names = self.schema.key
        lists = [sql.SQL("{}::text[]").format(sql.Literal([key[place] for key in keys])) for place in range(len(names))]
        return sql.SQL("unnest({}) WITH ORDINALITY AS u ({}, {})").format(
            sql.SQL(", ").join(lists), sql.SQL(", ").join(map(sql.Identifier, names)), sql.Identifier("pm$n")
        )

    def _copied(self, query: sql.Composed, column_count: int) -> list[pa.Array] | None:
        """Return the query's columns as text; None if it has no row."""
        connection = self._connected()
        statement = sql.SQL("COPY ({}) TO STDOUT").format(query).as_bytes(connection)
        with self._asking():
            rows = _copy_out(connection.pgconn, statement)
        return copytext.columns(rows, column_count)[0] if rows else None

    def _batch(self, arrays: Sequence[pa.Array]) -> ChangeBatch:
        count = len(arrays[0])
        return ChangeBatch(
            table=self.schema,
            rows=pa.record_batch(list(arrays), names=[column.name for column in self.schema.columns]),
            ops=np.full(count, Op.INSERT, np.uint8),
            commit_lsns=np.zeros(count, np.uint64),
            ordinals=np.zeros(count, np.uint32),
            commit_times=np.zeros(count, np.int64),
        )

    def _connected(self) -> psycopg.Connection[tuple[object, ...]]:
        assert self._connection is not None
        return self._connection

    def _walking(self) -> Walk:
        assert self._walk is not None
        return self._walk

    @contextmanager
    def _asking(self) -> Iterator[None]:
        try:
            yield
        except psycopg.Error as error:
            raise postgres.failure(error, Side.SOURCE, table=self.schema.table) from error


def conninfo(connection: ConnectionDocument, password: Revealable | None, name: str) -> str:
    """Return the connection string of the source's session."""
    return postgres.conninfo(connection, password, application_name=name, settings=SETTINGS)


async def describe(conninfo: str, table: str) -> tuple[TableSeen, TableSchema]:
    """Ask the source's catalog for a table, as the pipeline's own source does.

    Raises:
        Failure: it is not there, may not be read, or the source does not answer.
    """
    catalog = Catalog(conninfo)
    try:
        (seen,) = await catalog.tables([table])
        return seen, await catalog.schema(seen)
    except psycopg.Error as error:
        raise postgres.failure(error, Side.SOURCE, table=table) from error
    finally:
        await catalog.close()


def keys_of(batch: ChangeBatch, places: Sequence[int]) -> list[Key]:
    """Return the keys of some rows of a batch."""
    columns = [batch.rows.column(name).take(list(places)).to_pylist() for name in batch.table.key]
    return list(zip(*columns, strict=True))


def _versions(arrays: Sequence[pa.Array]) -> dict[int, SourceRow]:
    numbers, versions, marks = (array.to_pylist() for array in arrays[:3])
    return {
        int(number): SourceRow(version, mark == "t")
        for number, version, mark in zip(numbers, versions, marks, strict=True)
    }


def _copy_out(pgconn: pq.abc.PGconn, statement: bytes) -> list[bytes]:
    """Run a COPY to the client and return its lines; the query bounds how many."""
    result = pgconn.exec_(statement)
    if result.status != pq.ExecStatus.COPY_OUT:
        raise errors.error_from_result(result, encoding="utf-8")
    rows: list[bytes] = []
    while (received := pgconn.get_copy_data(0))[0] > 0:
        rows.append(bytes(received[1]))
    while (end := pgconn.get_result()) is not None:
        if end.status == pq.ExecStatus.FATAL_ERROR:
            raise errors.error_from_result(end, encoding="utf-8")
    return rows
