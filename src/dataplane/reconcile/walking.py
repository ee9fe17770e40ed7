"""How one end of a table is walked and matched by its key: operators of the key's own index, and SQL made of them.

In flows a table's name and its key; out flow the order of the index, and pieces of SQL. Each end walks in its own
order, and rows of the other end are found by equality alone, never by a range: collations may differ.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import psycopg
from psycopg import sql

from contracts.codes import Code
from dataplane.batch import TableSchema
from dataplane.failures import Permanent

Key = tuple[str, ...]
"""A row's key as text, in the order of `TableSchema.key`."""

PLAIN_GREATER = ("pg_catalog", ">")

_TYPES = """SELECT a.attname::text, format_type(a.atttypid, a.atttypmod)
    FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE n.nspname = %s AND c.relname = %s AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''"""

# The index's own operators: those of an extension's type lie in a schema that no search path of ours names.
_INDEXES = """SELECT array_agg(a.attname::text ORDER BY k), array_agg(es.nspname::text ORDER BY k),
        array_agg(eo.oprname::text ORDER BY k), array_agg(gs.nspname::text ORDER BY k),
        array_agg(go.oprname::text ORDER BY k), array_agg(ls.nspname::text ORDER BY k),
        array_agg(lo.oprname::text ORDER BY k)
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    JOIN pg_index i ON i.indrelid = c.oid
    JOIN pg_class x ON x.oid = i.indexrelid JOIN pg_am m ON m.oid = x.relam AND m.amname = 'btree'
    CROSS JOIN generate_series(0, i.indnkeyatts - 1) AS k
    JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = i.indkey[k]
    JOIN pg_opclass p ON p.oid = i.indclass[k]
    JOIN pg_amop e ON e.amopfamily = p.opcfamily AND e.amopstrategy = 3
        AND e.amoplefttype = p.opcintype AND e.amoprighttype = p.opcintype
    JOIN pg_amop g ON g.amopfamily = p.opcfamily AND g.amopstrategy = 5
        AND g.amoplefttype = p.opcintype AND g.amoprighttype = p.opcintype
    JOIN pg_amop l ON l.amopfamily = p.opcfamily AND l.amopstrategy = 1
        AND l.amoplefttype = p.opcintype AND l.amoprighttype = p.opcintype
    JOIN pg_operator eo ON eo.oid = e.amopopr JOIN pg_namespace es ON es.oid = eo.oprnamespace
    JOIN pg_operator go ON go.oid = g.amopopr JOIN pg_namespace gs ON gs.oid = go.oprnamespace
    JOIN pg_operator lo ON lo.oid = l.amopopr JOIN pg_namespace ls ON ls.oid = lo.oprnamespace
    WHERE n.nspname = %s AND c.relname = %s
        AND i.indisunique AND i.indisvalid AND i.indpred IS NULL AND i.indexprs IS NULL
    GROUP BY i.indexrelid HAVING count(*) = max(i.indnkeyatts) ORDER BY i.indexrelid"""


@dataclass(frozen=True, slots=True)
class Walk:
    """The key of one end: its columns in the index's order, their types, and the index's operators by column."""

    columns: tuple[str, ...]
    types: Mapping[str, str]
    """The type text of every column of the table at this end."""
    equality: Mapping[str, tuple[str, str]]
    greater: Mapping[str, tuple[str, str]]
    less: Mapping[str, tuple[str, str]]

    def order(self, alias: str) -> sql.Composed:
        """Return what ORDER BY is given: the index's own order, which need not be that of the type."""
        return sql.SQL(", ").join(
            sql.SQL("{} USING OPERATOR({}.{})").format(
                sql.Identifier(alias, name), sql.Identifier(self.less[name][0]), sql.SQL(self.less[name][1])
            )
            for name in self.columns
        )

    def matches(self, left: str, right: str, casts: Mapping[str, str] | None = None) -> sql.Composed:
        """Return the condition that the rows `left` and `right` have one key; `right` is cast if it is text."""
        return sql.SQL(" AND ").join(
            sql.SQL("{} OPERATOR({}.{}) {}{}").format(
                sql.Identifier(left, name),
                sql.Identifier(self.equality[name][0]),
                sql.SQL(self.equality[name][1]),
                sql.Identifier(right, name),
                sql.SQL(f"::{casts[name]}" if casts else ""),
            )
            for name in self.columns
        )

    def beyond(self, alias: str, key: Mapping[str, str]) -> sql.Composed:
        """Return the condition that a row comes after `key`, so that the index finds the place at once."""
        if all(operator == PLAIN_GREATER for operator in self.greater.values()):
            columns = sql.SQL(", ").join(sql.Identifier(alias, name) for name in self.columns)
            values = sql.SQL(", ").join(self._literal(name, key) for name in self.columns)
            return sql.SQL("ROW({}) > ROW({})").format(columns, values)
        parts = []
        for place, name in enumerate(self.columns):
            equal = [self._compare(alias, before, self.equality, key) for before in self.columns[:place]]
            parts.append(sql.SQL(" AND ").join([*equal, self._compare(alias, name, self.greater, key)]))
        return sql.SQL(" OR ").join(parts)

    def _compare(
        self, alias: str, name: str, operators: Mapping[str, tuple[str, str]], key: Mapping[str, str]
    ) -> sql.Composed:
        schema, operator = operators[name]
        return sql.SQL("{} OPERATOR({}.{}) {}").format(
            sql.Identifier(alias, name), sql.Identifier(schema), sql.SQL(operator), self._literal(name, key)
        )

    def _literal(self, name: str, key: Mapping[str, str]) -> sql.Composed:
        return sql.SQL("{}::{}").format(sql.Literal(key[name]), sql.SQL(self.types[name]))


def read(
    connection: psycopg.Connection[tuple[object, ...]], table: TableSchema, *, missing: Code, mismatch: Code
) -> Walk:
    """Ask one end how its table is walked.

    Raises:
        Permanent: there is no such table (`missing`), or no unique index on exactly the key (`mismatch`).
    """
    name = (table.schema, table.name)
    types = {str(column): str(type_) for column, type_ in connection.execute(_TYPES, name)}
    if not types:
        raise Permanent(missing, "the table does not exist", table=table.table)
    for columns, *operators in connection.execute(_INDEXES, name):
        if isinstance(columns, list) and set(columns) == set(table.key) and table.key:
            lists = [[str(part) for part in each] for each in operators if isinstance(each, list)]
            equality, greater, less = (
                dict(zip(columns, zip(*lists[place : place + 2], strict=True), strict=True)) for place in (0, 2, 4)
            )
            return Walk(columns=tuple(columns), types=types, equality=equality, greater=greater, less=less)
    raise Permanent(mismatch, f"no unique index on exactly ({', '.join(table.key)})", table=table.table)


_INTEGERS = ("smallint", "integer", "bigint")


def casts(table: TableSchema) -> dict[str, str]:
    """Return for each key column the type to which the other end's text is cast, so that no wider value is cut or refused."""
    found = {}
    for column in table.columns:
        if not column.key:
            continue
        if column.type in _INTEGERS:
            found[column.name] = "bigint"
        elif column.type == "text" or column.type.startswith("character varying"):
            found[column.name] = "text"
        else:
            found[column.name] = column.type
    return found


def named(columns: Sequence[str], key: Key) -> dict[str, str]:
    """Return a key's values by the names of its columns."""
    return dict(zip(columns, key, strict=True))
