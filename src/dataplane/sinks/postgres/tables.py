"""A table's shape at the destination, compared with that of a batch: what must be made, what must be added, what refused.

In flow the source's `TableSchema` and what the destination's catalog says; out flow DDL statements or a `Permanent` that
names table and column. Nothing is ever dropped or narrowed: a column that the source no longer has stays, and a changed
type is for a person to decide, because a rewrite at the source sends no rows. Pure but for `read`, which asks the catalog.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import psycopg
from psycopg import sql

from contracts.codes import Code
from dataplane.batch import Column, TableSchema
from dataplane.failures import Permanent

Equality = Mapping[str, tuple[str, str]]
"""For each column of a unique index: schema and name of the operator that the index can use."""


@dataclass(frozen=True, slots=True)
class Found:
    """A table as the destination has it: each column's type text, and the sets of columns that are unique."""

    types: dict[str, str]
    uniques: dict[frozenset[str], Equality]
    """What ON CONFLICT can find a row by, and how each of those columns is compared."""


_COLUMNS = """SELECT a.attname::text, format_type(a.atttypid, a.atttypmod), c.relkind::text
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    LEFT JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
    WHERE n.nspname = %s AND c.relname = %s ORDER BY a.attnum"""

# The index's own operators are used: that of an extension's type lies in a schema that no search path of ours names.
_UNIQUES = """SELECT array_agg(a.attname::text), array_agg(s.nspname::text), array_agg(o.oprname::text)
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    JOIN pg_index i ON i.indrelid = c.oid
    JOIN pg_class x ON x.oid = i.indexrelid JOIN pg_am m ON m.oid = x.relam AND m.amname = 'btree'
    CROSS JOIN generate_series(0, i.indnkeyatts - 1) AS k
    JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = i.indkey[k]
    JOIN pg_opclass p ON p.oid = i.indclass[k]
    JOIN pg_amop e ON e.amopfamily = p.opcfamily AND e.amopstrategy = 3
        AND e.amoplefttype = p.opcintype AND e.amoprighttype = p.opcintype
    JOIN pg_operator o ON o.oid = e.amopopr JOIN pg_namespace s ON s.oid = o.oprnamespace
    WHERE n.nspname = %s AND c.relname = %s
        AND i.indisunique AND i.indimmediate AND i.indisvalid AND i.indpred IS NULL AND i.indexprs IS NULL
    GROUP BY i.indexrelid HAVING count(*) = max(i.indnkeyatts)"""


async def read(connection: psycopg.AsyncConnection[tuple[object, ...]], table: TableSchema) -> Found | None:
    """Return the table as it is at the destination; None when it does not exist.

    Raises:
        Permanent: SINK_TABLE_MISMATCH: something of that name exists and is not a table.
    """
    name = (table.schema, table.name)
    rows = await (await connection.execute(_COLUMNS, name)).fetchall()
    if not rows:
        return None
    if rows[0][2] not in ("r", "p"):
        raise Permanent(
            Code.SINK_TABLE_MISMATCH, f"{table.table} exists at the destination and is no table", table=table.table
        )
    uniques = await (await connection.execute(_UNIQUES, name)).fetchall()
    return Found(
        types={str(column): str(type_) for column, type_, _ in rows if column is not None},
        uniques={
            frozenset(columns): dict(zip(columns, zip(schemas, operators, strict=True), strict=True))
            for columns, schemas, operators in uniques
            if isinstance(columns, list) and isinstance(schemas, list) and isinstance(operators, list)
        },
    )


async def check_types(
    connection: psycopg.AsyncConnection[tuple[object, ...]], table: TableSchema, columns: Sequence[Column]
) -> None:
    """Make sure that the destination knows the types of `columns`.

    Raises:
        Permanent: SINK_TYPE_UNSUPPORTED: it does not know one; table and column are named.
    """
    for column in columns:
        if not await _is_type(connection, column.type):
            raise Permanent(
                Code.SINK_TYPE_UNSUPPORTED,
                f"the destination has no type {column.type}",
                table=table.table,
                column=column.name,
            )


