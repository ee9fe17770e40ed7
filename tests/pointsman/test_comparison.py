"""The comparison that ends the demo finds every kind of difference."""

from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from pointsman.local import workload
from pointsman.local.comparison import compare

TABLE = "CREATE TABLE t (id bigint PRIMARY KEY, a text, b numeric, c bytea, d int[]); "
ROWS = (
    "INSERT INTO t SELECT i, 'a' || i, i / 7.0, decode('00ff', 'hex'), ARRAY[i, NULL] FROM generate_series(1, 30) AS i"
)


@pytest.fixture
def pair(make_database: Callable[[str], Any]) -> tuple[Any, Any]:
    made = make_database("left"), make_database("right")
    for side in made:
        side.execute(TABLE + ROWS)
    return made


def test_equal_tables_are_equal(pair: tuple[Any, Any]) -> None:
    """And every row was looked at."""
    found = compare(pair[0].conninfo, pair[1].conninfo, "public.t")
    assert found.equal
    assert found.rows == 30


@pytest.mark.parametrize(
    ("change", "counts"),
    [
        ("DELETE FROM t WHERE id IN (1, 15, 30)", (3, 0, 0)),
        ("INSERT INTO t VALUES (0), (31)", (0, 2, 0)),
        ("UPDATE t SET a = NULL WHERE id = 9", (0, 0, 1)),
        ("UPDATE t SET b = (b::text || '0')::numeric WHERE id = 10", (0, 0, 1)),
        ("UPDATE t SET c = '\\x00' WHERE id = 11", (0, 0, 1)),
        ("UPDATE t SET d = ARRAY[d[1]] WHERE id = 30", (0, 0, 1)),
        ("UPDATE t SET id = 100 WHERE id = 2", (1, 1, 0)),
        ("TRUNCATE t", (30, 0, 0)),
    ],
)
def test_a_difference_is_found_and_named(pair: tuple[Any, Any], change: str, counts: tuple[int, int, int]) -> None:
    """Missing, surplus and different rows, with examples of their keys."""
    pair[1].execute(change)
    found = compare(pair[0].conninfo, pair[1].conninfo, "public.t")
    assert (found.missing, found.surplus, found.different) == counts
    assert found.examples


def test_the_writer_does_all_that_a_shop_does(database: Any) -> None:
    """Every kind of transaction commits, and each leaves its line in the journal."""
    with psycopg.connect(database.conninfo) as connection:
        workload.populate(connection)
    money = database.execute("SELECT sum(balance) FROM customers")
    writer = workload.Writer(database.conninfo, transactions_per_second=2_000, seed=3)
    writer.write_large_transaction(500)
    writer.start()
    while len(writer.kinds) < 7 or writer.transactions < 100:
        assert writer.failure is None
    last = writer.stop()
    assert database.execute("SELECT count(*), max(n) FROM journal") == [(last, last)]
    assert database.execute("SELECT sum(balance) FROM customers") == money
