"""A world without servers for the runtime: an origin with a log, a destination in memory, a buffer between, and chaos.

The fakes obey the laws of their ports and assert what must never happen: the source is told of nothing that is not
durable, and the destination never shows anything but a state that the origin had.
"""

import asyncio
import functools
from collections.abc import AsyncIterator, Awaitable, Callable
from random import Random

import msgspec
from tests.dataplane.buffers.changes import ORDERS
from tests.dataplane.buffers.memory import MemoryLeaf, MemoryReader, MemoryWriter
from tests.dataplane.worker.processes import TENANT, connection, document
from tests.dataplane.worker.virtual import wall

from contracts.codes import Code
from contracts.v2 import PipelineDocument
from dataplane.batch import START, ChangeBatch, ChangeSet, Op, TableSchema
from dataplane.checkpoint import Checkpoint, CheckpointStore, Progress, SourceIdentity
from dataplane.failures import RetryLater
from dataplane.sinks.memory import Memory, MemorySink
from dataplane.sinks.ownership import Ownership
from dataplane.sinks.port import SinkGauges
from dataplane.sources.port import SourceGauges
from dataplane.worker.protocol import Assignment, Half
from dataplane.worker.queueing import QueueLimits
from dataplane.worker.runtime import Runtime
from dataplane.worker.session import Session, SinkSession, SourceSession, Surroundings, WholeSession

PIPELINE = "pipeline-1"
IDENTITY = SourceIdentity(system_identifier="1", timeline=1, database="shop", slot="pm_1", publication="pm_1")

Point = Callable[[str], Awaitable[None]]


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


class Origin:
    """The source's server: a log of transactions, each a list of sets, and what it was told as flushed."""

    def __init__(self) -> None:
        self.log: list[list[ChangeSet]] = []
        self.flushed = 0
        self.more = asyncio.Event()
        self.slot: str | None = None
        self.states: dict[int, dict[str, str | None]] = {0: {}}
        """What ORDERS held after each transaction, by its end."""
        self.violations: list[str] = []

    def must(self, holds: bool, otherwise: str) -> None:
        """Note what must never be: a worker takes what is raised for a mistake of ours, and tries again."""
        if not holds:
            self.violations.append(otherwise)
            raise AssertionError(otherwise)

    def commit(self, *transactions: list[ChangeSet]) -> None:
        for transaction in transactions:
            self.states[transaction[-1].commit_end_lsn] = _after(self.states[self.end], transaction)
            self.log.append(transaction)
        self.more.set()

    @property
    def end(self) -> int:
        return self.log[-1][-1].commit_end_lsn if self.log else 0


def _after(before: dict[str, str | None], transaction: list[ChangeSet]) -> dict[str, str | None]:
    rows = dict(before)
    for change in transaction:
        for item in change.items:
            assert isinstance(item, ChangeBatch)
            keys, notes = (column.to_pylist() for column in item.rows.columns)
            for key, note, op in zip(keys, notes, item.ops.tolist(), strict=True):
                if op == Op.DELETE:
                    rows.pop(key, None)
                else:
                    rows[key] = note
    return rows


class FakeSource:
    """A session on an `Origin`."""

    def __init__(self, origin: Origin, destination: Memory, point: Point) -> None:
        self._origin = origin
        self._destination = destination
        self._point = point
        self._closed = False
        self.gauges = SourceGauges(tables_total=1, tables_copied=1)

    async def open(self, checkpoints: CheckpointStore) -> None:
        await self._point("source.open")
        checkpoint = await checkpoints.load()
        if checkpoint is None or checkpoint.source is None:
            await checkpoints.begin(IDENTITY)
        self._origin.slot = IDENTITY.slot
        await self._point("source.opened")

    async def changes(self) -> AsyncIterator[ChangeSet]:
        place = next(
            (
                number
                for number, transaction in enumerate(self._origin.log)
                if transaction[-1].commit_end_lsn > self._origin.flushed
            ),
            len(self._origin.log),
        )
        while True:
            while place == len(self._origin.log):
                self._origin.more.clear()
                await self._origin.more.wait()
            for change in self._origin.log[place]:
                await self._point("source.changes")
                yield change
            place += 1

    def confirm(self, lsn: int, chunk: int = 0) -> None:
        held = self._destination.checkpoints[PIPELINE]
        self._origin.must(lsn <= held.confirmed_through, "the source was told of what is not durable")
        self._origin.flushed = max(self._origin.flushed, lsn)

    def schemas(self) -> tuple[TableSchema, ...]:
        return (ORDERS,)

    async def remove(self, checkpoints: CheckpointStore) -> None:
        await self._point("source.remove")
        await checkpoints.load()
        self._origin.slot = None

    async def close(self) -> None:
        self._closed = True


class WatchedSink:
    """A `MemorySink` with chaos around each step, and a look at what became visible."""

    def __init__(self, world: "World", point: Point, ownership: Ownership) -> None:
        self._world = world
        self._sink = MemorySink(world.destination, pipeline_id=PIPELINE, ownership=ownership)
        self._point = point

    @property
    def gauges(self) -> SinkGauges:
        return self._sink.gauges

    async def look_again(self) -> None:
        await self._sink.look_again()

    async def open(self) -> Checkpoint | None:
        await self._point("sink.open")
        checkpoint = await self._sink.open()
        self._world.note_owner()
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
        self._world.check_visible()
        await self._point("sink.applied")  # after the commit, before anyone hears of it
        return progress

    async def close(self) -> None:
        await self._sink.close()


class World:
    """Everything around one pipeline's runtimes."""

    def __init__(self, *, point: Point = calm, buffer_bytes_max: int = 1 << 20, parts: int = 1) -> None:
        self.origin = Origin()
        self.destination = Memory(tables={"public.orders": {}})
        self.leaf = MemoryLeaf(buffer_bytes_max, parts=parts)
        self.point = point
        self.applied: list[ChangeSet] = []
        self.sessions = 0
        self.session_times: list[float] = []
        self._owners: list[str] = []

    def rows(self) -> dict[str, str | None]:
        return {str(key[0]): row["note"] for key, row in self.destination.rows("public.orders").items()}

    def check_visible(self) -> None:
        """What the destination shows is a state that the origin had: the one at the checkpoint's position."""
        held = self.destination.checkpoints.get(PIPELINE)
        if held is None:
            return
        expected = self.origin.states[held.position.lsn + 1 if held.position != START else 0]
        self.origin.must(self.rows() == expected, f"the destination shows a state of its own at {held.position}")

    def note_owner(self) -> None:
        """A process that was replaced is never seen as the owner again."""
        owner = self.destination.owners[PIPELINE]
        if not self._owners or owner != self._owners[-1]:
            self.origin.must(owner not in self._owners, f"{owner} has claimed back what another has claimed since")
            self._owners.append(owner)

    @property
    def caught_up(self) -> bool:
        held = self.destination.checkpoints.get(PIPELINE)
        return held is not None and self.origin.end == held.position.lsn + 1

    async def until_caught_up(self) -> None:
        while not self.caught_up:  # noqa: ASYNC110 - the clock is virtual
            await asyncio.sleep(0.25)
        assert self.rows() == self.origin.states[self.origin.end]
        assert self.origin.violations == []

    def assemble(
        self, point: Point, assignment: Assignment, pipeline: PipelineDocument, surroundings: Surroundings
    ) -> Session:
        self.sessions += 1
        self.session_times.append(asyncio.get_running_loop().time())
        source = FakeSource(self.origin, self.destination, point)
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
            assignment(pipeline or document(["public.orders"]), half, node),
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
