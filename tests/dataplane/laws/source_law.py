"""The law of `dataplane.sources.port` as tests: every source is held to them, by a class that says how to reach it.

A member's class has a fixture `origin` that gives an `Origin`. A source is compared by what arrives in a destination
that keeps rows and checkpoint as a transactional sink would.
"""

import asyncio
import random
import resource
from collections.abc import AsyncIterator, Mapping
from types import MappingProxyType

import pytest
from tests.dataplane.sources.destination import Destination, Reading
from tests.dataplane.sources.origins import Origin

from contracts.codes import Code
from dataplane.batch import ChangeBatch, Position, Truncate
from dataplane.failures import Gap

ITEMS = "public.items"
OTHERS = "public.others"


async def opened(
    origin: Origin, destination: Destination, *tables: str, resyncs: Mapping[str, int] = MappingProxyType({})
) -> Reading:
    """A source that is open."""
    source = origin.source(*(tables or (ITEMS,)), resyncs=resyncs)
    await source.open(destination)
    return Reading(source, destination)


async def streaming(origin: Origin, destination: Destination, *tables: str) -> Reading:
    """A source whose snapshot has arrived."""
    reading = await opened(origin, destination, *tables)
    await reading.until(lambda: destination.checkpoint is not None and destination.checkpoint.snapshot_done)
    return reading


async def equal(origin: Origin, reading: Reading, *tables: str) -> None:
    """Read until source and destination hold the same."""
    for table in tables or (ITEMS,):
        expected = origin.rows(table)
        await reading.until(lambda table=table, expected=expected: reading.destination.tables.get(table) == expected)


