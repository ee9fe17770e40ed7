"""A world without servers for the runtime: an origin with a log, a destination in memory, a buffer between, and chaos.

The fakes obey the laws of their ports and assert what must never happen: the source is told of nothing that is not
durable, and the destination never shows anything but a state that the origin had.
"""

import asyncio
import functools
from random import Random

import msgspec
from msgspec import structs
from tests.dataplane.buffers.changes import ORDERS
from tests.dataplane.buffers.memory import MemoryLeaf, MemoryReader, MemoryWriter
from tests.dataplane.worker import letter_desk
from tests.dataplane.worker.origin import PIPELINE, TABLES, FakeSource, Origin, Point
from tests.dataplane.worker.processes import TENANT, connection, document
from tests.dataplane.worker.virtual import wall

from contracts.codes import Code
from contracts.delivery import OnRefused
from contracts.v2 import PipelineDocument
from dataplane.batch import START, ChangeSet
from dataplane.checkpoint import Checkpoint, Progress, SourceIdentity
from dataplane.failures import RetryLater
from dataplane.sinks.memory import Memory, MemorySink
from dataplane.sinks.ownership import Ownership
from dataplane.sinks.port import SinkGauges
from dataplane.worker.protocol import Assignment, Half
from dataplane.worker.queueing import QueueLimits
from dataplane.worker.runtime import Runtime
from dataplane.worker.session import Session, SinkSession, SourceSession, Surroundings, WholeSession


async def calm(_: str) -> None:
    """No crash anywhere."""


class Chaos:
    """At each point of one node's processes it may let time pass, fail, or kill them, as its seed decides."""

    def __init__(self, random: Random, rate: float) -> None:
        self._random = random
        self.rate = rate
        self.failures = 0
        self.killed = asyncio.Event()
        """A process of the node came to its end; whoever plays the node ends it where it stands."""
        self.awake = asyncio.Event()
        self.awake.set()

    async def __call__(self, point: str) -> None:
        await self.awake.wait()
        drawn = self._random.random()
        if drawn > 1 - self.rate / 4:
            self.killed.set()
            await asyncio.Event().wait()
        if drawn < self.rate:
            self.failures += 1
            if drawn < self.rate / 8:
                raise OSError(f"a mistake of ours at {point}")
            raise RetryLater(Code.SINK_UNREACHABLE, f"chaos at {point}")
        if drawn < self.rate * 2:
            await asyncio.sleep(self._random.random() * 3)
        elif drawn < self.rate * 4:
            await asyncio.sleep(0)


class WatchedSink:
    """A `MemorySink` with chaos around each step, and a look at what became visible."""

    def __init__(self, world: "World", point: Point, ownership: Ownership) -> None:
        self._world = world
        settings = world.pipeline.sink
        self._sink = MemorySink(world.destination, pipeline_id=PIPELINE, ownership=ownership, settings=settings)
        self._point = point
        self.is_open = False
        """A transaction is open."""

    @property
    def gauges(self) -> SinkGauges:
        return self._sink.gauges

    async def look_again(self) -> None:
        await self._sink.look_again()

    async def open(self) -> Checkpoint | None:
        await self._point("sink.open")
        checkpoint = await self._sink.open()
        self._world.note_owner()
        self._world.sink = self
        await self._point("sink.opened")
        return checkpoint

    async def load(self) -> Checkpoint | None:
        await self._point("sink.load")
        return await self._sink.load()

    async def begin(self, source: SourceIdentity) -> None:
        await self._sink.begin(source)
        await self._point("sink.begun")

    async def advance(self, confirmed_through: int) -> None:
        await self._sink.advance(confirmed_through)
        await self._point("sink.advanced")

    async def follow(self, source: SourceIdentity, confirmed_through: int) -> None:
        await self._sink.follow(source, confirmed_through)

    async def forget(self) -> None:
        await self._sink.forget()
        await self._point("sink.forgotten")

    async def apply(self, change: ChangeSet) -> Progress | None:
        self._world.applied.append(change)
        await self._point("sink.apply")
        progress = await self._sink.apply(change)
        self.is_open = not change.ends
        self._world.check_visible()
        await self._point("sink.applied")  # after the commit, before anyone hears of it
        return progress

    async def close(self) -> None:
        await self._sink.close()


