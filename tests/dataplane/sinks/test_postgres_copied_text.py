"""Rows of a copy that come as the source wrote them end up like any others, and so do those that are refused."""

import dataclasses
from collections.abc import AsyncIterator

import pytest
from tests.dataplane.sinks.changes import SOURCE, Log, Row, table
from tests.dataplane.sinks.destinations import PostgresDestination, send_singly

from contracts.codes import Code
from contracts.delivery import OnRefused, OnSchemaChange
from contracts.v2 import PipelineSink
from dataplane.batch import ChangeBatch, ChangeSet, CopiedBatch, TableSchema
from dataplane.failures import Permanent
from dataplane.sinks.postgres import copy_text

ITEMS = table("items", {"id": "integer", "name": "character varying(9)", "note": "text"})
ROWS: list[Row] = [
    {"id": "1", "name": "tab\t", "note": "two\nlines\r"},
    {"id": "2", "name": "\\N", "note": None},
    {"id": "3", "name": "", "note": "\\."},
    {"id": "4", "name": "äö€", "note": "x" * 3_000_000},
]


@pytest.fixture
async def destination(database, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[PostgresDestination]:  # type: ignore[no-untyped-def]
    """Everything goes by COPY."""
    send_singly(monkeypatch, 0)
    made = PostgresDestination(database)
    yield made
    await made.close()


def as_text(change: ChangeSet) -> ChangeSet:
    """The same set with its rows unparsed."""
    return dataclasses.replace(
        change, items=tuple(_as_text(item) if isinstance(item, ChangeBatch) else item for item in change.items)
    )


def _as_text(batch: ChangeBatch) -> CopiedBatch:
    text = b"".join(copy_text.blocks(batch.rows.columns, len(batch)))
    arrays = (batch.ops, batch.commit_lsns, batch.ordinals, batch.commit_times)
    return CopiedBatch(batch.table, None, *arrays, text=text, parse=lambda _: batch.rows)


def chunk(rows: list[Row], of: TableSchema = ITEMS, index: int = 0) -> ChangeSet:
    return as_text(Log().chunk(of, rows, index=index, upto=None))


async def test_every_value_arrives_as_it_was(destination: PostgresDestination) -> None:
    """Tabs, newlines, backslashes, NULL and the empty string, and a block that ends in the middle of a value."""
    sink = destination.sink()
    await sink.open()
    await sink.begin(SOURCE)
    await sink.apply(chunk(ROWS))
    assert destination.rows(ITEMS) == ROWS
    held = await sink.load()
    assert held is not None
    assert (held.cursors["public.items"].rows, held.cursors["public.items"].read) == (4, True)


async def test_a_refused_row_becomes_a_letter_and_the_others_arrive(destination: PostgresDestination) -> None:
    """The rows are parsed then, and sent one by one."""
    sink = destination.with_settings(PipelineSink(connection="warehouse", on_refused=OnRefused.DEAD_LETTER))
    await sink.open()
    await sink.begin(SOURCE)
    await sink.apply(chunk([ROWS[0], {"id": "7", "name": "much too long", "note": None}, ROWS[2]]))
    assert destination.rows(ITEMS) == [ROWS[0], ROWS[2]]
    assert [(lies.key, lies.code) for lies in destination.letters()] == [("7", Code.SINK_VALUE_REFUSED)]


async def test_a_refused_row_stops_the_pipeline_where_that_is_asked_for(destination: PostgresDestination) -> None:
    """Table and column are named, and none of the chunk stays."""
    sink = destination.sink()
    await sink.open()
    await sink.begin(SOURCE)
    with pytest.raises(Permanent) as caught:
        await sink.apply(chunk([ROWS[0], {"id": "7", "name": "much too long", "note": None}]))
    assert (caught.value.code, caught.value.table, caught.value.column) == (
        Code.SINK_VALUE_REFUSED,
        "public.items",
        "name",
    )
    assert destination.rows(ITEMS) == []


async def test_a_column_that_the_destination_ignores_is_left_out(destination: PostgresDestination) -> None:
    """The text has one column more than the table that was there before."""
    destination.database.execute("CREATE TABLE items (id integer PRIMARY KEY, name text)")
    sink = destination.with_settings(PipelineSink(connection="warehouse", on_schema_change=OnSchemaChange.IGNORE))
    await sink.open()
    await sink.begin(SOURCE)
    await sink.apply(chunk(ROWS[:3]))
    assert destination.rows(ITEMS, ["id", "name"]) == [{"id": row["id"], "name": row["name"]} for row in ROWS[:3]]
