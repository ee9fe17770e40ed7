"""What a person does with dead letters at the destination, while the pipeline may go on: each way out, and what it means."""

from collections.abc import AsyncIterator

import pytest
from tests.dataplane.laws.letter_law import BEHIND, POISON, REFUSED, Lies, streaming
from tests.dataplane.laws.sink_law import ITEMS
from tests.dataplane.sinks.changes import Log, delete, insert, table, update
from tests.dataplane.sinks.destinations import PostgresDestination, send_singly

from contracts.codes import Code
from contracts.delivery import OnRefused
from contracts.v2 import PipelineSink
from dataplane.failures import Permanent, RetryLater
from dataplane.sinks.postgres import letter_desk
from dataplane.sinks.postgres.letter_desk import Choice, LetterDesk, Replayed

ALL = Choice()


@pytest.fixture
async def destination(database) -> AsyncIterator[PostgresDestination]:  # type: ignore[no-untyped-def]
    made = PostgresDestination(database)
    yield made
    await made.close()


def desk(destination: PostgresDestination) -> LetterDesk:
    return LetterDesk(destination.document(), None, pipeline_id="p")


def count_writes(destination: PostgresDestination) -> None:
    """Let a trigger write down the id of each row that is written to ITEMS."""
    destination.database.execute("CREATE TABLE tally (id integer)")
    destination.database.execute(
        "CREATE FUNCTION count_it() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN INSERT INTO public.tally VALUES (NEW.id); RETURN NEW; END $$"
    )
    destination.database.execute(
        "CREATE TRIGGER counted AFTER INSERT OR UPDATE ON items FOR EACH ROW EXECUTE FUNCTION count_it()"
    )


def state(destination: PostgresDestination) -> dict[str | None, str | None]:
    return {row["id"]: row["name"] for row in destination.rows(ITEMS)}


async def test_a_replay_after_the_destination_was_mended_ends_in_the_newest_state(
    destination: PostgresDestination,
) -> None:
    """All letters of a key, in order, also over changes of the key and values that did not travel; then rows flow."""
    many = PipelineSink(connection="warehouse", on_refused=OnRefused.DEAD_LETTER)
    sink = await streaming(destination, [{"id": each, "name": "a"} for each in "1234"], many)
    log = Log()
    await sink.apply(log.transaction(*(update(ITEMS, id=each, name=POISON) for each in "123")))
    await sink.apply(
        log.transaction(
            update(ITEMS, old={"id": "1"}, id="7", unchanged=["name"]),
            delete(ITEMS, id="2"),
            update(ITEMS, id="3", name="c"),
            insert(ITEMS, id="2", name="again"),
            update(ITEMS, id="4", name="d"),
        )
    )
    assert state(destination) == {"1": "a", "2": "a", "3": "a", "4": "d"}
    destination.refuse(ITEMS, None)
    async with desk(destination) as at:
        assert await at.replay(ALL) == Replayed(applied=7)
    assert state(destination) == {"2": "again", "3": "c", "4": "d", "7": POISON}
    await sink.apply(log.transaction(update(ITEMS, id="7", name="e"), delete(ITEMS, id="2")))
    assert state(destination) == {"3": "c", "4": "d", "7": "e"}
    assert destination.letters() == []
    await sink.look_again()
    assert sink.gauges.dead_letters == 0
    await sink.close()


async def test_what_is_refused_again_stays_with_those_behind_it(destination: PostgresDestination) -> None:
    """It counts its attempts, and other keys do not wait for it."""
    sink = await streaming(destination)
    log = Log()
    await sink.apply(
        log.transaction(
            insert(ITEMS, id="1", name=POISON), insert(ITEMS, id="2", name=POISON), update(ITEMS, id="1", name="b")
        )
    )
    destination.database.execute("ALTER TABLE items DROP CONSTRAINT taste, ADD CHECK (id <> 1)")
    async with desk(destination) as at:
        assert await at.replay(ALL) == Replayed(applied=1, refused=1, behind=1)
        (first, second) = await at.oldest(ALL, 10)
    assert (first.attempts, second.attempts) == (2, 0)
    assert state(destination) == {"2": POISON}
    await sink.apply(log.transaction(update(ITEMS, id="1", name="c"), update(ITEMS, id="2", name="c")))
    assert destination.letters() == [Lies("insert", "1", REFUSED), *[Lies("update", "1", BEHIND)] * 2]
    assert state(destination) == {"2": "c"}
    await sink.close()


