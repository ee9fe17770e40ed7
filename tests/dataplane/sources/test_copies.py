"""Copies in chunks beside the stream: whatever is written and killed meanwhile, the rows end up as the source's."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from random import Random

import numpy as np
import psycopg
import pytest
from tests.conftest import Database
from tests.dataplane.sources.destination import Destination, Reading, Row
from tests.dataplane.sources.origins import PostgresOrigin

from contracts.v2 import SnapshotSettings
from dataplane.batch import ChangeBatch
from dataplane.sources.postgres.moment import Moment

ITEMS, PAIRS, WORDS = "public.items", "public.pairs", "public.words"
LONG = 3000
"""A value of so many bytes is stored out of line, and does not travel when it did not change."""


@pytest.fixture
async def origin(database: Database) -> AsyncIterator[PostgresOrigin]:
    """Tables with a number, two columns, and a text as their key, whose long values lie out of line."""
    origin = PostgresOrigin(database)
    origin.run(
        "CREATE TABLE public.items (id integer PRIMARY KEY, name text, long text)",
        "CREATE TABLE public.pairs (id text, a integer, b timestamptz, name text, PRIMARY KEY (a, b))",
        'CREATE TABLE public.words (id text COLLATE "C" PRIMARY KEY, name text, long text)',
        "ALTER TABLE public.items ALTER COLUMN long SET STORAGE EXTERNAL",
        "ALTER TABLE public.words ALTER COLUMN long SET STORAGE EXTERNAL",
        f"INSERT INTO items SELECT n, 'n' || n, repeat(chr(97 + n % 26), {LONG}) FROM generate_series(1, 60) n",
        "INSERT INTO pairs SELECT n::text, n / 7, now() + n * interval '1 s', 'n' FROM generate_series(1, 40) n",
        f"INSERT INTO words SELECT chr(60 + n) || n, 'n', repeat('w', {LONG}) FROM generate_series(1, 40) n",
    )
    yield origin
    for source in origin.sources:
        await source.close()


def chunked(origin: PostgresOrigin, *tables: str, rows: int = 7, parallelism: int = 1, **resyncs: int) -> object:
    settings = SnapshotSettings(chunk_rows=rows, parallelism=parallelism)
    return origin.source(*tables, snapshot=settings, resyncs={f"public.{name}": n for name, n in resyncs.items()})


async def opened(destination: Destination, source) -> Reading:  # type: ignore[no-untyped-def]
    await source.open(destination)
    return Reading(source, destination)


def settled(destination: Destination, *tables: str) -> bool:
    held = destination.checkpoint
    return held is not None and all(table in held.cursors and held.cursors[table].settled for table in tables)


def write(origin: PostgresOrigin, random: Random) -> None:
    """One transaction of one to four changes, of every kind, within the keys that chunks are cut from."""
    statements = []
    for _ in range(random.randint(1, 4)):
        key, other = random.randint(1, 80), random.randint(1, 80)
        word, third = f"{chr(60 + random.randint(1, 40))}{key}", f"{chr(60 + random.randint(1, 40))}{other}"
        statements += random.choice(
            [
                [f"INSERT INTO items VALUES ({key}, 'new', repeat('i', {LONG})) ON CONFLICT DO NOTHING"],
                [f"UPDATE items SET name = name || '+' WHERE id = {key}"],
                [f"UPDATE items SET long = repeat('u', {LONG + key}) WHERE id = {key}"],
                [f"DELETE FROM items WHERE id = {key}"],
                [f"DELETE FROM items WHERE id = {other}", f"UPDATE items SET id = {other} WHERE id = {key}"],
                [f"DELETE FROM words WHERE id = '{third}'", f"UPDATE words SET id = '{third}' WHERE name = 'n'"]
                if random.random() < 0.05
                else [f"UPDATE words SET name = name || '+' WHERE id > '{word}'"],
                [f"INSERT INTO words VALUES ('{word}', 'new', repeat('i', {LONG})) ON CONFLICT DO NOTHING"],
                [
                    f"DELETE FROM words WHERE id = '{third}'",
                    f"UPDATE words SET id = '{third}' WHERE id = (SELECT max(id) FROM words)",
                ],
                [f"UPDATE pairs SET a = {key} WHERE id = '{other}'"],
                [f"DELETE FROM pairs WHERE id = '{key}'"],
                [f"INSERT INTO pairs VALUES ('{key}', {other}, now(), 'x')"] if random.random() < 0.5 else ["SELECT 1"],
                [
                    "TRUNCATE items",
                    f"INSERT INTO items SELECT n, 't', repeat('t', {LONG}) FROM generate_series(1, 50) n",
                ]
                if random.random() < 0.05
                else ["SELECT 1"],
            ]
        )
    # A key that is taken: the transaction leaves nothing.
    with contextlib.suppress(psycopg.errors.UniqueViolation):
        origin.run(*statements)
    # Rows are looked at by their id, which is not the key of this table.
    origin.database.execute("DELETE FROM pairs p USING pairs q WHERE p.id = q.id AND p.ctid > q.ctid")


def rows_of(table: Mapping[object, Row]) -> list[tuple[str | None, ...]]:
    """The rows of a table, whatever they are known by."""
    return sorted((tuple(row.values()) for row in table.values()), key=repr)


@pytest.mark.parametrize("seed", range(6))
async def test_any_seed_ends_with_the_rows_of_the_source(origin: PostgresOrigin, seed: int) -> None:
    """Every kind of change between any two sets, and sessions that are killed: given, not durable; durable, not told."""
    random = Random(seed)
    destination = Destination()
    tables = (ITEMS, PAIRS, WORDS)
    parallelism = random.randint(1, 3)
    origin.parsed = random.choice([None, (), (ITEMS,)])
    reading = await opened(destination, chunked(origin, *tables, parallelism=parallelism))
    chunks = 0
    while not settled(destination, *tables):
        for _ in range(random.randint(0, 3)):
            write(origin, random)
        if random.random() < 0.15:
            if random.random() < 0.5:
                await anext(reading._changes)
            await reading.source.close()
            destination.lose_session()
            reading = await opened(destination, chunked(origin, *tables, parallelism=parallelism))
            continue
        async with asyncio.timeout(20):
            change = await reading.one()
        chunks += change.ends and change.chunk is not None
    origin.run("INSERT INTO pairs VALUES ('last', -1, now(), 'x')")
    await reading.until(lambda: any(row["id"] == "last" for row in destination.tables[PAIRS].values()))
    for table in tables:
        assert rows_of(destination.tables[table]) == rows_of(origin.rows(table)), table
    assert chunks > 12


async def test_a_copy_goes_on_where_it_was(origin: PostgresOrigin) -> None:
    """Killed at nine tenths, it reads no more than what was left."""
    destination = Destination()
    reading = await opened(destination, chunked(origin, ITEMS, rows=6))
    await reading.until(lambda: len(destination.tables.get(ITEMS, {})) >= 54)
    await reading.source.close()
    destination.lose_session()
    again = await opened(destination, chunked(origin, ITEMS, rows=6))
    assert again.source.gauges.tables_copied == 0
    await again.until(lambda: settled(destination, ITEMS))
    assert sum(change.row_count for change in destination.sets) <= 6
    assert destination.tables[ITEMS] == origin.rows(ITEMS)
    assert again.source.gauges.tables_copied == 1


async def test_no_chunk_is_larger_than_asked_for(origin: PostgresOrigin) -> None:
    """Chunks end by the order of the key's type: 10 comes behind 9 for a number, and before it for a text."""
    destination = Destination()
    reading = await opened(destination, chunked(origin, ITEMS, PAIRS, WORDS, rows=7))
    await reading.until(lambda: settled(destination, ITEMS, PAIRS, WORDS))
    chunks = [change for change in destination.sets if change.chunk is not None and not change.chunk.settled]
    sizes = {table: [change.row_count for change in chunks if change.snapshot_of == table] for table in (ITEMS, PAIRS)}
    assert sizes == {ITEMS: [7] * 8 + [4], PAIRS: [7] * 5 + [5]}
    assert max(change.row_count for change in chunks) == 7


