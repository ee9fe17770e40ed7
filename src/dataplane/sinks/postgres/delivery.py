"""Carries sets into the destination's transactions, and finds out what is to blame when it refuses one.

In flow sets that are not durable yet, with the checkpoint that holds once they are; the sink calls, and accounts for
what became durable. The quickest way is tried first. Where the destination refuses a row, the set is undone (to a
savepoint, if its transaction began with an earlier set) and sent more carefully; the last way sends row by row, so a
refusal there names the row's table, and its column is found by trying each value alone.
"""

from collections.abc import Mapping
from itertools import groupby

import psycopg
from psycopg import pq

from contracts.codes import Code
from dataplane import postgres
from dataplane.batch import ChangeBatch, ChangeSet, TableSchema, Truncate
from dataplane.checkpoint import Checkpoint, SourceIdentity
from dataplane.failures import Failure, Permanent, RetryLater
from dataplane.postgres import Side
from dataplane.sinks.postgres import rows
from dataplane.sinks.postgres.checkpoints import FENCED_SQL_STATE, Fence
from dataplane.sinks.postgres.session import Session, Statement
from dataplane.sinks.postgres.shapes import Shapes
from dataplane.sinks.postgres.statements import TableStatements
from dataplane.sinks.postgres.writing import Origin, Writer, WritingMode

INSERTS_SINGLY_MAX = 60
"""A set of at most so many rows, all of them inserts, goes row by row in one round trip; a larger one by COPY."""

CHANGES_SINGLY_MAX = 200
"""The same for a set with updates or deletes, which need a staging table otherwise. Measured: bench/README.md."""

BYTES_SINGLY_MAX = 256 << 10
"""And of at most so many bytes: they all wait in libpq's memory at once."""

ROWS_UNWEIGHED_MAX = 8
"""Up to so many rows are not even weighed: that alone would cost more than a row."""

_BEGIN = Statement(b"BEGIN")
_COMMIT = Statement(b"COMMIT")
_ROLLBACK = Statement(b"ROLLBACK")
_MARK = Statement(b"SAVEPOINT pm")
_RELEASE = Statement(b"RELEASE SAVEPOINT pm")
_ROLLBACK_TO_MARK = Statement(b"ROLLBACK TO SAVEPOINT pm")

UNIQUE_VIOLATION = "23505"
_PASSING = frozenset({"40001", "40P01", "55P03"})

# Refusals of a row that only a destination has: a type that this build lacks, a value that is too large for an index,
# a trigger or a view that says no; and statements that a foreign table does not allow, such as generated columns.
_REFUSALS: Mapping[str, Code] = {
    "0A": Code.SINK_TYPE_UNSUPPORTED,
    "21": Code.SINK_CONSTRAINT,
    "42": Code.SINK_TABLE_MISMATCH,
    "44": Code.SINK_CONSTRAINT,
    "54": Code.SINK_VALUE_REFUSED,
    "P0": Code.SINK_CONSTRAINT,
}
_VALUE_CLASSES = ("0A", "22", "54")
_ROW_CLASSES = ("0A", "21", "22", "23", "44", "54", "P0")


