"""Rows of one PostgreSQL arrive in another, equal, whatever is done to them, through both buffers."""

import contextlib
from collections.abc import Callable, Iterator

import psutil
import pytest
from tests.system.databases import Pair
from tests.system.stack import Stack, eventually

pytestmark = [pytest.mark.system, pytest.mark.timeout(180)]

TABLES = ("public.kinds", "public.people", "public.notes", "public.wide", "public.bulk", "public.pairs", "public.log")
LARGE_ROWS = 200_000
# What a worker may hold while a transaction passes that is several times as large.
WORKER_BYTES_MAX = 700 << 20

SCHEMA = """
CREATE TABLE kinds (
    id bigint PRIMARY KEY, small smallint, i int, b bigint, t text, v varchar(20), bo bool, n numeric, n2 numeric(12, 3),
    r real, d double precision, da date, ts timestamp, tz timestamptz, u uuid, j json, jb jsonb, by bytea,
    ia int[], ta text[], na numeric[], da_a date[], c char(5)
);
CREATE TABLE people (id int PRIMARY KEY, name text NOT NULL, age int);
CREATE TABLE notes (id int PRIMARY KEY, large text, counter int);
ALTER TABLE notes ALTER COLUMN large SET STORAGE EXTERNAL;
CREATE TABLE wide (id int PRIMARY KEY, note text);
CREATE TABLE bulk (id int PRIMARY KEY, payload text, amount numeric(10, 2));
CREATE TABLE pairs (a int, b text, value int, PRIMARY KEY (a, b));
CREATE TABLE log (id int PRIMARY KEY, line text);
INSERT INTO people SELECT n, 'person ' || n, n % 90 FROM generate_series(1, 5000) n;
INSERT INTO kinds (id, t) VALUES (0, 'before the pipeline');
"""

EVERY_KIND = r"""
INSERT INTO kinds VALUES
 (%(base)s + 1, 32767, 2147483647, 9223372036854775807, 'text', 'varchar', true, 1234567890.0123456789, 123456789.123,
  3.4028235e38, 1.7976931348623157e308, '2026-02-28', '2026-02-28 23:59:59.999999', '2026-02-28 23:59:59.999999+13',
  '3f2504e0-4f89-11d3-9a0c-0305e82c3301', '{"a":  [1, null]}', '{"a": {"b": "\u00e9"}}', '\x00ff5c27',
  '{1,NULL,-3}', '{"a,b","quo\"te","back\\slash",NULL,""}', '{1.50,NULL}', '{2026-01-01,NULL}', 'ab'),
 (%(base)s + 2, -32768, -2147483648, -9223372036854775808, '', '', false, 'NaN', -0.001,
  '-Infinity', 'NaN', 'infinity', '-infinity', 'infinity',
  '00000000-0000-0000-0000-000000000000', 'null', 'null', '', '{}', '{}', '{}', '{}', ''),
 (%(base)s + 3, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL,
  NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL),
 (%(base)s + 4, 0, 0, 0, E'tab\tnewline\nquote''double"back\\slash \u20ac \U0001F682', E'\\N', true, -1e-20, 0,
  '1e-45', '5e-324', '0044-03-15 BC', '0044-03-15 12:00:00 BC', '1883-11-18 12:03:57+00',
  'ffffffff-ffff-ffff-ffff-ffffffffffff', '"\\u0041"', '[]', '\x', '{{1,2},{3,4}}', '{NULL}', '{NaN}', '{infinity}',
  E'\u20ac'),
 (%(base)s + 5, 1, 1, 1, repeat('x', 3000), 'y', false, 123456789012345678901234567890, 1.1, 0.1, 0.1, '9999-12-31',
  '294276-12-31 23:59:59.999999', '0001-01-01 00:00:00+00', NULL, '[1,2,3]', '{"n": 1e100}', decode(repeat('ab', 2000), 'hex'),
  '[2:3]={7,8}', '{a}', '{0}', '{0001-01-01}', 'abcde')
"""


