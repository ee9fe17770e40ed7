"""What becomes of a slot: given up at the limit, invalidated by its server, restored with an old copy, released when idle."""

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from types import MappingProxyType

import psycopg
import pytest
from tests.conftest import FAST, Database
from tests.dataplane.laws.source_law import equal, opened, streaming
from tests.dataplane.sources.destination import Destination
from tests.dataplane.sources.origins import PostgresOrigin
from tests.dataplane.sources.standbys import copy_files

from contracts.codes import Code
from contracts.slots import OnFull, SlotStatus, SourceLog
from dataplane import retention
from dataplane.failures import Gap
from dataplane.slot_measure import SlotMeasure, measured
from dataplane.sources.postgres import marks, slot_watch
from dataplane.sources.postgres.slot_watch import is_at_limit
from pointsman.local import postgres, processes

ITEMS = "public.items"
MIB = 1 << 20
STOP_AT_4_MIB = SourceLog(retain_bytes_max=4 * MIB, on_full=OnFull.STOP)
RESYNCED = MappingProxyType({ITEMS: 1})


@pytest.fixture(scope="module")
def server() -> Iterator[postgres.PostgresServer]:
    """A server of this module's own: its limits and its log are no other test's business."""
    folder = Path(tempfile.mkdtemp(prefix="pm-slots-"))
    server = postgres.PostgresServer(folder, processes.free_port(), settings={**postgres.LOGICAL, **FAST})
    server.create()
    server.start()
    yield server
    server.stop(immediate=True)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
async def origin(server: postgres.PostgresServer) -> AsyncIterator[PostgresOrigin]:
    """A pipeline on the server, with one table."""
    database = Database(server, "postgres")
    database.execute("DROP TABLE IF EXISTS public.items")
    database.execute("CREATE TABLE public.items (id integer PRIMARY KEY, name text)")
    origin = PostgresOrigin(database)
    yield origin
    for source in origin.sources:
        await source.close()
    await origin.source(ITEMS).remove(Destination())
    await origin.sources[-1].close()


async def stopped(origin: PostgresOrigin) -> Destination:
    """A pipeline that streamed, and whose worker has ended."""
    destination = Destination()
    reading = await streaming(origin, destination)
    origin.run("INSERT INTO public.items VALUES (1, 'delivered')")
    await equal(origin, reading)
    await reading.source.close()
    await until(lambda: not origin.slots()[0][1])
    return destination


async def until(done, *, seconds_max: float = 25.0) -> None:  # type: ignore[no-untyped-def]
    """Wait for a state of the server."""
    async with asyncio.timeout(seconds_max):
        while not await asyncio.to_thread(done):  # noqa: ASYNC110 - the server tells nobody
            await asyncio.sleep(0.05)


async def gap_of(origin: PostgresOrigin, destination: Destination) -> Code:
    """Open, and return the code of the GAP that it is."""
    with pytest.raises(Gap) as gap:
        await opened(origin, destination)
    return gap.value.code


def write_log(database: Database, megabytes: int) -> None:
    """Let the server's log grow, by what is no pipeline's."""
    database.execute(
        "SELECT count(pg_logical_emit_message(false, 'noise', repeat('x', 1048576))) FROM generate_series(1, %s)",
        megabytes,
    )


def setting(database: Database, name: str, value: str) -> None:
    database.execute(f"ALTER SYSTEM SET {name} = '{value}'")
    database.execute("SELECT pg_reload_conf()")


def reset(database: Database, name: str) -> None:
    database.execute(f"ALTER SYSTEM RESET {name}")
    database.execute("SELECT pg_reload_conf()")


