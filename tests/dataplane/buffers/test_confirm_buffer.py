"""A buffer with `confirm: buffer` is data: what was confirmed comes out once, whatever halves, leaf and stream go through."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from uuid import uuid4

import nats
import pytest
from tests.dataplane.buffers.changes import ORDERS, inserts, large_transaction, transaction
from tests.dataplane.buffers.leaf import Leaf
from tests.dataplane.laws.buffer_law import IDENTITY, SECONDS_MAX

from contracts.codes import Code
from contracts.v2 import BufferType, Confirm
from dataplane.batch import ChangeSet, Position, Truncate
from dataplane.buffers import BUFFERS
from dataplane.buffers.jetstream.keeper import JetStreamKeeper
from dataplane.buffers.jetstream.messages import Subjects
from dataplane.buffers.port import BufferReader, BufferWriter
from dataplane.checkpoint import Checkpoint, CheckpointStore
from dataplane.failures import Failure, Gap, Permanent, RetryLater
from dataplane.sinks.memory import Memory, MemorySink
from dataplane.sinks.ownership import Ownership

TABLE = ORDERS.table
SIZE_BYTES_MAX = 4 << 20


@pytest.fixture(scope="module")
def leaf(tmp_path_factory) -> Iterator[Leaf]:
    leaf = Leaf(tmp_path_factory.mktemp("leaf"))
    leaf.start()
    yield leaf
    leaf.stop()


def copied(ids: list[int], *, lsn: int = 10, resync: int = 0) -> ChangeSet:
    """The copy of the only table, whole."""
    rows = inserts(lsn, ids)
    return ChangeSet(
        items=(Truncate(ORDERS, Position(lsn, 0), for_snapshot=True), rows),
        first=Position(lsn, 0),
        last=Position(lsn, max(0, len(ids) - 1)),
        begins=True,
        ends=True,
        commit_end_lsn=lsn,
        commit_time=0,
        transactions=1,
        snapshot_of=TABLE,
        snapshot_ends=True,
        resync=resync,
    )


class Pipeline:
    """Both halves around one buffer, each session opened as its process would; the destination is in memory."""

    def __init__(self, leaf: Leaf, size_bytes_max: int = SIZE_BYTES_MAX) -> None:
        self.leaf = leaf
        self.pipeline_id = str(uuid4())
        self.size_bytes_max = size_bytes_max
        self.memory = Memory()
        self.given: list[int] = []
        self._ends: list[BufferReader | BufferWriter] = []
        self._sinking: asyncio.Task[None] | None = None

    @property
    def ids(self) -> list[int]:
        return sorted(int(str(key[0])) for key in self.memory.rows(TABLE))

    @property
    def checkpoint(self) -> Checkpoint:
        return self.memory.checkpoints[self.pipeline_id]

    async def source(
        self, confirm: Confirm = Confirm.BUFFER, **resyncs: dict[str, int]
    ) -> tuple[BufferWriter, CheckpointStore]:
        made = BUFFERS[BufferType.JETSTREAM, confirm]().writer
        writer = made(self.leaf.access, pipeline_id=self.pipeline_id, size_bytes_max=self.size_bytes_max, **resyncs)
        self._ends.append(writer)
        async with asyncio.timeout(SECONDS_MAX):
            return writer, await writer.open()

    async def sink_session(self, confirm: Confirm = Confirm.BUFFER, **resyncs: dict[str, int]) -> None:
        """One session of the sink's half, until it fails."""
        made = BUFFERS[BufferType.JETSTREAM, confirm]().reader
        reader = made(self.leaf.access, pipeline_id=self.pipeline_id, size_bytes_max=self.size_bytes_max, **resyncs)
        sink = MemorySink(self.memory, pipeline_id=self.pipeline_id, ownership=Ownership.of("node"))
        await sink.open()
        try:
            await reader.open(sink)
            async for change in reader.take():
                self.given.append(change.last.lsn)
                progress = await sink.apply(change)
                if progress is not None:
                    await reader.done(progress)
        finally:
            await sink.close()
            await reader.close()

    def sink(self, confirm: Confirm = Confirm.BUFFER, **resyncs: dict[str, int]) -> "asyncio.Task[None]":
        """The sink's half: sessions one after another, until one ends for good."""

        async def sessions() -> None:
            while True:
                with contextlib.suppress(RetryLater):
                    await self.sink_session(confirm, **resyncs)
                await asyncio.sleep(0.02)

        self._sinking = asyncio.create_task(sessions())
        return self._sinking

    async def stop_sink(self) -> None:
        assert self._sinking is not None
        self._sinking.cancel()
        await asyncio.wait([self._sinking])

    async def until(self, ids: list[int]) -> None:
        """Wait until the destination holds these rows and no others."""
        assert self._sinking is not None
        async with asyncio.timeout(SECONDS_MAX):
            while self.ids != ids:
                if self._sinking.done():
                    self._sinking.result()
                await asyncio.sleep(0.01)

    async def started(self) -> tuple[BufferWriter, CheckpointStore]:
        """A pipeline that has copied row 1 and goes on; the sink's half was ended again."""
        self.sink()
        writer, checkpoints = await self.source()
        await checkpoints.begin(IDENTITY)
        await writer.put(copied([1]))
        await self.until([1])
        await self.stop_sink()
        return writer, checkpoints

    async def client(self) -> nats.NATS:
        return await nats.connect(self.leaf.access.url, nkeys_seed=self.leaf.access.seed_file)

    @property
    def stream(self) -> str:
        return Subjects(self.pipeline_id).stream

    async def close(self) -> None:
        if self._sinking is not None:
            await self.stop_sink()
        for end in self._ends:
            await end.close()


