"""Copy tables chunk by chunk between runs of the stream, and say when each of them is as at the source.

In flow what is to be copied (`publication.plan`), and the place in the stream where the source stands; out flow change
sets, a transaction for each chunk. Called by the source whenever a transaction has gone out whole.

Why this converges: a chunk is read at a moment later than every transaction that was given out before it. What was
committed in between comes behind it in the stream and is done again over the chunk: inserts find their row, deletes find
none, and updates carry the whole row but for values stored out of line that did not change, which the chunk has. Once the
stream has passed the chunk's moment the rows are the source's. So nothing waits for a copy, and a copy goes on with its
next chunk after a kill: the cursor is durable in the chunk's own transaction.

The one race: a transaction can be in the stream before new snapshots see it (`unseen`). A moment that does not see all
that was given out is not used.

What the first chunk's moment saw is left out of the stream, as every chunk has it. So a table that fits one chunk is exact at
once, and what a destination refused before a table was copied again does not come again.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Collection, Sequence
from dataclasses import dataclass, replace

from contracts.codes import Code
from dataplane.batch import ChangeBatch, ChangeSet, Chunk, Key, KeyRange, Position, TableSchema, Truncate
from dataplane.failures import Failure, RetryLater
from dataplane.sources.port import SnapshotProgress
from dataplane.sources.postgres import copy_progress, ranges
from dataplane.sources.postgres.catalog import Catalog, TableSeen
from dataplane.sources.postgres.decoder import Decoder
from dataplane.sources.postgres.examining import REFUSING_CLASSES
from dataplane.sources.postgres.filler import AGAIN_SECONDS, Filler
from dataplane.sources.postgres.moment import Moment, Transactions
from dataplane.sources.postgres.snapshot import Batch, ChunkReader, Seen
from dataplane.sources.postgres.table_copy import TableCopy, clearing
from dataplane.sources.postgres.unseen import Unseen

CHUNK_BYTES_MAX = 16 << 20
"""About as large a chunk becomes, by what the table's rows have been so far."""
UNKNOWN_ROWS = 10_000
"""The first chunk of a large table of which nothing is known."""
LOCKED_AGAIN_SECONDS = 1.0
UNSEEN_MAX = 1 << 16
"""When so many transactions are remembered, those that everybody sees by now are forgotten."""

ALL = 1 << 63
"""Beyond every position of the log."""

_log = logging.getLogger("pointsman.source")


@dataclass(slots=True)
class _Part:
    """A chunk that is being read."""

    table: TableCopy
    reader: ChunkReader
    seen: Seen
    schema: TableSchema
    copy: int
    index: int
    key: list[str]
    upto: Key | None
    clearing: tuple[Truncate, ...]
    next: "asyncio.Future[Batch] | None" = None


