"""What arrives at PostgreSQL is what the source's text says, in whichever way it is sent."""

import asyncio
from collections.abc import AsyncIterator

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.dataplane.sinks.changes import SOURCE, Change, Log, Row, delete, insert, table, update
from tests.dataplane.sinks.destinations import PostgresDestination, send_singly
from tests.dataplane.sinks.test_merging import ONE, Held, histories, rows_one_by_one

from dataplane.batch import ChangeBatch, TableSchema
from dataplane.sinks.port import Sink

# Each value is what the server itself gives back for it under the session's text settings.
VALUES = {
    "smallint": ["0", "-32768", "32767"],
    "integer": ["0", "-2147483648"],
    "bigint": ["9223372036854775807"],
    "text": ["", "NULL", "\\N", "a\tb\nc\rd\\e", '"quoted"', "\\.", "ünïcödé 🚂", "\x01\x7f", "  ", "a,b", "{}"],
    "character varying(20)": ["", "exactly twenty chars"],
    "character(5)": ["ab   ", "     "],
    "boolean": ["t", "f"],
    "numeric": ["NaN", "Infinity", "-Infinity", "0", "1.00", "-12345678901234567890.123456789", "1" + "0" * 200],
    "numeric(10,2)": ["12345678.90"],
    "real": ["NaN", "Infinity", "-0", "1.1754944e-38", "0.1"],
    "double precision": ["NaN", "-Infinity", "-0", "1.7976931348623157e+308", "5e-324"],
    "date": ["infinity", "-infinity", "0044-03-15 BC", "9999-12-31", "5874897-12-31"],
    "timestamp without time zone": ["infinity", "2026-11-24 05:47:42.123456", "4713-01-01 00:00:00 BC"],
    "timestamp with time zone": ["-infinity", "2026-11-24 05:47:42.123456+00", "294276-12-31 23:59:59.999999+00"],
    "time without time zone": ["24:00:00", "00:00:00.000001"],
    "time with time zone": ["12:00:00+05:30:15"],
    "interval": ["P1Y2M3DT4H5M6.789S", "PT0S", "P-1M"],
    "uuid": ["00000000-0000-0000-0000-000000000000"],
    "json": ['{"b": 1,  "a": "\\u0041", "b": 2}', "null", '"x\\ty"'],
    "jsonb": ['{"a": 12345678901234567890}', "null"],
    "bytea": ["\\x", "\\x00ff5c0a0d09"],
    "integer[]": ["{}", "{NULL,1}", "[0:1]={5,6}", "{{1,2},{3,4}}"],
    "text[]": ['{NULL,"NULL","","a\\\\b","\\"",",","{}"}'],
    "bit(3)": ["101"],
    "bit varying": ["", "10"],
    "inet": ["10.0.0.0/8", "::1"],
    "macaddr": ["08:00:2b:01:02:03"],
    "int4range": ["empty", "[1,5)", "(,)"],
    "int4multirange": ["{}", "{[1,2),[5,7)}"],
    "money": ["$1,234.50"],
    "point": ["(1,-2.5)"],
    "tsvector": ["'a':1 'it''s':2"],
    "pg_lsn": ["16/B374D848"],
    "name": ["x"],
    '"char"': ["x"],
    "oid": ["4294967295"],
    "public.mood": ["it's ok", "sad"],
    "public.mood[]": ['{sad,"it\'s ok"}'],
    "public.pair": ['(1,"a ""b"" \\\\c")', "(,)"],
    "public.short": ["abc"],
}
MAKE_TYPES = """
    CREATE TYPE public.mood AS ENUM ('sad', 'it''s ok');
    CREATE TYPE public.pair AS (a integer, b text);
    CREATE DOMAIN public.short AS character varying(3) CHECK (VALUE <> 'bad')
"""