@pytest.fixture
async def pipeline(leaf: Leaf) -> AsyncIterator[Pipeline]:
    pipeline = Pipeline(leaf)
    yield pipeline
    await pipeline.close()


async def reaches(state: Callable[[], bool]) -> None:
    async with asyncio.timeout(SECONDS_MAX):
        while not state():  # noqa: ASYNC110 - there is no event
            await asyncio.sleep(0.01)


async def confirmed(writer: BufferWriter) -> int:
    async with asyncio.timeout(SECONDS_MAX):
        return (await anext(aiter(writer.progress()))).confirmed_through


async def ends_with(session: "asyncio.Task[None]") -> Failure:
    """Return the failure that ends the sink's half for good."""
    async with asyncio.timeout(SECONDS_MAX):
        with pytest.raises(Permanent) as raised:
            await session
        return raised.value


async def test_the_source_may_forget_while_the_sinks_half_is_away(pipeline: Pipeline) -> None:
    """What is put is confirmed at once; a new source's half goes on from it; the sink's half gets all of it once."""
    writer, _ = await pipeline.started()
    for number in range(2, 6):
        await writer.put(transaction(number * 10, [number]))
    assert await confirmed(writer) == 51
    await writer.close()
    later, checkpoints = await pipeline.source()
    held = await checkpoints.load()
    assert held is not None
    assert (held.position, held.confirmed_through, held.source) == (Position(50, 0), 51, IDENTITY)
    await later.put(transaction(60, [6]))
    pipeline.given.clear()
    pipeline.sink()
    await pipeline.until([1, 2, 3, 4, 5, 6])
    assert pipeline.given == [20, 30, 40, 50, 60]


async def test_what_a_source_reads_again_is_not_put_again(pipeline: Pipeline) -> None:
    """A source that repeats rows before the buffer's position adds nothing, and what is new of a set gets in."""
    writer, _ = await pipeline.started()
    await writer.put(transaction(20, [2]))
    await writer.put(transaction(20, [2]))
    await writer.put(transaction(30, [3]))
    pipeline.given.clear()
    pipeline.sink()
    await pipeline.until([1, 2, 3])
    assert pipeline.given == [20, 30]


@pytest.mark.parametrize("reads_meanwhile", [False, True])
async def test_a_transaction_that_nobody_ended_is_read_again(pipeline: Pipeline, reads_meanwhile: bool) -> None:
    """The source's half dies in the middle: its parts are void, also for a sink's half that has taken them."""
    writer, _ = await pipeline.started()
    parts = large_transaction(20, [[2], [3], [4]])
    pipeline.given.clear()
    if reads_meanwhile:
        pipeline.sink()
    for part in parts[:2]:
        await writer.put(part)
    if reads_meanwhile:
        await reaches(lambda: len(pipeline.given) == 2)
    await writer.close()
    later, checkpoints = await pipeline.source()
    held = await checkpoints.load()
    assert held is not None
    assert held.position == Position(10, 0)
    assert pipeline.ids == [1]
    for part in parts:
        await later.put(part)
    if not reads_meanwhile:
        pipeline.sink()
    await pipeline.until([1, 2, 3, 4])
    assert len(pipeline.given) == (5 if reads_meanwhile else 3)


