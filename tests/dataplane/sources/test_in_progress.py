"""A server that sends transactions before they commit gives the same as one that waits, and nothing is lost on the way."""

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import psycopg
import pytest
from tests.conftest import Database
from tests.dataplane.laws.source_law import equal, opened, streaming
from tests.dataplane.sources.destination import Destination, Reading
from tests.dataplane.sources.origins import PostgresOrigin
from tests.dataplane.sources.reference import Decoded
from tests.dataplane.sources.test_decoder import flat, timeless

from contracts.codes import Code
from dataplane.failures import RetryLater
from dataplane.sources.postgres import PostgresSource
from dataplane.sources.postgres import source as source_module
from dataplane.sources.postgres.spill import Spill

TABLES = ("public.items", "public.docs")
LARGE = "INSERT INTO public.items SELECT n, repeat('x', 200), n FROM generate_series({}, {}) n"


@pytest.fixture
async def origin(database: Database) -> AsyncIterator[PostgresOrigin]:
    """A database whose server keeps next to nothing of a transaction in memory: all but the smallest come in progress."""
    database.execute(f"ALTER DATABASE {database.name} SET logical_decoding_work_mem = '64kB'")
    origin = PostgresOrigin(database)
    origin.run(
        "CREATE TABLE public.items (id integer PRIMARY KEY, name text, amount numeric)",
        "CREATE TABLE public.docs (id integer PRIMARY KEY, body text, title text)",
        "ALTER TABLE public.docs ALTER body SET STORAGE EXTERNAL",
        "INSERT INTO public.docs VALUES (1, repeat('b', 20000), 'a')",
    )
    yield origin
    for source in origin.sources:
        await source.close()


def full(tmp_path: Path) -> Spill:
    """A disk that was full a moment ago: the source then asks for nothing in progress."""
    spill = Spill(tmp_path)
    spill.full("test")
    assert not spill.is_available
    return spill


def streamed_transactions(origin: PostgresOrigin) -> int:
    """How many transactions this database's slots sent in progress."""
    ((count,),) = origin.database.execute(
        "SELECT coalesce(sum(stream_txns), 0)::int FROM pg_stat_replication_slots JOIN pg_replication_slots"
        " USING (slot_name) WHERE database = current_database()"
    )
    assert isinstance(count, int)
    return count


async def rows_until(reading: Reading, id_: str) -> list[Decoded]:
    """Read until the row of `items` with this key is there; return everything that was streamed, but for what was copied."""
    await reading.until(lambda: (id_,) in reading.destination.tables["public.items"])
    return timeless(flat([each for each in reading.destination.sets if each.snapshot_of is None]))


def busy(origin: PostgresOrigin) -> None:
    """Commit, abort and prepare transactions that overlap, with all that rows can do."""
    with (
        psycopg.connect(origin.database.conninfo) as one,
        psycopg.connect(origin.database.conninfo) as two,
        psycopg.connect(origin.database.conninfo) as three,
    ):
        one.execute(LARGE.format(1, 1000))
        two.execute(LARGE.format(5001, 6000))
        one.execute("SAVEPOINT a")
        one.execute(LARGE.format(1001, 2000))
        one.execute("SAVEPOINT b")
        one.execute("UPDATE public.items SET amount = -amount WHERE id <= 500")
        one.execute("RELEASE b")
        three.execute(LARGE.format(7001, 8000))
        one.execute("ROLLBACK TO a")
        one.execute("UPDATE public.items SET id = id + 100000 WHERE id BETWEEN 1 AND 100")
        two.execute("UPDATE public.docs SET title = 'unchanged body' WHERE id = 1")
        two.execute(
            "INSERT INTO public.docs VALUES (1, 'x', 'y') ON CONFLICT (id) DO UPDATE SET title = excluded.title"
        )
        two.execute("INSERT INTO public.docs SELECT n, repeat('z', 9000), 'long' FROM generate_series(2, 40) n")
        origin.run("INSERT INTO public.items VALUES (9999, 'between', 1)")
        two.execute("DELETE FROM public.items WHERE id % 2 = 0 AND id BETWEEN 5001 AND 6000")
        three.rollback()
        with two.cursor().copy("COPY public.items FROM STDIN") as copy:
            for number in range(20_000, 21_000):
                copy.write_row([number, "copied", number])
        one.execute(
            "DO $$ BEGIN FOR n IN 1..300 LOOP BEGIN INSERT INTO public.items VALUES (30000 + n, repeat('e', 500), n);"
            " IF n % 3 = 0 THEN RAISE division_by_zero; END IF; EXCEPTION WHEN division_by_zero THEN NULL; END; END LOOP;"
            " END $$"
        )
        two.commit()
        one.execute("DELETE FROM public.items WHERE id > 100050 AND id < 110000")
        one.commit()
        one.execute("ALTER TABLE public.items ADD COLUMN more text DEFAULT 'm'")
        one.execute("INSERT INTO public.items SELECT n, 'wide', n, 'w' FROM generate_series(40001, 41000) n")
        one.commit()
        two.execute("TRUNCATE public.docs")
        two.execute("INSERT INTO public.docs SELECT n, repeat('t', 5000), 'after' FROM generate_series(1, 50) n")
        two.commit()