class Copying:
    """The copies of one session. `given` and `confirmed` count its transactions: those given out, and those durable."""

    def __init__(
        self,
        conninfo: str,
        catalog: Catalog,
        decoder: Decoder,
        *,
        parallelism: int,
        chunk_rows: int,
        chunk_bytes_max: int = CHUNK_BYTES_MAX,
        parsed: Collection[str] | None = None,
    ) -> None:
        """Copy in chunks of about so many rows or bytes. Only the rows of the tables `parsed` are parsed; None: of all."""
        self.tables: list[TableCopy] = []
        self.given = 0
        self.confirmed = 0
        self._catalog = catalog
        self._decoder = decoder
        self._chunk_rows = chunk_rows
        self._chunk_bytes_max = chunk_bytes_max
        self._parsed = parsed
        self._readers = [ChunkReader(conninfo) for _ in range(parallelism)]
        self._unseen = Unseen()
        self._filler = Filler(conninfo, self._unseen)
        self._began = 0.0
        self._rows_read = 0

    def begin(self, tables: Sequence[TableCopy], unseen: Transactions, barrier: int) -> None:
        """Copy these. `unseen` are transactions that earlier sessions may have given out and that a snapshot may not see.

        Copies that go on do so once the stream has passed `barrier`, where the log ended when the session began.
        """
        self.tables = list(tables)
        self._unseen.begin(unseen)
        self._began = time.monotonic()
        for table in tables:
            if table.fresh and not table.streams:
                self._decoder.skip_before(table.name, ALL)
            else:
                self._skip_seen(table)
                table.barrier = 0 if table.read else barrier

    @property
    def undecodable_values(self) -> int:
        """How many values of the copies were not valid UTF-8."""
        return self._filler.undecodable_values + sum(reader.undecodable_values for reader in self._readers)

    @property
    def copied(self) -> set[str]:
        """The tables whose copy is whole, settled and durable."""
        return {table.name for table in self.tables if table.settled and table.settled_by <= self.confirmed}

    @property
    def progress(self) -> SnapshotProgress | None:
        """How far the copies are, or None when there are none."""
        copied = self.copied
        tables = [table for table in self.tables if table.name not in copied]
        if not tables:
            return None
        return copy_progress.of(tables, self._rows_read / max(time.monotonic() - self._began, 1e-3))

    @property
    def is_unsettled(self) -> bool:
        """Whether a table is between two moments of the source, or not copied yet."""
        return any(not table.settled for table in self.tables)

    @property
    def goes_on(self) -> bool:
        """Whether something will be read or settled without anybody asking for it."""
        return any(not (table.settled or table.waits) for table in self.tables)

    @property
    def is_durable(self) -> bool:
        """Whether all that was given out of copies is durable."""
        return self.given == self.confirmed

    @property
    def wants_to_pass(self) -> int | None:
        """Where the stream must come before something can go on here; None when nothing waits for it."""
        waiting = [
            table.through if table.read else table.barrier
            for table in self.tables
            if not (table.settled or table.waits)
        ]
        waiting = [lsn for lsn in waiting if lsn]
        return min(waiting) if waiting else None

    def is_ready(self, passed: int) -> bool:
        """Whether a chunk can be read now, or a table said to be settled."""
        return self._next(passed) is not None or any(self._may_settle(table, passed) for table in self.tables)

    def gave(self, transactions: Transactions) -> None:
        """Note what the stream gives out: the next moment must see it."""
        if self.is_unsettled:
            self._unseen.add(transactions)

    async def forget_seen(self) -> None:
        """Keep the list of what was given short, also while no chunk is read for long."""
        if len(self._unseen) > UNSEEN_MAX:
            self._unseen.are_seen(Moment.parse(await self._catalog.moment()))

    async def close(self) -> None:
        """End the reading and its connections."""
        await asyncio.gather(self._filler.close(), *(reader.close() for reader in self._readers))

    async def changes(self, position: Position, passed: int) -> AsyncIterator[ChangeSet]:
        """Give the next chunks, at `position`, and say of tables that they are settled. `passed` is how far the stream is.

        Raises:
            Failure: the connection was lost, or a table cannot be read.
        """
        parts = await self._begin_parts(passed)
        for part in parts:
            async for change in self._sets(part, position, passed):
                yield change
        for table in self.tables:
            if self._may_settle(table, passed):
                yield self._settle(table, position, passed)

    async def filled(self, change: ChangeSet) -> ChangeSet:
        """Return the set with every value that a changed key needs, for tables that are being copied."""
        return await self._filler.filled(change, self.tables)

    # ---- which parts --------------------------------------------------------------------------------------------

    def _next(self, passed: int) -> TableCopy | None:
        now = time.monotonic()
        for table in self.tables:
            if not (table.read or table.paused) and table.not_before <= now and table.barrier <= passed:
                return table
        return None

    async def _begin_parts(self, passed: int) -> list[_Part]:
        """Begin to read as many parts as there are readers, in the order in which they will be given."""
        parts: list[_Part] = []
        for reader in self._readers:
            table = self._next(passed)
            if table is None:
                break
            part = await self._begin_part(table, reader)
            if part is None:
                break
            part.next = self._read_ahead(part, Position(0, 0), first=part.index == 0)
            parts.append(part)
        return parts

    async def _begin_part(self, table: TableCopy, reader: ChunkReader) -> _Part | None:
        seen = await reader.begin(table.name)
        if seen is None:
            _log.info("a table is locked; its copy waits", extra={"table": table.name})
            table.not_before = time.monotonic() + LOCKED_AGAIN_SECONDS
            return None
        if not self._unseen.are_seen(seen.moment) or not await self._older_have_ended(table, seen):
            await reader.abandon()
            table.not_before = time.monotonic() + AGAIN_SECONDS
            return None
        if seen.oid != table.oid:
            # The publication has lost it with the old one: the next session publishes it, and copies it from the start.
            raise RetryLater(Code.SOURCE_TABLE_MISSING, "the table was made again", table=table.name)
        found = TableSeen(seen.oid, table.name, seen.only)
        schema = await self._catalog.schema(found)
        key = seen.key or schema.key
        if not self._fits(table, schema, ranges.described(schema, key), seen):
            await reader.abandon()
            return None
        part = ranges.Part(found.identifier, schema, key, table.where)
        ordered = ranges.is_ordered(schema, key)
        upto = None
        try:
            if ordered or not table.is_indivisible(schema):
                upto = await reader.bound(part, table.last, self._rows_of(table, seen))
            await reader.copy(part, table.last, upto)
        except Failure as failure:
            if not table.where or (failure.sql_state or "")[:2] not in REFUSING_CLASSES:
                raise
            # The next session looks at the conditions before it copies anything, and refuses them by themselves.
            raise RetryLater(Code.BACKFILL_REFUSED, "a condition does not fit any more", table=table.name) from failure
        emptied = clearing(table, schema, KeyRange(table.last, upto) if ordered else None)
        if table.fresh and not table.part:
            table.moment = seen.moment.text
        table.schema, table.key = schema, ranges.described(schema, key)
        begun = _Part(table, reader, seen, schema, table.copy, table.index, table.key, upto, emptied)
        table.last, table.read, table.through = upto, upto is None, max(table.through, seen.through)
        table.index += 1
        if not table.part:
            table.rows_estimated = max(int(seen.rows), table.rows_estimated)
        return begun

    async def _older_have_ended(self, table: TableCopy, seen: Seen) -> bool:
        """Wait for those who wrote to a table before it was published: the stream lacks what they wrote."""
        if not table.entered:
            return True
        writers = await self._catalog.writers(seen.oid)
        table.older = table.older & writers if table.not_before else writers
        table.entered = bool(table.older)
        return not table.entered

    def _fits(self, table: TableCopy, schema: TableSchema, key: list[str], seen: Seen) -> bool:
        """Compare the table with what it was at the chunk before, or for a part with what the stream has of it."""
        known = {column.name: column.type for column in table.schema.columns} if table.schema is not None else {}
        retyped = any(known.get(column.name, column.type) != column.type for column in schema.columns)
        if not table.fresh and (key != table.key or retyped):
            _log.warning(
                "a table's key or types changed while it was copied; its copy starts over", extra={"table": table.name}
            )
            table.start_over()
            if table.part:
                table.schema, table.barrier = schema, seen.through
            else:
                self._decoder.skip_before(table.name, ALL)
            return False
        if table.schema is not None and schema != table.schema:
            # The stream may still bring rows with the columns of before: those go first.
            table.schema, table.barrier = schema, seen.through
            return False
        return True

    def _rows_of(self, table: TableCopy, seen: Seen) -> int:
        """Return how many rows the next chunk has."""
        if table.rows:
            width = max(1.0, table.bytes / table.rows)
        elif seen.size <= self._chunk_bytes_max:
            width = 1.0
        elif seen.rows > 0:
            width = max(1.0, seen.size / seen.rows)
        else:
            width = self._chunk_bytes_max / UNKNOWN_ROWS
        return max(1, min(self._chunk_rows, int(self._chunk_bytes_max / width)))

    # ---- what is given ------------------------------------------------------------------------------------------

    async def _sets(self, part: _Part, position: Position, passed: int) -> AsyncIterator[ChangeSet]:
        table = part.table
        items: tuple[ChangeBatch | Truncate, ...] = tuple(replace(item, position=position) for item in part.clearing)
        self.given += 1
        number, rows, size = self.given, 0, 0
        if part.index == 0 and not table.part:
            self._decoder.skip_before(table.name, 0)
            self._skip_seen(table)
        begins, ended = True, False
        following = part.next
        assert following is not None
        while not ended:
            batch, ended = await part.reader.taken(following)
            if not ended:
                following = self._read_ahead(part, position)
            if batch is not None:
                batch = _placed(batch, position)
                items = (*items, batch)
                rows += len(batch)
                size += batch.byte_size
            yield ChangeSet(
                items=items,
                first=position,
                last=position,
                begins=begins,
                ends=ended,
                commit_end_lsn=passed if ended else 0,
                commit_time=part.seen.time,
                transactions=int(ended),
                snapshot_of=table.name,
                resync=table.resync,
                chunk=self._chunk(part, number, rows, size),
            )
            begins, items = False, ()
        table.rows += rows
        table.bytes += size
        self._rows_read += rows

    def _read_ahead(self, part: _Part, position: Position, *, first: bool = False) -> "asyncio.Future[Batch]":
        as_text = self._parsed is not None and part.table.name not in self._parsed
        return part.reader.read_ahead(part.schema, position, part.seen.time, as_text=as_text, first=first)

    def _chunk(self, part: _Part, number: int, rows: int, size: int) -> Chunk:
        return Chunk(
            number=number,
            copy=part.copy,
            index=part.index,
            key=part.key,
            upto=part.upto,
            through=part.seen.through,
            read=part.upto is None,
            rows=rows,
            bytes=size,
            moment=part.table.moment if part.index == 0 else None,
            backfill=part.table.backfill,
            part=part.table.part,
            over=not part.table.empties(part.schema),
        )

    def _skip_seen(self, table: TableCopy) -> None:
        """Leave out of the stream what the first chunk's moment saw: every later one saw it too."""
        if table.moment is not None:
            self._decoder.skip_seen(table.name, Moment.parse(table.moment))

    def _may_settle(self, table: TableCopy, passed: int) -> bool:
        return table.read and not table.settled and table.through <= passed

    def _settle(self, table: TableCopy, position: Position, passed: int) -> ChangeSet:
        self.given += 1
        table.settled, table.settled_by = True, self.given
        self._decoder.skip_seen(table.name, None)
        chunk = Chunk(
            number=self.given,
            copy=table.copy,
            index=table.index,
            key=table.key,
            upto=None,
            through=table.through,
            read=True,
            settled=True,
            backfill=table.backfill,
            part=table.part,
        )
        table.go_on()
        return ChangeSet(
            items=(),
            first=position,
            last=position,
            begins=True,
            ends=True,
            commit_end_lsn=passed,
            commit_time=0,
            transactions=0,
            snapshot_of=table.name,
            snapshot_ends=not self.is_unsettled,
            resync=table.resync,
            chunk=chunk,
        )


def _placed(batch: ChangeBatch, position: Position) -> ChangeBatch:
    """Put the rows at `position`, which was not known when they were read ahead."""
    if int(batch.commit_lsns[0]) == position.lsn and int(batch.ordinals[0]) == position.ordinal:
        return batch
    batch.commit_lsns.fill(position.lsn)
    batch.ordinals.fill(position.ordinal)
    return batch
