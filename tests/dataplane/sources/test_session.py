"""A session with a real server: GAPs before a row is read, taking over, idling, keepalives, and the server's own ends."""

import asyncio
import time
from collections.abc import AsyncIterator

import psycopg
import pytest
from msgspec.structs import replace
from tests.conftest import Database
from tests.dataplane.laws.source_law import Reading, equal, opened, streaming
from tests.dataplane.sources.destination import Destination
from tests.dataplane.sources.origins import PostgresOrigin

from contracts.codes import Code
from dataplane.checkpoint import SourceIdentity
from dataplane.failures import Gap, Permanent, RetryLater
from dataplane.sources.postgres import slot_watch

ITEMS = "public.items"


@pytest.fixture
async def origin(database: Database) -> AsyncIterator[PostgresOrigin]:
    """A database with one table and one pipeline."""
    origin = PostgresOrigin(database)
    origin.run(
        "CREATE TABLE public.items (id integer PRIMARY KEY, name text)", "INSERT INTO public.items VALUES (1, 'a')"
    )
    yield origin
    for source in origin.sources:
        await source.close()


async def stopped(origin: PostgresOrigin) -> Destination:
    """A pipeline that streamed, and whose worker has ended."""
    destination = Destination()
    reading = await streaming(origin, destination)
    origin.run("INSERT INTO public.items VALUES (2, 'b')")
    await equal(origin, reading)
    await reading.source.close()
    await until(lambda: not origin.slots()[0][1])
    return destination


async def until(done, *, seconds_max: float = 20.0) -> None:  # type: ignore[no-untyped-def]
    """Wait for a state of the server."""
    async with asyncio.timeout(seconds_max):
        while not done():  # noqa: ASYNC110 - the server tells nobody
            await asyncio.sleep(0.02)


async def gap_of(origin: PostgresOrigin, destination: Destination) -> Code:
    """Open, and return the code of the GAP that it is."""
    with pytest.raises(Gap) as gap:
        await opened(origin, destination)
    return gap.value.code


def identity(destination: Destination) -> SourceIdentity:
    assert destination.checkpoint is not None
    assert destination.checkpoint.source is not None
    return destination.checkpoint.source


async def to_the_end(reading: Reading) -> None:
    """Take what comes until the session ends."""
    while True:
        await reading.one()


class TestGaps:
    """What the server shows decides, before a row is read; nothing is made or moved."""

    async def test_a_slot_that_was_dropped(self, origin: PostgresOrigin) -> None:
        destination = await stopped(origin)
        origin.database.execute("SELECT pg_drop_replication_slot(%s)", identity(destination).slot)
        assert await gap_of(origin, destination) is Code.GAP_SLOT_MISSING
        assert origin.slots() == []

    async def test_a_slot_that_was_made_again_with_its_name(self, origin: PostgresOrigin) -> None:
        """The server would start it at its own position and say nothing."""
        destination = await stopped(origin)
        slot = identity(destination).slot
        origin.database.execute("SELECT pg_drop_replication_slot(%s)", slot)
        origin.run("INSERT INTO public.items VALUES (3, 'lost')")
        origin.database.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", slot)
        assert await gap_of(origin, destination) is Code.GAP_SLOT_AHEAD

    async def test_a_slot_that_was_moved(self, origin: PostgresOrigin) -> None:
        destination = await stopped(origin)
        origin.run("INSERT INTO public.items VALUES (3, 'lost')")
        origin.database.execute(
            "SELECT pg_replication_slot_advance(%s, pg_current_wal_lsn())", identity(destination).slot
        )
        assert await gap_of(origin, destination) is Code.GAP_SLOT_AHEAD

    async def test_a_slot_of_another_plugin(self, origin: PostgresOrigin) -> None:
        destination = await stopped(origin)
        slot = identity(destination).slot
        origin.database.execute("SELECT pg_drop_replication_slot(%s)", slot)
        origin.database.execute("SELECT pg_create_physical_replication_slot(%s)", slot)
        try:
            assert await gap_of(origin, destination) is Code.GAP_SLOT_FOREIGN
        finally:
            origin.database.execute("SELECT pg_drop_replication_slot(%s)", slot)

    async def test_another_system_and_another_timeline(self, origin: PostgresOrigin) -> None:
        destination = await stopped(origin)
        kept = destination.checkpoint
        assert kept is not None
        destination.checkpoint = replace(kept, source=replace(identity(destination), system_identifier="1"))
        assert await gap_of(origin, destination) is Code.GAP_OTHER_SYSTEM
        destination.checkpoint = replace(kept, source=replace(kept.source, timeline=9))  # type: ignore[type-var]
        assert await gap_of(origin, destination) is Code.GAP_OLD_PRIMARY

    async def test_a_server_whose_log_ends_before_what_was_confirmed(self, origin: PostgresOrigin) -> None:
        """It was restored from a backup."""
        destination = await stopped(origin)
        assert destination.checkpoint is not None
        destination.checkpoint = replace(destination.checkpoint, confirmed_through=1 << 62)
        assert await gap_of(origin, destination) is Code.GAP_RESTORED

    @pytest.mark.parametrize(
        "statement",
        [
            "DROP PUBLICATION {}",
            "ALTER PUBLICATION {} SET (publish = 'insert')",
            "ALTER PUBLICATION {} SET TABLE public.items WHERE (id > 5)",
        ],
    )
    async def test_a_publication_that_somebody_changed(self, origin: PostgresOrigin, statement: str) -> None:
        destination = await stopped(origin)
        origin.run(statement.format(identity(destination).publication))
        assert await gap_of(origin, destination) is Code.GAP_PUBLICATION_CHANGED