class Delivery:
    """One owner's transactions on one session."""

    def __init__(self, session: Session, fence: Fence, shapes: Shapes) -> None:
        self._session = session
        self._fence = fence
        self._shapes = shapes
        self._upserted: set[str] = set()
        """Tables that had rows which a source says are new: somebody else writes them too."""
        self.is_open = False
        """A transaction is open: the last set had no `ends`."""

    async def own(self, table: TableSchema, source: SourceIdentity | None, *, owned: bool) -> None:
        """Make the table of a snapshot and note it as ours, durably, before the first of its rows.

        Raises:
            Failure: the table cannot be had, or the fence was raised. Nothing is left open.
        """
        assert not self.is_open, "a snapshot begins with a transaction of its own"
        try:
            await self._session.run([_BEGIN, self._fence.hold()])
            await self._shapes.make(table, source, owned=owned)
            await self._session.run([*([] if owned else [self._fence.own(table.table)]), _COMMIT])
        except psycopg.Error as error:
            raise failure(error, fenced=error.sqlstate == FENCED_SQL_STATE, table=table.table) from error

    async def deliver(self, change: ChangeSet, after: Checkpoint) -> None:
        """Write the set; with `ends`, commit it together with `after`.

        Raises:
            Failure: the destination refused or was lost. The caller ends the session.
        """
        mode = WritingMode.ROWS if _is_small(change) else WritingMode.BULK
        continued = self.is_open
        while True:
            writer = Writer(self._session, self._shapes, self._upserted)
            try:
                await self._write(writer, change, after, mode, continued=continued)
            except psycopg.Error as error:
                fenced = error.sqlstate == FENCED_SQL_STATE and writer.origin is None
                if fenced or (error.sqlstate or "")[:2] not in _ROW_CLASSES:
                    raise failure(error, fenced=fenced, table=_table(writer.origin)) from error
                if mode is WritingMode.ROWS:
                    raise await self._blame(error, writer.origin) from error
                mode = self._next(mode, error, writer.origin)
                await self._undo(continued=continued)
            else:
                self.is_open = not change.ends
                if change.ends:
                    self._shapes.committed()
                return

    async def _write(
        self, writer: Writer, change: ChangeSet, after: Checkpoint, mode: WritingMode, *, continued: bool
    ) -> None:
        whole = change.ends and not continued
        if continued:
            writer.add(_MARK)
        else:
            writer.add(_BEGIN)
            # The checkpoint's row is locked first in any case: nobody takes over in the middle of a transaction.
            writer.add(self._fence.write(after) if whole else self._fence.hold())
        for is_truncate, run in groupby(change.items, key=lambda item: isinstance(item, Truncate)):
            if is_truncate:
                writer.truncate([await self._shape(writer, item.table, after) for item in run])
                continue
            for item in run:
                assert isinstance(item, ChangeBatch)
                # Learned one by one: within a set a table may change its shape.
                table = await self._shape(writer, item.table, after)
                if mode is WritingMode.ROWS:
                    writer.write_rows(item, table)
                else:
                    await writer.write_merged(item, table, mode)
        if continued:
            writer.add(_RELEASE)
        if change.ends:
            if not whole:
                writer.add(self._fence.write(after))
            await writer.flush_if_checked()
            writer.add(_COMMIT)
        await writer.flush()

    async def _shape(self, writer: Writer, table: TableSchema, after: Checkpoint) -> TableStatements:
        known = self._shapes.known(table)
        if known is None:
            await writer.flush()
            known = await self._shapes.learn(table, after.source)
        return known

    def _next(self, mode: WritingMode, error: psycopg.Error, origin: Origin | None) -> WritingMode:
        if mode is WritingMode.BULK and error.sqlstate == UNIQUE_VIOLATION and origin is not None:
            self._upserted.add(origin.table.table)
            return WritingMode.UPSERTS
        return WritingMode.ROWS

    async def _undo(self, *, continued: bool) -> None:
        await self._session.run([_ROLLBACK_TO_MARK, _RELEASE] if continued else [_ROLLBACK])
        self._shapes.forget()

    async def _blame(self, error: psycopg.Error, origin: Origin | None) -> Failure:
        """Return the failure with the table, and the column that it comes from where one value is to blame."""
        column = None
        is_value = (error.sqlstate or "")[:2] in _VALUE_CLASSES and not error.diag.column_name
        if is_value and origin is not None and origin.batch is not None:
            try:
                column = await self._find_column(origin)
            except psycopg.Error:
                # Only the name is lost; the refusal itself is what counts.
                column = None
        refused = failure(error, table=_table(origin), column=column)
        if refused.code is Code.SINK_TYPE_UNSUPPORTED and origin is not None and origin.batch is None:
            # No value was sent: the server refuses to empty a table to which another one refers.
            return Permanent(Code.SINK_CONSTRAINT, str(error), table=refused.table, sql_state=refused.sql_state)
        return refused

    async def _find_column(self, origin: Origin) -> str | None:
        """Try each value of the refused row alone, in a transaction that leaves nothing."""
        assert origin.batch is not None
        self._shapes.forget()
        await self._session.run([_ROLLBACK])
        await self._session.run([_BEGIN])
        try:
            table = await self._shapes.learn(origin.table, None)
            await self._shapes.stage(origin.table)
            for number, column in enumerate(origin.table.columns):
                if await self._is_refused(table, number, origin):
                    return column.name
            return None
        finally:
            self._shapes.forget()
            await self._session.run([_ROLLBACK])

    async def _is_refused(self, table: TableStatements, column: int, origin: Origin) -> bool:
        assert origin.batch is not None
        value = rows.values(origin.batch.rows.column(column).slice(origin.row, 1))
        try:
            await self._session.run([Statement(table.probe(column), value)])
        except psycopg.Error as error:
            if (error.sqlstate or "")[:2] not in _VALUE_CLASSES:
                raise
            return True
        return False

    async def abandon(self) -> None:
        """Roll back what is open, if the server can still be asked to."""
        self.is_open = False
        self._shapes.forget()
        connection = self._session.connection
        if connection.closed or connection.pgconn.transaction_status == pq.TransactionStatus.IDLE:
            return
        try:
            await self._session.run([_ROLLBACK])
        except psycopg.Error:
            # The server rolls back by itself when the connection goes.
            await self._session.close()


def _is_small(change: ChangeSet) -> bool:
    count = change.row_count
    if count > CHANGES_SINGLY_MAX or (count > INSERTS_SINGLY_MAX and _only_inserts(change)):
        return False
    return count <= min(ROWS_UNWEIGHED_MAX, INSERTS_SINGLY_MAX) or change.byte_size <= BYTES_SINGLY_MAX


def _only_inserts(change: ChangeSet) -> bool:
    return not any(bool(item.ops.any()) for item in change.items if isinstance(item, ChangeBatch))


def failure(
    error: psycopg.Error, *, fenced: bool = False, table: str | None = None, column: str | None = None
) -> Failure:
    """Return what an error of the destination means for the pipeline."""
    if fenced:
        return RetryLater(Code.SINK_FENCED, "a newer owner has claimed this pipeline", table=None)
    if error.sqlstate in _PASSING:
        return RetryLater(Code.SINK_UNREACHABLE, str(error), table=table, sql_state=error.sqlstate)
    meant = postgres.failure(error, Side.SINK, table=table, column=column)
    code = _REFUSALS.get((error.sqlstate or "")[:2])
    if meant.code is Code.INTERNAL and code is not None:
        return Permanent(code, str(meant.args[0]), table=meant.table, column=meant.column, sql_state=meant.sql_state)
    return meant


def _table(origin: Origin | None) -> str | None:
    return None if origin is None else origin.table.table
