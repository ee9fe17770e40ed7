"""The PostgreSQL source: opens, copies, streams and confirms. The `Source` of the port, for one pipeline.

In flow a connection, its password and table names; out flow change sets. A worker makes one for each session, calls
`open`, iterates `changes` and gives back what is durable through `confirm`.

Three places hold connections: `catalog` (one plain connection for questions), `copying` (those that copy), and
`replication` (one that streams, owned by its thread). Everything else here decides when each of them is used. Small
pieces are decoded where they arrive, because a hop to a thread would cost more; large ones in a thread, so that the
sink's own I/O goes on meanwhile.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Mapping, Sequence
from types import MappingProxyType

import numpy as np
import psycopg

from contracts.backfilling import Backfill
from contracts.codes import Code
from contracts.slots import SourceLog
from contracts.v2 import ConnectionDocument, SnapshotSettings
from dataplane.batch import START, ChangeSet, TableSchema
from dataplane.checkpoint import CheckpointStore
from dataplane.failures import Failure, Gap
from dataplane.postgres import Revealable, Side, conninfo, failure
from dataplane.slot_measure import given_up
from dataplane.sources.port import CopyStanding, SourceGauges
from dataplane.sources.postgres import slots
from dataplane.sources.postgres.catalog import Catalog
from dataplane.sources.postgres.copying import Copying
from dataplane.sources.postgres.decoder import Decoder, Undescribed
from dataplane.sources.postgres.marks import Marks
from dataplane.sources.postgres.messages import Messages
from dataplane.sources.postgres.moment import transactions_of
from dataplane.sources.postgres.opening import object_name
from dataplane.sources.postgres.preparation import Preparation, Prepared
from dataplane.sources.postgres.replication import ReplicationConnection, stream_failure
from dataplane.sources.postgres.slot_watch import SlotWatch
from dataplane.sources.postgres.spill import Spill
from dataplane.sources.postgres.stream import STATUS_SECONDS_MAX, Received, ReplicationStream
from dataplane.sources.postgres.streamed import StreamedTransactions
from dataplane.sources.postgres.transactions import Assembler, Piece

QUEUE_BYTES_MAX = 16 << 20
PIECE_BYTES_MAX = 4 << 20
PIECE_MESSAGES_MAX = 20_000
IN_PROGRESS_BYTES_MAX = 16 << 20
"""So much of transactions that have not committed waits in memory, before it goes to disk."""
INLINE_BYTES_MAX = 128 << 10
"""Pieces up to this size are decoded on the event loop."""
BARRIER_POLL_SECONDS = 0.1
NO_LIMIT = SourceLog()

_DEFAULT_SNAPSHOT = SnapshotSettings()


class PostgresSource:
    """Captures the tables of one pipeline. Made by a worker; no I/O before `open`."""

    def __init__(
        self,
        connection: ConnectionDocument,
        password: Revealable | None,
        *,
        pipeline_id: str,
        tables: Sequence[str],
        resyncs: Mapping[str, int] = MappingProxyType({}),
        backfills: Mapping[str, Backfill] = MappingProxyType({}),
        paused: Collection[str] = (),
        log: SourceLog = NO_LIMIT,
        failover: bool = False,
        snapshot: SnapshotSettings = _DEFAULT_SNAPSHOT,
        queue_bytes_max: int = QUEUE_BYTES_MAX,
        spill: Spill | None = None,
        parsed: Collection[str] | None = None,
    ) -> None:
        """Capture `tables` (schema.table) of the database that `connection` names.

        A table is copied again while the checkpoint's counter for it is behind that in `resyncs`, and so are rows of it
        while its counter is behind that in `backfills`. Of tables in `paused` no chunk is copied.
        `log` says how much of its log the source may keep; with `failover`, standbys keep a copy of the slot.
        `queue_bytes_max` bounds what was received and not yet decoded. `spill` is the room on disk for transactions in
        progress: the worker's, as it remembers from one session to the next whether the disk was full.
        `parsed` are the tables whose copied rows somebody on the way to the sink looks at; None: all of them.
        """
        self._names = list(dict.fromkeys(tables))
        self._queue_bytes_max = queue_bytes_max
        name = f"pointsman {object_name(pipeline_id)}"
        plain = conninfo(connection, password, application_name=name)
        self._catalog = Catalog(plain)
        self._replication = ReplicationConnection(
            conninfo(connection, password, application_name=name, replication=True)
        )
        self._preparation = Preparation(
            self._catalog,
            self._replication,
            pipeline_id=pipeline_id,
            tables=self._names,
            resyncs=resyncs,
            backfills=backfills,
            paused=paused,
            failover=failover,
        )
        self._watch = SlotWatch(self._catalog, plain, self._preparation.publication, log)
        self._prepared = Prepared("", 0, START, 0)
        self._decoder = Decoder(self._names)
        self._copying = Copying(
            plain,
            self._catalog,
            self._decoder,
            parallelism=snapshot.parallelism,
            chunk_rows=snapshot.chunk_rows,
            parsed=parsed,
        )
        self._position = START
        """Of the last row that was given out."""
        self._between = True
        """No transaction is given out in part."""
        self._spill = spill or Spill()
        self._room = self._spill.open()
        self._assembler = Assembler(
            piece_bytes_max=PIECE_BYTES_MAX,
            piece_messages_max=PIECE_MESSAGES_MAX,
            streamed=StreamedTransactions(
                self._room,
                memory_bytes_max=IN_PROGRESS_BYTES_MAX,
                piece_bytes_max=PIECE_BYTES_MAX,
                piece_messages_max=PIECE_MESSAGES_MAX,
            ),
        )
        self._arrived = asyncio.Event()
        self._stream: ReplicationStream | None = None
        self._checkpoints: CheckpointStore | None = None
        self._marks = Marks()
        self._watching: asyncio.Task[None] | None = None
        self._closed = False

    # ---- what the port asks for ---------------------------------------------------------------------------------

    @property
    def gauges(self) -> SourceGauges:
        """As the port says."""
        stream = self._stream
        queued = (stream.queued_bytes if stream else 0) + self._assembler.waiting_bytes
        # A transaction in progress keeps nothing from the destination.
        idle = (stream is None or stream.queued_bytes == 0) and self._is_idle()
        marks = self._marks
        measured = self._watch.measure.log_end if self._watch.measure else 0
        seen = stream.wal_end if stream else 0
        held = max(marks.confirmed, seen) if idle else marks.confirmed
        return SourceGauges(
            lag_bytes=max(0, max(measured, marks.emitted, seen) - held) if stream else 0,
            queue_bytes=queued,
            slot_retained_bytes=self._watch.measure.retained_bytes if self._watch.measure else 0,
            slot=self._watch.measure,
            undecodable_values=self.undecodable_values,
            tables_total=len(self._names),
            tables_copied=len(self._names) - len({table.name for table in self._copying.tables} - self._copying.copied),
            snapshot=self._copying.progress,
            standing=self._standing(),
            idle=idle,
        )

    def _standing(self) -> CopyStanding | None:
        """Return the copy that needs a person: first one that is refused, then one that is paused."""
        paused = (table.name for table in self._copying.tables if table.waits and not table.settled)
        held = (CopyStanding(code=Code.COPY_PAUSED, table=name) for name in paused)
        return next(iter([*self._prepared.refused, *held]), None)

    @property
    def undecodable_values(self) -> int:
        """How many values were not valid UTF-8; they travel with their odd bytes written as escapes."""
        return self._decoder.undecodable_values + self._copying.undecodable_values

    def schemas(self) -> tuple[TableSchema, ...]:
        """As the port says."""
        return tuple(self._preparation.schemas.values())

    def confirm(self, lsn: int, chunk: int = 0) -> None:
        """As the port says."""
        self._copying.confirmed = max(self._copying.confirmed, chunk)
        self._marks.confirmed = max(self._marks.confirmed, lsn)
        if self._stream is not None:
            self._stream.confirm(lsn)

    async def open(self, checkpoints: CheckpointStore) -> None:
        """As the port says."""
        self._checkpoints = checkpoints
        try:
            self._prepared = await self._preparation.run(checkpoints)
            self._marks.confirmed = self._prepared.confirmed
            self._position = self._prepared.position
            unseen = np.array(self._prepared.unseen, np.uint32)
            self._copying.begin(self._prepared.copies, unseen, self._prepared.log_end)
            await self._begin_stream()
            self._watch.members = self._prepared.members
            self._watching = asyncio.create_task(self._watch.run(self._end_stream, self._arrived.set))
        except psycopg.Error as error:
            raise failure(error, Side.SOURCE) from None

    async def remove(self, checkpoints: CheckpointStore) -> None:
        """As the port says. Does nothing twice when it is called again."""
        try:
            for slot in await self._catalog.slots(self._preparation.publication):
                await slots.drop(self._catalog, slot)
            await self._catalog.drop_publication(self._preparation.publication)
        except psycopg.Error as error:
            raise failure(error, Side.SOURCE) from None

    async def close(self) -> None:
        """As the port says."""
        self._closed = True
        self._arrived.set()
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.wait([self._watching])
        await self._copying.close()
        if self._stream is not None:
            await asyncio.to_thread(self._stream.close)
        await asyncio.to_thread(self._replication.close)
        self._room.close()
        await self._catalog.close()

    async def changes(self) -> AsyncIterator[ChangeSet]:
        """As the port says."""
        try:
            self._check_ended()
            async for change in self._streamed():
                yield change
        except (psycopg.Error, Failure) as error:
            if self._closed:
                return
            if isinstance(error, Failure):
                raise
            raise failure(error, Side.SOURCE) from None

    # ---- streaming ----------------------------------------------------------------------------------------------

    async def _begin_stream(self) -> None:
        prepared = self._prepared
        timeout = await self._catalog.wal_sender_timeout_seconds()
        interval = min(STATUS_SECONDS_MAX, timeout / 3) if timeout > 0 else STATUS_SECONDS_MAX
        try:
            if not self._replication.is_connected:
                await asyncio.to_thread(self._replication.connect)
            await asyncio.to_thread(
                self._replication.start,
                prepared.slot,
                self._preparation.publication,
                prepared.start,
                in_progress=self._spill.is_available,
            )
        except psycopg.Error as error:
            raise await self._why_no_stream(error) from None
        self._stream = ReplicationStream(
            self._replication.detach(),
            confirmed=max(prepared.confirmed, self._marks.confirmed),
            status_seconds=interval,
            queue_bytes_max=self._queue_bytes_max,
            on_arrival=self._signal(asyncio.get_running_loop()),
        )
        self._stream.begin()

    async def _why_no_stream(self, error: psycopg.Error) -> Failure:
        """Return what an error of the stream's beginning means; a slot that is gone was perhaps given up just now."""
        reason = stream_failure(error)
        if reason.code is Code.GAP_SLOT_MISSING:
            comment = await self._catalog.comment_of(self._preparation.publication)
            if self._prepared.slot in given_up(comment):
                return Gap(Code.GAP_LOG_LIMIT, str(error))
        return reason

    async def _end_stream(self) -> None:
        """Let go of the slot. The session goes on until somebody asks it for changes."""
        if self._stream is not None:
            await asyncio.to_thread(self._stream.close)

    def _check_ended(self) -> None:
        if self._watch.ended is not None:
            raise self._watch.ended

    def _signal(self, loop: asyncio.AbstractEventLoop) -> Callable[[], None]:
        arrived = self._arrived

        def signal() -> None:
            # The reader clears the event before it looks, so an event that is still set is looked at after this.
            if not arrived.is_set():
                with contextlib.suppress(RuntimeError):  # the loop was closed
                    loop.call_soon_threadsafe(arrived.set)

        return signal

    # ---- giving changes -----------------------------------------------------------------------------------------

    async def _streamed(self) -> AsyncIterator[ChangeSet]:
        stream = self._stream
        assert stream is not None
        while not self._closed:
            self._arrived.clear()
            self._check_ended()
            received = stream.take(PIECE_BYTES_MAX, PIECE_MESSAGES_MAX)
            async for change in self._decoded(received.parts, received.byte_size):
                yield change
            if self._assembler.idle:
                self._marks.passed = max(self._marks.passed, received.wal_end, self._assembler.reached)
            async for change in self._copied():
                yield change
            if not received.parts and not self._copying.is_ready(self._marks.passed):
                await self._advance_if_idle(received, stream)
                await self._wait(stream)

    async def _copied(self) -> AsyncIterator[ChangeSet]:
        """Give the next chunks of the copies, where a transaction has gone out whole."""
        passed = self._marks.passed
        await self._copying.forget_seen()
        if not self._between or not self._copying.is_ready(passed):
            return
        async for change in self._copying.changes(self._position, passed):
            if change.ends:
                self._marks.emitted = max(self._marks.emitted, change.commit_end_lsn)
            yield change
            self._check_ended()

    async def _wait(self, stream: ReplicationStream) -> None:
        timeout = self._marks.until_advance()
        if self._copying.goes_on:
            timeout = BARRIER_POLL_SECONDS
            target = self._copying.wants_to_pass
            if target is not None and target > self._marks.passed:
                stream.ask()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await self._arrived.wait()

    async def _decoded(self, parts: Sequence[Messages], byte_size: int) -> AsyncIterator[ChangeSet]:
        if not parts:
            return
        pieces = self._assembler.cut(parts, byte_size)
        while (piece := await self._next(pieces, byte_size)) is not None:
            if self._copying.is_unsettled:
                self._copying.gave(transactions_of(piece.messages, in_progress=piece.in_progress))
            self._between = piece.ends
            change = await self._decode(piece)
            if change is None or change.last.lsn <= self._prepared.position.lsn:
                # What the destination holds already; transactions are whole there, so an LSN decides.
                continue
            change = await self._copying.filled(change)
            self._position = change.last
            if change.ends:
                self._marks.emitted = max(self._marks.emitted, change.commit_end_lsn)
                self._marks.passed = max(self._marks.passed, change.commit_end_lsn)
            yield change

    async def _next(self, pieces: Iterator[Piece], byte_size: int) -> Piece | None:
        """Return the next piece; in a thread when it may come from the disk, or bring others there."""
        if self._room.used_bytes == 0 and self._assembler.waiting_bytes + byte_size < IN_PROGRESS_BYTES_MAX:
            return next(pieces, None)
        return await asyncio.to_thread(next, pieces, None)

    async def _decode(self, piece: Piece) -> ChangeSet | None:
        while True:
            try:
                if piece.byte_size <= INLINE_BYTES_MAX:
                    return self._decoder.decode(piece)
                return await asyncio.to_thread(self._decoder.decode, piece)
            except Undescribed as undescribed:
                for relation in undescribed.relations:
                    schema = await self._catalog.describe(relation)
                    self._decoder.learn(relation, schema)
                    self._preparation.schemas[schema.table] = schema

    # ---- confirming and measuring -------------------------------------------------------------------------------

    def _is_idle(self) -> bool:
        """Whether all that was received is durable at the destination."""
        return self._assembler.idle and self._marks.emitted <= self._marks.confirmed and self._copying.is_durable

    async def _advance_if_idle(self, received: Received, stream: ReplicationStream) -> None:
        """Let the server forget what others wrote, once that is durable in the checkpoint.

        Only called when everything that came before the keepalive was taken from the queue.
        """
        marks = self._marks
        marks.asked |= received.reply_requested
        reached = max(received.wal_end, self._assembler.reached)
        if reached <= marks.confirmed:
            marks.asked = False
            return
        if not self._is_idle() or not marks.advance_is_due():
            return
        assert self._checkpoints is not None
        await self._checkpoints.advance(reached)
        marks.advanced()
        self.confirm(reached)
        stream.confirm(reached)
