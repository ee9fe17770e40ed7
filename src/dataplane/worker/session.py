"""One session of a worker: from opening everything to closing everything.

Sets flow until someone asks for the end or something fails. What is durable at the destination is all that survives;
the next session resumes there.

Three forms, one for each half: `WholeSession` carries from the source straight to the sink, `SourceSession` from the
source into a buffer, `SinkSession` from the buffer to the sink. Transforms run on the source's side, so that what is
masked lies masked in the buffer.

The sink is opened first, because that claims the fence: from then on no older owner can write. The source is told only
what the destination has made durable.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from dataplane.batch import ChangeSet
from dataplane.buffers.port import BufferReader, BufferWriter, SessionReplaced
from dataplane.checkpoint import Checkpoint, CheckpointStore, Progress, SourceIdentity
from dataplane.failures import Gap, RetryLater
from dataplane.sinks.ownership import Ownership
from dataplane.sinks.port import Sink
from dataplane.sources.port import Source
from dataplane.transforms.port import Transform
from dataplane.worker.cancelling import cancel
from dataplane.worker.flow import Flow
from dataplane.worker.guarding import Guard
from dataplane.worker.joining import join
from dataplane.worker.letter_watch import LetterWatch
from dataplane.worker.observation import Observation
from dataplane.worker.queueing import ChangeQueue, QueueLimits
from dataplane.worker.transforming import Transforms

CLOSE_SECONDS_MAX = 5.0
ANSWER_AGAIN_SECONDS = 5.0
PUTS_OUTSTANDING_MAX = 4
"""How many sets are on their way into the buffer at once: their order is kept, only their acknowledgements overlap."""

_log = logging.getLogger("pointsman.worker")


class Session(Protocol):
    """What the runtime runs."""

    async def run(self) -> None:
        """Open everything, carry until `end` or a failure, close everything.

        Raises:
            Failure: what ended the session; nothing that was not durable has been confirmed.
        """
        ...

    async def remove(self, removed: Callable[[], None]) -> None:
        """Drop what source, buffer and destination hold for this pipeline, and call `removed` once it is gone.

        The sink's half goes on answering the source's half afterwards, until it is cancelled.
        """
        ...

    @property
    def is_open(self) -> bool:
        """Whether everything is open and sets flow."""
        ...

    def end(self) -> None:
        """Ask `run` to return at a transaction's end."""
        ...


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a session gets from its runtime."""

    observation: Observation
    progressed: Callable[[], None]
    """Called when something became durable at the destination."""
    limits: QueueLimits
    ownership: Ownership
    """The right of this process to claim the checkpoint; it lives longer than a session."""
    guard: Guard | None = None
    """Holds what the source's side lets out to the customer's policy."""


class Turns(CheckpointStore):
    """A sink's calls one after another: a source asks for the checkpoint while a set is being applied."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._turn = asyncio.Lock()
        self.forgotten = asyncio.Event()

    async def load(self) -> Checkpoint | None:
        """As the sink does."""
        async with self._turn:
            return await self._sink.load()

    async def begin(self, source: SourceIdentity) -> None:
        """As the sink does."""
        async with self._turn:
            await self._sink.begin(source)

    async def advance(self, confirmed_through: int) -> None:
        """As the sink does."""
        async with self._turn:
            await self._sink.advance(confirmed_through)

    async def follow(self, source: SourceIdentity, confirmed_through: int) -> None:
        """As the sink does."""
        async with self._turn:
            await self._sink.follow(source, confirmed_through)

    async def forget(self) -> None:
        """As the sink does; once it is forgotten, again is no error."""
        async with self._turn:
            if not self.forgotten.is_set():
                await self._sink.forget()
                self.forgotten.set()

    async def apply(self, change: ChangeSet) -> Progress | None:
        """As the sink does."""
        async with self._turn:
            return await self._sink.apply(change)


