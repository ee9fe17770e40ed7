"""The source's end of a buffer in JetStream that is data (`confirm: buffer`).

A set counts as safe once the stream has acknowledged it, which the leaf does after writing it to disk; the source is
then told to let go of it, whether the sink's half is there or not. What the source's half needs to go on lies in the
stream itself (`records`). So `open` looks at the newest state, puts a note behind everything (from then on no older
writer gets a message in), and deletes the parts of a transaction that nobody will end.

Only the first session of a buffer asks the sink's half, for the checkpoint that the destination has: the buffer is born
with it. A stream that was lost is born again like that. If the source has let go of more than the destination holds,
the source finds its slot ahead of that checkpoint, and this is the gap: `buffer_lost`.

It is bounded: while it is full, `put` waits and the source's log grows. Notes get in all the same.
"""

import asyncio
import contextlib
import secrets
from collections.abc import Mapping
from types import MappingProxyType

import nats.errors
import nats.js.errors
from nats.js.api import RawStreamMsg, StreamConfig, StreamInfo

from contracts.codes import Code
from dataplane.batch import ChangeSet
from dataplane.buffers import codec
from dataplane.buffers.jetstream.connection import unreachable
from dataplane.buffers.jetstream.messages import Operation, Question, failure_of
from dataplane.buffers.jetstream.outbox import Outbox
from dataplane.buffers.jetstream.source_end import SourceEnd
from dataplane.buffers.records import INCARNATION_BYTES, RECORD_BYTES_MAX, Cut, Kind, Record, Recorder, parse
from dataplane.checkpoint import Checkpoint, CheckpointStore, SourceIdentity
from dataplane.failures import Gap, Permanent
from dataplane.sinks import durable, replay
from dataplane.worker.protocol import BufferAccess

NOTE_ROOM_BYTES = 1 << 20
"""How much a full stream grows for a moment, so that a note gets in."""
OPEN_SHARE_MAX = 0.9
"""The share of the buffer that one open transaction may take: its beginning cannot be forgotten before its end."""


