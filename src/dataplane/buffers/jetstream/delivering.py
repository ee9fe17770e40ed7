"""The sink's end of a buffer in JetStream that is data (`confirm: buffer`).

Where it goes on is known from the destination: its checkpoint has the buffer's incarnation and the number of the last
part that it holds, written in the transaction of the rows themselves. So the reader sees whether the stream is the
same, begins where it must and has no hole (`records.Follower`); if not, that is a gap, found before a row is given.

What is durable at the destination is deleted from the stream, but for its last message. Nothing is deleted before the
destination has a place in this very buffer.

While a table is to be copied again, its rows that lie before the new copy are left out: the copy replaces them all, and
they may be the very ones that the destination refused. While all tables are, a gap only waits for the copy.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import NamedTuple

import msgspec
import nats.js.errors
from nats.aio.msg import Msg
from nats.js.api import RawStreamMsg

from contracts.codes import Code
from dataplane.batch import ChangeSet
from dataplane.buffers import codec
from dataplane.buffers.jetstream.connection import LeafConnection
from dataplane.buffers.jetstream.forgetting import STORED_OVERHEAD_BYTES, keep_forgetting
from dataplane.buffers.jetstream.messages import Answer, Operation, Question, Subjects, encode, trouble_of
from dataplane.buffers.jetstream.pull import Pull
from dataplane.buffers.port import SessionReplaced
from dataplane.buffers.records import Cut, Follower, Kind, Note, Record, Replaced, Whole, parse
from dataplane.checkpoint import Checkpoint, CheckpointStore, Progress
from dataplane.failures import Failure, Gap, RetryLater
from dataplane.worker.protocol import BufferAccess

LOOK_INTERVAL_SECONDS = 0.25
PURGE_SHARE = 0.125
"""The share of the buffer that is purged at once when the destination is quick."""


class _Given(NamedTuple):
    number: int
    sequence: int
    ends: bool
    byte_size: int


class JetStreamDeliverer:
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
        self._held: Checkpoint | None = None
        self._incarnation: bytes | None = None
        self._has_place = False
        self._given: deque[_Given] = deque()
        self._drained = asyncio.Event()
        self._forgotten_before = 0
        self._forgotten_bytes = 0
        self._purge_now = asyncio.Event()
        self._purging: asyncio.Task[None] | None = None

    async def open(self, checkpoints: CheckpointStore) -> None:
        """As the port says."""
        self._checkpoints = checkpoints
        connection = self._connection
        await connection.open()
        self._held = await checkpoints.load()
        held = self._held
        if held is not None:
            # Once a copy has begun, what follows it in the buffer belongs to it.
            self._awaited = {table: number for table, number in self._awaited.items() if number > held.begun(table)}
        await connection.call(connection.client.subscribe(self._subjects.questions, cb=self._on_question))
        self._purging = asyncio.create_task(self._keep_purging())

    async def take(self) -> AsyncIterator[ChangeSet]:
        """As the port says."""
        newest = await self._until_born()
        follower = self._follow(newest)
        size = 0
        async for sequence, data in Pull(self._connection, self._subjects.stream, 1).messages():
            try:
                record = parse(data)
                met = follower.accept(record)
            except Replaced:
                raise SessionReplaced("the source's half began anew in the middle of a transaction") from None
            except Cut as reason:
                raise self._gap(str(reason)) from None
            size += len(data) + STORED_OVERHEAD_BYTES
            if isinstance(met, Whole):
                change = self._decoded(met, follower)
                self._given.append(_Given(met.number, sequence, change.ends, size))
                size = 0
                yield change
            elif isinstance(met, Note):
                await self._obey(met)
            if record.parts == 0 and self._has_place and not self._given:
                self._forget_before(sequence, size)  # an idle source leaves nothing but notes

    async def done(self, progress: Progress) -> None:
        """As the port says."""
        self._connection.check()
        mark = progress.buffer
        if mark is None or self._incarnation is None or mark.incarnation != self._incarnation.hex():
            return
        self._has_place = True
        while self._given and self._given[0].number <= mark.number:
            given = self._given.popleft()
            if given.ends:
                self._forget_before(given.sequence, given.byte_size)
        if not self._given:
            self._drained.set()

    async def close(self) -> None:
        """As the port says."""
        if self._purging is not None:
            self._purging.cancel()
            await asyncio.gather(self._purging, return_exceptions=True)
        await self._connection.close()

    # ---- following --------------------------------------------------------------------------------------------------

    async def _until_born(self) -> Record:
        """Return the newest record with a state, once there is one."""
        while True:
            newest = await self._connection.call(self._newest())
            if newest is not None and newest.data:
                try:
                    return parse(newest.data)
                except Cut as reason:
                    raise self._gap(str(reason)) from None
            await self._connection.race(asyncio.sleep(LOOK_INTERVAL_SECONDS))

    def _follow(self, newest: Record) -> Follower:
        self._incarnation = newest.incarnation
        mark = None if self._held is None else self._held.buffer
        self._has_place = mark is not None and mark.incarnation == newest.incarnation.hex()
        follower = Follower(newest.incarnation, self._held)
        try:
            follower.check_end(newest)
        except Cut as reason:
            raise self._gap(str(reason)) from None
        return follower

    def _gap(self, reason: str) -> Failure:
        held = self._held
        if held is not None and held.tables_copied and set(held.tables_copied) <= self._awaited.keys():
            return RetryLater(Code.BUFFER_UNREACHABLE, f"waiting for the copy of all tables: {reason}")
        if held is None or held.source is None:
            return Gap(Code.GAP_CHECKPOINT_LOST, reason)
        return Gap(Code.GAP_BUFFER_CUT if self._has_place else Code.GAP_BUFFER_LOST, reason)

    def _decoded(self, whole: Whole, follower: Follower) -> ChangeSet:
        try:
            change = codec.decode(whole.encoded)
        except ValueError as reason:
            raise self._gap(str(reason)) from None
        if self._awaited:
            change = self._without_awaited(change)
        return replace(change, mark=follower.mark(whole.number)) if change.ends else change

    def _without_awaited(self, change: ChangeSet) -> ChangeSet:
        """Leave out rows of tables whose new copy is still to come."""
        table = change.snapshot_of
        if table is not None and change.resync >= self._awaited.get(table, 0):
            self._awaited.pop(table, None)
        return replace(change, items=tuple(item for item in change.items if item.table.table not in self._awaited))

    async def _obey(self, note: Note) -> None:
        """Do at the destination what the note says, once everything before it is durable there."""
        assert self._checkpoints is not None
        if note.kind is Kind.ADVANCE:
            if not self._given:
                await self._checkpoints.advance(note.confirmed_through)
            return
        if self._given and not self._given[-1].ends:
            raise SessionReplaced("the source starts over in the middle of a transaction")
        while self._given:
            self._drained.clear()
            await self._connection.race(self._drained.wait())
        if note.kind is Kind.FOLLOW:
            await self._checkpoints.follow(note.source, note.confirmed_through)
        else:
            await self._checkpoints.begin(note.source)
            self._has_place = False

    async def _newest(self) -> RawStreamMsg | None:
        try:
            return await self._connection.streams.get_last_msg(self._subjects.stream, self._subjects.states)
        except nats.js.errors.NotFoundError:
            return None

    # ---- answering the source's half ----------------------------------------------------------------------------------

    async def _on_question(self, message: Msg) -> None:
        try:
            question = msgspec.msgpack.decode(message.data, type=Question)
        except msgspec.MsgspecError:
            return
        await message.respond(encode(await self._answer(question)))

    async def _answer(self, question: Question) -> Answer:
        """Answer a half of the same kind. One that asks for the checkpoint has found no buffer."""
        checkpoints = self._checkpoints
        assert checkpoints is not None
        if not question.keeps:
            return Answer(bound=False)
        if question.operation is Operation.LOAD and self._incarnation is not None:
            # What was read of the one before may still be on its way to the destination: let go of it first.
            self._connection.fail(SessionReplaced("the buffer is made anew"))
            return Answer(bound=False)
        try:
            if question.operation is Operation.FORGET:
                await checkpoints.forget()
                return Answer(bound=True)
            return Answer(bound=True, checkpoint=await checkpoints.load())
        except Failure as failure:
            return Answer(bound=True, trouble=trouble_of(failure))

    # ---- forgetting -------------------------------------------------------------------------------------------------

    def _forget_before(self, sequence: int, byte_size: int) -> None:
        self._forgotten_before = max(self._forgotten_before, sequence)
        self._forgotten_bytes += byte_size
        if self._forgotten_bytes > self._size_bytes_max * PURGE_SHARE:
            self._purge_now.set()

    async def _keep_purging(self) -> None:
        try:
            await keep_forgetting(self._connection, self._subjects.stream, self._purge_now, self._may_be_forgotten)
        except Failure as failure:
            self._connection.fail(failure)

    def _may_be_forgotten(self) -> int:
        """Return what comes before the message that ends what is durable at the destination."""
        self._forgotten_bytes = 0
        return self._forgotten_before
