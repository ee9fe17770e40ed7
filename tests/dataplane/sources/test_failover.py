"""A standby of the source takes over, and the pipeline goes on there, or says exactly why it cannot."""

import asyncio
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import psycopg
import pytest
from msgspec import structs
from tests.conftest import Database
from tests.dataplane.laws.source_law import equal, opened, streaming
from tests.dataplane.sources.destination import Destination, Reading
from tests.dataplane.sources.origins import PostgresOrigin
from tests.dataplane.sources.standbys import Pair

from contracts.checks import Check, Outcome, State
from contracts.codes import Code
from dataplane.failures import Gap, RetryLater
from dataplane.node.doctor import failover
from dataplane.node.doctor.reading import Reader

ITEMS = "public.items"


@dataclass
class Pipeline:
    """One pipeline: where it reads, and what its destination holds."""

    origin: PostgresOrigin
    destination: Destination
    failover: bool

    @property
    def slot(self) -> str:
        assert self.destination.checkpoint is not None
        assert self.destination.checkpoint.source is not None
        return self.destination.checkpoint.source.slot

    def at(self, database: Database) -> "Pipeline":
        """The same pipeline, with its connection pointed at another server."""
        origin = PostgresOrigin(database, failover=self.failover)
        origin.pipeline_id = self.origin.pipeline_id
        return Pipeline(origin, self.destination, self.failover)

    async def gap(self) -> Code:
        """Open, and return the code of the GAP that it is. Nothing at the destination changes."""
        before = self.destination.checkpoint
        with pytest.raises(Gap) as gap:
            await opened(self.origin, self.destination)
        assert self.destination.checkpoint == before
        await self.close()
        return gap.value.code

    async def close(self) -> None:
        for source in self.origin.sources:
            await source.close()


class Drama:
    """A primary that dies while one pipeline waits for the standby, one has run ahead of it, and one lags behind."""

    def __init__(self, folder: Path) -> None:
        self.pair = Pair(folder)
        database = self.pair.database()
        database.execute("CREATE TABLE public.items (id integer PRIMARY KEY, name text)")
        database.execute("INSERT INTO public.items SELECT n, 'copied' FROM generate_series(1, 100) n")
        self.synced = Pipeline(PostgresOrigin(database, failover=True), Destination(), failover=True)
        self.ahead = Pipeline(PostgresOrigin(database), Destination(), failover=False)
        self.unsynced = Pipeline(PostgresOrigin(database), Destination(), failover=False)
        asyncio.run(self._play())
        self.promoted = Database(self.pair.standby, "postgres")

    async def _play(self) -> None:
        pair, run = self.pair, self.synced.origin.run
        readings = [await streaming(each.origin, each.destination) for each in (self.synced, self.ahead, self.unsynced)]
        run(
            "INSERT INTO public.items VALUES (101, 'delivered'), (102, 'delivered')",
            "DELETE FROM public.items WHERE id = 1",
        )
        for reading in readings:
            await equal(self.synced.origin, reading)
        number = 1000
        while not pair.is_synced(self.synced.slot):
            # The standby takes a slot over only once it has moved on since the standby was made.
            number += 1
            pair.run("SELECT pg_log_standby_snapshot()")
            run(f"INSERT INTO public.items VALUES ({number}, 'more')")
            for reading in readings:
                await equal(self.synced.origin, reading)
            assert number < 1200
            # What synchronizes slots naps ever longer while it finds nothing to do; this wakes it up.
            pair.run("SELECT pg_reload_conf()", on=pair.standby)
            await asyncio.sleep(0.1)
        self.diagnosis_before = self._examined()
        await self.unsynced.close()
        await asyncio.to_thread(pair.cut_off_standby)
        run("INSERT INTO public.items VALUES (103, 'lost with the primary')")
        await equal(self.synced.origin, readings[1])
        self.diagnosis_cut_off = self._examined()
        # The stream of a failover slot waits for the standby: what would be lost is never delivered.
        waiting = await _nothing_comes(readings[0])
        await asyncio.to_thread(pair.primary.stop, immediate=True)
        with pytest.raises(RetryLater):
            await waiting
        await self.synced.close()
        await self.ahead.close()
        await asyncio.to_thread(pair.promote)

    def _examined(self) -> list[tuple[Outcome, State | None, str | None]]:
        """What the doctor says of a failover."""
        own = {each.slot.rpartition("_")[0]: name for name, each in (("synced", self.synced), ("ahead", self.ahead))}
        with psycopg.connect(self.pair.primary.conninfo(), autocommit=True) as connection:
            found = failover.examine(Reader(connection, ends_at=time.monotonic() + 10), own, own.values())
            return [(each.outcome, each.state, each.pipeline) for each in found if each.check is Check.FAILOVER_SLOTS]