async def test_other_tables_do_not_wait_for_a_copy(origin: PostgresOrigin) -> None:
    """A row of a table that is copied arrives before the copy of the next one has ended."""
    destination = Destination()
    reading = await opened(destination, chunked(origin, PAIRS, ITEMS, rows=3))
    await reading.until(lambda: settled(destination, PAIRS))
    origin.run("INSERT INTO pairs VALUES ('new', 999, now(), 'x')")
    await reading.until(lambda: ("new",) in {(key[0],) for key in _ids(destination)})
    held = destination.checkpoint
    assert held is not None
    assert not held.cursors.get(ITEMS, held.cursors[PAIRS]).settled or ITEMS not in held.cursors


def _ids(destination: Destination) -> set[tuple[str | None]]:
    return {(row["id"],) for row in destination.tables[PAIRS].values()}


async def test_a_column_that_comes_during_the_copy_has_its_value_in_every_row(origin: PostgresOrigin) -> None:
    """Rows that were copied before it, and those of the stream from before it, get what the source has in them."""
    destination = Destination()
    reading = await opened(destination, chunked(origin, ITEMS))
    await reading.one()
    origin.run("INSERT INTO items VALUES (-1, 'before', 'x')")
    origin.run("ALTER TABLE items ADD COLUMN more text DEFAULT 'm'")
    origin.run("INSERT INTO items VALUES (-2, 'after', 'x', 'own')")
    await reading.until(lambda: settled(destination, ITEMS))
    shapes = [
        len(item.table.columns) for change in destination.sets for item in change.items if isinstance(item, ChangeBatch)
    ]
    assert shapes == sorted(shapes), "rows of an older shape came behind those of a newer one"
    assert shapes[-1] == 4


