"""The PostgreSQL source: opens, copies, streams and confirms. The `Source` of the port, for one pipeline.

In flow a connection, its password and table names; out flow change sets. A worker makes one for each session, calls
`open`, iterates `changes` and gives back what is durable through `confirm`.

Three places hold connections: `catalog` (one plain connection for questions), `snapshot` (one that copies), and
`replication` (one that streams, owned by its thread). Everything else here decides when each of them is used. Small
pieces are decoded where they arrive, because a hop to a thread would cost more; large ones in a thread, so that the
sink's own I/O goes on meanwhile.
"""

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass

import psycopg

from contracts.codes import Code
from contracts.v2 import ConnectionDocument
from dataplane.batch import START, ChangeSet, Position, TableSchema
from dataplane.checkpoint import Checkpoint, CheckpointStore, SourceIdentity
from dataplane.failures import Failure, Gap
from dataplane.postgres import Revealable, Side, conninfo, failure
from dataplane.sources.port import SourceGauges
from dataplane.sources.postgres import publication, slots
from dataplane.sources.postgres.catalog import Catalog, TableSeen
from dataplane.sources.postgres.decoder import Decoder, Undescribed
from dataplane.sources.postgres.messages import BEGIN, XLOG_HEADER_BYTES
from dataplane.sources.postgres.opening import (
    INCARNATION_DIGITS,
    Resume,
    ServerSeen,
    StartOver,
    decide,
    object_name,
)
from dataplane.sources.postgres.replication import (
    STATUS_SECONDS_MAX,
    Received,
    ReplicationConnection,
    ReplicationStream,
    stream_failure,
)
from dataplane.sources.postgres.snapshot import Snapshot, export
from dataplane.sources.postgres.transactions import Assembler, Piece

QUEUE_BYTES_MAX = 16 << 20
PIECE_BYTES_MAX = 4 << 20
PIECE_MESSAGES_MAX = 20_000
INLINE_BYTES_MAX = 128 << 10
"""Pieces up to this size are decoded on the event loop."""
IDLE_ADVANCE_SECONDS = 10.0
ASKED_ADVANCE_SECONDS = 0.5
"""A server that asks for an answer, as it does when it shuts down, is not kept waiting for the idle advance."""
WATCH_SECONDS = 10.0
BARRIER_POLL_SECONDS = 0.1


