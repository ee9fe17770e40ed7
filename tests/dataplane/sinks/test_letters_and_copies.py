"""Rows that the destination refuses while their table is copied: in a chunk, between two chunks, and what a replay makes of it."""

from collections.abc import AsyncIterator

import pytest
from tests.dataplane.laws.letter_law import BEHIND, POISON, REFUSED, SETTINGS, Lies
from tests.dataplane.sinks.changes import SOURCE, Log, delete, insert, table, update
from tests.dataplane.sinks.destinations import PostgresDestination

from contracts.backfilling import Comparison, Condition
from dataplane.sinks.port import Sink
from dataplane.sinks.postgres.letter_desk import Choice, LetterDesk, Replayed

WIDE = table("wide", {"id": "integer", "name": "text", "more": "text"})


@pytest.fixture
async def destination(database) -> AsyncIterator[PostgresDestination]:  # type: ignore[no-untyped-def]
    made = PostgresDestination(database)
    yield made
    await made.close()


async def replay(destination: PostgresDestination) -> Replayed:
    """Mend the destination, and apply every letter."""
    destination.refuse(WIDE, None)
    async with LetterDesk(destination.document(), None, pipeline_id="p") as desk:
        return await desk.replay(Choice())


async def opened(destination: PostgresDestination) -> Sink:
    sink = destination.with_settings(SETTINGS)
    await sink.open()
    await sink.begin(SOURCE)
    return sink


def rows(destination: PostgresDestination) -> list[tuple[str | None, ...]]:
    return [tuple(row.values()) for row in destination.rows(WIDE)]


async def test_a_refused_row_of_a_chunk_lies_down_and_the_copy_goes_on(destination: PostgresDestination) -> None:
    """The chunk's other rows and its cursor are durable; a new owner does not copy it again, and keeps the key's order."""
    sink, log = await opened(destination), Log()
    await sink.apply(log.chunk(WIDE, [{"id": "1", "name": "a"}], index=0, upto="1"))
    destination.refuse(WIDE, POISON)
    second = log.chunk(
        WIDE, [{"id": "2", "name": POISON, "more": "m"}, {"id": "3", "name": "c"}], index=1, after="1", upto="3"
    )
    await sink.apply(second)
    await sink.close()
    sink = destination.with_settings(SETTINGS)
    held = await sink.open()
    assert held is not None
    assert held.cursors[WIDE.table].chunks == 2
    await sink.apply(second)  # it comes again, and is dropped with its letter
    await sink.apply(log.chunk(WIDE, [{"id": "4", "name": POISON}], index=2, after="3", upto=None))
    await sink.apply(log.settled(WIDE, index=3, last=True))
    await sink.apply(log.transaction(update(WIDE, id="2", name="b", unchanged=["more"]), delete(WIDE, id="4")))
    assert destination.letters() == [
        Lies("insert", "2", REFUSED),
        Lies("insert", "4", REFUSED),
        Lies("update", "2", BEHIND),
        Lies("delete", "4", BEHIND),
    ]
    assert rows(destination) == [("1", "a", None), ("3", "c", None)]
    assert await replay(destination) == Replayed(applied=4)
    assert rows(destination) == [("1", "a", None), ("2", "b", "m"), ("3", "c", None)]
    await sink.close()


@pytest.mark.parametrize("gone", [False, True], ids=["chunk has it", "chunk has it not"])
async def test_a_letter_whose_row_a_chunk_took_away_does_not_stop_those_behind_it(
    destination: PostgresDestination, gone: bool
) -> None:
    """An update that left a value out finds no row any more; the chunk's row, or the delete that follows, overtakes it."""
    sink, log = await opened(destination), Log()
    await sink.apply(log.chunk(WIDE, [{"id": "7", "name": "a", "more": "m"}], index=0, upto=None))
    await sink.apply(log.settled(WIDE, index=1, last=True))
    destination.refuse(WIDE, POISON)
    await sink.apply(log.chunk(WIDE, [], index=0, upto="5", copy=2, resync=1))
    await sink.apply(log.transaction(update(WIDE, id="7", name=POISON, unchanged=["more"])))
    await sink.apply(log.transaction(update(WIDE, id="7", name="b", unchanged=["more"])))
    found = [] if gone else [{"id": "7", "name": "c", "more": "n"}]
    await sink.apply(log.chunk(WIDE, found, index=1, after="5", upto=None, copy=2, resync=1))
    last = delete(WIDE, id="7") if gone else update(WIDE, id="7", name="d", unchanged=["more"])
    await sink.apply(log.transaction(last))
    await sink.apply(log.settled(WIDE, index=2, copy=2, resync=1, last=True))
    assert rows(destination) == []
    assert await replay(destination) == Replayed(applied=3 if gone else 4)
    assert destination.letters() == []
    assert rows(destination) == ([] if gone else [("7", "d", "n")])
    await sink.close()


async def test_a_letter_that_only_a_part_of_a_row_follows_stays(destination: PostgresDestination) -> None:
    """Without a later change that carries the whole row, or deletes it, nobody knows what the row is."""
    sink, log = await opened(destination), Log()
    await sink.apply(log.chunk(WIDE, [{"id": "1", "name": "a", "more": "m"}], index=0, upto=None))
    await sink.apply(log.settled(WIDE, index=1, last=True))
    destination.refuse(WIDE, POISON)
    await sink.apply(log.transaction(update(WIDE, id="1", name=POISON, unchanged=["more"])))
    await sink.apply(
        log.transaction(update(WIDE, id="1", name="b", unchanged=["more"]), update(WIDE, old={"id": "1"}, id="2"))
    )
    await sink.apply(log.transaction(insert(WIDE, id="1", name="c")))
    destination.database.execute("DELETE FROM wide")
    assert await replay(destination) == Replayed(refused=1, behind=3)
    await sink.close()


async def test_a_part_that_is_replaced_leaves_the_rows_that_letters_are_about(destination: PostgresDestination) -> None:
    """They stay as they were before their letters, also under the key that a row is to leave; a replay makes them new."""
    sink, log = await opened(destination), Log()
    whole = [{"id": str(key), "name": "a", "more": "m"} for key in range(1, 5)]
    await sink.apply(log.chunk(WIDE, whole, index=0, upto=None))
    await sink.apply(log.settled(WIDE, index=1, last=True))
    destination.refuse(WIDE, POISON)
    await sink.apply(
        log.transaction(
            update(WIDE, id="2", name=POISON, unchanged=["more"]),
            update(WIDE, old={"id": "3"}, id="30", name=POISON, more="m"),
        )
    )
    destination.database.execute("UPDATE wide SET name = 'planted' WHERE id IN (1, 4)")
    where = (Condition(column="id", comparison=Comparison.BETWEEN, values=("1", "9")),)
    found = [{"id": "1", "name": "a", "more": "m"}, {"id": "2", "name": "b", "more": "m"}]
    await sink.apply(log.part(WIDE, found, where))
    await sink.apply(Log.as_part(log.settled(WIDE, index=1, copy=2, last=True)))
    assert rows(destination) == [("1", "a", "m"), ("2", "a", "m"), ("3", "a", "m")]
    assert destination.letters()[2:] == [Lies("insert", "2", BEHIND)]
    assert await replay(destination) == Replayed(applied=3)
    assert rows(destination) == [("1", "a", "m"), ("2", "b", "m"), ("30", POISON, "m")]
    await sink.close()
