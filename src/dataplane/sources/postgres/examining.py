"""Look at the conditions of a copy of a part of a table before it begins: do they fit the table, and about how many rows match?

In flow a table as it is and its conditions; out flows an estimate, or why nothing is copied. The server reads the conditions
and plans them; no row is read. What does not fit is never a failure of the session: the stream and all other copies go on
without it. Called by the preparation of a session.
"""

import json
from collections.abc import Sequence

import psycopg
from psycopg import errors, sql

from contracts.backfilling import Condition
from contracts.codes import Code
from dataplane.batch import TableSchema
from dataplane.conditions import literally, means_the_clock
from dataplane.sources.port import CopyStanding
from dataplane.sources.postgres.catalog import Catalog, TableSeen

LOCK_SECONDS_MAX = 1
REFUSING_CLASSES = ("22", "42")
"""SQLSTATE classes of a value that a type cannot hold, and of a comparison that a type does not have."""


async def examine(
    catalog: Catalog, table: TableSeen, schema: TableSchema, where: Sequence[Condition]
) -> int | CopyStanding:
    """Return about how many rows match (0: not known), or which condition does not fit.

    Raises:
        psycopg.Error: the server does not answer.
    """
    types = {column.name: column.type for column in schema.columns}
    for condition in where:
        known = types.get(condition.column)
        if known is None or means_the_clock(condition, known) or not await _fits(catalog, table, [condition]):
            return CopyStanding(code=Code.BACKFILL_REFUSED, table=table.name, column=condition.column)
    return await _rows(catalog, table, where)


async def _fits(catalog: Catalog, table: TableSeen, where: Sequence[Condition]) -> bool:
    try:
        await _rows(catalog, table, where)
    except psycopg.Error as error:
        if (error.sqlstate or "")[:2] not in REFUSING_CLASSES or isinstance(error, errors.InsufficientPrivilege):
            raise
        return False
    return True


async def _rows(catalog: Catalog, table: TableSeen, where: Sequence[Condition]) -> int:
    statement = sql.SQL("EXPLAIN (FORMAT JSON) SELECT FROM {} WHERE {}").format(
        table.identifier, sql.SQL(" AND ").join(literally(where))
    )
    try:
        ((told,),) = await catalog.rows_within(LOCK_SECONDS_MAX, statement)
    except errors.LockNotAvailable:
        return 0  # whoever has it locked lets the copy wait as well
    plans = told if isinstance(told, list) else json.loads(told)
    return int(plans[0]["Plan"]["Plan Rows"])