class World:
    """Everything around one pipeline's runtimes. With `copies` its tables are copied beside the stream."""

    def __init__(
        self,
        *,
        point: Point = calm,
        buffer_bytes_max: int = 1 << 20,
        parts: int = 1,
        copies: bool = False,
        on_refused: OnRefused = OnRefused.STOP,
        randomness: Random | None = None,
    ) -> None:
        self.origin = Origin()
        self.destination = Memory(tables={table: {} for table in TABLES})
        self.leaf = MemoryLeaf(buffer_bytes_max, parts=parts)
        self.point = point
        self.pipeline = document(sorted(TABLES) if copies else [ORDERS.table])
        self.pipeline = structs.replace(self.pipeline, sink=structs.replace(self.pipeline.sink, on_refused=on_refused))
        self.applied: list[ChangeSet] = []
        self.sessions = 0
        self.session_times: list[float] = []
        self.sink: WatchedSink | None = None
        """That of the owner: nobody else can write."""
        self.copies = copies
        self._randomness = randomness or Random(1)
        self._owners: list[str] = []

    def rows(self) -> dict[str, str | None]:
        return letter_desk.shown(self.destination, ORDERS.table)

    def check_visible(self) -> None:
        """What the destination shows is a state that the origin had: the one at the checkpoint's position.

        For the keys of dead letters it would be, were they applied. A table that is being copied is between two states.
        """
        held = self.destination.checkpoints.get(PIPELINE)
        if held is None:
            return
        expected = self.origin.states[self._reached(held)]
        for table in TABLES:
            if not self._is_exact(held, table):
                continue
            found = letter_desk.with_letters(self.destination, table)
            self.origin.must(
                found == expected[table], f"the destination shows a state of its own of {table} at {held.position}"
            )
            key = letter_desk.out_of_order(self.destination, table)
            self.origin.must(key is None, f"the letters of {key} in {table} are out of order, or one is there twice")

    def _reached(self, held: Checkpoint) -> int:
        """Return the end of the last transaction that the destination holds, also where no row of it was to be written."""
        through = held.position.lsn + 1 if held.position != START else 0
        return max(through, held.confirmed_through) if self.copies else through

    def _is_exact(self, held: Checkpoint, table: str) -> bool:
        """Whether a table is as at the source: copied, as often as somebody has asked, and passed by the stream."""
        if not self.copies:
            return True
        cursor = held.cursors.get(table)
        asked = self.pipeline.resyncs.get(table, 0)
        return cursor is not None and cursor.settled and held.resynced.get(table, 0) >= asked

    def note_owner(self) -> None:
        """A process that was replaced is never seen as the owner again."""
        owner = self.destination.owners[PIPELINE]
        if not self._owners or owner != self._owners[-1]:
            self.origin.must(owner not in self._owners, f"{owner} has claimed back what another has claimed since")
            self._owners.append(owner)

    @property
    def caught_up(self) -> bool:
        held = self.destination.checkpoints.get(PIPELINE)
        if held is None or self.origin.end != self._reached(held):
            return False
        return all(self._is_exact(held, table) for table in TABLES)

    async def until_caught_up(self) -> None:
        while not self.caught_up:  # noqa: ASYNC110 - the clock is virtual
            await asyncio.sleep(0.25)
        assert self.origin.violations == [], self.origin.violations[:3]
        expected = self.origin.states[self.origin.end]
        assert {table: letter_desk.with_letters(self.destination, table) for table in TABLES} == expected

    def end(self) -> None:
        """Mend the destination and replay what is left: then both sides are equal, and nothing is left."""
        self.destination.refuses = lambda table, row: False
        letter_desk.replay(self.destination)
        assert self.destination.letters.get(PIPELINE, []) == []
        expected = self.origin.states[self.origin.end]
        assert {table: letter_desk.shown(self.destination, table) for table in TABLES} == expected

    def replay(self) -> bool:
        """Replay the dead letters, which waits for the end of an open transaction. Say whether it was done."""
        if self.sink is not None and self.sink.is_open:
            return False
        letter_desk.replay(self.destination)
        return True

    def resync(self, table: str) -> PipelineDocument:
        """Ask for another copy of a table, and return the document that says so."""
        resyncs = {**self.pipeline.resyncs, table: self.pipeline.resyncs.get(table, 0) + 1}
        self.pipeline = structs.replace(self.pipeline, resyncs=resyncs, generation=self.pipeline.generation + 1)
        return self.pipeline

    def assemble(
        self, point: Point, assignment: Assignment, pipeline: PipelineDocument, surroundings: Surroundings
    ) -> Session:
        self.sessions += 1
        self.session_times.append(asyncio.get_running_loop().time())
        resyncs = pipeline.resyncs if self.copies else None
        source = FakeSource(self.origin, self.destination, point, resyncs, self._randomness)
        sink = WatchedSink(self, point, surroundings.ownership)
        match assignment.half:
            case Half.WHOLE:
                return WholeSession(source, sink, [], surroundings)
            case Half.SOURCE:
                return SourceSession(source, MemoryWriter(self.leaf), [], surroundings)
            case Half.SINK:
                return SinkSession(MemoryReader(self.leaf), sink, surroundings)

    def runtime(
        self,
        pipeline: PipelineDocument | None = None,
        *,
        half: Half = Half.WHOLE,
        limits: QueueLimits | None = None,
        node: str = "node-1",
        point: Point | None = None,
    ) -> Runtime:
        """A new process of `node`; `point` is called between its steps, the world's own if it has none."""
        return Runtime(
            assignment(pipeline or self.pipeline, half, node),
            assemble=functools.partial(self.assemble, point or self.point),
            changed=lambda: None,
            limits=limits or QueueLimits(),
            randomness=Random(1),
            wall=wall,
        )


def assignment(pipeline: PipelineDocument, half: Half = Half.WHOLE, node: str = "node-1") -> Assignment:
    server = connection("shop", host="127.0.0.1", port=5432, database="shop")
    return Assignment(
        pipeline_id=PIPELINE,
        tenant=TENANT,
        half=half,
        contract=2,
        document=msgspec.json.encode(pipeline).decode(),
        source=server,
        sink=server,
        secrets_folder="/nowhere",
        owner=node,
        restarts=pipeline.restarts,
    )