async def test_a_session_that_dies_before_it_has_cleaned_up_leaves_it_to_the_next(
    pipeline: Pipeline, monkeypatch
) -> None:
    """A source's half that is killed between its first note and the deletion of void parts lets none of them through."""
    writer, _ = await pipeline.started()
    for part in large_transaction(20, [[2], [3], [4]])[:2]:
        await writer.put(part)
    await writer.close()

    async def die(keeper: JetStreamKeeper, sequence: int) -> None:
        raise RetryLater(Code.BUFFER_UNREACHABLE, "killed")

    with monkeypatch.context() as patch:
        patch.setattr(JetStreamKeeper, "_delete", die)
        with pytest.raises(RetryLater, match="killed"):
            await pipeline.source()
    later, _ = await pipeline.source()
    await later.put(transaction(30, [5]))
    pipeline.sink()
    await pipeline.until([1, 5])


async def test_an_older_writer_gets_nothing_in(pipeline: Pipeline) -> None:
    """A source's half that was frozen and wakes up is refused, and may confirm nothing of what it put."""
    old, _ = await pipeline.started()
    new, _ = await pipeline.source()
    with pytest.raises(RetryLater):
        await old.put(transaction(20, [2]))
    await new.put(transaction(30, [3]))
    pipeline.sink()
    await pipeline.until([1, 3])


async def test_a_killed_leaf_loses_nothing_that_was_confirmed(tmp_path) -> None:
    """kill -9 of the leaf: what was acknowledged is there afterwards, and both halves go on."""
    leaf = Leaf(tmp_path / "leaf")
    leaf.start()
    pipeline = Pipeline(leaf)
    writer, _ = await pipeline.started()
    for number in range(2, 30):
        await writer.put(transaction(number * 10, [number]))
    leaf.kill()
    leaf.start()
    later, checkpoints = await pipeline.source()
    held = await checkpoints.load()
    assert held is not None
    assert held.confirmed_through == 291
    await later.put(transaction(300, [30]))
    pipeline.sink()
    await pipeline.until(list(range(1, 31)))
    await pipeline.close()
    leaf.stop()


async def test_a_lost_buffer_is_a_gap_where_the_source_has_let_go(pipeline: Pipeline) -> None:
    """The stream is deleted with rows in it: the source's half is given the destination's checkpoint, and explains why."""
    writer, _ = await pipeline.started()
    await writer.put(transaction(20, [2]))
    client = await pipeline.client()
    await client.jetstream().delete_stream(pipeline.stream)
    await client.close()
    with pytest.raises(RetryLater):
        await writer.put(transaction(30, [3]))
    pipeline.sink()
    later, checkpoints = await pipeline.source()
    held = await checkpoints.load()
    assert held is not None
    assert held.position == Position(10, 0)
    ahead = Gap(Code.GAP_SLOT_AHEAD, "the slot is at 21")
    assert later.cause(ahead).code is Code.GAP_BUFFER_LOST
    await later.close()
    again, _ = await pipeline.source()
    assert again.cause(ahead).code is Code.GAP_BUFFER_LOST
    assert pipeline.ids == [1]


async def test_a_lost_buffer_that_held_nothing_is_no_gap(pipeline: Pipeline) -> None:
    """All of it was delivered before it was lost: both halves go on with a new one."""
    await pipeline.started()
    client = await pipeline.client()
    await client.jetstream().delete_stream(pipeline.stream)
    await client.close()
    pipeline.sink()
    later, _ = await pipeline.source()
    await later.put(transaction(20, [2]))
    await pipeline.until([1, 2])


async def test_a_purged_buffer_is_a_gap_before_a_row_is_given(pipeline: Pipeline) -> None:
    """Somebody purges messages that the destination does not have: nothing behind them is delivered."""
    writer, _ = await pipeline.started()
    for number in range(2, 6):
        await writer.put(transaction(number * 10, [number]))
    client = await pipeline.client()
    state = (await client.jetstream().stream_info(pipeline.stream)).state
    await client.jetstream().purge_stream(pipeline.stream, seq=state.last_seq - 1)
    await client.close()
    failure = await ends_with(pipeline.sink())
    assert isinstance(failure, Gap)
    assert failure.code is Code.GAP_BUFFER_CUT
    assert pipeline.ids == [1]