async def _nothing_comes(reading: Reading) -> "asyncio.Task[object]":
    waiting: asyncio.Task[object] = asyncio.ensure_future(anext(reading._changes))  # type: ignore[arg-type]
    done, _ = await asyncio.wait([waiting], timeout=0.5)
    assert not done
    return waiting


@pytest.fixture(scope="module")
def drama() -> Iterator[Drama]:
    """The servers after the promotion."""
    folder = Path(tempfile.mkdtemp(prefix="pm-ha-"))
    drama = Drama(folder)
    yield drama
    drama.pair.stop()
    shutil.rmtree(folder, ignore_errors=True)


async def test_a_pipeline_whose_slot_was_synchronized_goes_on_at_the_promoted_standby(drama: Drama) -> None:
    """No row is lost and none comes twice, also of what was written there before; the checkpoint has the new timeline."""
    moved = drama.synced.at(drama.promoted)
    assert ("103",) not in moved.origin.rows(ITEMS)
    moved.origin.run(
        "INSERT INTO public.items VALUES (103, 'its own')", "UPDATE public.items SET name = 'x' WHERE id = 2"
    )
    reading = await opened(moved.origin, moved.destination)
    checkpoint = moved.destination.checkpoint
    assert checkpoint is not None
    assert checkpoint.source is not None
    assert checkpoint.source.timeline == 2
    await equal(moved.origin, reading)
    moved.origin.run("DELETE FROM public.items WHERE id = 101")
    await equal(moved.origin, reading)
    assert moved.destination.rows_repeated == 0
    await moved.close()
    again = moved.at(drama.promoted)
    again.origin.run("INSERT INTO public.items VALUES (104, 'later')")
    await equal(again.origin, await opened(again.origin, again.destination))
    await again.close()


async def test_a_pipeline_that_was_ahead_of_the_promoted_standby_stops(drama: Drama) -> None:
    """Its destination holds a row that the source never had from now on."""
    assert await drama.ahead.at(drama.promoted).gap() is Code.GAP_FAILOVER_BEHIND


async def test_a_pipeline_whose_slot_did_not_follow_stops(drama: Drama) -> None:
    """A new slot would begin at 'now', and what was written in between would be missing."""
    assert await drama.unsynced.at(drama.promoted).gap() is Code.GAP_SLOT_NOT_SYNCED


async def test_an_old_primary_that_comes_back_is_refused(drama: Drama) -> None:
    """Once the checkpoint has followed to the new timeline, rows that only the old one has are not taken any more."""
    checkpoint = drama.synced.destination.checkpoint
    assert checkpoint is not None
    assert checkpoint.source is not None
    followed = structs.replace(checkpoint, source=structs.replace(checkpoint.source, timeline=2))
    returned = replace(drama.synced, destination=Destination(checkpoint=followed)).at(drama.pair.database())
    drama.pair.primary.start()
    try:
        assert await returned.gap() is Code.GAP_OLD_PRIMARY
    finally:
        drama.pair.primary.stop(immediate=True)


async def test_the_doctor_says_which_piece_of_a_failover_is_missing(drama: Drama) -> None:
    """A slot that is not marked for it, and a standby that is awaited and away; what is well is not mentioned."""
    unmarked = (Outcome.WARNING, State.SLOT_NOT_MARKED, "ahead")
    assert drama.diagnosis_before == [unmarked]
    assert (Outcome.PROBLEM, State.STANDBY_AWAY, None) in drama.diagnosis_cut_off
    assert drama.diagnosis_cut_off[-1] == unmarked


async def test_a_standby_is_no_source_until_it_is_promoted(drama: Drama) -> None:
    """It is tried again, because it may be promoted at any moment."""
    standby = drama.pair.standby
    standby.stop()
    signal = standby.data / "standby.signal"
    signal.touch()
    standby.start()
    try:
        waiting = drama.unsynced.at(drama.promoted)
        with pytest.raises(RetryLater) as refused:
            await opened(waiting.origin, waiting.destination)
        assert refused.value.code is Code.SOURCE_STANDBY
        await waiting.close()
    finally:
        standby.stop()
        signal.unlink()
        standby.start()
