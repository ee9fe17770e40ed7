"""A buffer in memory that obeys the law: what the runtime's tests put between two halves, without a server.

Sets lie in it as messages that the real `Cutter` made and the real `Joiner` reads, so that a message which is lost or
comes twice is met by the rules that count. Only the sets' bodies stay here, and a message carries their numbers.
"""

import asyncio
import itertools
from collections import deque
from collections.abc import AsyncIterator, Awaitable
from random import Random
from typing import NamedTuple, TypeVar

from contracts.codes import Code
from dataplane.batch import START, ChangeSet
from dataplane.buffers.frames import PREFIX_BYTES, SESSION_BYTES, Cutter, Hole, Joiner, Replaced, parse
from dataplane.buffers.port import SessionReplaced
from dataplane.checkpoint import Checkpoint, CheckpointStore, Progress, SourceIdentity
from dataplane.failures import Gap, RetryLater

_BODY_BYTES = 8
ANSWER_SECONDS_MAX = 10.0
Answer = TypeVar("Answer")


class Message(NamedTuple):
    """One message in the stream: its sequence there, how many bytes it counts for, and what it says."""

    sequence: int
    size: int
    data: bytes


class MemoryLeaf:
    """What both ends of one pipeline share: the stream, and who speaks. Each set is cut into so many messages."""

    def __init__(self, size_bytes_max: int, *, parts: int = 1) -> None:
        self.size_bytes_max = size_bytes_max
        self.frame_bytes = PREFIX_BYTES + -(-_BODY_BYTES // parts)
        self.stream: deque[Message] = deque()
        self.bodies: dict[int, ChangeSet] = {}
        self.sequences = itertools.count(1)
        self.session = 0
        self.numbers = itertools.count(1)
        self.readers: list[MemoryReader] = []
        """Those that are open: one that was replaced may be there still, and may end last or first."""
        self.writer: MemoryWriter | None = None
        self.moved = asyncio.Event()
        self.crowded = False

    @property
    def reader(self) -> "MemoryReader | None":
        """The one that answers the source's half."""
        return self.readers[-1] if self.readers else None

    @property
    def fill_bytes(self) -> int:
        return sum(message.size for message in self.stream)

    def store(self, change: ChangeSet, cutter: Cutter) -> None:
        number = len(self.bodies)
        self.bodies[number] = change
        size = change.byte_size
        for data in cutter.cut(change, number.to_bytes(_BODY_BYTES, "big")):
            self.stream.append(Message(next(self.sequences), size, data))
            size = 0
        self.move()

    def lose_message(self, random: Random) -> None:
        """Lose one message that nobody has read yet, as no server should."""
        if self.stream:
            del self.stream[random.randrange(len(self.stream))]
            self.move()

    def double_message(self, random: Random) -> None:
        """Store one message a second time, as a sender does that has missed the acknowledgement."""
        if self.stream:
            again = random.choice(self.stream)
            self.stream.append(Message(next(self.sequences), 0, again.data))
            self.move()

    def move(self) -> None:
        moved, self.moved = self.moved, asyncio.Event()
        moved.set()

    def lose(self) -> None:
        self.stream.clear()
        for end in (self.writer, self.reader):
            if end is not None:
                end.failure = RetryLater(Code.BUFFER_UNREACHABLE, "the buffer was lost")
        self.session = 0
        self.move()


class MemoryWriter:
    def __init__(self, leaf: MemoryLeaf) -> None:
        self._leaf = leaf
        self._session = 0
        self._cutter = Cutter(bytes(SESSION_BYTES))
        self._turn = asyncio.Lock()
        self.newest: Progress | None = None
        self.failure: RetryLater | None = None

    async def open(self) -> CheckpointStore:
        leaf = self._leaf
        leaf.stream.clear()
        self._session = leaf.session = next(leaf.numbers)
        self._cutter = Cutter(_bytes(self._session), leaf.frame_bytes)
        leaf.writer = self
        leaf.move()
        while leaf.reader is None or leaf.reader.session != self._session:
            if leaf.reader is not None and leaf.reader.session is None:
                leaf.reader.session = self._session
                break
            if leaf.reader is not None:
                leaf.reader.failure = SessionReplaced("a new session was announced")
                leaf.move()
            await self._moved()
        checkpoints = MemoryCheckpoints(self)
        checkpoint = await checkpoints.load()
        self._cutter.follow(checkpoint.position if checkpoint is not None else START)
        return checkpoints

    async def put(self, change: ChangeSet) -> None:
        try:
            await self._put(change)
        except BaseException:
            self.failure = self.failure or RetryLater(Code.BUFFER_UNREACHABLE, "a set was given up")
            raise

    async def _put(self, change: ChangeSet) -> None:
        async with self._turn:
            leaf = self._leaf
            self.check()
            while leaf.stream and leaf.fill_bytes + change.byte_size > leaf.size_bytes_max:
                leaf.crowded = True
                leaf.move()
                await self._moved()
            leaf.crowded = False
            leaf.store(change, self._cutter)

    async def progress(self) -> AsyncIterator[Progress]:
        told: Progress | None = None
        while True:
            if self.newest is not None and self.newest is not told:
                told = self.newest
                yield told
            else:
                await self._moved()

    def cause(self, gap: Gap) -> Gap:
        return gap

    def fill_bytes(self) -> int:
        return self._leaf.fill_bytes

    async def remove(self) -> None:
        self._leaf.stream.clear()

    async def close(self) -> None:
        if self._leaf.writer is self:
            self._leaf.writer = None

    @property
    def sink(self) -> CheckpointStore:
        self.check()
        reader = self._leaf.reader
        if reader is None:
            raise RetryLater(Code.BUFFER_UNREACHABLE, "the sink's half is away")
        if reader.session != self._session:
            raise SessionReplaced("the sink's half follows another session")
        assert reader.checkpoints is not None
        return reader.checkpoints

    async def ask(self, question: Awaitable[Answer]) -> Answer:
        """Await what the sink's half answers; one that was killed meanwhile never does."""
        try:
            async with asyncio.timeout(ANSWER_SECONDS_MAX):
                return await question
        except TimeoutError as error:
            raise RetryLater(Code.BUFFER_UNREACHABLE, "the sink's half does not answer") from error

    def follow_start(self) -> None:
        self._cutter.follow(START)

    def check(self) -> None:
        if self.failure is not None:
            raise self.failure
        if self._leaf.session != self._session:
            raise RetryLater(Code.BUFFER_UNREACHABLE, "another session writes")

    async def _moved(self) -> None:
        self.check()
        await self._leaf.moved.wait()
        self.check()


class MemoryCheckpoints:
    def __init__(self, writer: MemoryWriter) -> None:
        self._writer = writer

    async def load(self) -> Checkpoint | None:
        return await self._writer.ask(self._writer.sink.load())

    async def begin(self, source: SourceIdentity) -> None:
        await self._writer.ask(self._writer.sink.begin(source))
        self._writer.follow_start()

    async def advance(self, confirmed_through: int) -> None:
        await self._writer.ask(self._writer.sink.advance(confirmed_through))

    async def follow(self, source: SourceIdentity, confirmed_through: int) -> None:
        await self._writer.ask(self._writer.sink.follow(source, confirmed_through))

    async def forget(self) -> None:
        await self._writer.ask(self._writer.sink.forget())


class MemoryReader:
    def __init__(self, leaf: MemoryLeaf) -> None:
        self._leaf = leaf
        self.session: int | None = None
        self.checkpoints: CheckpointStore | None = None
        self.failure: RetryLater | None = None
        self._position = START
        self._given: deque[tuple[int, ChangeSet]] = deque()

    async def open(self, checkpoints: CheckpointStore) -> None:
        checkpoint = await checkpoints.load()
        self._position = checkpoint.position if checkpoint is not None else START
        self.checkpoints = checkpoints
        self.session = self._leaf.session or None
        self._leaf.readers.append(self)
        self._leaf.move()

    async def take(self) -> AsyncIterator[ChangeSet]:
        while self.session is None:
            self._renew()
            await self._moved()
        joiner = Joiner(_bytes(self.session), self._position)
        read = 0
        while True:
            message = next((each for each in self._leaf.stream if each.sequence > read), None)
            if message is None:
                if self._leaf.crowded:
                    self._forget(read)
                await self._moved()
                continue
            read = message.sequence
            try:
                body = joiner.accept(parse(message.data))
            except Replaced:
                raise SessionReplaced("a new session began") from None
            except Hole:
                while True:
                    self._renew()
                    await self._moved()
            if body is not None:
                change = self._leaf.bodies[int.from_bytes(body, "big")]
                self._given.append((read, change))
                yield change

    async def done(self, progress: Progress) -> None:
        number = next((place for place, change in self._given if change.last == progress.position), 0)
        while self._given and self._given[0][0] <= number:
            self._given.popleft()
        self._forget(number)
        writer = self._leaf.writer
        if writer is not None and self.session == self._leaf.session:
            writer.newest = progress
        self._leaf.move()

    async def close(self) -> None:
        if self in self._leaf.readers:
            self._leaf.readers.remove(self)
            self._leaf.move()

    def _forget(self, number: int) -> None:
        held = len(self._leaf.stream)
        while self._leaf.stream and self._leaf.stream[0].sequence <= number:
            self._leaf.stream.popleft()
        if len(self._leaf.stream) < held:
            self._leaf.move()

    def _renew(self) -> None:
        writer = self._leaf.writer
        if writer is not None and writer.failure is None and self.session in (None, self._leaf.session):
            writer.failure = SessionReplaced("the sink's half asks for a new session")
            self._leaf.move()

    async def _moved(self) -> None:
        if self.failure is not None:
            raise self.failure
        await self._leaf.moved.wait()
        if self.failure is not None:
            raise self.failure
        if self.session is not None and self._leaf.session not in (0, self.session):
            raise SessionReplaced("a new session began")


def _bytes(session: int) -> bytes:
    return session.to_bytes(SESSION_BYTES, "big")