async def _is_type(connection: psycopg.AsyncConnection[tuple[object, ...]], text: str) -> bool:
    """Say whether the server reads `text` as one type, and nothing but a type: it becomes a part of our statements."""
    # A comment would hide the rest of the statement, and the server's own reading passes over it.
    if "--" in text or "/*" in text:
        return False
    try:
        rows = await (await connection.execute("SELECT to_regtype(%s) IS NOT NULL", (text,))).fetchall()
    except psycopg.errors.SyntaxError:
        return False
    return bool(rows[0][0])


def creation(table: TableSchema) -> sql.Composed:
    """Return the statement that makes the table: the source's types, and nothing that could refuse a row but the key."""
    columns = [
        sql.SQL("{} {}{}").format(
            sql.Identifier(column.name),
            sql.SQL(column.type),  # checked by `check_types`
            sql.SQL(" NOT NULL" if column.key else ""),
        )
        for column in table.columns
    ]
    key = sql.SQL("PRIMARY KEY ({})").format(sql.SQL(", ").join(map(sql.Identifier, table.key)))
    return sql.SQL("CREATE TABLE {} ({})").format(
        sql.Identifier(table.schema, table.name), sql.SQL(", ").join([*columns, key])
    )


def additions(table: TableSchema, columns: Sequence[Column]) -> list[sql.Composed]:
    """Return the statements that add `columns`.

    Rows that are there get the value that the source's older rows have. It is no default for later ones: those bring
    every value along.
    """
    name = sql.Identifier(table.schema, table.name)
    added = [_with_value(column) for column in columns]
    statements = [sql.SQL("ALTER TABLE {} {}").format(name, sql.SQL(", ").join(added))]
    defaults = [
        sql.SQL("ALTER COLUMN {} DROP DEFAULT").format(sql.Identifier(column.name))
        for column in columns
        if column.missing is not None
    ]
    if defaults:
        statements.append(sql.SQL("ALTER TABLE {} {}").format(name, sql.SQL(", ").join(defaults)))
    return statements


def _with_value(column: Column) -> sql.Composed:
    added = sql.SQL("ADD COLUMN {} {}").format(sql.Identifier(column.name), sql.SQL(column.type))
    return added if column.missing is None else added + sql.SQL(" DEFAULT {}").format(sql.Literal(column.missing))


def missing_columns(table: TableSchema, found: Found) -> list[Column]:
    """Return the columns that the destination lacks and may be given.

    Raises:
        Permanent: SINK_TABLE_MISMATCH: another type, another key, or a key column that is missing.
    """
    missing = []
    for column in table.columns:
        held = found.types.get(column.name)
        if held is None and column.key:
            raise _mismatch(table, f"the destination lacks the key column {column.name}", column.name)
        if held is None:
            missing.append(column)
        elif not holds(held, column.type):
            raise _mismatch(
                table, f"{column.name} is {held} at the destination, {column.type} at the source", column.name
            )
    if not table.key:
        raise _mismatch(table, "the table has no key")
    if frozenset(table.key) not in found.uniques:
        raise _mismatch(table, f"the destination has no unique index on exactly ({', '.join(table.key)})", table.key[0])
    return missing


def _mismatch(table: TableSchema, message: str, column: str | None = None) -> Permanent:
    return Permanent(Code.SINK_TABLE_MISMATCH, message, table=table.table, column=column)


_INTEGERS = ("smallint", "integer", "bigint")
_VARYING = re.compile(r"character varying\((\d+)\)")


def holds(held: str, sent: str) -> bool:
    """Say whether a column of type `held` takes every value of type `sent` and gives back the same text.

    Only widenings that a server makes without changing a value count: longer integers, longer or unbounded strings.
    """
    if held == sent:
        return True
    if held in _INTEGERS and sent in _INTEGERS:
        return _INTEGERS.index(held) > _INTEGERS.index(sent)
    length = _VARYING.fullmatch(sent)
    if length is None and sent not in ("text", "character varying"):
        return False
    if held in ("text", "character varying"):
        return True
    longer = _VARYING.fullmatch(held)
    return bool(length and longer and int(longer[1]) >= int(length[1]))
