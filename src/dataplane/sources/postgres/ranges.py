"""The statements that read a part of a table by its key, and which keys have one order at every server.

In flow a table, its key and bounds as text; out flow SQL. Called by the chunk reader. No I/O.

Bounds are compared by the key's own index at the source, so any key can be cut into ranges there. At the destination a
range means the same only for types whose order depends on nothing, which `is_ordered` knows.
"""

from collections.abc import Sequence

from psycopg import sql

from contracts.backfilling import Comparison, Condition, has_one_order
from dataplane.batch import Column, Key, TableSchema
from dataplane.conditions import literally

_ALONG_INDEX = frozenset(Comparison) - {Comparison.NOT_EQUAL, Comparison.IS_NULL, Comparison.IS_NOT_NULL}


def is_ordered(schema: TableSchema, key: Sequence[str]) -> bool:
    """Say whether a range of this key holds the same rows at any server: types and the order of the columns count."""
    columns = [column for column in schema.columns if column.key]
    return tuple(key) == schema.key and all(has_one_order(column.type) for column in columns)


def described(schema: TableSchema, key: Sequence[str]) -> list[str]:
    """Return names and types of the key's columns, for a cursor."""
    types = {column.name: column.type for column in schema.columns}
    return [f"{name} {types[name]}" for name in key]


def _leading(where: Sequence[Condition], key: Sequence[str]) -> list[Condition]:
    """Return the conditions that say where in the key's index to look: those on its first column, and behind an `=` the next."""
    found: list[Condition] = []
    for name in key:
        of_column = [each for each in where if each.column == name and each.comparison in _ALONG_INDEX]
        found += of_column
        if not any(each.comparison is Comparison.EQUAL for each in of_column):
            break
    return found


class Part:
    """A table's columns and key as they are read. `key` is in the order of its index; only rows that match `where` are."""

    def __init__(
        self, table: sql.Composed, schema: TableSchema, key: Sequence[str], where: Sequence[Condition] = ()
    ) -> None:
        self._table = table
        self._schema = schema
        self._matching = literally(where)
        self._along_index = literally(_leading(where, key))
        types = {column.name: column.type for column in schema.columns}
        self._key = [(name, types[name]) for name in key]

    def bound(self, after: Key | None, rows: int) -> sql.Composed:
        """Ask for the key of the last of the next `rows` rows: none comes when there are no more than that.

        Rows count whether they match or not, but for conditions that the index goes by: finding a chunk's end never takes
        longer than reading so much of the index.
        """
        # The texts are made outside: beside ORDER BY they would be what it sorts by, as they carry the columns' names.
        return sql.SQL("SELECT {} FROM (SELECT {} FROM {}{} ORDER BY {} OFFSET {} LIMIT 1) AS last").format(
            sql.SQL(", ").join(sql.SQL("{}::text").format(sql.Identifier(name)) for name, _ in self._key),
            self._keys(),
            self._table,
            self._where(after, None, self._along_index),
            self._keys(),
            sql.Literal(rows - 1),
        )

    def copy(self, after: Key | None, upto: Key | None) -> sql.Composed:
        """Read the rows after `after` and up to `upto`."""
        columns: Sequence[Column] = self._schema.columns
        return sql.SQL("COPY (SELECT {} FROM {}{}) TO STDOUT").format(
            sql.SQL(", ").join(sql.Identifier(column.name) for column in columns),
            self._table,
            self._where(after, upto, self._matching),
        )

    def rows(self, columns: Sequence[str], keys: Sequence[Key]) -> sql.Composed:
        """Read `columns` of the rows with these keys, behind their key."""
        listed = [*(name for name, _ in self._key), *columns]
        return sql.SQL("COPY (SELECT {} FROM {} WHERE ({}) IN ({})) TO STDOUT").format(
            sql.SQL(", ").join(map(sql.Identifier, listed)),
            self._table,
            self._keys(),
            sql.SQL(", ").join(sql.SQL("({})").format(self._values(key)) for key in keys),
        )

    def _where(self, after: Key | None, upto: Key | None, more: Sequence[sql.Composed]) -> sql.Composable:
        conditions = [
            sql.SQL("({}) {} ({})").format(self._keys(), sql.SQL(operator), self._values(bound))
            for operator, bound in ((">", after), ("<=", upto))
            if bound is not None
        ]
        conditions += more
        return sql.SQL(" WHERE {}").format(sql.SQL(" AND ").join(conditions)) if conditions else sql.SQL("")

    def _keys(self) -> sql.Composed:
        return sql.SQL(", ").join(sql.Identifier(name) for name, _ in self._key)

    def _values(self, bound: Key) -> sql.Composed:
        # The types are the server's own words for its columns.
        return sql.SQL(", ").join(
            sql.SQL("{}::{}").format(sql.Literal(value), sql.SQL(type_))
            for value, (_, type_) in zip(bound, self._key, strict=True)
        )
