"""Rows that the destination does not take are dead letters: a comparison counts them, a repair leaves them, a replay fits on it."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from msgspec import structs
from tests.dataplane.reconcile.scene import Comparer
from tests.dataplane.worker.processes import Half
from tests.dataplane.worker.test_process import Pipeline

from contracts import v2
from contracts.delivery import OnRefused
from contracts.reconciling import Reconcile, ReconcileState
from dataplane.sinks.postgres.letter_desk import Choice, LetterDesk, Replayed
from dataplane.worker.protocol import ReconcileLine

THINGS = "public.things"
ROWS = [(1, "a"), (2, "new"), (3, "c"), (4, "poison"), (5, "e"), (6, "poison")]


class Refusing(Pipeline):
    """A pipeline whose destination lacks one of the type's labels, and takes no poison; what it refuses becomes letters."""

    def document(self, **changes) -> v2.PipelineDocument:  # type: ignore[no-untyped-def]
        made = super().document(**{"tables": [THINGS], **changes})
        return structs.replace(made, sink=structs.replace(made.sink, on_refused=OnRefused.DEAD_LETTER))

    async def compare(self, number: int, *, repair: bool) -> ReconcileLine:
        asked = self.document(reconciles={THINGS: Reconcile(number=number, repair=repair)})
        if self.comparer.process is None:
            await self.comparer.start(asked)
        else:
            await self.comparer.send(asked)
        return (await self.comparer.until_over(number, [THINGS]))[THINGS]

    async def tick(self) -> None:
        """Let the source's position move: an idle one says only every ten seconds that nothing has happened."""
        while True:
            await asyncio.to_thread(self.shop.execute, "UPDATE things SET name = name WHERE id = 5")
            await asyncio.sleep(0.1)

    async def replay(self) -> Replayed:
        worker = self.workers[0]
        async with LetterDesk(worker._sink, None, pipeline_id=worker._pipeline_id) as desk:
            return await desk.replay(Choice())

    def letters(self) -> list[tuple[object, ...]]:
        return self.warehouse.execute("SELECT op, key ->> 'id' FROM pointsman.dead_letters ORDER BY id")

    def rows(self, database: object) -> list[tuple[object, ...]]:
        return database.execute("SELECT id, name FROM things ORDER BY id")  # type: ignore[attr-defined, no-any-return]


@pytest.fixture
async def pipeline(folder, make_database) -> AsyncIterator[Refusing]:  # type: ignore[no-untyped-def]
    """It streams, and the copy of its table has left three letters."""
    pipeline = Refusing(folder, make_database, None)
    worker = pipeline.workers[0]
    pipeline.comparer = Comparer(folder, Half.RECONCILE, worker._source, worker._sink, pipeline_id=worker._pipeline_id)
    pipeline.shop.execute("CREATE TYPE label AS ENUM ('a', 'b', 'c', 'e', 'new', 'poison', 'wrong')")
    pipeline.shop.execute("CREATE TABLE things (id int PRIMARY KEY, name label)")
    for row in ROWS:
        pipeline.shop.execute("INSERT INTO things VALUES (%s, %s)", *row)
    pipeline.warehouse.execute("CREATE TYPE label AS ENUM ('a', 'b', 'c', 'e', 'poison', 'wrong')")
    pipeline.warehouse.execute(
        "CREATE TABLE things (id int PRIMARY KEY, name label CONSTRAINT taste CHECK (name <> 'poison'))"
    )
    await pipeline.start()
    await pipeline.until(v2.Phase.STREAMING)
    ticking = asyncio.create_task(pipeline.tick())
    yield pipeline
    ticking.cancel()
    await pipeline.comparer.stop()
    await pipeline.stop()


def counts(line: ReconcileLine) -> tuple[object, ...]:
    return line.state, line.rows_missing, line.rows_different, line.rows_extra, line.rows_repaired


@pytest.mark.system
async def test_refused_rows_are_counted_left_by_a_repair_and_replayed_over_it(pipeline: Refusing) -> None:
    """A value that the type does not have, and one that meets a constraint; once mended, repair and replay end alike."""
    assert pipeline.letters() == [("insert", "2"), ("insert", "4"), ("insert", "6")]
    pipeline.warehouse.execute("DELETE FROM things WHERE id = 1")
    pipeline.warehouse.execute("UPDATE things SET name = 'wrong' WHERE id = 3")
    assert counts(await pipeline.compare(1, repair=False)) == (ReconcileState.DONE, 4, 1, 0, 0)
    assert counts(await pipeline.compare(2, repair=True)) == (ReconcileState.DONE, 4, 1, 0, 2)
    assert pipeline.rows(pipeline.warehouse) == [(1, "a"), (3, "c"), (5, "e")]

    pipeline.warehouse.execute("ALTER TYPE label ADD VALUE 'new'")
    pipeline.warehouse.execute("ALTER TABLE things DROP CONSTRAINT taste")
    pipeline.shop.execute("UPDATE things SET name = 'b' WHERE id = 2")
    pipeline.shop.execute("DELETE FROM things WHERE id = 6")
    async with asyncio.timeout(20):
        while len(pipeline.letters()) < 5:  # noqa: ASYNC110 - no server tells
            await asyncio.sleep(0.05)
    assert counts(await pipeline.compare(3, repair=True)) == (ReconcileState.DONE, 2, 0, 0, 2)
    assert pipeline.rows(pipeline.warehouse) == pipeline.rows(pipeline.shop)
    assert await pipeline.replay() == Replayed(applied=5)
    assert pipeline.rows(pipeline.warehouse) == pipeline.rows(pipeline.shop)
    assert counts(await pipeline.compare(4, repair=False)) == (ReconcileState.DONE, 0, 0, 0, 0)