class PostgresSource:
    """Captures the tables of one pipeline. Made by a worker; no I/O before `open`."""

    def __init__(
        self,
        connection: ConnectionDocument,
        password: Revealable | None,
        *,
        pipeline_id: str,
        tables: Sequence[str],
        queue_bytes_max: int = QUEUE_BYTES_MAX,
    ) -> None:
        """Capture `tables` (schema.table) of the database that `connection` names.

        `queue_bytes_max` bounds what was received and not yet decoded.
        """
        self._connection = connection
        self._password = password
        self._pipeline_id = pipeline_id
        self._publication = object_name(pipeline_id)
        self._names = list(dict.fromkeys(tables))
        self._queue_bytes_max = queue_bytes_max
        self._catalog = Catalog(self._conninfo(replication=False))
        self._replication = ReplicationConnection(self._conninfo(replication=True))
        self._decoder = Decoder(self._names)
        self._assembler = Assembler(piece_bytes_max=PIECE_BYTES_MAX, piece_messages_max=PIECE_MESSAGES_MAX)
        self._arrived = asyncio.Event()
        self._stream: ReplicationStream | None = None
        self._copy: _Copy | None = None
        self._checkpoints: CheckpointStore | None = None
        self._schemas: dict[str, TableSchema] = {}
        self._slot = ""
        self._resume_at: Position = START
        self._copied: set[str] = set()
        self._marks = _Marks()
        self._watch: asyncio.Task[None] | None = None
        self._closed = False

    def _conninfo(self, *, replication: bool) -> str:
        name = f"pointsman {self._publication}"
        return conninfo(self._connection, self._password, application_name=name, replication=replication)

    # ---- what the port asks for ---------------------------------------------------------------------------------

    @property
    def gauges(self) -> SourceGauges:
        """As the port says."""
        stream = self._stream
        queued = (stream.queued_bytes if stream else 0) + self._assembler.waiting_bytes
        idle = queued == 0 and self._is_idle()
        marks = self._marks
        seen = stream.wal_end if stream else 0
        held = max(marks.confirmed, seen) if idle else marks.confirmed
        return SourceGauges(
            lag_bytes=max(0, max(marks.server_end, marks.emitted, seen) - held) if stream else 0,
            queue_bytes=queued,
            slot_retained_bytes=marks.retained,
            tables_total=len(self._names),
            tables_copied=len(self._copied),
            idle=idle,
        )

    @property
    def undecodable_values(self) -> int:
        """How many values were not valid UTF-8; they travel with their odd bytes written as escapes."""
        return self._decoder.undecodable_values + (self._copy.snapshot.undecodable_values if self._copy else 0)

    def schemas(self) -> tuple[TableSchema, ...]:
        """As the port says."""
        return tuple(self._schemas.values())

    def confirm(self, lsn: int) -> None:
        """As the port says."""
        self._marks.confirmed = max(self._marks.confirmed, lsn)
        if self._stream is not None:
            self._stream.confirm(lsn)

    async def open(self, checkpoints: CheckpointStore) -> None:
        """As the port says."""
        self._checkpoints = checkpoints
        try:
            checkpoint = await checkpoints.load()
            await self._catalog.check_server()
            server = await slots.look(self._catalog, self._replication, self._publication)
            decision = decide(checkpoint, server)
            tables = await self._catalog.tables(self._names)
            for table in tables:
                self._schemas[table.name] = await self._catalog.schema(table)
            if isinstance(decision, StartOver):
                await self._start_over(decision, server, tables)
            else:
                assert checkpoint is not None
                await self._resume(decision, checkpoint, tables)
        except psycopg.Error as error:
            raise failure(error, Side.SOURCE) from None

    async def remove(self, checkpoints: CheckpointStore) -> None:
        """As the port says. Does nothing twice when it is called again."""
        try:
            for slot in await self._catalog.slots(self._publication):
                await slots.drop(self._catalog, slot)
            await self._catalog.drop_publication(self._publication)
        except psycopg.Error as error:
            raise failure(error, Side.SOURCE) from None

    async def close(self) -> None:
        """As the port says."""
        self._closed = True
        self._arrived.set()
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.wait([self._watch])
        if self._copy is not None:
            await self._copy.snapshot.close()
        if self._stream is not None:
            await asyncio.to_thread(self._stream.close)
        await asyncio.to_thread(self._replication.close)
        await self._catalog.close()

    async def changes(self) -> AsyncIterator[ChangeSet]:
        """As the port says."""
        try:
            if self._stream is None:
                async for change in self._copied_rows():
                    yield change
                await self._begin_stream(self._marks.start)
            async for change in self._streamed():
                yield change
        except (psycopg.Error, Failure) as error:
            if self._closed:
                return
            if isinstance(error, Failure):
                raise
            raise failure(error, Side.SOURCE) from None

    # ---- opening ------------------------------------------------------------------------------------------------

    async def _start_over(self, decision: StartOver, server: ServerSeen, tables: Sequence[TableSeen]) -> None:
        """Make publication and slot, and get ready to copy every table as it was at the slot's consistent point.

        The checkpoint names the slot before it exists. A crash at any point leaves a checkpoint without a whole
        snapshot, and the next `open` drops what it finds and starts over again.
        """
        assert self._checkpoints is not None
        for orphan in decision.orphans:
            await slots.drop(self._catalog, orphan)
        note = publication.written(publication.Note(pointsman=self._pipeline_id))
        seen = await self._catalog.published(self._publication)
        await self._catalog.publish(self._publication, tables, exists=seen is not None, comment=note)
        self._slot = f"{self._publication}_{secrets.token_hex(INCARNATION_DIGITS // 2)}"
        identity = SourceIdentity(
            system_identifier=server.system_identifier,
            timeline=server.timeline,
            database=server.database,
            slot=self._slot,
            publication=self._publication,
        )
        await self._checkpoints.begin(identity)
        self._copy = await self._begin_copy(self._slot, tables, temporary=False)
        self._marks.start = self._copy.snapshot.lsn

    async def _begin_copy(self, slot: str, tables: Sequence[TableSeen], *, temporary: bool) -> "_Copy":
        """Make a slot and take over the snapshot that it exports."""
        version = await self._catalog.version()
        lsn, name = await asyncio.to_thread(export, self._replication, slot, temporary=temporary, version=version)
        taken = Snapshot(self._conninfo(replication=False), lsn)
        try:
            await asyncio.to_thread(taken.begin, name, tables)
            # Only now DDL is locked out: the columns are those of the rows that will be read.
            schemas = [await self._catalog.schema(table) for table in tables]
        except BaseException:
            await taken.close()
            raise
        await asyncio.to_thread(self._replication.end_session)
        self._schemas.update({schema.table: schema for schema in schemas})
        return _Copy(taken, list(zip(tables, schemas, strict=True)))

    async def _resume(self, decision: Resume, checkpoint: Checkpoint, tables: Sequence[TableSeen]) -> None:
        """Go on with the slot; tables that the pipeline did not capture so far are copied first."""
        for orphan in decision.orphans:
            await slots.drop(self._catalog, orphan)
        await slots.release(self._catalog, decision.slot)
        seen = await self._catalog.published(self._publication)
        if seen is None or not seen.intact:
            raise Gap(Code.GAP_PUBLICATION_CHANGED, f"publication {self._publication} was dropped or altered")
        plan = publication.plan(self._names, seen, checkpoint)
        if plan.alter:
            note = publication.Note(pointsman=self._pipeline_id, copying=dict.fromkeys(plan.added, 0))
            await self._catalog.publish(self._publication, tables, exists=True, comment=publication.written(note))
        self._slot = decision.slot.name
        self._resume_at = decision.position
        self._copied = set(self._names) - set(plan.added)
        self._marks.confirmed = checkpoint.confirmed_through
        await self._begin_stream(decision.lsn)
        if plan.added:
            await self._begin_adding([table for table in tables if table.name in plan.added])

    async def _begin_adding(self, tables: Sequence[TableSeen]) -> None:
        """Get ready to copy tables that were added: at a moment that the stream has still to reach.

        Until then their rows in the stream are left out, since the copy has them.
        """
        await asyncio.to_thread(self._replication.connect)
        name = f"{self._slot}_copy"
        self._copy = await self._begin_copy(name, tables, temporary=True)
        lsn = self._copy.snapshot.lsn
        for table in tables:
            self._decoder.skip_before(table.name, lsn)
        note = publication.Note(pointsman=self._pipeline_id, copying={table.name: lsn for table in tables})
        await self._catalog.note(self._publication, publication.written(note))

    async def _begin_stream(self, lsn: int) -> None:
        timeout = await self._catalog.wal_sender_timeout_seconds()
        interval = min(STATUS_SECONDS_MAX, timeout / 3) if timeout > 0 else STATUS_SECONDS_MAX
        try:
            if not self._replication.is_connected:
                await asyncio.to_thread(self._replication.connect)
            await asyncio.to_thread(self._replication.start, self._slot, self._publication, lsn)
        except psycopg.Error as error:
            raise stream_failure(error) from None
        self._stream = ReplicationStream(
            self._replication.detach(),
            confirmed=max(self._marks.confirmed, self._marks.start),
            status_seconds=interval,
            queue_bytes_max=self._queue_bytes_max,
            on_arrival=self._signal(asyncio.get_running_loop()),
        )
        self._stream.begin()
        self._watch = asyncio.create_task(self._measure())

    def _signal(self, loop: asyncio.AbstractEventLoop) -> Callable[[], None]:
        arrived = self._arrived

        def signal() -> None:
            # The reader clears the event before it looks, so an event that is still set is looked at after this.
            if not arrived.is_set():
                with contextlib.suppress(RuntimeError):  # the loop was closed
                    loop.call_soon_threadsafe(arrived.set)

        return signal

    # ---- giving changes -----------------------------------------------------------------------------------------

    async def _copied_rows(self) -> AsyncIterator[ChangeSet]:
        """Give the rows of the copy that `open` prepared: the first one of the pipeline, or that of added tables."""
        copy = self._copy
        assert copy is not None
        first = self._stream is None
        # What is confirmed of an added table must not pass for the end of them all.
        early = copy.snapshot.lsn if first else copy.snapshot.lsn - 1
        async for change in copy.snapshot.changes(copy.tables, confirm_early=early, ends_all=first):
            if change.ends:
                self._marks.emitted = max(self._marks.emitted, change.commit_end_lsn)
                self._copied.add(str(change.snapshot_of))
            yield change
        copy.done = True

    async def _streamed(self) -> AsyncIterator[ChangeSet]:
        stream = self._stream
        assert stream is not None
        while not self._closed:
            self._arrived.clear()
            received = stream.take(PIECE_BYTES_MAX, PIECE_MESSAGES_MAX)
            async for change in self._changes_of(received, stream):
                yield change
            if not received.payloads:
                await self._advance_if_idle(received, stream)
                await self._finish_adding()
                await self._wait()

    async def _wait(self) -> None:
        copying = self._copy is not None and not self._copy.done
        timeout = BARRIER_POLL_SECONDS if copying else self._marks.until_advance()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._arrived.wait(), timeout)

    async def _changes_of(self, received: Received, stream: ReplicationStream) -> AsyncIterator[ChangeSet]:
        """Decode what has come. Where the copy of added tables stands in the stream, its rows come first."""
        payloads = received.payloads
        copying = self._copy is not None and not self._copy.done
        if copying:
            assert self._copy is not None
            lsn = self._copy.snapshot.lsn
            at = _first_from(payloads, lsn)
            if at is None and received.wal_end < lsn:
                stream.ask()
                async for change in self._decoded(payloads, received.byte_size):
                    yield change
                return
            at = len(payloads) if at is None else at
            before, payloads = payloads[:at], payloads[at:]
            async for change in self._decoded(before, sum(map(len, before))):
                yield change
            async for change in self._copied_rows():
                yield change
        async for change in self._decoded(payloads, sum(map(len, payloads)) if copying else received.byte_size):
            yield change

    async def _decoded(self, payloads: Sequence[bytes], byte_size: int) -> AsyncIterator[ChangeSet]:
        if not payloads:
            return
        for piece in self._assembler.cut(payloads, byte_size):
            change = await self._decode(piece)
            if change is None or change.last.lsn <= self._resume_at.lsn:
                # What the destination holds already; transactions are whole there, so an LSN decides.
                continue
            if change.ends:
                self._marks.emitted = max(self._marks.emitted, change.commit_end_lsn)
            yield change

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
                    self._schemas[schema.table] = schema

    # ---- confirming and measuring -------------------------------------------------------------------------------

    def _is_idle(self) -> bool:
        """Whether all that was received is durable at the destination."""
        copying = self._copy is not None and not self._copy.done
        return self._assembler.idle and self._marks.emitted <= self._marks.confirmed and not copying

    async def _advance_if_idle(self, received: Received, stream: ReplicationStream) -> None:
        """Let the server forget what others wrote, once that is durable in the checkpoint.

        Only called when everything that came before the keepalive was taken from the queue.
        """
        marks = self._marks
        marks.asked |= received.reply_requested
        if received.wal_end <= marks.confirmed:
            marks.asked = False
            return
        if not self._is_idle() or not marks.advance_is_due():
            return
        assert self._checkpoints is not None
        await self._checkpoints.advance(received.wal_end)
        marks.advanced()
        self.confirm(received.wal_end)
        stream.confirm(received.wal_end)

    async def _finish_adding(self) -> None:
        """Take the note of the copying out of the publication, once the copies are durable."""
        copy = self._copy
        if copy is None or not copy.done or self._marks.confirmed < copy.snapshot.lsn:
            return
        note = publication.written(publication.Note(pointsman=self._pipeline_id))
        await self._catalog.note(self._publication, note)
        self._copy = None

    async def _measure(self) -> None:
        """Ask every few seconds what the slot retains. A question that fails is asked again at the next turn."""
        while True:
            with contextlib.suppress(psycopg.Error, Failure):
                retained, end = await self._catalog.retained(self._slot)
                self._marks.retained = retained
                self._marks.server_end = max(self._marks.server_end, end)
            await asyncio.sleep(WATCH_SECONDS)


