"""Copies of a part of a table, and copies that are paused: beside the stream, whatever is written and killed meanwhile."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from random import Random

import pytest
from tests.conftest import Database
from tests.dataplane.sources.destination import Destination, Reading
from tests.dataplane.sources.origins import PostgresOrigin
from tests.dataplane.sources.test_copies import LONG, rows_of, settled

from contracts.backfilling import Backfill, Comparison, Condition
from contracts.codes import Code
from contracts.v2 import SnapshotSettings
from dataplane.batch import Truncate

ITEMS, WORDS, OTHERS = "public.items", "public.words", "public.others"


@pytest.fixture
async def origin(database: Database) -> AsyncIterator[PostgresOrigin]:
    """Tables with a number and a text as their key, whose long values lie out of line."""
    origin = PostgresOrigin(database)
    origin.run(
        "CREATE TABLE public.items (id integer PRIMARY KEY, name text, long text)",
        "ALTER TABLE public.items ALTER COLUMN long SET STORAGE EXTERNAL",
        f"INSERT INTO items SELECT n, 'n' || n % 3, repeat(chr(97 + n % 26), {LONG}) FROM generate_series(1, 60) n",
        'CREATE TABLE public.words (id text COLLATE "C" PRIMARY KEY, name text)',
        "INSERT INTO words SELECT chr(60 + n), 'n' FROM generate_series(1, 20) n",
        "CREATE TABLE public.others (id integer PRIMARY KEY, name text)",
        "INSERT INTO others VALUES (1, 'o')",
    )
    yield origin
    for source in origin.sources:
        await source.close()


def where(column: str, comparison: str, *values: str) -> Condition:
    return Condition(column=column, comparison=Comparison(comparison), values=values)


def asked(number: int, *conditions: Condition, table: str = ITEMS) -> dict[str, Backfill]:
    return {table: Backfill(number=number, where=conditions)}


MIDDLE = where("id", "between", "20", "40")


async def opened(
    origin: PostgresOrigin,
    destination: Destination,
    *tables: str,
    backfills: dict[str, Backfill] | None = None,
    resyncs: dict[str, int] | None = None,
    paused: Sequence[str] = (),
    rows: int = 7,
) -> Reading:
    source = origin.source(
        *(tables or (ITEMS, WORDS, OTHERS)),
        snapshot=SnapshotSettings(chunk_rows=rows, parallelism=1),
        backfills=backfills or {},
        resyncs=resyncs or {},
        paused=paused,
    )
    destination.lose_session()
    await source.open(destination)
    return Reading(source, destination)


async def copied(origin: PostgresOrigin, *tables: str) -> Destination:
    """A destination that has everything, with its session closed."""
    destination = Destination(lenient=True)
    reading = await opened(origin, destination, *tables, rows=1000)
    await reading.until(lambda: settled(destination, *(tables or (ITEMS, WORDS, OTHERS))))
    await reading.source.close()
    return destination


def reached(destination: Destination, table: str = ITEMS) -> int:
    assert destination.checkpoint is not None
    return 0 if table in destination.checkpoint.unsettled else destination.checkpoint.backfilled(table)


def tamper(destination: Destination) -> None:
    """Make rows at the destination that the source does not have so: changed, missing and extra, inside 20..40 and outside."""
    table = destination.tables[ITEMS]
    for key in ("5", "25"):
        table[(key,)] = {**table[(key,)], "name": "tampered"}
    for key in ("6", "26"):
        del table[(key,)]
    destination.tables[WORDS].clear()


async def test_rows_of_a_range_are_mended_and_no_other(origin: PostgresOrigin) -> None:
    """Inside, a row that was changed, one that was deleted and one that only the destination has; outside they stay."""
    destination = await copied(origin)
    origin.run("DELETE FROM items WHERE id IN (7, 27)")
    reading = await opened(origin, destination)
    await reading.until(lambda: ("27",) not in destination.tables[ITEMS])
    await reading.source.close()
    extra = {"id": "27", "name": "extra", "long": "x"}
    destination.tables[ITEMS] |= {("27",): extra, ("7",): {**extra, "id": "7"}}
    tamper(destination)
    before = {key: row for key, row in destination.tables[ITEMS].items() if not 20 <= int(str(key[0])) <= 40}
    again = await opened(origin, destination, backfills=asked(1, MIDDLE))
    assert again.source.gauges.tables_copied == 2
    await again.until(lambda: reached(destination) == 1)
    kept = {key: row for key, row in destination.tables[ITEMS].items() if not 20 <= int(str(key[0])) <= 40}
    mended = {key: row for key, row in destination.tables[ITEMS].items() if key not in kept}
    assert kept == before
    assert mended == {key: row for key, row in origin.rows(ITEMS).items() if 20 <= int(str(key[0])) <= 40}
    assert destination.tables[WORDS] == {}
    assert sum(change.row_count for change in destination.sets) == 20
    assert again.source.gauges.tables_copied == 3
    await again.source.close()
    done = await opened(origin, destination, backfills=asked(1, MIDDLE))
    origin.run("INSERT INTO others VALUES (2, 'after')")
    await done.until(lambda: ("2",) in destination.tables[OTHERS])
    assert not any(change.chunk for change in destination.sets), "what is done was done again"


async def test_rows_that_match_by_another_column_are_written_and_none_deleted(origin: PostgresOrigin) -> None:
    """Both ends may see such a condition differently, so only what the source has is written."""
    destination = await copied(origin)
    tamper(destination)
    destination.tables[ITEMS][("99",)] = {"id": "99", "name": "n1", "long": "x"}
    reading = await opened(origin, destination, backfills=asked(1, where("name", "=", "n1"), where("id", ">=", "20")))
    await reading.until(lambda: reached(destination) == 1)
    table, now = destination.tables[ITEMS], origin.rows(ITEMS)
    assert ("99",) in table
    assert (table[("25",)], table.get(("26",)), table[("5",)]["name"]) == (now[("25",)], None, "tampered")
    assert not any(isinstance(item, Truncate) for change in destination.sets for item in change.items)


async def test_a_text_key_is_gone_over_and_not_emptied(origin: PostgresOrigin) -> None:
    """A range of texts does not mean the same at both ends."""
    destination = await copied(origin)
    destination.tables[WORDS] = {("zz",): {"id": "zz", "name": "extra"}}
    reading = await opened(origin, destination, backfills=asked(1, where("id", ">", "A"), table=WORDS), rows=4)
    await reading.until(lambda: reached(destination, WORDS) == 1)
    expected = {key: row for key, row in origin.rows(WORDS).items() if str(key[0]) > "A"}
    assert destination.tables[WORDS] == {**expected, ("zz",): {"id": "zz", "name": "extra"}}


def write(origin: PostgresOrigin, random: Random) -> None:
    key, other = random.randint(1, 70), random.randint(1, 70)
    origin.run(
        *random.choice(
            [
                [f"INSERT INTO items VALUES ({key}, 'new', repeat('i', {LONG})) ON CONFLICT DO NOTHING"],
                [f"UPDATE items SET name = name || '+' WHERE id = {key}"],
                [f"DELETE FROM items WHERE id = {key}"],
                [f"DELETE FROM items WHERE id = {other}", f"UPDATE items SET id = {other} WHERE id = {key}"],
            ]
        )
    )


@pytest.mark.parametrize("seed", range(3))
async def test_any_seed_ends_with_the_rows_of_the_source(origin: PostgresOrigin, seed: int) -> None:
    """Every kind of change between any two sets, sessions that are killed, and newer requests that replace older ones."""
    random = Random(seed)
    destination = await copied(origin, ITEMS)
    for key in range(20, 41):
        destination.tables[ITEMS].pop((str(key),), None)
    conditions = (MIDDLE,) if seed % 2 else (MIDDLE, where("name", "is not null"))
    number = 1
    reading = await opened(origin, destination, ITEMS, backfills=asked(number, *conditions), rows=3)
    while reached(destination) < number:
        for _ in range(random.randint(0, 2)):
            write(origin, random)
        if random.random() < 0.3:
            if random.random() < 0.5:
                await anext(reading._changes)
            await reading.source.close()
            number += number < 3 and random.random() < 0.3
            reading = await opened(origin, destination, ITEMS, backfills=asked(number, *conditions), rows=3)
            continue
        async with asyncio.timeout(20):
            await reading.one()
    origin.run("INSERT INTO items VALUES (1000, 'last', 'x')")
    await reading.until(lambda: ("1000",) in destination.tables[ITEMS])
    assert rows_of(destination.tables[ITEMS]) == rows_of(origin.rows(ITEMS))


async def test_a_part_goes_on_where_it_was(origin: PostgresOrigin) -> None:
    """Killed in the middle, it reads no more than what was left."""
    destination = await copied(origin)
    reading = await opened(origin, destination, backfills=asked(1, MIDDLE), rows=5)
    for _ in range(4):
        await reading.one()
    await reading.source.close()
    again = await opened(origin, destination, backfills=asked(1, MIDDLE), rows=5)
    await again.until(lambda: reached(destination) == 1)
    assert sum(change.row_count for change in destination.sets) == 1


async def test_a_part_that_is_asked_for_during_a_copy_of_the_whole_comes_behind_it(origin: PostgresOrigin) -> None:
    """Neither starts the other over; a copy of the whole that begins later has the part in it."""
    destination = Destination()
    reading = await opened(origin, destination, ITEMS)
    await reading.one()
    await reading.source.close()
    again = await opened(origin, destination, ITEMS, backfills=asked(1, MIDDLE))
    await again.until(lambda: reached(destination) == 1)
    held = destination.checkpoint
    assert held is not None
    assert (held.cursors[ITEMS].copy, held.cursors[ITEMS].part) == (2, True)
    assert sum(change.row_count for change in destination.sets) == 53 + 21
    assert [change.snapshot_ends for change in destination.sets].count(True) == 1
    await again.source.close()
    whole = await opened(origin, destination, ITEMS, backfills=asked(2, MIDDLE), resyncs={ITEMS: 1})
    await whole.until(lambda: reached(destination) == 2)
    assert sum(change.row_count for change in destination.sets) == 60


MISFITS = (
    where("nothing", "=", "1"),
    where("id", "=", "one"),
    where("id", ">", "99999999999999"),
    where("made", ">", "yesterday"),
    where("place", "<", "(1,2)"),
)


async def test_conditions_that_do_not_fit_are_told_and_hold_up_nothing(origin: PostgresOrigin) -> None:
    """A column that is not there, a value that is none, a word that means another time tomorrow, a type without an order."""
    origin.run("ALTER TABLE items ADD COLUMN made timestamptz, ADD COLUMN place point")
    destination = await copied(origin, ITEMS)
    for number, condition in enumerate(MISFITS):
        reading = await opened(origin, destination, ITEMS, backfills=asked(1 + number, MIDDLE, condition))
        standing = reading.source.gauges.standing
        assert standing is not None
        assert (standing.code, standing.table, standing.column) == (Code.BACKFILL_REFUSED, ITEMS, condition.column)
        origin.run(f"UPDATE items SET name = 'flows {number}' WHERE id = 25")
        await reading.until(lambda number=number: destination.tables[ITEMS][("25",)]["name"] == f"flows {number}")  # type: ignore[misc]
        assert reached(destination) == 0
        await reading.source.close()
    better = await opened(origin, destination, ITEMS, backfills=asked(9, MIDDLE))
    assert better.source.gauges.standing is None
    await better.until(lambda: reached(destination) == 9)


async def test_a_column_that_goes_in_the_middle_leaves_a_table_that_follows_the_stream(origin: PostgresOrigin) -> None:
    """What was copied is settled, the request is told as refused and does not count as done."""
    origin.run("ALTER TABLE items ADD COLUMN more text DEFAULT 'm'")
    destination = await copied(origin)
    backfills = asked(1, MIDDLE, where("more", "=", "m"))
    reading = await opened(origin, destination, backfills=backfills, rows=5)
    await reading.one()
    await reading.source.close()
    origin.run("ALTER TABLE items DROP COLUMN more")
    again = await opened(origin, destination, backfills=backfills, rows=5)
    assert again.source.gauges.standing is not None
    await again.until(lambda: settled(destination, ITEMS))
    assert reached(destination) == 0


async def test_a_paused_copy_waits_while_the_stream_and_other_copies_go_on(origin: PostgresOrigin) -> None:
    """In the middle of a first copy: changes of what is copied arrive, no chunk does, and then it goes on where it was."""
    destination = Destination()
    reading = await opened(origin, destination)
    await reading.one()
    await reading.source.close()
    waiting = await opened(origin, destination, paused=[ITEMS])
    await waiting.until(lambda: settled(destination, WORDS, OTHERS))
    origin.run("UPDATE items SET name = 'flows' WHERE id = 1", "INSERT INTO others VALUES (2, 'o')")
    await waiting.until(lambda: ("2",) in destination.tables[OTHERS])
    assert destination.tables[ITEMS][("1",)]["name"] == "flows"
    assert len(destination.tables[ITEMS]) == 7
    gauges = waiting.source.gauges
    assert gauges.standing is not None
    assert (gauges.standing.code, gauges.standing.table, gauges.tables_copied) == (Code.COPY_PAUSED, ITEMS, 2)
    assert gauges.snapshot is not None
    ((table, rows, paused),) = [(each.table, each.rows, each.paused) for each in gauges.snapshot.tables]
    assert (table, rows, paused) == (ITEMS, 7, True)
    await waiting.source.close()
    again = await opened(origin, destination)
    await again.until(lambda: settled(destination, ITEMS))
    assert destination.tables[ITEMS] == origin.rows(ITEMS)
    assert sum(change.row_count for change in destination.sets if change.chunk) == 53


@pytest.mark.parametrize("again", [{"resyncs": {ITEMS: 1}}, {"backfills": asked(1, MIDDLE)}], ids=["whole", "part"])
async def test_a_copy_that_is_paused_before_it_begins_leaves_the_table_as_it_was(origin, again) -> None:  # type: ignore[no-untyped-def]
    """The table goes on following the stream; nothing counts as done."""
    destination = await copied(origin)
    tamper(destination)
    reading = await opened(origin, destination, paused=[ITEMS], **again)
    origin.run("UPDATE items SET name = 'flows' WHERE id = 30")
    await reading.until(lambda: destination.tables[ITEMS][("30",)]["name"] == "flows")
    assert destination.tables[ITEMS][("25",)]["name"] == "tampered"
    assert reading.source.gauges.tables_copied == 2
    await reading.source.close()
    resumed = await opened(origin, destination, **again)
    await resumed.until(lambda: settled(destination, ITEMS) and resumed.source.gauges.tables_copied == 3)
    assert destination.tables[ITEMS][("25",)] == origin.rows(ITEMS)[("25",)]
