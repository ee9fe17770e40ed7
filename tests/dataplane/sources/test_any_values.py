"""Any value of any type is the same from the snapshot, from the stream, at the server itself, and at the destination.

Every other table's copy is passed on as the source wrote it, and every other session sends row by row.
`POINTSMAN_TEST_EXAMPLES` sets how many random tables are tried; the quick suite tries a few. A failure names the columns.
"""

import asyncio
import contextlib
import os

import psycopg
import pytest
from tests.conftest import Database
from tests.dataplane.laws.source_law import equal, streaming
from tests.dataplane.sinks.changes import SOURCE
from tests.dataplane.sinks.destinations import PostgresDestination, send_singly
from tests.dataplane.sources import any_values
from tests.dataplane.sources.any_values import AnyTable
from tests.dataplane.sources.destination import Destination
from tests.dataplane.sources.origins import PostgresOrigin

EXAMPLES = int(os.environ.get("POINTSMAN_TEST_EXAMPLES", "10"))
COLUMNS_MAX = 8
TABLES_MAX = 40
"""That one session copies and streams."""


def installed(database: Database) -> set[str]:
    """What the server has beyond the types of every server."""
    names = {str(name) for (name,) in database.execute("SELECT extname FROM pg_extension")}
    with contextlib.suppress(psycopg.errors.FeatureNotSupported):
        database.execute("SELECT xml '<a/>'")
        names.add("xml")
    return names


def prepared(database: Database) -> Database:
    """Make the types that are not built in. Those of extensions are not the same numbers in two databases."""
    available = {name for (name,) in database.execute("SELECT name FROM pg_available_extensions")}
    for extension in any_values.EXTENSIONS:
        if extension in available:
            database.execute(f"CREATE EXTENSION {extension} SCHEMA public")
    database.execute(any_values.TYPES_SQL)
    return database


async def compared(origin: PostgresOrigin, destination: Database, made: list[AnyTable]) -> None:
    """Send the tables' rows both ways, and compare what comes out everywhere."""
    copied, streamed = ([f"{way}{number}" for number in range(len(made))] for way in "sc")
    names = [f"public.{name}" for name in (*copied, *streamed)]
    origin.parsed = [f"public.s{number}" for number in range(0, len(made), 2)]
    held = Destination()
    sinks = PostgresDestination(destination)
    try:
        for number, table in enumerate(made):
            origin.run(
                table.creation(copied[number]), *table.insertions(copied[number]), table.creation(streamed[number])
            )
        reading = await streaming(origin, held, *names)
        origin.run(*(f"INSERT INTO public.c{n} SELECT * FROM public.s{n}" for n in range(len(made))))
        await equal(origin, reading, *names)
        sink = sinks.sink()
        await sink.open()
        await sink.begin(SOURCE)
        for change in held.sets:
            await sink.apply(change)
        there = PostgresOrigin(destination)
        for number, table in enumerate(made):
            expected = origin.rows(f"public.s{number}")
            assert len(expected) == len(table.rows)
            for name in (f"public.s{number}", f"public.c{number}"):
                arrived = there.rows(name)
                # Row by row, so that a difference is easy to see.
                for key, row in expected.items():
                    assert held.tables[name][key] == row, table.columns
                    assert arrived[key] == row, table.columns
    finally:
        for source in origin.sources:
            await source.remove(held)
            await source.close()
        origin.sources.clear()
        await sinks.close()
        for database in (origin.database, destination):
            database.execute("DROP SCHEMA IF EXISTS pointsman CASCADE")
            for name in names:
                database.execute(f"DROP TABLE IF EXISTS {name}")


def test_any_value_of_any_type_is_the_same_everywhere(  # type: ignore[no-untyped-def]
    make_database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NaN, infinities, years BC and beyond 9999, empty ranges, bounds of arrays, padding, duplicate keys, and NULL."""
    source, destination = prepared(make_database("source")), prepared(make_database("destination"))
    of = any_values.kinds(source.version, installed(source))
    made = any_values.drawn(any_values.tables(of, COLUMNS_MAX, 6), EXAMPLES)
    # No type depends on luck.
    every = [(name, False) for name in of]
    for start in range(0, len(every), COLUMNS_MAX):
        made += any_values.drawn(any_values.tables_of(of, every[start : start + COLUMNS_MAX], 3), 1)
    for number, start in enumerate(range(0, len(made), TABLES_MAX)):
        send_singly(monkeypatch, 100 * (number % 2))
        asyncio.run(compared(PostgresOrigin(source), destination, made[start : start + TABLES_MAX]))
