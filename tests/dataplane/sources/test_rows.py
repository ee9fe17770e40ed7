"""What PostgreSQL's rows are on the way: every type the same from snapshot and stream, TOAST, keys, partitions."""

from collections.abc import AsyncIterator

import psycopg
import pytest
from tests.conftest import Database
from tests.dataplane.laws.source_law import equal, opened, streaming
from tests.dataplane.sources.destination import Destination
from tests.dataplane.sources.origins import PostgresOrigin

from contracts.codes import Code
from dataplane import postgres
from dataplane.batch import ChangeBatch, Op
from dataplane.failures import Permanent

TYPES: dict[str, list[str]] = {
    "smallint": ["-32768", "32767"],
    "integer": ["-2147483648", "0"],
    "bigint": ["9223372036854775807"],
    "numeric": ["'NaN'", "'Infinity'", "'-Infinity'", "1.10", "1e-300", "123456789012345678901234567890.0001"],
    "numeric(10,2)": ["1.5", "'NaN'"],
    "real": ["'NaN'", "'Infinity'", "'-0'", "1.1", "3.4028235e38", "1e-45"],
    "double precision": ["'NaN'", "'-Infinity'", "'-0'", "0.1", "5e-324", "1.7976931348623157e308"],
    "money": ["12.34", "-0.05"],
    "boolean": ["true", "false"],
    "text": ["''", "E'a\\tb\\nc\\\\N\\r\\b\\f\\v'", "'\\N'", "'Grüße, 世界 🚂'", "repeat('long ', 2000)"],
    "character varying(20)": ["'abc '"],
    "character(5)": ["'ab'", "''"],
    "name": ["'a name'"],
    '"char"': ["'x'"],
    "bytea": ["''", "'\\x00ff5c0a'", "decode(repeat('de', 5000), 'hex')"],
    "date": ["'2024-02-29'", "'infinity'", "'-infinity'", "'0044-03-15 BC'", "'20000-01-01'"],
    "time": ["'24:00:00'", "'13:14:15.123456'"],
    "time with time zone": ["'13:14:15+01:30:15'"],
    "timestamp": ["'infinity'", "'294276-12-31 23:59:59.999999'", "'0001-01-01 BC'", "'2024-03-31 02:30:00.5'"],
    "timestamp with time zone": ["'infinity'", "'2024-03-31 02:30:00.123456+01'", "'0044-03-15 00:00:00+00 BC'"],
    "interval": ["'1 year -2 months 3 days -04:05:06.789'", "'-infinity'", "'0'", "'-1 day +00:00:00.000001'"],
    "uuid": ["'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'"],
    "json": ['\'{"b": 1, "b": 2, "a":  "\\u0041\\\\n"}\'', "'null'"],
    "jsonb": ['\'{"b": 12345678901234567890, "a": "x\\ty \\"q\\""}\'', "'[]'"],
    "integer[]": ["'{}'", "'{1,NULL,3}'", "'{{1,2},{3,4}}'", "'[0:1]={7,8}'"],
    "text[]": [r"""'{"NULL",NULL,"","a,b","q\"x\\"}'"""],
    "bit(3)": ["B'101'"],
    "bit varying": ["B''", "B'10'"],
    "inet": ["'192.168.0.1/24'", "'::1'"],
    "cidr": ["'10.0.0.0/8'"],
    "macaddr": ["'08:00:2b:01:02:03'"],
    "point": ["'(1.5,-2)'"],
    "box[]": ["'{(1,1),(0,0);(3,3),(2,2)}'"],
    "int4range": ["'empty'", "'[1,5)'", "'(,)'"],
    "int4multirange": ["'{[1,3),[5,7)}'"],
    "tsvector": ["'''it''s'':1A fat:2'"],
    "tsquery": ["'fat & !rat'"],
    "oid": ["4294967295"],
    "regclass": ["'pg_class'", "'public.kinds'"],
    "pg_lsn": ["'16/B374D848'"],
    "public.mood": ["'sad'", "'o''k, so'"],
    "public.mood[]": ["'{sad,NULL}'"],
    "public.positive": ["7"],
    "public.pair": ["ROW(1, 'a,\"b')", "ROW(NULL, '')"],
    "public.pair[]": ["ARRAY[ROW(1, 'a,b')::public.pair]"],
}