class TestTakingOver:
    """The slot belongs to whoever raised the fence."""

    async def test_a_session_that_still_holds_the_slot_is_ended(self, origin: PostgresOrigin) -> None:
        """A killed worker's may linger for a minute: the next one has it within two seconds, and loses nothing."""
        destination = Destination()
        old = await streaming(origin, destination)
        origin.run("INSERT INTO public.items VALUES (2, 'b')")
        await equal(origin, old)
        origin.run("INSERT INTO public.items VALUES (3, 'c')")
        began = time.monotonic()
        destination.lose_session()
        new = await opened(origin, destination)
        assert time.monotonic() - began < 5
        await equal(origin, new)
        assert (await anext(old._changes)).row_count == 1
        with pytest.raises(RetryLater) as ended:
            await anext(old._changes)
        assert ended.value.code is Code.SOURCE_UNREACHABLE

    async def test_a_slot_that_others_hold_is_busy(self, origin: PostgresOrigin) -> None:
        """A user who may not end the session that holds it waits."""
        name = f"reader_{origin.database.name}"
        origin.run(
            f"CREATE ROLE {name} LOGIN REPLICATION",
            f"GRANT CREATE ON DATABASE {origin.database.name} TO {name}",
            f"ALTER TABLE public.items OWNER TO {name}",
            f"GRANT ALL ON SCHEMA public TO {name}",
        )
        try:
            holder = PostgresOrigin(origin.database, user=name)
            destination = Destination()
            mine = await streaming(holder, destination)
            await mine.source.close()
            theirs = PostgresOrigin(origin.database)
            theirs.pipeline_id = holder.pipeline_id
            await opened(theirs, destination)
            again = holder.source(ITEMS)
            with pytest.raises(RetryLater) as busy:
                await again.open(destination)
            assert busy.value.code is Code.SOURCE_SLOT_BUSY
            for source in (*holder.sources, *theirs.sources):
                await source.close()
            await until(lambda: not origin.slots()[0][1])
            await holder.source(ITEMS).remove(destination)
            await holder.sources[-1].close()
        finally:
            origin.run(f"DROP OWNED BY {name} CASCADE", f"DROP ROLE {name}")