async def test_a_choice_grows_to_whole_keys(destination: PostgresDestination) -> None:
    """Replaying one letter replays what is before and behind it of its keys, and nothing of others."""
    sink = await streaming(destination, [{"id": each, "name": "a"} for each in "12"])
    log = Log()
    await sink.apply(log.transaction(update(ITEMS, id="1", name=POISON), update(ITEMS, id="2", name=POISON)))
    await sink.apply(log.transaction(update(ITEMS, old={"id": "1"}, id="9", name="b"), update(ITEMS, id="2", name="b")))
    await sink.apply(log.transaction(update(ITEMS, id="9", name="c")))
    destination.refuse(ITEMS, None)
    async with desk(destination) as at:
        last = next(each for each in await at.oldest(ALL, 10) if each.letter.row["name"] == "c")
        assert await at.replay(Choice(ids=[last.id])) == Replayed(applied=3)
    assert state(destination) == {"2": "a", "9": "c"}
    assert {each.key for each in destination.letters()} == {"2"}
    await sink.close()


async def test_a_dropped_letter_lets_its_key_flow_again(destination: PostgresDestination) -> None:
    """The row stays as it was until the key's next change; what was dropped is written down, and nothing else is."""
    sink = await streaming(destination, [{"id": "1", "name": "a"}])
    log = Log()
    await sink.apply(log.transaction(update(ITEMS, id="1", name=POISON)))
    async with desk(destination) as at:
        assert await at.drop(Choice(code="sink_value_refused")) == 0
        assert await at.drop(Choice(tables=["public.items"], code="sink_constraint")) == 1
    assert state(destination) == {"1": "a"}
    await sink.apply(log.transaction(update(ITEMS, id="1", name="b")))
    assert state(destination) == {"1": "b"}
    assert destination.database.execute("SELECT outcome, letters FROM pointsman.dead_letter_history") == [
        ("dropped", 1)
    ]
    await sink.close()


async def test_dropping_only_the_poison_leaves_the_rest_to_be_replayed(destination: PostgresDestination) -> None:
    """One change is left out, its key's later ones are applied in order, and new ones wait until then."""
    sink = await streaming(destination, [{"id": "1", "name": "a"}])
    log = Log()
    await sink.apply(log.transaction(update(ITEMS, id="1", name=POISON)))
    await sink.apply(log.transaction(update(ITEMS, id="1", name="b")))
    async with desk(destination) as at:
        (poison, _) = await at.oldest(ALL, 10)
        assert await at.drop(Choice(ids=[poison.id])) == 1
        await sink.apply(log.transaction(update(ITEMS, id="1", name="c")))
        assert state(destination) == {"1": "a"}
        assert await at.replay(ALL) == Replayed(applied=2)
    assert state(destination) == {"1": "c"}
    await sink.close()


async def test_after_a_dropped_insert_a_change_without_all_values_becomes_a_letter(
    destination: PostgresDestination,
) -> None:
    """A row cannot be made of a part of its values: it says SINK_ROW_MISSING, and a copy of the table ends it."""
    sink = await streaming(destination)
    log = Log()
    await sink.apply(log.transaction(insert(ITEMS, id="1", name=POISON)))
    async with desk(destination) as at:
        await at.drop(ALL)
    await sink.apply(log.transaction(update(ITEMS, id="1", unchanged=["name"]), insert(ITEMS, id="2", name="b")))
    # Without any value to write there is nothing that could be missed.
    wide = table("wide", {"id": "integer", "name": "text", "more": "text"})
    await sink.apply(Log().snapshot(wide, last=True))
    await sink.apply(
        log.transaction(update(wide, id="1", more="x", unchanged=["name"]), insert(wide, id="2", name="b"))
    )
    assert destination.letters() == [Lies("update", "1", Code.SINK_ROW_MISSING)]
    assert [row["id"] for row in destination.rows(wide)] == ["2"]
    await sink.apply(Log().snapshot(wide, [{"id": "1", "name": "c"}], last=True, resync=1, lsn=9000))
    assert destination.letters() == []
    await sink.close()