@pytest.fixture(scope="module", params=["direct", "jetstream"])
def pair(request: pytest.FixtureRequest, stack: Stack, make_pair: Callable[[str], Pair]) -> Iterator[Pair]:
    """A pipeline that is ready, over all tables of this module."""
    made = make_pair(f"row-{request.param}")
    made.source.execute(SCHEMA)
    made.source.execute(EVERY_KIND % {"base": 1000})
    stack.apply(made.manifest(*TABLES, buffer=request.param))
    stack.wait(made.name)
    yield made
    stack.cli("pause", "pipeline", made.name)


def arrives(pair: Pair, *tables: str, key: str = "id", within: float = 30) -> None:
    eventually(lambda: pair.equal(*tables, key=key), within=within, what=f"{tables} equal on both sides")


def test_rows_that_were_there_before_arrive(pair: Pair) -> None:
    """The snapshot brings every row, of every type, and the destination's columns have the source's types."""
    arrives(pair, "people", "kinds")
    columns = """
        SELECT attname, format_type(atttypid, atttypmod), attnotnull FROM pg_attribute
        WHERE attrelid = 'kinds'::regclass AND attnum > 0 AND NOT attisdropped ORDER BY attname
    """
    here, there = pair.source.execute(columns), pair.sink.execute(columns)
    assert [row[:2] for row in there] == [row[:2] for row in here]


def test_every_type_arrives_equal_from_the_stream(pair: Pair) -> None:
    """Extreme values, empty ones, NULLs, arrays with odd contents: the same text at the destination."""
    pair.source.execute(EVERY_KIND % {"base": 2000})
    arrives(pair, "kinds")
    pair.source.execute("UPDATE kinds SET t = t || '!', na = '{7,NULL}' WHERE id > 2000")
    arrives(pair, "kinds")


def test_insert_update_and_delete_arrive(pair: Pair) -> None:
    """One after the other and mixed in one transaction, also on the same row."""
    with pair.source.connect() as connection:
        connection.execute("INSERT INTO people VALUES (9001, 'new', 1), (9002, 'short-lived', 2)")
        connection.execute("UPDATE people SET name = name || '*' WHERE id BETWEEN 100 AND 300 OR id = 9001")
        connection.execute("DELETE FROM people WHERE id BETWEEN 400 AND 500 OR id = 9002")
    pair.source.execute("DELETE FROM people WHERE id = 1")
    pair.source.execute("INSERT INTO people VALUES (1, 'again', NULL)")
    arrives(pair, "people")
    assert pair.sink.execute("SELECT name FROM people WHERE id IN (1, 9001, 9002) ORDER BY id") == [
        ("again",),
        ("new*",),
    ]


def test_a_changed_key_moves_its_row(pair: Pair) -> None:
    """The old key is gone, the new one has the row, even when keys swap places in one transaction."""
    pair.source.execute("INSERT INTO pairs VALUES (1, 'a', 10), (2, 'b', 20), (3, 'c', 30)")
    arrives(pair, "pairs", key="(a, b)")
    pair.source.execute("UPDATE pairs SET a = a + 100, value = value + 1 WHERE a = 3")
    with pair.source.connect() as connection:
        connection.execute("UPDATE pairs SET a = 99 WHERE a = 1")
        connection.execute("UPDATE pairs SET a = 1, b = 'a' WHERE a = 2")
        connection.execute("UPDATE pairs SET a = 2, b = 'b' WHERE a = 99")
    arrives(pair, "pairs", key="(a, b)")
    assert pair.sink.execute("SELECT * FROM pairs ORDER BY a") == [(1, "a", 20), (2, "b", 10), (103, "c", 31)]


def test_truncate_arrives_in_its_place(pair: Pair) -> None:
    """Rows before a TRUNCATE are gone, rows after it in the same transaction stay."""
    pair.source.execute("INSERT INTO log SELECT n, 'line ' || n FROM generate_series(1, 500) n")
    arrives(pair, "log")
    with pair.source.connect() as connection:
        connection.execute("INSERT INTO log VALUES (501, 'last before')")
        connection.execute("TRUNCATE log")
        connection.execute("INSERT INTO log VALUES (1, 'first after')")
    arrives(pair, "log")
    assert pair.sink.execute("SELECT * FROM log") == [(1, "first after")]


