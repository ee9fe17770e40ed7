"""The sink's end of a buffer in JetStream, and the sink's side of what the halves say to each other.

A reader follows one session: that of the stream's newest message. When it meets another one, in the stream or in a
question, it raises `SessionReplaced`; the sink's half then closes and opens its sink, which drops whatever was on its
way, and a new reader follows the new session. When it cannot follow (a hole, an empty stream), it asks the source's
half for a new session until one comes. So it does while a table is to be copied again, until the source's half knows of it.

What is durable at the destination is deleted from the stream, but for the newest message, which tells a later reader
the session. A transaction that outgrows the buffer is deleted while it is open: if it then fails, it is replayed.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import msgspec
import nats.js.errors
from nats.aio.msg import Msg
from nats.js.api import RawStreamMsg

from dataplane.batch import START, ChangeSet, Position
from dataplane.buffers import codec
from dataplane.buffers.frames import Hole, Joiner, Replaced, parse
from dataplane.buffers.jetstream.connection import LeafConnection
from dataplane.buffers.jetstream.forgetting import STORED_OVERHEAD_BYTES, keep_forgetting
from dataplane.buffers.jetstream.messages import (
    Answer,
    Durable,
    Operation,
    Question,
    Renew,
    Subjects,
    encode,
    trouble_of,
)
from dataplane.buffers.jetstream.pull import Pull
from dataplane.buffers.port import SessionReplaced
from dataplane.checkpoint import Checkpoint, CheckpointStore, Progress
from dataplane.failures import Failure, RetryLater
from dataplane.worker.protocol import BufferAccess

TELL_INTERVAL_SECONDS = 0.05
TELL_AGAIN_SECONDS = 1.0
RENEW_INTERVAL_SECONDS = 0.5


class _Given(NamedTuple):
    last: Position
    sequence: int
    snapshot: bool
    chunk: int | None


class JetStreamReader:
    """One session's reading end. Obeys `BufferReader`."""

    def __init__(
        self,
        access: BufferAccess,
        *,
        pipeline_id: str,
        size_bytes_max: int,
        resyncs: Mapping[str, int] = MappingProxyType({}),
    ) -> None:
        self._subjects = Subjects(pipeline_id)
        self._size_bytes_max = size_bytes_max
        self._awaited = dict(resyncs)
        self._connection = LeafConnection(access, f"pointsman sink {pipeline_id}")
        self._checkpoints: CheckpointStore | None = None
        self._session: bytes | None = None
        self._bound = asyncio.Event()
        self._position = START
        self._given: deque[_Given] = deque()
        self._held: deque[tuple[int, int]] = deque()
        """Sequence and size of what came and is not to be deleted yet."""
        self._held_bytes = 0
        self._forgotten_before = 0
        self._purge_now = asyncio.Event()
        self._progress: Progress | None = None
        self._told = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    async def open(self, checkpoints: CheckpointStore) -> None:
        """As the port says."""
        self._checkpoints = checkpoints
        connection = self._connection
        await connection.open()
        checkpoint = await checkpoints.load()
        self._position = checkpoint.position if checkpoint is not None else START
        if checkpoint is not None:
            self._awaited = {t: number for t, number in self._awaited.items() if number > checkpoint.begun(t)}
        if not self._awaited:
            await self._bind()
        await connection.call(connection.client.subscribe(self._subjects.questions, cb=self._on_question))
        forgetting = keep_forgetting(connection, self._subjects.stream, self._purge_now, lambda: self._forgotten_before)
        self._tasks = [asyncio.create_task(self._keep(work)) for work in (self._tell(), forgetting)]

    async def take(self) -> AsyncIterator[ChangeSet]:
        """As the port says."""
        await self._until_bound()
        assert self._session is not None
        joiner = Joiner(self._session, self._position)
        async for sequence, data in Pull(self._connection, self._subjects.stream, 1).messages():
            self._hold(sequence, len(data) + STORED_OVERHEAD_BYTES)
            try:
                encoded = joiner.accept(parse(data))
                if encoded is None:
                    continue
                change = codec.decode(encoded)
            except Replaced:
                raise SessionReplaced("the source's half began a new session") from None
            except (Hole, ValueError) as reason:
                await self._ask_for_renewal(str(reason))
                continue
            chunk = None if change.chunk is None else change.chunk.number
            self._given.append(_Given(change.last, sequence, change.snapshot_of is not None, chunk))
            yield change

    async def done(self, progress: Progress) -> None:
        """As the port says."""
        self._connection.check()
        self._progress = progress
        self._told.set()
        while self._given and self._covers(progress):
            self._forget_before(self._given.popleft().sequence)

    async def close(self) -> None:
        """As the port says."""
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if tasks and self._told.is_set():
            # The last word, so that the source may forget what is durable; without it the next session says it.
            with contextlib.suppress(RetryLater):
                await self._publish_progress()
        await self._connection.close()

    def _hold(self, sequence: int, size: int) -> None:
        """Count a message that came.

        When more than half of the buffer is here and not durable, an open transaction or one large set outgrows it:
        what came is deleted early, or the writer would wait for ever.
        """
        self._held.append((sequence, size))
        self._held_bytes += size
        if self._held_bytes > self._size_bytes_max // 2:
            self._forget_before(sequence)
            self._purge_now.set()

    def _forget_before(self, sequence: int) -> None:
        self._forgotten_before = max(self._forgotten_before, sequence)
        while self._held and self._held[0][0] < self._forgotten_before:
            self._held_bytes -= self._held.popleft()[1]

    def _covers(self, progress: Progress) -> bool:
        oldest = self._given[0]
        if not oldest.snapshot:
            return oldest.last <= progress.position
        if oldest.chunk is not None:
            return oldest.chunk <= progress.chunk
        # Snapshots are delivered in order, though their positions are not: what ends here covers what came before.
        return any(given.last == progress.position for given in self._given)

    async def _bind(self) -> None:
        """Follow the session of the stream's newest message, if there is one."""
        newest = await self._newest()
        if newest is not None and newest.data:
            with contextlib.suppress(Hole):  # not of this format: the source's half is not of this kind, or not yet
                self._session = parse(newest.data).session
                self._bound.set()

    async def _newest(self) -> RawStreamMsg | None:
        try:
            return await self._connection.race(
                self._connection.streams.get_last_msg(self._subjects.stream, self._subjects.sets)
            )
        except nats.js.errors.NotFoundError:
            return None

    async def _until_bound(self) -> None:
        """Wait for a session to follow; ask for one meanwhile."""
        while not self._bound.is_set():
            await self._connection.call(
                self._connection.client.publish(self._subjects.renew, encode(Renew(session=None)))
            )
            try:
                await self._connection.race(self._bound.wait(), RENEW_INTERVAL_SECONDS)
            except TimeoutError:
                if not self._awaited:
                    await self._connection.call(self._bind())

    async def _ask_for_renewal(self, reason: str) -> None:
        """Ask the source's half to replay until its new session replaces this one.

        Raises:
            SessionReplaced: it has.
        """
        while True:
            newest = await self._connection.call(self._newest())
            if newest is not None and newest.data and self._is_other(newest.data):
                raise SessionReplaced(f"the source's half replays: {reason}")
            await self._connection.call(
                self._connection.client.publish(self._subjects.renew, encode(Renew(session=self._session)))
            )
            await self._connection.race(asyncio.sleep(RENEW_INTERVAL_SECONDS))

    def _is_other(self, newest: bytes) -> bool:
        try:
            return parse(newest).session != self._session
        except Hole:
            return True

    async def _on_question(self, message: Msg) -> None:
        try:
            question = msgspec.msgpack.decode(message.data, type=Question)
        except msgspec.MsgspecError:
            return
        knows = all(question.resyncs.get(table, 0) >= number for table, number in self._awaited.items())
        if not self._bound.is_set() and knows:
            await self._connection.call(self._bind())
        if self._session != question.session:
            if self._session is not None:
                self._connection.fail(SessionReplaced("the source's half announced a new session"))
            answer = Answer(bound=False)
        else:
            answer = await self._answer(question)
        await message.respond(encode(answer))

    async def _answer(self, question: Question) -> Answer:
        checkpoints = self._checkpoints
        assert checkpoints is not None
        checkpoint: Checkpoint | None = None
        try:
            match question.operation:
                case Operation.LOAD:
                    checkpoint = await checkpoints.load()
                case Operation.BEGIN:
                    assert question.source is not None
                    await checkpoints.begin(question.source)
                    self._position = START
                case Operation.ADVANCE:
                    await checkpoints.advance(question.confirmed_through)
                case Operation.FOLLOW:
                    assert question.source is not None
                    await checkpoints.follow(question.source, question.confirmed_through)
                case Operation.FORGET:
                    await checkpoints.forget()
        except Failure as failure:
            return Answer(bound=True, trouble=trouble_of(failure))
        return Answer(bound=True, checkpoint=checkpoint)

    async def _keep(self, work: Awaitable[None]) -> None:
        try:
            await work
        except Failure as failure:
            self._connection.fail(failure)

    async def _tell(self) -> None:
        """Tell the source's half what is durable: soon after it changed, and now and then again."""
        while True:
            with contextlib.suppress(TimeoutError):
                await self._connection.race(self._told.wait(), TELL_AGAIN_SECONDS)
            self._told.clear()
            if self._progress is not None:
                await self._publish_progress()
            await asyncio.sleep(TELL_INTERVAL_SECONDS)

    async def _publish_progress(self) -> None:
        if self._session is None or self._progress is None:
            return
        durable = Durable(session=self._session, progress=self._progress)
        await self._connection.call(self._connection.client.publish(self._subjects.durable, encode(durable)))