class TestBothProtocols:
    """The same transactions, read by two sources: one asks for transactions in progress, the other does not."""

    async def test_rows_and_positions_are_the_same(self, origin: PostgresOrigin, tmp_path: Path) -> None:
        """So a restart may change between the two at any time."""
        plain = PostgresOrigin(origin.database)
        first, second = Destination(), Destination()
        source = PostgresSource(
            plain.document, None, pipeline_id=plain.pipeline_id, tables=TABLES, spill=full(tmp_path)
        )
        origin.sources.append(source)
        await source.open(first)
        waiting = Reading(source, first)
        await waiting.until(lambda: first.checkpoint is not None and first.checkpoint.snapshot_done)
        assert streamed_transactions(origin) == 0
        early = await streaming(origin, second, *TABLES)
        await asyncio.to_thread(busy, origin)
        origin.run("INSERT INTO public.items VALUES (77777, 'last', 0)")
        expected = await rows_until(waiting, "77777")
        rows = await rows_until(early, "77777")
        assert len(rows) > 4_000
        assert rows == expected
        assert first.tables == second.tables
        assert set(second.tables["public.items"]) == set(origin.rows("public.items"))
        await early.source.close()
        await source.close()
        assert streamed_transactions(origin) >= 4

    async def test_a_prepared_transaction_comes_when_it_is_committed(self, database: Database) -> None:
        """Not when it is prepared, and not at all when it is rolled back."""
        origin = PostgresOrigin(database)
        origin.run("CREATE TABLE public.items (id integer PRIMARY KEY, name text, amount numeric)")
        database.execute(f"ALTER DATABASE {database.name} SET logical_decoding_work_mem = '64kB'")
        destination = Destination()
        reading = await streaming(origin, destination)
        for name, first in (("kept", 1), ("gone", 2001)):
            with psycopg.connect(database.conninfo, autocommit=True) as connection:
                connection.execute("BEGIN")
                connection.execute(LARGE.format(first, first + 999))
                connection.execute(f"PREPARE TRANSACTION '{name}'")
        origin.run("INSERT INTO public.items VALUES (9000, 'between', 0)")
        await reading.until(lambda: ("9000",) in destination.tables["public.items"])
        assert len(destination.tables["public.items"]) == 1
        database.execute("ROLLBACK PREPARED 'gone'")
        database.execute("COMMIT PREPARED 'kept'")
        await equal(origin, reading)
        assert len(destination.tables["public.items"]) == 1001
        await reading.source.close()