class JetStreamKeeper(SourceEnd):
    """One session's writing end. Obeys `BufferWriter`."""

    def __init__(
        self,
        access: BufferAccess,
        *,
        pipeline_id: str,
        size_bytes_max: int,
        resyncs: Mapping[str, int] = MappingProxyType({}),
    ) -> None:
        super().__init__(access, pipeline_id=pipeline_id, size_bytes_max=size_bytes_max)
        self._record_bytes_max = min(RECORD_BYTES_MAX, size_bytes_max // 4)
        self._recorder = Recorder(b"", 0, None)
        self._open_bytes = 0
        self._chunk = 0

    async def open(self) -> CheckpointStore:
        """As the port says; the sink's half is needed only by a buffer that is not born yet."""
        connection = self._connection
        await connection.open()
        info = await connection.call(self._stream())
        newest = await connection.call(self._newest_state())
        self._outbox = Outbox(connection, self._subjects.sets, info.state.last_seq)
        await connection.call(self._outbox.open())
        if newest is None:
            await self._be_born(info)
        else:
            await self._go_on(newest, info)
        self._watching = asyncio.create_task(self._watch_fill())
        return KeptCheckpoints(self)

    async def put(self, change: ChangeSet) -> None:
        """As the port says: once it returns, the source may forget."""
        try:
            await self._put(change)
        except BaseException:
            self._give_up()
            raise

    async def _put(self, change: ChangeSet) -> None:
        outbox, recorder = self._opened, self._recorder
        async with self._turn:
            self._connection.check()
            assert recorder.checkpoint is not None
            held = recorder.checkpoint
            unseen = replay.unseen(change, held.position, held.tables_copied, held.cursors)
            if unseen is None:
                return
            sequence = 0
            for message, ends in recorder.cut(unseen, codec.encode(unseen)):
                self._count(len(message), ends)
                sequence = await outbox.publish(message, self._subjects.states if ends else None)
            checkpoint = recorder.checkpoint
        await outbox.durable(sequence)
        if unseen.ends:
            self._tell(checkpoint, unseen)

    def _count(self, size: int, ends: bool) -> None:
        """Refuse a transaction that the buffer could never hold.

        Raises:
            Permanent: it is one.
        """
        self._open_bytes += size
        if self._open_bytes > self._size_bytes_max * OPEN_SHARE_MAX:
            raise Permanent(Code.BUFFER_TOO_SMALL, f"a transaction has more than {self._open_bytes} bytes")
        if ends:
            self._open_bytes = 0

    def _tell(self, checkpoint: Checkpoint, change: ChangeSet) -> None:
        self._chunk = durable.newest_chunk(self._chunk, change)
        progress = durable.progress(
            checkpoint,
            change.commit_time,
            rows=change.row_count,
            transactions=change.transactions,
            chunk=self._chunk,
        )
        if self._newest is None or progress.confirmed_through >= self._newest.confirmed_through:
            self._newest = progress
        self._told.set()

    def cause(self, gap: Gap) -> Gap:
        """As the port says."""
        if self._recorder.lost and gap.code is Code.GAP_SLOT_AHEAD:
            return Gap(Code.GAP_BUFFER_LOST, str(gap.args[0]))
        return gap

    # ---- the checkpoint ---------------------------------------------------------------------------------------------

    @property
    def checkpoint(self) -> Checkpoint | None:
        """What the source's half has made durable."""
        return self._recorder.checkpoint

    async def begin(self, source: SourceIdentity) -> None:
        """Start over, and forget all that came before."""
        async with self._turn:
            sequence = await self._note(self._recorder.begin(source))
            await self._purge(sequence)
            await self._bound()

    async def advance(self, confirmed_through: int) -> None:
        """Raise what the source may be told."""
        async with self._turn:
            await self._note(self._recorder.advance(confirmed_through))
            await self._bound()

    async def follow(self, source: SourceIdentity, confirmed_through: int) -> None:
        """Go on under another identity."""
        async with self._turn:
            await self._note(self._recorder.follow(source, confirmed_through))
            await self._bound()

    async def forget(self) -> None:
        """Let the sink's half delete the destination's checkpoint."""
        await self._ask(Question(session=b"", operation=Operation.FORGET, keeps=True))

    # ---- how a session begins -------------------------------------------------------------------------------------

    async def _be_born(self, info: StreamInfo) -> None:
        """Make the first record: the destination's checkpoint. What else lies here is an older cache."""
        held = await self._ask(Question(session=b"", operation=Operation.LOAD, keeps=True))
        if info.state.messages:
            await self._purge(info.state.last_seq + 1)
        lost = held is not None and held.buffer is not None
        self._recorder = self._record(secrets.token_bytes(INCARNATION_BYTES), 0, held, lost=lost)
        await self._note(self._recorder.note(Kind.BIRTH))
        await self._bound()

    async def _go_on(self, newest: RawStreamMsg, info: StreamInfo) -> None:
        """Go on behind the newest state, and delete what stands behind it."""
        record = _readable(newest)
        state = record.state
        assert state is not None
        assert newest.seq is not None
        self._recorder = self._record(record.incarnation, record.number, state.checkpoint, lost=state.lost)
        # A session that wrote nothing may have died before it had deleted what the one before it left.
        void_from = state.void_from if state.kind is Kind.SESSION else newest.seq + 1
        sequence = await self._note(self._recorder.note(Kind.SESSION, void_from=void_from))
        # Backwards, so that a reader in the middle of them meets the note behind them and never a hole.
        for void in range(sequence - 1, max(void_from, info.state.first_seq) - 1, -1):
            await self._delete(void)
        await self._bound()

    def _record(self, incarnation: bytes, number: int, checkpoint: Checkpoint | None, *, lost: bool) -> Recorder:
        return Recorder(incarnation, number, checkpoint, lost=lost, record_bytes_max=self._record_bytes_max)

    async def _ask(self, question: Question) -> Checkpoint | None:
        answer = await self._ask_until_bound(question)
        if answer.trouble is not None:
            raise failure_of(answer.trouble)
        return answer.checkpoint

    # ---- the stream -------------------------------------------------------------------------------------------------

    @property
    def _opened(self) -> Outbox:
        assert self._outbox is not None, "not open"
        return self._outbox

    async def _note(self, message: bytes) -> int:
        """Write a note, whether there is room or not; return its sequence once it is durable."""
        info = await self._connection.call(self._connection.streams.stream_info(self._subjects.stream))
        limit = info.config.max_bytes or 0
        if info.state.bytes + NOTE_ROOM_BYTES // 2 > limit:
            await self._limit(info.state.bytes + NOTE_ROOM_BYTES)
        outbox = self._opened
        sequence = await outbox.publish(message, self._subjects.states)
        await outbox.durable(sequence)
        return sequence

    async def _bound(self) -> None:
        """Put the stream's limit back. What lies beyond it stays, and nothing gets in until there is room."""
        info = await self._connection.call(self._connection.streams.stream_info(self._subjects.stream))
        if info.config.max_bytes != self._size_bytes_max:
            await self._limit(self._size_bytes_max)

    async def _limit(self, size: int) -> None:
        await self._connection.call(self._connection.streams.update_stream(self._bounded(size)))

    async def _delete(self, sequence: int) -> None:
        streams, stream = self._connection.streams, self._subjects.stream
        try:
            await self._connection.race(streams.delete_msg(stream, sequence))
        except nats.js.errors.APIError:
            # It was deleted before, or else it must not stay.
            with contextlib.suppress(nats.js.errors.NotFoundError):
                await self._connection.race(streams.get_msg(stream, sequence))
                raise
        except (TimeoutError, OSError, nats.errors.Error) as error:
            raise unreachable(error) from error

    async def _newest_state(self) -> RawStreamMsg | None:
        try:
            return await self._connection.streams.get_last_msg(self._subjects.stream, self._subjects.states)
        except nats.js.errors.NotFoundError:
            return None

    def _bounded(self, size: int) -> StreamConfig:
        return self._config([self._subjects.sets, self._subjects.states], size)

    async def _stream(self) -> StreamInfo:
        streams = self._connection.streams
        try:
            info = await streams.stream_info(self._subjects.stream)
        except nats.js.errors.NotFoundError:
            return await streams.add_stream(self._bounded(self._size_bytes_max))
        if info.config.subjects == [self._subjects.sets, self._subjects.states]:
            return info
        return await streams.update_stream(self._bounded(self._size_bytes_max))


class KeptCheckpoints:
    """The checkpoint of the source's half: what the buffer holds, not what the destination does."""

    def __init__(self, keeper: JetStreamKeeper) -> None:
        self._keeper = keeper

    async def load(self) -> Checkpoint | None:
        """As `CheckpointStore` says."""
        return self._keeper.checkpoint

    async def begin(self, source: SourceIdentity) -> None:
        """As `CheckpointStore` says. Everything that the buffer held is forgotten."""
        await self._keeper.begin(source)

    async def advance(self, confirmed_through: int) -> None:
        """As `CheckpointStore` says."""
        await self._keeper.advance(confirmed_through)

    async def follow(self, source: SourceIdentity, confirmed_through: int) -> None:
        """As `CheckpointStore` says."""
        await self._keeper.follow(source, confirmed_through)

    async def forget(self) -> None:
        """As `CheckpointStore` says."""
        await self._keeper.forget()


def _readable(newest: RawStreamMsg) -> Record:
    try:
        return parse(newest.data or b"")
    except Cut as reason:
        raise Gap(Code.GAP_BUFFER_CUT, str(reason)) from reason