async def test_a_table_that_cannot_be_written_at_all_leaves_every_letter_where_it_is(
    destination: PostgresDestination,
) -> None:
    """What hits every row is told, and the whole replay is undone."""
    sink = await streaming(destination)
    await sink.apply(Log().transaction(*(insert(ITEMS, id=each, name=POISON) for each in "12")))
    destination.refuse(ITEMS, None)
    await sink.close()
    destination.database.execute("ALTER TABLE items RENAME TO away")
    async with desk(destination) as at:
        with pytest.raises(Permanent) as caught:
            await at.replay(ALL)
    assert (caught.value.code, caught.value.table) == (Code.SINK_TABLE_MISMATCH, "public.items")
    destination.database.execute("ALTER TABLE away RENAME TO items")
    assert len(destination.letters()) == 2


async def test_values_come_back_as_the_source_wrote_them_into_a_type_that_was_mended(
    destination: PostgresDestination,
) -> None:
    """Too long a text lies there whole, and goes in once the column is wide enough; quotes and NULLs are what they were."""
    narrow = table("narrow", {"id": "integer", "name": "character varying(5)", "note": "text", "list": "text[]"})
    sink = await streaming(destination)
    await sink.apply(Log().snapshot(narrow, last=True))
    told = {"id": "1", "name": 'long "and\\odd', "note": None, "list": '{"a,b",NULL,"\\""}'}
    await sink.apply(Log().transaction(insert(narrow, **told)))
    (lies,) = destination.database.execute(
        "SELECT code, sql_state, column_name, row_values->>'name', position_lsn, attempts FROM pointsman.dead_letters"
    )
    assert lies == ("sink_value_refused", "22001", "name", told["name"], 1100, 1)
    destination.database.execute("ALTER TABLE narrow ALTER name TYPE varchar(50)")
    async with desk(destination) as at:
        assert await at.replay(ALL) == Replayed(applied=1)
    assert destination.rows(narrow) == [told]
    await sink.close()