@pytest.fixture(params=[0, 100], ids=["bulk", "rows"])
async def destination(
    request: pytest.FixtureRequest, database, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[PostgresDestination]:  # type: ignore[no-untyped-def]
    """Both ways of sending: everything by COPY, and everything row by row."""
    send_singly(monkeypatch, request.param)
    database.execute(MAKE_TYPES)
    made = PostgresDestination(database)
    yield made
    await made.close()


async def copied(destination: PostgresDestination, of: TableSchema, rows: list[Row]) -> Sink:
    """A sink whose only table was copied with `rows`."""
    sink = destination.sink()
    await sink.open()
    await sink.begin(SOURCE)
    await sink.apply(Log().snapshot(of, rows, last=True))
    return sink


async def test_every_type_arrives_exactly_from_snapshot_and_stream(destination: PostgresDestination) -> None:
    """Each value of each type, and NULL, inserted by the snapshot, inserted by the stream, and by an update."""
    names = {f"c{number}": type_ for number, type_ in enumerate(VALUES)}
    of = table("typed", {"id": "integer", **names})
    count = max(map(len, VALUES.values()))
    rows = [
        {name: values[min(number, len(values) - 1)] for name, values in zip(names, VALUES.values(), strict=True)}
        for number in range(count)
    ]
    rows.append(dict.fromkeys(names))
    sink = await copied(destination, of, [{"id": str(number), **row} for number, row in enumerate(rows)])
    log = Log()
    await sink.apply(log.transaction(*(insert(of, id=str(100 + number), **row) for number, row in enumerate(rows))))
    await sink.apply(log.transaction(*(insert(of, id=str(200 + number)) for number in range(len(rows)))))
    await sink.apply(log.transaction(*(update(of, id=str(200 + number), **row) for number, row in enumerate(rows))))
    await sink.close()
    with psycopg.connect(destination.database.conninfo) as connection:
        for setting in ("extra_float_digits = 3", "IntervalStyle = iso_8601", "TimeZone = 'UTC'", "search_path = ''"):
            connection.execute(f"SET {setting}")
        types = connection.execute(
            "SELECT format_type(atttypid, atttypmod) FROM pg_attribute"
            " WHERE attrelid = 'public.typed'::regclass AND attnum > 1 ORDER BY attnum"
        ).fetchall()
        # COPY shows what the types' output functions give, as a source does; a cast to text may not.
        with connection.cursor().copy("COPY (SELECT * FROM public.typed ORDER BY id) TO STDOUT") as copy:
            seen = [(int(row[0] or 0), row[1:]) for row in copy.rows()]
    assert [type_ for (type_,) in types] == list(names.values())
    for start in (0, 100, 200):
        found = [dict(zip(names, row, strict=True)) for number, row in seen if start <= number < start + 100]
        assert found == rows


TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=6)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    texts=st.lists(st.one_of(st.none(), TEXTS, st.sampled_from(["\\N", "\\.", "\t", "\\\n"])), min_size=1, max_size=30)
)
def test_any_text_arrives_exactly(destination: PostgresDestination, texts: list[str | None]) -> None:
    """Nothing in a text can end a field or a line, or become NULL."""
    of = table("texts", {"id": "integer", "a": "text", "b": "text"})
    rows = [{"id": str(number), "a": text, "b": texts[-1 - number]} for number, text in enumerate(texts)]

    async def deliver() -> None:
        sink = await copied(destination, of, rows[::2])
        await sink.apply(Log().transaction(*(insert(of, **row) for row in rows[1::2]), update(of, **rows[0])))
        await sink.close()

    asyncio.run(deliver())
    assert sorted(destination.rows(of), key=lambda row: int(row["id"] or "")) == rows


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(history=histories().filter(lambda made: made[1][0].table == ONE))
def test_any_history_ends_as_it_does_row_by_row(
    destination: PostgresDestination, history: tuple[Held, list[Change]]
) -> None:
    """Inserts, updates, deletes, keys that change and values that do not travel, in one transaction or in parts."""
    before, changes = history
    log = Log()
    sets = log.parts([changes[: len(changes) // 2], changes[len(changes) // 2 :]]) if len(changes) > 1 else []
    whole = sets or [log.transaction(*changes)]

    async def deliver() -> None:
        sink = await copied(destination, ONE, list(before.values()))
        for change in whole:
            await sink.apply(change)
        await sink.close()

    asyncio.run(deliver())
    expected = {key: dict(row) for key, row in before.items()}
    for change in whole:
        for item in change.items:
            assert isinstance(item, ChangeBatch)
            rows_one_by_one(expected, item)
    assert destination.rows(ONE) == [expected[key] for key in sorted(expected, key=str)]


async def test_an_unchanged_value_is_kept_while_the_key_changes(destination: PostgresDestination) -> None:
    """A large value that did not travel stays with its row under the new key, also when two keys swap."""
    of = table("large", {"id": "integer", "note": "text", "body": "text"})
    body = {"1": "x" * 9000, "2": "y" * 9000}
    sink = await copied(destination, of, [{"id": each, "note": "n", "body": body[each]} for each in "12"])
    await sink.apply(
        Log().transaction(
            update(of, old={"id": "1"}, unchanged=["body"], id="9", note="one"),
            update(of, old={"id": "2"}, unchanged=["body"], id="1", note="two"),
            update(of, old={"id": "9"}, unchanged=["body"], id="2", note="one"),
            update(of, unchanged=["body", "note"], id="2"),
        )
    )
    await sink.close()
    assert destination.rows(of) == [
        {"id": "1", "note": "two", "body": body["2"]},
        {"id": "2", "note": "one", "body": body["1"]},
    ]


async def test_keys_of_any_type_are_found_again(destination: PostgresDestination) -> None:
    """Padded characters, numerics of another scale and several columns: deletes and updates meet their row."""
    of = table(
        "keyed",
        {"a": "character(4)", "n": "numeric", "m": "public.mood", "v": "text"},
        key=("a", "n", "m"),
    )
    sink = await copied(destination, of, [{"a": "x   ", "n": n, "m": "sad", "v": "old"} for n in ("1.0", "2.0", "3.0")])
    await sink.apply(
        Log().transaction(
            update(of, a="x   ", n="1.0", m="sad", v="new"),
            delete(of, a="x   ", n="2.0", m="sad"),
            update(of, old={"a": "x   ", "n": "3.0", "m": "sad"}, a="x   ", n="3.00", m="sad", v="scaled"),
        )
    )
    await sink.close()
    assert [(row["n"], row["v"]) for row in destination.rows(of)] == [("1.0", "new"), ("3.00", "scaled")]


async def test_keys_of_an_extension_are_compared_as_it_does(destination: PostgresDestination) -> None:
    """Its operators lie in a schema that is on no search path of ours."""
    destination.database.execute(
        "CREATE SCHEMA ext; CREATE EXTENSION citext SCHEMA ext; CREATE EXTENSION ltree SCHEMA ext"
    )
    of = table("extended", {"a": "ext.citext", "b": "ext.ltree", "v": "text"}, key=("a", "b"))
    sink = await copied(destination, of, [{"a": "One", "b": "x.y", "v": "old"}, {"a": "Two", "b": "x", "v": "old"}])
    await sink.apply(
        Log().transaction(
            update(of, a="One", b="x.y", v="new"),
            delete(of, a="Two", b="x"),
            update(of, old={"a": "One", "b": "x.y"}, unchanged=["v"], a="ONE", b="x.y"),
        )
    )
    await sink.close()
    assert destination.rows(of) == [{"a": "ONE", "b": "x.y", "v": "new"}]


async def test_names_may_hold_anything(destination: PostgresDestination) -> None:
    """Quotes, percent signs and blanks in the names of schema, table and columns are only names."""
    of = table('t"; DROP %s $1', {'i"d': "integer", "a b%s": "text", "$2": "text"}, key=('i"d',), schema='S "x"')
    sink = await copied(destination, of, [{'i"d': "1", "a b%s": "x", "$2": None}])
    await sink.apply(Log().transaction(update(of, unchanged=["$2"], **{'i"d': "1", "a b%s": "y"})))
    await sink.close()
    assert destination.rows(of) == [{'i"d': "1", "a b%s": "y", "$2": None}]


async def test_a_table_of_keys_alone_is_written_too(destination: PostgresDestination) -> None:
    """There is nothing to update, and an insert that comes again is no error."""
    of = table("pairs", {"a": "integer", "b": "integer"}, key=("a", "b"))
    sink = await copied(destination, of, [{"a": "1", "b": "1"}])
    await sink.apply(
        Log().transaction(
            delete(of, a="1", b="1"), insert(of, a="1", b="1"), update(of, old={"a": "1", "b": "1"}, a="2", b="2")
        )
    )
    await sink.close()
    assert destination.rows(of) == [{"a": "2", "b": "2"}]
