"""Compares tables of two PostgreSQL databases row by row, each value in its text form under the same settings.

Both sides are read in the order of the key through a cursor, so tables of any size pass in bounded memory. Called by the
demo and by tests, when nobody writes any more.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import psycopg
from psycopg import sql

FETCH_ROWS = 5_000
EXAMPLES_MAX = 5

# What a value's text depends on must be the same on both sides, whatever the servers' defaults are.
_SETTINGS = (
    "SET datestyle = 'ISO, YMD'; SET intervalstyle = 'postgres'; SET timezone = 'UTC';"
    " SET extra_float_digits = 1; SET bytea_output = 'hex'"
)

Row = tuple[str | None, ...]


@dataclass
class Comparison:
    """What one table's comparison found. `examples` are keys, with what is wrong with their rows."""

    table: str
    rows: int = 0
    missing: int = 0
    surplus: int = 0
    different: int = 0
    examples: list[str] = field(default_factory=list)

    @property
    def equal(self) -> bool:
        """Whether both sides hold the same rows."""
        return not (self.missing or self.surplus or self.different)


def compare(source: str, destination: str, table: str) -> Comparison:
    """Compare one table, named `schema.table`, between two databases given by their connection strings.

    Raises:
        psycopg.Error: a side cannot be read, or lacks the table or a column.
    """
    with psycopg.connect(source) as left, psycopg.connect(destination) as right:
        for connection in (left, right):
            connection.execute(_SETTINGS)
        columns, key = _columns(left, table), _key(left, table)
        positions = [columns.index(name) for name in key]
        return _merge(table, _rows(left, table, columns, key), _rows(right, table, columns, key), positions)


def _columns(connection: psycopg.Connection[tuple[str, ...]], table: str) -> list[str]:
    found = connection.execute(
        "SELECT attname FROM pg_attribute WHERE attrelid = %s::regclass AND attnum > 0 AND NOT attisdropped"
        " AND attgenerated = '' ORDER BY attnum",
        [table],
    )
    return [str(row[0]) for row in found]


def _key(connection: psycopg.Connection[tuple[str, ...]], table: str) -> list[str]:
    found = connection.execute(
        "SELECT a.attname FROM pg_index i JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = ANY(i.indkey)"
        " WHERE i.indrelid = %s::regclass AND i.indisprimary ORDER BY array_position(i.indkey::int2[], a.attnum)",
        [table],
    )
    return [str(row[0]) for row in found]


def _rows(
    connection: psycopg.Connection[tuple[str, ...]], table: str, columns: list[str], key: list[str]
) -> Iterator[Row]:
    # Ordered by the bytes of the text, which is the same in every database, unlike the order of a collation.
    query = sql.SQL("SELECT {} FROM {} ORDER BY {}").format(
        sql.SQL(", ").join(sql.SQL("{}::text").format(sql.Identifier(name)) for name in columns),
        sql.Identifier(*table.split(".")),
        sql.SQL(", ").join(sql.SQL('{}::text COLLATE "C"').format(sql.Identifier(name)) for name in key),
    )
    with connection.cursor(name="comparison") as cursor:
        cursor.itersize = FETCH_ROWS
        cursor.execute(query)
        yield from cursor


def _merge(table: str, left: Iterator[Row], right: Iterator[Row], positions: list[int]) -> Comparison:
    def key(row: Row) -> list[bytes]:
        return [(row[position] or "").encode() for position in positions]

    found = Comparison(table)
    one, other = next(left, None), next(right, None)
    while one is not None or other is not None:
        if other is None or (one is not None and key(one) < key(other)):
            assert one is not None
            found.missing += 1
            _example(found, key(one), "is missing at the destination")
            one = next(left, None)
        elif one is None or key(other) < key(one):
            found.surplus += 1
            _example(found, key(other), "is at the destination only")
            other = next(right, None)
        else:
            found.rows += 1
            if one != other:
                found.different += 1
                _example(found, key(one), "differs")
            one, other = next(left, None), next(right, None)
    return found


def _example(found: Comparison, key: list[bytes], what: str) -> None:
    if len(found.examples) < EXAMPLES_MAX:
        found.examples.append(f"{found.table} {b', '.join(key).decode()} {what}")
