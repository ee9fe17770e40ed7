"""Read one part of a table at one moment: the rows between two keys, and which moment that was.

In flow a table's name and where to begin; out flow the moment, the key where the part ends, and its rows as batches. A
`ChunkReader` has one connection and reads one part at a time; the copy uses as many readers as it may. Reading and parsing
run in a thread, one batch ahead of the consumer; when the consumer is slow nothing is read, and TCP stops the server. So
memory is bounded by two batches for each reader.

The table is locked against DDL (ACCESS SHARE) before the moment is taken and until its rows are read, so columns, key and
rows belong together.
"""

import asyncio
import contextlib
import select
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ParamSpec, TypeVar

import numpy as np
import psycopg
import pyarrow as pa
from psycopg import errors, pq, sql

from contracts.codes import Code
from dataplane.batch import ChangeBatch, CopiedBatch, Key, Op, Position, TableSchema
from dataplane.failures import RetryLater
from dataplane.postgres import Side, failure
from dataplane.sources.postgres import copytext, tuples
from dataplane.sources.postgres.messages import lsn_number
from dataplane.sources.postgres.moment import Moment
from dataplane.sources.postgres.ranges import Part

P = ParamSpec("P")
T = TypeVar("T")
Batch = tuple[ChangeBatch | None, bool]

BATCH_ROWS_MAX = 20_000
TEXT_ROWS_MAX = 100_000
"""The same where nothing is made of the rows."""
FIRST_ROWS_MAX = 1000
"""A copy's first batch is small: the destination gets ready for the table while the next one is read."""
BATCH_BYTES_MAX = 4 << 20
KEYS_MAX = 500
"""So many rows are asked for at once by their keys."""
POLL_SECONDS_MAX = 0.2
"""How late a close is noticed while the server sends nothing."""
CANCEL_SECONDS_MAX = 2.0
LOCK_SECONDS_MAX = 1
"""A table that somebody has locked is left for later after this time; the stream waits as long."""
PAGE_BYTES, PAGE_HEADERS = 8192, (24, 40)

_MOMENT = """
SELECT pg_current_snapshot()::text, pg_current_wal_insert_lsn()::text,
       (extract(epoch FROM clock_timestamp()) * 1000000)::int8,
       c.oid, c.relkind = 'r', c.reltuples::float8, pg_table_size(c.oid),
       (SELECT array_agg(a.attname::text ORDER BY k)
        FROM pg_index i CROSS JOIN generate_series(0, i.indnkeyatts - 1) AS k
        JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = i.indkey[k]
        WHERE i.indrelid = c.oid AND CASE WHEN c.relreplident = 'i' THEN i.indisreplident ELSE i.indisprimary END)
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = %s AND c.relname = %s
"""


@dataclass(frozen=True, slots=True)
class Seen:
    """A table at the moment at which it is read. `through` is where the log ended then, `time` the server's clock.

    `rows` is the server's estimate (negative when it has none), `size` the table's bytes. `key` is in its index's order.
    """

    moment: Moment
    through: int
    time: int
    oid: int
    only: bool
    rows: float
    size: int
    key: tuple[str, ...]