def test_a_large_value_that_did_not_change_stays(pair: Pair) -> None:
    """An update that leaves a TOASTed value alone does not turn it into NULL, also when the key changes."""
    pair.source.execute("INSERT INTO notes SELECT n, repeat(md5(n::text), 3000), 0 FROM generate_series(1, 20) n")
    arrives(pair, "notes")
    pair.source.execute("UPDATE notes SET counter = counter + 1")
    pair.source.execute("UPDATE notes SET id = id + 1000 WHERE id <= 5")
    with pair.source.connect() as connection:
        connection.execute("UPDATE notes SET large = repeat('new', 9000) WHERE id = 10")
        connection.execute("UPDATE notes SET counter = 99 WHERE id = 10")
    arrives(pair, "notes")
    assert pair.sink.execute("SELECT count(*) FROM notes WHERE length(large) >= 27000") == [(20,)]


def test_a_transaction_of_200_000_rows_arrives_whole_and_in_bounded_memory(stack: Stack, pair: Pair) -> None:
    """The destination shows none or all of it, and no worker holds it in memory."""
    pair.source.execute(
        "INSERT INTO bulk SELECT n, repeat(md5(n::text), 8), n / 7.0 FROM generate_series(1, %s) n", LARGE_ROWS
    )
    seen: set[int] = set()
    peak = 0

    def whole() -> bool:
        nonlocal peak
        for worker in stack.workers():
            with contextlib.suppress(psutil.Error):
                peak = max(peak, worker.memory_info().rss)
        [(count,)] = pair.sink.execute("SELECT count(*) FROM bulk")
        seen.add(count)
        return bool(count == LARGE_ROWS)

    eventually(whole, within=120, what="the whole transaction")
    assert seen <= {0, LARGE_ROWS}
    assert peak < WORKER_BYTES_MAX
    arrives(pair, "bulk")


def test_a_rolled_back_change_never_arrives(pair: Pair) -> None:
    """A savepoint that was rolled back and a whole transaction leave nothing behind."""
    with pair.source.connect(autocommit=True) as connection:
        connection.execute("BEGIN")
        connection.execute("INSERT INTO wide VALUES (1, 'undone')")
        connection.execute("ROLLBACK")
        connection.execute("BEGIN")
        connection.execute("INSERT INTO wide VALUES (2, 'kept')")
        connection.execute("SAVEPOINT one")
        connection.execute("INSERT INTO wide VALUES (3, 'undone')")
        connection.execute("ROLLBACK TO one")
        connection.execute("COMMIT")
    arrives(pair, "wide")
    assert pair.sink.execute("SELECT id FROM wide") == [(2,)]


def test_pause_keeps_rows_and_resume_brings_them(stack: Stack, pair: Pair) -> None:
    """While paused nothing arrives; what was written meanwhile comes after the resume, also after a restart."""
    stack.cli("pause", "pipeline", pair.name)
    stack.wait(pair.name, "paused")
    pair.source.execute("INSERT INTO wide VALUES (10, 'while paused')")
    stack.cli("resume", "pipeline", pair.name)
    stack.wait(pair.name)
    arrives(pair, "wide")
    stack.cli("restart", "pipeline", pair.name)
    pair.source.execute("INSERT INTO wide VALUES (11, 'while restarting')")
    stack.wait(pair.name)
    arrives(pair, "wide")


def _few(make_pair: Callable[[str], Pair], name: str) -> Pair:
    made = make_pair(name)
    made.source.execute("CREATE TABLE rows (id int PRIMARY KEY, email text, phone text)")
    made.source.execute("INSERT INTO rows VALUES (1, 'ada@example.org', '1'), (2, NULL, '2')")
    return made


