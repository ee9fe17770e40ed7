"""Tables that somebody asked to be copied again: one alone while the others go on, all of them, and kills in between."""

from collections.abc import AsyncIterator

import pytest
from tests.conftest import Database
from tests.dataplane.laws.source_law import ITEMS, OTHERS, equal, opened, streaming
from tests.dataplane.sources.destination import Destination, Reading
from tests.dataplane.sources.origins import PostgresOrigin

from contracts.codes import Code
from dataplane.failures import Gap

ONE = {ITEMS: 1}
BOTH = {ITEMS: 2, OTHERS: 2}


@pytest.fixture
async def origin(database: Database) -> AsyncIterator[PostgresOrigin]:
    """A database with two tables and one pipeline."""
    origin = PostgresOrigin(database)
    origin.run(
        "CREATE TABLE public.items (id integer PRIMARY KEY, name text)",
        "CREATE TABLE public.others (id integer PRIMARY KEY, name text)",
        "INSERT INTO public.items VALUES (1, 'a'), (2, 'b')",
        "INSERT INTO public.others VALUES (1, 'a')",
    )
    yield origin
    for source in origin.sources:
        await source.close()


async def tampered(origin: PostgresOrigin) -> Destination:
    """A destination that streamed both tables, whose worker has ended, and in which somebody changed a table."""
    destination = Destination()
    reading = await streaming(origin, destination, ITEMS, OTHERS)
    await closed(reading)
    destination.tables[ITEMS] = {("77",): {"id": "77", "name": "foreign"}}
    return destination


async def closed(reading: Reading) -> None:
    await reading.source.close()
    reading.destination.lose_session()


def copied(destination: Destination) -> list[str | None]:
    """The tables that were copied since the last session began."""
    return [change.snapshot_of for change in destination.sets if change.chunk is not None and change.chunk.settled]


def reached(destination: Destination) -> dict[str, int]:
    assert destination.checkpoint is not None
    return destination.checkpoint.resynced


async def test_one_table_is_copied_again_while_the_other_goes_on(origin: PostgresOrigin) -> None:
    """What was written before and after the copy is there once; the slot is the same, and the gauges tell of it."""
    destination = await tampered(origin)
    slots = [slot[0] for slot in origin.slots()]
    origin.run("INSERT INTO public.items VALUES (3, 'c')", "INSERT INTO public.others VALUES (2, 'b')")
    reading = await opened(origin, destination, ITEMS, OTHERS, resyncs=ONE)
    assert (reading.source.gauges.tables_total, reading.source.gauges.tables_copied) == (2, 1)
    origin.run("INSERT INTO public.items VALUES (4, 'd')", "INSERT INTO public.others VALUES (3, 'c')")
    await equal(origin, reading, OTHERS, ITEMS)
    await reading.until(lambda: reached(destination) == ONE)
    assert copied(destination) == [ITEMS]
    assert reading.source.gauges.tables_copied == 2
    assert [slot[0] for slot in origin.slots()] == slots
    assert [change for change in destination.sets if change.snapshot_of is None], "the others had to wait"


async def test_a_resync_that_is_done_is_not_done_again(origin: PostgresOrigin) -> None:
    """Also when the worker was killed right after it became durable, before anything else came."""
    destination = await tampered(origin)
    reading = await opened(origin, destination, ITEMS, OTHERS, resyncs=ONE)
    await reading.until(lambda: reached(destination) == ONE)
    await closed(reading)
    again = await opened(origin, destination, ITEMS, OTHERS, resyncs=ONE)
    origin.run("INSERT INTO public.items VALUES (4, 'd')")
    await equal(origin, again, ITEMS, OTHERS)
    assert copied(destination) == []


@pytest.mark.parametrize("resyncs", [ONE, BOTH, {OTHERS: 5}])
async def test_a_resync_that_was_killed_is_finished(origin: PostgresOrigin, resyncs: dict[str, int]) -> None:
    """Before its copy, and with the copy given and not durable."""
    destination = await tampered(origin)
    for _ in range(2):
        reading = await opened(origin, destination, ITEMS, OTHERS, resyncs=resyncs)
        origin.run("UPDATE public.items SET name = name || '+'", "UPDATE public.others SET name = name || '+'")
        change = await anext(reading._changes)
        while change.snapshot_of is None:
            destination.apply(change)
            change = await anext(reading._changes)
        await closed(reading)
    last = await opened(origin, destination, ITEMS, OTHERS, resyncs=resyncs)
    await last.until(lambda: reached(destination) == resyncs)
    await equal(origin, last, *resyncs)
    assert len(origin.slots()) == 1


async def test_of_two_tables_one_that_was_durable_is_not_copied_again(origin: PostgresOrigin) -> None:
    """Of three, so that nothing starts over."""
    origin.run("CREATE TABLE public.third (id integer PRIMARY KEY)")
    tables = (ITEMS, OTHERS, "public.third")
    destination = Destination()
    await closed(await streaming(origin, destination, *tables))
    reading = await opened(origin, destination, *tables, resyncs=BOTH)
    await reading.until(lambda: reached(destination) == {ITEMS: 2})
    await closed(reading)
    again = await opened(origin, destination, *tables, resyncs=BOTH)
    await again.until(lambda: reached(destination) == BOTH)
    assert copied(destination) == [OTHERS]


async def test_all_tables_start_over_with_a_new_slot(origin: PostgresOrigin) -> None:
    """The old one is dropped, and everything is as at the source."""
    destination = await tampered(origin)
    ((old, *_),) = origin.slots()
    reading = await opened(origin, destination, ITEMS, OTHERS, resyncs=BOTH)
    await reading.until(lambda: reached(destination) == BOTH)
    origin.run("INSERT INTO public.items VALUES (4, 'd')")
    await equal(origin, reading, ITEMS, OTHERS)
    ((new, *_),) = origin.slots()
    assert new != old


@pytest.mark.parametrize("damage", ["slot", "publication", "both"])
async def test_a_gap_is_closed_by_a_resync_of_all_tables_and_of_no_fewer(origin: PostgresOrigin, damage: str) -> None:
    """Rows of a table that nobody asked for would be missing otherwise."""
    destination = await tampered(origin)
    if damage != "publication":
        origin.database.drop_slots()
    if damage != "slot":
        origin.run(f"DROP PUBLICATION {destination.checkpoint.source.publication}")  # type: ignore[union-attr]
    origin.run("INSERT INTO public.others VALUES (9, 'in the gap')")
    with pytest.raises(Gap) as gap:
        await opened(origin, destination, ITEMS, OTHERS, resyncs=ONE)
    assert gap.value.code in (Code.GAP_SLOT_MISSING, Code.GAP_PUBLICATION_CHANGED)
    for source in origin.sources:
        await source.close()
    reading = await opened(origin, destination, ITEMS, OTHERS, resyncs=BOTH)
    await equal(origin, reading, ITEMS, OTHERS)
    origin.run("INSERT INTO public.items VALUES (4, 'd')")
    await equal(origin, reading, ITEMS, OTHERS)


async def test_a_lost_checkpoint_is_made_good_by_a_resync_of_all_tables(origin: PostgresOrigin) -> None:
    """The slot that nobody knows any more is dropped."""
    await tampered(origin)
    destination = Destination()
    reading = await opened(origin, destination, ITEMS, OTHERS, resyncs=BOTH)
    await equal(origin, reading, ITEMS, OTHERS)
    assert len(origin.slots()) == 1