class WholeSession:
    """Source and sink in one process."""

    def __init__(self, source: Source, sink: Sink, transforms: Sequence[Transform], surroundings: Surroundings) -> None:
        self._source = source
        self._sink = sink
        self._turns = Turns(sink)
        self._letters = LetterWatch(sink, surroundings.observation)
        self._transforms = Transforms(transforms)
        self._surroundings = surroundings
        self._queue = ChangeQueue(surroundings.limits)
        self.is_open = False
        self._flow = Flow(_transformed(source, self._transforms, surroundings), self._deliver, self._queue)

    async def run(self) -> None:
        """As the protocol says."""
        try:
            await self._sink.open()
            await self._source.open(self._turns)
            _look(self._source, self._transforms, self._surroundings.guard)
            self._letters.opened()
            self._surroundings.observation.opened(await self._turns.load(), self._source.gauges)
            self.is_open = True
            _watch(self._surroundings.observation, self._source, self._queue)
            await run_until_first(self._flow.run(), self._letters.watch())
        finally:
            await close_all(self._source.close, self._sink.close)

    async def remove(self, removed: Callable[[], None]) -> None:
        """As the protocol says."""
        try:
            await self._sink.open()
            await self._source.remove(self._turns)
            await self._turns.forget()
            removed()
        finally:
            await close_all(self._source.close, self._sink.close)

    def end(self) -> None:
        """As the protocol says."""
        self._flow.end()

    async def _deliver(self, changes: Sequence[ChangeSet]) -> None:
        change = join(changes)
        self._surroundings.observation.sees(change)
        progress = await self._turns.apply(change)
        self._surroundings.observation.delivered(changes)
        self._letters.delivered()
        if progress is not None:
            self._source.confirm(progress.confirmed_through, progress.chunk)
            self._surroundings.observation.progressed(progress)
            self._surroundings.progressed()


class SourceSession:
    """The source's half: into the buffer, and what the sink's half made durable back to the source."""

    def __init__(
        self, source: Source, writer: BufferWriter, transforms: Sequence[Transform], surroundings: Surroundings
    ) -> None:
        self._source = source
        self._writer = writer
        self._transforms = Transforms(transforms)
        self._surroundings = surroundings
        self._queue = ChangeQueue(surroundings.limits)
        self.is_open = False
        self._flow = Flow(_transformed(source, self._transforms, surroundings), self._deliver, self._queue)
        self._puts: list[asyncio.Task[None]] = []
        self._put_failure: asyncio.Queue[BaseException] = asyncio.Queue()

    async def run(self) -> None:
        """As the protocol says."""
        try:
            checkpoints = await self._writer.open()
            try:
                await self._source.open(checkpoints)
            except Gap as gap:
                raise self._writer.cause(gap) from gap
            _look(self._source, self._transforms, self._surroundings.guard)
            self._surroundings.observation.opened(await checkpoints.load(), self._source.gauges)
            self.is_open = True
            _watch(self._surroundings.observation, self._source, self._queue)
            await run_until_first(self._carry(), self._confirm(), self._put_failed())
        finally:
            await cancel(self._puts)
            await close_all(self._source.close, self._writer.close)

    async def remove(self, removed: Callable[[], None]) -> None:
        """As the protocol says. The sink's half must be there: it holds the checkpoint."""
        try:
            checkpoints = await self._writer.open()
            await self._source.remove(checkpoints)
            await checkpoints.forget()
            await self._writer.remove()
            removed()
        finally:
            await close_all(self._source.close, self._writer.close)

    def end(self) -> None:
        """As the protocol says."""
        self._flow.end()

    async def _deliver(self, changes: Sequence[ChangeSet]) -> None:
        change = join(changes)
        observation = self._surroundings.observation
        observation.sees(change)
        put = asyncio.create_task(self._writer.put(change))
        put.add_done_callback(self._note_failure)
        self._puts.append(put)
        while len(self._puts) >= PUTS_OUTSTANDING_MAX or (self._puts and self._puts[0].done()):
            # Waited for and not awaited: that would hand a cancellation on to this one set, and those behind it go on.
            await asyncio.wait(self._puts[:1])
            self._puts.pop(0).result()
        observation.put(changes)
        observation.buffer_bytes = self._writer.fill_bytes()

    async def _carry(self) -> None:
        await self._flow.run()
        while self._puts:
            await asyncio.wait(self._puts[:1])
            self._puts.pop(0).result()

    def _note_failure(self, put: "asyncio.Task[None]") -> None:
        if not put.cancelled() and (failure := put.exception()) is not None:
            self._put_failure.put_nowait(failure)

    async def _put_failed(self) -> None:
        raise await self._put_failure.get()

    async def _confirm(self) -> None:
        observation = self._surroundings.observation
        async for progress in self._writer.progress():
            self._source.confirm(progress.confirmed_through, progress.chunk)
            observation.progressed(progress)
            observation.buffer_bytes = self._writer.fill_bytes()
            self._surroundings.progressed()


