"""`confirm: buffer` through whole workers: kills, a destination that stays away, and the ways out of a lost buffer."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from random import Random

import nats
import pytest
from tests.dataplane.buffers.leaf import Leaf
from tests.dataplane.worker.bank import TABLES
from tests.dataplane.worker.test_process import DATA, Pipeline

from contracts.codes import Code
from contracts.v2 import Phase, RunState
from dataplane.worker.protocol import Half

pytestmark = pytest.mark.system

SECONDS_MAX = 60


@pytest.fixture
def leaf(tmp_path: Path) -> Iterator[Leaf]:
    leaf = Leaf(tmp_path / "leaf")
    leaf.start()
    yield leaf
    leaf.stop()


@pytest.fixture
async def pipeline(leaf: Leaf, folder, make_database) -> AsyncIterator[Pipeline]:  # type: ignore[no-untyped-def]
    pipeline = Pipeline(folder, make_database, leaf, DATA)
    pipeline.bank.create()
    await pipeline.start()
    await pipeline.until(Phase.STREAMING)
    yield pipeline
    await pipeline.stop()


def half(pipeline: Pipeline, which: Half):  # type: ignore[no-untyped-def]
    return next(worker for worker in pipeline.workers if worker.half is which)


async def source_lets_go(pipeline: Pipeline) -> None:
    """Commit one more row, and wait until the slot has passed it."""
    ((before,),) = pipeline.shop.execute("SELECT pg_current_wal_insert_lsn() - '0/0'")
    pipeline.shop.execute("INSERT INTO ledger (debit, credit, amount) VALUES (1, 2, 0)")
    passed = "SELECT 1 FROM pg_replication_slots WHERE confirmed_flush_lsn - '0/0' > %s"
    async with asyncio.timeout(SECONDS_MAX):
        while not pipeline.shop.execute(passed, before):  # noqa: ASYNC110 - the server gives no event
            await asyncio.sleep(0.02)


async def test_whatever_is_killed_nothing_is_lost_or_doubled(leaf: Leaf, pipeline: Pipeline) -> None:
    """Both halves and the leaf are killed again and again during transfers; the destination never shows a half."""
    bank, random = pipeline.bank, Random(5)
    working, watching = asyncio.create_task(bank.work()), asyncio.create_task(bank.watch())
    for number in range(6):
        await asyncio.sleep(random.random() * 0.6)
        if number % 3 == 2:
            leaf.kill()
            leaf.start()
            continue
        victim = pipeline.workers[number % 3]
        await victim.kill()
        await victim.start()
    bank.stop()
    await working
    await bank.settle()
    assert not watching.done(), watching.exception()
    watching.cancel()
    assert bank.transfers > 100


async def test_a_destination_that_stays_away_does_not_hold_the_sources_log(pipeline: Pipeline) -> None:
    """The sink's half is dead: the slot advances, across a restart of the source's half; then all arrives."""
    bank, source, sink = pipeline.bank, half(pipeline, Half.SOURCE), half(pipeline, Half.SINK)
    await sink.kill()
    for _ in range(2):
        working = asyncio.create_task(bank.work())
        await asyncio.sleep(0.5)
        bank.stop()
        await working
        bank._stopping = False
        await source_lets_go(pipeline)
        await source.kill()
        await source.start()
        await source.until_phase(Phase.STREAMING)
    await sink.start()
    await bank.settle()


async def test_a_lost_buffer_is_a_gap_and_its_hint_mends_it(leaf: Leaf, pipeline: Pipeline) -> None:
    """The stream is deleted while it holds what the source has let go of: both know, and a resync makes all equal."""
    bank, source, sink = pipeline.bank, half(pipeline, Half.SOURCE), half(pipeline, Half.SINK)
    await sink.kill()
    await source_lets_go(pipeline)
    client = await nats.connect(leaf.access.url, nkeys_seed=leaf.access.seed_file)
    for stream in await client.jetstream().streams_info():
        await client.jetstream().delete_stream(stream.config.name)
    await client.close()
    await sink.start()
    status = await source.until_phase(Phase.GAP)
    assert status.code is Code.GAP_BUFFER_LOST
    await pipeline.send(generation=2, resyncs=dict.fromkeys(TABLES, 1))
    await pipeline.until(Phase.STREAMING, 2)
    await bank.settle()


async def test_pause_resume_and_remove(leaf: Leaf, pipeline: Pipeline) -> None:
    """A pause keeps slot and buffer; after resuming all arrives; removing drops slot, checkpoint and stream."""
    await pipeline.send(run=RunState.PAUSED, generation=2)
    await pipeline.until(Phase.PAUSED, 2)
    pipeline.shop.execute("INSERT INTO ledger (debit, credit, amount) VALUES (1, 2, 0)")
    await pipeline.send(run=RunState.RUNNING, generation=3)
    await pipeline.bank.settle()
    await pipeline.send(run=RunState.REMOVED, generation=4)
    await pipeline.until(Phase.REMOVED, 4)
    assert pipeline.shop.execute("SELECT 1 FROM pg_replication_slots") == []
    assert pipeline.warehouse.execute("SELECT 1 FROM pointsman.checkpoints") == []
    client = await nats.connect(leaf.access.url, nkeys_seed=leaf.access.seed_file)
    assert await client.jetstream().streams_info() == []
    await client.close()