async def test_a_key_that_changes_during_the_copy_starts_it_over(origin: PostgresOrigin) -> None:
    """A cursor of the old key means nothing any more."""
    destination = Destination()
    reading = await opened(destination, chunked(origin, ITEMS))
    await reading.one()
    origin.run(
        "ALTER TABLE items DROP CONSTRAINT items_pkey, ALTER COLUMN name SET NOT NULL, ADD PRIMARY KEY (name, id)"
    )
    await reading.until(lambda: settled(destination, ITEMS))
    held = destination.checkpoint
    assert held is not None
    assert held.cursors[ITEMS].copy == 2
    assert len(destination.tables[ITEMS]) == 60


async def test_what_a_snapshot_does_not_see_yet_holds_the_copy_back(
    origin: PostgresOrigin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A commit that waits for a standby is in the stream and not visible: no chunk is read until it is; others stream."""
    destination = Destination()
    blind = True
    sees = Moment.sees
    monkeypatch.setattr(Moment, "sees", lambda self, of: sees(self, of) if not blind else np.zeros(len(of), np.bool_))
    reading = await opened(destination, chunked(origin, PAIRS, ITEMS))
    await reading.one()
    origin.run("INSERT INTO pairs VALUES ('seen', -1, now(), 'x')", "INSERT INTO items VALUES (-1, 'new', 'x')")
    change = await reading.one()
    while change.chunk is not None:
        change = await reading.one()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(_nothing_but_settled(reading), 0.5)
    blind = False
    await reading.source.close()
    destination.lose_session()
    again = await opened(destination, chunked(origin, PAIRS, ITEMS))
    await again.until(lambda: settled(destination, PAIRS, ITEMS))
    assert rows_of(destination.tables[ITEMS]) == rows_of(origin.rows(ITEMS))
    assert rows_of(destination.tables[PAIRS]) == rows_of(origin.rows(PAIRS))


async def _nothing_but_settled(reading: Reading) -> None:
    while True:
        change = await anext(reading._changes)
        assert change.chunk is not None
        assert change.chunk.settled, "a chunk was read at a moment that did not see what was given"
