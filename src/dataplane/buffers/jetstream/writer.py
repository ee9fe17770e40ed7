"""The source's end of a buffer in JetStream.

`open` makes the stream if it is missing, puts the new session's marker behind everything (from then on no older writer
gets a message in), deletes what older sessions left, and asks the sink's half for the checkpoint. The sink's half does
not answer before it has let go of every older session, so nothing older can reach the destination afterwards.
"""

import asyncio
import uuid
from collections.abc import Awaitable, Callable, Mapping
from types import MappingProxyType

import msgspec
import nats.errors
import nats.js.errors
from nats.aio.msg import Msg
from nats.js.api import StreamInfo

from contracts.codes import Code
from dataplane.batch import START, ChangeSet
from dataplane.buffers import codec
from dataplane.buffers.frames import FRAME_BYTES_MAX, Cutter
from dataplane.buffers.jetstream.messages import (
    Answer,
    Durable,
    Operation,
    Question,
    Renew,
    failure_of,
)
from dataplane.buffers.jetstream.outbox import Outbox
from dataplane.buffers.jetstream.source_end import SINK_ANSWER_SECONDS_MAX, SourceEnd
from dataplane.buffers.port import SessionReplaced
from dataplane.checkpoint import Checkpoint, CheckpointStore, SourceIdentity
from dataplane.failures import Gap, Permanent, RetryLater
from dataplane.worker.protocol import BufferAccess


class JetStreamWriter(SourceEnd):
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
        self._resyncs = dict(resyncs)
        # A message must be small against the buffer, or a full one could never take it.
        self._cutter = Cutter(uuid.uuid4().bytes, min(FRAME_BYTES_MAX, size_bytes_max // 4))
        self._bound = False

    async def open(self) -> CheckpointStore:
        """As the port says."""
        connection = self._connection
        await connection.open()
        await connection.call(self._listen())
        self._outbox = await self._begin_session()
        checkpoint = await self._first_answer()
        self._cutter.follow(checkpoint.position if checkpoint is not None else START)
        self._bound = True
        self._watching = asyncio.create_task(self._watch_fill())
        return RemoteCheckpoints(self._ask, self._cutter)

    async def put(self, change: ChangeSet) -> None:
        """As the port says. Calls may overlap: their order is that of the calls."""
        assert self._outbox is not None, "not open"
        try:
            async with self._turn:
                self._connection.check()
                sequence = 0
                for message in self._cutter.cut(change, codec.encode(change)):
                    sequence = await self._outbox.publish(message)
            await self._outbox.durable(sequence)
        except BaseException:
            self._give_up()
            raise

    def cause(self, gap: Gap) -> Gap:
        """As the port says."""
        return gap

    async def _listen(self) -> None:
        client = self._connection.client
        await client.subscribe(self._subjects.durable, cb=self._on_durable)
        await client.subscribe(self._subjects.renew, cb=self._on_renew)

    async def _begin_session(self) -> Outbox:
        """Put the marker at the end of the stream and delete what stands before it."""
        info = await self._connection.call(self._stream())
        if await self._connection.call(self._holds_data()):
            raise Permanent(Code.BUFFER_HOLDS_DATA, "the buffer was filled with `confirm: buffer`")
        outbox = Outbox(self._connection, self._subjects.sets, info.state.last_seq)
        await self._connection.call(outbox.open())
        if info.state.messages:
            # First, so that a full buffer has room for the marker. What is deleted belongs to dead sessions; a live one
            # would be replaced anyway, and finds out at its next message.
            await self._purge(info.state.last_seq + 1)
        await outbox.durable(await outbox.publish(self._cutter.marker()))
        return outbox

    async def _holds_data(self) -> bool:
        try:
            await self._connection.streams.get_last_msg(self._subjects.stream, self._subjects.states)
        except nats.js.errors.NotFoundError:
            return False
        return True

    async def _stream(self) -> StreamInfo:
        config = self._config([self._subjects.sets], self._size_bytes_max)
        streams = self._connection.streams
        try:
            info = await streams.stream_info(self._subjects.stream)
        except nats.js.errors.NotFoundError:
            return await streams.add_stream(config)
        if info.config.max_bytes == self._size_bytes_max or self._subjects.states in (info.config.subjects or ()):
            return info
        return await streams.update_stream(config)

    async def _first_answer(self) -> Checkpoint | None:
        """Announce the session until the sink's half follows it, and return the checkpoint."""
        question = Question(session=self._cutter.session, operation=Operation.LOAD, resyncs=self._resyncs)
        return _result(await self._ask_until_bound(question))

    async def _ask(self, question: Question) -> Checkpoint | None:
        try:
            answer = await self._ask_once(question, SINK_ANSWER_SECONDS_MAX)
        except (nats.errors.NoRespondersError, TimeoutError) as error:
            raise RetryLater(Code.BUFFER_UNREACHABLE, "the sink's half of the pipeline is away") from error
        if not answer.bound:
            raise SessionReplaced("the sink's half follows another session")
        return _result(answer)

    async def _on_durable(self, message: Msg) -> None:
        durable = msgspec.msgpack.decode(message.data, type=Durable)
        if durable.session == self._cutter.session:
            self._newest = durable.progress
            self._told.set()

    async def _on_renew(self, message: Msg) -> None:
        session = msgspec.msgpack.decode(message.data, type=Renew).session
        if self._bound and session in (None, self._cutter.session):
            self._connection.fail(SessionReplaced("the sink's half asks for a new session"))


class RemoteCheckpoints:
    """The checkpoint as the source's half reaches it: each call is a question to the sink's half."""

    def __init__(self, ask: Callable[[Question], Awaitable[Checkpoint | None]], cutter: Cutter) -> None:
        self._ask = ask
        self._cutter = cutter

    async def load(self) -> Checkpoint | None:
        """As `CheckpointStore` says."""
        return await self._question(Operation.LOAD)

    async def begin(self, source: SourceIdentity) -> None:
        """As `CheckpointStore` says."""
        await self._question(Operation.BEGIN, source=source)
        self._cutter.follow(START)

    async def advance(self, confirmed_through: int) -> None:
        """As `CheckpointStore` says."""
        await self._question(Operation.ADVANCE, confirmed_through=confirmed_through)

    async def follow(self, source: SourceIdentity, confirmed_through: int) -> None:
        """As `CheckpointStore` says."""
        await self._question(Operation.FOLLOW, source=source, confirmed_through=confirmed_through)

    async def forget(self) -> None:
        """As `CheckpointStore` says."""
        await self._question(Operation.FORGET)

    async def _question(
        self, operation: Operation, *, source: SourceIdentity | None = None, confirmed_through: int = 0
    ) -> Checkpoint | None:
        return await self._ask(
            Question(
                session=self._cutter.session, operation=operation, source=source, confirmed_through=confirmed_through
            )
        )


def _result(answer: Answer) -> Checkpoint | None:
    if answer.trouble is not None:
        raise failure_of(answer.trouble)
    return answer.checkpoint