class TestATransactionInProgress:
    """One that stays open while others come and go."""

    async def test_it_holds_nothing_back_and_comes_whole_to_a_later_session(
        self, origin: PostgresOrigin, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What others commit is confirmed; a session that ends meanwhile costs nothing of it."""
        monkeypatch.setattr("dataplane.sources.postgres.marks.IDLE_ADVANCE_SECONDS", 0.1)
        monkeypatch.setattr(source_module, "IN_PROGRESS_BYTES_MAX", 100_000)
        destination = Destination()
        reading = await streaming(origin, destination, *TABLES)
        with psycopg.connect(origin.database.conninfo) as connection:
            connection.execute(LARGE.format(1, 3000))
            begun = origin.database.execute("SELECT pg_current_wal_lsn() - '0/0'")[0][0]
            origin.run("INSERT INTO public.items VALUES (9001, 'while it is open', 0)")
            await reading.until(lambda: ("9001",) in destination.tables["public.items"])
            source = reading.source
            assert isinstance(source, PostgresSource)
            assert source._room.used_bytes > 0
            assert source.gauges.idle
            confirmed = destination.checkpoint
            assert confirmed is not None
            assert confirmed.confirmed_through > int(str(begun))
            await source.close()
            destination.lose_session()
            reading = await opened(origin, destination, *TABLES)
            connection.execute(LARGE.format(3001, 4000))
            connection.commit()
        await equal(origin, reading, *TABLES)
        assert len(destination.tables["public.items"]) == 4001

    async def test_a_disk_that_is_full_leaves_it_to_the_server(self, origin: PostgresOrigin, tmp_path: Path) -> None:
        """The session ends with a code; the next one asks for nothing in progress, and nothing is missing."""
        destination = Destination()
        spill = Spill(tmp_path, bytes_max=1 << 20)

        def source() -> PostgresSource:
            made = PostgresSource(
                origin.document, None, pipeline_id=origin.pipeline_id, tables=["public.items"], spill=spill
            )
            origin.sources.append(made)
            return made

        first = source()
        await first.open(destination)
        reading = Reading(first, destination)
        await reading.until(lambda: destination.checkpoint is not None and destination.checkpoint.snapshot_done)
        origin.run("INSERT INTO public.items SELECT n, repeat('x', 2000), n FROM generate_series(1, 20000) n")
        with pytest.raises(RetryLater) as refused:
            await reading.until(lambda: False)
        assert refused.value.code is Code.SOURCE_SPILL_FAILED
        await first.close()
        destination.lose_session()
        second = source()
        await second.open(destination)
        await equal(origin, Reading(second, destination))
        assert os.listdir(tmp_path) == []


class TestLogicalMessages:
    """`pg_logical_emit_message`, ours and those of others."""

    async def test_a_message_moves_an_idle_slot_and_no_row(self, origin: PostgresOrigin) -> None:
        """Ours is heard with its content, inside and outside of a transaction; ordinals are those of rows alone."""
        destination = Destination()
        reading = await streaming(origin, destination, "public.items")
        source = reading.source
        assert isinstance(source, PostgresSource)
        origin.run(
            "SELECT pg_logical_emit_message(true, 'outbox', repeat('x', 3000000))",
            "INSERT INTO public.items VALUES (1, 'a', 1)",
            "SELECT pg_logical_emit_message(true, 'pointsman', 'first')",
            "SELECT pg_logical_emit_message(false, 'other', 'x')",
            "INSERT INTO public.items VALUES (2, 'b', 2)",
        )
        await equal(origin, reading, "public.items")
        assert destination.sets[-1].last.ordinal == 1
        heard = source._assembler.heard
        assert heard is not None
        assert heard.content == b"first"
        ((lsn,),) = origin.database.execute("SELECT pg_logical_emit_message(false, 'pointsman', 'second') - '0/0'")
        origin.run("INSERT INTO public.items VALUES (3, 'c', 3)")
        await equal(origin, reading, "public.items")
        heard = source._assembler.heard
        assert heard is not None
        assert (heard.content, heard.transactional) == (b"second", False)
        assert heard.lsn <= int(str(lsn)) <= source._assembler.reached