@pytest.fixture
async def origin(database: Database) -> AsyncIterator[PostgresOrigin]:
    """An empty database with one pipeline."""
    origin = PostgresOrigin(database)
    yield origin
    for source in origin.sources:
        await source.close()


def batches(destination: Destination) -> list[ChangeBatch]:
    return [item for change in destination.sets for item in change.items if isinstance(item, ChangeBatch)]


class TestTypes:
    """One table with every type."""

    @pytest.fixture
    def kinds(self, origin: PostgresOrigin) -> int:
        """Make the table and fill it; return how many rows it has."""
        columns = [f"c{number} {type_}" for number, type_ in enumerate(TYPES)]
        origin.run(
            "CREATE TYPE public.mood AS ENUM ('sad', 'o''k, so')",
            "CREATE DOMAIN public.positive AS integer CHECK (VALUE > 0)",
            "CREATE TYPE public.pair AS (a integer, b text)",
            f"CREATE TABLE public.kinds (id integer PRIMARY KEY, {', '.join(columns)})",
            f"CREATE TABLE public.copies (id integer PRIMARY KEY, {', '.join(columns)})",
        )
        values_of = dict(TYPES)
        if origin.database.version < 17:  # which has infinite intervals
            values_of["interval"] = [value for value in TYPES["interval"] if "infinity" not in value]
        count = max(len(values) for values in TYPES.values())
        for number in range(count):
            row = [
                f"({values[number]})::{type_}" if number < len(values) else "NULL"
                for type_, values in values_of.items()
            ]
            origin.run(f"INSERT INTO public.kinds VALUES ({number}, {', '.join(row)})")
        return count

    async def test_a_value_is_the_same_from_snapshot_and_stream(self, origin: PostgresOrigin, kinds: int) -> None:
        """And the same as the server sends to any client."""
        destination = Destination()
        reading = await streaming(origin, destination, "public.kinds", "public.copies")
        expected = origin.rows("public.kinds")
        assert len(expected) == kinds
        origin.run("INSERT INTO public.copies SELECT * FROM public.kinds")
        await equal(origin, reading, "public.copies")
        snapshot, stream = destination.tables["public.kinds"], destination.tables["public.copies"]
        for key, row in expected.items():
            for name, value in row.items():
                type_ = "integer" if name == "id" else list(TYPES)[int(name[1:])]
                assert snapshot[key][name] == value, type_
                assert stream[key][name] == snapshot[key][name], type_

    async def test_a_value_can_be_written_back_to_the_same_value(self, origin: PostgresOrigin, kinds: int) -> None:
        """Reading the text with the same settings gives what the source holds."""
        destination = Destination()
        await streaming(origin, destination, "public.kinds")
        names = ["id", *(f"c{number}" for number in range(len(TYPES)))]
        types = ["integer", *TYPES]
        conninfo = postgres.conninfo(origin.document, None, application_name="test")
        with psycopg.connect(conninfo) as connection:
            for row in destination.tables["public.kinds"].values():
                listed = ", ".join(f"%s::{type_}" for type_ in types)
                connection.execute(
                    f"INSERT INTO public.copies VALUES ({listed})",
                    [row[name] for name in names],  # type: ignore[arg-type]
                )
        assert origin.rows("public.copies") == origin.rows("public.kinds")

    async def test_types_are_named_in_full(self, origin: PostgresOrigin, kinds: int) -> None:
        """With modifiers and schemas, the same from the catalog and from a Relation message."""
        destination = Destination()
        reading = await streaming(origin, destination, "public.kinds")
        origin.run("DELETE FROM public.kinds WHERE id = 0")
        await equal(origin, reading, "public.kinds")
        snapshot, stream = batches(destination)[0].table, batches(destination)[-1].table
        assert snapshot == stream
        texts = {column.type for column in stream.columns}
        assert {"numeric(10,2)", "character varying(20)", "character(5)", "public.mood[]", "integer[]"} <= texts


