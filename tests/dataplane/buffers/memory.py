"""A buffer in memory that obeys the law: what the runtime's tests put between two halves, without a server."""

import asyncio
import itertools
from collections import deque
from collections.abc import AsyncIterator

from contracts.codes import Code
from dataplane.batch import START, ChangeSet, Position
from dataplane.buffers.port import SessionReplaced
from dataplane.checkpoint import Checkpoint, CheckpointStore, Progress, SourceIdentity
from dataplane.failures import Gap, RetryLater


class MemoryLeaf:
    """What both ends of one pipeline share: the stream, and who speaks."""

    def __init__(self, size_bytes_max: int) -> None:
        self.size_bytes_max = size_bytes_max
        self.sets: deque[tuple[int, int, ChangeSet]] = deque()
        """Session, number within it, set."""
        self.session = 0
        self.numbers = itertools.count(1)
        self.after = START
        self.first_after: dict[int, Position | None] = {}
        self.reader: MemoryReader | None = None
        self.writer: MemoryWriter | None = None
        self.moved = asyncio.Event()
        self.crowded = False

    @property
    def fill_bytes(self) -> int:
        return sum(change.byte_size for _, _, change in self.sets)

    def move(self) -> None:
        moved, self.moved = self.moved, asyncio.Event()
        moved.set()

    def lose(self) -> None:
        self.sets.clear()
        for end in (self.writer, self.reader):
            if end is not None:
                end.failure = RetryLater(Code.BUFFER_UNREACHABLE, "the buffer was lost")
        self.session = 0
        self.move()


class MemoryWriter:
    def __init__(self, leaf: MemoryLeaf) -> None:
        self._leaf = leaf
        self._session = 0
        self._number = 0
        self._after: Position | None = START
        self._turn = asyncio.Lock()
        self.newest: Progress | None = None
        self.failure: RetryLater | None = None

    async def open(self) -> CheckpointStore:
        leaf = self._leaf
        leaf.sets.clear()
        self._session = leaf.session = next(leaf.numbers)
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
        self._after = checkpoint.position if checkpoint is not None else START
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
            while leaf.sets and leaf.fill_bytes + change.byte_size > leaf.size_bytes_max:
                leaf.crowded = True
                leaf.move()
                await self._moved()
            leaf.crowded = False
            self._number += 1
            leaf.sets.append((self._session, self._number, change))
            leaf.first_after[self._number] = self._after
            self._after = change.last if change.snapshot_of is None else None
            leaf.move()

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
        self._leaf.sets.clear()

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

    def follow_start(self) -> None:
        self._after = START

    def check(self) -> None:
        if self.failure is not None:
            raise self.failure
        if self._leaf.session != self._session:
            raise RetryLater(Code.BUFFER_UNREACHABLE, "another session writes")

    async def _moved(self) -> None:
        await self._leaf.moved.wait()
        self.check()


class MemoryCheckpoints:
    def __init__(self, writer: MemoryWriter) -> None:
        self._writer = writer

    async def load(self) -> Checkpoint | None:
        return await self._writer.sink.load()

    async def begin(self, source: SourceIdentity) -> None:
        await self._writer.sink.begin(source)
        self._writer.follow_start()

    async def advance(self, confirmed_through: int) -> None:
        await self._writer.sink.advance(confirmed_through)

    async def follow(self, source: SourceIdentity, confirmed_through: int) -> None:
        await self._writer.sink.follow(source, confirmed_through)

    async def forget(self) -> None:
        await self._writer.sink.forget()


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
        self._leaf.reader = self
        self._leaf.move()

    async def take(self) -> AsyncIterator[ChangeSet]:
        while self.session is None:
            self._renew()
            await self._moved()
        number = 0
        while True:
            found = next(((place, change) for _, place, change in self._leaf.sets if place > number), None)
            if found is None:
                if self._leaf.crowded and self._given:
                    self._forget(number)
                await self._moved()
                continue
            place, change = found
            if number == 0 and not self._resumes(place, change):
                self._renew()
                await self._moved()
                continue
            assert number == 0 or place == number + 1, "a hole in memory"
            number = place
            self._given.append(found)
            yield change

    def _resumes(self, place: int, change: ChangeSet) -> bool:
        if place == 1 or (change.snapshot_of is None and change.last <= self._position):
            return True
        after = self._leaf.first_after[place]
        return change.begins and change.snapshot_of is None and after is not None and after <= self._position

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
        if self._leaf.reader is self:
            self._leaf.reader = None
            self._leaf.move()

    def _forget(self, number: int) -> None:
        while self._leaf.sets and self._leaf.sets[0][1] <= number:
            self._leaf.sets.popleft()
        self._leaf.move()

    def _renew(self) -> None:
        writer = self._leaf.writer
        if writer is not None and self.session in (None, self._leaf.session):
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