def test_masks_and_drops_hold_for_snapshot_and_stream(stack: Stack, make_pair: Callable[[str], Pair]) -> None:
    """Equal values stay equal under a keyed hash, NULL stays NULL, and a dropped column never exists there."""
    made = _few(make_pair, "row-masked")
    (stack.secrets / "mask.key").write_text("k" * 32)
    mask = '{type: mask, table: public.rows, columns: [email], method: hash, secret: "file:mask.key"}'
    drop = "{type: drop, table: public.rows, columns: [phone]}"
    stack.apply(made.manifest("public.rows", more=f"transforms: [{mask}, {drop}]"))
    stack.wait(made.name)
    made.source.execute("INSERT INTO rows VALUES (3, 'ada@example.org', '3'), (4, 'bob@example.org', '4')")
    eventually(lambda: made.sink.execute("SELECT 1 FROM rows WHERE id = 4"), within=20, what="the streamed rows")
    rows = dict(made.sink.execute("SELECT id, email FROM rows"))
    assert made.sink.execute("SELECT * FROM rows WHERE id = 2") == [(2, None)]
    assert len(rows[1]) == 64
    assert rows[1] == rows[3] != rows[4]


def test_a_removed_pipeline_leaves_nothing_at_its_source(stack: Stack, make_pair: Callable[[str], Pair]) -> None:
    """With --cleanup slot and publication are gone, and the name can be used again."""
    made = _few(make_pair, "row-removed")
    stack.apply(made.manifest("public.rows"))
    stack.wait(made.name)
    stack.cli("delete", "pipeline", made.name, "--cleanup")
    stack.wait(made.name, "deleted")
    assert _left_at(made) == []
    made.sink.execute("TRUNCATE rows")
    stack.apply(made.pipeline("public.rows"))
    stack.wait(made.name)
    arrives(made, "rows")


def test_a_lost_slot_is_a_gap_and_its_hint_mends_it(stack: Stack, make_pair: Callable[[str], Pair]) -> None:
    """Rows that cannot be read any more are never passed over: the pipeline stops, says so, and is not ready."""
    made = _few(make_pair, "row-gap")
    stack.apply(made.manifest("public.rows"))
    stack.wait(made.name)
    stack.cli("pause", "pipeline", made.name)
    stack.wait(made.name, "paused")
    made.source.drop_slots()
    made.source.execute("INSERT INTO rows VALUES (10, 'lost', NULL)")
    stack.cli("resume", "pipeline", made.name)
    stack.wait(made.name, "gap")
    status = stack.pipeline(made.name)["status"]
    assert (status["code"], status["ready"]) == ("gap_slot_missing", False)
    assert "pointsman resync pipeline NAME" in status["hint"]
    assert made.sink.execute("SELECT count(*) FROM rows") == [(2,)]
    stack.cli("resync", "pipeline", made.name)
    stack.wait(made.name)
    arrives(made, "rows")
    assert len(_left_at(made)) == 2


def test_a_resync_mends_one_table(stack: Stack, make_pair: Callable[[str], Pair]) -> None:
    """What somebody did to the destination's rows is undone, once, and the other table is left alone."""
    made = _few(make_pair, "row-resync")
    made.source.execute("CREATE TABLE others (id int PRIMARY KEY)")
    stack.apply(made.manifest("public.rows", "public.others", buffer="jetstream"))
    stack.wait(made.name)
    made.sink.execute("DELETE FROM rows WHERE id = 1")
    made.sink.execute("UPDATE rows SET email = 'tampered'")
    made.sink.execute("INSERT INTO others VALUES (77)")
    said = stack.cli("resync", "pipeline", made.name, "--table", "public.rows")
    assert said.out == f"pipeline/{made.name} resync asked for (generation 2)\n"
    stack.wait(made.name)
    arrives(made, "rows")
    assert made.sink.execute("SELECT id FROM others") == [(77,)]
    made.sink.execute("DELETE FROM rows WHERE id = 2")
    stack.cli("restart", "pipeline", made.name)
    stack.wait(made.name)
    assert made.sink.execute("SELECT count(*) FROM rows") == [(1,)]
    stack.cli("resync", "pipeline", made.name, "--table", "public.nothing", expect=1)