class SourceLaw:
    """What every source does."""

    @pytest.fixture(autouse=True)
    async def tables(self, origin: Origin) -> AsyncIterator[None]:
        origin.run(
            "CREATE TABLE public.items (id integer PRIMARY KEY, name text, amount numeric)",
            "CREATE TABLE public.others (id integer PRIMARY KEY, name text)",
            "INSERT INTO public.items VALUES (1, 'one', 1.50), (2, NULL, NULL), (3, '', 0)",
        )
        yield
        for source in origin.sources:
            await source.close()

    async def test_a_fresh_start_copies_each_table_after_it_was_emptied(self, origin: Origin) -> None:
        """Also an empty table; then each is said to be settled, and with the last one that all are."""
        destination = Destination()
        reading = await streaming(origin, destination, ITEMS, OTHERS)
        sets = destination.sets
        copies, settled = sets[:2], sets[2:]
        assert [(each.begins, each.ends, each.snapshot_of) for each in copies] == [
            (True, True, ITEMS),
            (True, True, OTHERS),
        ]
        assert all(isinstance(each.items[0], Truncate) and each.items[0].for_snapshot for each in copies)
        assert [(each.snapshot_of, each.row_count, each.snapshot_ends) for each in settled] == [
            (ITEMS, 0, False),
            (OTHERS, 0, True),
        ]
        assert destination.tables == {ITEMS: origin.rows(ITEMS), OTHERS: {}}
        assert reading.source.gauges.tables_copied == 2

    async def test_stream_and_snapshot_neither_overlap_nor_leave_a_gap(self, origin: Origin) -> None:
        """A writer never stops while the pipeline starts."""
        destination = Destination()

        async def write() -> None:
            for number in range(4, 160):
                await asyncio.to_thread(origin.run, f"INSERT INTO public.items VALUES ({number}, 'n', {number})")
                if number == 20:
                    started.set()

        started = asyncio.Event()
        writer = asyncio.create_task(write())
        await started.wait()
        reading = await opened(origin, destination)
        await writer
        await equal(origin, reading)
        assert destination.rows_repeated == 0

    async def test_every_kind_of_change_arrives_in_order(self, origin: Origin) -> None:
        """Inserts, updates, deletes, changed keys and truncates, in one transaction and in several."""
        destination = Destination()
        reading = await streaming(origin, destination, ITEMS, OTHERS)
        origin.run(
            "INSERT INTO public.items VALUES (4, 'four', 4)",
            "UPDATE public.items SET id = 40 WHERE id = 4",
            "UPDATE public.items SET name = 'forty' WHERE id = 40",
            "DELETE FROM public.items WHERE id = 1",
            "INSERT INTO public.items VALUES (1, 'again', 1)",
            "UPDATE public.items SET id = id + 100 WHERE id < 4",
            "INSERT INTO public.others VALUES (1, 'x')",
            "TRUNCATE public.others",
            "INSERT INTO public.others VALUES (2, 'y')",
        )
        origin.run("UPDATE public.items SET amount = NULL")
        await equal(origin, reading, ITEMS, OTHERS)

    async def test_a_transaction_is_never_cut_at_its_end(self, origin: Origin) -> None:
        """What is given up to a set with `ends` holds all or nothing of a transfer between two rows."""
        destination = Destination()
        origin.run("UPDATE public.items SET amount = 100")
        reading = await streaming(origin, destination)
        for number in range(40):
            give, take = random.Random(number).sample((1, 2, 3), 2)
            origin.run(
                f"UPDATE public.items SET amount = amount - {number} WHERE id = {give}",
                f"UPDATE public.items SET amount = amount + {number} WHERE id = {take}",
            )
        expected = origin.rows(ITEMS)
        while destination.tables[ITEMS] != expected:
            await reading.one()
            assert sum(float(str(row["amount"])) for row in destination.tables[ITEMS].values()) == 300

    async def test_a_killed_session_is_followed_by_one_that_loses_and_doubles_nothing(self, origin: Origin) -> None:
        """Whatever was given and not made durable comes again; what was durable does not."""
        destination = Destination()
        reading = await streaming(origin, destination)
        origin.run("INSERT INTO public.items VALUES (10, 'durable', 1)")
        await equal(origin, reading)
        origin.run("INSERT INTO public.items VALUES (11, 'given', 1)")
        anext_change = await anext(reading._changes)
        assert anext_change.row_count == 1
        origin.run("INSERT INTO public.items VALUES (12, 'not given', 1)", "DELETE FROM public.items WHERE id = 1")
        await reading.source.close()
        destination.lose_session()
        again = await opened(origin, destination)
        await equal(origin, again)
        assert destination.rows_repeated == 0
        assert sum(change.row_count for change in destination.sets) == 3

    async def test_a_snapshot_that_was_killed_begins_again(self, origin: Origin) -> None:
        """With what the table holds by then."""
        destination = Destination()
        reading = await opened(origin, destination, ITEMS, OTHERS)
        await reading.one()
        await reading.source.close()
        destination.lose_session()
        origin.run("INSERT INTO public.items VALUES (10, 'later', 1)", "INSERT INTO public.others VALUES (1, 'x')")
        await streaming(origin, destination, ITEMS, OTHERS)
        assert destination.tables == {ITEMS: origin.rows(ITEMS), OTHERS: origin.rows(OTHERS)}

    async def test_only_what_was_confirmed_is_forgotten(self, origin: Origin) -> None:
        """A session that confirmed nothing leaves everything to the next one."""
        destination = Destination()
        reading = await streaming(origin, destination)
        kept = destination.checkpoint
        origin.run("INSERT INTO public.items VALUES (10, 'a', 1)")
        origin.run("INSERT INTO public.items VALUES (11, 'b', 1)")
        given = 0
        while given < 2:
            given += (await anext(reading._changes)).row_count
        assert not reading.source.gauges.idle
        await reading.source.close()
        destination.lose_session()
        destination.checkpoint = kept
        again = await opened(origin, destination)
        await equal(origin, again)
        assert again.source.gauges.idle

    async def test_a_large_transaction_comes_in_parts_within_bounded_memory(self, origin: Origin) -> None:
        """200,000 rows: no part is large, and nothing of it counts as given before its end."""
        destination = Destination()
        reading = await streaming(origin, destination)
        origin.run("INSERT INTO public.items SELECT n, repeat('x', 100), n FROM generate_series(10, 200009) n")
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        rows, parts = 0, 0
        while True:
            change = await anext(reading._changes)
            rows, parts = rows + change.row_count, parts + 1
            assert change.begins == (parts == 1)
            assert change.byte_size < 8 << 20
            assert reading.source.gauges.queue_bytes < 24 << 20
            if change.ends:
                break
        assert rows == 200_000
        assert change.last == Position(change.last.lsn, 199_999)
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 150 << 10

    async def test_a_slow_consumer_bounds_what_is_received(self, origin: Origin) -> None:
        """Nothing is read once the queue is full, and everything arrives later."""
        destination = Destination()
        reading = await streaming(origin, destination)
        for start in range(0, 400, 100):
            origin.run(
                f"INSERT INTO public.items SELECT n, repeat('x', 200000), n FROM generate_series({start + 10}, {start + 109}) n"
            )
        change = await anext(reading._changes)
        reading.destination.apply(change)
        peak = 0
        for _ in range(20):
            await asyncio.sleep(0.02)
            peak = max(peak, reading.source.gauges.queue_bytes)
        assert peak < 32 << 20
        await equal(origin, reading)

    async def test_a_changed_table_is_described_anew(self, origin: Origin) -> None:
        """Rows before and after a new column come in batches with their own schemas."""
        destination = Destination()
        reading = await streaming(origin, destination)
        origin.run("INSERT INTO public.items VALUES (10, 'before', 1)")
        origin.run("ALTER TABLE public.items ADD COLUMN more integer")
        origin.run("INSERT INTO public.items VALUES (11, 'after', 1, 5)")
        await reading.until(lambda: ("11",) in destination.tables[ITEMS])
        batches = [item for change in destination.sets for item in change.items if isinstance(item, ChangeBatch)]
        assert [len(batch.table.columns) for batch in batches[-2:]] == [3, 4]
        assert destination.tables[ITEMS][("11",)]["more"] == "5"
        assert [column.name for column in reading.source.schemas()[0].columns] == ["id", "name", "amount", "more"]

    async def test_a_new_column_tells_what_older_rows_hold_in_it(self, origin: Origin) -> None:
        """A default fills rows for which the source sends nothing."""
        reading = await streaming(origin, Destination())
        origin.run(
            "ALTER TABLE public.items ADD COLUMN more text DEFAULT 'it''s', ADD COLUMN tags integer[] DEFAULT '{1,2}'"
        )
        origin.run("INSERT INTO public.items VALUES (11, 'after', 1, 'own', NULL)")
        await reading.until(lambda: ("11",) in reading.destination.tables[ITEMS])
        assert [column.missing for column in reading.source.schemas()[0].columns] == [None, None, None, "it's", "{1,2}"]

    async def test_a_table_that_is_added_later_is_copied_while_the_others_go_on(self, origin: Origin) -> None:
        """And one that was taken out and put back is copied again."""
        destination = Destination()
        reading = await streaming(origin, destination)
        await reading.source.close()
        origin.run("INSERT INTO public.others SELECT n, 'old' FROM generate_series(1, 50) n")
        origin.run("INSERT INTO public.items VALUES (10, 'meanwhile', 1)")
        again = await opened(origin, destination, ITEMS, OTHERS)
        origin.run("UPDATE public.others SET name = 'new' WHERE id < 5", "DELETE FROM public.others WHERE id = 50")
        origin.run("INSERT INTO public.items VALUES (11, 'more', 1)")
        await equal(origin, again, ITEMS, OTHERS)
        await again.source.close()
        without = await opened(origin, destination)
        origin.run("DELETE FROM public.others WHERE id < 10", "INSERT INTO public.items VALUES (12, 'more', 1)")
        await equal(origin, without)
        await without.source.close()
        back = await opened(origin, destination, ITEMS, OTHERS)
        await equal(origin, back, ITEMS, OTHERS)

    async def test_a_lost_checkpoint_is_a_gap(self, origin: Origin) -> None:
        """Never a silent start at 'now', nor one from the beginning."""
        destination = Destination()
        reading = await streaming(origin, destination)
        await reading.source.close()
        source = origin.source(ITEMS)
        with pytest.raises(Gap) as gap:
            await source.open(Destination())
        assert gap.value.code is Code.GAP_CHECKPOINT_LOST
        await source.close()

    async def test_removal_leaves_nothing_and_may_be_repeated(self, origin: Origin) -> None:
        """A pipeline of the same name then starts from the beginning."""
        destination = Destination()
        reading = await streaming(origin, destination)
        await reading.source.close()
        for _ in range(2):
            source = origin.source(ITEMS)
            await source.remove(destination)
            await source.close()
        await destination.forget()
        again = await streaming(origin, destination)
        await again.source.remove(destination)

    async def test_a_source_may_be_closed_at_any_time_and_twice(self, origin: Origin) -> None:
        """Before it is opened, within the snapshot, and while it waits."""
        source = origin.source(ITEMS)
        await source.close()
        await source.close()
        destination = Destination()
        reading = await opened(origin, destination)
        await reading.source.close()
        reading = await streaming(origin, destination)
        waiting = asyncio.ensure_future(anext(reading._changes))
        await asyncio.sleep(0)
        await reading.source.close()
        await reading.source.close()
        with pytest.raises(StopAsyncIteration):
            await waiting
