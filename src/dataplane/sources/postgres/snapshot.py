"""Copy tables as they were at one moment: the snapshot that a replication slot exported when it was made.

In flow an exported snapshot's name and tables; out flow change sets with all rows of each table, one transaction a table.
Called by the source before the stream begins. Reading and parsing run in a thread, one chunk ahead of the consumer; when
the consumer is slow nothing is read, and TCP stops the server. So memory is bounded by two chunks.

The tables are locked against DDL (ACCESS SHARE) as long as the copy runs. A table that was rewritten between the moment
of the snapshot and the lock would look empty, so that is checked and the whole copy starts again.
"""

import asyncio
import select
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import ParamSpec, TypeVar

import numpy as np
import psycopg
from psycopg import errors, pq, sql

from contracts.codes import Code
from dataplane.batch import ChangeBatch, ChangeSet, Op, Position, TableSchema, Truncate
from dataplane.failures import RetryLater
from dataplane.postgres import Side, failure
from dataplane.sources.postgres import copytext, tuples
from dataplane.sources.postgres.catalog import TableSeen
from dataplane.sources.postgres.replication import ReplicationConnection

P = ParamSpec("P")
T = TypeVar("T")

CHUNK_ROWS_MAX = 20_000
CHUNK_BYTES_MAX = 4 << 20
POLL_SECONDS_MAX = 0.2
"""How late a close is noticed while the server sends nothing."""

_REWRITTEN = """
SELECT count(*) FROM pg_class c WHERE c.oid IN (SELECT unnest(%(oids)s::oid[])
    UNION SELECT t.relid FROM unnest(%(oids)s::oid[]) AS o(oid), pg_partition_tree(o.oid) AS t)
    AND c.relkind = 'r' AND c.relfilenode IS DISTINCT FROM pg_relation_filenode(c.oid)
"""