async def test_a_replay_cannot_slip_into_a_transaction_of_the_sink(
    destination: PostgresDestination, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both hold the checkpoint's row: it waits, and says that it gave up when the transaction goes on for too long."""
    sink = await streaming(destination)
    log = Log()
    await sink.apply(log.transaction(insert(ITEMS, id="1", name=POISON)))
    destination.refuse(ITEMS, None)
    parts = log.parts([[insert(ITEMS, id="2", name="x")], [update(ITEMS, id="1", name="new")]])
    await sink.apply(parts[0])
    monkeypatch.setattr(letter_desk, "SETTINGS", {**letter_desk.SETTINGS, "lock_timeout": "100ms"})
    async with desk(destination) as at:
        with pytest.raises(RetryLater):
            await at.replay(ALL)
    await sink.apply(parts[1])
    assert destination.letters() == [Lies("insert", "1", REFUSED), Lies("update", "1", BEHIND)]
    async with desk(destination) as at:
        assert await at.replay(ALL) == Replayed(applied=2)
    assert state(destination) == {"1": "new", "2": "x"}
    await sink.close()


@pytest.mark.parametrize("rows_max", [0, 100], ids=["bulk", "rows"])
async def test_what_was_sent_before_a_refusal_is_undone_before_it_is_sent_again(
    destination: PostgresDestination, monkeypatch: pytest.MonkeyPatch, rows_max: int
) -> None:
    """In a later part of a large transaction: a tally at the destination counts each row that came once, and none twice."""
    send_singly(monkeypatch, rows_max)
    sink = await streaming(destination)
    count_writes(destination)
    parts = Log().parts(
        [
            [insert(ITEMS, id="1", name="a")],
            [insert(ITEMS, id="2", name="b"), insert(ITEMS, id="3", name=POISON), insert(ITEMS, id="4", name="d")],
            [insert(ITEMS, id="5", name=POISON), insert(ITEMS, id="6", name="f")],
        ]
    )
    for part in parts:
        await sink.apply(part)
    assert sorted(destination.database.execute("SELECT id FROM tally")) == [(1,), (2,), (4,), (6,)]
    assert list(state(destination)) == ["1", "2", "4", "6"]
    assert [each.key for each in destination.letters()] == ["3", "5"]
    await sink.close()


@pytest.mark.parametrize("rows_max", [0, 100], ids=["bulk", "rows"])
async def test_what_was_sent_before_a_missing_row_was_noticed_is_undone_too(
    destination: PostgresDestination, monkeypatch: pytest.MonkeyPatch, rows_max: int
) -> None:
    """There the server refuses nothing, so only the undo keeps what was sent from being there twice."""
    send_singly(monkeypatch, rows_max)
    wide = table("wide", {"id": "integer", "name": "text", "more": "text"})
    sink = await streaming(destination)
    await sink.apply(Log().snapshot(wide, last=True))
    count_writes(destination)
    change = update(wide, id="1", more="x", unchanged=["name"])
    for part in Log().parts([[insert(ITEMS, id="1", name="a")], [insert(ITEMS, id="2", name="b"), change]]):
        await sink.apply(part)
    assert sorted(destination.database.execute("SELECT id FROM tally")) == [(1,), (2,)]
    assert destination.letters() == [Lies("update", "1", Code.SINK_ROW_MISSING)]
    await sink.close()


@pytest.mark.parametrize(
    ("breaks", "code", "family"),
    [
        ("DROP TABLE items", Code.SINK_TABLE_MISMATCH, Permanent),
        ("ALTER TABLE items DROP COLUMN name", Code.SINK_TABLE_MISMATCH, Permanent),
        ('REVOKE INSERT ON items FROM "{user}"', Code.SINK_RIGHTS_MISSING, Permanent),
        (
            (
                "CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS"
                " $$ BEGIN RAISE EXCEPTION USING ERRCODE = 'disk_full'; END $$;"
                " CREATE TRIGGER full_disk BEFORE INSERT ON items FOR EACH ROW EXECUTE FUNCTION full_disk()"
            ),
            Code.SINK_DISK_FULL,
            RetryLater,
        ),
        (
            (
                "CREATE FUNCTION clash() RETURNS trigger LANGUAGE plpgsql AS"
                " $$ BEGIN RAISE EXCEPTION USING ERRCODE = 'serialization_failure'; END $$;"
                " CREATE TRIGGER clash BEFORE INSERT ON items FOR EACH ROW EXECUTE FUNCTION clash()"
            ),
            Code.SINK_UNREACHABLE,
            RetryLater,
        ),
    ],
    ids=["table gone", "column gone", "right gone", "disk full", "serialization"],
)
async def test_what_hits_every_row_or_may_pass_never_makes_a_letter(
    destination: PostgresDestination, breaks: str, code: Code, family: type[Exception]
) -> None:
    """A table or a right that is gone stops the pipeline; a full disk and a clash of transactions are tried again."""
    user = f"{destination.database.name}_writer"
    destination.database.execute(f'CREATE ROLE "{user}" LOGIN')
    try:
        destination.database.execute(f'GRANT CREATE ON DATABASE "{destination.database.name}" TO "{user}"')
        destination.database.execute(f'GRANT ALL ON SCHEMA public TO "{user}"')
        destination.user = user
        sink = await streaming(destination)
        destination.refuse(ITEMS, None)
        await sink.apply(Log().transaction(insert(ITEMS, id="1", name="a")))
        destination.database.execute(breaks.format(user=user))
        before = await sink.load()
        with pytest.raises(family) as caught:
            await sink.apply(
                Log(lsn=2000).transaction(insert(ITEMS, id="2", name="b"), insert(ITEMS, id="3", name="c"))
            )
        assert getattr(caught.value, "code", None) is code
        assert destination.letters() == []
        await sink.open()
        assert (await sink.load() or before).position == before.position  # type: ignore[union-attr]
        await sink.close()
    finally:
        destination.database.execute(f'DROP OWNED BY "{user}" CASCADE')
        destination.database.execute(f'DROP ROLE "{user}"')