class TestToast:
    """Large values are stored apart, and are not sent when they do not change."""

    @pytest.fixture
    def large(self, origin: PostgresOrigin) -> None:
        origin.run(
            "CREATE TABLE public.docs (id integer PRIMARY KEY, body text, title text)",
            "ALTER TABLE public.docs ALTER body SET STORAGE EXTERNAL",
            "INSERT INTO public.docs VALUES (1, repeat('x', 20000), 'a'), (2, NULL, 'b')",
        )

    @pytest.mark.usefixtures("large")
    async def test_an_unchanged_value_is_marked(self, origin: PostgresOrigin) -> None:
        """It is neither NULL nor sent again, also when the key changes."""
        destination = Destination()
        reading = await streaming(origin, destination, "public.docs")
        origin.run("UPDATE public.docs SET title = 'c'", "UPDATE public.docs SET id = id + 10")
        await equal(origin, reading, "public.docs")
        (batch,) = batches(destination)[1:]
        assert batch.unchanged[1].tolist() == [True, False, True, False]
        assert batch.key_changed is not None
        assert batch.key_changed.tolist() == [False, False, True, True]

    @pytest.mark.usefixtures("large")
    async def test_with_a_full_identity_the_old_row_has_the_value(self, origin: PostgresOrigin) -> None:
        """Nothing is left to mark; the key is the primary key."""
        origin.run("ALTER TABLE public.docs REPLICA IDENTITY FULL")
        destination = Destination()
        reading = await streaming(origin, destination, "public.docs")
        origin.run("UPDATE public.docs SET title = 'c'", "UPDATE public.docs SET id = 9 WHERE id = 2")
        origin.run("DELETE FROM public.docs WHERE id = 9")
        await equal(origin, reading, "public.docs")
        first = batches(destination)[1]
        assert first.unchanged == {}
        assert first.table.key == ("id",)
        assert first.ops[0] == Op.UPDATE


class TestKeys:
    """A key is a primary key, or the index that the replica identity names."""

    async def test_an_identity_by_index_names_the_key(self, origin: PostgresOrigin) -> None:
        """Of several columns, in any place."""
        origin.run(
            "CREATE TABLE public.lines (note text, id integer NOT NULL, part integer NOT NULL, UNIQUE (part, id))",
            "ALTER TABLE public.lines REPLICA IDENTITY USING INDEX lines_part_id_key",
            "INSERT INTO public.lines VALUES ('a', 1, 1)",
        )
        destination = Destination()
        reading = await streaming(origin, destination, "public.lines")
        origin.run("UPDATE public.lines SET part = 2", "UPDATE public.lines SET note = 'b'")
        await reading.until(lambda: ("1", "2") in destination.tables["public.lines"])
        assert destination.tables["public.lines"] == {("1", "2"): {"note": "b", "id": "1", "part": "2"}}
        assert batches(destination)[0].table.key == batches(destination)[1].table.key == ("id", "part")

    @pytest.mark.parametrize(
        ("statements", "code"),
        [
            (["CREATE TABLE public.t (id integer)"], Code.SOURCE_TABLE_WITHOUT_KEY),
            (
                ["CREATE TABLE public.t (id integer PRIMARY KEY)", "ALTER TABLE public.t REPLICA IDENTITY NOTHING"],
                Code.SOURCE_TABLE_WITHOUT_KEY,
            ),
            (
                ["CREATE TABLE public.t (id integer)", "ALTER TABLE public.t REPLICA IDENTITY FULL"],
                Code.SOURCE_TABLE_WITHOUT_KEY,
            ),
            (
                ["CREATE TABLE public.t (id integer PRIMARY KEY DEFERRABLE INITIALLY DEFERRED)"],
                Code.SOURCE_TABLE_WITHOUT_KEY,
            ),
            (
                ["CREATE TABLE public.t (id integer, d integer GENERATED ALWAYS AS (id) STORED, PRIMARY KEY (id, d))"],
                Code.SOURCE_TABLE_WITHOUT_KEY,
            ),
            (['CREATE TABLE public.t (id integer PRIMARY KEY, "a b" text)'], Code.SOURCE_NAME_UNSUPPORTED),
            (["CREATE VIEW public.t AS SELECT 1 AS id"], Code.SOURCE_TABLE_MISSING),
            (["CREATE UNLOGGED TABLE public.t (id integer PRIMARY KEY)"], Code.SOURCE_TABLE_MISSING),
            ([], Code.SOURCE_TABLE_MISSING),
        ],
    )
    async def test_a_table_that_cannot_be_captured_is_refused(
        self, origin: PostgresOrigin, statements: list[str], code: Code
    ) -> None:
        """Before anything is made at the source: neither slot nor publication."""
        if statements:
            origin.run(*statements)
        with pytest.raises(Permanent) as refused:
            await opened(origin, Destination(), "public.t")
        assert (refused.value.code, refused.value.table) == (code, "public.t")
        assert origin.slots() == []
        assert origin.database.execute("SELECT count(*) FROM pg_publication") == [(0,)]