async def test_a_missing_message_is_a_gap_where_it_was(pipeline: Pipeline) -> None:
    """One message in the middle is gone: what is before it is delivered, nothing behind it."""
    writer, _ = await pipeline.started()
    for number in range(2, 6):
        await writer.put(transaction(number * 10, [number]))
    client = await pipeline.client()
    state = (await client.jetstream().stream_info(pipeline.stream)).state
    await client.jetstream().delete_msg(pipeline.stream, state.last_seq - 1)
    await client.close()
    assert (await ends_with(pipeline.sink())).code is Code.GAP_BUFFER_CUT
    assert pipeline.ids == [1, 2, 3]


async def test_a_buffer_that_ends_before_the_destination_is_a_gap(leaf: Leaf, tmp_path) -> None:
    """The leaf's store was put back from a backup: its end is older than what the destination holds."""
    import shutil

    own = Leaf(tmp_path / "leaf")
    own.start()
    pipeline = Pipeline(own)
    writer, _ = await pipeline.started()
    await writer.close()
    own.stop()
    shutil.copytree(own.folder / "store", tmp_path / "backup")
    own.start()
    pipeline.sink()
    writer, _ = await pipeline.source()
    await writer.put(transaction(20, [2]))
    await pipeline.until([1, 2])
    await pipeline.stop_sink()
    await writer.close()
    own.stop()
    shutil.rmtree(own.folder / "store")
    shutil.copytree(tmp_path / "backup", own.folder / "store")
    own.start()
    assert (await ends_with(pipeline.sink())).code is Code.GAP_BUFFER_CUT
    await pipeline.close()
    own.stop()


async def test_a_copy_of_everything_ends_a_gap(pipeline: Pipeline) -> None:
    """The source starts over: whatever the buffer held or lacked means nothing, and the destination is as the source."""
    writer, _ = await pipeline.started()
    for number in range(2, 6):
        await writer.put(transaction(number * 10, [number]))
    await writer.close()
    client = await pipeline.client()
    state = (await client.jetstream().stream_info(pipeline.stream)).state
    await client.jetstream().purge_stream(pipeline.stream, seq=state.last_seq - 1)
    await client.close()
    assert (await ends_with(pipeline.sink())).code is Code.GAP_BUFFER_CUT
    pipeline.sink(resyncs={TABLE: 1})
    later, checkpoints = await pipeline.source(resyncs={TABLE: 1})
    await checkpoints.begin(IDENTITY)
    await later.put(copied([1, 2, 3, 4, 5, 6], lsn=70, resync=1))
    await later.put(transaction(80, [7]))
    await pipeline.until([1, 2, 3, 4, 5, 6, 7])
    assert pipeline.checkpoint.resynced == {TABLE: 1}


async def test_rows_of_a_table_that_is_copied_again_are_left_out_before_the_copy(pipeline: Pipeline) -> None:
    """The destination may refuse the very rows that wait; the copy replaces them, so they are not delivered."""
    writer, _ = await pipeline.started()
    await writer.put(transaction(20, [2]))
    await writer.put(copied([1, 3], lsn=30, resync=1))
    await writer.put(transaction(40, [4]))
    pipeline.sink(resyncs={TABLE: 1})
    await pipeline.until([1, 3, 4])


async def test_a_full_buffer_waits_and_takes_notes_all_the_same(leaf: Leaf) -> None:
    """While the sink's half is away a full buffer lets nothing in but what a source's half needs to begin anew."""
    pipeline = Pipeline(leaf, size_bytes_max=1 << 20)
    writer, _ = await pipeline.started()
    large = "x" * 50_000
    number = 1

    async def fill() -> None:
        nonlocal number
        while True:
            await writer.put(transaction((number + 1) * 10, [number + 1], note=large))
            number += 1

    filling = asyncio.create_task(fill())
    seen = 0
    while seen != number:  # it stands still
        seen = number
        await asyncio.sleep(0.5)
    filling.cancel()
    await asyncio.wait([filling])
    await writer.close()
    later, checkpoints = await pipeline.source()
    held = await checkpoints.load()
    assert held is not None
    assert held.position == Position(number * 10, 0)
    await checkpoints.advance(number * 10 + 5)
    putting = asyncio.create_task(later.put(transaction((number + 1) * 10, [number + 1], note=large)))
    done, _ = await asyncio.wait([putting], timeout=0.3)
    assert not done
    client = await pipeline.client()
    info = await client.jetstream().stream_info(pipeline.stream)
    await client.close()
    assert info.config.max_bytes == 1 << 20
    pipeline.sink()
    await pipeline.until(list(range(1, number + 2)))
    await putting
    await pipeline.close()