def test_a_comparison_finds_nothing_in_rows_of_every_type(stack: Stack, pair: Pair) -> None:
    """Whatever the tests before did to these tables, both ends hold the same, and the comparison says so."""
    stack.cli("reconcile", "pipeline", pair.name)
    stack.wait(pair.name, "reconciled", seconds=90)
    found = stack.pipeline(pair.name)["status"]["reconciles"]
    assert {(each["state"], each["rows_missing"], each["rows_extra"], each["rows_different"]) for each in found} == {
        ("done", 0, 0, 0)
    }
    assert sum(each["rows_compared"] for each in found) > 5_000


def test_a_comparison_counts_above_and_names_below_and_mends(stack: Stack, make_pair: Callable[[str], Pair]) -> None:
    """API, events and `describe` have counts; the keys are told on the node alone, and a kill changes nothing."""
    made = _few(make_pair, "row-reconcile")
    made.source.execute("INSERT INTO rows SELECT n, 'mail ' || n, NULL FROM generate_series(100, 30000) n")
    stack.apply(made.manifest("public.rows"))
    stack.wait(made.name)
    arrives(made, "rows")
    made.sink.execute("DELETE FROM rows WHERE id BETWEEN 700 AND 709")
    made.sink.execute("UPDATE rows SET email = '' WHERE id = 4711")
    made.sink.execute("INSERT INTO rows VALUES (-815, NULL, NULL)")
    said = stack.cli("reconcile", "pipeline", made.name, "--table", "public.rows", "--repair")
    assert said.out == f"pipeline/{made.name} reconcile asked for (generation 2)\n"
    comparing = eventually(lambda: stack.comparing(made.name), within=30, what="the process that compares")
    comparing[0].kill()
    stack.wait(made.name, "reconciled", seconds=90)
    (found,) = stack.pipeline(made.name)["status"]["reconciles"]
    counts = [found[f"rows_{word}"] for word in ("missing", "different", "extra", "unsettled", "repaired")]
    assert (found["state"], found["number"], found["repair"], counts) == ("done", 1, True, [10, 1, 1, 0, 12])
    arrives(made, "rows")
    assert "12 repaired" in stack.cli("describe", "pipeline", made.name).out
    events = stack.events(f"/pipelines/{made.name}/events")
    told = [each["data"] for each in events if each["type"] == "ReconcileReported"]
    assert [(each["state"], each["rows_repaired"]) for each in told][-1] == ("done", 12)
    assert "-815" not in str(events)
    (node,) = (stack.folder / "nodes").iterdir()
    shown = stack.cli("node", "reconcile", "show", made.name, "--folder", str(node), "-o", "json").json["items"]
    assert {("extra", "-815"), ("different", "4711"), ("missing", "705")} <= {
        (each["kind"], *each["key"]) for each in shown
    }
    assert len(shown) == 12
    eventually(lambda: not stack.comparing(made.name), within=30, what="the process to end")


def test_rows_of_others_at_the_destination_are_never_touched(stack: Stack, make_pair: Callable[[str], Pair]) -> None:
    """A table that had rows before the pipeline came is left as it is, and the pipeline says why it does not run."""
    made = _few(make_pair, "row-taken")
    made.sink.execute("CREATE TABLE rows (id int PRIMARY KEY, email text, phone text)")
    made.sink.execute("INSERT INTO rows VALUES (7, 'ours', NULL)")
    stack.apply(made.manifest("public.rows"))
    stack.wait(made.name, "degraded")
    assert stack.pipeline(made.name)["status"]["code"] == "sink_table_not_empty"
    assert made.sink.execute("SELECT id, email FROM rows") == [(7, "ours")]
    made.sink.execute("TRUNCATE rows")
    stack.cli("restart", "pipeline", made.name)
    stack.wait(made.name)
    arrives(made, "rows")


def _left_at(pair: Pair) -> list[tuple[object, ...]]:
    return pair.source.execute(
        "SELECT slot_name::text FROM pg_replication_slots WHERE database = current_database() "
        "UNION ALL SELECT pubname::text FROM pg_publication"
    )