class TestIdling:
    """Nothing of the pipeline's tables changes."""

    async def test_the_slot_follows_when_only_another_database_writes(
        self,
        origin: PostgresOrigin,
        make_database,  # type: ignore[no-untyped-def]
    ) -> None:
        """Keepalives say how far the log is, so nothing has to be written for it: the log itself is let go of, too."""
        destination = await stopped(origin)
        reading = await opened(origin, destination)
        waiting = asyncio.ensure_future(anext(reading._changes))
        other = make_database("other")
        other.execute("CREATE TABLE noise AS SELECT n FROM generate_series(1, 10000) n")
        target = other.execute("SELECT pg_current_wal_lsn()")[0][0]

        def has_followed() -> bool:
            # The server notes by itself every 15 s from where on a slot's log is needed, and with each checkpoint.
            other.execute("CHECKPOINT")
            held = origin.database.execute(
                "SELECT confirmed_flush_lsn >= %s::pg_lsn AND restart_lsn >= %s::pg_lsn FROM pg_replication_slots"
                " WHERE database = current_database()",
                target,
                target,
            )
            return held == [(True,)]

        async with asyncio.timeout(40):
            while not await asyncio.to_thread(has_followed):
                assert not waiting.done()
                await asyncio.sleep(0.2)
        await reading.source.close()
        with pytest.raises(StopAsyncIteration):
            await waiting

    async def test_the_slot_follows_a_busy_server(self, origin: PostgresOrigin) -> None:
        """Durable in the checkpoint first; otherwise the server would keep its log for ever."""
        destination = await stopped(origin)
        origin.run("CREATE TABLE public.noise (id integer)")
        reading = await opened(origin, destination)
        origin.run("INSERT INTO public.noise SELECT generate_series(1, 10000)")
        target = int(origin.database.execute("SELECT pg_current_wal_lsn() - '0/0'")[0][0])  # type: ignore[call-overload]
        waiting = asyncio.ensure_future(anext(reading._changes))
        async with asyncio.timeout(25):
            while int(origin.slots()[0][2]) < target:  # type: ignore[call-overload]
                assert not waiting.done()
                assert destination.checkpoint is not None
                assert int(origin.slots()[0][2]) <= destination.checkpoint.confirmed_through  # type: ignore[call-overload]
                await asyncio.sleep(0.05)
        assert destination.advanced
        assert reading.source.gauges.idle
        await reading.source.close()
        with pytest.raises(StopAsyncIteration):
            await waiting
        again = await opened(origin, destination)
        origin.run("INSERT INTO public.items VALUES (9, 'after')")
        await equal(origin, again)

    async def test_what_is_in_flight_holds_the_slot(self, origin: PostgresOrigin) -> None:
        """However far the server's log has gone on."""
        destination = await stopped(origin)
        reading = await opened(origin, destination)
        origin.run("INSERT INTO public.items VALUES (3, 'in flight')", "CREATE TABLE public.noise (id integer)")
        change = await anext(reading._changes)
        origin.run("INSERT INTO public.noise SELECT generate_series(1, 1000)")
        waiting = asyncio.ensure_future(anext(reading._changes))
        for _ in range(10):
            await asyncio.sleep(0.02)
            assert int(origin.slots()[0][2]) < change.commit_end_lsn  # type: ignore[call-overload]
        assert not reading.source.gauges.idle
        assert reading.source.gauges.lag_bytes > 0
        confirmed = destination.apply(change)
        assert confirmed is not None
        reading.source.confirm(confirmed)
        await until(lambda: int(origin.slots()[0][2]) >= confirmed)
        await reading.source.close()
        with pytest.raises(StopAsyncIteration):
            await waiting

    async def test_it_costs_next_to_no_processor_time(self, origin: PostgresOrigin) -> None:
        """Less than a fiftieth of a second in a second. The rest of this process may be busy in some of them."""
        destination = await stopped(origin)
        reading = await opened(origin, destination)
        waiting = asyncio.ensure_future(anext(reading._changes))
        await until(lambda: reading.source.gauges.idle)
        await asyncio.sleep(0.3)
        spent: list[float] = []
        while len(spent) < 5 and min(spent, default=1.0) >= 0.02:
            before = time.process_time()
            await asyncio.sleep(1)
            spent.append(time.process_time() - before)
        assert min(spent) < 0.02, spent
        await reading.source.close()
        with pytest.raises(StopAsyncIteration):
            await waiting


