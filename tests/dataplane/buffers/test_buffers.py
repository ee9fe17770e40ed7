"""Every buffer of the registry, and the one in memory, under the law of buffers."""

import asyncio
from collections.abc import Iterator
from uuid import uuid4

import nats
import pytest
from tests.dataplane.buffers.changes import ids_of, transaction
from tests.dataplane.buffers.leaf import Leaf
from tests.dataplane.buffers.memory import MemoryLeaf, MemoryReader, MemoryWriter
from tests.dataplane.laws.buffer_law import BufferLaw, Halves, Store, checkpoint_at, listen

from contracts.v2 import BufferType, Confirm
from dataplane.batch import START
from dataplane.buffers import BUFFERS
from dataplane.buffers.frames import Cutter, Hole, Joiner, parse
from dataplane.buffers.jetstream.messages import Subjects
from dataplane.buffers.port import BufferReader, BufferWriter, SessionReplaced


class TestMemory(BufferLaw):
    class Rig:
        size_bytes_max = 1 << 20

        def __init__(self) -> None:
            self.leaf = MemoryLeaf(self.size_bytes_max)

        def writer(self) -> BufferWriter:
            return MemoryWriter(self.leaf)

        def reader(self) -> BufferReader:
            return MemoryReader(self.leaf)

        async def lose(self) -> None:
            self.leaf.lose()

    @pytest.fixture
    async def rig(self) -> "TestMemory.Rig":
        return self.Rig()

    async def until_forgotten(self, halves: Halves, messages: int) -> None:
        assert len(halves.rig.leaf.stream) <= messages  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def leaf(tmp_path_factory) -> Iterator[Leaf]:
    leaf = Leaf(tmp_path_factory.mktemp("leaf"))
    leaf.start()
    yield leaf
    leaf.stop()


class TestJetStream(BufferLaw):
    class Rig:
        size_bytes_max = 1 << 20

        def __init__(self, leaf: Leaf) -> None:
            self.leaf = leaf
            self.pipeline_id = str(uuid4())
            self.kind = BUFFERS[BufferType.JETSTREAM, Confirm.SINK]()

        def writer(self) -> BufferWriter:
            return self.kind.writer(self.leaf.access, pipeline_id=self.pipeline_id, size_bytes_max=self.size_bytes_max)

        def reader(self) -> BufferReader:
            return self.kind.reader(self.leaf.access, pipeline_id=self.pipeline_id, size_bytes_max=self.size_bytes_max)

        async def lose(self) -> None:
            client = await self.connect()
            await client.jetstream().delete_stream(Subjects(self.pipeline_id).stream)
            await client.close()

        async def connect(self) -> nats.NATS:
            return await nats.connect(self.leaf.access.url, nkeys_seed=self.leaf.access.seed_file)

    @pytest.fixture
    def rig(self, leaf: Leaf) -> "TestJetStream.Rig":
        return self.Rig(leaf)

    async def until_forgotten(self, halves: Halves, messages: int) -> None:
        client = await halves.rig.connect()  # type: ignore[attr-defined]
        stream = Subjects(halves.rig.pipeline_id).stream  # type: ignore[attr-defined]
        async with asyncio.timeout(20):
            while True:
                try:
                    held = (await client.jetstream().stream_info(stream)).state.messages
                except nats.js.errors.NotFoundError:
                    held = 0
                if held <= messages:
                    break
                await asyncio.sleep(0.05)
        await client.close()


def test_the_law_is_run_by_every_buffer_of_the_registry() -> None:
    """A buffer that is added to the registry without a suite is noticed."""
    assert set(BUFFERS) == {(BufferType.JETSTREAM, confirm) for confirm in Confirm}


async def test_a_sinks_half_that_waits_for_a_copy_follows_only_who_makes_it(leaf: Leaf) -> None:
    """What an older session has put is left alone, and that session is asked to end; a new one must know of the resync."""
    rig, store = TestJetStream.Rig(leaf), Store()
    store.checkpoint = checkpoint_at(START)

    def reader(resyncs: dict[str, int]) -> BufferReader:
        return rig.kind.reader(
            leaf.access, pipeline_id=rig.pipeline_id, size_bytes_max=rig.size_bytes_max, resyncs=resyncs
        )

    def writer(resyncs: dict[str, int]) -> BufferWriter:
        return rig.kind.writer(
            leaf.access, pipeline_id=rig.pipeline_id, size_bytes_max=rig.size_bytes_max, resyncs=resyncs
        )

    first, old = reader({}), writer({"public.items": 1})
    opening = asyncio.create_task(old.open())
    await first.open(store)
    waiting = asyncio.ensure_future(anext(first.take()))
    await opening
    await old.put(transaction(5, [1]))
    await waiting
    await first.close()
    second = reader({"public.items": 2})
    await second.open(store)
    sets = second.take()
    waiting = asyncio.ensure_future(anext(sets))
    with pytest.raises(SessionReplaced):
        await listen(old)
    unknowing = writer({"public.items": 1})
    opening = asyncio.create_task(unknowing.open())
    done, _ = await asyncio.wait({opening, waiting}, timeout=1)
    assert not done
    opening.cancel()
    await asyncio.wait({opening})
    knowing = writer({"public.items": 2})
    await knowing.open()
    await knowing.put(transaction(7, [2]))
    assert ids_of(await waiting) == [2]
    for end in (second, old, unknowing, knowing):
        await end.close()


def test_a_message_that_is_missing_or_comes_twice_is_a_hole() -> None:
    """Each message names its number; whatever does not follow is never passed over, whole sets included."""
    cutter = Cutter(bytes(16))
    messages = [message for lsn in (10, 20, 30) for message in cutter.cut(transaction(lsn, [1]), b"one set")]
    for received in ([0, 2], [0, 1, 1]):
        joiner = Joiner(bytes(16), START)
        for number in received[:-1]:
            assert joiner.accept(parse(messages[number])) is not None
        with pytest.raises(Hole):
            joiner.accept(parse(messages[received[-1]]))