class ChunkReader:
    """One connection that reads parts of tables, one after another. `undecodable_values` counts what was not UTF-8."""

    def __init__(self, conninfo: str) -> None:
        self.undecodable_values = 0
        self._conninfo = conninfo
        self._connection: psycopg.Connection[tuple[object, ...]] | None = None
        self._closing = False
        self._ahead: list[bytes] = []
        self._reading: asyncio.Future[Any] | None = None

    async def begin(self, name: str) -> Seen | None:
        """Lock a table and take the moment. None when it is locked by somebody: then nothing is open.

        Raises:
            Failure: the server refused, or the table is gone.
        """
        return await self._in_thread(self._begin, name)

    async def bound(self, part: Part, after: Key | None, rows: int) -> Key | None:
        """Return the key at which the next `rows` rows end; None when no more than these are left."""
        return await self._in_thread(self._bound, part, after, rows)

    async def copy(self, part: Part, after: Key | None, upto: Key | None) -> None:
        """Begin to read the rows between the two keys."""
        await self._in_thread(self._begin_copy, part, after, upto)

    def read_ahead(
        self, schema: TableSchema, position: Position, time: int, *, as_text: bool = False, first: bool = False
    ) -> "asyncio.Future[Batch]":
        """Begin at once to read the next rows; `taken` gives them, and whether these were the last.

        All stand at `position`. With the last the transaction has ended, and the table's lock is gone, taken or not.
        `as_text` leaves them as they come (`CopiedBatch`), where that is possible. `first` says that the copy begins.
        """
        make = partial(self._batch, schema=schema, position=position, time=time, as_text=as_text)
        rows_max = FIRST_ROWS_MAX if first else TEXT_ROWS_MAX if as_text else BATCH_ROWS_MAX
        self._reading = work = asyncio.get_running_loop().run_in_executor(None, self._read, make, rows_max)
        return work

    async def taken(self, work: "asyncio.Future[Batch]") -> Batch:
        """Wait for what was read ahead."""
        try:
            return await asyncio.shield(work)
        except psycopg.Error as error:
            raise failure(error, Side.SOURCE) from None

    async def rows(self, part: Part, columns: Sequence[str], keys: Sequence[Key]) -> list[list[str | None]]:
        """Return `columns` of the rows with these keys, each behind its key. Ends the transaction."""
        return await self._in_thread(self._rows, part, columns, keys)

    async def abandon(self) -> None:
        """End the transaction without reading."""
        await self._in_thread(self._end)

    async def _in_thread(self, function: Callable[P, T], *arguments: P.args, **keywords: P.kwargs) -> T:
        # Whoever waits may be cancelled; the thread goes on until it notices, and close waits for it.
        work = asyncio.ensure_future(asyncio.to_thread(function, *arguments, **keywords))
        self._reading = work
        try:
            return await asyncio.shield(work)
        except psycopg.Error as error:
            raise failure(error, Side.SOURCE) from None

    async def close(self) -> None:
        """End what is being read, and the connection."""
        self._closing = True
        if self._connection is not None and self._reading is not None and not self._reading.done():
            with contextlib.suppress(psycopg.Error):
                await asyncio.to_thread(self._connection.cancel_safe, timeout=CANCEL_SECONDS_MAX)
        if self._reading is not None:
            await asyncio.wait([self._reading])
            if not self._reading.cancelled():
                self._reading.exception()
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    # ---- in a thread --------------------------------------------------------------------------------------------

    def _connected(self) -> psycopg.Connection[tuple[object, ...]]:
        if self._closing:
            raise RetryLater(Code.SOURCE_UNREACHABLE, "the copy was ended")
        if self._connection is None:
            self._connection = psycopg.connect(self._conninfo, autocommit=True)
            self._connection.prepare_threshold = None
        return self._connection

    def _begin(self, name: str) -> Seen | None:
        connection = self._connected()
        schema, table = name.split(".", 1)
        connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        connection.execute(f"SET LOCAL lock_timeout = '{LOCK_SECONDS_MAX}s'")
        try:
            # Before the moment is taken: what was done to the table under a lock is then in it.
            connection.execute(sql.SQL("LOCK TABLE {} IN ACCESS SHARE MODE").format(sql.Identifier(schema, table)))
        except errors.LockNotAvailable:
            connection.execute("ROLLBACK")
            return None
        found = connection.execute(_MOMENT, [schema, table]).fetchone()
        if found is None:
            raise RetryLater(Code.SOURCE_TABLE_MISSING, "the table is gone", table=name)
        moment, through, time, oid, only, rows, size, key = found
        return Seen(
            Moment.parse(str(moment)),
            _record_end(lsn_number(str(through))),
            int(str(time)),
            int(str(oid)),
            bool(only),
            float(str(rows)),
            int(str(size)),
            tuple(key) if isinstance(key, list) else (),
        )

    def _bound(self, part: Part, after: Key | None, rows: int) -> Key | None:
        connection = self._connected()
        # The key's index, whatever the statistics of a table say that was never analysed.
        connection.execute("SET LOCAL enable_seqscan = off; SET LOCAL enable_bitmapscan = off; SET LOCAL jit = off")
        found = connection.execute(part.bound(after, rows)).fetchone()
        return None if found is None else tuple(str(value) for value in found)

    def _begin_copy(self, part: Part, after: Key | None, upto: Key | None) -> None:
        pgconn = self._connected().pgconn
        pgconn.nonblocking = 0
        if after is None and upto is None:
            pgconn.exec_(b"SET LOCAL enable_seqscan = on")
        result = pgconn.exec_(part.copy(after, upto).as_bytes())
        if result.status != pq.ExecStatus.COPY_OUT:
            raise errors.error_from_result(result, encoding="utf-8")

    def _rows(self, part: Part, columns: Sequence[str], keys: Sequence[Key]) -> list[list[str | None]]:
        found: list[list[str | None]] = []
        for start in range(0, len(keys), KEYS_MAX):
            with self._connected().cursor().copy(part.rows(columns, keys[start : start + KEYS_MAX])) as copy:
                lines = [bytes(line) for line in copy]
            if lines:
                arrays, mended = copytext.columns(lines, len(keys[0]) + len(columns))
                self.undecodable_values += mended
                found += [list(row) for row in zip(*(array.to_pylist() for array in arrays), strict=True)]
        self._end()
        return found

    def _read(self, make: Callable[[list[bytes]], ChangeBatch | None], rows_max: int) -> Batch:
        pgconn = self._connected().pgconn
        get = pgconn.get_copy_data
        poll = select.poll()
        poll.register(pgconn.socket, select.POLLIN)
        rows, self._ahead = self._ahead, []
        size = sum(map(len, rows))
        while True:
            length, data = get(1)
            if length > 0:
                if len(rows) >= rows_max or size >= BATCH_BYTES_MAX:
                    # The row behind the batch: a batch is only full when it is known that more follows.
                    self._ahead = [bytes(data)]
                    return make(rows), False
                rows.append(bytes(data))
                size += length
            elif length == 0:
                if self._closing:
                    raise RetryLater(Code.SOURCE_UNREACHABLE, "the copy was ended")
                poll.poll(POLL_SECONDS_MAX * 1000)
                pgconn.consume_input()
            else:
                self._finish_copy(pgconn)
                self._end()
                return make(rows), True

    def _finish_copy(self, pgconn: pq.abc.PGconn) -> None:
        while (result := pgconn.get_result()) is not None:
            if result.status == pq.ExecStatus.FATAL_ERROR:
                raise errors.error_from_result(result, encoding="utf-8")

    def _end(self) -> None:
        self._connected().execute("COMMIT")

    def _batch(
        self, rows: list[bytes], *, schema: TableSchema, position: Position, time: int, as_text: bool
    ) -> ChangeBatch | None:
        count = len(rows)
        if not count:
            return None
        ops = np.full(count, Op.INSERT, np.uint8)
        lsns, ordinals = np.full(count, position.lsn, np.uint64), np.full(count, position.ordinal, np.uint32)
        times = np.full(count, time, np.int64)
        if as_text and copytext.is_plain(text := b"".join(rows), count, len(schema.columns)):
            parse = partial(_parsed, schema)
            return CopiedBatch(schema, None, ops, lsns, ordinals, times, text=text, parse=parse)
        arrays, mended = copytext.columns(rows, len(schema.columns))
        self.undecodable_values += mended
        return ChangeBatch(schema, _named(schema, arrays), ops, lsns, ordinals, times)


def _parsed(schema: TableSchema, text: bytes) -> pa.RecordBatch:
    arrays, _ = copytext.columns([line + b"\n" for line in text.split(b"\n")[:-1]], len(schema.columns))
    return _named(schema, arrays)


def _named(schema: TableSchema, arrays: Sequence[pa.Array]) -> pa.RecordBatch:
    return tuples.names([column.name for column in schema.columns], arrays)


def _record_end(lsn: int) -> int:
    """Return where the last record ends: behind a page's header no record does, and the stream would never pass it."""
    return lsn - lsn % PAGE_BYTES if lsn % PAGE_BYTES in PAGE_HEADERS else lsn