@dataclass(slots=True)
class _Copy:
    """A snapshot that is to be read, and of which tables."""

    snapshot: Snapshot
    tables: list[tuple[TableSeen, TableSchema]]
    done: bool = False


@dataclass(slots=True)
class _Marks:
    """Positions in the source's log, and when the idle advance was last made."""

    confirmed: int = 0
    """What is durable at the destination."""
    start: int = 0
    """Where the stream of a new slot begins."""
    emitted: int = 0
    """The end of the last whole transaction that went out."""
    server_end: int = 0
    retained: int = 0
    asked: bool = False
    advanced_at: float = -IDLE_ADVANCE_SECONDS

    def until_advance(self) -> float:
        """Return how long to wait for something to come before the idle advance is thought of again.

        An advance that is overdue has nothing to advance to, or waits for the destination; a whole interval passes then.
        """
        interval = ASKED_ADVANCE_SECONDS if self.asked else IDLE_ADVANCE_SECONDS
        left = self.advanced_at + interval - time.monotonic()
        return left if left > 0 else interval

    def advance_is_due(self) -> bool:
        return time.monotonic() >= self.advanced_at + (ASKED_ADVANCE_SECONDS if self.asked else IDLE_ADVANCE_SECONDS)

    def advanced(self) -> None:
        self.advanced_at = time.monotonic()
        self.asked = False


def _first_from(payloads: Sequence[bytes], lsn: int) -> int | None:
    """Return where the first transaction begins that commits at `lsn` or later."""
    at = XLOG_HEADER_BYTES
    for index, payload in enumerate(payloads):
        if payload[at] == BEGIN and int.from_bytes(payload[at + 1 : at + 9], "big") >= lsn:
            return index
    return None