class TestServer:
    """What the server does by itself."""

    async def test_a_busy_consumer_does_not_lose_the_connection(self, origin: PostgresOrigin) -> None:
        """Status goes out in time though nobody takes anything: longer than the server bears silence."""
        destination = await stopped(origin)
        origin.database.execute(
            f"ALTER ROLE postgres IN DATABASE {origin.database.name} SET wal_sender_timeout = '900ms'"
        )
        reading = await opened(origin, destination)
        origin.run("INSERT INTO public.items SELECT n, repeat('x', 100000) FROM generate_series(10, 400) n")
        time.sleep(2.0)  # noqa: ASYNC251 - the event loop hangs, as it does when a program computes
        await equal(origin, reading)
        assert origin.slots()[0][1]

    async def test_a_cut_connection_ends_the_session_and_the_next_goes_on(self, origin: PostgresOrigin) -> None:
        destination = await stopped(origin)
        reading = await opened(origin, destination)
        origin.database.execute("SELECT pg_terminate_backend(%s)", origin.slots()[0][3])
        with pytest.raises(RetryLater) as cut:
            await reading.one()
        assert (cut.value.code, cut.value.sql_state) == (Code.SOURCE_UNREACHABLE, "57P01")
        await reading.source.close()
        origin.run("INSERT INTO public.items VALUES (3, 'c')")
        await equal(origin, await opened(origin, destination))

    @pytest.mark.parametrize(
        "statements",
        [
            (
                "DROP TABLE public.items",
                "CREATE TABLE public.items (id integer PRIMARY KEY, name text)",
                "INSERT INTO public.items VALUES (7, 'of the new table')",
            ),
            (
                "ALTER PUBLICATION {publication} DROP TABLE public.items",
                "INSERT INTO public.items VALUES (7, 'while it was out')",
                "ALTER PUBLICATION {publication} ADD TABLE public.items",
            ),
        ],
        ids=["made again", "out for a moment"],
    )
    async def test_a_table_that_leaves_the_publication_is_copied_again(
        self, origin: PostgresOrigin, monkeypatch: pytest.MonkeyPatch, statements: tuple[str, ...]
    ) -> None:
        """A stream cannot tell it from a table that rests, so the session ends by itself, and the next one copies."""
        monkeypatch.setattr(slot_watch, "MEASURE_SECONDS", 0.1)
        destination = await stopped(origin)
        reading = await opened(origin, destination)
        origin.run("INSERT INTO public.items VALUES (3, 'c')")
        await equal(origin, reading)
        publication = identity(destination).publication
        origin.run(*(each.format(publication=publication) for each in statements))
        with pytest.raises(RetryLater) as left:
            await to_the_end(reading)
        assert (left.value.code, left.value.table) == (Code.SOURCE_TABLE_LEFT, "public.items")
        await reading.source.close()
        destination.lose_session()
        again = await opened(origin, destination)
        await equal(origin, again)
        origin.run("INSERT INTO public.items VALUES (8, 'and on')")
        await equal(origin, again)

    async def test_a_user_without_rights_is_told_so(self, origin: PostgresOrigin) -> None:
        """Replication, and reading a table."""
        name = f"plain_{origin.database.name}"
        origin.run(f"CREATE ROLE {name} LOGIN")
        try:
            plain = PostgresOrigin(origin.database, user=name)
            with pytest.raises(Permanent) as refused:
                await opened(plain, Destination())
            assert refused.value.code is Code.SOURCE_RIGHTS_MISSING
            origin.run(f"ALTER ROLE {name} REPLICATION")
            with pytest.raises(Permanent) as refused:
                await opened(plain, Destination())
            assert (refused.value.code, refused.value.table) == (Code.SOURCE_RIGHTS_MISSING, ITEMS)
            for source in plain.sources:
                await source.close()
        finally:
            origin.run(f"DROP ROLE {name}")

    async def test_a_server_that_is_not_there_is_tried_later(self, origin: PostgresOrigin) -> None:
        """And so is a database, and a user."""
        for changes, code in (
            ({"port": 1}, Code.SOURCE_UNREACHABLE),
            ({"database": "none"}, Code.SOURCE_UNREACHABLE),
            ({"user": "nobody_here"}, Code.SOURCE_AUTH_FAILED),
        ):
            other = PostgresOrigin(origin.database)
            other.document = replace(other.document, config=replace(other.document.config, **changes))
            with pytest.raises(RetryLater) as failed:
                await opened(other, Destination())
            assert failed.value.code is code
            for source in other.sources:
                await source.close()

    async def test_a_policy_that_hides_rows_is_refused(self, origin: PostgresOrigin) -> None:
        """The stream would have rows that the copy lacks."""
        name = f"limited_{origin.database.name}"
        origin.run(
            f"CREATE ROLE {name} LOGIN REPLICATION",
            f"GRANT CREATE ON DATABASE {origin.database.name} TO {name}",
            f"ALTER TABLE public.items OWNER TO {name}",
            f"GRANT ALL ON SCHEMA public TO {name}",
            "ALTER TABLE public.items ENABLE ROW LEVEL SECURITY",
            "ALTER TABLE public.items FORCE ROW LEVEL SECURITY",
            "CREATE POLICY few ON public.items USING (id > 5)",
        )
        try:
            limited = PostgresOrigin(origin.database, user=name)
            destination = Destination()
            with pytest.raises(Permanent) as refused:
                await streaming(limited, destination)
            assert refused.value.code is Code.SOURCE_RIGHTS_MISSING
            for source in limited.sources:
                await source.close()
            await limited.source(ITEMS).remove(destination)
            await limited.sources[-1].close()
        finally:
            origin.run(f"DROP OWNED BY {name} CASCADE", f"DROP ROLE {name}")

    async def test_the_gauges_tell_what_the_slot_retains(self, origin: PostgresOrigin) -> None:
        destination = await stopped(origin)
        origin.run("INSERT INTO public.items SELECT n, repeat('x', 500) FROM generate_series(10, 3000) n")
        reading = await opened(origin, destination)
        await until(lambda: reading.source.gauges.slot_retained_bytes > 1_000_000)
        assert reading.source.gauges.tables_total == reading.source.gauges.tables_copied == 1


class TestSnapshot:
    """The copy of tables at one moment."""

    async def test_a_table_that_is_locked_is_tried_later(self, origin: PostgresOrigin) -> None:
        """And a close meanwhile ends the attempt."""
        with psycopg.connect(origin.database.conninfo) as locker:
            locker.execute("LOCK TABLE public.items IN ACCESS EXCLUSIVE MODE")
            source = origin.source(ITEMS)
            opening = asyncio.ensure_future(source.open(Destination()))
            await asyncio.sleep(0.3)
            assert not opening.done()
            locker.rollback()
            await opening
