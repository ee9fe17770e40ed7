"""What each change of a table's shape at the source does at a PostgreSQL destination, under each policy.

The page of schema changes in docs/ says the same in a table; each of its rows is one case here, on real servers: three
pipelines, one of each policy, carry the same table to a database each.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple
from uuid import uuid4

import msgspec
import psycopg
import pytest
from tests.conftest import Database
from tests.dataplane.node.documents import until
from tests.dataplane.worker.processes import TENANT, connection, document, new_pipeline_id

from contracts import v2
from contracts.codes import Code
from contracts.delivery import OnSchemaChange
from contracts.v2 import Phase
from dataplane.worker.assembly import Room, assemble
from dataplane.worker.protocol import Assignment, Half, WorkerStatus
from dataplane.worker.runtime import Runtime
from pointsman.local import postgres

PROPAGATE, PAUSE, IGNORE = OnSchemaChange.PROPAGATE, OnSchemaChange.PAUSE, OnSchemaChange.IGNORE
SECONDS_MAX = 20.0


class Stops(NamedTuple):
    """The pipeline stops, and says so."""

    code: Code
    column: str | None


class Goes(NamedTuple):
    """The pipeline goes on, and the destination then has these columns and rows, and leaves out so many columns."""

    columns: tuple[str, ...]
    rows: list[tuple[object, ...]]
    ignored: int = 0


class Case(NamedTuple):
    """A change of `t` (id integer key, name varchar(20), amount integer), and the row that comes after it."""

    change: str
    after: str
    propagate: Stops | Goes
    pause: Stops | Goes
    ignore: Stops | Goes


SAME = ("id", "name", "amount")
A, B = (1, "a", 1), (2, "b", 2)
MISMATCH, CHANGED = Code.SINK_TABLE_MISMATCH, Code.SCHEMA_CHANGED
INSERT_B = "INSERT INTO {t} (id, name, amount) VALUES (2, 'b', 2)"

CASES = {
    "a column is added": Case(
        "ALTER TABLE {t} ADD more text",
        "INSERT INTO {t} VALUES (2, 'b', 2, 'x')",
        Goes((*SAME, "more"), [(*A, None), (*B, "x")]),
        Stops(CHANGED, "more"),
        Goes(SAME, [A, B], 1),
    ),
    "a column is added with a default": Case(
        "ALTER TABLE {t} ADD more text DEFAULT 'd'",
        "INSERT INTO {t} VALUES (2, 'b', 2, 'x')",
        Goes((*SAME, "more"), [(*A, "d"), (*B, "x")]),
        Stops(CHANGED, "more"),
        Goes(SAME, [A, B], 1),
    ),
    "a column is dropped": Case(
        "ALTER TABLE {t} DROP COLUMN amount",
        "INSERT INTO {t} VALUES (2, 'b')",
        Goes(SAME, [A, (2, "b", None)]),
        Stops(CHANGED, "amount"),
        Goes(SAME, [A, (2, "b", None)]),
    ),
    "a column is renamed": Case(
        "ALTER TABLE {t} RENAME COLUMN name TO title",
        "INSERT INTO {t} VALUES (2, 'b', 2)",
        Goes((*SAME, "title"), [(*A, None), (2, None, 2, "b")]),
        Stops(CHANGED, "title"),
        Goes(SAME, [A, (2, None, 2)], 1),
    ),
    "a type is narrowed": Case(
        "ALTER TABLE {t} ALTER name TYPE varchar(10)",
        INSERT_B,
        Goes(SAME, [A, B]),
        Stops(CHANGED, "name"),
        Goes(SAME, [A, B]),
    ),
    "a type is widened": Case(
        "ALTER TABLE {t} ALTER amount TYPE bigint",
        INSERT_B,
        Stops(MISMATCH, "amount"),
        Stops(CHANGED, "amount"),
        Stops(MISMATCH, "amount"),
    ),
    "a type becomes another": Case(
        "ALTER TABLE {t} ALTER amount TYPE text",
        "INSERT INTO {t} VALUES (2, 'b', '2')",
        Stops(MISMATCH, "amount"),
        Stops(CHANGED, "amount"),
        Stops(MISMATCH, "amount"),
    ),
    "the key becomes another": Case(
        "ALTER TABLE {t} DROP CONSTRAINT {t}_pkey, ADD PRIMARY KEY (id, amount)",
        INSERT_B,
        Stops(MISMATCH, "id"),
        Stops(CHANGED, "amount"),
        Stops(MISMATCH, "id"),
    ),
    "NOT NULL is added": Case(
        "ALTER TABLE {t} ALTER name SET NOT NULL",
        INSERT_B,
        Goes(SAME, [A, B]),
        Goes(SAME, [A, B]),
        Goes(SAME, [A, B]),
    ),
    "the table is dropped": Case(
        "DROP TABLE {t}",
        "SELECT 1",
        Goes(SAME, [A]),
        Goes(SAME, [A]),
        Goes(SAME, [A]),
    ),
}


class Flow:
    """One pipeline from `source` to `sink`, in this process."""

    def __init__(
        self, source: Database, sink: Database, tables: list[str], policy: OnSchemaChange, folder: Path
    ) -> None:
        self.sink = sink
        self._servers = {
            name: msgspec.structs.replace(
                connection(name, host="127.0.0.1", port=at.port, database=at.name), secrets={}
            )
            for name, at in (("shop", source), ("warehouse", sink))
        }
        self._pipeline_id, self._folder, self._policy = new_pipeline_id(), folder, policy
        self._document = document(["public." + name for name in tables])
        room = folder / policy.value
        room.mkdir()
        self.runtime = Runtime(self.assignment(), assemble=partial(assemble, room=Room(room)), changed=lambda: None)

    def assignment(self, generation: int = 1, **sink: object) -> Assignment:
        settings = v2.PipelineSink(connection="warehouse", **{"on_schema_change": self._policy, **sink})  # type: ignore[arg-type]
        wanted = msgspec.structs.replace(self._document, sink=settings, generation=generation)
        return Assignment(
            pipeline_id=self._pipeline_id,
            tenant=TENANT,
            half=Half.WHOLE,
            contract=2,
            document=msgspec.json.encode(wanted).decode(),
            source=self._servers["shop"],
            sink=self._servers["warehouse"],
            secrets_folder=str(self._folder),
            owner="node-1",
        )

    @property
    def status(self) -> WorkerStatus:
        return self.runtime.observation.status()

    async def until(self, condition: Callable[[], object]) -> None:
        await until(lambda: bool(condition()), seconds=SECONDS_MAX)

    def marker_arrived(self, number: int) -> bool:
        return bool(self.sink.execute("SELECT 1 FROM marker WHERE id = %s", number))


@pytest.fixture(scope="module")
def databases(postgres_server: postgres.PostgresServer) -> Iterator[Mapping[object, Database]]:
    """The source, and a destination for each policy: made once, because that takes longer than a case."""
    made: dict[object, Database] = {
        each: Database(postgres_server, f"drift_{uuid4().hex[:10]}") for each in OnSchemaChange
    }
    made["source"] = Database(postgres_server, f"drift_{uuid4().hex[:10]}")
    with psycopg.connect(postgres_server.conninfo(), autocommit=True) as connected:
        for each in made.values():
            connected.execute(f'CREATE DATABASE "{each.name}"')
        made["source"].execute("CREATE TABLE marker (id integer PRIMARY KEY)")
        yield made
        for each in made.values():
            connected.execute(f'DROP DATABASE "{each.name}" WITH (FORCE)')


@asynccontextmanager
async def flowing(
    databases: Mapping[object, Database], table: str, folder: Path
) -> AsyncIterator[dict[OnSchemaChange, Flow]]:
    """A pipeline of each policy, streaming `table` and the marker."""
    source = databases["source"]
    for policy in OnSchemaChange:
        databases[policy].execute("DROP SCHEMA IF EXISTS public CASCADE; DROP SCHEMA IF EXISTS pointsman CASCADE;")
        databases[policy].execute("CREATE SCHEMA public")
    source.execute(f"CREATE TABLE {table} (id integer PRIMARY KEY, name varchar(20), amount integer)")
    source.execute(f"INSERT INTO {table} VALUES (1, 'a', 1)")
    flows = {each: Flow(source, databases[each], [table, "marker"], each, folder) for each in OnSchemaChange}
    runs = [asyncio.create_task(flow.runtime.run()) for flow in flows.values()]
    try:
        for flow in flows.values():
            await flow.until(lambda flow=flow: flow.status.phase is Phase.STREAMING)  # type: ignore[misc]
        yield flows
    finally:
        for flow in flows.values():
            flow.runtime.stop()
        await asyncio.gather(*runs)
        source.drop_slots()


async def settled(flow: Flow, expected: Stops | Goes, table: str, marker: int) -> None:
    """Wait for what is expected of one pipeline, and look at the destination."""
    if isinstance(expected, Stops):
        await flow.until(lambda: flow.status.phase is Phase.DEGRADED)
        status = flow.status
        assert (status.code, status.table, status.column) == (expected.code, f"public.{table}", expected.column)
        assert flow.sink.execute(f"SELECT id FROM {table}") == [(1,)]
        return
    await flow.until(lambda: flow.marker_arrived(marker))
    columns = flow.sink.execute(
        "SELECT attname::text FROM pg_attribute WHERE attrelid = %s::regclass AND attnum > 0 ORDER BY attnum", table
    )
    assert tuple(name for (name,) in columns) == expected.columns
    assert flow.sink.execute(f"SELECT {', '.join(expected.columns)} FROM {table} ORDER BY id") == expected.rows
    assert flow.status.phase is Phase.STREAMING
    assert flow.status.telemetry.columns_ignored == expected.ignored


@pytest.mark.parametrize("name", CASES)
async def test_a_change_of_shape_does_what_the_page_says(
    databases: Mapping[object, Database], folder: Path, name: str
) -> None:
    """Under each of the three policies."""
    case, number = CASES[name], list(CASES).index(name)
    table = f"t{number}"
    async with flowing(databases, table, folder) as flows:
        databases["source"].execute(case.change.format(t=table))
        databases["source"].execute(case.after.format(t=table))
        databases["source"].execute("INSERT INTO marker VALUES (%s)", number)
        await settled(flows[PROPAGATE], case.propagate, table, number)
        await settled(flows[PAUSE], case.pause, table, number)
        await settled(flows[IGNORE], case.ignore, table, number)
        if isinstance(case.pause, Stops) and isinstance(case.propagate, Goes):
            # A person has looked, and lets it go on: from there it is as if it had always been carried.
            flows[PAUSE].runtime.assign(flows[PAUSE].assignment(2, resumes=1))
            await settled(flows[PAUSE], case.propagate, table, number)
    databases["source"].execute(f"DROP TABLE IF EXISTS {table}")
