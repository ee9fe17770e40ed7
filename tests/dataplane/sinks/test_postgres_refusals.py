"""What PostgreSQL cannot take is an error that names table and column, and leaves nothing behind."""

from collections.abc import AsyncIterator

import pytest
from msgspec.structs import replace
from tests.dataplane.sinks.changes import SOURCE, Emptied, Log, delete, insert, joined, table, update
from tests.dataplane.sinks.destinations import PostgresDestination, send_singly

from contracts.codes import Code
from dataplane.batch import ChangeSet, TableSchema
from dataplane.failures import Failure, Permanent, RetryLater
from dataplane.sinks.postgres import PostgresSink

ITEMS = table("items", {"id": "integer", "name": "character varying(5)", "amount": "numeric(6,2)"})


@pytest.fixture(params=[0, 100], ids=["bulk", "rows"])
async def destination(  # type: ignore[no-untyped-def]
    request: pytest.FixtureRequest, database, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[PostgresDestination]:
    """Both ways of sending: everything by COPY, and everything row by row."""
    send_singly(monkeypatch, request.param)
    made = PostgresDestination(database)
    yield made
    await made.close()


async def streaming(destination: PostgresDestination, *tables: TableSchema) -> PostgresSink:
    """A sink whose tables are copied, and empty."""
    sink = destination.sink()
    await sink.open()
    await sink.begin(SOURCE)
    for of in tables or (ITEMS,):
        await sink.apply(Log().snapshot(of, last=True))
    return sink


async def refusal(sink: PostgresSink, change: ChangeSet) -> Failure:
    """Apply a set that must fail; it must leave nothing, and no later one may overtake it."""
    before = await sink.load()
    with pytest.raises(Failure) as caught:
        await sink.apply(change)
    with pytest.raises(Failure) as again:
        await sink.apply(Log(lsn=10**6).transaction(insert(ITEMS, id="999")))
    assert again.value is caught.value
    await sink.open()
    after = await sink.load()
    assert before is not None
    assert after is not None
    assert (after.position, after.confirmed_through) == (before.position, before.confirmed_through)
    return caught.value


@pytest.mark.parametrize(
    ("row", "column", "sql_state"),
    [
        ({"name": "too long"}, "name", "22001"),
        ({"amount": "12345.00"}, "amount", "22003"),
        ({"amount": "many"}, "amount", "22P02"),
        ({"name": "ok", "amount": "1e9"}, "amount", "22003"),
    ],
)
async def test_a_value_that_does_not_fit_is_named(
    destination: PostgresDestination, row: dict[str, str], column: str, sql_state: str
) -> None:
    """Among good rows the bad one's table and column are found, and none of them stays."""
    sink = await streaming(destination)
    for change in (
        Log().transaction(insert(ITEMS, id="1", name="ok"), insert(ITEMS, id="2", **row), insert(ITEMS, id="3")),
        Log().transaction(insert(ITEMS, id="1", name="ok"), update(ITEMS, id="1", **row), delete(ITEMS, id="7")),
    ):
        failure = await refusal(sink, change)
        assert isinstance(failure, Permanent)
        assert failure.code is Code.SINK_VALUE_REFUSED
        assert (failure.table, failure.column, failure.sql_state) == ("public.items", column, sql_state)
        assert destination.rows(ITEMS) == []


async def test_a_refused_row_late_in_a_large_transaction_undoes_all_of_it(destination: PostgresDestination) -> None:
    """Earlier sets of the same transaction are gone with it."""
    sink = await streaming(destination)
    parts = Log().parts([[insert(ITEMS, id="1")], [insert(ITEMS, id="2")], [insert(ITEMS, id="3", name="too long")]])
    await sink.apply(parts[0])
    await sink.apply(parts[1])
    with pytest.raises(Permanent) as caught:
        await sink.apply(parts[2])
    assert (caught.value.table, caught.value.column) == ("public.items", "name")
    assert destination.rows(ITEMS) == []


async def test_a_type_that_the_server_was_built_without_is_named(destination: PostgresDestination) -> None:
    """The type exists there, and takes no value."""
    shape = table("documents", {"id": "integer", "body": "xml"})
    sink = await streaming(destination, ITEMS, shape)
    if destination.database.execute("SELECT setting FROM pg_config WHERE setting LIKE '%--with-libxml%'"):
        await sink.apply(Log().transaction(insert(shape, id="1", body="<a/>")))
        assert destination.rows(shape) == [{"id": "1", "body": "<a/>"}]
        return
    failure = await refusal(sink, Log().transaction(insert(shape, id="1", body="<a/>")))
    assert isinstance(failure, Permanent)
    assert (failure.code, failure.table, failure.column) == (Code.SINK_TYPE_UNSUPPORTED, "public.documents", "body")


async def test_a_constraint_of_the_destination_is_named_as_one(destination: PostgresDestination) -> None:
    """A check or a NOT NULL that somebody added there refuses a row with SINK_CONSTRAINT."""
    sink = await streaming(destination)
    destination.database.execute("ALTER TABLE items ADD CHECK (amount > 0), ALTER name SET NOT NULL")
    failure = await refusal(sink, Log().transaction(insert(ITEMS, id="1", name="x", amount="-1")))
    assert (failure.code, failure.table, failure.sql_state) == (Code.SINK_CONSTRAINT, "public.items", "23514")
    failure = await refusal(sink, Log().transaction(insert(ITEMS, id="1", amount="1")))
    assert (failure.code, failure.table, failure.column) == (Code.SINK_CONSTRAINT, "public.items", "name")


async def test_a_second_unique_index_is_respected_step_by_step(destination: PostgresDestination) -> None:
    """Values of a unique column that move from row to row arrive, because rows are sent one by one where needed."""
    sink = await streaming(destination)
    destination.database.execute("CREATE UNIQUE INDEX ON items (name)")
    log = Log()
    await sink.apply(log.transaction(insert(ITEMS, id="1", name="a"), insert(ITEMS, id="2", name="b")))
    await sink.apply(
        log.transaction(
            update(ITEMS, id="1", name="c"), update(ITEMS, id="2", name="a"), update(ITEMS, id="1", name="b")
        )
    )
    assert [(row["id"], row["name"]) for row in destination.rows(ITEMS)] == [("1", "b"), ("2", "a")]
    failure = await refusal(sink, log.transaction(insert(ITEMS, id="3", name="a")))
    assert (failure.code, failure.sql_state) == (Code.SINK_CONSTRAINT, "23505")


async def test_rows_that_somebody_else_wrote_are_overwritten(destination: PostgresDestination) -> None:
    """An insert whose key is there already becomes an update: the source is right, in a large transaction too."""
    sink = await streaming(destination)
    destination.database.execute("INSERT INTO items VALUES (1, 'mine', 1), (2, 'mine', 2)")
    log = Log()
    for part in log.parts([[insert(ITEMS, id="3")], [insert(ITEMS, id="1", name="src"), insert(ITEMS, id="4")]]):
        await sink.apply(part)
    await sink.apply(log.transaction(insert(ITEMS, id="2", name="src"), insert(ITEMS, id="5")))
    assert [(row["id"], row["name"]) for row in destination.rows(ITEMS)] == [
        ("1", "src"),
        ("2", "src"),
        ("3", None),
        ("4", None),
        ("5", None),
    ]


async def test_an_update_that_lacks_values_needs_its_row(destination: PostgresDestination) -> None:
    """A row that somebody deleted cannot be made from a part of its values: it is said, and never passed over."""
    sink = await streaming(destination)
    failure = await refusal(sink, Log().transaction(update(ITEMS, id="1", amount="2", unchanged=["name"])))
    assert isinstance(failure, Permanent)
    assert (failure.code, failure.table) == (Code.SINK_ROW_MISSING, "public.items")
    failure = await refusal(
        sink, Log().transaction(update(ITEMS, old={"id": "1"}, id="2", amount="2", unchanged=["name"]))
    )
    assert failure.code is Code.SINK_ROW_MISSING


async def test_a_new_column_is_added(destination: PostgresDestination) -> None:
    """Old rows have NULL in it; one that the source dropped stays with its values."""
    sink = await streaming(destination)
    log = Log()
    await sink.apply(log.transaction(insert(ITEMS, id="1", name="a", amount="1.50")))
    wider = table("items", {"id": "integer", "name": "character varying(5)", "tags": "text[]"})
    await sink.apply(log.transaction(insert(wider, id="2", name="b", tags="{x}"), update(wider, id="1", name="c")))
    assert destination.rows(wider, ["id", "name", "amount", "tags"]) == [
        {"id": "1", "name": "c", "amount": "1.50", "tags": None},
        {"id": "2", "name": "b", "amount": None, "tags": "{x}"},
    ]


async def test_a_column_added_in_a_transaction_that_fails_is_not_there(destination: PostgresDestination) -> None:
    """What was made on the way is undone with the rows."""
    sink = await streaming(destination)
    wider = table("items", {"id": "integer", "name": "character varying(5)", "tags": "text[]"})
    await refusal(sink, Log().transaction(insert(wider, id="1", tags="{x}"), insert(wider, id="2", name="too long")))
    columns = destination.database.execute(
        "SELECT attname FROM pg_attribute WHERE attrelid = 'items'::regclass AND attnum > 0"
    )
    assert ("tags",) not in columns


@pytest.mark.parametrize(
    ("changed", "column"),
    [
        ({"id": "integer", "name": "integer"}, "name"),
        ({"id": "integer", "name": "character varying(6)"}, "name"),
        ({"id": "bigint", "name": "character varying(5)"}, "id"),
        ({"key": "integer", "name": "character varying(5)"}, "key"),
    ],
)
async def test_another_type_or_key_is_for_a_person(
    destination: PostgresDestination, changed: dict[str, str], column: str
) -> None:
    """A changed type sends no rows at the source, so it is refused and named, and the table stays as it is."""
    sink = await streaming(destination)
    shape = table("items", changed, key=(next(iter(changed)),))
    failure = await refusal(sink, Log().transaction(insert(shape, **{next(iter(changed)): "1"})))
    assert isinstance(failure, Permanent)
    assert (failure.code, failure.table, failure.column) == (Code.SINK_TABLE_MISMATCH, "public.items", column)


async def test_older_rows_get_what_the_source_gave_its_own(destination: PostgresDestination) -> None:
    """A new column's value for rows that were there is no default for those that come."""
    sink = await streaming(destination)
    log = Log()
    await sink.apply(log.transaction(insert(ITEMS, id="1", name="a")))
    wider = table("items", {"id": "integer", "name": "character varying(5)", "tags": "text[]", "mood": "text"})
    given = {"tags": "{it's}", "mood": "\\fine"}
    columns = tuple(column._replace(missing=given.get(column.name)) for column in wider.columns)
    wider = TableSchema(wider.schema, wider.name, columns)
    await sink.apply(log.transaction(insert(wider, id="2", name="b", mood="own")))
    assert destination.rows(wider, ["id", "tags", "mood"]) == [
        {"id": "1", "tags": "{it's}", "mood": "\\fine"},
        {"id": "2", "tags": None, "mood": "own"},
    ]


async def test_a_wider_column_at_the_destination_is_good_enough(destination: PostgresDestination) -> None:
    """Longer integers and strings hold every value of the source's."""
    destination.database.execute("CREATE TABLE items (id bigint PRIMARY KEY, name text, amount numeric(6,2))")
    sink = await streaming(destination)
    await sink.apply(Log().transaction(insert(ITEMS, id="1", name="a"), update(ITEMS, id="1", name="b")))
    assert destination.rows(ITEMS) == [{"id": "1", "name": "b", "amount": None}]


async def test_a_table_that_was_dropped_is_not_made_again_by_the_stream(destination: PostgresDestination) -> None:
    """Its earlier rows would be missing."""
    sink = await streaming(destination)
    destination.database.execute("DROP TABLE items")
    await sink.open()
    failure = await refusal(sink, Log().transaction(insert(ITEMS, id="1")))
    assert (failure.code, failure.table) == (Code.SINK_TABLE_MISMATCH, "public.items")


async def test_a_type_that_the_destination_lacks_is_named(destination: PostgresDestination) -> None:
    """Before anything is made; a text that is more than a type is none either."""
    for type_ in ("public.mood", "integer) -- ", "integer /* */", "integer, x text", "integer; drop table items"):
        sink = destination.sink(pipeline_id=type_)
        await sink.open()
        await sink.begin(SOURCE)
        shape = table("odd", {"id": "integer", "mood": type_})
        with pytest.raises(Permanent) as caught:
            await sink.apply(Log().snapshot(shape))
        assert (caught.value.code, caught.value.table, caught.value.column) == (
            Code.SINK_TYPE_UNSUPPORTED,
            "public.odd",
            "mood",
        )
        assert destination.database.execute("SELECT to_regclass('public.odd')") == [(None,)]


async def test_a_table_with_rows_that_are_not_ours_is_refused(destination: PostgresDestination) -> None:
    """An empty one is taken, and from then on it is ours."""
    destination.database.execute("CREATE TABLE items (id int PRIMARY KEY, name varchar(5), amount numeric(6,2))")
    destination.database.execute("INSERT INTO items VALUES (1)")
    sink = destination.sink()
    await sink.open()
    await sink.begin(SOURCE)
    with pytest.raises(Permanent) as caught:
        await sink.apply(Log().snapshot(ITEMS))
    assert (caught.value.code, caught.value.table) == (Code.SINK_TABLE_NOT_EMPTY, "public.items")
    assert destination.database.execute("SELECT count(*) FROM items") == [(1,)]
    destination.database.execute("DELETE FROM items")
    await sink.open()
    await sink.apply(Log().snapshot(ITEMS, [{"id": "1"}]))
    await sink.apply(Log().snapshot(ITEMS, [{"id": "2"}]))


async def test_source_and_destination_may_not_be_one_database(destination: PostgresDestination) -> None:
    """Tables keep their names, so it would be the same table."""
    system = destination.database.execute("SELECT system_identifier::text FROM pg_control_system()")[0][0]
    sink = destination.sink()
    await sink.open()
    await sink.begin(replace(SOURCE, system_identifier=str(system), database=destination.database.name))
    with pytest.raises(Permanent) as caught:
        await sink.apply(Log().snapshot(ITEMS))
    assert (caught.value.code, caught.value.table) == (Code.SINK_SAME_AS_SOURCE, "public.items")


async def test_a_truncate_that_other_tables_depend_on_is_refused(destination: PostgresDestination) -> None:
    """It never cascades to tables that nobody named."""
    sink = await streaming(destination)
    destination.database.execute("CREATE TABLE parts (item int REFERENCES items)")
    failure = await refusal(sink, Log().transaction(Emptied(ITEMS)))
    assert isinstance(failure, Permanent)
    assert (failure.code, failure.table) == (Code.SINK_CONSTRAINT, "public.items")


async def test_tables_that_refer_to_each_other_are_emptied_together(destination: PostgresDestination) -> None:
    """A truncate of several tables at the source is one at the destination."""
    parts = table("parts", {"id": "integer", "item": "integer"})
    sink = await streaming(destination, ITEMS, parts)
    destination.database.execute("ALTER TABLE parts ADD FOREIGN KEY (item) REFERENCES items")
    log = Log()
    await sink.apply(log.transaction(insert(ITEMS, id="1")))
    await sink.apply(log.transaction(insert(parts, id="1", item="1")))
    await sink.apply(log.transaction(Emptied(ITEMS), Emptied(parts), insert(ITEMS, id="2")))
    assert ([row["id"] for row in destination.rows(ITEMS)], destination.rows(parts)) == (["2"], [])


async def test_a_shape_that_changes_within_a_set_is_followed(destination: PostgresDestination) -> None:
    """Rows before the change have the old columns, rows after it the new ones."""
    sink = await streaming(destination)
    log = Log()
    await sink.apply(log.transaction(insert(ITEMS, id="1", name="a")))
    wider = table("items", {"id": "integer", "name": "character varying(5)", "tags": "text"})
    old = log.transaction(update(ITEMS, id="1", name="b", amount="1.00"))
    new = log.transaction(update(wider, id="1", name="c", tags="x"))
    await sink.apply(joined([old, new]))
    columns = ["id", "name", "amount", "tags"]
    assert destination.rows(wider, columns) == [{"id": "1", "name": "c", "amount": "1.00", "tags": "x"}]


async def test_missing_rights_are_said(destination: PostgresDestination) -> None:
    """A user who may make no schema, and one who may make no table."""
    name = destination.database.name
    destination.database.execute(f'CREATE ROLE "{name}" LOGIN')
    try:
        sink = PostgresDestination(destination.database, user=name).sink()
        with pytest.raises(Permanent) as caught:
            await sink.open()
        assert (caught.value.code, caught.value.sql_state) == (Code.SINK_RIGHTS_MISSING, "42501")
        destination.database.execute(f'GRANT CREATE ON DATABASE "{name}" TO "{name}"')
        await sink.open()
        await sink.begin(SOURCE)
        with pytest.raises(Permanent) as caught:
            await sink.apply(Log().snapshot(ITEMS))
        assert caught.value.code is Code.SINK_RIGHTS_MISSING
        await sink.close()
    finally:
        destination.database.execute(f'DROP OWNED BY "{name}" CASCADE')
        destination.database.execute(f'DROP ROLE "{name}"')


async def test_a_destination_that_does_not_answer_is_tried_again(destination: PostgresDestination) -> None:
    """A refused connection and a lost one may both pass."""
    sink = await streaming(destination)
    destination.database.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'pointsman sink p'"
    )
    with pytest.raises(RetryLater) as caught:
        await sink.apply(Log().transaction(insert(ITEMS, id="1")))
    assert caught.value.code is Code.SINK_UNREACHABLE
    await sink.open()
    await sink.apply(Log().transaction(insert(ITEMS, id="1")))
    assert len(destination.rows(ITEMS)) == 1
    destination.database.port, port = 1, destination.database.port
    try:
        lost = PostgresDestination(destination.database).sink()
        with pytest.raises(RetryLater) as caught:
            await lost.open()
        assert caught.value.code is Code.SINK_UNREACHABLE
    finally:
        destination.database.port = port