class SinkSession:
    """The sink's half: out of the buffer, in order, and back what is durable."""

    def __init__(self, reader: BufferReader, sink: Sink, surroundings: Surroundings) -> None:
        self._reader = reader
        self._sink = sink
        self._turns = Turns(sink)
        self._letters = LetterWatch(sink, surroundings.observation)
        self._surroundings = surroundings
        self._queue = ChangeQueue(surroundings.limits)
        self.is_open = False
        self._flow = Flow(reader.take(), self._deliver, self._queue)

    async def run(self) -> None:
        """As the protocol says."""
        try:
            checkpoint = await self._sink.open()
            await self._reader.open(self._turns)
            self._letters.opened()
            self._surroundings.observation.opened(checkpoint)
            self.is_open = True
            _watch(self._surroundings.observation, None, self._queue)
            await run_until_first(self._flow.run(), self._letters.watch())
        finally:
            await close_all(self._reader.close, self._sink.close)

    async def remove(self, removed: Callable[[], None]) -> None:
        """As the protocol says."""
        try:
            known = await self._sink.open()
            await self._reader.open(self._turns)
            if known is None:
                await self._turns.forget()  # what opening has just claimed
            await run_until_first(self._answer(removed), self._discard())
        except RetryLater as failure:
            if self._turns.forgotten.is_set():
                # The source's half deletes the buffer last, and then the agent ends both. Should that half have died just
                # before, it asks once more, so this one answers again; not at once, because to open is to claim.
                if not isinstance(failure, SessionReplaced):
                    await asyncio.sleep(ANSWER_AGAIN_SECONDS)
                raise SessionReplaced("the buffer was removed") from failure
            raise
        finally:
            await close_all(self._reader.close, self._sink.close)

    def end(self) -> None:
        """As the protocol says."""
        self._flow.end()

    async def _answer(self, removed: Callable[[], None]) -> None:
        await self._turns.forgotten.wait()
        removed()
        await asyncio.Event().wait()

    async def _discard(self) -> None:
        """Notice when the source's half begins a new session; nothing is delivered any more."""
        try:
            async for _ in self._reader.take():
                pass
        except Gap:
            await asyncio.Event().wait()  # what is missing was not to be delivered

    async def _deliver(self, changes: Sequence[ChangeSet]) -> None:
        change = join(changes)
        self._surroundings.observation.sees(change)
        progress = await self._turns.apply(change)
        self._surroundings.observation.delivered(changes)
        self._letters.delivered()
        if progress is not None:
            await self._reader.done(progress)
            self._surroundings.observation.progressed(progress)
            self._surroundings.progressed()


async def _transformed(source: Source, transforms: Transforms, surroundings: Surroundings) -> AsyncIterator[ChangeSet]:
    guard = surroundings.guard
    async for change in source.changes():
        surroundings.observation.schemas_are(source.schemas())
        change = transforms(change)
        if guard is not None:
            guard.check(change)
        yield change


def _look(source: Source, transforms: Transforms, guard: Guard | None) -> None:
    """Hold every table as it is now to the policy, before the first row of any leaves."""
    if guard is not None:
        for table in source.schemas():
            guard.look(transforms.schema(table))


def _watch(observation: Observation, source: Source | None, queue: ChangeQueue) -> None:
    if source is not None:
        observation.gauges_of = lambda: source.gauges
        observation.schemas_are(source.schemas())
    observation.queue_bytes = lambda: queue.byte_size
    observation.oldest_commit_time = lambda: queue.oldest_commit_time


async def run_until_first(*works: Awaitable[None]) -> None:
    """Run all until one returns or fails; the others are cancelled, and the failure is raised."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        await cancel(tasks)
    for task in done:
        task.result()


async def close_all(*closes: Callable[[], Awaitable[None]]) -> None:
    """Call each in order, whatever the others do; none may take for ever."""
    for close in closes:
        try:
            async with asyncio.timeout(CLOSE_SECONDS_MAX):
                await close()
        except Exception as error:  # noqa: BLE001 - the session is over; what failed first is what is told
            _log.warning("closing failed", exc_info=error)
