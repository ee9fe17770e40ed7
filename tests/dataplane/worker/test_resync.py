"""Resync through whole workers, direct and through a buffer: under load, killed in the middle, and out of a gap."""

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest
from tests.dataplane.buffers.leaf import Leaf
from tests.dataplane.worker.bank import TABLES
from tests.dataplane.worker.test_process import Pipeline

from contracts.codes import Code
from contracts.v2 import Phase

LEDGER = "public.ledger"


@pytest.fixture(scope="module")
def leaf(tmp_path_factory) -> Iterator[Leaf]:
    leaf = Leaf(tmp_path_factory.mktemp("leaf"))
    leaf.start()
    yield leaf
    leaf.stop()


@pytest.fixture(params=["direct", "jetstream"])
async def pipeline(request, folder, make_database) -> AsyncIterator[Pipeline]:  # type: ignore[no-untyped-def]
    """A bank whose transfers flow, with enough lines in its ledger that a copy has several parts."""
    leaf = request.getfixturevalue("leaf") if request.param == "jetstream" else None
    pipeline = Pipeline(folder, make_database, leaf)
    pipeline.bank.create()
    pipeline.shop.execute("INSERT INTO ledger (debit, credit, amount) SELECT 1, 2, 0 FROM generate_series(1, 60000)")
    await pipeline.start()
    await pipeline.until(Phase.STREAMING)
    yield pipeline
    await pipeline.stop()


def reached(pipeline: Pipeline) -> object:
    ((found,),) = pipeline.warehouse.execute("SELECT resynced FROM pointsman.checkpoints")
    return found


async def test_one_table_is_mended_under_load_whatever_is_killed(pipeline: Pipeline) -> None:
    """Transfers go on meanwhile, each half is killed in the middle, and what is done is not done again."""
    bank = pipeline.bank
    await bank.settle()
    working, watching = asyncio.create_task(bank.work()), asyncio.create_task(bank.watch())
    pipeline.warehouse.execute("DELETE FROM ledger WHERE id % 2 = 0")
    pipeline.warehouse.execute("UPDATE ledger SET amount = 77 WHERE id % 3 = 0")
    asked = pipeline.document(generation=2, resyncs={LEDGER: 1})
    await pipeline.send(generation=2, resyncs={LEDGER: 1})
    for worker in pipeline.workers:
        await worker.until(lambda status: status.generation == 2)
        await worker.kill()
        await worker.start(asked)
    await pipeline.until(Phase.STREAMING, 2)
    bank.stop()
    await working
    await bank.settle()
    assert not watching.done(), watching.exception()
    watching.cancel()
    assert reached(pipeline) == {LEDGER: 1}
    pipeline.warehouse.execute("DELETE FROM ledger WHERE id = 1")
    for worker in pipeline.workers:
        await worker.kill()
        await worker.start()
    await pipeline.until(Phase.STREAMING, 2)
    assert pipeline.warehouse.execute("SELECT count(*) FROM ledger WHERE id = 1") == [(0,)]


async def test_a_gap_is_closed_by_a_resync_of_all_tables(pipeline: Pipeline) -> None:
    """gap, snapshotting, streaming: by itself, with the rows of the gap; readers see a whole table at any moment."""
    bank, source = pipeline.bank, pipeline.workers[-1]
    await bank.settle()
    assert await source.stop() == 0
    pipeline.shop.drop_slots()
    pipeline.shop.execute("INSERT INTO ledger (debit, credit, amount) VALUES (1, 2, 0)")
    await source.start()
    assert (await source.until_phase(Phase.GAP)).code is Code.GAP_SLOT_MISSING
    source.seen.clear()
    watching = asyncio.create_task(bank.watch())
    await pipeline.send(generation=2, resyncs=dict.fromkeys(TABLES, 1))
    await source.until_phase(Phase.STREAMING, 2)
    await bank.settle()
    assert not watching.done(), watching.exception()
    watching.cancel()
    phases = [phase for phase in source.seen if phase is not Phase.PENDING]
    assert [phase for phase in phases if phase is not Phase.RETRYING][-2:] == [Phase.SNAPSHOTTING, Phase.STREAMING]
    assert reached(pipeline) == dict.fromkeys(TABLES, 1)


async def test_a_table_that_stopped_the_pipeline_is_copied_again(pipeline: Pipeline) -> None:
    """What the destination refused is gone at the source: it is not tried again from a buffer that still holds it."""
    bank, sink = pipeline.bank, pipeline.workers[0]
    await bank.settle()
    pipeline.warehouse.execute("ALTER TABLE ledger ADD CONSTRAINT small CHECK (amount < 1000)")
    pipeline.shop.execute("INSERT INTO ledger (debit, credit, amount) VALUES (1, 2, 5000)")
    assert (await sink.until_phase(Phase.DEGRADED)).code is Code.SINK_CONSTRAINT
    pipeline.shop.execute("DELETE FROM ledger WHERE amount = 5000")
    for worker in pipeline.workers:
        await worker.send(pipeline.document(generation=2, resyncs={LEDGER: 1}))
        await worker.until(lambda status: status.generation == 2)
    await pipeline.until(Phase.STREAMING, 2)
    await bank.settle()
    assert reached(pipeline) == {LEDGER: 1}
