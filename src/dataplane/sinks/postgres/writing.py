"""Writes the items of a set inside a transaction that is already open, in one of four ways.

`WritingMode.BULK` merges the changes of each key and sends them with COPY: rows whose keys are new straight into the
table, all else through the staging table. `UPSERTS` is the same for a table that already has some of those keys.
`ROWS` sends every change by itself, in order. The sink falls from one to the next when the destination refuses a row:
the last one gets past what only merging ran into (a second unique index), and knows the row that is to blame. Where
refused rows become dead letters, `CAREFUL` takes its place (`careful`).

Called by the sink, which opens, commits and rolls back. Statements are queued and go out together as late as possible.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from itertools import chain

import pyarrow as pa

from contracts.backfilling import Condition
from contracts.codes import Code
from dataplane.batch import ChangeBatch, CopiedBatch, KeyRange, TableSchema
from dataplane.failures import Permanent
from dataplane.sinks.postgres import copy_text, rows
from dataplane.sinks.postgres.merging import Merged, Moves, as_upserts, merge
from dataplane.sinks.postgres.session import RowsMissed, Session, Statement, StatementFailed
from dataplane.sinks.postgres.shapes import Shapes
from dataplane.sinks.postgres.statements import DELETE_STEP, UPDATE_STEPS, UPSERT_STEP, TableStatements


class WritingMode(Enum):
    """How changes are sent."""

    BULK = "bulk"
    UPSERTS = "upserts"
    ROWS = "rows"
    CAREFUL = "careful"


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a statement came from: its table and, for a single row, the row."""

    table: TableSchema
    batch: ChangeBatch | None = None
    row: int = 0


class Writer:
    """The queue of statements of one set, and where each one came from."""

    def __init__(
        self, session: Session, shapes: Shapes, upserted: Collection[str], unsettled: Collection[str] = ()
    ) -> None:
        """Tables in `upserted` may have the rows that are inserted; those in `unsettled` may also lack those that change."""
        self._session = session
        self._shapes = shapes
        self._upserted = upserted
        self._unsettled = unsettled
        self._queue: list[Statement] = []
        self._origins: list[Origin | None] = []
        self.origin: Origin | None = None
        """After a failure: what the refused statement was for."""

    def add(self, statement: Statement, origin: Origin | None = None) -> None:
        """Queue one statement."""
        self._queue.append(statement)
        self._origins.append(origin)

    async def flush(self) -> None:
        """Send what is queued, in one round trip."""
        queue, origins = self._queue, self._origins
        self._queue, self._origins = [], []
        try:
            await self._session.exchange(queue)
        except StatementFailed as failed:
            self.origin = origins[failed.index]
            raise failed.error from None
        except RowsMissed as missed:
            origin = self.origin = origins[missed.index]
            assert origin is not None
            raise Permanent(
                Code.SINK_ROW_MISSING,
                "an update that did not carry every value found no row of that key",
                table=origin.table.table,
            ) from None

    async def flush_if_checked(self) -> None:
        """Send what is queued if any of it must touch a given number of rows: before a COMMIT can follow it."""
        if any(statement.rows is not None for statement in self._queue):
            await self.flush()

    async def copy(self, statement: bytes, blocks: Iterable[bytes | memoryview], origin: Origin) -> None:
        """Send what is queued, then rows with COPY."""
        await self.flush()
        self.origin = origin
        await self._session.copy(statement, blocks)
        self.origin = None

    def truncate(self, tables: Sequence[TableStatements]) -> None:
        """Empty tables together, in their place among the changes: one may refer to another."""
        names = b", ".join(dict.fromkeys(table.name for table in tables))
        self.add(Statement(b"TRUNCATE TABLE " + names), Origin(tables[0].table))

    def delete_range(
        self, table: TableStatements, only: KeyRange, where: Sequence[Condition] = (), spared_by: str | None = None
    ) -> None:
        """Empty a part of a table, in its place among the changes, but for rows that letters of `spared_by` are about."""
        statement, parameters = table.delete_range(only, where, spared_by)
        self.add(Statement(statement, parameters), Origin(table.table))

    def is_unsettled(self, batch: ChangeBatch) -> bool:
        """Whether the batch's table is being copied, and the batch is not of the copy."""
        return batch.table.table in self._unsettled

    def write_rows(self, batch: ChangeBatch, table: TableStatements) -> None:
        """Queue every change by itself."""
        unsettled = self.is_unsettled(batch)
        for row, statement in rows.statements(batch, table, unsettled=unsettled):
            self.add(statement, Origin(table.table, batch, row))

    async def write_merged(self, batch: ChangeBatch, table: TableStatements, mode: WritingMode) -> None:
        """Merge the changes of each key and send what is left."""
        unsettled = self.is_unsettled(batch)
        upserted = mode is WritingMode.UPSERTS or unsettled or table.table.table in self._upserted
        if isinstance(batch, CopiedBatch) and batch.text is not None and not upserted:
            await self.copy(table.copy, copy_text.cut(batch.text), Origin(table.table))
            return
        for step in merge(batch, unsettled=unsettled):
            if isinstance(step, Moves):
                self.write_rows(step.batch, table)
                continue
            left = as_upserts(step) if upserted else step
            await self._write_staged(left, table)
            if left.inserts is not None:
                columns = left.inserts.columns
                blocks = copy_text.blocks(columns, left.inserts.num_rows)
                await self.copy(table.copy, blocks, Origin(table.table))

    async def _write_staged(self, step: Merged, table: TableStatements) -> None:
        if step.deletes is None and step.upserts is None and not step.updates:
            return
        origin = Origin(table.table)
        await self.flush()
        await self._shapes.stage(table.table)
        await self.copy(table.copy_stage, _staged_blocks(step, table.table), origin)
        if step.deletes is not None:
            self.add(Statement(table.delete_staged), origin)
        if step.upserts is not None:
            self.add(Statement(table.upsert_staged), origin)
        for place, update in enumerate(step.updates):
            if update.columns:
                number = b"%d" % (UPDATE_STEPS + place)
                rows_expected = None if table.table.table in self._unsettled else update.rows.num_rows
                self.add(Statement(table.update_staged(update.columns), [number], rows_expected), origin)


def _staged_blocks(step: Merged, table: TableSchema) -> Iterator[bytes]:
    parts: list[Iterator[bytes]] = []
    if step.deletes is not None:
        keys = iter(step.deletes.columns)
        parts.append(_block(DELETE_STEP, [next(keys) if column.key else copy_text.NULL for column in table.columns]))
    if step.upserts is not None:
        parts.append(_block(UPSERT_STEP, step.upserts.columns))
    parts += [_block(UPDATE_STEPS + place, update.rows.columns) for place, update in enumerate(step.updates)]
    return chain.from_iterable(parts)


def _block(step: int, columns: Sequence[pa.Array | pa.Scalar]) -> Iterator[bytes]:
    row_count = next(len(column) for column in columns if isinstance(column, pa.Array))
    return copy_text.blocks([_number(step), *columns], row_count)


@lru_cache(maxsize=64)
def _number(step: int) -> pa.Scalar:
    return pa.scalar(str(step), pa.string())
