"""Every buffer of the registry, and the one in memory, under the law of buffers."""

import asyncio
from collections.abc import Iterator
from uuid import uuid4

import nats
import pytest
from tests.dataplane.buffers.leaf import Leaf
from tests.dataplane.buffers.memory import MemoryLeaf, MemoryReader, MemoryWriter
from tests.dataplane.laws.buffer_law import BufferLaw, Halves

from contracts.v2 import BufferType
from dataplane.buffers import BUFFERS
from dataplane.buffers.jetstream.messages import Subjects
from dataplane.buffers.port import BufferReader, BufferWriter


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
        assert len(halves.rig.leaf.sets) <= messages  # type: ignore[attr-defined]


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
            self.kind = BUFFERS[BufferType.JETSTREAM]()

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
    assert set(BUFFERS) == {BufferType.JETSTREAM}