async def test_a_transaction_that_could_never_fit_is_refused(leaf: Leaf) -> None:
    """Its beginning cannot be forgotten before its end, so waiting would have no end: it needs a larger buffer."""
    pipeline = Pipeline(leaf, size_bytes_max=1 << 20)
    writer, _ = await pipeline.started()
    parts = large_transaction(20, [[number] for number in range(2, 40)], note="x" * 50_000)

    async def put_all(end: BufferWriter) -> None:
        for part in parts:
            await end.put(part)

    with pytest.raises(Permanent) as refused:
        await put_all(writer)
    assert refused.value.code is Code.BUFFER_TOO_SMALL
    await writer.close()
    pipeline.size_bytes_max = SIZE_BYTES_MAX
    later, _ = await pipeline.source()
    await put_all(later)
    pipeline.sink()
    await pipeline.until(list(range(1, 40)))
    await pipeline.close()


async def test_what_is_delivered_is_forgotten_but_for_its_end(pipeline: Pipeline) -> None:
    """The stream keeps one message of what the destination holds, and the idle source's notes do not gather."""
    writer, checkpoints = await pipeline.started()
    pipeline.sink()
    for number in range(2, 50):
        await writer.put(transaction(number * 10, [number]))
    await pipeline.until(list(range(1, 50)))
    for lsn in range(600, 610):
        await checkpoints.advance(lsn)
    await reaches(lambda: pipeline.checkpoint.confirmed_through == 609)
    client = await pipeline.client()
    stream = client.jetstream()
    async with asyncio.timeout(SECONDS_MAX):
        while (await stream.stream_info(pipeline.stream)).state.messages > 1:  # noqa: ASYNC110 - there is no event
            await asyncio.sleep(0.02)
    await client.close()
    await pipeline.stop_sink()
    await writer.put(transaction(700, [50]))
    pipeline.sink()
    await pipeline.until(list(range(1, 51)))


async def test_a_deleted_consumer_is_only_a_new_session(pipeline: Pipeline) -> None:
    """The reader's consumer is deleted under it: it begins again where the destination stands."""
    writer, _ = await pipeline.started()
    pipeline.sink()
    await writer.put(transaction(20, [2]))
    await pipeline.until([1, 2])
    client = await pipeline.client()
    stream = client.jetstream()
    for consumer in await stream.consumers_info(pipeline.stream):
        await stream.delete_consumer(pipeline.stream, consumer.name)
    await client.close()
    await writer.put(transaction(30, [3]))
    await pipeline.until([1, 2, 3])


async def test_a_cache_becomes_data_where_the_destination_stands(pipeline: Pipeline) -> None:
    """`confirm: sink` is changed to `confirm: buffer`: the first session takes over the destination's checkpoint."""
    pipeline.sink(Confirm.SINK)
    writer, checkpoints = await pipeline.source(Confirm.SINK)
    await checkpoints.begin(IDENTITY)
    await writer.put(copied([1]))
    await pipeline.until([1])
    await pipeline.stop_sink()
    await writer.put(transaction(20, [2]))
    await writer.close()
    pipeline.sink()
    later, kept = await pipeline.source()
    held = await kept.load()
    assert held is not None
    assert held.position == Position(10, 0)
    await later.put(transaction(20, [2]))
    await pipeline.until([1, 2])
    with pytest.raises(Permanent) as refused:
        await pipeline.source(Confirm.SINK)
    assert refused.value.code is Code.BUFFER_HOLDS_DATA


async def test_removing_leaves_nothing_behind(pipeline: Pipeline) -> None:
    """The destination's checkpoint is forgotten through the sink's half, and the stream is gone."""
    writer, checkpoints = await pipeline.started()
    pipeline.sink()
    await checkpoints.forget()
    await writer.remove()
    await writer.remove()
    assert pipeline.pipeline_id not in pipeline.memory.checkpoints