class Snapshot:
    """The tables at one moment. `lsn` is the slot's consistent point: what committed before it is in here.

    `undecodable_values` counts the values that were not valid UTF-8.
    """

    def __init__(self, conninfo: str, lsn: int) -> None:
        self.lsn = lsn
        self.undecodable_values = 0
        self._conninfo = conninfo
        self._connection: psycopg.Connection[tuple[object, ...]] | None = None
        self._closing = False
        self._time = 0
        self._ordinal = 0
        self._ahead: list[bytes] = []
        self._reading: asyncio.Task[tuple[ChangeBatch | None, bool]] | None = None

    def begin(self, snapshot_name: str, tables: Sequence[TableSeen]) -> None:
        """Take over the exported snapshot and lock the tables. Blocks; the exporting session may end afterwards.

        Raises:
            RetryLater: a table was rewritten in between, or is locked.
            psycopg.Error: the server refused.
        """
        connection = psycopg.connect(self._conninfo, autocommit=True)
        self._connection = connection
        connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        connection.execute(sql.SQL("SET TRANSACTION SNAPSHOT {}").format(sql.Literal(snapshot_name)))
        connection.execute("SET LOCAL lock_timeout = '10s'")
        for table in tables:
            connection.execute(sql.SQL("LOCK TABLE {} IN ACCESS SHARE MODE").format(table.identifier))
        rewritten = connection.execute(_REWRITTEN, {"oids": [table.oid for table in tables]}).fetchone()
        if rewritten != (0,):
            raise RetryLater(Code.SOURCE_UNREACHABLE, "a table was rewritten while its copy began")
        now = connection.execute("SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::int8").fetchone()
        assert now is not None
        self._time = int(now[0])

    async def changes(
        self, tables: Sequence[tuple[TableSeen, TableSchema]], *, confirm_early: int, resyncs: Mapping[str, int]
    ) -> AsyncIterator[ChangeSet]:
        """Give the rows of each table, one transaction a table. `confirm_early` is the `commit_end_lsn` of all but the last.

        The sets of a table carry its counter in `resyncs`, which they reach.

        Raises:
            Failure: the connection was lost; the copy starts over.
        """
        for number, (table, schema) in enumerate(tables):
            last_table = number == len(tables) - 1
            items: tuple[ChangeBatch | Truncate, ...] = (Truncate(schema, self._next(1), for_snapshot=True),)
            await self._in_thread(self._begin_copy, table, schema)
            begins, ended = True, False
            following = self._read_ahead(schema)
            while not ended:
                batch, ended = await following
                if not ended:
                    following = self._read_ahead(schema)
                if batch is not None:
                    items = (*items, batch)
                if ended and last_table:
                    # The locks on the tables go before the consumer is waited for.
                    await self.close()
                yield self._set(
                    schema,
                    items,
                    begins=begins,
                    ends=ended,
                    commit_end_lsn=(self.lsn if last_table else confirm_early) if ended else 0,
                    snapshot_ends=ended and last_table,
                    resync=resyncs.get(schema.table, 0),
                )
                begins, items = False, ()

    def _set(
        self,
        schema: TableSchema,
        items: tuple[ChangeBatch | Truncate, ...],
        *,
        begins: bool,
        ends: bool,
        commit_end_lsn: int,
        snapshot_ends: bool,
        resync: int,
    ) -> ChangeSet:
        first, last = self._bounds(items)
        return ChangeSet(
            items=items,
            first=first,
            last=last,
            begins=begins,
            ends=ends,
            commit_end_lsn=commit_end_lsn,
            commit_time=self._time,
            transactions=int(ends),
            snapshot_of=schema.table,
            snapshot_ends=snapshot_ends,
            resync=resync,
        )

    def _bounds(self, items: tuple[ChangeBatch | Truncate, ...]) -> tuple[Position, Position]:
        last = Position(self.lsn - 1, self._ordinal - 1)
        if not items:
            return last, last
        head, tail = items[0], items[-1]
        first = head.position if isinstance(head, Truncate) else Position(self.lsn - 1, int(head.ordinals[0]))
        last = tail.position if isinstance(tail, Truncate) else Position(self.lsn - 1, int(tail.ordinals[-1]))
        return first, last

    def _next(self, count: int) -> Position:
        position = Position(self.lsn - 1, self._ordinal)
        self._ordinal += count
        return position

    def _read_ahead(self, schema: TableSchema) -> asyncio.Task[tuple[ChangeBatch | None, bool]]:
        task = asyncio.create_task(self._in_thread(self._read, schema))
        self._reading = task
        return task

    async def _in_thread(self, function: Callable[P, T], *arguments: P.args, **keywords: P.kwargs) -> T:
        try:
            return await asyncio.to_thread(function, *arguments, **keywords)
        except psycopg.Error as error:
            raise failure(error, Side.SOURCE) from None

    async def close(self) -> None:
        """End the reading and the connection."""
        self._closing = True
        if self._reading is not None:
            await asyncio.wait([self._reading])
            if not self._reading.cancelled():
                self._reading.exception()
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    # ---- in a thread --------------------------------------------------------------------------------------------

    def _begin_copy(self, table: TableSeen, schema: TableSchema) -> None:
        columns = sql.SQL(", ").join(sql.Identifier(column.name) for column in schema.columns)
        statement = sql.SQL("COPY (SELECT {} FROM {}) TO STDOUT").format(columns, table.identifier)
        pgconn = self._pgconn()
        pgconn.nonblocking = 0
        result = pgconn.exec_(statement.as_bytes())
        if result.status != pq.ExecStatus.COPY_OUT:
            raise errors.error_from_result(result, encoding="utf-8")

    def _pgconn(self) -> pq.abc.PGconn:
        if self._connection is None:
            raise RetryLater(Code.SOURCE_UNREACHABLE, "the connection was closed")
        return self._connection.pgconn

    def _read(self, schema: TableSchema) -> tuple[ChangeBatch | None, bool]:
        """Read one chunk. Return its rows, if any, and whether the table has ended."""
        pgconn = self._pgconn()
        get = pgconn.get_copy_data
        poll = select.poll()
        poll.register(pgconn.socket, select.POLLIN)
        rows, self._ahead = self._ahead, []
        size = sum(map(len, rows))
        while True:
            length, data = get(1)
            if length > 0:
                if len(rows) >= CHUNK_ROWS_MAX or size >= CHUNK_BYTES_MAX:
                    # The row behind the chunk: a chunk is only full when it is known that more follows.
                    self._ahead = [bytes(data)]
                    return self._batch(rows, schema), False
                rows.append(bytes(data))
                size += length
            elif length == 0:
                if self._closing:
                    raise RetryLater(Code.SOURCE_UNREACHABLE, "the copy was ended")
                poll.poll(POLL_SECONDS_MAX * 1000)
                pgconn.consume_input()
            else:
                self._finish_copy(pgconn)
                return self._batch(rows, schema), True

    def _finish_copy(self, pgconn: pq.abc.PGconn) -> None:
        while (result := pgconn.get_result()) is not None:
            if result.status == pq.ExecStatus.FATAL_ERROR:
                raise errors.error_from_result(result, encoding="utf-8")

    def _batch(self, rows: list[bytes], schema: TableSchema) -> ChangeBatch | None:
        count = len(rows)
        if not count:
            return None
        arrays, mended = copytext.columns(rows, len(schema.columns))
        self.undecodable_values += mended
        first = self._next(count)
        return ChangeBatch(
            table=schema,
            rows=tuples.names([column.name for column in schema.columns], arrays),
            ops=np.full(count, Op.INSERT, np.uint8),
            commit_lsns=np.full(count, first.lsn, np.uint64),
            ordinals=np.arange(first.ordinal, first.ordinal + count, dtype=np.uint32),
            commit_times=np.full(count, self._time, np.int64),
        )


def export(
    connection: ReplicationConnection, slot: str, *, temporary: bool, version: int, failover: bool = False
) -> tuple[int, str]:
    """Make a slot and return its consistent point and the name of the snapshot that it exports. Blocks.

    The snapshot lives until the connection's next command or end. With `failover`, standbys keep a copy of the slot.

    Raises:
        psycopg.Error: the server refused.
        RetryLater: transactions that were open when it began did not end in time.
    """
    more = ", FAILOVER true" if failover else ""
    options = f"(SNAPSHOT 'export'{more})" if version >= 150000 else "EXPORT_SNAPSHOT"
    kind = "TEMPORARY LOGICAL" if temporary else "LOGICAL"
    ((_, point, name, _),) = connection.command(f'CREATE_REPLICATION_SLOT "{slot}" {kind} pgoutput {options}')
    assert point is not None
    assert name is not None
    high, low = point.split("/")
    return (int(high, 16) << 32) | int(low, 16), name