class TestAtTheLimit:
    """`on_full: stop`: the source's disk is safe, and the pipeline says loudly that it stopped."""

    async def test_a_destination_that_takes_nothing_loses_the_slot_and_cannot_hold_it_up(
        self, origin: PostgresOrigin, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Nobody asks the source for anything meanwhile. Afterwards it is a gap for every session, until all is copied."""
        monkeypatch.setattr(slot_watch, "MEASURE_SECONDS", 0.1)
        destination = await stopped(origin)
        origin.log = STOP_AT_4_MIB
        reading = await opened(origin, destination)
        origin.run("INSERT INTO public.items VALUES (2, 'never taken')")
        await anext(reading._changes)
        write_log(origin.database, 6)
        await until(lambda: origin.slots() == [])
        await until(lambda: reading.source.gauges.slot is not None and reading.source.gauges.slot.is_gone)
        with pytest.raises(Gap) as gap:
            await reading.one()
        assert gap.value.code is Code.GAP_LOG_LIMIT
        destination.lose_session()
        assert await gap_of(origin, destination) is Code.GAP_LOG_LIMIT
        again = await opened(origin, destination, resyncs=RESYNCED)
        await equal(origin, again)
        await again.source.close()
        await equal(origin, await opened(origin, destination, resyncs=RESYNCED))

    async def test_whoever_waits_for_changes_hears_of_it_at_once(
        self, origin: PostgresOrigin, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The destination holds all; only a transaction that stays open at the source keeps the log."""
        monkeypatch.setattr(slot_watch, "MEASURE_SECONDS", 0.1)
        destination = await stopped(origin)
        origin.log = STOP_AT_4_MIB
        with psycopg.connect(origin.database.conninfo) as holder:
            holder.execute("INSERT INTO public.items VALUES (9, 'open')")
            reading = await opened(origin, destination)
            waiting = asyncio.ensure_future(anext(reading._changes))
            write_log(origin.database, 6)
            async with asyncio.timeout(9):  # less than an idle look at the source takes
                with pytest.raises(Gap) as gap:
                    await waiting
            holder.rollback()
        assert gap.value.code is Code.GAP_LOG_LIMIT
        assert origin.slots() == []

    async def test_a_first_copy_that_takes_too_long_does_not_begin_again_for_ever(
        self, origin: PostgresOrigin, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Its slot keeps the log from its first moment on."""
        monkeypatch.setattr(slot_watch, "MEASURE_SECONDS", 0.1)
        origin.log = STOP_AT_4_MIB
        destination = Destination()
        origin.run("INSERT INTO public.items VALUES (1, 'a')")
        reading = await opened(origin, destination)
        write_log(origin.database, 6)
        await until(lambda: origin.slots() == [])
        with pytest.raises(Gap) as gap:
            # The slot is gone a moment before the session is told: until then a chunk may be given.
            await reading.until(lambda: False)
        assert gap.value.code is Code.GAP_LOG_LIMIT
        destination.lose_session()
        assert await gap_of(origin, destination) is Code.GAP_LOG_LIMIT

    async def test_nothing_is_dropped_where_the_choice_is_to_keep(
        self, origin: PostgresOrigin, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It is measured all the same, and nothing is lost."""
        monkeypatch.setattr(slot_watch, "MEASURE_SECONDS", 0.1)
        destination = await stopped(origin)
        origin.log = SourceLog(retain_bytes_max=MIB)
        reading = await opened(origin, destination)
        origin.run("INSERT INTO public.items VALUES (2, 'late')")
        change = await anext(reading._changes)
        write_log(origin.database, 6)
        seen: list[SlotMeasure] = []

        def kept() -> bool:
            measure = reading.source.gauges.slot
            if measure is not None and measure.retained_bytes > 6 * MIB and measure not in seen:
                seen.append(measure)
            return len(seen) >= 3

        await until(kept)
        assert seen[-1].active
        assert seen[-1].unconfirmed_bytes > 6 * MIB
        confirmed = destination.apply(change)
        assert confirmed is not None
        reading.source.confirm(confirmed)
        await equal(origin, reading)

    async def test_a_slot_that_somebody_reads_is_not_given_up(self, origin: PostgresOrigin) -> None:
        """Whatever it keeps: the server refuses, and nothing says that it was given up."""
        destination = await stopped(origin)
        reading = await opened(origin, destination)
        name = str(origin.slots()[0][0])
        publication = name.rpartition("_")[0]
        with psycopg.connect(origin.database.conninfo, autocommit=True) as connection:
            assert not retention.give_up(connection, publication, 0)
            measure = retention.measure(connection, publication)
            assert measure is not None
            assert (measure.name, measure.active, measure.is_gone) == (name, True, False)
            await reading.source.close()
            await until(lambda: not origin.slots()[0][1])
            assert not retention.give_up(connection, publication, 1 << 50)
            assert retention.give_up(connection, publication, 0)
            gone = retention.measure(connection, publication)
        assert gone is not None
        assert (gone.name, gone.status) == (name, SlotStatus.MISSING)
        assert await gap_of(origin, destination) is Code.GAP_LOG_LIMIT

    @pytest.mark.parametrize(
        ("before", "now", "stops"),
        [
            (None, (9, 9), False),
            ((3, 3), (9, 9), False),
            ((9, 9), (9, 9), True),
            ((8, 8), (9, 9), True),
            ((9, 9), (9, 8), False),
            ((9, 9), (8, 9), False),
            ((8, 2), (9, 1), True),
        ],
    )
    def test_only_a_slot_that_does_not_become_less_is_at_its_limit(
        self, before: tuple[int, int] | None, now: tuple[int, int], stops: bool
    ) -> None:
        """A backlog that is worked off is let alone; what a long transaction holds while nothing waits is not."""

        def of(kept: tuple[int, int]) -> SlotMeasure:
            retained, unconfirmed = (each * MIB for each in kept)
            return SlotMeasure(
                at=1.0, name="s", status=SlotStatus.RESERVED, retained_bytes=retained, unconfirmed_bytes=unconfirmed
            )

        assert is_at_limit(STOP_AT_4_MIB, before and of(before), of(now)) is stops
        assert not is_at_limit(SourceLog(retain_bytes_max=MIB), before and of(before), of(now))
        assert not is_at_limit(SourceLog(), before and of(before), of(now))


class TestInvalidated:
    """The server gave the slot up by itself, and says why."""

    async def test_it_kept_more_than_the_server_allows(self, origin: PostgresOrigin) -> None:
        """max_slot_wal_keep_size."""
        destination = await stopped(origin)
        setting(origin.database, "max_slot_wal_keep_size", "1MB")
        try:
            for _ in range(3):
                write_log(origin.database, 1)
                origin.database.execute("SELECT pg_switch_wal()")
            await until(lambda: self._invalidated(origin) == "wal_removed")
        finally:
            reset(origin.database, "max_slot_wal_keep_size")
        assert await gap_of(origin, destination) is Code.GAP_SLOT_INVALIDATED

    async def test_nobody_read_it_for_longer_than_the_server_allows(self, origin: PostgresOrigin) -> None:
        """idle_replication_slot_timeout, from PostgreSQL 18 on."""
        destination = await stopped(origin)
        setting(origin.database, "idle_replication_slot_timeout", "1s")
        try:
            await until(lambda: self._invalidated(origin) == "idle_timeout")
        finally:
            reset(origin.database, "idle_replication_slot_timeout")
        assert await gap_of(origin, destination) is Code.GAP_SLOT_INVALIDATED

    def _invalidated(self, origin: PostgresOrigin) -> object:
        origin.database.execute("CHECKPOINT")
        return origin.database.execute("SELECT invalidation_reason FROM pg_replication_slots")[0][0]


class TestRestored:
    """The source's files are those of an earlier moment."""

    async def test_a_copy_of_the_files_that_lacks_what_was_delivered_is_a_gap(
        self, server: postgres.PostgresServer, origin: PostgresOrigin
    ) -> None:
        """The same system, the same timeline and the same slot; only the log ends too early."""
        destination = await stopped(origin)
        copy = server.folder / "copy"
        server.stop()
        copy_files(server, copy)
        server.start()
        reading = await opened(origin, destination)
        origin.run("INSERT INTO public.items VALUES (2, 'after the copy')")
        await equal(origin, reading)
        await reading.source.close()
        server.stop()
        shutil.rmtree(server.data)
        copy.rename(server.data)
        server.start()
        assert await gap_of(origin, destination) is Code.GAP_RESTORED


class TestReleased:
    """A quiet pipeline on a busy server."""

    async def test_what_another_database_writes_is_released_within_two_advances(
        self, server: postgres.PostgresServer, origin: PostgresOrigin, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Nothing of ours changes: keepalives carry the slot along, its restart position too."""
        monkeypatch.setattr(marks, "IDLE_ADVANCE_SECONDS", 0.5)
        destination = await stopped(origin)
        reading = await opened(origin, destination)
        waiting = asyncio.ensure_future(anext(reading._changes))
        Database(server, "postgres").execute("CREATE DATABASE another")
        try:
            write_log(Database(server, "another"), 8)
            ((end,),) = origin.database.execute("SELECT pg_current_wal_lsn()")

            def released() -> bool:
                # The server notes such a moment by itself every fifteen seconds.
                origin.database.execute("SELECT pg_log_standby_snapshot()")
                ((done,),) = origin.database.execute("SELECT restart_lsn >= %s FROM pg_replication_slots", end)
                return bool(done)

            await until(released)
            assert not waiting.done()
        finally:
            await reading.source.close()
            with pytest.raises(StopAsyncIteration):
                await waiting
            Database(server, "postgres").execute("DROP DATABASE another")


def test_a_comment_that_is_not_ours_says_nothing_of_slots() -> None:
    """People write comments too."""
    for comment in (None, "", "mine", "[1]", '{"given_up": 3}', '{"given_up": []}'):
        assert measured([], comment) is None
    gone = measured([], '{"pointsman": "p", "given_up": ["pm_1"]}', wall=lambda: 5.0)
    assert gone == SlotMeasure(at=5.0, name="pm_1", status=SlotStatus.MISSING)