class TestTables:
    """Shapes of tables."""

    async def test_a_partitioned_table_is_one_table(self, origin: PostgresOrigin) -> None:
        """Whatever partition a row is in, and when it moves to another."""
        origin.run(
            "CREATE TABLE public.parts (id integer PRIMARY KEY, name text) PARTITION BY RANGE (id)",
            "CREATE TABLE public.low PARTITION OF public.parts FOR VALUES FROM (0) TO (100)",
            "CREATE TABLE public.high PARTITION OF public.parts FOR VALUES FROM (100) TO (200)",
            "INSERT INTO public.parts VALUES (1, 'a'), (150, 'b')",
        )
        destination = Destination()
        reading = await streaming(origin, destination, "public.parts")
        assert destination.tables["public.parts"] == origin.rows("public.parts")
        origin.run("UPDATE public.parts SET id = id + 99 WHERE id = 1", "INSERT INTO public.low VALUES (5, 'c')")
        await equal(origin, reading, "public.parts")
        origin.run("TRUNCATE public.parts", "INSERT INTO public.parts VALUES (7, 'd')")
        await equal(origin, reading, "public.parts")

    async def test_generated_columns_are_left_to_the_destination(self, origin: PostgresOrigin) -> None:
        """Neither snapshot nor stream has them."""
        origin.run(
            "CREATE TABLE public.sums (id integer PRIMARY KEY, a integer, b integer GENERATED ALWAYS AS (a * 2) STORED)",
            "INSERT INTO public.sums VALUES (1, 1)",
        )
        destination = Destination()
        reading = await streaming(origin, destination, "public.sums")
        origin.run("INSERT INTO public.sums VALUES (2, 2)")
        await reading.until(lambda: ("2",) in destination.tables["public.sums"])
        assert destination.tables["public.sums"] == {("1",): {"id": "1", "a": "1"}, ("2",): {"id": "2", "a": "2"}}

    async def test_several_tables_are_emptied_by_one_truncate(self, origin: PostgresOrigin) -> None:
        """Each has a position of its own; rows before and after stand where they were."""
        origin.run(
            "CREATE TABLE public.a (id integer PRIMARY KEY)",
            "CREATE TABLE public.b (id integer PRIMARY KEY, a integer REFERENCES public.a)",
            "INSERT INTO public.a VALUES (1)",
            "INSERT INTO public.b VALUES (1, 1)",
        )
        destination = Destination()
        reading = await streaming(origin, destination, "public.a", "public.b")
        origin.run(
            "INSERT INTO public.a VALUES (2)",
            "TRUNCATE public.a CASCADE",
            "INSERT INTO public.a VALUES (3)",
            "INSERT INTO public.b VALUES (3, 3)",
        )
        await equal(origin, reading, "public.a", "public.b")
        assert destination.sets[-1].last.ordinal == 4

    async def test_names_that_need_quotes_are_quoted(self, origin: PostgresOrigin) -> None:
        """Upper case and reserved words."""
        origin.run(
            'CREATE SCHEMA "Shop"',
            'CREATE TABLE "Shop"."Order" (id integer PRIMARY KEY, "select" text, "Äh" text)',
        )
        with pytest.raises(Permanent) as refused:
            await opened(origin, Destination(), "Shop.Order")
        assert refused.value.code is Code.SOURCE_NAME_UNSUPPORTED
        origin.run('ALTER TABLE "Shop"."Order" DROP COLUMN "Äh"', """INSERT INTO "Shop"."Order" VALUES (1, 'x')""")
        destination = Destination()
        reading = await streaming(origin, destination, "Shop.Order")
        origin.run("""INSERT INTO "Shop"."Order" VALUES (2, 'y')""")
        await reading.until(lambda: ("2",) in destination.tables["Shop.Order"])
        assert destination.tables["Shop.Order"][("1",)] == {"id": "1", "select": "x"}

    async def test_a_savepoint_that_is_rolled_back_leaves_nothing(self, origin: PostgresOrigin) -> None:
        """Nor does a rolled back transaction."""
        origin.run("CREATE TABLE public.a (id integer PRIMARY KEY)")
        destination = Destination()
        reading = await streaming(origin, destination, "public.a")
        origin.run(
            "INSERT INTO public.a VALUES (1)",
            "SAVEPOINT s",
            "INSERT INTO public.a VALUES (2)",
            "ROLLBACK TO s",
            "INSERT INTO public.a VALUES (3)",
        )
        await reading.until(lambda: ("3",) in destination.tables["public.a"])
        assert set(destination.tables["public.a"]) == {("1",), ("3",)}


