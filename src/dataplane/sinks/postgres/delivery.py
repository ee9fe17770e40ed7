"""Carries sets into the destination's transactions, and finds out what is to blame when it refuses one.

In flow sets that are not durable yet, with the checkpoint that holds once they are; the sink calls, and accounts for
what became durable. The quickest way is tried first. Where the destination refuses a row, the set is undone (to a
savepoint, if its transaction began with an earlier set) and sent more carefully; the last way sends row by row, so a
refusal there names the row's table, and its column is found by trying each value alone.

Where refused rows become dead letters, that last way takes them out and goes on (`careful`). And while there are dead
letters, whatever comes for their keys joins them, in whichever way a set is sent.
"""

from collections.abc import Collection, Mapping, Sequence
from itertools import groupby

import psycopg
from psycopg import pq

from contracts.codes import Code
from dataplane import postgres
from dataplane.batch import ChangeBatch, ChangeSet, TableSchema, Truncate
from dataplane.checkpoint import Checkpoint, SourceIdentity
from dataplane.failures import Failure, Permanent, RetryLater
from dataplane.postgres import Side
from dataplane.sinks.drift import narrowed
from dataplane.sinks.letters import Cause
from dataplane.sinks.postgres import careful, rows
from dataplane.sinks.postgres.careful import RefusedBatch
from dataplane.sinks.postgres.checkpoints import FENCED_SQL_STATE, Fence
from dataplane.sinks.postgres.dead_letters import DeadLetters, Parking
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
_PROBE = Statement(b"SAVEPOINT pm_probe")
_PROBED = (Statement(b"ROLLBACK TO SAVEPOINT pm_probe"), Statement(b"RELEASE SAVEPOINT pm_probe"))

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

    def __init__(self, session: Session, fence: Fence, shapes: Shapes, letters: DeadLetters) -> None:
        self._session = session
        self._fence = fence
        self._shapes = shapes
        self._letters = letters
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

    async def deliver(self, change: ChangeSet, after: Checkpoint, unsettled: Collection[str] = ()) -> None:
        """Write the set; with `ends`, commit it together with `after`.

        Tables in `unsettled` are being copied: what the stream brings for them may find a row or none.

        Raises:
            Failure: the destination refused or was lost. The caller ends the session.
        """
        mode = WritingMode.ROWS if _is_small(change) else WritingMode.BULK
        continued = self.is_open
        while True:
            # A chunk's rows follow the emptying of their range, if any; the stream's may be there already.
            upserted, tolerant = self._upserted, unsettled
            if change.chunk is not None:
                upserted, tolerant = {str(change.snapshot_of)} if change.chunk.over else set(), ()
            writer = Writer(self._session, self._shapes, upserted, tolerant)
            self._letters.begin(continued=continued)
            try:
                await self._write(writer, change, after, mode, continued=continued)
            except psycopg.Error as error:
                fenced = error.sqlstate == FENCED_SQL_STATE and writer.origin is None
                if fenced or (error.sqlstate or "")[:2] not in _ROW_CLASSES:
                    raise failure(error, fenced=fenced, table=_table(writer.origin)) from error
                if mode in (WritingMode.ROWS, WritingMode.CAREFUL) and not self._may_be_careful(mode, writer.origin):
                    raise await self._blame(error, writer.origin) from error
                mode = self._next(mode, error, writer.origin)
            except Permanent as refused:
                if refused.code is not Code.SINK_ROW_MISSING or not self._may_be_careful(mode, writer.origin):
                    raise
                mode = WritingMode.CAREFUL
            else:
                self.is_open = not change.ends
                self._letters.written(committed=change.ends)
                if change.ends:
                    self._shapes.committed()
                return
            await self._undo(continued=continued)

    def _may_be_careful(self, mode: WritingMode, origin: Origin | None) -> bool:
        """Say whether the refused row can be found and taken out of the set."""
        return self._letters.takes and mode is not WritingMode.CAREFUL and origin is not None

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
        parked = Parking()
        if self._letters.may_be:
            await writer.flush()
            parked = await self._letters.parked(change)
        for is_truncate, run in groupby(change.items, key=lambda item: isinstance(item, Truncate)):
            if is_truncate:
                await self._empty(writer, [item for item in run if isinstance(item, Truncate)], after, parked)
                continue
            for item in run:
                assert isinstance(item, ChangeBatch)
                # Learned one by one: within a set a table may change its shape.
                table = await self._shape(writer, item.table, after)
                await self._write_batch(writer, item, table, mode, parked)
        if continued:
            await writer.flush_if_checked()  # a row that was missed is known only then, and undone to the mark
            writer.add(_RELEASE)
        if change.ends:
            if not whole:
                writer.add(self._fence.write(after))
            await writer.flush_if_checked()
            writer.add(_COMMIT)
        await writer.flush()

    async def _empty(self, writer: Writer, items: Sequence[Truncate], after: Checkpoint, parked: Parking) -> None:
        """Empty tables, or parts of them. What dead letters hold is without effect from here on, so they go as well.

        Those of a table that is copied in chunks go with the first one: what comes for them later is a row like others.
        Where only a part is copied they stay, and so do their rows: the letters are about them.
        """
        whole = [await self._shape(writer, item.table, after) for item in items if item.only is None]
        if whole:
            writer.truncate(whole)
        for item in items:
            if item.only is not None:
                spared_by = self._letters.spares(item.table) if item.where else None
                writer.delete_range(await self._shape(writer, item.table, after), item.only, item.where, spared_by)
            if item.only is None or item.for_snapshot:
                self._letters.clear(writer, item.table, "copied_again" if item.for_snapshot else "truncated")
                parked.forget(item.table)

    async def _write_batch(
        self, writer: Writer, batch: ChangeBatch, table: TableStatements, mode: WritingMode, parked: Parking
    ) -> None:
        batch = narrowed(batch, table.table)
        if mode is WritingMode.CAREFUL:
            await writer.flush()
            try:
                letters = await careful.write(
                    self._session,
                    batch,
                    table,
                    parked.of(batch.table),
                    self._cause_of,
                    unsettled=writer.is_unsettled(batch),
                )
            except RefusedBatch as refused:
                writer.origin = Origin(table.table, batch, refused.row)
                raise refused.error from None
            await self._letters.add(writer, letters)
            return
        kept, letters = parked.part(batch)
        if kept is not None and mode is WritingMode.ROWS:
            writer.write_rows(kept, table)
        elif kept is not None:
            await writer.write_merged(kept, table, mode)
        await self._letters.add(writer, letters)

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
        return WritingMode.CAREFUL if self._letters.takes else WritingMode.ROWS

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

    async def _cause_of(self, error: psycopg.Error, batch: ChangeBatch, row: int) -> Cause:
        """Return why a row becomes a dead letter. The transaction goes on as it was."""
        origin = Origin(batch.table, batch, row)
        column = error.diag.column_name
        if column is None and (error.sqlstate or "")[:2] in _VALUE_CLASSES:
            await self._session.run([_PROBE])
            try:
                column = await self._probe(origin)
            finally:
                self._shapes.forget()
                await self._session.run(_PROBED)
        refused = failure(error, table=batch.table.table, column=column)
        return Cause(code=refused.code, sql_state=error.sqlstate, column=column, message=str(refused.args[0]))

    async def _find_column(self, origin: Origin) -> str | None:
        """Try each value of the refused row alone, in a transaction that leaves nothing."""
        assert origin.batch is not None
        self._shapes.forget()
        await self._session.run([_ROLLBACK])
        await self._session.run([_BEGIN])
        try:
            return await self._probe(origin)
        finally:
            self._shapes.forget()
            await self._session.run([_ROLLBACK])

    async def _probe(self, origin: Origin) -> str | None:
        """Put each value of a row into a staging table; the transaction or savepoint is the caller's to undo."""
        self._shapes.forget()
        table = await self._shapes.learn(origin.table, None)
        await self._shapes.stage(origin.table)
        for number, column in enumerate(origin.table.columns):
            if await self._is_refused(table, number, origin):
                return column.name
        return None

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
        self._letters.begin(continued=False)
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