class TestAwkward:
    """What tables go through while they are captured."""

    async def test_everything_one_transaction_does_to_a_row_arrives_in_its_order(self, origin: PostgresOrigin) -> None:
        """Insert and delete, updates of the same row, keys that change places, ON CONFLICT, and COPY."""
        origin.run(
            "CREATE TABLE public.a (id integer PRIMARY KEY, n integer)",
            "CREATE TABLE public.b (id integer PRIMARY KEY, n integer)",
            "ALTER TABLE public.b ADD a integer REFERENCES public.a DEFERRABLE INITIALLY DEFERRED",
            "INSERT INTO public.a VALUES (1, 1), (2, 2)",
        )
        destination = Destination()
        reading = await streaming(origin, destination, "public.a", "public.b")
        with psycopg.connect(origin.database.conninfo) as connection:
            for statement in (
                "INSERT INTO public.b VALUES (1, 0)",
                "DELETE FROM public.b WHERE id = 1",
                "INSERT INTO public.b VALUES (1, 1), (2, 2)",
                "UPDATE public.b SET n = n + 1",
                "UPDATE public.b SET n = n + 1, id = id + 10",
                "INSERT INTO public.b VALUES (11, 5), (12, 5), (13, 5) ON CONFLICT (id) DO UPDATE SET n = 100",
                "INSERT INTO public.b VALUES (11, 5) ON CONFLICT DO NOTHING",
                "UPDATE public.b SET a = 3 WHERE id = 11",
                "INSERT INTO public.a VALUES (3, 3)",
                "UPDATE public.a SET id = 9 WHERE id = 1",
                "UPDATE public.a SET id = 1 WHERE id = 2",
                "UPDATE public.a SET id = 2 WHERE id = 9",
            ):
                connection.execute(statement)  # type: ignore[arg-type]
            with connection.cursor().copy("COPY public.b (id, n) FROM STDIN") as copy:
                for number in range(20, 2020):
                    copy.write_row([number, number])
        await equal(origin, reading, "public.a", "public.b")
        held = {key[0]: row["n"] for key, row in destination.tables["public.a"].items()}
        assert held == {"1": "2", "2": "1", "3": "3"}

    async def test_a_renamed_column_is_a_new_column(self, origin: PostgresOrigin) -> None:
        """The log has names and no numbers; rows before and after have the names of their time."""
        origin.run("CREATE TABLE public.a (id integer PRIMARY KEY, old text)", "INSERT INTO public.a VALUES (1, 'x')")
        destination = Destination()
        reading = await streaming(origin, destination, "public.a")
        origin.run("INSERT INTO public.a VALUES (2, 'y')")
        origin.run("ALTER TABLE public.a RENAME COLUMN old TO new", "INSERT INTO public.a VALUES (3, 'z')")
        await reading.until(lambda: ("3",) in destination.tables["public.a"])
        assert destination.tables["public.a"][("2",)] == {"id": "2", "old": "y"}
        assert destination.tables["public.a"][("3",)] == {"id": "3", "new": "z"}

    async def test_a_changed_type_is_told_with_the_first_row_after_it(self, origin: PostgresOrigin) -> None:
        """The rewrite itself logs no rows; what older rows hold is for a resync."""
        origin.run("CREATE TABLE public.a (id integer PRIMARY KEY, n integer)", "INSERT INTO public.a VALUES (1, 1)")
        destination = Destination()
        reading = await streaming(origin, destination, "public.a")
        origin.run("ALTER TABLE public.a ALTER n TYPE numeric(8,3)", "INSERT INTO public.a VALUES (2, 2)")
        await reading.until(lambda: ("2",) in destination.tables["public.a"])
        assert destination.tables["public.a"] == {("1",): {"id": "1", "n": "1"}, ("2",): {"id": "2", "n": "2.000"}}
        assert [column.type for column in batches(destination)[-1].table.columns] == ["integer", "numeric(8,3)"]

    async def test_a_table_that_was_dropped_and_made_again_stops_the_next_session(self, origin: PostgresOrigin) -> None:
        """The new one is not in the publication, so what went into it was never sent: it is copied again."""
        origin.run("CREATE TABLE public.a (id integer PRIMARY KEY)", "INSERT INTO public.a VALUES (1)")
        destination = Destination()
        reading = await streaming(origin, destination, "public.a")
        origin.run("DROP TABLE public.a", "CREATE TABLE public.a (id integer PRIMARY KEY)")
        origin.run("INSERT INTO public.a VALUES (2)")
        await reading.source.close()
        reading = await opened(origin, destination, "public.a")
        await equal(origin, reading, "public.a")
        origin.run("INSERT INTO public.a VALUES (3)")
        await equal(origin, reading, "public.a")

    async def test_a_partition_brings_what_is_written_to_it_and_not_what_it_held(self, origin: PostgresOrigin) -> None:
        """ATTACH and DETACH log nothing: rows that came or went with a partition are for a reconcile or a resync."""
        origin.run(
            "CREATE TABLE public.parts (id integer PRIMARY KEY, n integer) PARTITION BY RANGE (id)",
            "CREATE TABLE public.low PARTITION OF public.parts FOR VALUES FROM (0) TO (100)",
            "INSERT INTO public.parts VALUES (1, 1)",
        )
        destination = Destination()
        reading = await streaming(origin, destination, "public.parts")
        origin.run(
            "CREATE TABLE public.high (id integer PRIMARY KEY, n integer)",
            "INSERT INTO public.high VALUES (150, 0)",
            "ALTER TABLE public.parts ATTACH PARTITION public.high FOR VALUES FROM (100) TO (200)",
            "INSERT INTO public.parts VALUES (151, 1)",
            "ALTER TABLE public.parts DETACH PARTITION public.low",
            "INSERT INTO public.parts VALUES (152, 1)",
        )
        await reading.until(lambda: ("152",) in destination.tables["public.parts"])
        assert set(destination.tables["public.parts"]) == {("1",), ("151",), ("152",)}

    async def test_a_dropped_identity_is_refused_by_the_server_and_never_guessed(self, origin: PostgresOrigin) -> None:
        """Without the index of its replica identity a table takes no update: the source's own server says so."""
        origin.run(
            "CREATE TABLE public.a (id integer NOT NULL, n integer)",
            "CREATE UNIQUE INDEX a_id ON public.a (id)",
            "ALTER TABLE public.a REPLICA IDENTITY USING INDEX a_id",
            "INSERT INTO public.a VALUES (1, 1)",
        )
        destination = Destination()
        reading = await streaming(origin, destination, "public.a")
        origin.run("DROP INDEX public.a_id")
        with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState):
            origin.run("UPDATE public.a SET n = 2")
        origin.run("INSERT INTO public.a VALUES (2, 2)")
        with pytest.raises(Permanent) as refused:
            await reading.until(lambda: ("2",) in destination.tables["public.a"])
        assert refused.value.code is Code.SOURCE_TABLE_WITHOUT_KEY
        await reading.source.close()
        with pytest.raises(Permanent) as refused:
            await opened(origin, destination, "public.a")
        assert (refused.value.code, refused.value.table) == (Code.SOURCE_TABLE_WITHOUT_KEY, "public.a")

    @pytest.mark.parametrize(
        "statement",
        ["CREATE MATERIALIZED VIEW public.t AS SELECT 1 AS id", "CREATE SEQUENCE public.t", "foreign"],
    )
    async def test_what_the_server_does_not_log_is_refused(self, origin: PostgresOrigin, statement: str) -> None:
        """Materialized views, sequences and foreign tables (views and unlogged tables above)."""
        if statement == "foreign":
            origin.run(
                "CREATE FOREIGN DATA WRAPPER nothing",
                "CREATE SERVER elsewhere FOREIGN DATA WRAPPER nothing",
                "CREATE FOREIGN TABLE public.t (id integer) SERVER elsewhere",
            )
        else:
            origin.run(statement)
        with pytest.raises(Permanent) as refused:
            await opened(origin, Destination(), "public.t")
        assert refused.value.code is Code.SOURCE_TABLE_MISSING

    async def test_a_row_may_have_1600_columns(self, origin: PostgresOrigin) -> None:
        """As many as a table can have."""
        names = ", ".join(f"c{number} smallint" for number in range(1599))
        origin.run(f"CREATE TABLE public.a (id integer PRIMARY KEY, {names})", "INSERT INTO public.a (id) VALUES (1)")
        destination = Destination()
        reading = await streaming(origin, destination, "public.a")
        origin.run(
            f"INSERT INTO public.a VALUES (2, {', '.join(str(number) for number in range(1599))})",
            "UPDATE public.a SET c1598 = 7",
        )
        await equal(origin, reading, "public.a")

    async def test_a_full_identity_with_a_generated_column_never_costs_its_owner_an_update(
        self, origin: PostgresOrigin
    ) -> None:
        """From PostgreSQL 18 on the server would refuse updates of the table once it is published: so we refuse it first."""
        origin.run(
            "CREATE TABLE public.t (id integer PRIMARY KEY, a integer, b integer GENERATED ALWAYS AS (a * 2) STORED)",
            "ALTER TABLE public.t REPLICA IDENTITY FULL",
            "INSERT INTO public.t VALUES (1, 1)",
        )
        destination = Destination()
        if origin.database.version >= 18:
            with pytest.raises(Permanent) as refused:
                await opened(origin, destination, "public.t")
            assert refused.value.code is Code.SOURCE_TABLE_WITHOUT_KEY
        else:
            reading = await streaming(origin, destination, "public.t")
            origin.run("UPDATE public.t SET a = 2")
            await reading.until(lambda: destination.tables["public.t"][("1",)]["a"] == "2")
        origin.run("UPDATE public.t SET a = 3")

    async def test_a_generated_column_of_either_kind_is_left_out(self, origin: PostgresOrigin) -> None:
        """From PostgreSQL 18 on a publication may have stored ones: ours has not, and virtual ones are nowhere."""
        virtual = ", v integer GENERATED ALWAYS AS (a * 3) VIRTUAL" if origin.database.version >= 18 else ""
        origin.run(
            "CREATE TABLE public.sums (id integer PRIMARY KEY, a integer,"
            f" b integer GENERATED ALWAYS AS (a * 2) STORED{virtual})",
            "INSERT INTO public.sums VALUES (1, 1)",
        )
        destination = Destination()
        reading = await streaming(origin, destination, "public.sums")
        origin.run("INSERT INTO public.sums VALUES (2, 2)")
        await reading.until(lambda: ("2",) in destination.tables["public.sums"])
        assert destination.tables["public.sums"] == {("1",): {"id": "1", "a": "1"}, ("2",): {"id": "2", "a": "2"}}
